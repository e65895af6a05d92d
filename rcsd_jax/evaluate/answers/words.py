"""Words, where case does not matter, and symbols, where it does: Yes and yes are one answer, R and r are two."""

from __future__ import annotations

import re

_RUN = re.compile(r"(?<![\\A-Za-z])[^\W\d_]+")
_AFTER_NUMBER = re.compile(r"[0-9]\s?\Z")
_SENTENCE = re.compile(r"\s*(?P<first>[^\W\d_]{1,2}) (?=[a-z]{3})")  # "A nucleus", "Le chat"
# Shorter than other words, or also possible as formulas; NO is also a gas, but hardly where "no" is right.
_SHORT = frozenset("no yes odd one two six ten all any not red am pm".split())
_FORMULA = re.compile(r"(?:[A-Z][a-z]?){2,}")  # NaCl, and GMm


def fold(text: str, *, least: int = 4) -> str:
    """The text with its words in lower case, and with symbols, units and formulas unchanged.

    Args:
      text: an answer.
      least: the smallest number of letters of a word; products of symbols have three, as in mgh.

    Examples:
      >>> fold("Even if R > r"), fold("NaCl"), fold("YES")
      ('even if R > r', 'NaCl', 'yes')
    """
    text = _SENTENCE.sub(lambda match: match[0].lower(), text, count=1) if _SENTENCE.match(text) else text
    return _RUN.sub(lambda match: _folded(match, least), text)


def _folded(run: re.Match, least: int) -> str:
    letters, lower = run[0], run[0].lower()
    if lower in _SHORT and not (letters.istitle() and len(letters) == 2 and letters != "No"):
        return lower
    if lower[0] == "m" and len(lower) < 6 and _AFTER_NUMBER.search(run.string[max(0, run.start() - 2) : run.start()]):
        return letters  # mega and milli: 5 Mbar
    if len(letters) < least or not (set(lower) & set("aeiou") or not lower.isascii()):
        return letters
    cased = letters.islower() or letters.istitle()
    shouted = letters.isupper() and len(letters) > 3
    mixed = len(letters) > 5 and not _FORMULA.fullmatch(letters)
    return lower if cased or shouted or mixed else letters
