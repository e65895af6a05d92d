"""Packing against plain NumPy: every real token once, in order, in few and balanced rows."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rcsd_jax.methods import packing

LENGTHS = np.asarray([[7, 0, 3, 10, 2, 1, 5, 4], [1, 1, 9, 0, 0, 0, 10, 2]], np.int32)
LONGEST = 10


@pytest.fixture(scope="module")
def places():
    return packing.place(jnp.asarray(LENGTHS), LONGEST, 1)


def first_fit_decreasing(lengths, row_length):
    """(row, start) of each sequence, -1 for none, with rows sorted by fill."""
    fill, found = [], {}
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if lengths[i]:
            row = next((r for r, used in enumerate(fill) if used + lengths[i] <= row_length), len(fill))
            fill += [0] * (row == len(fill))
            found[i] = row, fill[row]
            fill[row] += lengths[i]
    order = sorted(range(len(fill)), key=lambda r: (-fill[r], r))
    return [(order.index(found[i][0]), found[i][1]) if i in found else None for i in range(len(lengths))], fill


@pytest.mark.parametrize("seed", range(3))
def test_sequences_go_where_first_fit_decreasing_puts_them(seed):
    lengths = np.random.default_rng(seed).integers(0, 30, (3, 12)).astype(np.int32)
    places = packing.place(jnp.asarray(lengths), 32, 1)
    for shard, row in enumerate(lengths):
        want, fill = first_fit_decreasing(row.tolist(), 32)
        at = [
            (int(r), int(s)) if n else None for r, s, n in zip(places.row[shard], places.start[shard], row, strict=True)
        ]
        assert at == want
        assert places.fill[shard].tolist() == sorted(fill, reverse=True) + [0] * (12 - len(fill))
        assert all(int(r) == 12 for r, n in zip(places.row[shard], row, strict=True) if not n)


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_every_token_stands_in_one_place_of_the_trips(rows):
    places = packing.place(jnp.asarray(LENGTHS), LONGEST, rows)
    lengths = packing.row_lengths(LONGEST, 2)
    assert lengths == (8, 10)
    counts = packing.trips(places, rows, lengths)
    seen, trip = [], 0
    for length, count in reversed(list(zip(lengths, counts.tolist(), strict=True))):
        for _ in range(count):
            one = packing.rows_of(places, trip, rows, length)
            assert one.sequence.shape == (2, rows, length)
            for g, r, p in np.argwhere(np.asarray(one.real)):
                seen.append((int(g), int(one.sequence[g, r, p]), int(one.place[g, r, p])))
            trip += 1
    assert sorted(seen) == [(g, s, p) for g, row in enumerate(LENGTHS) for s, n in enumerate(row) for p in range(n)]
    used = max(len(first_fit_decreasing(row.tolist(), LONGEST)[1]) for row in LENGTHS)
    assert trip == -(-used // rows)  # no trip is empty on all shards


def test_a_trip_has_the_shortest_length_that_holds_its_rows():
    places = packing.place(jnp.asarray([[10, 8, 3], [10, 9, 1]]), 10, 1)
    assert packing.trips(places, 1, (4, 8, 10)).tolist() == [1, 0, 2]  # fills: 10 and 10, 8 and 10, 3 and 0
    assert packing.trips(packing.place(jnp.asarray([[4, 0]]), 10, 1), 1, (4, 8, 10)).tolist() == [1, 0, 0]
    assert packing.trips(packing.place(jnp.zeros((2, 3), jnp.int32), 10, 1), 1, (4, 8, 10)).tolist() == [0, 0, 0]


def test_segments_and_positions_of_a_row(places):
    one = packing.rows_of(places, 1, 1, LONGEST)  # the second row of each shard
    for shard in range(2):
        want, _ = first_fit_decreasing(LENGTHS[shard].tolist(), LONGEST)
        segments, positions = np.zeros(LONGEST, int), np.zeros(LONGEST, int)
        for s, at in enumerate(want):
            if at is not None and at[0] == 1:
                span = slice(at[1], at[1] + LENGTHS[shard][s])
                segments[span], positions[span] = 1, np.arange(LENGTHS[shard][s])
        segments = np.where(segments, np.cumsum(positions == 0), 0)  # counted along the row
        assert one.segment_ids[shard].tolist() == segments.tolist()
        assert one.positions[shard].tolist() == positions.tolist()


@pytest.mark.parametrize("shards", [1, 2, 4, 8])
def test_shards_get_as_many_completions_and_about_as_many_tokens(shards):
    load = jnp.asarray(np.random.default_rng(0).lognormal(size=64), jnp.float32)
    order = jax.jit(functools.partial(packing.deal, shards=shards))(load)
    assert sorted(order.tolist()) == list(range(64))
    of_shards = np.asarray(load)[np.asarray(order)].reshape(shards, -1).sum(axis=1)
    assert of_shards.max() <= 1.05 * of_shards.mean()


def test_a_shard_that_has_all_its_completions_gets_no_more():
    order = packing.deal(jnp.asarray([9.0, 1.0, 1.0, 1.0]), 2)
    assert order.tolist() == [0, 3, 1, 2]  # the first shard has one more completion, though it has the largest load


def test_rows_of_the_last_trip_are_about_equally_full():
    lengths = [9, 8, 4, 3, 2, 1, 1]  # rows 10, 10 and 8 by first fit
    places = packing.place(jnp.asarray([lengths]), 10, 2)
    assert places.fill[0, :4].tolist() == [10, 10, 4, 4]  # 4 and 3 + 1
    assert packing.trips(places, 2, (4, 8, 10)).tolist() == [1, 0, 1]
    alone = packing.place(jnp.asarray([lengths]), 10, 8)
    assert alone.fill[0].tolist() == [9, 8, 4, 3, 2, 1, 1]  # one trip of many rows


@pytest.mark.parametrize("parts", [2, 8])
def test_all_trips_over_shared_rows_are_about_equally_full(parts):
    lengths = np.random.default_rng(parts).integers(100, 400, (2, 24)).astype(np.int32)
    rows, row_length = packing.largest_trip(400, 6, parts)
    assert rows == 1 and row_length % parts == 0 and 2400 <= row_length < 3072
    places = packing.place(jnp.asarray(lengths), row_length, 1, level=True)
    used = (np.asarray(places.fill) > 0).sum(axis=1)
    assert used[0] == used[1] == -(-int(lengths.sum(axis=1).max()) // row_length) > 1
    for shard in range(2):
        fill = np.asarray(places.fill[shard, : used[shard]])
        assert (np.diff(fill) <= 0).all() and fill[0] < 1.05 * fill[-1] and fill[0] <= row_length
        for row in range(used[shard]):  # without gaps or overlaps
            mine = np.asarray(places.row[shard]) == row
            order = np.argsort(np.asarray(places.start[shard])[mine])
            starts, own = np.asarray(places.start[shard])[mine][order], lengths[shard][mine][order]
            assert starts.tolist() == np.cumsum([0, *own])[:-1].tolist() and own.sum() == fill[row]
    lengths_of = packing.row_lengths(row_length, 4, parts)
    assert min(lengths_of) > row_length / 2 and lengths_of[-1] == row_length
    assert packing.trips(places, 1, lengths_of).sum() == used[0]
    assert all(length % parts == 0 for length in lengths_of)
