"""A teacher behind an endpoint scores completions, on the host between sampling and learning.

Process 0 asks. Its answers are kept in `teacher_scores/<update>.jsonl`, a file for each rollout by its first update, so that a run that
was stopped asks for none again. Files of rollouts before the newest checkpoint are removed.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from rcsd_jax.data.examples import Example
from rcsd_jax.host import multihost
from rcsd_jax.host.errors import UserError
from rcsd_jax.host.metrics import Progress
from rcsd_jax.judge.asking import Answer
from rcsd_jax.judge.cache import AnswerCache, key_of
from rcsd_jax.judge.prompt_scores import GivenTokens, PromptScores, decoded, width_of
from rcsd_jax.losses import KnownLogProbs
from rcsd_jax.methods.contract import Completions
from rcsd_jax.models import sharding
from rcsd_jax.run.checkpoints import newest_step
from rcsd_jax.run.environment import Run
from rcsd_jax.settings.stage import Settings

_FOLDER = "teacher_scores"


def endpoint_of(config: Settings, vocabulary: int) -> PromptScores:
    """The teacher's endpoint; nothing is sent.

    Raises:
      UserError: see `judge.endpoint.Endpoint`.
    """
    return PromptScores(config.teacher_endpoint.endpoint, top_k=config.loss.top_k or 0, vocabulary=vocabulary)


def width(config: Settings) -> int:
    """K of `KnownLogProbs`."""
    return width_of(config.loss.top_k or 0)


def scored(completions: Completions, examples: Sequence[Example], first: int, vocabulary: int, run: Run) -> Completions:
    """Completions with what the teacher at the endpoint says of their tokens.

    Args:
      completions: of a rollout, k * B rows on the mesh.
      examples: of each row, for messages.
      first: the first update that learns from the rollout.
      vocabulary: the student's.
      run: config, workdir and mesh.

    Raises:
      UserError: the endpoint does not answer, or gives something else.
    """
    parts = completions.teacher_tokens, completions.teacher_mask, completions.samples, completions.completion_mask
    tokens, mask, samples, learnt = multihost_utils.process_allgather(parts, tiled=True)
    asked: dict[int, GivenTokens] = {}
    for row in np.flatnonzero(np.asarray(learnt).any(axis=1)).tolist():
        prompt, answer = tokens[row][mask[row]], samples.tokens[row][samples.mask[row]]
        asked[row] = GivenTokens((*prompt.tolist(), *answer.tolist()), len(prompt))
    texts = multihost.agreed(lambda: _ask(asked, examples, first, vocabulary, run))
    shape = *samples.tokens.shape, width(run.config)
    known, log_probs = np.full(shape, -1, np.int32), np.zeros(shape, np.float32)
    for row, text in texts.items():
        found = decoded(text)
        known[row, samples.mask[row]], log_probs[row, samples.mask[row]] = found
    own = sharding.own_rows(len(known), run.mesh)
    return completions._replace(known=KnownLogProbs(*sharding.to_mesh((known[own], log_probs[own]), run.mesh)))


def unknown(samples_shape: tuple[int, int], config: Settings) -> KnownLogProbs:
    """Arrays of the shapes that `scored` adds."""
    shape = *samples_shape, width(config)
    return KnownLogProbs(jnp.zeros(shape, jnp.int32), jnp.zeros(shape, jnp.float32))


def _ask(
    asked: dict[int, GivenTokens], examples: Sequence[Example], first: int, vocabulary: int, run: Run
) -> dict[int, str]:
    """Row -> the text of its answer; what is known is not asked again."""
    _forget(run)
    endpoint = endpoint_of(run.config, vocabulary)
    keys = {row: key_of(endpoint.identity, one.tokens, one.first) for row, one in asked.items()}
    with AnswerCache(run.workdir / _FOLDER / f"{first}.jsonl") as cache:
        missing = list({keys[row]: row for row in asked if keys[row] not in cache}.values())
        with Progress(run.console, f"{run.name}: teacher's endpoint", len(missing)) as progress:

            def receive(number: int, answer: Answer) -> None:
                row = missing[number]
                if answer.text is None:
                    raise UserError(
                        f"the teacher's endpoint does not score this row's completion ({answer.problem})",
                        file=examples[row].origin,
                        field="teacher_endpoint.model",
                        value=run.config.teacher_endpoint.model,
                        remedy="mend the cause there, and repeat the command: the scores so far are kept",
                    )
                cache.put(keys[row], answer)
                progress.advance(1, 0)

            stop = lambda: run.stop.raise_if_heard("the teacher's scores so far are kept")
            endpoint([asked[row] for row in missing], receive, stop)
        held = {row: cache.get(key) for row, key in keys.items()}
    return {row: answer.text for row, answer in held.items() if answer is not None and answer.text is not None}


def _forget(run: Run) -> None:
    """Removes the files of rollouts that no checkpoint needs again."""
    folder, needed = run.workdir / _FOLDER, newest_step(run.workdir / "checkpoints")
    oldest = needed - run.config.train.updates_per_rollout
    for path in folder.iterdir() if folder.exists() else ():
        if path.stem.isdecimal() and int(path.stem) < oldest:
            path.unlink()
