"""The inputs of a method and helpers for it: completions, both roles' scores of their tokens, and the tokens' weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rcsd_jax import losses
from rcsd_jax.losses import emphasis
from rcsd_jax.sampling import Samples


class Without(NamedTuple):
    """Further prompts of the teacher with which its own is contrasted: each without one criterion, or one of another kind of
    `teacher.guidance_by`. K = 0 if there are none.
    """

    tokens: jax.Array  # [B, K, Q] int32
    mask: jax.Array  # [B, K, Q] bool
    weights: (
        jax.Array
    )  # [B, K] float32: a criterion's weight, 1 on average, else 1; 0 if a completion has fewer prompts


class Thoughts(NamedTuple):
    """Which tokens of B completions stand in their thinking block; see `thoughts`."""

    mask: jax.Array  # [B, N] bool, tokens up to and including the block's end; all tokens if it does not end
    ended: jax.Array  # [B] bool, whether the block ends


class Completions(NamedTuple):
    """A batch with its completions: prompts of both roles and the one completion that both score.

    A completion has two masks. `samples.mask` says which places hold tokens; attention reads it. `completion_mask` says
    which of these tokens the method learns from: not the first `skip_first`, none of a cut completion if `mask_cut` is set,
    and only the thought or the answer if `thinking` names one. `rollout.assemble` makes it once. The weights of the loss and of every logged mean follow from it.
    """

    student_tokens: jax.Array  # [B, P]
    student_mask: jax.Array  # [B, P]
    teacher_tokens: jax.Array  # [B, Q']; with reason-first it includes the analysis and the transition
    teacher_mask: jax.Array  # [B, Q']
    samples: Samples
    completion_mask: jax.Array  # [B, N] bool
    advantages: jax.Array  # [B] float32, for graded completions within their group; else 0
    without: Without
    taught: jax.Array  # [B] bool, whether the teacher's context is complete: False if there is no attempt to show
    thoughts: Thoughts | None = None  # None if completions have no thinking block that a token ends
    teacher: jax.Array | None = None  # [B] int32, which of several teachers scores it; None: there is one
    known: losses.KnownLogProbs | None = None  # [B, N, K], of a teacher at an endpoint; None: the teacher is a network
    # [B, K] float32, how much each criterion weighs that the completion fails, 0 for those that it meets; None: not graded so
    failed: jax.Array | None = None
    contrast: jax.Array | None = None  # [B, N] float32, see `teacher_scores.after_teacher`; None: not needed


class CompletionTokens(NamedTuple):
    """Completions' tokens in rows [R, T], as a method sees them. A row holds one completion, or several: see `packed_learning`."""

    tokens: jax.Array  # [R, T] int32
    sampler_log_probs: jax.Array  # [R, T] float32, under the policy that sampled them
    advantages: jax.Array  # [R, T] float32, each token has its completion's
    thought: jax.Array | None = None  # [R, T] bool, of the thinking block; None if completions have none
    known: losses.KnownLogProbs | None = None  # [R, T, K], of a teacher at an endpoint; None: the teacher is a network
    contrast: jax.Array | None = None  # [R, T] float32, see `teacher_scores.after_teacher`; None: not needed


class Weights(NamedTuple):
    """The completion mask as weights of a mean, [R, T] float32: 0 outside the mask, normalised over the whole batch, times emphases.

    They are made before the batch is split, so the losses of its parts add up, however tokens are split or packed. A method
    uses the same one of the two for its loss and for the means that it logs.
    """

    all_rows: jax.Array  # for every completion; rewards and references use it
    # Only for completions whose teacher has its context, as if the batch had no others; divergences use it.
    taught_rows: jax.Array


class Scored(NamedTuple):
    """The roles' hidden states that predict completion tokens [R, T], and their heads. Only the student's get gradient."""

    student_hidden: jax.Array  # [R, T, D]
    student_head: jax.Array  # [D, V]
    # [R, T, D], and [D, V]; None for a method without a teacher. Of several teachers, one of each: 0 where it is not the teacher.
    teacher_hidden: jax.Array | tuple[jax.Array, ...] | None
    teacher_head: jax.Array | tuple[jax.Array, ...] | None


@dataclasses.dataclass(frozen=True)
class PolicyOptions:
    """Static choices of rewarded losses, see `losses.policy_gradient`."""

    clip_low: float = 0.2  # how far a token's ratio to the sampler may fall below 1 and still count
    clip_high: float = 0.2  # and rise above it
    kl: float = 0.0  # weight of the KL from the reference model
    scale_advantages: bool = True  # by the deviation of rewards in a group; False: Dr. GRPO
    weight: float = 1.0  # of the rewarded loss next to self-distillation


