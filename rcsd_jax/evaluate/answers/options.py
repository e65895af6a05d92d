"""The option of a multiple choice that a text chose."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rcsd_jax.evaluate.answers.places import FinalAnswer, read
from rcsd_jax.evaluate.answers.plain import plain
from rcsd_jax.evaluate.answers.words import fold

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
# What may stand before a letter: "the correct answer is", "option", "la réponse", "选项".
_NAMED = (
    r"(?i:(?:the\s)?(?:(?:correct|final|best|right)\s)?(?:answer|option|choice|letter|alternative)\s?(?:is\s)?:?\s?"
    r"|(?:l'|la\s|die\s|a\s)?(?:option|réponse|lettre|proposition|antwort|opción|respuesta|letra|alternativa|opzione"
    r"|risposta|lettera|opção|resposta|optie|antwoord|đáp\sán|선택지)\s:?\s?|la\s|[选選][项項择擇]?:?\s?)"
)
_LETTER = re.compile(
    rf"(?:-\s)?{_NAMED}?(?P<open>[(\[]{{0,2}})\s?(?P<letter>[A-Za-z])(?:\s?(?P<close>[)\]]{{1,2}}))?"
    # And after it, in languages without spaces between words, or where "is" ends the sentence.
    r"(?:\s?(?:[选選][项項]|[项項]|です|だ|である|입니다|이다|예요|번(?:입니다)?|है|'dir|'dır)(?![A-Za-z]))?(?P<rest>.*)",
    re.S,
)
_AFTER_LETTER = re.compile(r"\"?(?:[,;\s]|[:.](?![0-9]))")
_AND = r"(?:(?:and|or|et|ou|und|oder|y|o|e|en|of)\s|[和与與或及]\s?)"
_ANOTHER_LETTER = re.compile(
    rf"\s?(?:[,;/&+]|{_AND})\s?{_AND}?(?:(?:option|choice|opción|opção|réponse|antwort)\s|[选選][项項])?"
    r"[(\[]?([A-Za-z])(?![\w'-])",
    re.I,
)
# "A" and "I" are also words: before another word they are letters only if it is one of these.
_AFTER_A = re.compile(
    r"\s(?:(?:because|since|as|which|due|given|with|and|or|is|was|for|in|parce|puisque|weil|da|denn|porque|perché"
    r"|car\s(?:il|elle|ils|elles|ce|cela|le|la|les|un|une))\b|\W)",
    re.I,
)
_ARTICLE = re.compile(r"\A(?:the|an?)\s", re.I)
_LETTER_AFTER_WORDING = re.compile(r"\s?,?\s?\(?(?:(?:option|choice)\s)?\(?([A-Z])\)")
_AFTER_WORDING = re.compile(
    r"\Z|\s?[,;:.!)](?![0-9])|\s\((?:option\s|choice\s)?[A-Z]\)"
    r"|\s(?:because|since|as|due|car|parce|weil|denn|porque|perché)\b"
)
_VERDICTS = frozenset(("yes", "no", "maybe", "true", "false"))
_DISCUSSED = re.compile(r"\b(?:incorrect|wrong|false|not\s(?:correct|right|the))\b", re.I)
_ITEM = re.compile(r"^\W{0,4}(?:option\s)?\(?([A-Z])[).:]", re.M)
_NEXT_WORDING = re.compile(r"\s?(?:[,;/&]|and\s|or\s)\s?(?:and\s|or\s)?")


def option(text: str, options: Sequence[str]) -> FinalAnswer:
    r"""Which of the options a completion chose, by letter or by the option's text.

    A letter stands by itself (`(B)`, `\text{B}`, `option b`) or before its text (`B. mitochondria`). Texts are compared
    without the case of words, spaces and LaTeX's wrappers. A single letter is read as a letter, even if an option's text is
    a letter. If several lines state nothing, the first or last line counts if it is only a letter, and the first also if it
    has the option's text.

    Args:
      text: the model's text.
      options: the options' texts, A first. "yes", "no" and "maybe" are options like others.

    Returns:
      A FinalAnswer with an index into the options.

    Examples:
      >>> option("The answer is (B).", ["red", "blue"]), option("blue", ["red", "blue"])
      (FinalAnswer(value=1, reason='stated'), FinalAnswer(value=1, reason='whole'))
      >>> option("The answer is (D).", ["red", "blue"]).reason
      'out_of_range'
    """
    wordings = [_wording(o) for o in options]
    discussed = _DISCUSSED.search(text) is not None or len(set(_ITEM.findall(text))) > 1
    return read(
        text,
        lambda line: _option(line, wordings),
        lambda line: _option(line, wordings, alone=True),
        alone=lambda line, first: _option_in_a_line(line, wordings, with_text=first and not discussed),
    )


def _option_in_a_line(line: str, wordings: list[str], *, with_text: bool) -> FinalAnswer:
    """The option on one of several lines: a capital or bracketed letter, with or without its text; yes, no and the like."""
    text = _wording(line)
    match = _LETTER.fullmatch(text)
    if line.endswith(":") or not match:  # a heading
        return FinalAnswer(None, "not_an_option")
    if not match["rest"]:
        is_letter = match["letter"].isupper() or match["close"]
        return _at(match["letter"], wordings) if is_letter else FinalAnswer(None, "not_an_option")
    if text.casefold() in _VERDICTS:
        return _named(text, wordings) or FinalAnswer(None, "not_an_option")
    return with_text and _by_letter(match, wordings, alone=True) or FinalAnswer(None, "not_an_option")


def _option(text: str, wordings: list[str], *, alone: bool = False) -> FinalAnswer:
    """The option in a box or line. `alone`: the text may be prose, and counts only if it is nothing but the option."""
    text = _wording(text)
    match = _LETTER.fullmatch(text)
    if match and not match["rest"]:
        return _at(match["letter"], wordings)
    named = _named(text, wordings)
    if named is not None:
        return named
    worded = FinalAnswer(None, "not_an_option") if alone else _by_wording(text, wordings)
    if worded.value is not None or not match:
        return worded
    return _by_letter(match, wordings, alone=alone) or worded


def _named(text: str, wordings: list[str]) -> FinalAnswer | None:
    """The option with this text; None if there is none."""
    exact = [i for i, wording in enumerate(wordings) if wording and wording == text]  # genotypes: AA, Aa, aa
    alike = [i for i, wording in enumerate(wordings) if wording and _folded(wording) == _folded(text)]
    # If options differ only in the case of symbols, as genotypes do, the text does not single one out.
    blind = [i for i, wording in enumerate(wordings) if wording and _folded(wording).lower() == _folded(text).lower()]
    same = exact or alike or (blind if len(blind) > 1 else [])
    return None if not same else FinalAnswer(same[0], "") if len(same) == 1 else FinalAnswer(None, "several")


def _by_letter(match: re.Match, wordings: list[str], *, alone: bool) -> FinalAnswer | None:
    """The option of a letter before other text; None if it is a word, or part of a word."""
    letter, rest = match["letter"], match["rest"]
    another = _ANOTHER_LETTER.match(rest)
    if another and another[1] != letter and another[1].isupper() == letter.isupper():
        return FinalAnswer(None, "several")
    if rest.strip().startswith("?"):
        return None
    if not match["close"]:
        if not _AFTER_LETTER.match(rest):
            return None
        if rest[0].isspace() and (letter.islower() or letter in "AI") and not (letter in "AI" and _AFTER_A.match(rest)):
            return None
    wording = re.sub(r"\A[\s.:,;(]*(?:-\s)?", "", rest).rstrip(")")
    chosen, named = _at(letter, wordings), _named(_bare(wording), wordings)
    if named is not None and named != chosen:
        return FinalAnswer(None, "several")
    return None if alone and named is None else chosen


def _by_wording(text: str, wordings: list[str]) -> FinalAnswer:
    """The longest option whose text `text` begins with, if no other follows it in a list."""
    folded = [fold(wording, least=3) for wording in wordings]

    def begins(text: str, ends: re.Pattern) -> list[int]:
        fits = [i for i, w in enumerate(folded) if len(w) > 1 and text.startswith(w) and ends.match(text, len(w))]
        return sorted(fits, key=lambda i: len(folded[i]))

    text = fold(text, least=3)
    if not begins(text, _AFTER_WORDING):
        text = _ARTICLE.sub("", text)
    for index in reversed(begins(text, _NEXT_WORDING)):
        following = _NEXT_WORDING.match(text, len(folded[index]))
        assert following is not None, "`begins` has seen it"
        rest = text[following.end() :]
        if any(i != index for i in begins(rest, _AFTER_WORDING)):
            return FinalAnswer(None, "several")
    found = begins(text, _AFTER_WORDING)
    letter = _LETTER_AFTER_WORDING.match(text, len(folded[found[-1]])) if found else None
    if letter and _at(letter[1], wordings).value != found[-1]:
        return FinalAnswer(None, "several")
    return FinalAnswer(found[-1], "") if found else FinalAnswer(None, "not_an_option")


def _at(letter: str, wordings: list[str]) -> FinalAnswer:
    index = _LETTERS.index(letter.upper())
    return FinalAnswer(index, "") if index < len(wordings) else FinalAnswer(None, "out_of_range")


def _wording(text: str) -> str:
    return _bare(plain(text).replace("_", ""))


def _bare(text: str) -> str:
    return text.strip(" *\"'").rstrip(" *.,;:\"'")


def _folded(text: str) -> str:
    return fold(text, least=3).replace(" ", "")
