"""Divergences between a teacher's and a student's next-token distributions, and the losses made of them.

Pure functions on arrays: bfloat16 or float32 in, float32 arithmetic and out. They give one value per token; `masked_mean`,
`token_weights` and `weighted_sum` reduce. Gradient flows to the student only. Functions of logits take any leading shape,
functions of hidden states take [B, T, D]. Nothing is broadcast.

Shapes, dtypes and options are checked at trace time. `beta`, `temperature` and all clips may be traced scalars, such as
schedules under `jit`: no gradient flows to them, and one out of its range makes the result NaN. All other options are
static.

The log-probability of a token below 0 or beyond the vocabulary is NaN. If tokens are marked so on purpose (-100 in many
data sets), name the mark as `ignore_index`: such tokens score 0 and weigh nothing.

Arrays may be sharded over a mesh of automatic or of explicit axes (as `jax.make_mesh` makes them); the vocabulary stays
split.

    beta = 0        KL(T || S)
    beta = 1        KL(S || T)
    0 < beta < 1    beta KL(T || M) + (1 - beta) KL(S || M),   M = beta T + (1 - beta) S

The end points are the plain KLs, not limits of the third line (which tends to 0 at both ends). Sources: GKD (arXiv
2306.13649) and TRL's GKD, GOLD and SDFT losses for the values; the RCSD release for top-k and the entry clip.
"""

from rcsd_jax.losses import emphasis, policy_gradient
from rcsd_jax.losses.from_hidden import (
    DivergenceStats,
    divergence_from_hidden,
    score_from_hidden,
    weighted_divergence_from_hidden,
)
from rcsd_jax.losses.from_logits import entropy, per_token_divergence, sampled_token_loss, token_log_probs
from rcsd_jax.losses.known import KnownLogProbs
from rcsd_jax.losses.log_probs_from_hidden import token_log_probs_from_hidden
from rcsd_jax.losses.options import SMALLEST_TEMPERATURE, DivergenceOptions
from rcsd_jax.losses.weighting import importance_weight, masked_mean, token_weights, weighted_sum

__all__ = [
    "SMALLEST_TEMPERATURE",
    "DivergenceOptions",
    "DivergenceStats",
    "KnownLogProbs",
    "divergence_from_hidden",
    "emphasis",
    "entropy",
    "importance_weight",
    "masked_mean",
    "per_token_divergence",
    "policy_gradient",
    "sampled_token_loss",
    "score_from_hidden",
    "token_log_probs",
    "token_log_probs_from_hidden",
    "token_weights",
    "weighted_divergence_from_hidden",
    "weighted_sum",
]
