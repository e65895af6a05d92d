"""What every method shares: two roles and a completion that both of them can score.

    ŷ ~ p(. | x)                       sampled by the student (or the teacher, or taken from the data), no gradient
    h_S, h_T                           hidden states that predict ŷ in both roles, the teacher's without gradient

A method turns these into a loss: one small file of this package each. Which fields the roles see, who writes and how is
data (`Batch`, `Options`).
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from rcsd_jax import losses
from rcsd_jax.models.decoder import Decoder
from rcsd_jax.models.head import head_matrix
from rcsd_jax.models.scoring import completion_hidden
from rcsd_jax.sampling.decoding import Samples, SamplingConfig, generate
from rcsd_jax.sampling.slots import generate_queue

Variables: TypeAlias = Any


class Without(NamedTuple):
    """The teacher's prompts with one criterion left out each; K = 0 unless guidance is by criteria."""

    tokens: jax.Array  # [B, K, Q] int32
    mask: jax.Array  # [B, K, Q] bool
    weights: jax.Array  # [B, K] float32, of the criterion that is missing: 1 on average; 0 where a rubric has fewer


class Batch(NamedTuple):
    """What the two roles see of B examples. Prompts are left-padded; the last token of each is real."""

    row: jax.Array  # [B] int32, the row's place in the global batch: its random key
    student_tokens: jax.Array  # [B, P] int32
    student_mask: jax.Array  # [B, P] bool
    teacher_tokens: jax.Array  # [B, Q] int32
    teacher_mask: jax.Array  # [B, Q] bool
    transition: jax.Array  # [B, U] int32, between the teacher's analysis and the completion; U = 0 without reason-first
    reference_tokens: jax.Array  # [B, N] int32, completions taken from the data; N = 0 where a role writes them
    reference_mask: jax.Array  # [B, N] bool
    without: Without


class Completions(NamedTuple):
    """A batch with what was written: prompts of both roles and the one completion that both score."""

    student_tokens: jax.Array  # [B, P]
    student_mask: jax.Array  # [B, P]
    teacher_tokens: jax.Array  # [B, Q']; with reason-first the analysis and the transition are part of it
    teacher_mask: jax.Array  # [B, Q']
    samples: Samples
    loss_mask: jax.Array  # [B, N] bool, tokens that count in the loss
    advantages: jax.Array  # [B] float32, of graded completions among their group; else 0
    without: Without
    taught: jax.Array  # [B] bool, where the teacher's context is whole: not where it lacks an attempt to be shown


class Weights(NamedTuple):
    """How much each completion token counts in the loss, [B, N] float32: 0 outside its mask, normalised over the whole batch.

    Loss and logged quantities of a method follow one of these, so both have the same mask.
    """

    sampled: jax.Array  # of the tokens of `Completions.loss_mask`
    taught: jax.Array  # of those in rows whose teacher's context is whole, as if the batch had no other rows


class Scored(NamedTuple):
    """What a method's loss is made of. Gradient flows to the student's alone."""

    student_hidden: jax.Array  # [B, N, D], the t-th predicts completion token t
    student_head: jax.Array  # [D, V]
    teacher_hidden: jax.Array | None  # [B, N, D]; None for a method without a teacher
    teacher_head: jax.Array | None  # [D, V]


@dataclasses.dataclass(frozen=True)
class Options:
    """Static choices of a run."""

    sampling: SamplingConfig
    divergence: losses.DivergenceOptions = losses.DivergenceOptions()
    temperature: float = 1.0
    chunk_size: int = 512
    source: str = "student"  # who writes the completions: "student", "teacher", or "reference", the data
    reduction: str = "tokens"  # how tokens weigh: `losses.token_weights`
    guidance: float = 0.0  # how far the teacher is pushed along what its privileged context changes
    policy: tuple[tuple[str, Any], ...] = ()  # options of `methods.grpo`, a dict's items, so that they hash
    reason_tokens: int = 0  # longest analysis that the teacher writes first; 0: none
    importance_clip: float | None = None  # truncated importance weight of trainer against sampler
    mask_cut: bool = False  # leave completions that hit the length limit out of the loss
    skip_first: int = 0  # leave the first n completion tokens out of the loss (SDFT)
    group: int = 1  # completions of a prompt: rows of the batch that follow each other
    slots: int = 0  # rows that are sampled at a time, finished ones making room for the next; 0: all at once
    pad_id: int = 0


