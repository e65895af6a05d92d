"""What a question's completions say of each other: the majority's answer, which succeeded or failed, and from which to learn.

A group is the completions of one question, which follow each other. Everything is a pure function of all completions of a rollout.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np


def agreement(
    found: Sequence[str | None], group: int, *, same: Callable[[str, str], bool | None], least: float = 0.5
) -> np.ndarray:
    """[B] float32: 1 for a completion that has the answer that most of its group give, 0 for one with another answer.

    NaN where nothing can be said: a completion without an answer, and a group of which less than a share agrees (U-OPSD, arXiv
    2608.06296).

    Args:
      found: the completions' answers; None: there is none.
      group: completions of a question.
      same: whether two answers are the same; None if that cannot be said.
      least: the share of the group that must agree.

    Examples:
      >>> agreement(["7", "7", "8", None], 4, same=str.__eq__).tolist()
      [1.0, 1.0, 0.0, nan]
      >>> agreement(["7", "6", "8", None], 4, same=str.__eq__).tolist()
      [nan, nan, nan, nan]
    """
    votes = np.full(len(found), np.nan, np.float32)
    for start in range(0, len(found), group):
        kinds: list[list[int]] = []  # completions with the same answer
        for at in range(start, start + group):
            answer = found[at]
            if answer is None:
                continue
            mine = next((kind for kind in kinds if same(answer, str(found[kind[0]]))), None)
            if mine is None:
                kinds.append([at])
            else:
                mine.append(at)
        most = max(kinds, key=len, default=[])
        if len(most) >= least * group and most:
            for kind in kinds:
                votes[kind] = float(kind is most)
    return votes


def other(at: int, group: int, chosen: np.ndarray, lengths: np.ndarray | None = None) -> int | None:
    """Another completion of the same group that is chosen: the first, or with lengths the shortest; None if there is none.

    Args:
      at: a completion.
      group: completions of a question.
      chosen: [B] bool.
      lengths: [B] int.

    Examples:
      >>> chosen = np.array([True, False, True, True])
      >>> other(0, 4, chosen), other(1, 4, chosen, np.array([9, 2, 7, 5])), other(0, 2, chosen)
      (2, 3, None)
    """
    start = at - at % group
    others = [j for j in range(start, start + group) if j != at and chosen[j]]
    if not others:
        return None
    return others[0] if lengths is None else min(others, key=lambda j: lengths[j])


def learnt_from(choice: str, wrong: np.ndarray, lengths: np.ndarray, group: int) -> np.ndarray:
    """[B] bool, the completions of a choice of `methods.settings.COMPLETIONS`; of equally long ones the first.

    Args:
      choice: of `methods.settings.COMPLETIONS`.
      wrong: [B] bool.
      lengths: [B] int.
      group: completions of a question.

    Examples:
      >>> wrong, lengths = np.array([True, True, False, True]), np.array([3, 8, 9, 8])
      >>> learnt_from("longest_wrong", wrong, lengths, 4).tolist(), learnt_from("wrong", wrong, lengths, 4).tolist()
      ([False, True, False, False], [True, True, False, True])
    """
    if choice != "longest_wrong":
        return wrong | (choice == "all")
    ranked = np.where(wrong, lengths, -1).reshape(-1, group)
    longest = np.arange(group) == ranked.argmax(axis=1)[:, None]
    return longest.reshape(-1) & wrong
