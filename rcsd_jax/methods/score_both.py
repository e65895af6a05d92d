"""Both roles' scores of the same completions.

h_S, h_T       hidden states that predict ŷ in both roles, the teacher's without gradient
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from rcsd_jax.methods.contract import Completions, Scored
from rcsd_jax.methods.networks import Mixture, Network, Networks, Several, Teacher, hidden_of
from rcsd_jax.models.layer import Statistics
from rcsd_jax.models.scoring import completion_hidden, completion_hidden_and_report


def score_both(networks: Networks, completions: Completions, *, guidance: float = 0.0) -> Scored:
    """Both roles' scores of completions, if no gradient is needed."""
    student, teacher = networks
    teacher_hidden = score_teacher(teacher, completions, guidance=guidance)
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


def score_teacher(teacher: Teacher | None, completions: Completions, *, guidance: float = 0.0) -> Any:
    """The teacher's final hidden states that predict the completions, without gradient: [B, N, D], of a mixture as `hidden_of` says.

    None without a teacher. Of several teachers a tuple, each 0 in the completions of others; one without any costs nothing.

    With guidance g they are h + g (h - h'), h' being the teacher's without its privileged context, shown what the student
    sees. As logits are linear in them, these are the logits with - without, pushed along by the same factor. By criteria
    they are h + g sum_k w_k (h - h_k), h_k being the teacher's without criterion k of weight w_k.
    """
    if teacher is None:
        return None
    if isinstance(teacher, Several):
        return tuple(_score_own(one, i, completions, guidance) for i, one in enumerate(teacher.networks))
    c = completions
    answer = c.samples.tokens, c.samples.mask
    hidden = _hidden(teacher, c.teacher_tokens, c.teacher_mask, *answer)
    if guidance and c.without.tokens.shape[1]:
        weights = c.without.weights[..., None, None]  # [B, K, 1, 1]
        less = _without_each(teacher, c).astype(jnp.float32)  # [B, K, N, D]
        change = (weights * (hidden[:, None].astype(jnp.float32) - less)).sum(axis=1)
        hidden = (hidden.astype(jnp.float32) + guidance * change).astype(hidden.dtype)
    elif guidance:
        less = _hidden(teacher, c.student_tokens, c.student_mask, *answer).astype(jnp.float32)
        change = hidden.astype(jnp.float32) - less
        hidden = (hidden.astype(jnp.float32) + guidance * change).astype(hidden.dtype)
    return jax.lax.stop_gradient(hidden)


def _score_own(teacher: Network, number: int, completions: Completions, guidance: float) -> jax.Array:
    """The hidden states of one of several teachers, [B, N, D]: 0 in the completions of others."""
    own = _own(completions, number)

    def score() -> jax.Array:
        return jnp.where(own[:, None, None], score_teacher(teacher, completions, guidance=guidance), 0)

    nothing = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(score))
    return jax.lax.cond(own.any(), score, lambda: nothing)


def of_teacher(completions: Completions, number: int) -> Completions:
    """The completions with only those to learn from that one of several teachers scores."""
    own = _own(completions, number)[..., None]
    return completions._replace(completion_mask=completions.completion_mask & own)


def _own(completions: Completions, number: int) -> jax.Array:
    assert completions.teacher is not None, "several teachers: each completion has one"
    return completions.teacher == number


def scored_tokens(completions: Completions, *, teacher: bool, guidance: float = 0.0) -> jax.Array:
    """[2] float32: the real tokens of all sequences that the roles score, and the same with padding."""
    c = completions
    masks = [c.student_mask]  # [B, Q] or [B, K, Q]
    if teacher:
        without = c.without.mask if c.without.mask.shape[1] else c.student_mask
        masks += [c.teacher_mask, without] if guidance else [c.teacher_mask]
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
