"""Both roles' scores of the same completions.

h_S, h_T       hidden states that predict ŷ in both roles, the teacher's without gradient
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from rcsd_jax import losses
from rcsd_jax.methods import targets
from rcsd_jax.methods.contract import Completions, LossOptions, Scored
from rcsd_jax.methods.networks import Better, Mixture, Network, Networks, Several, Teacher, hidden_of
from rcsd_jax.methods.teacher_scores import TeacherScores, better
from rcsd_jax.models.layer import Statistics
from rcsd_jax.models.scoring import completion_hidden, completion_hidden_and_report

PLAIN = LossOptions()
"""Without guidance, the target is the teacher as it is."""


def score_both(networks: Networks, completions: Completions, loss: LossOptions = PLAIN) -> Scored:
    """Both roles' scores of completions, if no gradient is needed; of the options, those count that say what the target is."""
    student, teacher = networks
    teacher_hidden = score_teacher(teacher, completions, loss)
    return scored_with(student, score_student(student, completions), teacher, teacher_hidden)


def scored_with(student: Network, student_hidden: jax.Array, teacher: Teacher | None, teacher_hidden: Any) -> Scored:
    """Both roles' hidden states [R, T, D] with their output matrices, differentiable in the student; teachers may be None."""
    if teacher is None or teacher_hidden is None:
        return Scored(student_hidden, student.head, None, None)
    return Scored(student_hidden, student.head, teacher_hidden, jax.lax.stop_gradient(teacher.head))


def score_student(student: Network, completions: Completions) -> jax.Array:
    """The student's final hidden states that predict the completions, [B, N, D], differentiable in its variables."""
    return score_student_and_report(student, completions)[0]


def score_student_and_report(student: Network, completions: Completions) -> tuple[jax.Array, Statistics]:
    """`score_student`, and what the layers report: of the experts that the sampler recorded, if it did."""
    c = completions
    sequences = c.student_tokens, c.student_mask, c.samples.tokens, c.samples.mask
    return completion_hidden_and_report(student.decoder, student.variables, *sequences, c.samples.experts)


def score_teacher(teacher: Teacher | None, completions: Completions, loss: LossOptions = PLAIN) -> Any:
    """The teacher's final hidden states that predict the completions: `teacher_scores(...).hidden`; None without a teacher."""
    return None if teacher is None else teacher_scores(teacher, completions, loss).hidden


def teacher_scores(teacher: Teacher, completions: Completions, loss: LossOptions) -> TeacherScores:
    """The teacher's scores of completions, without gradient; hidden states are [B, N, D], of a mixture as `hidden_of` says.

    With guidance, hidden states after several contexts are added with the coefficients of `targets`: as logits are linear in them,
    these are the logits of the target. Of several teachers they are a tuple, each 0 in the completions of others; one without any
    costs nothing.
    """
    if isinstance(teacher, Several):
        each = [_score_own(one, i, completions, loss) for i, one in enumerate(teacher.networks)]
        known = [one.log_probs for one in each if one.log_probs is not None]
        return TeacherScores(tuple(one.hidden for one in each), sum(known[1:], start=known[0]) if known else None)
    if isinstance(teacher, Better):
        asked = dataclasses.replace(loss, contrasts=True)
        return better(*(teacher_scores(one, completions, asked) for one in (teacher.teacher, teacher.student)))
    c = completions
    answer = c.samples.tokens, c.samples.mask
    weights = targets.coefficients(loss.target, loss.guidance, c.without.weights)
    own = _hidden(teacher, c.teacher_tokens, c.teacher_mask, *answer)
    hidden = own
    further = None
    if c.without.tokens.shape[1] and (weights.further is not None or loss.by_context):
        further = _without_each(teacher, c)  # [B, K, N, D]
    if loss.guidance:
        total = weights.own[..., None] * own.astype(jnp.float32)
        if weights.further is not None:
            assert further is not None, "they were scored"
            total += (weights.further[..., None, None] * further.astype(jnp.float32)).sum(axis=1)
        if weights.student is not None:
            plain = _hidden(teacher, c.student_tokens, c.student_mask, *answer)
            total += weights.student[..., None] * plain.astype(jnp.float32)
        hidden = total.astype(own.dtype)
    log_probs = None
    if loss.by_context:
        contexts = [own[:, None]] if further is None else [own[:, None], further]
        log_probs = _log_probs(teacher, jnp.concatenate(contexts, axis=1), c, loss)
    return jax.lax.stop_gradient(TeacherScores(hidden, log_probs))


