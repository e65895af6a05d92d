"""Sampling that does not wait for the longest row: a finished row's slot goes to the next waiting prompt.

One jitted program of static shapes, three nested loops on the device: while prompts wait or rows are unfinished, fill the
free slots (prefilling the next prompts, see `short_prefill`, when those prefilled before are used up), then decode in every slot:
one token, or with drafts (`speculative`) as many as are accepted there.
Looking at the queue after every token costs a few sums over slots, less than slots that idle until the end of a chunk.

On a mesh each of the G shards of rows (in the sampling layout: data x group) has its own slots and its own part of the queue, so no keys or values travel.
Prompts are dealt to the shards in turn: if lengths rise or fall along the queue, every shard still gets as much work.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rcsd_jax.models.cache import copy_rows, init_cache
from rcsd_jax.models.cache_places import ring_places
from rcsd_jax.models.decoder import Decoder
from rcsd_jax.models.scoring import pack
from rcsd_jax.models.sharding import LAYOUTS, constrain, row_shards
from rcsd_jax.sampling import constrained
from rcsd_jax.sampling.decoding import (
    Rows,
    Samples,
    SamplingConfig,
    Weights,
    and_seen,
    decode_step,
    decoding_weights,
    in_sampling_layout,
    no_experts,
    nothing_seen,
    sampled_variables,
)
from rcsd_jax.sampling.short_prefill import short_prefill
from rcsd_jax.sampling.speculative import Text, speculative_step
from rcsd_jax.sampling.token_form import TokenForm


class Occupancy(NamedTuple):
    """How well the slots were used: int32 scalars. The occupancy is live / (slots * steps).

    Attributes:
      live: slots with a completion, summed over the steps.
      steps: decode steps, each of which decodes in every slot.
      prefills: batches of prompts that were prefilled.
      tokens: of completions; without drafts as many as `live`.
    """

    live: jax.Array
    steps: jax.Array
    prefills: jax.Array
    tokens: jax.Array


class _Queue(NamedTuple):
    """Prompts of G shards; sample i of a shard is of its prompt i // samples_per_prompt."""

    tokens: jax.Array  # [G, R, P]
    mask: jax.Array  # [G, R, P]
    keys: jax.Array  # [G, R * samples]
    limits: jax.Array  # [G, R * samples] int32


class _State(NamedTuple):
    rows: Rows | Text  # of G * slots rows, with drafts a text; `lengths` is 0 in free slots
    sample: jax.Array  # [G, slots] int32, the sample that a slot writes; R * samples: the slot is free
    written: jax.Array  # [G, slots] int32, its tokens so far
    shelf: Rows  # of G * C rows: prompts that are prefilled, prompt p of a shard in place p % C
    prefilled: jax.Array  # [G] int32, prompts that were put on the shelf
    given: jax.Array  # [G] int32, samples that were given a slot
    tokens: jax.Array  # [G, R * samples, N] int32
    log_probs: jax.Array  # [G, R * samples, N] float32
    lengths: jax.Array  # [G, R * samples] int32
    occupancy: Occupancy
    seen: jax.Array | None = (
        None  # [G * slots, V] bool, tokens of the slots' completions; None without a presence penalty
    )
    experts: jax.Array | None = None  # [G, R * samples, N, L, k], as of `Samples`


