"""Which criterion speaks for which token: what a teacher's log-probabilities lose when one criterion is left out.

    A[k, t] = log p_T(ŷ_t | x, r, ŷ_<t) - log p_T(ŷ_t | x, r without criterion k, ŷ_<t)

Credit at the level of criteria, which only a teacher that is conditioned on a rubric can give.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rcsd_jax import losses
from rcsd_jax.data.examples import Example, rubric_of
from rcsd_jax.host.padding import pad_left, pad_right
from rcsd_jax.models.decoder import Decoder
from rcsd_jax.models.head import head_matrix
from rcsd_jax.models.scoring import completion_hidden_shared
from rcsd_jax.rubrics import variants


class Contexts(NamedTuple):
    """A question's contexts, the whole one first, and then each without one criterion; they begin alike."""

    prefix: np.ndarray  # [P] int32, at least one token
    suffixes: list[np.ndarray]  # [Q] int32 each, 1 + K of them


def ablated_contexts(example: Example, encode: Callable[[Example], np.ndarray]) -> Contexts:
    """The teacher's prompts with all criteria and without each.

    Args:
      example: with a rubric of at least two criteria.
      encode: an example's prompt as token ids, as `encode.teacher_prompt` gives it.

    Raises:
      ValueError: fewer than two criteria.
      UserError: no rubric.
    """
    rest = variants.leave_one_out(rubric_of(example))
    prompts = [encode(example), *(encode(dataclasses.replace(example, rubric=rubric)) for rubric in rest)]
    shortest = min(map(len, prompts))
    alike = np.all([prompt[:shortest] == prompts[0][:shortest] for prompt in prompts], axis=0)
    length = shortest if alike.all() else int(np.argmin(alike))
    return Contexts(prompts[0][:length], [prompt[length:] for prompt in prompts])


def attribution(
    decoder: Decoder,
    variables: Any,
    contexts: Sequence[Contexts],
    completions: Sequence[np.ndarray],
    *,
    pad_to: int = 64,
    pad_id: int = 0,
    temperature: float = 1.0,
    chunk_size: int = 256,
) -> list[np.ndarray]:
    """The matrices A of several questions, in one pass in which each question's prefix is run once.

    Args:
      decoder, variables: the teacher.
      contexts: of each question.
      completions: token ids of each, [N] int32, the end token included if it shall be looked at.
      pad_to: lengths and the number of contexts are rounded up (the latter to a multiple of 4), so that few shapes compile.
      pad_id: any token id.
      temperature: divides the logits.
      chunk_size: tokens whose logits are in memory at once.

    Returns:
      For each question [K, N] float32, nats: positive where criterion k makes the token more likely.
    """
    many = -(-max(len(c.suffixes) for c in contexts) // 4) * 4

    def room(rows: Sequence[np.ndarray]) -> int:
        return -(-max(map(len, rows)) // pad_to) * pad_to

    prefix = pad_left([c.prefix for c in contexts], room([c.prefix for c in contexts]), pad_id)
    suffixes = [c.suffixes + [c.suffixes[0]] * (many - len(c.suffixes)) for c in contexts]
    flat = [row for rows in suffixes for row in rows]
    suffix = [x.reshape(len(contexts), many, -1) for x in pad_right(flat, room(flat), pad_id)]
    tokens, mask = pad_right(completions, room(completions), pad_id)
    options = (temperature, chunk_size)
    changes = np.asarray(_changes(decoder, options, variables, *prefix, *suffix, tokens, mask))  # [B, M - 1, N]
    return [x[: len(c.suffixes) - 1, : len(y)] for x, c, y in zip(changes, contexts, completions, strict=True)]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _changes(
    decoder: Decoder,
    options: tuple[float, int],
    variables: Any,
    prefix_tokens: jax.Array,
    prefix_mask: jax.Array,
    suffix_tokens: jax.Array,
    suffix_mask: jax.Array,
    tokens: jax.Array,
    mask: jax.Array,
) -> jax.Array:
    """[B, M - 1, N]: log-probabilities [B, N] after the first of M contexts, less those after each of the others."""
    temperature, chunk_size = options
    batch, contexts, _ = suffix_tokens.shape
    repeated = [jnp.broadcast_to(x[:, None], (batch, contexts, x.shape[1])) for x in (tokens, mask)]
    hidden = completion_hidden_shared(
        decoder, variables, prefix_tokens, prefix_mask, suffix_tokens, suffix_mask, *repeated
    )
    rows = batch * contexts
    log_probs, _ = losses.token_log_probs_from_hidden(
        hidden.reshape(rows, *hidden.shape[2:]),
        head_matrix(decoder.config, variables["params"]),
        repeated[0].reshape(rows, -1),
        chunk_size=chunk_size,
        temperature=temperature,
    )
    log_probs = log_probs.reshape(batch, contexts, -1)
    return log_probs[:, :1] - log_probs[:, 1:]
