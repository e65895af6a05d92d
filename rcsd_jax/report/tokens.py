"""What student, teacher and target say of single tokens: divergences, log-probabilities, the likeliest five of each.

Contexts, scores and divergence are the train step's own (`methods.rollout`, `methods.score_both`, `losses.score_from_hidden`).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rcsd_jax import losses
from rcsd_jax.losses.chunks import logits_of_several
from rcsd_jax.losses.from_hidden import emphasis_of
from rcsd_jax.methods import rollout
from rcsd_jax.methods.contract import Completions, Emphasis, LossOptions, Weights, emphasised
from rcsd_jax.methods.networks import Better, Networks, Several, Teacher
from rcsd_jax.methods.rollout import Batch, RolloutOptions
from rcsd_jax.methods.score_both import PLAIN, score_student, scored_with, teacher_scores
from rcsd_jax.methods.teacher_scores import TeacherScores, after_teacher
from rcsd_jax.sampling.decoding import Samples

TOP = 5
_CHUNK = 64  # positions whose logits are in memory at once


class Target(NamedTuple):
    """What the student is trained towards, if that is not the teacher as it is: with guidance, or the better of two teachers."""

    log_prob: np.ndarray  # [N] float32, of the token that was written
    divergence: np.ndarray  # [N] float32, nats, KL(target || teacher)
    top: tuple[np.ndarray, np.ndarray]  # as `Scores.student_top`


class Scores(NamedTuple):
    """Of one completion of N tokens; probabilities at the temperature at which both roles are compared."""

    divergence: np.ndarray  # [N] float32, nats, of the student and its target, as the step logs it
    student_log_prob: np.ndarray  # [N] float32, of the token that was written
    teacher_log_prob: np.ndarray  # [N] float32, after the teacher's own context
    student_top: tuple[np.ndarray, np.ndarray]  # token ids [N, TOP] int32 and their probabilities [N, TOP] float32
    teacher_top: tuple[np.ndarray, np.ndarray]
    completion_mask: np.ndarray  # [N] bool, whether the step learns from the token
    weight: np.ndarray  # [N] float32, its factor by `loss.emphasis` and the choice between two teachers; 1: like others
    target: Target | None  # None: the teacher


def score_tokens(
    networks: Networks,
    batch: Batch,
    samples: Samples,
    analyses: Samples | None,
    options: RolloutOptions,
    loss: LossOptions,
    *,
    batch_size: int = 8,
) -> list[Scores]:
    """Scores every completion in both roles, as the step scores them.

    Args:
      networks: of both roles.
      batch: prompts of both roles, NumPy's arrays of B rows.
      samples: the completions [B, N]; the end token included if it shall be looked at.
      analyses: of `write_analyses`.
      options, loss: the run's.
      batch_size: rows at a time.
    """
    loss = dataclasses.replace(loss, chunk_size=_CHUNK)
    if loss.emphasis.kind == "credit":  # the criteria that these completions fail are not known
        loss = dataclasses.replace(loss, emphasis=Emphasis())
    found: list[Scores] = []
    for (some, written, analysis), count in _parts((batch, samples, analyses), batch_size):
        scores = jax.device_get(_score(networks, some, written, analysis, options, loss))
        found += [jax.tree.map(lambda x: x[row][written.mask[row]], scores) for row in range(count)]  # noqa: B023
    return found


def write_analyses(
    analyst: Teacher | None, batch: Batch, key: jax.Array, options: RolloutOptions, *, batch_size: int = 8
) -> Samples | None:
    """The analyses of a teacher that reasons first, which depend only on `batch.row` and the key; None if it does not.

    Args:
      analyst: the network that writes them, `rollout.analyst`.
      batch: NumPy's arrays of B rows.
      key: a step's.
      options: the run's.
      batch_size: rows at a time.
    """
    if not options.reason_tokens:
        return None
    options = dataclasses.replace(options, slots=0)  # which change no text
    parts = [
        jax.tree.map(lambda x: x[:count], jax.device_get(_analyse(analyst, some, key, options)))  # noqa: B023
        for some, count in _parts(batch, batch_size)
    ]
    return jax.tree.map(lambda *x: np.concatenate(x), *parts)


def _parts(tree: Any, size: int) -> Iterator[tuple[Any, int]]:
    """`size` rows at a time, and how many of them are new: the last part is filled with the first rows."""
    total = len(jax.tree.leaves(tree)[0])
    for start in range(0, total, size):
        rows = np.arange(start, start + size) % total
        yield jax.tree.map(lambda x: x[rows], tree), min(size, total - start)  # noqa: B023


@functools.partial(jax.jit, static_argnames="options")
def _analyse(analyst: Teacher | None, batch: Batch, key: jax.Array, options: RolloutOptions) -> Samples | None:
    return rollout.draw_analysis(analyst, batch, rollout.row_keys(batch, key), options)


@functools.partial(jax.jit, static_argnames=("options", "loss"))
def _score(
    networks: Networks,
    batch: Batch,
    samples: Samples,
    analysis: Samples | None,
    options: RolloutOptions,
    loss: LossOptions,
) -> Scores:
    completions = rollout.assemble(batch, samples, analysis, options)
    teacher = networks.teacher
    assert teacher is not None, "where there is none, the report has where the student began"
    assert not isinstance(teacher, Several), "the completions that are scored together have one teacher"
    of_teacher = teacher_scores(teacher, completions, loss)
    of_student = score_student(networks.student, completions)
    scored = scored_with(networks.student, of_student, teacher, of_teacher.hidden)
    shared = functools.partial(jax.tree.map, lambda head: head[:, : loss.shared_tokens])
    bound: dict[str, Any] = dict(chunk_size=loss.chunk_size, temperature=loss.temperature)
    student_state = scored.student_hidden, shared(scored.student_head)
    target_state = of_teacher.hidden, shared(scored.teacher_head)
    compared = bound | vars(loss.divergence)
    stats = losses.score_from_hidden(*student_state, *target_state, samples.tokens, **compared)
    teacher_state, teacher_log_prob = target_state, stats.teacher_log_probs
    target: Target | None = None
    if loss.guidance or isinstance(teacher, Better):
        plain = teacher.teacher if isinstance(teacher, Better) else teacher
        teacher_state = teacher_scores(plain, completions, PLAIN).hidden, shared(plain.head)
        # Of its two roles, the student's is the teacher's and the teacher's the target's.
        moved = losses.score_from_hidden(*teacher_state, *target_state, samples.tokens, **bound)
        teacher_log_prob = moved.student_log_probs
        parts: tuple[Any, ...] = (moved.teacher_log_probs, moved.divergence, _likeliest(*target_state, **bound))
        target = Target(*parts)
    fields: tuple[Any, ...] = (  # of JAX's arrays, until the caller has them on the host
        *(stats.divergence, stats.student_log_probs, teacher_log_prob),
        _likeliest(*student_state, **bound),
        _likeliest(*teacher_state, **bound),
        completions.completion_mask,
        _weights(completions, of_teacher, stats, loss),
        target,
    )
    return Scores(*fields)


def _weights(
    completions: Completions, of_teacher: TeacherScores, stats: losses.DivergenceStats, loss: LossOptions
) -> jax.Array:
    """The factor of each token's weight, [B, N]; of "low_probability" among the completions that are scored together."""
    samples = completions.samples._replace(log_probs=stats.student_log_probs)
    completions = completions._replace(samples=samples)
    ones = Weights(*[completions.completion_mask.astype(jnp.float32)] * 2)
    weights = emphasised(ones, completions, loss.emphasis)
    weight = after_teacher(completions, weights, of_teacher, loss)[1].taught_rows
    return (
        weight if (kind := loss.emphasis.in_pass) is None else weight * emphasis_of(kind, loss.emphasis.strength, stats)
    )


def _likeliest(hidden: Any, head: Any, *, temperature: float, chunk_size: int) -> tuple[jax.Array, jax.Array]:
    """Ids and probabilities [B, N, TOP] of the likeliest tokens, of hidden states [B, N, D] and a head [D, V], or tuples of both."""
    batch, length = jax.tree.leaves(hidden)[0].shape[:2]
    size = min(chunk_size, length)

    def one_chunk(hidden: Any) -> tuple[jax.Array, jax.Array]:
        log_probs, ids = jax.lax.top_k(jax.nn.log_softmax(logits_of_several(hidden, head) / temperature), TOP)
        return ids.astype(jnp.int32), jnp.exp(log_probs)

    def chunks(hidden: jax.Array) -> jax.Array:
        padded = jnp.pad(hidden, ((0, 0), (0, -length % size), (0, 0)))
        return jnp.moveaxis(padded.reshape(batch, -1, size, hidden.shape[-1]), 1, 0)

    ids, probabilities = jax.lax.map(one_chunk, jax.tree.map(chunks, hidden))
    whole = lambda x: jnp.moveaxis(x, 0, 1).reshape(batch, -1, TOP)[:, :length]
    return whole(ids), whole(probabilities)
