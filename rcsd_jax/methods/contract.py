"""What a method is given and what helps it: completions, both roles' scores of them, and how much each token counts."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rcsd_jax import losses
from rcsd_jax.sampling import Samples


class Without(NamedTuple):
    """The teacher's prompts with one criterion left out each; K = 0 unless guidance is by criteria."""

    tokens: jax.Array  # [B, K, Q] int32
    mask: jax.Array  # [B, K, Q] bool
    weights: jax.Array  # [B, K] float32, of the criterion that is missing: 1 on average; 0 where a rubric has fewer


class Completions(NamedTuple):
    """A batch with what was written: prompts of both roles and the one completion that both score.

    Two masks say two things about a completion's tokens. `samples.mask` says which places hold tokens; attention reads it.
    `completion_mask` says which of these the method learns from: not the first `skip_first`, and none of a cut completion if
    `mask_cut` is set. `rollout.assemble` makes it once. The weights of the loss and of every logged mean follow from it.
    """

    student_tokens: jax.Array  # [B, P]
    student_mask: jax.Array  # [B, P]
    teacher_tokens: jax.Array  # [B, Q']; with reason-first the analysis and the transition are part of it
    teacher_mask: jax.Array  # [B, Q']
    samples: Samples
    completion_mask: jax.Array  # [B, N] bool
    advantages: jax.Array  # [B] float32, of graded completions among their group; else 0
    without: Without
    taught: jax.Array  # [B] bool, where the teacher's context is whole: not where it lacks an attempt to be shown


class Weights(NamedTuple):
    """The completion mask as weights of a mean, [B, N] float32: 0 outside the mask, normalised over the whole batch.

    They are made before the batch is split, so the losses of its parts add up, however tokens are split or packed. A method's
    loss and the means that it logs use the same one of the two.
    """

    all_rows: jax.Array  # of every completion: for rewards, and for references
    taught_rows: jax.Array  # of those whose teacher has its context, as if the batch had no others: for divergences


class Scored(NamedTuple):
    """What a method's loss is made of. Gradient flows to the student's alone."""

    student_hidden: jax.Array  # [B, N, D], the t-th predicts completion token t
    student_head: jax.Array  # [D, V]
    teacher_hidden: jax.Array | None  # [B, N, D]; None for a method without a teacher
    teacher_head: jax.Array | None  # [D, V]


@dataclasses.dataclass(frozen=True)
class PolicyOptions:
    """Static choices of rewarded losses, see `losses.policy_gradient`."""

    clip_low: float = 0.2  # how far a token's ratio to the sampler may fall below 1 and count
    clip_high: float = 0.2  # and rise above it
    kl: float = 0.0  # weight of the KL from the reference model
    scale_advantages: bool = True  # by the deviation of rewards in a group; False: Dr. GRPO
    weight: float = 1.0  # of the rewarded loss beside self-distillation


@dataclasses.dataclass(frozen=True)
class LossOptions:
    """Static choices of a method's loss."""

    divergence: losses.DivergenceOptions = losses.DivergenceOptions()
    policy: PolicyOptions = PolicyOptions()
    temperature: float = 1.0  # divides both roles' logits
    chunk_size: int = 512  # positions whose logits are in memory at a time
    reduction: str = "tokens"  # how tokens weigh: `losses.token_weights`
    importance_clip: float | None = None  # truncated importance weight of trainer against sampler
    guidance: float = 0.0  # how far the teacher is pushed along what its privileged context changes


def weigh(completions: Completions, reduction: str) -> Weights:
    """The weights of a whole batch; `reduction` as in `losses.token_weights`."""
    mask = completions.completion_mask
    all_rows = losses.token_weights(mask, reduction)
    return Weights(all_rows, losses.token_weights(mask, reduction, counted=completions.taught))


def total(weights: jax.Array, values: jax.Array) -> jax.Array:
    """The sum of values [B, N] over the tokens that weigh something, and their number, [2] float32: a mean to be logged."""
    there = weights > 0
    return jnp.stack([jnp.where(there, values, 0.0).sum(), there.sum().astype(jnp.float32)])


def row_loss(weights: jax.Array, token_loss: jax.Array) -> jax.Array:
    """Each row's summed loss [B], of token losses [B, N], where they weigh something: it tells whose loss is not finite."""
    return jnp.where(weights > 0, token_loss, 0.0).sum(axis=1)