def sample(
    decoder: Decoder, student: Variables, teacher: Variables, batch: Batch, key: jax.Array, options: Options
) -> Completions:
    """Completions are written; with reason-first the teacher writes its analysis. No gradient flows."""
    keys = row_keys(batch, key)
    samples = _completions(decoder, student, teacher, batch, keys, options)
    return assemble(batch, samples, write_analysis(decoder, teacher, batch, keys, options), options)


def row_keys(batch: Batch, key: jax.Array) -> jax.Array:
    """Each row's random key, [B]: of its place in the global batch alone."""
    return jax.vmap(lambda row: jax.random.fold_in(key, row))(batch.row)


def write_analysis(
    decoder: Decoder, teacher: Variables, batch: Batch, keys: jax.Array, options: Options
) -> Samples | None:
    """What a teacher that reasons first writes before it scores, [B, `reason_tokens`]; None where it does not.

    Args:
      decoder: the model.
      teacher: variables.
      batch: its teacher's prompts.
      keys: of `row_keys`.
      options: static choices.
    """
    if not options.reason_tokens:
        return None
    reason = dataclasses.replace(options.sampling, max_new_tokens=options.reason_tokens)
    keys = jax.vmap(lambda k: jax.random.fold_in(k, 2**32 - 1))(keys)  # apart from every token's own fold
    return _write(decoder, teacher, batch.teacher_tokens, batch.teacher_mask, keys, options, reason)


def assemble(batch: Batch, samples: Samples, analysis: Samples | None, options: Options) -> Completions:
    """A batch with what was written, by whomever: both roles' contexts and the tokens that count. No gradient flows.

    Args:
      batch: prompts of both roles.
      samples: the completions, [B, N].
      analysis: of `write_analysis`.
      options: static choices.
    """
    teacher_tokens, teacher_mask = batch.teacher_tokens, batch.teacher_mask
    if analysis is not None:
        # The transition opens with the template's own end of turn, so the analysis' own end is masked out.
        ended = jnp.isin(analysis.tokens, jnp.asarray(options.sampling.eos_ids, jnp.int32))
        teacher_tokens = jnp.concatenate([teacher_tokens, analysis.tokens, batch.transition], axis=1)
        transition_mask = jnp.ones(batch.transition.shape, bool)
        teacher_mask = jnp.concatenate([teacher_mask, analysis.mask & ~ended, transition_mask], axis=1)
    loss_mask = samples.mask & (jnp.arange(samples.mask.shape[1]) >= options.skip_first)
    if options.mask_cut:
        loss_mask &= ~samples.cut[:, None]
    advantages = jnp.zeros(batch.row.shape, jnp.float32)
    prompts = batch.student_tokens, batch.student_mask, teacher_tokens, teacher_mask
    return jax.lax.stop_gradient(
        Completions(*prompts, samples, loss_mask, advantages, batch.without, jnp.ones(batch.row.shape, bool))
    )


def _completions(
    decoder: Decoder, student: Variables, teacher: Variables, batch: Batch, keys: jax.Array, options: Options
) -> Samples:
    if options.source == "reference":
        tokens, mask = batch.reference_tokens, batch.reference_mask
        return Samples(tokens, mask, jnp.zeros(tokens.shape, jnp.float32), jnp.zeros(tokens.shape[:1], bool))
    if options.source == "teacher":
        prompts = teacher, batch.teacher_tokens, batch.teacher_mask
    else:
        prompts = student, batch.student_tokens, batch.student_mask
    return _write(decoder, *prompts, keys, options, options.sampling, group=options.group)


def _write(
    decoder: Decoder,
    variables: Variables,
    tokens: jax.Array,
    mask: jax.Array,
    keys: jax.Array,
    options: Options,
    sampling: SamplingConfig,
    group: int = 1,
) -> Samples:
    """A completion of every prompt; the same ones however many slots there are."""
    if options.slots:
        queue = tokens[::group], mask[::group], keys, sampling  # one prefill for all samples of a prompt
        bound: dict[str, Any] = dict(slots=options.slots, samples_per_prompt=group, pad_id=options.pad_id)
        return generate_queue(decoder, variables, *queue, **bound)[0]
    return generate(decoder, variables, tokens, mask, keys, sampling, pad_id=options.pad_id)


