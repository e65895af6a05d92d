"""What a decoder says of a completion's tokens by one plain pass over prompt and completion: the reference of other ways to score."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from rcsd_jax.models.head import head_matrix

LENGTH = 256  # of the compiled pass, and its multiples


def logits_after(decoder, variables, prompt, ids):
    """[N, V] float32: the logits of each of the N tokens after a prompt, both without padding."""
    tokens = np.concatenate([prompt, ids]).astype(np.int32)
    rest = np.zeros(-len(tokens) % LENGTH, np.int32)  # what comes after changes nothing, and one length compiles once
    logits = _logits(decoder, variables, np.concatenate([tokens, rest]))
    return np.asarray(logits)[len(prompt) - 1 : len(tokens) - 1]


@functools.partial(jax.jit, static_argnums=0)
def _logits(decoder, variables, tokens):
    """[T, V] of a sequence [T]."""
    ones, places = jnp.ones_like(tokens)[None], jnp.arange(tokens.size, dtype=jnp.int32)[None]
    hidden, _ = decoder.apply(variables, tokens[None], segment_ids=ones, positions=places)
    return hidden[0] @ head_matrix(decoder.config, variables["params"])
