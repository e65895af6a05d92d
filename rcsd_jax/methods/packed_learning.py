"""A batch's loss and gradient with the sequences of both roles packed into rows, so that work follows from real tokens.

    deal          completions go to the shards of rows, each shard has as many tokens        packing.py
    teacher       trips over its packed rows: hidden states that predict completion tokens
    student       trips over its packed rows: the loss and its gradient, added up

All of it is inside the jitted step: two `lax.while_loop`s whose lengths follow from the completions' lengths. The sequences of
a completion stay on its shard, so only tokens, masks and weights move between devices.

With `Recipe.split_rows`, the mesh's fsdp devices are one shard and share its rows. A row is then cut into as many pieces, wherever
that is. Only the decoder puts them together again; all that follows it sees pieces as rows of their own.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rcsd_jax import losses
from rcsd_jax.methods import packing, targets
from rcsd_jax.methods.contract import Completions, CompletionTokens, LossOptions, Weights, tokens_of
from rcsd_jax.methods.gradient import loss_and_gradient as gradient_of
from rcsd_jax.methods.networks import Better, Frozen, Mixture, Network, Several, Teacher, hidden_of, hidden_width
from rcsd_jax.methods.packing import Places, Rows
from rcsd_jax.methods.recipe import Recipe
from rcsd_jax.methods.score_both import of_teacher
from rcsd_jax.methods.state import Params, TrainState
from rcsd_jax.methods.teacher_scores import TeacherScores, after_teacher, better
from rcsd_jax.models.decoder import Decoder, apply_and_report
from rcsd_jax.models.layer import Statistics
from rcsd_jax.models.scoring import pack
from rcsd_jax.models.sharding import LAYOUTS, constrain, parts_of_a_row, row_shards
from rcsd_jax.sampling import Samples


class Sequences(NamedTuple):
    """Contexts with their completions, S of each of G shards, and where they stand in packed rows."""

    tokens: jax.Array  # [G, S, T] int32, real ones first
    context: jax.Array  # [G, S] int32, tokens before the completion
    completion: jax.Array  # [G, S] int32, which of the shard's completions follows
    number: jax.Array  # [G, S] int32, which of the completion's contexts it has, 0 for the role's own
    coefficient: jax.Array  # [G, S] float32, of its hidden states in the completion's
    places: Places
    # Static:
    rows: int  # of a trip on each shard
    row_length: int  # places of the longest row
    layout: str  # of `LAYOUTS`, how devices share rows
    recorded: bool = False  # the experts that the sampler recorded are theirs


class Trip(NamedTuple):
    """The pieces of a trip's rows, and which completion token each place predicts: those that predict one come first in their piece.

    Rows that are not split are one piece. The pieces of a row follow each other.
    """

    tokens: jax.Array  # [R, L] int32
    segment_ids: jax.Array  # [R, L] int32, of whole rows
    positions: jax.Array  # [R, L] int32
    order: jax.Array  # [R, L] int32, places of the piece
    completion: jax.Array  # [G, R / G, L] int32, of the shard, in `order`
    token: jax.Array  # [G, R / G, L] int32, of the completion; N where a place predicts none
    number: jax.Array  # [G, R / G, L] int32, of the context
    coefficient: jax.Array  # [G, R / G, L] float32
    experts: jax.Array | None = None  # [R, L, layers, k] int, recorded of the token in each place, see `router.routes`


def loss_and_gradient(
    recipe: Recipe, state: TrainState, frozen: Frozen, completions: Completions, weights: Weights
) -> tuple[tuple[jax.Array, dict[str, jax.Array]], Params]:
    """((loss, sums), gradient) of a whole batch; `sums` has the method's sums, and

    row_loss: [B] float32, the loss of each completion.
    scored: [2] float32, real tokens of both roles' sequences, and the places of the rows that were run.
    """
    layout = layout_of(recipe)
    shards = row_shards(layout)
    count = completions.taught.shape[0]
    order = packing.deal(_load(completions), shards)
    # From here [G, B / G, ...]: the completions of each shard.
    by_shard = lambda x: _over_devices(x[order].reshape(shards, count // shards, *x.shape[1:]), layout)
    completions, weights = jax.tree.map(by_shard, (completions, weights))
    rows = count // shards // recipe.microbatches  # of a trip, at most
    teacher = jax.lax.stop_gradient(recipe.roles.at(state, frozen).teacher)
    hidden, scored = None, jnp.zeros(2, jnp.float32)
    if teacher is not None:
        scores, scored = score_teacher(recipe, teacher, completions, rows)
        hidden = scores.hidden
        completions, weights = after_teacher(completions, weights, scores, recipe.loss)
    (loss, sums), gradient = learn_student(recipe, state, frozen, teacher, hidden, completions, weights, rows)
    sums["row_loss"] = jnp.zeros(count, jnp.float32).at[order].set(sums["row_loss"].reshape(-1))
    sums["scored"] += scored
    return (loss, sums), gradient


def layout_of(recipe: Recipe) -> str:
    """How devices share the rows of a trip, a key of `LAYOUTS`."""
    return "split" if recipe.split_rows else "train"


def score_teacher(
    recipe: Recipe, teacher: Teacher, completions: Completions, rows: int
) -> tuple[TeacherScores, jax.Array]:
    """The teacher's scores, see `score_both.teacher_scores`, hidden states [G, B / G, N, D]; and `scored`.

    With guidance they are sums over several contexts. Each context is a sequence of its own, with a coefficient. Of several teachers
    they are a tuple; each goes over its own completions, so that one without any makes no trip.
    """
    if isinstance(teacher, Several):
        each = [score_teacher(recipe, one, of_teacher(completions, i), rows) for i, one in enumerate(teacher.networks)]
        known = [scores.log_probs for scores, _ in each if scores.log_probs is not None]
        scores = TeacherScores(tuple(one.hidden for one, _ in each), sum(known[1:], start=known[0]) if known else None)
        return scores, jnp.stack([scored for _, scored in each]).sum(axis=0)
    if isinstance(teacher, Better):
        asked = dataclasses.replace(recipe, loss=dataclasses.replace(recipe.loss, contrasts=True))
        two = [score_teacher(asked, one, completions, rows) for one in (teacher.teacher, teacher.student)]
        return better(two[0][0], two[1][0]), two[0][1] + two[1][1]
    layout, loss = layout_of(recipe), recipe.loss
    sequences = teacher_sequences(completions, loss, rows, layout)
    shards, count, limit = completions.samples.tokens.shape
    config = teacher.decoder.config
    dtype = jnp.float32 if loss.guidance else config.dtype
    # Devices that share a shard's rows have a part of each hidden state.
    whole = lambda x: constrain(x, ("batch", None, None, "places"), LAYOUTS[layout])
    hidden = whole(jnp.zeros((shards, count, limit, hidden_width(teacher)), dtype))
    log_probs = None
    if loss.by_context:
        contexts = 1 + completions.without.tokens.shape[2]
        log_probs = _over_devices(jnp.zeros((shards, count, contexts, limit), jnp.float32), layout)

    def step(scores: TeacherScores, trip: Trip) -> TeacherScores:
        exact = score_trip(teacher, trip, layout)
        new = (exact.astype(dtype) * trip.coefficient.reshape(*exact.shape[:2], 1).astype(dtype)).astype(dtype)
        put = jax.vmap(lambda x, i, t, value: x.at[i, t].add(value, mode="drop"))
        new = whole(_of_shards(new.reshape(*trip.token.shape, -1), layout))
        hidden, log_probs = whole(put(scores.hidden, trip.completion, trip.token, new)), scores.log_probs
        if log_probs is not None:
            put_one = jax.vmap(lambda x, i, k, t, value: x.at[i, k, t].set(value, mode="drop"))
            of_tokens = _log_probs(teacher, exact, trip, completions, loss, layout)
            log_probs = put_one(log_probs, trip.completion, trip.number, trip.token, of_tokens)
            log_probs = _over_devices(log_probs, layout)
        return TeacherScores(hidden, log_probs)

    scores, scored = over_trips(step, TeacherScores(hidden, log_probs), sequences, completions, recipe.row_lengths)
    return jax.lax.stop_gradient(scores._replace(hidden=scores.hidden.astype(config.dtype))), scored


def _log_probs(
    teacher: Network | Mixture, hidden: jax.Array, trip: Trip, completions: Completions, loss: LossOptions, layout: str
) -> jax.Array:
    """Log-probabilities [G, R / G, L] of the tokens that a trip's hidden states [R, L, D] predict; 0 where they predict none."""
    samples = completions.samples
    there = trip.token < samples.tokens.shape[2]
    look_up = jax.vmap(lambda x, i, t: x.at[i, t].get(mode="clip"))
    tokens = _pieces(look_up(samples.tokens, trip.completion, trip.token), layout)
    log_probs, _ = losses.token_log_probs_from_hidden(
        hidden,
        teacher.head[:, : loss.shared_tokens],
        tokens,
        chunk_size=loss.chunk_size,
        temperature=loss.temperature,
        mask=_pieces(there, layout),
    )
    return _of_shards(log_probs.reshape(trip.token.shape), layout)