def teacher_hidden(
    decoder: Decoder, teacher: Variables, completions: Completions, *, guidance: float = 0.0
) -> jax.Array:
    """The teacher's final hidden states that predict the completions, [B, N, D], without gradient.

    With guidance g they are h + g (h - h'), h' being the teacher's without its privileged context, shown what the student
    sees. As logits are linear in them, these are the logits with - without, pushed along by the same factor. By criteria
    they are h + g sum_k w_k (h - h_k), h_k being the teacher's without criterion k of weight w_k.
    """
    c = completions
    answer = c.samples.tokens, c.samples.mask
    hidden = completion_hidden(decoder, teacher, c.teacher_tokens, c.teacher_mask, *answer)
    if guidance and c.without.tokens.shape[1]:
        weights = c.without.weights[..., None, None]  # [B, K, 1, 1]
        less = _without_each(decoder, teacher, c).astype(jnp.float32)  # [B, K, N, D]
        change = (weights * (hidden[:, None].astype(jnp.float32) - less)).sum(axis=1)
        hidden = (hidden.astype(jnp.float32) + guidance * change).astype(hidden.dtype)
    elif guidance:
        less = completion_hidden(decoder, teacher, c.student_tokens, c.student_mask, *answer).astype(jnp.float32)
        change = hidden.astype(jnp.float32) - less
        hidden = (hidden.astype(jnp.float32) + guidance * change).astype(hidden.dtype)
    return jax.lax.stop_gradient(hidden)


def _without_each(decoder: Decoder, teacher: Variables, c: Completions) -> jax.Array:
    """The teacher's hidden states when it is shown all criteria but one, [B, K, N, D]."""
    batch, count, _ = c.without.tokens.shape
    rows = lambda x: x.reshape(batch * count, x.shape[-1])
    answer = (
        rows(jnp.broadcast_to(x[:, None], (batch, count, x.shape[1]))) for x in (c.samples.tokens, c.samples.mask)
    )
    hidden = completion_hidden(decoder, teacher, rows(c.without.tokens), rows(c.without.mask), *answer)
    return hidden.reshape(batch, count, *hidden.shape[1:])


def score(
    decoder: Decoder,
    student: Variables,
    teacher: Variables | None,
    teacher_hidden: jax.Array | None,
    completions: Completions,
) -> Scored:
    """Both roles' hidden states and output matrices, differentiable in `student`.

    Args:
      decoder: the model.
      student: variables.
      teacher: variables, of which the output matrix is read; None without a teacher.
      teacher_hidden: [B, N, D], of `teacher_hidden`; None without a teacher.
      completions: what `sample` gave, or some of its rows.
    """
    c, samples = completions, completions.samples
    hidden = completion_hidden(decoder, student, c.student_tokens, c.student_mask, samples.tokens, samples.mask)
    head = head_matrix(decoder.config, student["params"])
    if teacher is None or teacher_hidden is None:
        return Scored(hidden, head, None, None)
    return Scored(hidden, head, teacher_hidden, jax.lax.stop_gradient(head_matrix(decoder.config, teacher["params"])))


def score_both(
    decoder: Decoder, student: Variables, teacher: Variables, completions: Completions, options: Options
) -> Scored:
    """`teacher_hidden` and `score` in one, for whoever needs no gradient."""
    hidden = teacher_hidden(decoder, teacher, completions, guidance=options.guidance)
    return score(decoder, student, teacher, hidden, completions)


def loss_weights(completions: Completions, reduction: str) -> Weights:
    """The weights of a whole batch; `reduction` as in `losses.token_weights`."""
    sampled = losses.token_weights(completions.loss_mask, reduction)
    return Weights(sampled, losses.token_weights(completions.loss_mask, reduction, counted=completions.taught))


def total(weights: jax.Array, values: jax.Array) -> jax.Array:
    """The sum of values [B, N] over the tokens that weigh something, and their number, [2] float32: a mean to be logged."""
    there = weights > 0
    return jnp.stack([jnp.where(there, values, 0.0).sum(), there.sum().astype(jnp.float32)])


def row_loss(weights: jax.Array, token_loss: jax.Array) -> jax.Array:
    """Each row's summed loss [B], of token losses [B, N], where they weigh something: it tells whose loss is not finite."""
    return jnp.where(weights > 0, token_loss, 0.0).sum(axis=1)
