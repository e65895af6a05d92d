"""Makes completions: draws them for a batch's prompts and assembles what both roles score. No gradient flows.

ŷ ~ p(. | x)          drawn by the student (or by the teacher, or taken from the data)
a ~ p_T(. | x, r)     the analysis of a teacher that reasons first
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rcsd_jax.methods.contract import Completions, Without
from rcsd_jax.methods.networks import Network, Networks, Teacher
from rcsd_jax.methods.thoughts import learnt, thoughts_of
from rcsd_jax.sampling import Samples, SamplingConfig, generate
from rcsd_jax.sampling.slots import generate_queue


class Batch(NamedTuple):
    """The prompts of both roles for B examples. Prompts are left-padded; the last token of each is real."""

    row: jax.Array  # [B] int32, the row's place in the global batch: its random key
    student_tokens: jax.Array  # [B, P] int32
    student_mask: jax.Array  # [B, P] bool
    teacher_tokens: jax.Array  # [B, Q] int32
    teacher_mask: jax.Array  # [B, Q] bool
    transition: jax.Array  # [B, U] int32, between the teacher's analysis and the completion; U = 0 without reason-first
    reference_tokens: jax.Array  # [B, N] int32, completions taken from the data; N = 0 if a role writes them
    reference_mask: jax.Array  # [B, N] bool
    without: Without
    teacher: jax.Array | None = None  # [B] int32, which of several teachers scores it; None: there is one


@dataclasses.dataclass(frozen=True)
class RolloutOptions:
    """Static choices for making completions."""

    sampling: SamplingConfig
    source: str = "student"  # who writes the completions: "student", "teacher", or "reference", the data
    group: int = 1  # completions of a prompt: rows of the batch that follow each other
    batches: int = 1  # that are drawn together; their rows lie as `dealing` says
    slots: int = 0  # rows that are sampled at a time; the next prompt takes a finished row's slot; 0: all at once
    draft_tokens: int = 0  # that a step guesses in every slot and checks; only with slots
    reason_tokens: int = 0  # longest analysis that the teacher writes first; 0: none
    reason_by: str = "teacher"  # the role whose network writes it, on the teacher's prompt
    thinking: str = "all"  # learn only from this part of a completion, of `thoughts.PARTS`
    thought_end: tuple[int, ...] = ()  # token ids that end a completion's thinking block; empty: it has none
    skip_first: int = 0  # learn nothing from the first n tokens of that part (SDFT)
    mask_cut: bool = False  # learn nothing from completions that hit the length limit
    pad_id: int = 0


def row_keys(batch: Batch, key: jax.Array) -> jax.Array:
    """Each row's random key, [B]; it depends only on the row's place in the global batch."""
    return jax.vmap(lambda row: jax.random.fold_in(key, row))(batch.row)


def draw(networks: Networks, batch: Batch, keys: jax.Array, options: RolloutOptions) -> Samples:
    """The completions [B, N] of a batch, written by `options.source`; `keys` [B] come from `row_keys`."""
    return draw_and_metrics(networks, batch, keys, options)[0]


def draw_and_metrics(
    networks: Networks, batch: Batch, keys: jax.Array, options: RolloutOptions
) -> tuple[Samples, dict[str, jax.Array]]:
    """As `draw`, and float32 scalars about the sampler: see `_write`. There are none if no role writes the completions."""
    if options.source == "reference":
        tokens, mask = batch.reference_tokens, batch.reference_mask
        return Samples(tokens, mask, jnp.zeros(tokens.shape, jnp.float32), jnp.zeros(tokens.shape[:1], bool)), {}
    if options.source == "teacher":
        assert isinstance(networks.teacher, Network), "this method has a teacher, and one that writes"
        prompts = networks.teacher, batch.teacher_tokens, batch.teacher_mask
    else:
        prompts = networks.student, batch.student_tokens, batch.student_mask
    return _write(*prompts, keys, options, options.sampling, group=options.group)


def analyst(networks: Networks, options: RolloutOptions) -> Teacher | None:
    """The network that writes the teacher's analysis."""
    return networks.student if options.reason_by == "student" else networks.teacher


