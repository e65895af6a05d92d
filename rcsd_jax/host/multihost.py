"""Functions that the processes of a job call together: to agree on a value, to share work, and to know which one writes reports.

Every process must call these functions in the same order: they are collectives. With one process they cost nothing.
"""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from rcsd_jax.host.errors import Preempted, UserError

T = TypeVar("T")


def is_main() -> bool:
    """Whether this is process 0, the only one that writes reports, exports and console lines."""
    return jax.process_index() == 0


def count() -> int:
    """The number of processes of the job."""
    return jax.process_count()


def from_main(make: Callable[[], Any]) -> Any:
    """The result of `make()`, called only in process 0 and returned in every process. The value must pickle."""
    if jax.process_count() == 1:
        return make()
    packed = np.frombuffer(pickle.dumps(make()), np.uint8) if is_main() else np.zeros(0, np.uint8)
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(packed))))
    buffer = np.zeros(length, np.uint8)
    buffer[: len(packed)] = packed
    return pickle.loads(np.asarray(multihost_utils.broadcast_one_to_all(buffer)).astype(np.uint8).tobytes())


def gather(value: Any) -> list[Any]:
    """The `value` of every process, in the order of their indexes, returned in every process. Values must pickle."""
    if jax.process_count() == 1:
        return [value]
    packed = np.frombuffer(pickle.dumps(value), np.uint8)
    lengths = multihost_utils.process_allgather(np.int32(len(packed)))
    padded = np.zeros(max(lengths), np.uint8)
    padded[: len(packed)] = packed
    rows = multihost_utils.process_allgather(padded)
    return [pickle.loads(row[:length].tobytes()) for row, length in zip(rows, lengths, strict=True)]


def largest(number: int) -> int:
    """The largest of the processes' numbers (int32)."""
    return number if jax.process_count() == 1 else int(np.max(multihost_utils.process_allgather(np.int32(number))))


def agreed(make: Callable[[], T], *, everywhere: bool = False) -> T:
    """The result of `make()`, called only in process 0 and returned in every process. `everywhere`: each calls its own.

    A `UserError` or another error that ends a run with one line is raised in every process, so that none waits for another.
    """

    def attempt() -> tuple[Any, Any]:
        try:
            return make(), None
        except UserError as error:
            known = ("problem", "remedy", "file", "row", "field", "value")
            return None, (type(error), {name: getattr(error, name) for name in known})
        except Preempted as stopped:
            return None, (Preempted, {"state": str(stopped), "signal": stopped.signal})

    if everywhere:
        value, problem = attempt()
        problem = next((one for one in gather(problem) if one), None)
    else:
        value, problem = from_main(attempt)
    if problem is None:
        return value
    kind, fields = problem
    first = next(iter(fields))
    raise kind(fields.pop(first), **fields)


def shared(function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    """`[function(item) for item in items]`, where each process does its share; every process gets the whole list."""
    return shared_list(lambda mine: [function(item) for item in mine], items)


def shared_list(function: Callable[[Sequence[Any]], list[Any]], items: Sequence[Any]) -> list[Any]:
    """`function(items)`, which maps a list to a list item by item, where each process does its share; every process gets all."""
    dealt = itertools.chain.from_iterable(
        itertools.zip_longest(*gather(function(items[jax.process_index() :: count()])))
    )
    return list(itertools.islice(dealt, len(items)))
