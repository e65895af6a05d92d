"""Sampling completions: prefill, then a `lax.while_loop` over a preallocated KV cache. Pure; the caller jits it."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from rcsd_jax.models import head
from rcsd_jax.models.cache import POOL_AXES, KVCache, extended, int8_cache, with_rings
from rcsd_jax.models.cache_places import ring_places
from rcsd_jax.models.config import DecoderConfig
from rcsd_jax.models.declarations import layer_matrices
from rcsd_jax.models.decoder import Decoder, apply_and_report
from rcsd_jax.models.few_layers import decoding_head, decoding_variables
from rcsd_jax.models.merged_adapters import merged
from rcsd_jax.models.placement import lora_axes, param_axes, sampling_layout
from rcsd_jax.models.quantization import quantized
from rcsd_jax.models.scoring import run_prefix
from rcsd_jax.models.sharding import LAYOUTS, constrain
from rcsd_jax.models.weights import Matrix, cast
from rcsd_jax.sampling import constrained
from rcsd_jax.sampling.token_form import TokenForm

GREEDY_BELOW = 1e-4
"""Temperatures below this are greedy: float32 no longer resolves logits / temperature."""


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """How to sample; hashable, a static argument of jit. Filters apply in transformers' order: temperature, k, p.

    Attributes:
      max_new_tokens: N, the longest completion.
      temperature: divides the logits; 0 (and what is below `GREEDY_BELOW`) is greedy, and then the filters do not matter.
      top_k: keep only the k most likely tokens; None keeps all.
      top_p: of those, keep the smallest set of most likely tokens whose probability reaches p; None keeps all.
      eos_ids: tokens that end a completion.
      int8_cache: keep keys and values as int8, half of bfloat16; off by default.
      merged_adapters: decode with adapters added into the weights, see `merged_adapters.merged`; off by default.
      int8_weights: sample from an int8 copy of the model, see `sampled_variables`; off by default.
      record_experts: also return the experts that the router of a mixture chose; off by default.
      presence_penalty: subtracted from the logits, before the temperature, of every token that the completion already has;
        below 0 it makes repetition likelier.

    Examples:
      >>> SamplingConfig(max_new_tokens=64, temperature=0.7, top_p=0.9, eos_ids=(2,)).top_k is None
      True
    """

    max_new_tokens: int
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    eos_ids: tuple[int, ...] = ()
    int8_cache: bool = False
    merged_adapters: bool = False
    int8_weights: bool = False
    presence_penalty: float = 0.0
    record_experts: bool = False

    @property
    def scoring_temperature(self) -> float:
        """That of `Samples.log_probs`, and of a loss on them: 1 when greedy."""
        return 1.0 if self.temperature < GREEDY_BELOW else self.temperature

    def described(self) -> dict[str, Any]:
        """Its fields as keys of logs and caches have them. Newer ones are there only if set, so older files keep their keys."""
        newer = ("int8_weights", "presence_penalty", "record_experts")
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in newer or value}


class Samples(NamedTuple):
    """Completions of B prompts, at most N tokens each.

    Attributes:
      tokens: [B, N] int32, padding after the end.
      mask: [B, N] bool, true up to and including the end token.
      log_probs: [B, N] float32, of each token under the tempered, unfiltered distribution (temperature 1 when greedy),
        renormalised over the tokens that a form allows; 0 where the mask is false.
      cut: [B] bool, no end token within N.
      experts: [B, N, L, k], the experts that each token was sent to when it was an input, see `SamplingConfig.record_experts`; None
        if they are not recorded.
    """

    tokens: jax.Array
    mask: jax.Array
    log_probs: jax.Array
    cut: jax.Array
    experts: jax.Array | None = None


class Weights(NamedTuple):
    """A decoder's weights as decoding reads them best; see `decoding_weights`."""

    variables: Any
    head: Matrix  # [D, V]


class Rows(NamedTuple):
    """Where B rows stand: all that the next token depends on.

    Attributes:
      hidden: [B, D], final hidden states that predict the next tokens.
      cache: keys and values of the tokens before.
      lengths: [B] int32, how many those are: the next token's position and its place in the cache.
      place: where their texts stand in a form; None without one.
      experts: [B, L, k], of the last token, if they are recorded; else None.
    """

    hidden: jax.Array
    cache: KVCache
    lengths: jax.Array
    place: constrained.Place | None = None
    experts: jax.Array | None = None


_Carry: TypeAlias = tuple[jax.Array, Rows, Samples, jax.Array | None]


