"""Grading by a judge in a run: its model, the process that asks it, and its scores."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rcsd_jax.data.examples import Example, asked_text, rubric_of
from rcsd_jax.evaluate.graders import GradeAll
from rcsd_jax.host import multihost
from rcsd_jax.host.metrics import Progress
from rcsd_jax.host.shared_log import held_by_all
from rcsd_jax.judge import judging
from rcsd_jax.judge.asking import Answer, Ask, Usage, in_batches
from rcsd_jax.judge.cache import AnswerCache
from rcsd_jax.judge.endpoint import Endpoint, EndpointSettings
from rcsd_jax.roles import contexts
from rcsd_jax.roles.opened_model import open_served
from rcsd_jax.run.environment import Run
from rcsd_jax.sampling.decoding import SamplingConfig


@contextlib.contextmanager
def judge_of(run: Run) -> Iterator[GradeAll]:
    """The judge of `judge.checkpoint` or at `judge.base_url`, and the file of its answers, `verdicts.jsonl`, while it lasts.

    The judge gives "rubric_score", NaN if no criterion with positive weight was judged, and "judged", the share of judged
    criteria.

    Raises:
      UserError: see `judge.endpoint.Endpoint` and `judge.cache.AnswerCache`.
    """
    settings, path = run.config.judge, run.workdir / "verdicts.jsonl"
    if settings.checkpoint:  # all processes ask it together
        with held_by_all(AnswerCache, path) as cache:
            ask, identity = _local(run)
            yield functools.partial(_grade, run=run, ask=ask, identity=identity, cache=cache)
        return
    # Only process 0 asks an endpoint and keeps the file.
    is_main = multihost.is_main()
    with multihost.agreed(lambda: AnswerCache(path if is_main else None), everywhere=True) as cache:
        found = multihost.agreed(lambda: endpoint_of(settings.endpoint) if is_main else None, everywhere=True)
        ask, identity = found or (_asked_elsewhere, {})
        yield functools.partial(_grade, run=run, ask=ask, identity=identity, cache=cache)


def _asked_elsewhere(*_: Any) -> None:
    raise AssertionError("only process 0 asks an endpoint")


def _grade(
    examples: Sequence[Example],
    texts: Sequence[str],
    *,
    run: Run,
    ask: Ask,
    identity: Mapping[str, Any],
    cache: AnswerCache,
) -> list[dict[str, float]]:
    requests = [judging.Request(asked_text(e), text, rubric_of(e)) for e, text in zip(examples, texts, strict=True)]
    local = bool(run.config.judge.checkpoint)

    def stop() -> None:
        if not local:  # a local model's batches ask all processes
            run.stop.raise_if_heard("the judge's answers so far are kept")

    def judge() -> tuple[list[judging.Judgement], Usage]:
        with Progress(run.console, f"{run.name}: judge", 0) as progress:

            def told(done: int, of: int) -> None:
                if done == 1:
                    progress.extend(of)
                progress.advance(1, 0)

            return judging.judge_all(
                requests,
                ask=ask,
                identity=identity,
                cache=cache,
                settings=run.config.judge.judging,
                stop=stop,
                progress=told,
            )

    judgements, usage = judge() if local else multihost.agreed(judge)
    _tell(run, judgements, usage)
    return [
        {
            "rubric_score": float("nan") if one.score is None else one.score,
            "judged": 1.0 - one.unjudged / max(len(one.met), 1),
        }
        for one in judgements
    ]


def _tell(run: Run, judgements: Sequence[judging.Judgement], usage: Usage) -> None:
    unjudged = sum(one.unjudged for one in judgements)
    cost = "" if usage.cost is None else f", ${usage.cost:.2f}"
    tokens = f"{usage.input_tokens:,} + {usage.output_tokens:,} tokens"
    line = f"judge: {usage.asked:,} asked ({usage.reasked:,} again), {usage.cached:,} known, {tokens}{cost}"
    run.console.print(line)
    if unjudged:
        first = next(r for one in judgements for r, met in zip(one.reasons, one.met, strict=True) if met is None)
        count = sum(len(one.met) for one in judgements)
        line = f"warning: {unjudged:,} of {count:,} criteria have no verdict and are in no score; {first}"
        run.console.print(line, soft_wrap=True)


def endpoint_of(settings: EndpointSettings) -> tuple[Ask, Mapping[str, Any]]:
    """The endpoint that a config's `judge` names, and what identifies its answers; nothing is sent.

    Raises:
      UserError: see `judge.endpoint.Endpoint`.
    """
    endpoint = Endpoint(settings)
    return endpoint, endpoint.identity


def _local(run: Run) -> tuple[Ask, Mapping[str, Any]]:
    settings = run.config.judge
    model, digest, load = open_served(settings.checkpoint, run.config.model, run.mesh)
    load = functools.cache(load)  # and never called where every answer is known
    sampler = run.sampler(model, settings.batch_size)
    max_tokens = settings.endpoint.max_tokens or 1
    sampling = SamplingConfig(max_new_tokens=max_tokens, temperature=0.0, eos_ids=model.eos_ids)
    room = model.decoder.config.max_position - max_tokens

    def write(prompts: Sequence[str]) -> list[Answer]:
        encode = functools.partial(contexts.encode_chat, model.tokenizer, thinking=False)
        encoded = [encode([{"role": "user", "content": prompt}]) for prompt in prompts]
        answers = [Answer(None, f"a prompt of {len(p)} tokens leaves no room for an answer") for p in encoded]
        fitting = [i for i, p in enumerate(encoded) if len(p) <= room]
        if not fitting:
            return answers
        drawn = sampler.with_weights(load()).generate([encoded[i] for i in fitting], range(len(fitting)), sampling)
        for chosen, completions in drawn:
            for at, one in zip(chosen, completions, strict=True):
                answers[fitting[at]] = Answer(model.decode(one.tokens), cut=one.cut, output_tokens=len(one.tokens))
        return answers

    identity = {"checkpoint": digest, "max_tokens": max_tokens, "dtype": run.config.model.dtype}
    return in_batches(write, 4 * settings.batch_size), identity
