"""Sampling completions: prefill, then a `lax.while_loop` over a preallocated KV cache. Pure; the caller jits it."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rcsd_jax.models.decoder import Decoder, KVCache, head_matrix, init_cache, positions_from_mask


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """How to sample; hashable, a static argument of jit. Filters apply in transformers' order: temperature, k, p.

    Attributes:
      max_new_tokens: N, the longest completion.
      temperature: divides the logits; 0 is greedy, and then the filters do not matter.
      top_k: keep only the k most likely tokens; None keeps all.
      top_p: of those, keep the smallest set of most likely tokens whose probability reaches p; None keeps all.
      eos_ids: tokens that end a completion.
    """

    max_new_tokens: int
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    eos_ids: tuple[int, ...] = ()


class Samples(NamedTuple):
    """Completions of B prompts, at most N tokens each.

    Attributes:
      tokens: [B, N] int32, padding after the end.
      mask: [B, N] bool, true up to and including the end token.
      log_probs: [B, N] float32, of each token under the tempered, unfiltered distribution (temperature 1 when greedy);
        0 where the mask is false.
      cut: [B] bool, no end token within N.
    """

    tokens: jax.Array
    mask: jax.Array
    log_probs: jax.Array
    cut: jax.Array


def generate(
    decoder: Decoder,
    variables: Any,
    prompt_tokens: jax.Array,
    prompt_mask: jax.Array,
    keys: jax.Array,
    sampling: SamplingConfig,
    *,
    pad_id: int = 0,
) -> Samples:
    """Samples a completion of every prompt; stops when all rows have ended.

    Args:
      decoder: the model.
      variables: its variables ("params", and "lora" for adapters in use).
      prompt_tokens: [B, P] int32, left-padded: the last token of every row is real and predicts the first.
      prompt_mask: [B, P] bool, true for real tokens.
      keys: [B] random keys, one a row: token t uses fold_in(key, t), so a row never depends on the others.
      sampling: the settings.
      pad_id: fills `tokens` after the end.

    Returns:
      The completions, without gradient through what was drawn.
    """
    batch, prompt_length = prompt_tokens.shape
    limit = sampling.max_new_tokens
    # As every use casts them; once, because decoding is as fast as weights are read.
    variables = jax.tree.map(lambda x: x.astype(decoder.config.dtype), variables)
    head = head_matrix(decoder.config, variables["params"])
    hidden, cache = prefill(decoder, variables, prompt_tokens, prompt_mask, prompt_length + limit)
    prompt_lengths = prompt_mask.sum(axis=1).astype(jnp.int32)
    empty = Samples(
        jnp.full((batch, limit), pad_id, jnp.int32),
        jnp.zeros((batch, limit), bool),
        jnp.zeros((batch, limit), jnp.float32),
        jnp.ones((batch,), bool),
    )

    def body(carry):
        t, hidden, cache, samples = carry
        keys_t = jax.vmap(jax.random.fold_in, (0, None))(keys, t)
        hidden, cache, token, log_prob = decode_step(
            decoder, variables, head, hidden, cache, samples.cut, prompt_lengths, t, keys_t, sampling, pad_id=pad_id
        )
        live = samples.cut  # no end token yet
        samples = Samples(
            samples.tokens.at[:, t].set(token),
            samples.mask.at[:, t].set(live),
            samples.log_probs.at[:, t].set(log_prob),
            live & ~jnp.isin(token, jnp.asarray(sampling.eos_ids, jnp.int32)),
        )
        return t + 1, hidden, cache, samples

    def unfinished(carry):
        t, _, _, samples = carry
        return (t < limit) & samples.cut.any()

    return jax.lax.while_loop(unfinished, body, (jnp.int32(0), hidden, cache, empty))[3]


def prefill(
    decoder: Decoder, variables: Any, prompt_tokens: jax.Array, prompt_mask: jax.Array, length: int
) -> tuple[jax.Array, KVCache]:
    """The hidden states [B, D] that predict the first tokens after prompts [B, P], and a cache of `length` places."""
    hidden, cache = decoder.apply(
        variables,
        prompt_tokens,
        segment_ids=prompt_mask.astype(jnp.int32),
        positions=positions_from_mask(prompt_mask),
        cache=init_cache(decoder.config, prompt_tokens.shape[0], length),
        cache_index=0,
    )
    return hidden[:, -1], cache


def decode_step(
    decoder: Decoder,
    variables: Any,
    head: jax.Array,
    hidden: jax.Array,
    cache: KVCache,
    live: jax.Array,
    prompt_lengths: jax.Array,
    t: jax.Array,
    keys: jax.Array,
    sampling: SamplingConfig,
    *,
    pad_id: int,
) -> tuple[jax.Array, KVCache, jax.Array, jax.Array]:
    """Draws token t of every row and runs it.

    Args:
      decoder, variables: the model; head: its output matrix [D, V].
      hidden: [B, D], which predicts token t.
      cache: of the prompts and the tokens before t.
      live: [B] bool; other rows get `pad_id`.
      prompt_lengths: [B] int32, real tokens of the prompts.
      t: scalar int32.
      keys: [B] random keys of this token.
      sampling: the settings.

    Returns:
      Hidden states [B, D] that predict token t + 1, the cache, the tokens [B] int32 and their log-probabilities [B].
    """
    logits = jnp.matmul(hidden, head, preferred_element_type=jnp.float32)  # [B, V]
    token, log_prob = sample_token(logits, keys, sampling)
    token = jnp.where(live, token, pad_id)
    hidden, cache = decoder.apply(
        variables,
        token[:, None],
        segment_ids=live[:, None].astype(jnp.int32),
        positions=(prompt_lengths + t)[:, None],
        cache=cache,
        cache_index=cache.segment_ids.shape[1] - sampling.max_new_tokens + t,
    )
    return hidden[:, -1], cache, token, jnp.where(live, log_prob, 0.0)


def sample_token(logits: jax.Array, keys: jax.Array, sampling: SamplingConfig) -> tuple[jax.Array, jax.Array]:
    """Draws one token a row.

    Args:
      logits: [B, V] float32, before the temperature.
      keys: [B] random keys, one a row.
      sampling: the settings; `max_new_tokens` and `eos_ids` do not matter here.

    Returns:
      Tokens [B] int32, and their log-probability [B] float32 under the tempered, unfiltered distribution (temperature 1
      when greedy).
    """
    if sampling.temperature == 0:
        token = jnp.argmax(logits, axis=-1).astype(jnp.int32)
        return token, _pick(jax.nn.log_softmax(logits), token)
    logits = logits / sampling.temperature
    kept, ids = logits, None
    if sampling.top_k is not None or sampling.top_p is not None:
        # Sorted, so that top-p is a cumulative sum; with top-k the draw is among k entries instead of the vocabulary.
        kept, ids = jax.lax.top_k(logits, min(sampling.top_k or logits.shape[-1], logits.shape[-1]))
    if sampling.top_p is not None:
        probs = jax.nn.softmax(kept, axis=-1)
        before = jnp.cumsum(probs, axis=-1) - probs
        kept = jnp.where((before < sampling.top_p) | (jnp.arange(kept.shape[-1]) == 0), kept, -jnp.inf)
    place = jax.vmap(jax.random.categorical)(keys, kept)
    token = (place if ids is None else _pick(ids, place)).astype(jnp.int32)
    return token, _pick(jax.nn.log_softmax(logits), token)


def _pick(values: jax.Array, index: jax.Array) -> jax.Array:
    return jnp.take_along_axis(values, index[:, None], axis=-1)[:, 0]
