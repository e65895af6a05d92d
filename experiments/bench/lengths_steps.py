"""The steps that `lengths.py` compares, as named values: how each is made, and which tokens it computes."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench import torch_step
from experiments.bench.setting import batch_of, start
from experiments.bench.workload import Rows, Tokens, Workload, padded_to_limit, padded_to_longest
from rcsd_jax.checkpoints import loading
from rcsd_jax.host.padding import pad_left
from rcsd_jax.methods import rollout
from rcsd_jax.methods.step import learn
from rcsd_jax.models.decoder import Decoder
from rcsd_jax.plan.lengths import Drawn
from rcsd_jax.sampling.slots import generate_queue


class Ran(NamedTuple):
    """What a whole step gives: its loss, and the completions that it learnt from."""

    loss: float
    completions: np.ndarray  # [B, N], of any N that holds the longest


class Runner(Protocol):
    """A step that is ready to run. Both functions run and wait."""

    def sample(self, rows: Rows) -> Any:
        """Draws completions of the given lengths."""

    def whole(self, rows: Rows) -> Ran:
        """Draws and learns: one update."""


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
      grows: whether its growth with real tokens is measured.
    """

    make: Callable[[Setup, int], Runner]
    tokens: Callable[[Workload, Drawn], Tokens]
    slots: Callable[[int], int]
    grows: bool = True


class PaddedStep:
    """The trainer's step in one program: sampling, and learning on rows padded to the longest completion there may be.

    Completions end at given lengths by the `limits` of the queue. With as many slots as rows, which are prefilled together,
    the queue is a static batch: it decodes until the longest row ends.
    """

    def __init__(self, setup: Setup, rows: int, slots: int):
        config, params = loading.load_model(setup.directory, dtype=jnp.float32)
        chunk_size = max(256 // rows, 1)  # 256 positions of all rows together, the best size for this model
        recipe, self.state, self.frozen = start(Decoder(config), params, setup.workload.limit, chunk_size=chunk_size)
        self.workload = setup.workload
        refill = rows if slots == rows else None

        def draw(state, frozen, batch, limits):
            student = recipe.roles.at(state, frozen).student
            keys = rollout.row_keys(batch, jax.random.fold_in(jax.random.key(0), state.step))
            samples, _ = generate_queue(
                student.decoder,
                student.variables,
                batch.student_tokens,
                batch.student_mask,
                keys,
                recipe.rollout.sampling,
                slots=slots,
                refill=refill,
                limits=limits,
            )
            return rollout.assemble(batch, samples, None, recipe.rollout)

        def whole(state, frozen, batch, limits):
            completions = draw(state, frozen, batch, limits)
            state, metrics = learn(recipe, state, frozen, completions)
            return state, metrics["loss"], completions.samples.tokens

        self._draw, self._whole = jax.jit(draw), jax.jit(whole, donate_argnums=0)

    def sample(self, rows: Rows) -> Any:
        return jax.block_until_ready(self._draw(self.state, self.frozen, *self._inputs(rows)))

    def whole(self, rows: Rows) -> Ran:
        self.state, loss, tokens = self._whole(self.state, self.frozen, *self._inputs(rows))
        return Ran(float(loss), np.asarray(tokens))

    def _inputs(self, rows: Rows) -> tuple[rollout.Batch, np.ndarray]:
        student, teacher = self.workload.padded_prompts(rows.lengths)
        batch = batch_of(*pad_left(rows.student, student, 0), *pad_left(rows.teacher, teacher, 0))
        return batch, rows.lengths.completion.astype(np.int32)


class TorchStep:
    """The step by hand in PyTorch."""

    def __init__(self, setup: Setup):
        self.hand = torch_step.PaddedHandStep(setup.directory)

    def sample(self, rows: Rows) -> Any:
        return self.hand.sample(rows)

    def whole(self, rows: Rows) -> Ran:
        completions = self.hand.sample(rows)
        return Ran(self.hand.train(rows, completions), completions.numpy())


def _all(rows: int) -> int:
    """As many slots as rows: a static batch."""
    return rows


def _quarter(rows: int) -> int:
    return max(rows // 4, 1)


STEPS = {
    "padded": Step(lambda setup, rows: PaddedStep(setup, rows, _all(rows)), padded_to_limit, _all),
    "padded, slots": Step(lambda setup, rows: PaddedStep(setup, rows, _quarter(rows)), padded_to_limit, _quarter),
    "by hand in PyTorch": Step(lambda setup, _: TorchStep(setup), padded_to_longest, _all, grows=False),
}
"""Name -> step. A step that computes other tokens, or is made in another way, is one more line."""

OURS, BEFORE, TORCH = "padded", "padded", "by hand in PyTorch"
"""The trainer's step as it is, the step before it, and the peer. As long as the first two are one, their ratio is 1."""