def generate(
    decoder: Decoder,
    variables: Any,
    prompt_tokens: jax.Array,
    prompt_mask: jax.Array,
    keys: jax.Array,
    sampling: SamplingConfig,
    *,
    pad_id: int = 0,
    form: TokenForm | None = None,
) -> Samples:
    """Samples a completion of every prompt; stops when all rows have ended.

    Args:
      decoder: the model.
      variables: its variables ("params", and "lora" for adapters in use).
      prompt_tokens: [B, P] int32, at least one real token in every row; padding may stand anywhere.
      prompt_mask: [B, P] bool, true for real tokens.
      keys: [B] random keys, one a row: token t uses fold_in(key, t), so a row never depends on the others.
      sampling: the settings.
      pad_id: fills `tokens` after the end.
      form: if given, all completions are texts of it; `max_new_tokens` is at least `form.shortest`.

    Returns:
      The completions, without gradient through what was drawn.
    """
    batch, prompt_length = prompt_tokens.shape
    limit = sampling.max_new_tokens
    variables = sampled_variables(decoder.config, variables, sampling)
    weights = decoding_weights(decoder, variables, merge_adapters=sampling.merged_adapters)
    cache_length = prompt_length + limit
    kept: dict[str, Any] = dict(int8=sampling.int8_cache, ring=ring_places(decoder.config, cache_length))
    rows = prefill(decoder, variables, prompt_tokens, prompt_mask, cache_length, **kept)
    if form is not None:
        rows = rows._replace(place=constrained.beginning(form, jnp.full(batch, limit)))
    eos = jnp.asarray(sampling.eos_ids, jnp.int32)
    empty = Samples(
        jnp.full((batch, limit), pad_id, jnp.int32),
        jnp.zeros((batch, limit), bool),
        jnp.zeros((batch, limit), jnp.float32),
        jnp.ones((batch,), bool),
        no_experts(decoder.config, (batch, limit), sampling),
    )
    rows = rows._replace(experts=no_experts(decoder.config, (batch,), sampling))

    def body(carry: _Carry) -> _Carry:
        t, rows, samples, seen = carry
        live = samples.cut  # no end token yet
        token, log_prob, rows = decode_step(
            decoder, weights, rows, jax.vmap(jax.random.fold_in, (0, None))(keys, t), sampling, seen, form
        )
        token = jnp.where(live, token, pad_id)
        samples = Samples(
            samples.tokens.at[:, t].set(token),
            samples.mask.at[:, t].set(live),
            samples.log_probs.at[:, t].set(jnp.where(live, log_prob, 0.0)),
            live & ~jnp.isin(token, eos),
            None if samples.experts is None else samples.experts.at[:, t].set(rows.experts),
        )
        return t + 1, rows, samples, and_seen(seen, token)

    def unfinished(carry: _Carry) -> jax.Array:
        t, _, samples, _ = carry
        return (t < limit) & samples.cut.any()

    seen = nothing_seen(decoder.config, batch, sampling)
    return jax.lax.while_loop(unfinished, body, (jnp.int32(0), rows, empty, seen))[2]


def sampled_variables(config: DecoderConfig, variables: Any, sampling: SamplingConfig) -> Any:
    """The variables of the model that samples: the given ones or, with `int8_weights`, a copy with its matrices in int8.

    The copy serves prompts and completions, so log-probabilities are those of one model, and slots change nothing. Adapters
    stay as they are, beside an int8 base; merged adapters are in the copy. On a mesh it lies as the given ones lie, so that
    int8 numbers travel.
    """
    if not sampling.int8_weights:
        return variables
    rules = LAYOUTS[config.layout]
    if sampling.merged_adapters and "lora" in variables:
        variables = merged(config, variables, rules, int8=True)
    params = quantized(config, variables["params"])
    params = jax.tree.map(lambda x, a: constrain(x, a, rules), params, param_axes(config, params))
    return {**variables, "params": params}


def in_sampling_layout(decoder: Decoder) -> Decoder:
    """The decoder as it runs over single tokens: on a mesh, with its matrices split instead of gathered."""
    layout = sampling_layout(decoder.config)
    return decoder if layout == decoder.config.layout else Decoder(dataclasses.replace(decoder.config, layout=layout))


def decoding_weights(decoder: Decoder, variables: Any, *, merge_adapters: bool = False) -> Weights:
    """The weights as every token reads them: in the activations' dtype or int8, split for sampling, and the layers apart.

    Once before the loop instead of for every token. With `merge_adapters` there are none left in them.
    """
    config = in_sampling_layout(decoder).config
    rules = LAYOUTS[config.layout]
    if merge_adapters and "lora" in variables:
        variables = merged(config, variables, rules)
    axes = {"params": param_axes(config, variables["params"])}
    if "lora" in variables:
        axes["lora"] = lora_axes(config, variables["lora"])
    variables = cast({name: variables[name] for name in axes}, config.dtype)
    variables = jax.tree.map(lambda x, a: constrain(x, a, rules), variables, axes)
    matrix = head.head_matrix(config, variables["params"])
    return Weights(decoding_variables(config, variables, layer_matrices(config)), decoding_head(config, matrix))


