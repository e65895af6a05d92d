"""Makes a step's batch from the host's prompts: rows padded to one of few lengths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from rcsd_jax.data.examples import Example
from rcsd_jax.host.padding import pad_left, pad_right
from rcsd_jax.methods.contract import Without
from rcsd_jax.methods.rollout import Batch
from rcsd_jax.models import sharding
from rcsd_jax.roles.encode import Encoded
from rcsd_jax.roles.own_teacher import teacher_of
from rcsd_jax.settings.stage import Settings


def make_batch(
    rows: list[int], data: Encoded, config: Settings, pad_id: int, mesh: jax.sharding.Mesh | None = None
) -> Batch:
    """A global batch of `rows`, padded to one of few lengths; with a mesh, this process's share of it."""
    own = np.arange(len(rows)) if mesh is None else sharding.own_rows(len(rows), mesh)
    references = config.sampling.max_new_tokens if config.sampling.source == "reference" else 0

    # A teacher that only scores packed rows reads real tokens, so one length for all batches saves compilations.
    writes = not config.train.row_lengths or config.teacher.reason_tokens or config.sampling.source == "teacher"

    def padded(
        prompts: Sequence[np.ndarray], longest: int, limit: int, *, whole: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        lengths = [len(prompts[i]) for i in rows]  # of all rows: the padded length is the same in every process
        lengths += [longest] if whole else []
        length = padded_length(lengths, longest, config.data.pad_to, limit)
        return pad_left([prompts[rows[i]] for i in own], length, pad_id)

    arrays: tuple[Any, ...] = (  # NumPy arrays, until they are on the mesh
        own.astype(np.int32),
        *padded(data.student, data.longest.student, config.data.max_student_prompt),
        *padded(data.teacher, data.longest.teacher, config.data.max_teacher_prompt, whole=not writes),
        np.tile(data.transition, (len(own), 1)),
        *pad_right([data.references[rows[i]] for i in own], references, pad_id),
        _without(rows, own, data, config, pad_id),
        _teachers([data.examples[rows[i]] for i in own], config),
    )
    return Batch(*arrays)


def _teachers(examples: Sequence[Example], config: Settings) -> Any:
    """[n] int32, which of several teachers each row has; None if there is one."""
    if len(config.teacher.own) < 2:
        return None
    numbers = {name: number for number, name in enumerate(config.teacher.own)}
    return np.asarray([numbers[teacher_of(example, config.teacher)] for example in examples], np.int32)


def _without(rows: list[int], own: np.ndarray, data: Encoded, config: Settings, pad_id: int) -> Without:
    """The teacher's further prompts of the `own` among `rows`, for all as many as the row with most has."""
    # At least one, with weight 0: without any, the target would be that of guidance by the whole context. One that comes during
    # training takes this place.
    count = max(1, data.longest.further) if config.encoding.further else 0
    tokens: Any  # NumPy arrays, until they are on the mesh
    mask: Any
    if not count:
        tokens, mask = np.zeros((len(own), 0, 0), np.int32), np.zeros((len(own), 0, 0), bool)
        return Without(tokens, mask, np.zeros((len(own), 0), np.float32))  # type: ignore[arg-type]
    if max(len(data.without[i].weights) for i in rows) > count:
        count = config.rubric.max_criteria  # as with prompts: one more shape, for a row that is beyond the usual
    longest, limit = data.longest.teacher, config.data.max_teacher_prompt
    length = padded_length([longest, *(len(data.teacher[i]) for i in rows)], longest, config.data.pad_to, limit)
    weights: Any = np.zeros((len(own), count), np.float32)
    prompts = []
    for at, i in zip(weights, (rows[i] for i in own), strict=True):
        at[: len(data.without[i].weights)] = data.without[i].weights
        # A row with fewer has its own prompt in the remaining places, with weight 0.
        prompts += (data.without[i].prompts + [data.teacher[i]] * count)[:count]
    tokens, mask = (x.reshape(len(own), count, length) for x in pad_left(prompts, length, pad_id))
    return Without(tokens, mask, weights)


def padded_length(lengths: Sequence[int], longest: int, pad_to: int, limit: int) -> int:
    """The length to which a batch's prompts are padded: `pad_to` times a power of two, or the longest prompt's need.

    So a run whose longest prompt takes n times `pad_to` compiles for at most log2(n) + 1 lengths of each role. A prompt that
    is longer than those seen at the start (`longest`) may take up to the limit of its role.

    Examples:
      >>> [padded_length([length], 650, 128, 2048) for length in (100, 200, 600, 650, 800, 1200, 2000)]
      [128, 256, 768, 768, 1024, 2048, 2048]
    """
    limit = max(longest, limit) if max(lengths) > longest else longest
    length = pad_to
    while length < max(lengths):
        length *= 2
    return min(length, -(-limit // pad_to) * pad_to)
