"""Checks of the arrays that a caller gives: each raises a ValueError that names the argument and what it is."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


def shape(x: Any) -> str:
    """As it is written in messages."""
    return str(list(jnp.shape(x)))


def given(x: Any) -> str:
    """An array's dtype and shape; anything else as it is."""
    return f"{x.dtype} {shape(x)}" if hasattr(x, "dtype") else repr(x)


def is_of(x: Any, kind: Any) -> bool:
    """Whether x is an array of a kind of dtype, such as `jnp.floating`."""
    return hasattr(x, "dtype") and jnp.issubdtype(x.dtype, kind)


def check_floating(**arrays: Any) -> None:
    for name, x in arrays.items():
        if not is_of(x, jnp.floating):
            raise ValueError(f"{name} must be a floating-point array, got {given(x)}")


def check_same_shape(**arrays: Any) -> None:
    if len({jnp.shape(x) for x in arrays.values()}) > 1:
        shapes = ", ".join(f"{name} {shape(x)}" for name, x in arrays.items())
        raise ValueError(f"shapes must be equal, nothing is broadcast: {shapes}")


def check_shape(name: str, x: Any, wanted: tuple[int, ...], source: str) -> None:
    if jnp.shape(x) != tuple(wanted):
        raise ValueError(f"{name} must have the shape {list(wanted)} of {source}, got {shape(x)}")


def check_log_probs(**arrays: Any) -> None:
    """Floating-point arrays of one shape."""
    check_floating(**arrays)
    check_same_shape(**arrays)


def check_logits(**logits: Any) -> None:
    """Floating-point arrays [..., V] of one shape."""
    check_floating(**logits)
    for name, x in logits.items():
        if x.ndim < 1:
            raise ValueError(f"{name} must be [..., V], got a scalar")
    check_same_shape(**logits)


def checked_tokens(tokens: Any, wanted: tuple[int, ...], source: str) -> jax.Array:
    """Tokens of the shape, in a type that holds what they are compared with: the vocabulary's size, -100."""
    if not is_of(tokens, jnp.integer):
        raise ValueError(f"tokens must be an array of integers, got {given(tokens)}")
    check_shape("tokens", tokens, wanted, source)
    return tokens.astype(jnp.int32) if tokens.dtype.itemsize < 4 else tokens


def check_role(**arrays: Any) -> None:
    """The two are hidden states [B, T, D] and a head [D, V]."""
    check_floating(**arrays)
    (of_hidden, hidden), (of_head, head) = arrays.items()
    if hidden.ndim != 3 or head.ndim != 2 or hidden.shape[-1] != head.shape[0]:
        got = f"{of_hidden} {shape(hidden)} and {of_head} {shape(head)}"
        raise ValueError(f"{of_hidden} must be [B, T, D] and {of_head} [D, V], got {got}")


def check_both_roles(
    student_hidden: Any, student_head: Any, teacher_hidden: Any, teacher_head: Any, **by_token: Any
) -> None:
    """Hidden states [B, T, D] and heads [D, V], D being each role's own; all others are [B, T] or None. Teachers may be tuples."""
    check_role(student_hidden=student_hidden, student_head=student_head)
    hidden, heads = dict(student_hidden=student_hidden), dict(student_head=student_head)
    several = isinstance(teacher_hidden, tuple) and isinstance(teacher_head, tuple)
    if teacher_head is None and isinstance(teacher_hidden, tuple):  # what is known of a teacher
        for name, x in zip(("tokens", "log_probs"), teacher_hidden, strict=True):
            check_shape(f"the teacher's {name}", x[..., 0], student_hidden.shape[:2], "the hidden states [B, T, D]")
        teachers: Any = ()
    else:
        teachers = zip(teacher_hidden, teacher_head, strict=True) if several else [(teacher_hidden, teacher_head)]
    for number, (of_hidden, of_head) in enumerate(teachers):
        which = f"[{number}]" if several else ""
        roles = {f"teacher_hidden{which}": of_hidden, f"teacher_head{which}": of_head}
        check_role(**roles)
        hidden[f"teacher_hidden{which}"], heads[f"teacher_head{which}"] = of_hidden, of_head
    for what, axes, arrays in (("[B, T]", slice(0, 2), hidden), ("V", slice(1, 2), heads)):
        if len({x.shape[axes] for x in arrays.values()}) > 1:
            got = " and ".join(f"{name} {shape(x)}" for name, x in arrays.items())
            raise ValueError(f"both roles must have the same {what}, got {got}")
    for name, x in by_token.items():
        if x is not None:
            check_shape(name, x, student_hidden.shape[:2], "the hidden states [B, T, D]")