def prefill(
    decoder: Decoder,
    variables: Any,
    tokens: jax.Array,
    mask: jax.Array,
    cache_length: int,
    *,
    int8: bool = False,
    ring: int | None = None,
) -> Rows:
    """Runs the decoder over prompts and keeps their keys and values.

    Args:
      decoder: the model.
      variables: its variables, as they are or of `decoding_weights`.
      tokens: [B, P] int32, at least one real token in every row; padding may stand anywhere.
      mask: [B, P] bool, true for real tokens.
      cache_length: places of a row for prompt and completion.
      int8: see `SamplingConfig.int8_cache`.
      ring: as of `cache.init_cache`.

    Returns:
      The rows after their prompts.
    """
    last, cache, lengths = run_prefix(decoder, variables, tokens, mask, tokens.shape[1])
    # Prompts have work for whole layers, so they ran with rows on every device; tokens are sampled with heads split.
    rules = LAYOUTS[sampling_layout(decoder.config)]
    cache = int8_cache(cache, lengths) if int8 else cache
    cache = jax.tree.map(lambda x: constrain(x, POOL_AXES, rules), cache)
    if ring is None:
        cache = extended(decoder.config, cache, cache_length)
    else:
        cache = with_rings(decoder.config, cache, lengths, cache_length, ring)
    return Rows(constrain(last, ("batch", None), rules), cache, constrain(lengths, ("batch",), rules))


def decode_step(
    decoder: Decoder,
    weights: Weights,
    rows: Rows,
    keys: jax.Array,
    sampling: SamplingConfig,
    seen: jax.Array | None = None,
    form: TokenForm | None = None,
) -> tuple[jax.Array, jax.Array, Rows]:
    """Draws every row's next token and runs the decoder over it.

    Args:
      decoder: the model.
      weights: of `decoding_weights`.
      rows: where the rows stand; each has a free place in its cache.
      keys: [B] random keys of this token.
      sampling: the settings.
      seen: as of `sample_token`.
      form: that of the rows' texts, if they have a place in one.

    Returns:
      Tokens [B] int32, their log-probabilities [B] float32 as of `sample_token`, and the rows after them.
    """
    logits = head.logits(rows.hidden[:, None], weights.head)[:, 0]  # [B, V]
    # Computed with the vocabulary split, like the head; then every device draws for some whole rows.
    decoder = in_sampling_layout(decoder)
    logits = constrain(logits, ("batch", "vocab"), LAYOUTS[decoder.config.layout])
    logits, place = constrain(logits, ("batch", None), LAYOUTS["train"]), rows.place
    if form is not None and place is not None:
        logits = constrained.constrained_logits(form, place, logits)
    token, log_prob = sample_token(logits, keys, sampling, seen)
    if form is not None and place is not None:
        place = constrained.advanced(form, place, token)
    how = dict(positions=rows.lengths[:, None], cache=rows.cache, cache_index=rows.lengths)
    hidden, extended_cache, reported = apply_and_report(decoder, weights.variables, token[:, None], **how)
    assert extended_cache is not None, "there is one before"
    experts = rows.experts
    if experts is not None:
        experts = jnp.moveaxis(reported["experts"][:, :, 0], 0, 1).astype(experts.dtype)
    return token, log_prob, Rows(hidden[:, 0], extended_cache, rows.lengths + 1, place, experts)


def no_experts(config: DecoderConfig, shape: tuple[int, ...], sampling: SamplingConfig) -> jax.Array | None:
    """The experts [*shape, L, k] of tokens before any are recorded, in the smallest dtype; None if they are not recorded."""
    if not sampling.record_experts:
        return None
    dtype = jnp.uint8 if config.num_experts < 255 else jnp.int16
    none = jnp.full((*shape, config.num_layers, config.experts_per_token), jnp.iinfo(dtype).max, dtype)
    return constrain(none, ("batch", *(None for _ in none.shape[1:])), LAYOUTS["train"])


def nothing_seen(config: DecoderConfig, rows: int, sampling: SamplingConfig) -> jax.Array | None:
    """Which tokens the completions of some rows have before their first token, [rows, V] bool; None without a presence penalty."""
    if not sampling.presence_penalty:
        return None
    return constrain(jnp.zeros((rows, config.vocab_size), bool), ("batch", None), LAYOUTS["train"])


