"""Rows of token ids of different lengths as one array and a mask."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def pad_left(rows: Sequence[np.ndarray], length: int, pad_id: int) -> tuple[np.ndarray, np.ndarray]:
    """Left-padded tokens [B, length] int32 and their mask [B, length] bool. A row longer than `length` is an error.

    Examples:
      >>> tokens, mask = pad_left([np.array([5, 6, 7]), np.array([8])], 4, 0)
      >>> tokens.tolist(), mask.sum(axis=1).tolist()
      ([[0, 5, 6, 7], [0, 0, 0, 8]], [3, 1])
    """
    tokens = np.full((len(rows), length), pad_id, np.int32)
    mask = np.zeros((len(rows), length), bool)
    for i, row in enumerate(rows):
        if len(row) > length:
            raise ValueError(f"a prompt of {len(row)} tokens does not fit {length}; prompts are never cut")
        if len(row):
            tokens[i, -len(row) :] = row
            mask[i, -len(row) :] = True
    return tokens, mask


def pad_right(rows: Sequence[np.ndarray], length: int, pad_id: int) -> tuple[np.ndarray, np.ndarray]:
    """Right-padded tokens [B, length] int32 and their mask [B, length] bool. A row longer than `length` is an error.

    Examples:
      >>> pad_right([np.array([5, 6, 7]), np.array([8])], 4, 0)[0].tolist()
      [[5, 6, 7, 0], [8, 0, 0, 0]]
    """
    tokens, mask = pad_left([row[::-1] for row in rows], length, pad_id)
    return tokens[:, ::-1], mask[:, ::-1]
