"""Products of groups of rows, each with a matrix of its own, and their gradients: `jax.lax.ragged_dot`, with megablox backward.

XLA's TPU compiler has a kernel for the product. For the gradients it would copy the matrices, transposed, and multiply each with
all rows. JAX's megablox kernels do neither.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.megablox.gmm import gmm, tgmm

ROWS = 128
"""Rows that the TPU kernels take together."""
_TILES = (ROWS, 1024, 1024)
"""Of rows, of what is summed over, and of columns. Tiles of twice the widths exceed a v5e's vector memory."""


def grouped_matmul(x: jax.Array, matrices: jax.Array, sizes: jax.Array, kernels: str) -> jax.Array:
    """x[rows of group g] @ matrices[g] for every group; a matrix whose group is empty is not read.

    Args:
      x: [M, in]; the groups' rows follow each other. Rows after the last group mean nothing.
      matrices: [G, in, out].
      sizes: [G] int32, rows of each group; some may be empty, and the sum is at most M.
      kernels: of `kernels.KERNELS`. "xla": the gradients are by XLA as well.

    Returns:
      [M, out] in the dtype of x.
    """
    if kernels == "xla":
        return _forward(x, matrices, sizes)
    rows = x.shape[0]
    x = jnp.pad(x, ((0, -rows % ROWS), (0, 0)))
    return _on_tpu(kernels == "pallas_interpret", x, matrices, sizes)[:rows]


def _forward(x: jax.Array, matrices: jax.Array, sizes: jax.Array) -> jax.Array:
    return jax.lax.ragged_dot(x, matrices, sizes, preferred_element_type=x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _on_tpu(interpret: bool, x: jax.Array, matrices: jax.Array, sizes: jax.Array) -> jax.Array:
    return _forward(x, matrices, sizes)


def _backward(
    interpret: bool, residuals: tuple[jax.Array, ...], gradient: jax.Array
) -> tuple[jax.Array, jax.Array, None]:
    x, matrices, sizes = residuals
    how: dict[str, Any] = dict(tiling=_TILES, interpret=interpret)
    to_x = gmm(gradient, matrices, sizes, x.dtype, transpose_rhs=True, **how)
    # The kernel does not write rows after the last group, and what stands there must not spread.
    to_x = jnp.where(jnp.arange(len(x))[:, None] < sizes.sum(), to_x, 0)
    # Of frozen matrices nobody asks for it, and it is not computed.
    to_matrices = tgmm(x.swapaxes(0, 1), gradient, sizes, matrices.dtype, **how)
    return to_x, to_matrices, None


_on_tpu.defvjp(lambda _, *inputs: (_forward(*inputs), inputs), _backward)