def _log_probs(teacher: Network | Mixture, hidden: jax.Array, c: Completions, loss: LossOptions) -> jax.Array:
    """Log-probabilities of the completions' tokens [B, C, N] from hidden states [B, C, N, D] after C contexts."""
    batch, contexts, length, _ = hidden.shape
    repeated = [
        jnp.broadcast_to(x[:, None], (batch, contexts, length)).reshape(-1, length)
        for x in (c.samples.tokens, c.completion_mask)
    ]
    log_probs, _ = losses.token_log_probs_from_hidden(
        hidden.reshape(batch * contexts, length, -1),
        teacher.head[:, : loss.shared_tokens],
        repeated[0],
        chunk_size=loss.chunk_size,
        temperature=loss.temperature,
        mask=repeated[1],
    )
    return log_probs.reshape(batch, contexts, length)


def _score_own(teacher: Network, number: int, completions: Completions, loss: LossOptions) -> TeacherScores:
    """The scores of one of several teachers: 0 in the completions of others."""
    own = _own(completions, number)

    def score() -> TeacherScores:
        scores = teacher_scores(teacher, completions, loss)
        return jax.tree.map(lambda x: jnp.where(own[:, None, None], x, 0), scores)

    nothing = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(score))
    return jax.lax.cond(own.any(), score, lambda: nothing)


def of_teacher(completions: Completions, number: int) -> Completions:
    """The completions with only those to learn from that one of several teachers scores."""
    own = _own(completions, number)[..., None]
    return completions._replace(completion_mask=completions.completion_mask & own)


def _own(completions: Completions, number: int) -> jax.Array:
    assert completions.teacher is not None, "several teachers: each completion has one"
    return completions.teacher == number


def scored_tokens(completions: Completions, teacher: Teacher | None, loss: LossOptions) -> jax.Array:
    """[2] float32: the real tokens of all sequences that the roles score, and the same with padding."""
    c = completions
    masks = [c.student_mask]  # [B, Q] or [B, K, Q]
    if teacher is not None:
        weights = targets.coefficients(loss.target, loss.guidance, c.without.weights)
        of_teacher = [c.teacher_mask]
        if c.without.mask.shape[1] and (weights.further is not None or loss.by_context):
            of_teacher.append(c.without.mask)
        if weights.student is not None:
            of_teacher.append(c.student_mask)
        masks += of_teacher * (2 if isinstance(teacher, Better) else 1)
    real, places = jnp.float32(0), 0
    for mask in masks:
        rows = mask.size // max(mask.shape[0] * mask.shape[-1], 1)  # of one completion
        real += (mask.sum() + rows * c.samples.mask.sum()).astype(jnp.float32)
        places += mask.size + rows * c.samples.mask.size
    return jnp.stack([real, jnp.float32(places)])


def _without_each(teacher: Network | Mixture, c: Completions) -> jax.Array:
    """The teacher's hidden states when it is shown all criteria but one, [B, K, N, D]."""
    batch, count, _ = c.without.tokens.shape
    rows = lambda x: x.reshape(batch * count, x.shape[-1])
    answer = (
        rows(jnp.broadcast_to(x[:, None], (batch, count, x.shape[1]))) for x in (c.samples.tokens, c.samples.mask)
    )
    hidden = _hidden(teacher, rows(c.without.tokens), rows(c.without.mask), *answer)
    return hidden.reshape(batch, count, *hidden.shape[1:])


def _hidden(network: Network | Mixture, *prompts_and_completions: jax.Array) -> jax.Array:
    return hidden_of(network, lambda one: completion_hidden(one.decoder, one.variables, *prompts_and_completions))