def draw_analysis(analyst: Teacher | None, batch: Batch, keys: jax.Array, options: RolloutOptions) -> Samples | None:
    """The analysis [B, `reason_tokens`] that a teacher writes before it scores; None if it does not reason first."""
    if not options.reason_tokens:
        return None
    assert isinstance(analyst, Network), "who reasons first is there, and writes"
    # Importance weights correct what the student's int8 copy writes. Nothing would correct an analysis.
    plainly: dict[str, Any] = dict(int8_weights=False, presence_penalty=0.0, record_experts=False)
    reason = dataclasses.replace(options.sampling, max_new_tokens=options.reason_tokens, **plainly)
    keys = jax.vmap(lambda k: jax.random.fold_in(k, 2**32 - 1))(keys)  # apart from every token's own fold
    return _write(analyst, batch.teacher_tokens, batch.teacher_mask, keys, options, reason)[0]


def assemble(batch: Batch, samples: Samples, analysis: Samples | None, options: RolloutOptions) -> Completions:
    """Joins a batch and its completions: both roles' contexts and the tokens to learn from. No gradient flows.

    Args:
      batch: prompts of both roles.
      samples: the completions, [B, N].
      analysis: the result of `draw_analysis`.
      options: static choices.
    """
    teacher_tokens, teacher_mask = batch.teacher_tokens, batch.teacher_mask
    if analysis is not None:
        # The transition opens with the template's own end of turn, so the analysis' own end is masked out.
        ended = jnp.isin(analysis.tokens, jnp.asarray(options.sampling.eos_ids, jnp.int32))
        teacher_tokens = jnp.concatenate([teacher_tokens, analysis.tokens, batch.transition], axis=1)
        transition_mask = jnp.ones(batch.transition.shape, bool)
        teacher_mask = jnp.concatenate([teacher_mask, analysis.mask & ~ended, transition_mask], axis=1)
    thoughts = thoughts_of(samples.tokens, samples.mask, options.thought_end) if options.thought_end else None
    part = learnt(samples.mask, thoughts, options.thinking)
    completion_mask = part & (jnp.cumsum(part, axis=1) > options.skip_first)
    if options.mask_cut:
        completion_mask &= ~samples.cut[:, None]
    advantages = jnp.zeros(batch.row.shape, jnp.float32)
    prompts = batch.student_tokens, batch.student_mask, teacher_tokens, teacher_mask
    taught = jnp.ones(batch.row.shape, bool)
    return jax.lax.stop_gradient(
        Completions(*prompts, samples, completion_mask, advantages, batch.without, taught, thoughts, batch.teacher)
    )


def _write(
    network: Network,
    tokens: jax.Array,
    mask: jax.Array,
    keys: jax.Array,
    options: RolloutOptions,
    sampling: SamplingConfig,
    group: int = 1,
) -> tuple[Samples, dict[str, jax.Array]]:
    """A completion of every prompt, which neither slots nor drafts change; and

    occupancy: [] float32, the share of the slots that were busy.
    tokens_per_draw: [] float32, with drafts, the tokens that a busy slot writes in a step: 1, and the drafts accepted there.
    """
    decoder, variables = network.decoder, network.variables
    if options.slots:
        queue = tokens[::group], mask[::group], keys, sampling  # one prefill for all samples of a prompt
        bound: dict[str, Any] = dict(
            slots=options.slots, samples_per_prompt=group, draft_tokens=options.draft_tokens, pad_id=options.pad_id
        )
        samples, occupancy = generate_queue(decoder, variables, *queue, **bound)
        metrics = {"occupancy": occupancy.live / (options.slots * occupancy.steps)}
        if options.draft_tokens:
            metrics["tokens_per_draw"] = occupancy.tokens / occupancy.live
        return samples, metrics
    samples = generate(decoder, variables, tokens, mask, keys, sampling, pad_id=options.pad_id)
    lengths = samples.mask.sum(axis=1)
    return samples, {"occupancy": lengths.sum() / (lengths.size * lengths.max())}  # it ends with the longest
