"""The order in which a run sees its examples.

The batch of a step is a pure function of (examples, batch_size, seed, step). So a run resumes exactly
from its step, and it sees the same global batches when its number of processes changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import grain

from rcsd_jax.host.errors import UserError

_Row = TypeVar("_Row")  # an example, or a stand-in for one
_EPOCHS = 10**9  # endless; grain's own endless repeat overflows when it is batched by one and sliced


def batches(
    examples: Sequence[_Row], *, batch_size: int, seed: int, process_index: int = 0, process_count: int = 1
) -> grain.MapDataset[list[_Row]]:
    """The endless sequence of this process's batches: `batches(...)[step]` is a list of Examples, for any step >= 0.

    Every epoch is shuffled anew. A batch may span the end of an epoch, so no batch is short and no example is dropped:
    among the first k * len(examples) examples, each occurs exactly k times. A batch larger than the data set repeats
    examples. The global batch is cut into `process_count` equal parts. Joined in the order of `process_index`, the
    processes' batches are the batch of a single process.

    Args:
      examples: all examples, the same in every process.
      batch_size: the size of the global batch.
      seed: decides the order; 0 <= seed < 2**32.
      process_index: which part of the global batch to return.
      process_count: the number of parts.

    Raises:
      UserError: no examples; a batch size that is not positive or not a multiple of process_count; a seed out of range.
      ValueError: process_index is not in 0..process_count-1.

    Examples:
      >>> order = batches(list("abc"), batch_size=2, seed=0)
      >>> [len(order[step]) for step in range(3)], sorted(order[0] + order[1] + order[2])
      ([2, 2, 2], ['a', 'a', 'b', 'b', 'c', 'c'])
    """
    if not 0 <= process_index < process_count:
        raise ValueError(f"process_index {process_index} is not in 0..{process_count - 1}")
    if batch_size < 1 or batch_size % process_count:
        raise UserError(
            f"not a positive multiple of the {process_count} processes",
            remedy=f"set it to {process_count * max(1, round(batch_size / process_count))}",
            field="train.batch_size",
            value=batch_size,
        )
    runs = in_order(examples, seed=seed).batch(batch_size // process_count, batch_fn=list)
    return runs.slice(slice(process_index, None, process_count))


def in_order(examples: Sequence[_Row], *, seed: int) -> grain.MapDataset[_Row]:
    """The endless sequence that batches are cut from, one example at a time; arguments and errors as of `batches`.

    Examples:
      >>> order = in_order(list("abc"), seed=0)
      >>> [order[i] for i in range(6)] == batches(list("abc"), batch_size=6, seed=0)[0]
      True
    """
    if not examples:
        raise UserError("no examples to make batches of", remedy="give data with at least one example")
    if not 0 <= seed < 2**32:
        raise UserError("a seed is in 0..2**32-1", remedy="choose another seed", field="seed", value=seed)
    return grain.MapDataset.source(examples).seed(seed).shuffle().repeat(_EPOCHS)


def mixed(parts: Sequence[Sequence[_Row]], *, shares: Sequence[float], seed: int) -> grain.MapDataset[_Row]:
    """An endless sequence in which each part has its share, evenly spread; a part's rows come as `in_order` orders them.

    Every beginning of the sequence holds the shares as exactly as whole rows allow. So where a run stands in it says how often it
    has seen each part.

    Args:
      parts: the rows of each source, the same in every process.
      shares: positive weights of the parts.
      seed: decides the order; 0 <= seed < 2**32.

    Raises:
      UserError: a part without rows; a seed out of range.

    Examples:
      >>> order = mixed(["abc", "x"], shares=[3, 1], seed=0)
      >>> [sum(order[i] == "x" for i in range(n)) for n in (4, 40)]
      [1, 10]
    """
    orders = [in_order(part, seed=(seed + 0x9E3779B9 * i) % 2**32) for i, part in enumerate(parts)]
    return grain.MapDataset.mix(orders, weights=[share / sum(shares) for share in shares])