def usual_refill(slots: int, shards: int) -> int:
    """How many prompts are prefilled together: an eighth of the slots, and at least one for every shard of rows."""
    return max(slots // 8 // shards, 1) * shards


def generate_queue(
    decoder: Decoder,
    variables: Any,
    prompt_tokens: jax.Array,
    prompt_mask: jax.Array,
    keys: jax.Array,
    sampling: SamplingConfig,
    *,
    slots: int,
    refill: int | None = None,
    samples_per_prompt: int = 1,
    draft_tokens: int = 0,
    limits: jax.Array | None = None,
    pad_id: int = 0,
    form: TokenForm | None = None,
) -> tuple[Samples, Occupancy]:
    """Samples completions of a queue of prompts with `slots` rows at a time. The tokens are those of `generate`.

    Sample s of prompt r is row r * samples_per_prompt + s of keys, limits and what is returned.

    Args:
      decoder: the model.
      variables: its variables ("params", and "lora" for adapters in use).
      prompt_tokens: [R, P] int32, at least one real token in every row; padding may stand anywhere.
      prompt_mask: [R, P] bool, true for real tokens.
      keys: [R * samples_per_prompt] random keys: token t uses fold_in(key, t).
      sampling: the settings.
      slots: rows that are decoded together.
      refill: prompts that are prefilled together; by default `usual_refill`, and at most R.
      samples_per_prompt: completions of each prompt, which is prefilled once for all of them.
      draft_tokens: tokens that a step guesses in every slot beyond the next, see `speculative`; they do not change the tokens.
      limits: [R * samples_per_prompt] int32, at least 1: a length limit of each completion, below the sampling's.
      pad_id: fills `tokens` after the end.
      form: if given, all completions are texts of it whose limits are at least `form.shortest`. It excludes drafts.

    Returns:
      The completions, and how well the slots were used.

    Raises:
      ValueError: the mesh's shards of rows do not divide prompts, slots or refill; a form, or recorded experts, with drafts.
    """
    if draft_tokens and (form is not None or sampling.record_experts):
        raise ValueError("drafts know no form and record no experts")
    config, count = decoder.config, prompt_tokens.shape[0]
    variables = sampled_variables(config, variables, sampling)
    decoder = in_sampling_layout(decoder)
    shards = row_shards(decoder.config.layout)
    refill = min(usual_refill(slots, shards), count) if refill is None else refill
    for name, value in (("prompts", count), ("slots", slots), ("refill", refill)):
        if value % shards or value < shards:
            raise ValueError(f"{name} = {value}: the mesh has {shards} shards of rows, which must divide it")
    if limits is None:
        limits = jnp.full((count * samples_per_prompt,), sampling.max_new_tokens, jnp.int32)
    limits = jnp.minimum(limits, sampling.max_new_tokens)
    if draft_tokens:  # a prompt is a text's beginning
        prompt_tokens, lengths = pack(prompt_tokens, prompt_mask)
        prompt_mask = jnp.arange(prompt_tokens.shape[1]) < lengths[:, None]
    weights = decoding_weights(decoder, variables, merge_adapters=sampling.merged_adapters)
    queue = _Queue(*(_deal(x, count, shards) for x in (prompt_tokens, prompt_mask, keys, limits)))
    state = _empty(config, queue, sampling, slots // shards, refill // shards, draft_tokens, pad_id, form)

    def fill(state: _State) -> _State:
        wants = lambda s: _wants(s, queue)
        lacks = lambda s: wants(s) & (_ready(s, queue, samples_per_prompt) == 0)
        put = lambda s: _put_on_shelf(decoder, weights, s, queue, refill // shards, samples_per_prompt)

        def one(s: _State) -> _State:
            # A loop of at most one round, and not a conditional, because a loop's carry is updated in place.
            s = jax.lax.while_loop(lambda s: lacks(s).any(), put, s)
            return _give_slots(s, queue, samples_per_prompt, form)

        return jax.lax.while_loop(lambda s: wants(s).any(), one, state)

    def body(state: _State) -> _State:
        return _decode(decoder, weights, fill(state), queue, sampling, draft_tokens, form)

    samples = queue.keys.shape[1]
    unfinished = lambda s: (s.given < samples).any() | (s.sample < samples).any()
    state = jax.lax.while_loop(unfinished, body, state)
    collect = lambda x: _collect(x, count, decoder.config.layout)
    tokens, lengths = collect(state.tokens), collect(state.lengths)
    last = jnp.take_along_axis(tokens, lengths[:, None] - 1, axis=1)[:, 0]
    mask = jnp.arange(sampling.max_new_tokens) < lengths[:, None]
    cut = ~jnp.isin(last, jnp.asarray(sampling.eos_ids, jnp.int32))
    experts = None if state.experts is None else collect(state.experts)
    return Samples(tokens, mask, collect(state.log_probs), cut, experts), state.occupancy


def _deal(x: jax.Array, prompts: int, shards: int) -> jax.Array:
    """[R * n, ...], n for each of R prompts, -> [G, R / G * n, ...]: prompt r goes to shard r % G."""
    rest = x.shape[1:]
    return x.reshape(prompts // shards, shards, -1, *rest).swapaxes(0, 1).reshape(shards, -1, *rest)


def _collect(x: jax.Array, prompts: int, layout: str) -> jax.Array:
    """The inverse of `_deal`; the rows stay split over the shards."""
    shards, rest = x.shape[0], x.shape[2:]
    x = x.reshape(shards, prompts // shards, -1, *rest).swapaxes(0, 1).reshape(-1, *rest)
    return constrain(x, ("batch", *(None for _ in rest)), LAYOUTS[layout])


def _empty(
    config: Any,
    queue: _Queue,
    sampling: SamplingConfig,
    slots: int,
    refill: int,
    draft_tokens: int,
    pad_id: int,
    form: TokenForm | None,
) -> _State:
    """The state before the first prompt, `slots` and `refill` a shard."""
    shards, _, prompt_length = queue.tokens.shape
    samples, limit = queue.keys.shape[1], sampling.max_new_tokens
    # Shards use up their shelves at different times but prefill together: with a second half they can do so early.
    shelf = refill if shards == 1 else 2 * refill

    def rows(count: int, length: int) -> Rows:
        hidden = jnp.zeros((count, config.hidden_size), config.dtype)
        return Rows(hidden, init_cache(config, count, length, **kept), jnp.zeros(count, jnp.int32))

    length = prompt_length + limit + draft_tokens  # drafts may go beyond the limit
    kept: dict[str, Any] = dict(int8=sampling.int8_cache, ring=ring_places(config, length, 1 + draft_tokens))
    first: Any = rows(shards * slots, length)
    if draft_tokens:
        first = Text(jnp.zeros((shards * slots, length), jnp.int32), first.cache, first.lengths)
    elif form is not None:
        first = first._replace(place=constrained.after_the_end(form, shards * slots))
    if sampling.record_experts:
        first = first._replace(experts=no_experts(config, (shards * slots,), sampling))
    return _State(
        rows=first,
        sample=jnp.full((shards, slots), samples, jnp.int32),
        written=jnp.zeros((shards, slots), jnp.int32),
        shelf=rows(shards * shelf, prompt_length),
        prefilled=jnp.zeros(shards, jnp.int32),
        given=jnp.zeros(shards, jnp.int32),
        tokens=jnp.full((shards, samples, limit), pad_id, jnp.int32),
        log_probs=jnp.zeros((shards, samples, limit), jnp.float32),
        lengths=jnp.zeros((shards, samples), jnp.int32),
        occupancy=Occupancy(*jnp.zeros(4, jnp.int32)),
        seen=nothing_seen(config, shards * slots, sampling),
        experts=no_experts(config, (shards, samples, limit), sampling),
    )


def _wants(state: _State, queue: _Queue) -> jax.Array:
    """[G] bool: a slot is free and a sample waits."""
    samples = queue.keys.shape[1]
    return (state.given < samples) & (state.sample == samples).any(axis=1)


def _ready(state: _State, queue: _Queue, samples_per_prompt: int) -> jax.Array:
    """[G] int32: samples whose prompts are on the shelf."""
    return jnp.minimum(state.prefilled, queue.tokens.shape[1]) * samples_per_prompt - state.given


def _put_on_shelf(
    decoder: Decoder, weights: Weights, state: _State, queue: _Queue, refill: int, samples_per_prompt: int
) -> _State:
    """Prefills the next `refill` prompts of every shard; they go onto the shelves that have the space."""
    shards, count, prompt_length = queue.tokens.shape
    shelf = state.shelf.hidden.shape[0] // shards
    chosen = jnp.minimum(state.prefilled[:, None] + jnp.arange(refill), count - 1)  # [G, refill]
    take = jax.vmap(lambda x, i: x[i])
    tokens, mask = (take(x, chosen).reshape(shards * refill, prompt_length) for x in (queue.tokens, queue.mask))
    cache = state.rows.cache
    ring = None if cache.ring is None else cache.ring.length
    new = short_prefill(decoder, weights.variables, tokens, mask, int8=cache.int8, ring=ring)
    in_use = state.prefilled - state.given // samples_per_prompt  # prompts of which samples wait
    fits = in_use <= shelf - refill
    part = fits[:, None] & (jnp.arange(shelf // refill) == (state.prefilled % shelf // refill)[:, None])  # [G, parts]

    def put(old: jax.Array, new: jax.Array, axis: int) -> jax.Array:
        before, after = old.shape[:axis], old.shape[axis + 1 :]
        ones = (1,) * len(after)
        parts = old.reshape(*before, shards, shelf // refill, refill, *after)
        new = new.reshape(*before, shards, 1, refill, *after)
        return jnp.where(part.reshape(*(1,) * axis, *part.shape, 1, *ones), new, parts).reshape(old.shape)

    old = state.shelf
    cache = jax.tree.map(lambda x, y: put(x, y, 2), old.cache, new.cache)
    shelf_rows = Rows(put(old.hidden, new.hidden, 0), cache, put(old.lengths, new.lengths, 0))
    occupancy = state.occupancy._replace(prefills=state.occupancy.prefills + 1)
    return state._replace(shelf=shelf_rows, prefilled=state.prefilled + fits * refill, occupancy=occupancy)


def _give_slots(state: _State, queue: _Queue, samples_per_prompt: int, form: TokenForm | None) -> _State:
    """Gives the first free slot of every shard to its next sample, if that is ready."""
    shards, slots = state.sample.shape
    samples = queue.keys.shape[1]
    able = _wants(state, queue) & (_ready(state, queue, samples_per_prompt) > 0)
    slot = jnp.where(able, jnp.argmax(state.sample == samples, axis=1), slots)  # [G]; `slots`: none
    shelf = state.shelf.hidden.shape[0] // shards
    prompt = state.given // samples_per_prompt  # [G]
    place = prompt % shelf

    def put(x: jax.Array, value: jax.Array) -> jax.Array:
        return jax.vmap(lambda x, i, v: x.at[i].set(v, mode="drop"))(x, slot, value)

    grouped = lambda x: x.reshape(shards, -1, *x.shape[1:])
    take = jax.vmap(lambda x, i: x[i])

    def move(x: jax.Array, source: jax.Array) -> jax.Array:
        return put(grouped(x), take(grouped(source), place)).reshape(x.shape)

    rows, source = state.rows, state.shelf
    cache = copy_rows(rows.cache, source.cache, place, slot)
    if isinstance(rows, Text):
        text = take(queue.tokens, jnp.minimum(prompt, queue.tokens.shape[1] - 1))
        text = jnp.pad(text, ((0, 0), (0, rows.tokens.shape[1] - text.shape[1])))
        tokens = put(grouped(rows.tokens), text).reshape(rows.tokens.shape)
        # Decoding begins with the prompt's last token, so that it can have drafts.
        moved: Rows | Text = Text(tokens, cache, move(rows.lengths, source.lengths - 1))
    else:
        text_place = rows.place
        if form is not None:
            begun = constrained.beginning(form, take(queue.limits, jnp.minimum(state.given, samples - 1)))
            text_place = jax.tree.map(lambda x, new: put(grouped(x), new).reshape(x.shape), rows.place, begun)
        moved = Rows(
            move(rows.hidden, source.hidden), cache, move(rows.lengths, source.lengths), text_place, rows.experts
        )
    return state._replace(
        rows=moved,
        sample=put(state.sample, state.given),
        written=put(state.written, jnp.zeros_like(slot)),
        given=state.given + able,
    )


def _decode(
    decoder: Decoder,
    weights: Weights,
    state: _State,
    queue: _Queue,
    sampling: SamplingConfig,
    draft_tokens: int,
    form: TokenForm | None,
) -> _State:
    """The next tokens in every slot, one without drafts; slots whose completions end are free afterwards."""
    shards, slots = state.sample.shape
    samples, limit = queue.keys.shape[1], sampling.max_new_tokens
    live = state.sample < samples  # [G, slots]
    look_up = jax.vmap(lambda x, i: x[jnp.minimum(i, samples - 1)])
    # [G, slots, T], of the tokens in their completions
    number = state.written[..., None] + jnp.arange(1 + draft_tokens)
    keys = look_up(queue.keys, state.sample).reshape(-1)
    keys = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)))(keys, number.reshape(-1, 1 + draft_tokens))
    rows: Rows | Text
    seen = state.seen
    if isinstance(state.rows, Text):
        tokens, log_probs, count, rows = speculative_step(decoder, weights, state.rows, keys, sampling)
    else:
        token, log_prob, rows = decode_step(decoder, weights, state.rows, keys[:, 0], sampling, seen, form)
        seen = and_seen(seen, token)
        tokens, log_probs, count = token[:, None], log_prob[:, None], jnp.ones_like(token)
    tokens, log_probs, count = (x.reshape(shards, slots, *x.shape[1:]) for x in (tokens, log_probs, count))
    ends = jnp.isin(tokens, jnp.asarray(sampling.eos_ids, jnp.int32))
    ends |= number + 1 >= look_up(queue.limits, state.sample)[..., None]
    ended_before = jnp.cumsum(ends, axis=-1) - ends > 0
    new = live[..., None] & (jnp.arange(1 + draft_tokens) < count[..., None]) & ~ended_before  # [G, slots, T]
    # What is not new points past the end of the outputs, where writes are dropped.
    write = jax.vmap(lambda x, i, t, value: x.at[i[:, None], t].set(value, mode="drop"))
    place = jnp.where(new, number, limit)
    written = state.written + new.sum(axis=-1)
    live_after = live & ~(ends & new).any(axis=-1)
    occupancy, experts = state.occupancy, state.experts
    if experts is not None:
        assert isinstance(rows, Rows) and rows.experts is not None, "of the token that was drawn"
        experts = write(experts, state.sample, place, rows.experts.reshape(shards, slots, 1, *rows.experts.shape[1:]))
    return state._replace(
        # A free slot's rows begin again at place 0: it reads and writes its first places until it is given away.
        rows=rows._replace(lengths=jnp.where(live_after.reshape(-1), rows.lengths, 0)),
        sample=jnp.where(live_after, state.sample, samples),
        written=written,
        tokens=write(state.tokens, state.sample, place, tokens),
        log_probs=write(state.log_probs, state.sample, place, log_probs),
        lengths=jax.vmap(lambda x, i, v: x.at[i].set(v, mode="drop"))(state.lengths, state.sample, written),
        occupancy=occupancy._replace(
            live=occupancy.live + live.sum(), steps=occupancy.steps + 1, tokens=occupancy.tokens + new.sum()
        ),
        seen=None if seen is None else seen & live_after.reshape(-1, 1),
        experts=experts,
    )
