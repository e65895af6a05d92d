"""Classes of tokens, to see where a divergence goes: content, numbers, connectives, format.

Style tokens (connectives and format) can dominate a divergence and teach nothing; clips should prevent that.
"""

from __future__ import annotations

from typing import Any

import numpy as np

CLASSES = ("content", "number", "connective", "format")
CONNECTIVES = frozenset(
    """a about after again all also although an and any are as at be because been before being both but by can could did do
    does done each either else even for from given had has have having hence here how however i if in indeed instead into is
    it its itself just let may might must neither no nor not now of on once only or other our out over per same shall should
    since so some such than that the their them then there therefore these they this those though through thus to too under
    until up upon us was we were what when where whereas whether which while who whose why will with would yet you your""".split()
)


def token_class(text: str) -> str:
    """The class of a token's text: number if it has a digit, format if it has no letter or is a macro, else decided by its word.

    Examples:
      >>> [token_class(text) for text in (" density", " 42", " therefore", " =", "\\\\boxed")]
      ['content', 'number', 'connective', 'format', 'format']
    """
    word = text.strip()
    if any(character.isdigit() for character in word):
        return "number"
    if word.startswith("\\") or not any(character.isalpha() for character in word):
        return "format"
    return "connective" if word.casefold() in CONNECTIVES else "content"


def class_of_tokens(tokenizer: Any, vocab_size: int) -> np.ndarray:
    """The index into CLASSES of every token id, [V] int32; special and unused ids are format."""
    special = set(tokenizer.all_special_ids)
    texts = ("" if i in special or i >= len(tokenizer) else tokenizer.decode([i]) for i in range(vocab_size))
    return np.array([CLASSES.index(token_class(text)) for text in texts], np.int32)


def totals(values: np.ndarray, tokens: np.ndarray, mask: np.ndarray, class_of: np.ndarray) -> np.ndarray:
    """Sums of values [B, N] over the masked tokens of each class, [len(CLASSES)] float64.

    Examples:
      >>> class_of = np.array([0, 1, 3])  # token 0 is content, 1 a number, 2 format
      >>> totals(np.array([[0.5, 0.25, 1.0]]), np.array([[0, 1, 2]]), np.array([[1, 1, 0]]), class_of).tolist()
      [0.5, 0.25, 0.0, 0.0]
    """
    chosen = np.asarray(mask, bool)
    classes = class_of[np.asarray(tokens)[chosen]]
    return np.bincount(classes, np.asarray(values, np.float64)[chosen], minlength=len(CLASSES))