def score_trip(network: Network | Mixture, trip: Trip, layout: str = "train") -> jax.Array:
    """The final hidden states of a trip's pieces, those that predict completion tokens first in each piece: [R, L, D], see `hidden_of`."""
    hidden = hidden_of(network, lambda one: _through_decoder(one, trip, layout)[0])
    return jnp.take_along_axis(hidden, trip.order[..., None], axis=1)


def score_student_trip(network: Network, trip: Trip, layout: str) -> tuple[jax.Array, Statistics]:
    """`score_trip`, and what the layers report."""
    hidden, reported = _through_decoder(network, trip, layout)
    return jnp.take_along_axis(hidden, trip.order[..., None], axis=1), reported


def _through_decoder(network: Network, trip: Trip, layout: str) -> tuple[jax.Array, Statistics]:
    """The final hidden states of a trip's pieces, in their places, and what the layers report."""
    parts, length = parts_of_a_row(layout), trip.tokens.shape[1]

    def joined(x: jax.Array) -> jax.Array:
        rest = x.shape[2:]
        axes = ("batch", "places", *(None for _ in rest))
        return constrain(x.reshape(-1, parts * length, *rest), axes, LAYOUTS[layout])

    decoder = Decoder(dataclasses.replace(network.decoder.config, layout=layout)) if parts > 1 else network.decoder
    hidden, _, reported = apply_and_report(
        decoder,
        network.variables,
        joined(trip.tokens),
        segment_ids=joined(trip.segment_ids),
        positions=joined(trip.positions),
        experts=None if trip.experts is None else joined(trip.experts),
    )
    return _over_devices(hidden.reshape(*trip.tokens.shape, -1)), reported


