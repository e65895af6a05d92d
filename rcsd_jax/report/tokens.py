"""What both roles say of single tokens: divergence, log-probabilities, the likeliest five of each."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rcsd_jax import losses
from rcsd_jax.contexts import pad_left, pad_right
from rcsd_jax.models.decoder import Decoder, head_matrix
from rcsd_jax.models.scoring import completion_hidden

TOP = 5


class Scores(NamedTuple):
    """Of one completion of N tokens; probabilities at the temperature at which both roles are compared."""

    divergence: np.ndarray  # [N] float32, nats
    student_log_prob: np.ndarray  # [N] float32, of the token that was written
    teacher_log_prob: np.ndarray  # [N] float32
    student_top: tuple[np.ndarray, np.ndarray]  # token ids [N, TOP] int32 and their probabilities [N, TOP] float32
    teacher_top: tuple[np.ndarray, np.ndarray]


def score_tokens(
    decoder: Decoder,
    student: Any,
    teacher: Any,
    student_prompts: Sequence[np.ndarray],
    teacher_prompts: Sequence[np.ndarray],
    completions: Sequence[np.ndarray],
    *,
    beta: float = 0.0,
    temperature: float = 1.0,
    batch_size: int = 8,
    pad_to: int = 64,
    pad_id: int = 0,
    chunk_size: int = 64,
) -> list[Scores]:
    """Scores every completion after its prompts in both roles.

    Args:
      decoder: the model of both roles.
      student, teacher: their variables.
      student_prompts, teacher_prompts: token ids of each prompt.
      completions: token ids of each; the end token included if it shall be looked at.
      beta: of `losses.per_token_divergence`; nothing is clipped or left out.
      temperature: divides the logits of both roles.
      batch_size: rows at a time.
      pad_to: lengths are rounded up to multiples, one for each argument and call.
      pad_id: any token id.
      chunk_size: positions of a batch whose logits are in memory at once.
    """

    def room(rows: Sequence[np.ndarray]) -> int:
        return -(-max(map(len, rows)) // pad_to) * pad_to

    if not completions:
        return []
    lengths = [room(rows) for rows in (student_prompts, teacher_prompts, completions)]
    options = (beta, temperature, chunk_size)
    found: list[Scores] = []
    for start in range(0, len(completions), batch_size):
        rows = [
            (start + i) % len(completions) for i in range(batch_size)
        ]  # the last batch is filled with the first rows
        prompts = [
            pad_left([prompts[i] for i in rows], length, pad_id)
            for prompts, length in zip((student_prompts, teacher_prompts), lengths, strict=False)
        ]
        tokens, mask = pad_right([completions[i] for i in rows], lengths[2], pad_id)
        scores = jax.device_get(_score(decoder, options, student, teacher, *prompts[0], *prompts[1], tokens, mask))
        found += [_row(scores, at, len(completions[i])) for at, i in enumerate(rows[: len(completions) - start])]
    return found


def _row(scores: Scores, at: int, length: int) -> Scores:
    return jax.tree.map(lambda x: x[at, :length], scores)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _score(
    decoder: Decoder,
    options: tuple[float, float, int],
    student: Any,
    teacher: Any,
    student_tokens: jax.Array,
    student_mask: jax.Array,
    teacher_tokens: jax.Array,
    teacher_mask: jax.Array,
    tokens: jax.Array,
    mask: jax.Array,
) -> Scores:
    beta, temperature, chunk_size = options
    after_student = completion_hidden(decoder, student, student_tokens, student_mask, tokens, mask)  # [B, N, D]
    after_teacher = completion_hidden(decoder, teacher, teacher_tokens, teacher_mask, tokens, mask)
    heads = [head_matrix(decoder.config, variables["params"]) for variables in (student, teacher)]

    def one_chunk(chunk: tuple[jax.Array, ...]) -> Scores:
        hidden_s, hidden_t, ids = chunk  # [B, C, D], [B, C, D], [B, C]
        logits = [(h @ head).astype(jnp.float32) for h, head in zip((hidden_s, hidden_t), heads, strict=True)]
        log_probs = [jax.nn.log_softmax(x / temperature) for x in logits]
        of_token = [jnp.take_along_axis(x, ids[..., None], axis=-1)[..., 0] for x in log_probs]
        tops = [jax.lax.top_k(x, TOP) for x in log_probs]
        value = losses.per_token_divergence(*logits, beta=beta, temperature=temperature)
        fields: tuple[Any, ...] = (value, *of_token, *((ids.astype(jnp.int32), jnp.exp(x)) for x, ids in tops))
        return Scores(*fields)  # of JAX's arrays, until the caller has them on the host

    batch, length = tokens.shape
    size = next(c for c in range(min(chunk_size, length), 0, -1) if length % c == 0)
    split = lambda x: jnp.moveaxis(x.reshape(batch, length // size, size, *x.shape[2:]), 1, 0)
    scores = jax.lax.map(one_chunk, tuple(split(x) for x in (after_student, after_teacher, tokens)))
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(batch, length, *x.shape[3:]), scores)
