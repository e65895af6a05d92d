"""sampling/short_prefill.py: what `prefill` gives, at the shortest length that holds the prompts."""

import dataclasses

import jax
import numpy as np
import pytest

from rcsd_jax.models.declarations import init_params
from rcsd_jax.models.decoder import Decoder
from rcsd_jax.sampling.decoding import prefill
from rcsd_jax.sampling.short_prefill import lengths, short_prefill
from tests.sampling.test_continuous_batching import CONFIG, longer

short = jax.jit(short_prefill, static_argnums=0, static_argnames="int8")
whole = jax.jit(prefill, static_argnums=(0, 4), static_argnames="int8")


@pytest.mark.parametrize("longest", [1, 15, 16, 17, 33, 128, 2048, 2047])
def test_lengths_grow_to_the_longest(longest):
    steps = lengths(longest)
    assert steps[-1] == longest and list(steps) == sorted(set(steps)) and len(steps) <= 4
    assert all(length % 16 == 0 for length in steps[:-1])


@pytest.mark.parametrize("layers, int8", [(6, False), (2, True)], ids=["scanned", "unrolled, int8 cache"])
def test_hidden_states_and_caches_are_those_of_a_whole_prefill(layers, int8):
    config = dataclasses.replace(CONFIG, num_layers=layers)
    _, tokens, mask, _ = longer(config)
    variables = {"params": init_params(config, jax.random.key(0))}
    taken = set()
    for rows in ([0, 3, 8], [9, 0, 12], [23, 1, 2], [7, 8, 10]):
        ours, theirs = (
            f(Decoder(config), variables, tokens[rows], mask[rows], *more, int8=int8)
            for f, more in ((short, ()), (whole, (40,)))
        )
        np.testing.assert_array_equal(ours.lengths, mask[rows].sum(axis=1))
        np.testing.assert_array_equal(ours.lengths, theirs.lengths)
        np.testing.assert_allclose(ours.hidden, theirs.hidden, rtol=0, atol=1e-5)
        there = (np.arange(40) < np.asarray(ours.lengths)[:, None])[:, :, None]  # [B, S, 1]
        for x, y in zip(jax.tree.leaves(ours.cache), jax.tree.leaves(theirs.cache), strict=True):
            assert x.shape == y.shape and x.dtype == y.dtype
            seen = there if x.shape[3] == 40 else True  # all of an int8 cache's scales
            x, y = (np.where(seen, np.asarray(z, np.float32), 0) for z in (x, y))
            np.testing.assert_allclose(x, y, rtol=0, atol=1 if int8 and x.shape[3] == 40 else 1e-5)
        # Places after the length are as they were made; those of padding before it have keys.
        written = np.asarray(ours.cache.k[0]).any(axis=(0, 1, 2, 4))
        taken.add(int(written.sum()))
        assert written[: written.sum()].all() and written.sum() == next(
            n for n in lengths(40) if n >= ours.lengths.max()
        )
    assert taken == {16, 32, 40}