def learn_student(
    recipe: Recipe,
    state: TrainState,
    frozen: Frozen,
    teacher: Teacher | None,
    teacher_hidden: Any,
    completions: Completions,
    weights: Weights,
    rows: int,
) -> tuple[tuple[jax.Array, dict[str, jax.Array]], Params]:
    """((loss, sums), gradient) from the student's trips; `row_loss` is [G, B / G]."""
    layout = layout_of(recipe)
    sequences = student_sequences(completions, rows, layout)
    of_completions = jax.vmap(tokens_of)(completions)

    def of_trip(trip: Trip) -> tuple[tuple[jax.Array, dict[str, jax.Array]], Params]:
        there, at = trip.token < of_completions.tokens.shape[2], (trip.completion, trip.token)
        look_up = jax.vmap(lambda x, i, t: x.at[i, t].get(mode="clip"))
        tokens = jax.tree.map(lambda x: _pieces(look_up(x, *at), layout), of_completions)
        counts = Weights(*(_pieces(jnp.where(there, look_up(x, *at), 0.0), layout) for x in weights))
        hidden = None
        if teacher_hidden is not None:
            whole = lambda x: constrain(look_up(x, *at), ("batch", None, None, "places"), LAYOUTS[layout])
            hidden = jax.tree.map(lambda x: _pieces(whole(x), layout), teacher_hidden)
        (loss, sums), gradient = trip_loss_and_gradient(recipe, state, frozen, teacher, hidden, trip, tokens, counts)
        add = jax.vmap(lambda x, i, value: x.at[i].add(value))
        nothing = jnp.zeros(completions.taught.shape, jnp.float32)
        row_loss = add(nothing, trip.completion, sums.pop("token_loss").reshape(trip.token.shape))
        return (loss, sums | {"row_loss": row_loss}), gradient

    def step(total: Any, trip: Trip) -> Any:
        return jax.tree.map(jnp.add, total, of_trip(trip))

    shortest = parts_of_a_row(layout)
    example = jax.eval_shape(lambda: _trip(sequences, completions, jnp.int32(0), shortest))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(of_trip, example))
    ((loss, sums), gradient), scored = over_trips(step, zeros, sequences, completions, recipe.row_lengths)
    return (loss, sums | {"scored": scored}), gradient


def trip_loss_and_gradient(
    recipe: Recipe,
    state: TrainState,
    frozen: Frozen,
    teacher: Teacher | None,
    teacher_hidden: Any,
    trip: Trip,
    tokens: CompletionTokens,
    weights: Weights,
) -> tuple[tuple[jax.Array, dict[str, jax.Array]], Params]:
    """((loss, sums), gradient) of the method on a trip's pieces: `teacher_hidden` [R, L, D], tokens and weights [R, L] in its order."""

    student_hidden = functools.partial(score_student_trip, trip=trip, layout=layout_of(recipe))
    return gradient_of(recipe, state, frozen, teacher, teacher_hidden, student_hidden, tokens, weights)


