"""FLOPs that the mathematics needs, whatever the program does: the basis of MFU."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

from rcsd_jax.models.config import DecoderConfig
from rcsd_jax.models.declarations import declarations, layer_matrices
from rcsd_jax.models.parameters import Parameter
from rcsd_jax.plan import windows


def layer_parameters(config: DecoderConfig) -> int:
    """Elements of the layers' matrices that a token meets: each costs a multiplication and an addition. Of a mixture's experts, those
    of the few that are chosen, and the router's."""
    routers = config.num_layers * config.num_experts * config.hidden_size
    return routers + sum(math.prod(_met(config, p)) for p in layer_matrices(config).values())


def _met(config: DecoderConfig, parameter: Parameter) -> tuple[int, ...]:
    """The shape of the part of a stacked matrix that a token meets."""
    if "experts" not in parameter.axes:
        return parameter.shape
    layers, _, rows, columns = parameter.shape
    return layers, config.experts_per_token, rows, columns


def parameters(config: DecoderConfig) -> int:
    """Elements of all parameters."""
    return sum(math.prod(p.shape) for p in declarations(config).values())


def scoring(config: DecoderConfig, rows: float, length: int) -> float:
    """Hidden states of `rows` sequences: 2 FLOPs a parameter and token, and attention to the tokens that each sees."""
    return rows * (2.0 * layer_parameters(config) * length + _attention(config, length))


def student(
    config: DecoderConfig,
    rows: float,
    prompt: int,
    completion: int,
    *,
    lora_rank: int,
    targets: Sequence[str] = (),
    teacher: DecoderConfig | None = None,
) -> float:
    """Forward and backward of the student, and the loss of both roles' logits at the completion.

    Backward, attention takes twice its forward pass. The matrices take once theirs for the activations' gradient, and once
    more for their own where they are trained (full fine-tuning); under LoRA the adapters are added, thrice their forward
    pass. Nothing is counted for what is computed anew. `teacher`: its shape, if it is another model.
    """
    length = prompt + completion
    matrices = 2.0 * layer_parameters(config) * length
    head = 2.0 * config.hidden_size * config.vocab_size * completion
    total = 3 * _attention(config, length) + matrices * (2 if lora_rank else 3)
    total += head * (2 if lora_rank else 3)  # the student's logits, the hidden state's gradient, the matrix's
    total += head * (teacher or config).hidden_size / config.hidden_size  # the teacher's logits
    if lora_rank:
        met = [_met(config, p) for target, p in layer_matrices(config).items() if target in targets]
        sides = sum(math.prod(stacked) * (rows + columns) for *stacked, rows, columns in met)
        total += 3 * 2.0 * lora_rank * sides * length
    return rows * total


def _attention(config: DecoderConfig, length: int) -> float:
    pairs = config.num_layers * windows.mean(windows.windows_of(config), functools.partial(_seen, length))
    return 2 * 2.0 * pairs * config.num_heads * config.head_dim


def _seen(length: int, window: int | None) -> float:
    """Pairs of a query and a key that it sees: half of all in causal attention, where a token counts half of itself."""
    window = min(window or length, length)
    return window * (length - window / 2)
