"""The steps that `lengths.py` compares, as named values: how each is made, and which tokens it computes."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench import torch_step
from experiments.bench.setting import batch_of, start
from experiments.bench.workload import Rows, Tokens, Workload, padded_to_limit, padded_to_longest, real
from rcsd_jax.checkpoints import loading
from rcsd_jax.host.padding import pad_left
from rcsd_jax.methods import rollout
from rcsd_jax.methods.step import learn
from rcsd_jax.models.decoder import Decoder
from rcsd_jax.plan.lengths import Drawn
from rcsd_jax.plan.work import Learning, packed_step
from rcsd_jax.sampling.slots import generate_queue


class Ran(NamedTuple):
    """What a whole step gives: its loss, and the completions that it learnt from."""

    loss: float
    completions: np.ndarray  # [B, N], of any N that holds the longest


class Runner(Protocol):
    """A step that is ready to run on batches. Both functions run and wait."""

    def sample(self, batches: Sequence[Rows]) -> Any:
        """Draws completions of the given lengths."""

    def whole(self, batches: Sequence[Rows]) -> list[Ran]:
        """Draws and learns: an update for each batch."""

    def learning_bytes(self, batches: Sequence[Rows]) -> int | None:
        """The temporary memory of learning from a batch, by XLA's analysis; None if the step is not a program of XLA."""


class Setup(NamedTuple):
    """What a step is made from."""

    directory: pathlib.Path  # the model's
    workload: Workload


@dataclasses.dataclass(frozen=True)
class Step:
    """One line of the tables: how the step is made, and the tokens that it computes.

    Attributes:
      make: from the setup and the number of rows in a batch.
      tokens: those of a batch, with padding.
      slots: how many rows are decoded together, from the rows of a batch.
      batches: that one rollout samples.
      grows: whether its growth with real tokens is measured.
    """

    make: Callable[[Setup, int], Runner]
    tokens: Callable[[Workload, Drawn], Tokens]
    slots: Callable[[int], int]
    batches: int = 1
    grows: bool = False


class TrainerStep:
    """The trainer's programs: a rollout of some batches, and an update for each of them.

    Completions end at given lengths by the `limits` of the queue. With as many slots as rows, which are prefilled together,
    the queue is a static batch: it decodes until the longest row ends.
    """

    def __init__(self, setup: Setup, rows: int, slots: int, batches: int = 1, row_lengths: int = 0):
        config, params = loading.load_model(setup.directory, dtype=jnp.float32)
        # Positions of all rows together whose logits are in memory, the best number for this model.
        chunk_size = POSITIONS if row_lengths else max(POSITIONS // rows, 1)
        recipe, self.state, self.frozen = start(Decoder(config), params, setup.workload.limit, chunk_size=chunk_size)
        recipe = dataclasses.replace(recipe, row_lengths=row_lengths)
        self.workload, self.batches = setup.workload, batches
        refill = rows if slots == rows else None

        def draw(state, frozen, batch, limits):
            student = recipe.roles.at(state, frozen).student
            keys = jax.vmap(lambda row: jax.random.fold_in(jax.random.fold_in(jax.random.key(0), state.step), row))
            samples, _ = generate_queue(
                student.decoder,
                student.variables,
                batch.student_tokens,
                batch.student_mask,
                keys(batch.row),
                recipe.rollout.sampling,
                slots=slots,
                refill=refill,
                limits=limits,
            )
            return rollout.assemble(batch, samples, None, recipe.rollout)

        def learn_one(state, frozen, completions, i):
            one = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, i * rows, rows), completions)
            state, metrics = learn(recipe, state, frozen, one)
            return state, metrics["loss"]

        self._draw, self._learn = jax.jit(draw), jax.jit(learn_one, donate_argnums=0)

    def sample(self, batches: Sequence[Rows]) -> Any:
        for some in self._rollouts(batches):
            jax.block_until_ready(self._draw(self.state, self.frozen, *self._inputs(some)))

    def whole(self, batches: Sequence[Rows]) -> list[Ran]:
        ran: list[Ran] = []
        for some in self._rollouts(batches):
            completions = self._draw(self.state, self.frozen, *self._inputs(some))
            tokens = np.split(np.asarray(completions.samples.tokens), len(some))
            for i in range(len(some)):
                self.state, loss = self._learn(self.state, self.frozen, completions, i)
                ran.append(Ran(float(loss), tokens[i]))
        return ran

    def learning_bytes(self, batches: Sequence[Rows]) -> int | None:
        some = self._rollouts(batches)[0]
        completions = jax.eval_shape(self._draw, self.state, self.frozen, *self._inputs(some))
        program = self._learn.lower(self.state, self.frozen, completions, 0).compile()
        return program.memory_analysis().temp_size_in_bytes

    def _rollouts(self, batches: Sequence[Rows]) -> list[Sequence[Rows]]:
        return [batches[i : i + self.batches] for i in range(0, len(batches), self.batches)]

    def _inputs(self, batches: Sequence[Rows]) -> tuple[rollout.Batch, np.ndarray]:
        lengths = Drawn(*(np.concatenate(x) for x in zip(*(rows.lengths for rows in batches), strict=True)))
        student, teacher = self.workload.padded_prompts(lengths)
        prompts = ([row for rows in batches for row in getattr(rows, role)] for role in ("student", "teacher"))
        padded = (pad_left(x, n, 0) for x, n in zip(prompts, (student, teacher), strict=True))
        return batch_of(*(x for pair in padded for x in pair)), lengths.completion.astype(np.int32)