def and_seen(seen: jax.Array | None, token: jax.Array) -> jax.Array | None:
    """`seen` after every row's next token [B]."""
    return None if seen is None else seen.at[jnp.arange(len(token)), token].set(True)


def sample_token(
    logits: jax.Array, keys: jax.Array, sampling: SamplingConfig, seen: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """Draws one token a row.

    Args:
      logits: [B, V] float32, before the temperature.
      keys: [B] random keys, one a row.
      sampling: the settings; `max_new_tokens` and `eos_ids` do not matter here.
      seen: [B, V] bool, the tokens that the presence penalty is for; None: none.

    Returns:
      Tokens [B] int32, and their log-probability [B] float32 under the tempered, unfiltered distribution (temperature 1
      when greedy), without the penalty.

    Examples:
      >>> logits, keys = jnp.log(jnp.array([[0.1, 0.7, 0.2]])), jax.random.split(jax.random.key(0), 1)
      >>> token, log_prob = sample_token(logits, keys, SamplingConfig(1, temperature=0.0))  # greedy
      >>> token.tolist(), round(float(log_prob[0]), 3)
      ([1], -0.357)
      >>> token, _ = sample_token(logits, keys, SamplingConfig(1, temperature=1.2, top_k=1))  # one token is left
      >>> token.tolist()
      [1]
    """
    drawn_from = logits if seen is None else jnp.where(seen, logits - sampling.presence_penalty, logits)
    if sampling.temperature < GREEDY_BELOW:
        # Not argmax, which XLA on CPUs runs one by one.
        vocabulary = logits.shape[-1]
        largest = drawn_from == drawn_from.max(axis=-1, keepdims=True)
        token = jnp.where(largest, jnp.arange(vocabulary), vocabulary - 1).min(axis=-1).astype(jnp.int32)
        return token, _pick(logits, token) - jax.nn.logsumexp(logits, axis=-1)
    logits, drawn_from = logits / sampling.temperature, drawn_from / sampling.temperature
    largest = logits.max(axis=-1, keepdims=True)
    masses = jnp.exp(logits - largest)
    log_total = largest[:, 0] + jnp.log(masses.sum(axis=-1))
    if seen is not None:
        masses = jnp.exp(drawn_from - drawn_from.max(axis=-1, keepdims=True))
    ids = None
    if sampling.top_k is not None or sampling.top_p is not None:
        # Sorted, so that top-p is a cumulative sum; with top-k the draw is among k entries instead of the vocabulary.
        masses, ids = jax.lax.top_k(masses, min(sampling.top_k or masses.shape[-1], masses.shape[-1]))
    if sampling.top_p is not None:
        probs = masses / masses.sum(axis=-1, keepdims=True)
        before = jnp.cumsum(probs, axis=-1) - probs
        masses = jnp.where((before < sampling.top_p) | (jnp.arange(masses.shape[-1]) == 0), masses, 0.0)
    place = _draw(masses, keys)
    token = place if ids is None else _pick(ids, place).astype(jnp.int32)
    return token, _pick(logits, token) - log_total


def _draw(masses: jax.Array, keys: jax.Array) -> jax.Array:
    """A place a row, [B] int32, with probabilities in proportion to masses [B, V].

    By inversion, first among blocks of the row and then within the block: two random numbers a row instead of the V that
    Gumbel noise takes, and each is compared with few sums, so that float32 resolves rare tokens too.
    """
    vocabulary = masses.shape[-1]
    block = min(128, vocabulary)
    blocks = -(-vocabulary // block)
    masses = jnp.pad(masses, ((0, 0), (0, blocks * block - vocabulary))).reshape(-1, blocks, block)
    uniform = jax.vmap(lambda key: jax.random.uniform(key, (2,)))(keys)  # [B, 2], below 1
    chosen = _invert(masses.sum(axis=-1), uniform[:, 0])
    within = _invert(jnp.take_along_axis(masses, chosen[:, None, None], axis=1)[:, 0], uniform[:, 1])
    return chosen * block + within


def _invert(masses: jax.Array, uniform: jax.Array) -> jax.Array:
    """The place [B] int32 where the running sum of masses [B, n] first exceeds the share `uniform` [B] of their sum."""
    sums = jnp.cumsum(masses, axis=-1)
    place = (sums <= uniform[:, None] * sums[:, -1:]).sum(axis=-1)
    # Rounding may take it past the end; and then, never to a token without mass.
    last = (jnp.where(masses > 0, jnp.arange(masses.shape[-1]), 0)).max(axis=-1)
    return jnp.minimum(place, last).astype(jnp.int32)


def _pick(values: jax.Array, index: jax.Array) -> jax.Array:
    return jnp.take_along_axis(values, index[:, None], axis=-1)[:, 0]