def student_sequences(completions: Completions, rows: int, layout: str = "train") -> Sequences:
    """One for each completion of [G, B / G]; a trip has at most so many rows of the longest."""
    c = completions
    contexts = c.student_tokens[:, :, None], c.student_mask[:, :, None]
    ones = jnp.ones((*c.taught.shape, 1), jnp.float32)
    sequences = _sequences(c, *contexts, ones, ones > 0, rows, layout)
    return sequences._replace(recorded=c.samples.experts is not None)


def teacher_sequences(completions: Completions, loss: LossOptions, rows: int, layout: str = "train") -> Sequences:
    """The teacher's of each completion of [G, B / G]: one, or more contexts; a trip has at most so many rows of the longest.

    Their order is the teacher's own context, further ones, and what the student sees. Contexts that nothing needs are left out.
    """
    c = completions
    weights = targets.coefficients(loss.target, loss.guidance, c.without.weights)
    contexts = [(c.teacher_tokens[:, :, None], c.teacher_mask[:, :, None])]
    coefficients, needed = [weights.own], [(weights.own != 0) | loss.by_context]
    if c.without.tokens.shape[2] and (weights.further is not None or loss.by_context):
        contexts.append((c.without.tokens, c.without.mask))
        there = c.without.weights != 0
        further = jnp.zeros_like(c.without.weights) if weights.further is None else weights.further
        coefficients.append(further)
        needed.append((further != 0) | (there & loss.by_context))
    if weights.student is not None:
        contexts.append((c.student_tokens[:, :, None], c.student_mask[:, :, None]))
        coefficients.append(weights.student)
        needed.append(weights.student != 0)
    longest = max(tokens.shape[3] for tokens, _ in contexts)
    padded = [[_pad(x, longest) for x in both] for both in contexts]
    tokens, mask = (jnp.concatenate(x, axis=2) for x in zip(*padded, strict=True))
    coefficient, of_use = (jnp.concatenate(x, axis=2) for x in (coefficients, needed))
    return _sequences(c, tokens, mask, coefficient, of_use, rows, layout)


def _sequences(
    completions: Completions,
    tokens: jax.Array,
    mask: jax.Array,
    coefficient: jax.Array,
    needed: jax.Array,
    rows: int,
    layout: str,
) -> Sequences:
    """Contexts [G, B / G, C, Q], each followed by its completion, with coefficients [G, B / G, C], those that are needed [G, B / G, C]."""
    samples = completions.samples
    shards, count, contexts, _ = tokens.shape

    def joined(context: jax.Array, completion: jax.Array) -> jax.Array:
        completion = jnp.broadcast_to(completion[:, :, None], (*context.shape[:3], completion.shape[2]))
        return jnp.concatenate([context, completion], axis=3).reshape(shards * count * contexts, -1)

    packed, lengths = pack(joined(tokens, samples.tokens), joined(mask, samples.mask))
    flat = lambda x: jnp.broadcast_to(x, (shards, count, contexts)).reshape(shards, count * contexts)
    of_completion = samples.mask.sum(axis=2).astype(jnp.int32)[..., None]
    lengths = flat(lengths.reshape(shards, count, contexts))
    # The last token of a completion predicts none of it. Of completions that nothing is learnt from, nothing is needed.
    learnt = flat(completions.completion_mask.any(axis=2, keepdims=True)) & flat(needed)
    parts = parts_of_a_row(layout)
    rows, row_length = packing.largest_trip(packed.shape[1], rows, parts)
    places = packing.place(jnp.where(learnt, lengths - 1, 0), row_length, rows, level=parts > 1)
    which = flat(jnp.arange(count, dtype=jnp.int32)[None, :, None])
    number = flat(jnp.arange(contexts, dtype=jnp.int32)[None, None, :])
    packed = packed.reshape(shards, count * contexts, -1)
    before = lengths - flat(of_completion)
    return Sequences(packed, before, which, number, flat(coefficient), places, rows, row_length, layout)


