"""On-policy self-distillation (RCSD, arXiv 2606.19327; OPSD, 2601.18734): one model, two roles.

    ŷ ~ p_S(. | x)                                              sampled, no gradient
    D_t = D( p_T(. | x, r, ŷ_<t)  ||  p_S(. | x, ŷ_<t) )         teacher without gradient
    L   = sum_t m_t D_t / sum_t m_t                              m = completion mask

Which fields the roles see, what is written and which divergence is used are data (`Batch`, `Options`): Stage I, Stage II
and OPSD are this one file.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rcsd_jax import losses
from rcsd_jax.continuous_batching import generate_queue
from rcsd_jax.models.decoder import Decoder, head_matrix
from rcsd_jax.models.scoring import completion_hidden
from rcsd_jax.sampling import Samples, SamplingConfig, generate

Variables = Any


class Batch(NamedTuple):
    """What the two roles see of B examples. Prompts are left-padded; the last token of each is real."""

    row: jax.Array  # [B] int32, the row's place in the global batch: its random key
    student_tokens: jax.Array  # [B, P] int32
    student_mask: jax.Array  # [B, P] bool
    teacher_tokens: jax.Array  # [B, Q] int32
    teacher_mask: jax.Array  # [B, Q] bool
    transition: jax.Array  # [B, U] int32, between the teacher's analysis and the completion; U = 0 without reason-first


class Completions(NamedTuple):
    """A batch with what was sampled: prompts of both roles and the one completion that both score."""

    student_tokens: jax.Array  # [B, P]
    student_mask: jax.Array  # [B, P]
    teacher_tokens: jax.Array  # [B, Q']; with reason-first the analysis and the transition are part of it
    teacher_mask: jax.Array  # [B, Q']
    samples: Samples
    loss_mask: jax.Array  # [B, N] bool, tokens that count in the loss


@dataclasses.dataclass(frozen=True)
class Options:
    """Static choices of a run (METHOD: divergences). `divergence`: options of `losses.score_from_hidden`."""

    sampling: SamplingConfig
    divergence: tuple[tuple[str, Any], ...]  # a dict's items, so that the options hash as static arguments
    temperature: float = 1.0
    chunk_size: int = 512
    reason_tokens: int = 0  # longest analysis that the teacher writes first; 0: none
    importance_clip: float | None = None  # truncated importance weight of trainer against sampler
    mask_cut: bool = False  # leave completions that hit the length limit out of the loss
    skip_first: int = 0  # leave the first n completion tokens out of the loss (SDFT)
    slots: int = 0  # rows that are sampled at a time, finished ones making room for the next; 0: all at once
    pad_id: int = 0


def sample(
    decoder: Decoder, student: Variables, teacher: Variables, batch: Batch, key: jax.Array, options: Options
) -> Completions:
    """The student writes completions; with reason-first the teacher writes its analysis. No gradient flows."""
    keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(batch.row)  # [B]
    samples = _write(decoder, student, batch.student_tokens, batch.student_mask, keys, options, options.sampling)
    teacher_tokens, teacher_mask = batch.teacher_tokens, batch.teacher_mask
    if options.reason_tokens:
        reason = dataclasses.replace(options.sampling, max_new_tokens=options.reason_tokens)
        keys = jax.vmap(lambda k: jax.random.fold_in(k, 2**32 - 1))(keys)  # apart from every token's own fold
        analysis = _write(decoder, teacher, teacher_tokens, teacher_mask, keys, options, reason)
        # The transition opens with the template's own end of turn, so the analysis' own end is masked out.
        ended = jnp.isin(analysis.tokens, jnp.asarray(reason.eos_ids, jnp.int32))
        teacher_tokens = jnp.concatenate([teacher_tokens, analysis.tokens, batch.transition], axis=1)
        transition_mask = jnp.ones(batch.transition.shape, bool)
        teacher_mask = jnp.concatenate([teacher_mask, analysis.mask & ~ended, transition_mask], axis=1)
    loss_mask = samples.mask & (jnp.arange(samples.mask.shape[1]) >= options.skip_first)
    if options.mask_cut:
        loss_mask &= ~samples.cut[:, None]
    return jax.lax.stop_gradient(
        Completions(batch.student_tokens, batch.student_mask, teacher_tokens, teacher_mask, samples, loss_mask)
    )


def _write(decoder, variables, tokens, mask, keys, options: Options, sampling: SamplingConfig) -> Samples:
    """A completion of every prompt; the same ones however many slots there are."""
    arguments = (decoder, variables, tokens, mask, keys, sampling)
    if options.slots:
        return generate_queue(*arguments, slots=options.slots, pad_id=options.pad_id)[0]
    return generate(*arguments, pad_id=options.pad_id)


def teacher_hidden(decoder: Decoder, teacher: Variables, completions: Completions) -> jax.Array:
    """The teacher's final hidden states that predict the completions, [B, N, D], without gradient."""
    c = completions
    hidden = completion_hidden(decoder, teacher, c.teacher_tokens, c.teacher_mask, c.samples.tokens, c.samples.mask)
    return jax.lax.stop_gradient(hidden)


def loss_and_sums(
    decoder: Decoder,
    student: Variables,
    teacher: Variables,
    teacher_hidden: jax.Array,
    completions: Completions,
    options: Options,
    loss_tokens: jax.Array,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """A (micro)batch's part of the loss, differentiable in `student`, and sums of what is logged.

    Args:
      decoder: the model.
      student, teacher: variables of the roles; of the teacher's, only the output matrix is read.
      teacher_hidden: [B, N, D], of `teacher_hidden`.
      completions: what `sample` gave, or some of its rows.
      options: static choices.
      loss_tokens: scalar, the number of tokens in the loss of the whole batch.

    Returns:
      loss: scalar float32, sum_t m_t D_t / loss_tokens.
      sums: scalars summed over completion tokens, and `row_loss` [B], each row's summed loss.
    """
    c, samples = completions, completions.samples
    student_hidden = completion_hidden(
        decoder, student, c.student_tokens, c.student_mask, samples.tokens, samples.mask
    )  # [B, N, D]
    loss, scores = losses.weighted_divergence_from_hidden(
        student_hidden,
        head_matrix(decoder.config, student["params"]),
        teacher_hidden,
        jax.lax.stop_gradient(head_matrix(decoder.config, teacher["params"])),
        samples.tokens,
        c.loss_mask / loss_tokens,
        chunk_size=options.chunk_size,
        temperature=options.temperature,
        sampler_log_probs=samples.log_probs,
        importance_clip=options.importance_clip,
        **dict(options.divergence),
    )

    def total(values):
        return jnp.where(samples.mask, values, 0.0).sum()

    token_loss = scores.divergence  # [B, N]
    if options.importance_clip is not None:
        token_loss *= losses.importance_weight(
            scores.student_log_probs, samples.log_probs, clip=options.importance_clip
        )
    sums = {
        "divergence": total(scores.divergence),
        "student_entropy": total(scores.student_entropy),
        "teacher_entropy": total(scores.teacher_entropy),
        "teacher_advantage": total(scores.teacher_log_probs - scores.student_log_probs),
        "sampler_trainer_log_prob_difference": total(jnp.abs(scores.student_log_probs - samples.log_probs)),
        "row_loss": jnp.where(c.loss_mask, token_loss, 0.0).sum(axis=1),
    }
    return loss, sums
