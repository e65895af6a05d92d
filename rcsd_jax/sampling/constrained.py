"""Sampling texts of a form: which tokens each row may draw next, and where it stands after the one drawn. Pure, on the devices.

The form's tables are arguments of the program, so one program serves all forms of equal shapes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rcsd_jax.sampling.token_form import ANY, SAME_SPAN, SHORTEST, TokenForm


class Place(NamedTuple):
    """Where B rows stand in their texts.

    Attributes:
      state: [B] int32.
      left: [B] int32, how many tokens may still be drawn.
      spans: [B] int32, how many spans are finished.
      span: [B, 2] uint32, the polynomials of all and of sure letters in the current span.
      unsure: [B] bool, it may have letters that are not sure.
      seen: [B, K, 2] uint32, the polynomials of the finished spans.
      seen_unsure: [B, K] bool.
    """

    state: jax.Array
    left: jax.Array
    spans: jax.Array
    span: jax.Array
    unsure: jax.Array
    seen: jax.Array
    seen_unsure: jax.Array


def beginning(form: TokenForm, left: jax.Array) -> Place:
    """Rows before their first token, with at most `left` [B] to come, at least `form.shortest`."""
    return _place(form, form.start, left)


def after_the_end(form: TokenForm, rows: int) -> Place:
    """Rows that have no text: they draw end tokens."""
    return _place(form, form.done, jnp.zeros(rows, jnp.int32))


def allowed(form: TokenForm, place: Place, vocab_size: int) -> jax.Array:
    """[B, V] bool: the tokens that may follow, at least one a row."""
    form = _arrays(form)
    held = jnp.arange(place.seen.shape[1]) < place.spans[:, None]  # [B, K]

    def is_held(span: jax.Array) -> jax.Array:
        """[B, ...] bool: whether spans [B, ..., 2] may be among those seen."""
        rows, most = held.shape
        shape = (rows, *[1] * (span.ndim - 2), most)
        same = place.seen.reshape(*shape, 2) == span[..., None, :]
        unsure = place.seen_unsure | place.unsure[:, None]
        return (jnp.where(unsure.reshape(shape), same[..., 1], same[..., 0]) & held.reshape(shape)).any(axis=-1)

    repeats = is_held(place.span)
    short = place.left < form.reach[place.state, place.spans]
    kind = jnp.where(short, SHORTEST, jnp.where(repeats, SAME_SPAN, ANY))
    words = form.bits[form.row[place.state, place.spans, kind]]  # [B, W]
    bits = (words[:, None, :] >> jnp.arange(32, dtype=jnp.uint32)[:, None]) & 1
    bits = bits.reshape(len(words), -1)[:, :vocab_size] != 0
    # A span that must end now and is not new is given an ending that makes it new.
    stuck = short & repeats & form.can_end[place.state]
    longer = place.span[:, None] * form.fresh_factor + form.fresh_term  # [B, F, 2]
    token = form.fresh[(~is_held(longer)).argmax(axis=1)]
    return jnp.where(stuck[:, None], jnp.arange(vocab_size) == token[:, None], bits)


def constrained_logits(form: TokenForm, place: Place, logits: jax.Array) -> jax.Array:
    """Logits [B, V] with those of tokens that may not follow at -inf. So what is drawn is drawn from the rest, renormalised."""
    return jnp.where(allowed(form, place, logits.shape[-1]), logits, -jnp.inf)


def advanced(form: TokenForm, place: Place, tokens: jax.Array) -> Place:
    """The rows after tokens [B] that were allowed."""
    form = _arrays(form)
    state = form.next_state[place.state, form.token_class[tokens]].astype(jnp.int32)
    within = form.span[place.state]
    ends = within & ~form.span[state]
    span = jnp.where(within[:, None], place.span * form.factor[tokens] + form.term[tokens], jnp.uint32(0))
    # The token that ends a span has no letters of it.
    here = (jnp.arange(place.seen.shape[1]) == place.spans[:, None]) & ends[:, None]
    return Place(
        state=state,
        left=place.left - 1,
        spans=place.spans + ends,
        span=span,
        unsure=within & (place.unsure | form.unsure[tokens]),
        seen=jnp.where(here[..., None], place.span[:, None], place.seen),
        seen_unsure=jnp.where(here, place.unsure[:, None], place.seen_unsure),
    )


def _arrays(form: TokenForm) -> Any:
    """The tables as JAX's arrays, which traced arrays can index."""
    return jax.tree.map(jnp.asarray, form)


def _place(form: TokenForm, state: Any, left: jax.Array) -> Place:
    rows, most = left.shape[0], form.row.shape[1] - 1
    zeros = lambda *shape, dtype: jnp.zeros((rows, *shape), dtype)
    return Place(
        state=zeros(dtype=jnp.int32) + state,
        left=left.astype(jnp.int32),
        spans=zeros(dtype=jnp.int32),
        span=zeros(2, dtype=jnp.uint32),
        unsure=zeros(dtype=bool),
        seen=zeros(most, 2, dtype=jnp.uint32),
        seen_unsure=zeros(most, dtype=bool),
    )