def over_trips(
    step: Callable[[Any, Trip], Any],
    carry: Any,
    sequences: Sequences,
    completions: Completions,
    row_lengths: int,
) -> tuple[Any, jax.Array]:
    """The carry after `step(carry, trip)` for all trips, and [2] float32: real tokens, and places of the rows."""
    lengths = packing.row_lengths(sequences.row_length, row_lengths, parts_of_a_row(sequences.layout))
    counts = packing.trips(sequences.places, sequences.rows, lengths)
    most = -(-sequences.tokens.shape[1] // sequences.rows)  # trips, if no two sequences fit into one row
    trip = jnp.int32(0)
    # A loop for each length, and not one with a choice in it, because a loop's carry is updated in place. The constant bound tells
    # whoever reads the program how often it runs at most.
    for length, end in zip(reversed(lengths), jnp.cumsum(counts[::-1]), strict=True):

        def body(state: tuple[jax.Array, Any], length: int = length) -> tuple[jax.Array, Any]:
            trip, carry = state
            return trip + 1, step(carry, _trip(sequences, completions, trip, length))

        more = lambda state, end=end: (state[0] < most) & (state[0] < end)
        trip, carry = jax.lax.while_loop(more, body, (trip, carry))
    run = (counts * jnp.asarray(lengths, jnp.float32)).sum() * len(sequences.tokens) * sequences.rows
    return carry, jnp.stack([sequences.places.length.sum().astype(jnp.float32), run])


def _trip(sequences: Sequences, completions: Completions, trip: jax.Array, length: int) -> Trip:
    row: Rows = packing.rows_of(sequences.places, trip, sequences.rows, length)
    layout, parts = sequences.layout, parts_of_a_row(sequences.layout)
    # [G, R / G, ...] -> [G, pieces of these rows, ...]
    cut = lambda x: _of_shards(x.reshape(x.shape[0], -1, x.shape[2] // parts), layout)
    none = completions.samples.tokens.shape[2]
    take = jax.vmap(lambda x, i: x[i])
    tokens = jax.vmap(lambda x, i, t: x[i, t])(sequences.tokens, row.sequence, row.place)
    # The place before a completion's first token predicts that.
    token = row.place - (take(sequences.context, row.sequence) - 1)
    predicts = row.real & (token >= 0)
    order = jnp.argsort(~cut(predicts), axis=2, stable=True)
    ordered = lambda x: jnp.take_along_axis(cut(x), order, axis=2)
    pieces = lambda x: _pieces(cut(x.reshape(tokens.shape)), layout)
    experts = None
    if sequences.recorded:
        experts = _recorded(completions.samples, take(sequences.completion, row.sequence), token - 1, row.real)
        rest = experts.shape[3:]
        experts = experts.reshape(experts.shape[0], -1, experts.shape[2] // parts, *rest)
        experts = _pieces(_of_shards(experts, layout), layout)
    return Trip(
        pieces(jnp.where(row.real, tokens, 0)),
        pieces(row.segment_ids),
        pieces(row.positions),
        _pieces(order, layout),
        ordered(take(sequences.completion, row.sequence)),
        ordered(jnp.where(predicts, token, none)),
        ordered(take(sequences.number, row.sequence)),
        ordered(take(sequences.coefficient, row.sequence)),
        experts,
    )


def _recorded(samples: Samples, completion: jax.Array, token: jax.Array, real: jax.Array) -> jax.Array:
    """The recorded experts [G, R / G, L, layers, k] of places that hold token `token` of a completion; none before its first."""
    assert samples.experts is not None, "the sampler recorded them"
    found = jax.vmap(lambda x, i, t: x.at[i, t].get(mode="clip"))(samples.experts, completion, jnp.maximum(token, 0))
    none = jnp.iinfo(found.dtype).max
    return jnp.where((real & (token >= 0))[..., None, None], found, none)


def _load(completions: Completions) -> jax.Array:
    """What a completion costs, [B] float32: passes over tokens, the student's with its backward pass as three."""
    c = completions
    of_completion = c.samples.mask.sum(axis=1)
    student, teacher = c.student_mask.sum(axis=1) + of_completion, c.teacher_mask.sum(axis=1) + of_completion
    return jnp.where(c.completion_mask.any(axis=1), 3.0 * student + teacher, 0.0)


def _pieces(x: jax.Array, layout: str) -> jax.Array:
    """The pieces [G, R / G, L, ...] of all shards as rows over the devices, [R, L, ...]."""
    return _over_devices(_of_shards(x, layout).reshape(-1, *x.shape[2:]))


def _of_shards(x: jax.Array, layout: str) -> jax.Array:
    """Pieces [G, R / G, L, ...] on the devices that have them in the decoder."""
    return constrain(x, ("batch", "places", *[None] * (x.ndim - 2)), LAYOUTS[layout])


def _over_devices(x: jax.Array, layout: str = "train") -> jax.Array:
    """Its first axis, shards or rows, over the devices; pieces [R, L, ...] are rows of their own in "train"."""
    return constrain(x, ("batch", *[None] * (x.ndim - 1)), LAYOUTS[layout])


def _pad(x: jax.Array, length: int) -> jax.Array:
    """Contexts [G, B / G, C, Q] to a length; what is added is masked out."""
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (length - x.shape[3], 0)))
