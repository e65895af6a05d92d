"""Completions of networks that a test has at hand, as the step's `draw` makes them."""

import jax

from rcsd_jax.methods import rollout


def _completions(networks, batch, key, options):
    keys = rollout.row_keys(batch, key)
    samples = rollout.draw(networks, batch, keys, options)
    analysis = rollout.draw_analysis(rollout.analyst(networks, options), batch, keys, options)
    return rollout.assemble(batch, samples, analysis, options)


completions_of = jax.jit(_completions, static_argnums=3)