@dataclasses.dataclass(frozen=True)
class Emphasis:
    """Static choices of how tokens are emphasised, see `losses.emphasis`."""

    kind: str = "alike"  # of `emphasis.KINDS`
    strength: float = 1.0  # 0: as if all were alike
    share: float = 0.2  # of tokens, for "low_probability"

    @property
    def in_pass(self) -> str | None:
        """A kind that follows from both roles' scores; None for any other."""
        return self.kind if self.kind in emphasis.IN_PASS else None


@dataclasses.dataclass(frozen=True)
class LossOptions:
    """Static choices of a method's loss."""

    divergence: losses.DivergenceOptions = losses.DivergenceOptions()
    policy: PolicyOptions = PolicyOptions()
    temperature: float = 1.0  # divides both roles' logits
    chunk_size: int = 512  # positions whose logits are in memory at a time
    reduction: str = "tokens"  # see `losses.token_weights`
    emphasis: Emphasis = Emphasis()
    importance_clip: float | None = None  # truncated importance weight of trainer against sampler
    guidance: float = 0.0  # how far the teacher is pushed in the direction in which its privileged context changes it
    target: str = "contrast"  # of `targets.TARGETS`, what the teacher's contexts become with guidance
    contrasts: bool = False  # whether the method needs `CompletionTokens.contrast`
    by_part: bool = True  # also log means over thoughts and over answers
    # The number of first tokens that both roles have, if the teacher is another model with more or fewer; None: all.
    shared_tokens: int | None = None

    @property
    def by_context(self) -> bool:
        """Whether the teacher's log-probability of each token is needed after each of its contexts."""
        return self.contrasts or self.emphasis.kind in emphasis.OF_CONTEXTS


def weigh(completions: Completions, reduction: str, choice: Emphasis = Emphasis()) -> Weights:
    """The weights of a whole batch, with the emphases that follow from the completions; `reduction` as in `losses.token_weights`."""
    mask = completions.completion_mask
    all_rows = losses.token_weights(mask, reduction)
    weights = Weights(all_rows, losses.token_weights(mask, reduction, counted=completions.taught))
    return emphasised(weights, completions, choice)


def emphasised(weights: Weights, completions: Completions, choice: Emphasis) -> Weights:
    """The weights [B, N] times the emphases of a kind that follows from the completions; unchanged for any other."""
    mask = completions.completion_mask
    if choice.kind == "position":
        factor = emphasis.by_position(mask)
    elif choice.kind == "low_probability":
        factor = emphasis.low_probability(completions.samples.log_probs, mask, share=choice.share)
    else:
        return weights
    return Weights(*(x * emphasis.softened(factor, choice.strength) for x in weights))


def tokens_of(completions: Completions) -> CompletionTokens:
    """A row for each completion, [B, N]."""
    samples = completions.samples
    advantages = jnp.broadcast_to(completions.advantages[:, None], samples.tokens.shape)
    thought = None if completions.thoughts is None else completions.thoughts.mask
    return CompletionTokens(
        samples.tokens, samples.log_probs, advantages, thought, completions.known, completions.contrast
    )


def total(weights: jax.Array, values: jax.Array) -> jax.Array:
    """The sum of values [R, T] over tokens with a weight, and the number of these tokens, [2] float32: a mean to be logged."""
    there = weights > 0
    return jnp.stack([jnp.where(there, values, 0.0).sum(), there.sum().astype(jnp.float32)])


def totals(
    weights: jax.Array, values: Mapping[str, jax.Array], completions: CompletionTokens, options: LossOptions
) -> dict[str, jax.Array]:
    """`total` of values by name; `<name>_thought` and `<name>_answer` have those of the two parts of completions, if they have two.

    Args:
      weights: [R, T].
      values: name -> [R, T].
      completions: the tokens.
      options: `by_part` decides whether the parts are logged.
    """
    sums = {name: total(weights, value) for name, value in values.items()}
    if completions.thought is not None and options.by_part:
        for part, there in (("thought", completions.thought), ("answer", ~completions.thought)):
            sums |= {f"{name}_{part}": total(jnp.where(there, weights, 0.0), value) for name, value in values.items()}
    return sums


def counted(weights: jax.Array, token_loss: jax.Array) -> jax.Array:
    """Token losses [R, T], 0 at tokens without a weight. Added up by completion they show whose loss is not finite."""
    return jnp.where(weights > 0, jax.lax.stop_gradient(token_loss), 0.0)
