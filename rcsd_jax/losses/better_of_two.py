"""Token by token, which of two teachers is the target, and how strongly: DOPD's rule (arXiv 2606.30626).

Both see the same privileged context. One is the teacher, the other the student itself. Where they agree on a token, little can be
learnt from either; where the teacher finds it likelier, its knowledge can be learnt; where the student does, it explores.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from rcsd_jax.losses.array_checks import check_log_probs

GAP = math.log(2.0)
"""Log-probabilities further apart than this differ: one of the two finds the token at least twice as likely."""

CONFIDENT = 1.0
"""The sum of both probabilities from which the two count as confident."""

LIGHT, WEAK = 0.6, 0.3  # strengths, as the authors set them


def route(teacher: jax.Array, student: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(whether the teacher is the target, bool; the strength, float32), [..., T] both, from log-probabilities of the sampled tokens.

        differ,  teacher likelier     teacher, 1
        differ,  student likelier     student, 0.6
        agree,   both confident       teacher, 0.6
        agree,   not confident        student, 0.3

    Args:
      teacher, student: [..., T], after the same privileged context; no gradient.

    Examples:
      >>> teacher, student = jnp.log(jnp.array([[0.9, 0.1, 0.6, 0.1]])), jnp.log(jnp.array([[0.2, 0.5, 0.6, 0.1]]))
      >>> of_teacher, strength = route(teacher, student)
      >>> of_teacher.tolist(), [round(x, 1) for x in strength[0].tolist()]
      ([[True, False, True, False]], [1.0, 0.6, 0.6, 0.3])
    """
    check_log_probs(teacher=teacher, student=student)
    teacher, student = (jax.lax.stop_gradient(x.astype(jnp.float32)) for x in (teacher, student))
    differ, likelier = jnp.abs(teacher - student) > GAP, teacher >= student
    confident = jnp.exp(teacher) + jnp.exp(student) >= CONFIDENT
    strong, light = differ & likelier, (differ & ~likelier) | (~differ & confident)
    return strong | (~differ & confident), jnp.where(strong, 1.0, jnp.where(light, LIGHT, WEAK))