class TorchStep:
    """The step by hand in PyTorch."""

    def __init__(self, setup: Setup):
        self.hand = torch_step.PaddedHandStep(setup.directory)

    def sample(self, batches: Sequence[Rows]) -> Any:
        for rows in batches:
            self.hand.sample(rows)

    def whole(self, batches: Sequence[Rows]) -> list[Ran]:
        return [self._whole(rows) for rows in batches]

    def learning_bytes(self, batches: Sequence[Rows]) -> int | None:
        return None

    def _whole(self, rows: Rows) -> Ran:
        completions = self.hand.sample(rows)
        return Ran(self.hand.train(rows, completions), completions.numpy())


POSITIONS = 256
ROLLOUT = 4
"""Batches of a turn, which one rollout of the packed step samples."""
ROW_LENGTHS = 2


def packed_tokens(workload: Workload, lengths: Drawn) -> Tokens:
    """The tokens of learning on packed rows, by the planner's count; prompts are not padded."""
    longest = workload.padded_prompts(Drawn(*(x.max(keepdims=True) for x in (*workload.rows(), lengths.completion))))
    prompts = workload.padded_prompts(lengths)[0], longest[1]
    work = packed_step(lengths, prompts, Learning(workload.limit, 1, row_lengths=ROW_LENGTHS))
    return real(lengths)._replace(learning=int(work.padded))


def _all(rows: int) -> int:
    """As many slots as rows: a static batch."""
    return rows


def _quarter(rows: int) -> int:
    return max(rows // 4, 1)


STEPS = {
    "packed": Step(
        lambda setup, rows: TrainerStep(setup, rows, _quarter(rows), ROLLOUT, ROW_LENGTHS),
        packed_tokens,
        _quarter,
        batches=ROLLOUT,
        grows=True,
    ),
    "padded": Step(lambda setup, rows: TrainerStep(setup, rows, _all(rows)), padded_to_limit, _all),
    "padded, slots": Step(lambda setup, rows: TrainerStep(setup, rows, _quarter(rows)), padded_to_limit, _quarter),
    "by hand in PyTorch": Step(lambda setup, _: TorchStep(setup), padded_to_longest, _all),
}
"""Name -> step. A step that computes other tokens, or is made in another way, is one more line."""

OURS, BEFORE, TORCH = "packed", "padded", "by hand in PyTorch"
"""The trainer's step as it is, the step before it, which is `train.row_lengths=0` without slots, and the peer."""
