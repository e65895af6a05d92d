"""Hidden states that predict a completion after a prompt."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from rcsd_jax.models.cache import KVCache, init_cache
from rcsd_jax.models.decoder import Decoder, apply_and_report, positions_from_mask
from rcsd_jax.models.layer import Statistics


def completion_hidden(
    decoder: Decoder,
    variables: Any,
    prompt_tokens: jax.Array,
    prompt_mask: jax.Array,
    completion_tokens: jax.Array,
    completion_real: jax.Array,
) -> jax.Array:
    """Final hidden states that predict the completion; differentiable in `variables`.

    Args:
      decoder: the model.
      variables: its variables.
      prompt_tokens, prompt_mask: [B, P] int32 and bool; padding may stand anywhere but in the last place, which
        predicts token 0.
      completion_tokens, completion_real: [B, N] int32, and bool where a place holds a token.

    Returns:
      [B, N, D] in the decoder's dtype; the t-th predicts completion token t, so the last completion token is not an
      input that matters.
    """
    inputs = prompt_tokens, prompt_mask, completion_tokens, completion_real
    return completion_hidden_and_report(decoder, variables, *inputs)[0]


def completion_hidden_and_report(
    decoder: Decoder,
    variables: Any,
    prompt_tokens: jax.Array,
    prompt_mask: jax.Array,
    completion_tokens: jax.Array,
    completion_real: jax.Array,
    experts: jax.Array | None = None,
) -> tuple[jax.Array, Statistics]:
    """`completion_hidden`, and what the layers report.

    Args:
      decoder, variables, prompt_tokens, prompt_mask, completion_tokens, completion_real: as there.
      experts: [B, N, L, k], those recorded for the completion's tokens; None: none.
    """
    tokens = jnp.concatenate([prompt_tokens, completion_tokens], axis=1)
    mask = jnp.concatenate([prompt_mask, completion_real], axis=1)
    if experts is not None:
        before = ((0, 0), (prompt_tokens.shape[1], 0), (0, 0), (0, 0))
        experts = jnp.pad(experts, before, constant_values=jnp.iinfo(experts.dtype).max)
    how = dict(segment_ids=mask.astype(jnp.int32), positions=positions_from_mask(mask), experts=experts)
    hidden, _, reported = apply_and_report(decoder, variables, tokens, **how)
    first = prompt_tokens.shape[1] - 1
    return hidden[:, first : first + completion_tokens.shape[1]], reported


def completion_hidden_shared(
    decoder: Decoder,
    variables: Any,
    prefix_tokens: jax.Array,
    prefix_mask: jax.Array,
    suffix_tokens: jax.Array,
    suffix_mask: jax.Array,
    completion_tokens: jax.Array,
    completion_real: jax.Array,
) -> jax.Array:
    """As `completion_hidden` for several contexts that begin alike: the common prefix is run once for all of them.

    Args:
      decoder: the model.
      variables: its variables.
      prefix_tokens, prefix_mask: [B, P] int32 and bool, what the M contexts of a question have in common; padding may stand
        anywhere, at least one token is real.
      suffix_tokens, suffix_mask: [B, M, Q] int32 and bool, what each has after it, ending in a real token; Q = 0 if the
        completions follow the prefix itself.
      completion_tokens, completion_real: [B, M, N] int32 and bool; real tokens first.

    Returns:
      [B, M, N, D] in the decoder's dtype, as `completion_hidden` of prefix and suffix gives for each of the M.
    """
    batch, contexts, suffix = suffix_tokens.shape
    count, prefix = completion_tokens.shape[2], prefix_tokens.shape[1]
    rows = lambda x: x.reshape(batch * contexts, *x.shape[2:])
    last, cache, lengths = run_prefix(decoder, variables, prefix_tokens, prefix_mask, prefix + suffix + count)
    last, lengths = jnp.repeat(last[:, None], contexts, axis=0), jnp.repeat(lengths, contexts)
    cache = jax.tree.map(lambda x: jnp.repeat(x, contexts, axis=2), cache)
    mask = jnp.concatenate([rows(suffix_mask), rows(completion_real)], axis=1)
    tokens, _ = pack(jnp.concatenate([rows(suffix_tokens), rows(completion_tokens)], axis=1), mask)
    hidden, _ = decoder.apply(
        variables,
        tokens,
        positions=lengths[:, None] + jnp.arange(suffix + count, dtype=jnp.int32),
        cache=cache,
        cache_index=lengths,
    )
    # Completion token t of a context with q suffix tokens is predicted in place q + t of these.
    hidden = jnp.concatenate([last, hidden], axis=1)
    predicted = rows(suffix_mask).sum(axis=1)[:, None] + jnp.arange(count)
    hidden = jnp.take_along_axis(hidden, predicted[..., None], axis=1)
    return hidden.reshape(batch, contexts, count, -1)


def run_prefix(
    decoder: Decoder, variables: Any, tokens: jax.Array, mask: jax.Array, cache_length: int
) -> tuple[jax.Array, KVCache, jax.Array]:
    """Runs the decoder over the beginnings of sequences and keeps their keys and values.

    Args:
      decoder: the model.
      variables: its variables.
      tokens: [B, P] int32, at least one real token in every row; padding may stand anywhere.
      mask: [B, P] bool, true for real tokens.
      cache_length: places of a row, at least P.

    Returns:
      The hidden states [B, D] that predict what follows, the cache, and how many tokens are real, [B] int32.
    """
    tokens, lengths = pack(tokens, mask)
    places = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
    applied: Any = decoder.apply(  # Flax declares that it may give variables as well
        variables,
        tokens,
        segment_ids=(places < lengths[:, None]).astype(jnp.int32),
        positions=places,
        cache=init_cache(decoder.config, tokens.shape[0], cache_length),
    )
    hidden, cache = applied
    return jnp.take_along_axis(hidden, lengths[:, None, None] - 1, axis=1)[:, 0], cache, lengths


def pack(tokens: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The real tokens of every row first, in their order, so that place and position are one.

    Args:
      tokens, mask: [B, T] int32 and bool.

    Returns:
      The tokens [B, T], and how many are real, [B] int32.
    """
    order = jnp.argsort(~mask, axis=1, stable=True)
    return jnp.take_along_axis(tokens, order, axis=1), mask.sum(axis=1).astype(jnp.int32)
