"""The setting of the step's benchmarks: a small random Qwen3, a batch of full-length rows, and the trainer's own functions."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rcsd_jax.checkpoints import loading
from rcsd_jax.methods import rollout
from rcsd_jax.methods.contract import Completions, LossOptions, Without
from rcsd_jax.methods.networks import BASE, RoleNetwork, Roles
from rcsd_jax.methods.optimizer import make_optimizer
from rcsd_jax.methods.state import TrainState, init_state
from rcsd_jax.methods.step import Recipe, jit_step
from rcsd_jax.models.config import DecoderConfig
from rcsd_jax.models.declarations import init_params
from rcsd_jax.models.decoder import Decoder
from rcsd_jax.sampling import SamplingConfig

LEARNING_RATE = 1e-5


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Lengths in tokens. Every row is full and never ends early, so all peers do the same work."""

    batch: int = 16
    prompt: int = 64
    teacher_prompt: int = 192
    completion: int = 128


def decoder_config() -> DecoderConfig:
    """5.05 M parameters, float32: hidden 256, 4 layers, 8 heads of 32 over 4 key heads, vocabulary 8192, tied."""
    return DecoderConfig(
        family="qwen3",
        vocab_size=8192,
        hidden_size=256,
        intermediate_size=704,
        num_layers=4,
        num_heads=8,
        num_kv_heads=4,
        head_dim=32,
        tie_embeddings=True,
    )


def add_sizes(parser: argparse.ArgumentParser) -> None:
    """Flags for every size."""
    for field in dataclasses.fields(Sizes):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=int, default=field.default, metavar="N")


def sizes_of(args: argparse.Namespace) -> Sizes:
    return Sizes(**{field.name: getattr(args, field.name) for field in dataclasses.fields(Sizes)})


