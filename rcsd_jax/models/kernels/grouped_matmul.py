"""Products of groups of rows, each with a matrix of its own, and their gradients: a Pallas kernel, or `jax.lax.ragged_dot`.

The kernel reads the matrices where they are stored: those of one layer in a stack of layers, in int8 too. XLA would copy them out of
the stack, and convert them, before its own kernel. A matrix is fetched once for all rows of its group. The matrices' gradients are
by JAX's megablox.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.experimental.pallas.ops.tpu.megablox.gmm import tgmm

from rcsd_jax.models.kernels import LANES

ROWS = 128
"""Rows that the kernel takes together. Of few rows it takes fewer, so that those of other groups in between cost less; of many more."""
_LEAST_ROWS = 16  # of bfloat16 in a register
_FETCHED = 4 << 20  # bytes of a matrix that are fetched together, with the next ones a fourth of a v5e's vector memory
_TILES = (ROWS, 1024, 1024)  # of megablox: of rows, and of a matrix


def grouped_matmul(
    x: jax.Array,
    matrices: jax.Array,
    sizes: jax.Array,
    kernels: str,
    layer: jax.Array | int | None = None,
    usual: int | None = None,
) -> jax.Array:
    """x[rows of group g] @ matrices[g] for every group; a matrix whose group is empty is not read.

    Args:
      x: [M, in]; the groups' rows follow each other.
      matrices: [G, in, out], or with a `layer` a stack [L, G, in, out] of them; in the dtype of x, or int8.
      sizes: [G] int32, rows of each group; some may be empty, and the sum is at most M.
      kernels: of `kernels.KERNELS`. "xla": `ragged_dot` computes products and gradients.
      layer: the place in the stack.
      usual: how many rows the groups usually have together, for the estimate of what the kernel costs; None: M.

    Returns:
      [M, out] in the dtype of x; rows after the last group are 0.
    """
    if kernels == "xla":
        of_layer = matrices if layer is None else matrices[layer]
        y = jax.lax.ragged_dot(x, of_layer.astype(x.dtype), sizes, preferred_element_type=x.dtype)
        return jnp.where(jnp.arange(len(x))[:, None] < sizes.sum(), y, 0)
    stack = matrices[None] if layer is None else matrices
    number = jnp.asarray(0 if layer is None else layer, jnp.int32)
    return _product(kernels == "pallas_interpret", len(x) if usual is None else usual, x, stack, number, sizes)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _product(
    interpret: bool, usual: int, x: jax.Array, stack: jax.Array, layer: jax.Array, sizes: jax.Array
) -> jax.Array:
    return _by_kernel(x, stack, layer, sizes, usual, transposed=False, interpret=interpret)


def _backward(
    interpret: bool, usual: int, residuals: tuple[jax.Array, ...], gradient: jax.Array
) -> tuple[jax.Array, jax.Array | None, None, None]:
    x, stack, layer, sizes = residuals
    to_x = _by_kernel(gradient, stack, layer, sizes, usual, transposed=True, interpret=interpret)
    if not jnp.issubdtype(stack.dtype, jnp.floating):
        return to_x, None, None, None
    # Of frozen matrices nobody asks for it, and it is not computed.
    padding = ((0, -len(x) % ROWS), (0, 0))
    x, gradient = jnp.pad(x, padding), jnp.pad(gradient, padding)
    of_layer = tgmm(x.swapaxes(0, 1), gradient, sizes, stack.dtype, tiling=_TILES, interpret=interpret)
    return to_x, jnp.zeros_like(stack).at[layer].set(of_layer), None, None


_product.defvjp(lambda interpret, usual, *inputs: (_product(interpret, usual, *inputs), inputs), _backward)


def _by_kernel(
    x: jax.Array,
    stack: jax.Array,
    layer: jax.Array,
    sizes: jax.Array,
    usual: int,
    *,
    transposed: bool,
    interpret: bool,
) -> jax.Array:
    """x [M, in] times the groups' matrices of a layer, [in, out] or transposed [out, in]: [M, out]."""
    count, width, (groups, *matrix) = len(x), x.shape[1], stack.shape[1:]
    out_width = matrix[0 if transposed else 1]
    tile = _rows(count, groups)
    x = jnp.pad(x, ((0, -count % tile), (0, 0)))
    columns = _columns(out_width, width * stack.dtype.itemsize)
    visits = visited(sizes, len(x), tile)
    computed = (-(-usual // tile) + groups - 1) * tile  # as if every group began in the middle of a tile
    parts = out_width // columns
    fetched = min(groups, usual) * width * out_width * stack.dtype.itemsize
    block = (None, None, columns, width) if transposed else (None, None, width, columns)

    def of_stack(n: Any, v: Any, layer: Any, group: Any, *_: Any) -> tuple[Any, ...]:
        place = layer[0], jnp.minimum(group[v], groups - 1)
        return (*place, n, 0) if transposed else (*place, 0, n)

    kernel = pl.pallas_call(
        functools.partial(_multiply, groups=groups, transposed=transposed),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=4,
            grid=(parts, visits.total),
            in_specs=[
                pl.BlockSpec((tile, width), lambda n, v, layer, group, tiles, *_: (tiles[v], 0)),
                pl.BlockSpec(block, of_stack),
            ],
            out_specs=pl.BlockSpec((tile, columns), lambda n, v, layer, group, tiles, *_: (tiles[v], n)),
        ),
        out_shape=jax.ShapeDtypeStruct((len(x), out_width), x.dtype),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        cost_estimate=pl.CostEstimate(
            flops=2 * computed * width * out_width,
            transcendentals=0,
            bytes_accessed=fetched + (computed * parts * width + len(x) * out_width) * x.dtype.itemsize,
        ),
        interpret=interpret,
        name="grouped_matmul",
    )
    return kernel(layer[None], visits.group, visits.tile, visits.ends, x, stack)[:count]


class Visits(NamedTuple):
    """The steps of the kernel: a group and a tile that has rows of it. The rows after the last group are one group more.

    Attributes:
      group, tile: [V] int32 of each visit; of the same group, and of the same tile, one after the other.
      ends: [G + 1] int32, the row after each group's last.
      total: [] int32, how many visits there are, at most V.
    """

    group: jax.Array
    tile: jax.Array
    ends: jax.Array
    total: jax.Array


def visited(sizes: jax.Array, rows: int, tile: int) -> Visits:
    """The visits for groups of `sizes` [G] among `rows` rows, in tiles."""
    sizes = jnp.append(sizes, rows - sizes.sum()).astype(jnp.int32)
    ends = jnp.cumsum(sizes, dtype=jnp.int32)
    first = (ends - sizes) // tile
    tiles = jnp.where(sizes > 0, (ends - 1) // tile - first + 1, 0)
    done = jnp.cumsum(tiles, dtype=jnp.int32)
    visit = jnp.arange(rows // tile + len(sizes) - 1, dtype=jnp.int32)
    group = jnp.minimum((visit[:, None] >= done).sum(axis=1, dtype=jnp.int32), len(sizes) - 1)
    place = jnp.minimum(visit - (done - tiles - first)[group], rows // tile - 1)
    return Visits(group, place, ends, done[-1])


def _rows(count: int, groups: int) -> int:
    """Rows of a tile, for so many rows of all groups."""
    tile = _LEAST_ROWS
    while tile < ROWS and tile * groups < count:
        tile *= 2
    return 2 * ROWS if count >= 8 * ROWS * groups else tile


def _columns(width: int, bytes_of_a_column: int) -> int:
    """Columns that are computed together: all, or as many registers' widths as divide them and are fetched together."""
    if width % LANES:
        return width
    fits = [n for n in range(LANES, width + 1, LANES) if width % n == 0 and n * bytes_of_a_column <= _FETCHED]
    return max(fits, default=LANES)


def _multiply(
    layer: Any, group: Any, tiles: Any, ends: Any, x: Any, matrix: Any, out: Any, *, groups: int, transposed: bool
) -> None:
    """One visit; references: the `Visits` in SMEM, x [tile, in], a group's matrix and out [tile, columns] in VMEM."""
    visit = pl.program_id(1)
    g, first = group[visit], tiles[visit] * out.shape[0]
    row = first + jax.lax.broadcasted_iota(jnp.int32, out.shape, 0)
    own = (row >= jnp.where(g > 0, ends[jnp.maximum(g - 1, 0)], 0)) & (row < ends[g])

    @pl.when(g < groups)
    def _() -> None:
        w = matrix[...]
        w = w if w.dtype == x.dtype else w.astype(jnp.float32).astype(x.dtype)
        how = (((1,), (int(transposed),)), ((), ()))
        y = jax.lax.dot_general(x[...], w, how, preferred_element_type=jnp.float32)
        out[...] = jnp.where(own, y, out[...].astype(jnp.float32)).astype(out.dtype)

    @pl.when(g == groups)
    def _() -> None:
        out[...] = jnp.where(own, 0.0, out[...].astype(jnp.float32)).astype(out.dtype)
