"""Hidden states that predict a completion after a prompt."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from rcsd_jax.models.decoder import Decoder, positions_from_mask


def completion_hidden(
    decoder: Decoder,
    variables: Any,
    prompt_tokens: jax.Array,
    prompt_mask: jax.Array,
    completion_tokens: jax.Array,
    completion_mask: jax.Array,
) -> jax.Array:
    """Final hidden states that predict the completion; differentiable in `variables`.

    Args:
      decoder: the model.
      variables: its variables.
      prompt_tokens, prompt_mask: [B, P] int32 and bool; padding may stand anywhere but in the last place, which
        predicts token 0.
      completion_tokens, completion_mask: [B, N] int32 and bool.

    Returns:
      [B, N, D] in the decoder's dtype; the t-th predicts completion token t, so the last completion token is not an
      input that matters.
    """
    tokens = jnp.concatenate([prompt_tokens, completion_tokens], axis=1)
    mask = jnp.concatenate([prompt_mask, completion_mask], axis=1)
    hidden, _ = decoder.apply(
        variables, tokens, segment_ids=mask.astype(jnp.int32), positions=positions_from_mask(mask)
    )
    first = prompt_tokens.shape[1] - 1
    return hidden[:, first : first + completion_tokens.shape[1]]