def prompts(sizes: Sizes, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Random prompts of the student [B, P] and of the teacher [B, Q], which begin with the student's; int32.

    The first eight ids are left out: peers' tokenizers keep them for special tokens.
    """
    tokens = np.random.default_rng(0).integers(8, vocab_size, (sizes.batch, sizes.teacher_prompt)).astype(np.int32)
    return tokens[:, : sizes.prompt], tokens


def batch_of(
    student_tokens: np.ndarray, student_mask: np.ndarray, teacher_tokens: np.ndarray, teacher_mask: np.ndarray
) -> rollout.Batch:
    """A batch of prompts [B, P] and [B, Q], left-padded, whose completions are drawn."""
    rows = len(student_tokens)
    return rollout.Batch(
        np.arange(rows, dtype=np.int32),
        student_tokens,
        student_mask,
        teacher_tokens,
        teacher_mask,
        np.zeros((rows, 0), np.int32),
        np.zeros((rows, 0), np.int32),
        np.zeros((rows, 0), bool),
        Without(
            np.zeros((rows, 0, 0), np.int32),
            np.zeros((rows, 0, 0), bool),
            np.zeros((rows, 0), np.float32),
        ),
    )


def start(
    decoder: Decoder, params: Any, new_tokens: int, *, chunk_size: int
) -> tuple[Recipe, TrainState, dict[str, Any]]:
    """The step's static choices, its first state, whose weights are a copy of `params`, and the fixed teacher's weights."""
    roles = Roles(RoleNetwork(decoder, moving="trained"), RoleNetwork(decoder, frozen=BASE))
    options = rollout.RolloutOptions(SamplingConfig(max_new_tokens=new_tokens))
    optimizer, _ = make_optimizer(learning_rate=LEARNING_RATE, steps=1000)
    copy = jax.tree.map(lambda x: jnp.array(x, copy=True), params)  # the step donates its state
    # On its device, as the programs leave it: the first step would otherwise be compiled for itself.
    state = jax.device_put(init_state(copy, optimizer, ema=False), jax.devices()[0])
    return Recipe(roles, options, LossOptions(chunk_size=chunk_size), optimizer), state, {BASE: {"params": params}}


class Step:
    """The trainer's step on its own copy of the weights: `whole()`, `sample()` and `train()` each run and wait."""

    def __init__(self, config: DecoderConfig, params: Any, sizes: Sizes, *, chunk_size: int = 256):
        self.decoder = Decoder(config)
        student, teacher = prompts(sizes, config.vocab_size)
        self.batch = batch_of(student, np.ones(student.shape, bool), teacher, np.ones(teacher.shape, bool))
        recipe, self.state, self.frozen = start(self.decoder, params, sizes.completion, chunk_size=chunk_size)
        self._programs = jit_step(recipe)
        self.completions = self.sample()
        self._train = self._programs.learn.lower(self.state, self.frozen, self.completions).compile()

    def whole(self) -> dict[str, jax.Array]:
        """One update; returns its metrics."""
        self.state, metrics, _ = self._programs.train_step(self.state, self.frozen, self.batch, np.uint32(0))
        return jax.block_until_ready(metrics)

    def sample(self) -> Completions:
        """The completions of one step."""
        return jax.block_until_ready(self._programs.draw(self.state, self.frozen, self.batch, np.uint32(0))[0])

    def train(self) -> dict[str, jax.Array]:
        """One update on `completions` that were sampled before; returns its metrics."""
        self.state, metrics = self._train(self.state, self.frozen, self.completions)
        return jax.block_until_ready(metrics)


def random_step(sizes: Sizes, **options: Any) -> Step:
    """A step on random weights."""
    config = decoder_config()
    return Step(config, jax.jit(functools.partial(init_params, config))(jax.random.key(0)), sizes, **options)


def loaded_step(directory: str, sizes: Sizes, **options: Any) -> Step:
    """A step on the weights of a Hugging Face directory."""
    config, params = loading.load_model(directory, dtype=jnp.float32)
    return Step(config, params, sizes, **options)


def train_flops(config: DecoderConfig, sizes: Sizes) -> float:
    """Model FLOPs of the training part: forward and backward of the student, forward of the teacher.

    Backward counts twice its forward. Optimiser and recomputation count nothing.
    """
    student = forward_flops(config, sizes.prompt + sizes.completion, sizes.completion)
    teacher = forward_flops(config, sizes.teacher_prompt + sizes.completion, sizes.completion)
    return sizes.batch * (3.0 * student + teacher)


def forward_flops(config: DecoderConfig, length: int, scored: int) -> float:
    """Model FLOPs of a forward pass over a row of T tokens of which N are scored.

    2 * T * (kernels' entries) for the layers, 2 * N * D * V for the output matrix and 2 * 2 * (T * (T + 1) / 2) * H * Hd a
    layer for causal attention (q k^T and probs v over the lower triangle). Norms, softmax, divergence and embedding count
    nothing.
    """
    c = config
    attention = c.hidden_size * c.head_dim * 2 * (c.num_heads + c.num_kv_heads)
    kernels = c.num_layers * (attention + 3 * c.hidden_size * c.intermediate_size)
    scores = 2 * length * (length + 1) * c.num_heads * c.head_dim * c.num_layers
    return 2.0 * length * kernels + scores + 2 * scored * c.hidden_size * c.vocab_size


def clock() -> np.ndarray:
    """Seconds of the wall clock, and those that this process has spent on all cores."""
    return np.array([time.perf_counter(), time.process_time()])


def seconds(function, *args) -> np.ndarray:
    """Wall and CPU seconds of one call that waits for its result."""
    start = clock()
    function(*args)
    return clock() - start


def summary(times: list[np.ndarray]) -> str:
    """Medians and smallest wall time; CPU time tells more where other jobs share the cores."""
    wall, cpu = np.array(times).T
    return f"{np.median(wall):7.3f} s (smallest {wall.min():.3f}), CPU {np.median(cpu):7.3f} s"
