"""Splits options into a static part, which hashes, and traced values, which become arguments."""

from __future__ import annotations

from typing import Any

import jax


def is_traced(option: Any) -> bool:
    """Whether a number that `options.number` returned is traced."""
    return isinstance(option, jax.Array)


def apart(options: Any) -> tuple[Any, list[jax.Array]]:
    """A pytree of options as its static part, which hashes, and its traced values."""
    leaves, tree = jax.tree.flatten(options)
    return (tree, tuple(None if is_traced(x) else x for x in leaves)), [x for x in leaves if is_traced(x)]


def together(static: Any, traced: list[jax.Array]) -> Any:
    """The inverse of `apart`."""
    tree, leaves = static
    values = iter(traced)
    return jax.tree.unflatten(tree, [next(values) if x is None else x for x in leaves])
