"""The options of a divergence, and checks of options that are numbers or choices."""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from rcsd_jax.losses.array_checks import given, is_of

SMALLEST_TEMPERATURE = 1e-4
"""Below it, float32 no longer resolves logits / temperature, and masked entries (-inf) could become the likeliest."""

DIVERGENCES = ("vocabulary", "sampled_token")
SUPPORTS = ("teacher", "student")
TAILS = ("renormalize", "bucket")

Scalar: TypeAlias = Any
"""A number, or a traced scalar."""

_RANGES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "beta": (lambda x: (x >= 0) & (x <= 1), "in [0, 1]"),
    "temperature": (
        lambda x: (x >= SMALLEST_TEMPERATURE) & (x < math.inf),
        f">= {SMALLEST_TEMPERATURE} and finite (greedy samples are scored at 1)",
    ),
    "entry_clip": (lambda x: x >= 0, ">= 0 or None"),
    "token_clip": (lambda x: x >= 0, ">= 0 or None"),
    "importance_clip": (lambda x: x > 0, "> 0 or None"),
    "clip": (lambda x: x > 0, "> 0"),
    "clip_low": (lambda x: (x >= 0) & (x <= 1), "in [0, 1]"),
    "clip_high": (lambda x: x >= 0, ">= 0"),
}


def number(name: str, value: Any) -> Scalar:
    """A scalar option: a concrete one as a Python number, a traced one as float32 without gradient.

    The range of a traced value cannot be checked. Out of range it becomes NaN, and so does everything computed from it.

    Raises:
      ValueError: it is no number, or out of its range.
    """
    holds, allowed = _RANGES[name]
    if not isinstance(value, (int, float)):
        if getattr(value, "shape", None) != () or not (is_of(value, jnp.floating) or is_of(value, jnp.integer)):
            raise ValueError(f"{name} must be one number, got {given(value)}")
        if isinstance(value, jax.core.Tracer):
            value = jax.lax.stop_gradient(value.astype(jnp.float32))
            return jnp.where(holds(value), value, jnp.nan)
        value = float(value)
    if not holds(value):
        raise ValueError(f"{name} must be {allowed}, got {value!r}")
    return value


def whole_number(name: str, value: Any) -> int:
    """A static option that is a whole number of at least 1.

    Raises:
      ValueError: it is something else.
    """
    try:
        whole = operator.index(value)
    except TypeError:  # of traced ones too
        whole = 0
    if whole < 1 or isinstance(value, bool):
        raise ValueError(f"{name} must be a static whole number >= 1, got {value!r}")
    return whole


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Raises ValueError unless the value is one of the choices."""
    if value not in choices:
        words = [repr(x) for x in choices]
        raise ValueError(f"{name} must be {', '.join(words[:-1])} or {words[-1]}, got {value!r}")


@dataclasses.dataclass(frozen=True)
class DivergenceOptions:
    """Which divergence of two distributions, checked when it is made.

    `score_from_hidden(..., **vars(options))` and `weighted_divergence_from_hidden` take its fields as keywords;
    `per_token_divergence` takes all but the first. It hashes, so it can be a static argument under `jit`; as a pytree, its
    leaves are the numbers.

    Attributes:
      divergence: "vocabulary", or "sampled_token": only of the sampled token (`sampled_token_loss`), for which beta does
        not matter, and top_k and entry_clip must be None.
      beta: 0 forward KL, 1 reverse KL, between: generalized Jensen-Shannon.
      top_k: keep only k entries per position; None or k >= V keeps all.
      top_k_support: "teacher" (RCSD release) or "student" (TRL's SDFT): whose k most likely entries.
      tail: the mass outside the support: "renormalize" drops it, "bucket" makes it one more entry.
      entry_clip: upper clamp of each vocabulary entry's pointwise term before the sum.
      token_clip: upper clamp of the per-token sum.

    Raises:
      ValueError: an option is out of its range.

    Examples:
      >>> DivergenceOptions(beta=2.0)
      Traceback (most recent call last):
      ValueError: beta must be in [0, 1], got 2.0
    """

    divergence: str = "vocabulary"
    beta: Scalar = 0.0
    top_k: int | None = None
    top_k_support: str = "teacher"
    tail: str = "renormalize"
    entry_clip: Scalar | None = None
    token_clip: Scalar | None = None

    def __post_init__(self) -> None:
        checked = {"beta": number("beta", self.beta)}
        checked |= {name: optional_number(name, getattr(self, name)) for name in ("entry_clip", "token_clip")}
        check_choice("divergence", self.divergence, DIVERGENCES)
        check_choice("top_k_support", self.top_k_support, SUPPORTS)
        check_choice("tail", self.tail, TAILS)
        if self.divergence == "sampled_token":
            for name in ("top_k", "entry_clip"):
                if getattr(self, name) is not None:
                    raise ValueError(
                        f"{name} must be None with divergence='sampled_token', got {getattr(self, name)!r}"
                    )
        checked["top_k"] = None if self.top_k is None else whole_number("top_k", self.top_k)
        self.__dict__.update(checked)  # past the freeze: numbers in the form that the computations expect


def optional_number(name: str, value: Any) -> Scalar | None:
    """`number`, or None."""
    return None if value is None else number(name, value)


_NUMBERS = ("beta", "entry_clip", "token_clip")


def _flatten(options: DivergenceOptions) -> tuple[list[Any], tuple[tuple[str, Any], ...]]:
    fields = vars(options)
    return [fields[name] for name in _NUMBERS], tuple((k, v) for k, v in fields.items() if k not in _NUMBERS)


def _unflatten(static: tuple[tuple[str, Any], ...], numbers: Any) -> DivergenceOptions:
    options = object.__new__(DivergenceOptions)  # without checks: JAX also puts its own objects in the place of numbers
    options.__dict__.update(static, **dict(zip(_NUMBERS, numbers, strict=True)))
    return options


jax.tree_util.register_pytree_node(DivergenceOptions, _flatten, _unflatten)
