"""How many tokens both roles score in an update, and how many places the padded arrays have for them."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from rcsd_jax.methods.contract import Completions
from rcsd_jax.methods.networks import Roles


def of_scoring(roles: Roles, guidance: float, completions: Completions) -> dict[str, jax.Array]:
    """`real_tokens` and `padded_tokens` of all sequences that an update scores: prompts with completions, of both roles.

    Args:
      roles: of the recipe.
      guidance: of the loss; with it the teacher also scores the completions without what guides it.
      completions: of the batch, [B, ...].

    Returns:
      Two [] int32. Padding counts only in the second.
    """
    c, answer = completions, completions.samples.mask
    masks = [c.student_mask, answer]
    if roles.teacher is not None:
        masks += [c.teacher_mask, answer]
    count = c.without.tokens.shape[1]
    if roles.teacher is not None and guidance:
        masks += [c.without.mask, *[answer] * count] if count else [c.student_mask, answer]
    real = sum(mask.sum() for mask in masks)
    return {"real_tokens": real, "padded_tokens": jnp.int32(sum(mask.size for mask in masks))}
