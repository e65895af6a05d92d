r"""Final answers in what a model wrote: options, numbers with units, expressions. Never raises, whatever the text.

A text's answer is, in this order: its last complete `\boxed{}` that is not empty; else, unless a box was begun and
cut, its last statement ("the answer is (C)", "**Final answer:** C") that can be read; else the whole text, if that is
nothing but an answer. A letter or number that is merely mentioned is none. Thinking blocks are dropped by the caller.

What could not be read is *unparsed*, and not *wrong*: `Answer.value` is None and `Answer.reason` one of `UNPARSED`.

Numbers are found by regular expressions, converted by pint and compared as SciBench does; expressions are compared by
math-verify. Both are imported when they are first needed. Every search is linear: over whole texts single passes with
bounded repetitions, and the rest over answers of at most `MAX_ANSWER` or `MAX_EXPRESSION` characters.
"""

from __future__ import annotations

import functools
import logging
import math
import re
import sys
import time
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

MAX_ANSWER = 2000  # characters of an answer; PIQA's longest options have some hundred
MAX_EXPRESSION = 300  # of a number or an expression: grammars and sympy slow down long before

UNPARSED = {
    "no_answer": "no box, no stated answer, and more than an answer alone",
    "cut": "a box is begun and not closed",
    "too_long": "what is given as the answer is too long to be one",
    "several": "more than one option, or a letter with the text of another option",
    "out_of_range": "a letter beyond the last option",
    "not_an_option": "neither a letter nor the text of an option",
    "not_a_number": "not one finite real number, with or without a unit",
}


class Answer(NamedTuple):
    """What a text answers and where ("boxed", "stated" or "whole"), or None and why not (a key of `UNPARSED`)."""

    value: Any
    reason: str


# --- where the answer is ----------------------------------------------------------------------------------------------

# A box and its brace, or without one a number or a letter (`\boxed 5`); other braces; escaped braces and backslashes, but
# for the doubled one of `\\boxed`, from a text that was escaped twice.
_BRACES = re.compile(
    r"\\(?:boxed|fbox)(?![A-Za-z])\s{0,9}"
    r"(?:(?P<box>\{)|(?P<bare>[-+]?[0-9](?:[0-9.,]{0,30}[0-9])?|[A-Za-z](?![A-Za-z]))|(?P<end>\Z))?"
    r"|(?P<open>\{)|(?P<close>\})|\\(?:[{}]|\\(?!(?:boxed|fbox)(?![A-Za-z])))"
)


def last_boxed(text: str) -> str | None:
    r"""The content of the last complete `\boxed{...}` or `\fbox{...}` that is not empty; None without one.

    Braces are matched and escaped ones skipped. Boxes are ordered by where they begin, so that of nested ones the
    innermost is the last.

    Examples:
      >>> last_boxed(r"First \boxed{1}, no: \boxed{\frac{1}{2}}")
      '\\frac{1}{2}'
    """
    return _boxes(text)[0]


def _boxes(text: str) -> tuple[str | None, bool]:
    """The content of the last complete box, and whether a box was begun and never closed."""
    last: tuple[int, str | None] = (-1, None)
    opened: list[tuple[int, int] | None] = []  # of each open brace its box's beginning and end, or None
    begun = False
    for match in _BRACES.finditer(text):
        start, found = match.start(), match["bare"]
        if match["box"]:
            opened.append((start, match.end()))
        elif match["open"]:
            opened.append(None)
        elif match["close"] and opened and (box := opened.pop()):
            start, found = box[0], text[box[1] : match.start()].strip()
        begun = begun or match["end"] is not None
        if found and start > last[0]:
            last = start, found
    return last[1], begun or any(opened)


_MARKS = r"[*_]{0,3}"
_IS = (
    r"\s(?:is|was|(?:would|must|should|will)\sbe)\b"
    r"(?:\s(?:therefore|thus|hence|then|clearly|simply|indeed|likely|most\slikely|probably)\b)?"
)
_STATEMENT = re.compile(
    rf"\banswer\b(?:\s(?:to|for)\b[^\n.:]{{1,60}}?)?(?:{_MARKS}\s?:|{_IS})"
    rf"|\b(?:correct|best|right|final)\s(?:answer\s)?(?:option|choice)(?:{_MARKS}\s?:|{_IS})"
    rf"|^[#*_ ]{{1,6}}(?:the\s)?(?:final\s|correct\s)?answer{_MARKS}[ \t]{{0,9}}$",  # a heading; the answer is below
    re.I | re.M,
)
_AFTER_STATEMENT = re.compile(r"(?:[\s$*_:>]|\\[\[(])*")
_HYPOTHETICAL = re.compile(r"\b(?:if|whether|unless|suppose|supposing|assume|assuming)\b[^\n.,;:]{0,40}\Z", re.I)
_REVERSED_STATEMENT = re.compile(
    r"(?<![\w(])(\(?[A-Z]\)?)[*_]{0,3}\sis\s(?:therefore\s)?the\s(?:correct\s|best\s|right\s)?(?:answer|option|choice)\b"
)
_SENTENCE_END = re.compile(r"[.;!?](?:\s|\Z)")
_MAX_STATEMENTS = 50  # a model caught in a loop makes thousands


def _stated(text: str) -> Iterator[str]:
    """What follows the text's statements of an answer, each to the end of its line; the last statement first."""
    found: list[tuple[int, int, str | None]]
    found = [(match.start(), match.end(), None) for match in _STATEMENT.finditer(text)]
    found += [(match.start(), match.end(), match[1]) for match in _REVERSED_STATEMENT.finditer(text)]
    for start, end, letter in sorted(found, reverse=True)[:_MAX_STATEMENTS]:
        if _HYPOTHETICAL.search(text[max(0, start - 50) : start]):
            continue
        after = _AFTER_STATEMENT.match(text, end, end + 100)
        assert after is not None, "it also matches nothing"
        line = letter or text[after.end() : after.end() + MAX_EXPRESSION].split("\n")[0]
        line = line.strip().rstrip("!")  # no factorial
        if line:
            yield line


def final_answer(text: str) -> Answer:
    """The text of the answer, boxed or stated, to be compared by `same_expression`.

    Examples:
      >>> final_answer("The answer is 42.")
      Answer(value='42', reason='stated')
      >>> final_answer("It depends on what is meant.").reason
      'no_answer'
    """
    boxed, begun = _boxes(text)
    if boxed is not None:
        return Answer(None, "too_long") if len(boxed) > MAX_ANSWER else Answer(boxed, "boxed")
    if begun:
        return Answer(None, "cut")
    for line in _stated(text):
        # The formula before the rest of its sentence, where there is one: "the answer is $x + 1$ because ...".
        answer = re.split(r"\$|\\[)\]]", _SENTENCE_END.split(line, maxsplit=1)[0], maxsplit=1)[0].strip(" *_.")
        if answer:
            return Answer(answer, "stated")
    return Answer(None, "no_answer")


def _read(text: str, read: Callable[[str], Answer], whole: Callable[[str], Answer]) -> Answer:
    """The answer of `text` as `read` reads a box or a line, `whole` the whole; both give the reason of a failure."""
    boxed, begun = _boxes(text)
    if boxed is not None:
        return Answer(None, "too_long") if len(boxed) > MAX_ANSWER else _found(read(boxed), "boxed")
    if begun:
        return Answer(None, "cut")
    failure = None
    for line in _stated(text):
        answer = read(line)
        # "the answer is independent of m" after "the answer is 5" takes nothing back; "A or B" does.
        if answer.value is not None or answer.reason in ("several", "out_of_range"):
            return _found(answer, "stated")
        failure = failure or answer
    text = text.strip()
    if failure is None and 0 < len(text) <= MAX_ANSWER and "\n" not in text:
        answer = whole(text)
        if answer.value is not None or answer.reason in ("several", "out_of_range"):
            return _found(answer, "whole")
    return failure or Answer(None, "no_answer")


def _found(answer: Answer, where: str) -> Answer:
    return answer if answer.value is None else answer._replace(reason=where)


# --- LaTeX and unicode to plain text ----------------------------------------------------------------------------------

_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾", "0123456789+-()")
_PLAIN_CHARACTERS = str.maketrans(
    dict.fromkeys("‐‑‒–—−﹣", "-") | dict.fromkeys("×✕⨯·⋅∙•∗", "*") | dict.fromkeys("“”″", '"')
    | dict.fromkeys("‘’′", "'") | {"⁄": "/", "∕": "/", "÷": "/", "˚": "°", "º": "°"}
)  # fmt: skip
_WRAPPER = re.compile(
    r"\\(?:text(?:rm|bf|it|sf|tt|normal|up)?|math(?:rm|bf|it|sf|tt|bb|cal|normal)|bm|boldsymbol|operatorname|mbox|hbox"
    r"|unit|si|ensuremath|underline|emph)\*?\s?\{([^{}]*)\}"
)
_ARGUMENTS = [  # from the inside out
    (re.compile(r"\^\s?[{(]\s?([-+]?\s?[0-9./]{1,9})\s?[})]"), r"^\1"),
    (_WRAPPER, r" \1"),
    (re.compile(r"\\[dtc]?frac\s?\{([^{}]*)\}\s?\{([^{}]*)\}"), r" (\1)/(\2)"),
    (re.compile(r"\\[dtc]?frac\s?([0-9])\s?([0-9])"), r" (\1)/(\2)"),
]
_SIGNS = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\(?:left|right|displaystyle|textstyle|[bB]igg?[lr]?|rm|bf|it|limits)(?![A-Za-z])", ""),
        (r"\\[()\[\]]|\\?\$|`", " "),
        (r"\{,\}", ","),
        (r"\\!", ""),
        (r"\\[,;:> ]|~|\\q?quad(?![A-Za-z])|\s+", " "),
        (r"\^\s?\{?\s?\\circ\s?\}?|\^\s?°|\\circ(?![A-Za-z])|\\(?:text)?degree(?![A-Za-z])", "°"),
        (r"\\([%&#_{}])", r"\1"),
        (r"\\(?:times|cdot|ast|bullet)(?![A-Za-z])", "*"),
        (r"\\(?:approx|simeq|sim)(?![A-Za-z])", "≈"),
        (r"\\(?:AA|r\{A\}|mathring\{A\})(?![A-Za-z])", "Å"),
        (r"(?<=[0-9A-Za-z)])\*\*(?=\s?[-+(]?[0-9])", "^"),
        (r"\*\*", ""),
    )
]
_COMMAND = re.compile(r"\\([A-Za-z]{2,8})(?![A-Za-z])")


def _plain(text: str) -> str:
    """The text without LaTeX's and markdown's dress: one spelling for each sign, single spaces."""
    text = re.sub(r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾]+", lambda match: "^" + match[0].translate(_SUPERSCRIPTS), text)
    text = re.sub(r"(?=[¼-¾⅐-⅞])", " ", text)  # 1½ is no 11/2
    text = unicodedata.normalize("NFKC", text)  # after superscripts, which it would make digits
    text = "".join(c for c in text if unicodedata.category(c) != "Cf").translate(_PLAIN_CHARACTERS)
    for pattern, replacement in _SIGNS:
        text = pattern.sub(replacement, text)
    for _ in range(3):  # a wrapper in a fraction in a wrapper
        for pattern, replacement in _ARGUMENTS:
            text = pattern.sub(replacement, text)
    text = re.sub(r"[{}]", "", _COMMAND.sub(_greek, text))
    return re.sub(r"\s+", " ", text).strip().rstrip(" .,;:")


def _greek(command: re.Match) -> str:
    name = command[1].casefold().replace("lambda", "lamda")  # as unicode spells it
    case = "CAPITAL" if command[1][0].isupper() else "SMALL"
    try:
        return unicodedata.lookup(f"GREEK {case} LETTER {name}")
    except KeyError:
        return command[0]


# --- options ----------------------------------------------------------------------------------------------------------

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_LETTER = re.compile(
    r"(?i:(?:the\s)?(?:(?:correct|final|best|right)\s)?(?:answer|option|choice)\s?(?:is\s)?:?\s?)?"
    r"(?P<open>[(\[]?)\s?(?P<letter>[A-Za-z])(?:\s?(?P<close>[)\]]))?(?P<rest>.*)",
    re.S,
)
_AFTER_LETTER = re.compile(r"[,;\s]|[:.](?![0-9])")
_ANOTHER_LETTER = re.compile(r"\s?(?:[,;/&+]|and\s|or\s)\s?(?:and\s|or\s)?(?:option\s)?[(\[]?([A-Za-z])(?![\w'-])")
# "A" and "I" are words too: before another word they are letters only where it is one of these.
_AFTER_A = re.compile(r"\s(?:because|since|as|which|due|given|with|and|or|is|was|for|in|\W)", re.I)
_AFTER_WORDING = re.compile(r"\Z|\s?[,;:.!)](?![0-9])|\s(?:because|since|as|due)\b")
_NEXT_WORDING = re.compile(r"\s?(?:[,;/&]|and\s|or\s)\s?(?:and\s|or\s)?")


def option(text: str, options: Sequence[str]) -> Answer:
    r"""Which of the options a completion chose, by letter or by the option's text.

    A letter stands alone (`(B)`, `\text{B}`, `option b`) or before its text (`B. mitochondria`); a text is compared up to
    case, spaces and LaTeX's wrappers. A single letter is a letter, also where an option's text is one.

    Args:
      text: what the model wrote.
      options: the options' texts, A first. "yes", "no" and "maybe" are options like others.

    Returns:
      An Answer with an index into the options.

    Examples:
      >>> option("The answer is (B).", ["red", "blue"]), option("blue", ["red", "blue"])
      (Answer(value=1, reason='stated'), Answer(value=1, reason='whole'))
      >>> option("The answer is (D).", ["red", "blue"]).reason
      'out_of_range'
    """
    wordings = [_wording(o) for o in options]
    return _read(text, lambda line: _option(line, wordings), lambda line: _option(line, wordings, alone=True))


def _option(text: str, wordings: list[str], *, alone: bool = False) -> Answer:
    """The option of a box or line; `alone`: of a text that may be prose, and then is nothing but the option."""
    text = _wording(text)
    match = _LETTER.fullmatch(text)
    if match and not match["rest"]:
        return _at(match["letter"], wordings)
    named = _named(text, wordings)
    if named is not None:
        return named
    worded = Answer(None, "not_an_option") if alone else _by_wording(text, wordings)
    if worded.value is not None or not match:
        return worded
    return _by_letter(match, wordings, alone=alone) or worded


def _named(text: str, wordings: list[str]) -> Answer | None:
    """The option whose text this is; None where it is none's."""
    exact = [i for i, wording in enumerate(wordings) if wording and wording == text]  # genotypes: AA, Aa, aa
    alike = [i for i, wording in enumerate(wordings) if wording and _folded(wording) == _folded(text)]
    same = exact or alike
    return None if not same else Answer(same[0], "") if len(same) == 1 else Answer(None, "several")


def _by_letter(match: re.Match, wordings: list[str], *, alone: bool) -> Answer | None:
    """The option of a letter before something else; None where it is a word, or part of one."""
    letter, rest = match["letter"], match["rest"]
    another = _ANOTHER_LETTER.match(rest)
    if another and another[1] != letter and another[1].isupper() == letter.isupper():
        return Answer(None, "several")
    if not match["close"]:
        if not _AFTER_LETTER.match(rest):
            return None
        if rest[0].isspace() and (letter.islower() or letter in "AI") and not (letter in "AI" and _AFTER_A.match(rest)):
            return None
    wording = re.sub(r"\A[\s.:,;(]*(?:-\s)?", "", rest).rstrip(")")
    chosen, named = _at(letter, wordings), _named(_bare(wording), wordings)
    if named is not None and named != chosen:
        return Answer(None, "several")
    return None if alone and named is None else chosen


def _by_wording(text: str, wordings: list[str]) -> Answer:
    """The longest option whose text `text` begins with, if no other follows it in a list."""
    folded = [wording.casefold() for wording in wordings]

    def begins(text: str, ends: re.Pattern) -> list[int]:
        fits = [i for i, w in enumerate(folded) if len(w) > 1 and text.startswith(w) and ends.match(text, len(w))]
        return sorted(fits, key=lambda i: len(folded[i]))

    text = text.casefold()
    for index in reversed(begins(text, _NEXT_WORDING)):
        following = _NEXT_WORDING.match(text, len(folded[index]))
        assert following is not None, "`begins` has seen it"
        rest = text[following.end() :]
        if any(i != index for i in begins(rest, _AFTER_WORDING)):
            return Answer(None, "several")
    found = begins(text, _AFTER_WORDING)
    return Answer(found[-1], "") if found else Answer(None, "not_an_option")


def _at(letter: str, wordings: list[str]) -> Answer:
    index = _LETTERS.index(letter.upper())
    return Answer(index, "") if index < len(wordings) else Answer(None, "out_of_range")


def _wording(text: str) -> str:
    return _bare(_plain(text).replace("_", ""))


def _bare(text: str) -> str:
    return text.strip(" *\"'").rstrip(" *.,;:\"'")


def _folded(text: str) -> str:
    return text.replace(" ", "").casefold()


# --- numbers ----------------------------------------------------------------------------------------------------------

_DIGITS = r"(?:[0-9]{1,3}(?:[,' ][0-9]{3})+(?![0-9])(?:\.[0-9]+)?|[0-9]+(?:\.[0-9]*)?|\.[0-9]+)"
_TEN = r"10\s?\^\s?\(?(?P<%s>[-+]?\s?[0-9]{1,3})\)?(?![0-9.])"


def _decimal(name: str) -> str:
    """1,234.5, 3.2e-4, 3.2*10^-4 or 10^5, as groups `name`, `name`_e, `name`_times and `name`_ten."""
    e = rf"[eE](?P<{name}_e>[-+]?[0-9]{{1,3}})(?![0-9])"
    return rf"(?:{_TEN % f'{name}_ten'}|(?P<{name}>{_DIGITS})(?:{e}|\s?[*xX]\s?{_TEN % f'{name}_times'})?)"


_SCALES = {"thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_NUMBER = re.compile(
    r"(?:(?:approximately|approx\.?|about|roughly|around|nearly|exactly|equals|equal\sto)\s)?"
    r"\(?\s?(?P<sign>[-+]\s?)?\(?\s?"
    r"(?:(?P<whole>[0-9]{1,4})\s\(?(?P<part>[0-9]{1,4})\)?\s?/\s?\(?(?P<parts>[0-9]{1,4})(?:\s?\))?(?![0-9.,^])"
    rf"|{_decimal('top')}(?:(?:\s?\))?\s?/\s?\(?\s?{_decimal('bottom')})?)(?:\s?\))?"
    rf"(?:\s?(?P<scale>(?ai:{'|'.join(_SCALES)}))\b)?(?:\s{_TEN % 'power'})?",
    re.I,
)
_SIDES = re.compile(r"(?<![<>!≤≥])=(?!=)|≈")
_NOT_PROSE = re.compile(r"[0-9^+=<>*/\\|±≈°%?∞]|-\s?[A-Za-z]?(?![A-Za-z])|\A\s?[A-Za-z](?![A-Za-z])|\A\s?!")
# What may hold digits and still be prose: a chemical formula, and "electron^-1", a unit that pint does not know.
_FORMULA = re.compile(r"(?<![A-Za-z0-9])(?:[A-Z][a-z]?_?[0-9]{0,3}){1,12}(?![A-Za-z0-9])|(?<=[A-Za-z])\s?\^\s?-[0-9]")


class Number(NamedTuple):
    """A finite number, `value` x 10^`power`, and its unit.

    Attributes:
      value: the number as written, up to a power of ten that stands with the unit.
      unit: the unit as pint writes it, "kilojoule / mole"; None without one that pint knows.
      power: 3 in "2.5 10^3 J", where no sign makes it a factor of the number. SciBench's units look so.
    """

    value: float
    unit: str | None = None
    power: int = 0


def number(text: str) -> Answer:
    r"""The number that a completion gives as its answer, or that a bare answer such as "5 kJ" is.

    Read are thousands separators (`1,234.5`, `1\,234`), powers of ten (`3.2e-4`, `3.2 \times 10^{-4}`), fractions, percent,
    `x = 5`, `\approx 5`, closed forms without a unit (`\frac{\pi}{4}`), and units in words, symbols or LaTeX. What
    follows the number and is no unit ("electrons", "downward") is taken for prose. Two numbers, a range, an uncertainty, an
    inequality, a decimal comma and numbers in words are none.

    Returns:
      An Answer with a Number.

    Examples:
      >>> number(r"\boxed{3.2 \times 10^{-4}\ \text{J}}").value
      Number(value=0.00032, unit='joule', power=0)
      >>> number("between 3 and 4").value is None
      True
    """
    return _read(text, _number_of_line, _number_alone)


def _number_of_line(line: str) -> Answer:
    """The number of a box or a line, which may go on after the number's sentence."""
    for part in dict.fromkeys((line, _SENTENCE_END.split(line, maxsplit=1)[0])):
        found = _number(part)[0] or _closed_form(part)
        if found is not None:
            return Answer(found, "")
    return Answer(None, "not_a_number")


def _number_alone(text: str) -> Answer:
    """The number of a text that may be prose, and then is nothing but the number and a word or two."""
    found, rest = _number(text)
    found = _closed_form(text) if found is None else found if len(rest.split()) <= 3 else None
    return Answer(found, "" if found else "not_a_number")


def _number(text: str) -> tuple[Number | None, str]:
    """The number that the text is, or that the right side of its equation is; and the prose after it."""
    if len(text) > MAX_EXPRESSION:
        return None, ""
    *left, side = _SIDES.split(_plain(text))
    match = _NUMBER.match(side.strip())
    if match is None or any(_is_sentence(part) for part in left):
        return None, ""
    value, (unit, rest) = _value(match), _unit(re.sub(r"μ\s(?=[A-Za-z])", "μ", side.strip()[match.end() :]))
    attached = unit is None and (rest[:1].isalpha() or rest[:1] == "-")
    if value is None or attached or _NOT_PROSE.search(_FORMULA.sub("", rest)):
        return None, ""
    return Number(value, unit, int((match["power"] or "0").replace(" ", ""))), rest.strip(" .,;:()!")


def _is_sentence(left: str) -> bool:
    """Whether what is left of an equals sign is more than "the speed is v": a sentence, or another answer."""
    return bool(re.search(r"[,;]\s|\b(?:and|or)\b", left)) or len(re.findall(r"\b[A-Za-z]{3,}\b", left)) > 4


def _value(match: re.Match) -> float | None:
    def decimal(name: str) -> float:
        power = match[f"{name}_ten"] or match[f"{name}_e"] or match[f"{name}_times"] or "0"
        digits = "1" if match[f"{name}_ten"] else re.sub(r"[,' ]", "", match[name])
        return float(f"{digits}e{power.replace(' ', '')}")

    try:
        if match["whole"]:
            value = int(match["whole"]) + int(match["part"]) / int(match["parts"])
        else:
            value = decimal("top")
            if match["bottom"] or match["bottom_ten"]:
                value /= decimal("bottom")
    except ZeroDivisionError:
        return None
    value = float(f"{value}e{_SCALES[match['scale'].lower()]}") if match["scale"] else value
    return (-value if (match["sign"] or "").startswith("-") else value) if math.isfinite(value) else None


_UNIT = re.compile(
    r"\s?(?P<joint>/|\*|per\s|-(?=[A-Za-z]))?\s?(?P<open>\()?\s?(?P<dimensions>square\s|sq\.?\s|cubic\s|cu\.?\s)?"
    r"(?P<name>(?:°|degrees?\s|deg\s)\s?(?:C|F|K|[Cc]elsius|[Ff]ahrenheit|[Kk]elvin)(?![A-Za-z])|[°%]"
    r"|[A-Za-zμΩÅ]{1,30})"
    r"(?:\s?\^\s?(?P<power>[-+]?\s?[0-9](?:[./][0-9])?)|(?P<attached>-?[1-9])|\s(?P<word>squared|cubed))?"
    r"(?![A-Za-z0-9^])(?P<close>\s?\))?"
)
# The units that are read, by pint's names; of all that pint knows, too many are words, symbols of quantities or formulas
# ("mass" and "exact", kT, KCl). Those of the first list take prefixes.
_METRIC = frozenset(
    """meter gram second ampere kelvin mole candela hertz newton pascal joule watt coulomb volt farad ohm siemens weber tesla
    henry becquerel gray sievert katal liter bar torr electron_volt calorie watt_hour ampere_hour volt_ampere molar bit byte
    parsec barn gauss dalton curie radian meter_Hg""".split()
)
_OTHERS = frozenset(
    """minute hour day week month year kiloyear megayear gigayear decade century degree arcminute arcsecond steradian turn
    percent ppm decibel neper degree_Celsius degree_Fahrenheit inch foot yard mile nautical_mile pound ounce ton metric_ton
    slug force_pound foot_pound pound_force_per_square_inch inch_Hg gallon quart pint cubic_centimeter acre hectare angstrom
    fermi astronomical_unit light_year knot mile_per_hour revolutions_per_minute standard_atmosphere british_thermal_unit
    horsepower erg dyne poise centipoise stokes maxwell oersted franklin lumen lux bohr hartree rydberg debye
    unified_atomic_mass_unit elementary_charge speed_of_light particle decimeter deciliter hectopascal""".split()
)
_PREFIXES = frozenset(("", *"femto pico nano micro milli centi kilo mega giga tera".split()))
_SPELLINGS = {"°": "degree", "%": "percent", "AU": "astronomical_unit", "rev": "turn", "revs": "turn"}
_NO_UNITS = frozenset(("pH", "has"))
_TEMPERATURES = {"c": "degree_Celsius", "f": "degree_Fahrenheit", "k": "kelvin"}
_WORDS = frozenset(("in", "a", "h", "c", "e"))  # before another word they are words or symbols themselves
_ELEMENTS = frozenset("B C F H K Mg N P S V W".split())  # after an amount: 12 g C


def _unit(text: str) -> tuple[str | None, str]:
    """The unit that a text begins with, as pint writes it, and the text after it; None without one.

    A factor after a slash divides, and so do those joined to it: J/mol·K is J/(mol·K) to those who write it, while read
    from left to right nobody means it. One with a negative power of its own is taken at its word, J/K mol^-1.
    """
    factors: list[tuple[str, float]] = []
    at, below = 0, False
    while match := _UNIT.match(text, at):
        name, power, joint = _known(match["name"]), _power(match), (match["joint"] or " ").strip()
        before_word = not joint and match["name"] in _WORDS and re.match(r"\s[A-Za-z]", text[match.end() :])
        is_element = not (joint or below) and match["name"] in _ELEMENTS and power == 1
        if name is None or before_word or is_element and factors and factors[-1][0].endswith(("gram", "mole")):
            break
        slash = joint in ("/", "per")
        below = below or slash
        factors.append((name, -power if slash or below and power > 0 else power))
        below = below and match["close"] is None
        at = match.end()
    if not factors:
        return None, text
    registry = _registry()
    unit = registry.Unit("")
    for name, power in factors:
        unit *= registry.Unit(name) ** power
    return str(unit), text[at:]


def _power(match: re.Match) -> float:
    power = 2 if (match["dimensions"] or "").startswith("sq") or match["word"] == "squared" else 1
    power = 3 if (match["dimensions"] or "").startswith("cu") or match["word"] == "cubed" else power
    top, _, bottom = (match["power"] or match["attached"] or "1").replace(" ", "").partition("/")
    return power * float(top) / (float(bottom or 1) or 1)


@functools.lru_cache(maxsize=1000)
def _known(name: str) -> str | None:
    """The unit of a name as pint writes it, if it is one that is read; also "Joules", and K for kilo."""
    if name in _NO_UNITS:
        return None
    if re.match(r"°.|deg(?:rees?)?\s", name):
        return _TEMPERATURES[re.sub(r"°|deg(?:rees?)?\s|\s", "", name)[0].lower()]
    kilo, lower = "k" + name[1:] if name[0] == "K" else name, name.lower() if len(name) > 2 else name
    for spelling in dict.fromkeys((_SPELLINGS.get(name, name), kilo, lower)):
        for prefix, unit, _ in _registry().parse_unit_name(spelling):
            if unit in _METRIC and prefix in _PREFIXES or prefix + unit in _OTHERS:
                return prefix + unit
    return None


@functools.lru_cache(maxsize=1)
def _registry() -> Any:
    import pint

    return pint.UnitRegistry()


def numbers_agree(found: Number, truth: Number, *, relative: float = 0.05, absolute: float = 0.0) -> bool:
    """Whether a number is the true one, in whatever unit it is given.

    By default `math.isclose(found, truth, rel_tol=0.05)`, as SciBench does (arXiv 2307.10635, eval/eval_zero.py of
    github.com/mandyyyyii/scibench), which compares numbers alone, since its questions name the unit. So a number
    without a unit is in the other's unit (power of ten included); or, if that unit has no dimension, a pure number: 25 %
    is 25 to a truth without a unit, and 0.25 too. Where both have a unit it is converted, and wrong if it cannot be.

    Args:
      found: what a text says.
      truth: what is right.
      relative: the tolerance as a part of the larger of both magnitudes.
      absolute: the least tolerance, in the truth's unit and power of ten; for truths of zero.

    Examples:
      >>> numbers_agree(Number(5.1, "kilojoule"), Number(5000.0, "joule")), numbers_agree(Number(5.1), Number(4.0))
      (True, False)
    """
    scaled = _scaled(found.value, found.power - truth.power)
    values: list[float | None] = [scaled]
    if found.unit is None and truth.power:
        values.append(found.value)
    if found.unit != truth.unit:
        converted = _converted(scaled, found.unit or "", truth.unit or "")
        values = [converted] if found.unit and truth.unit else [*values, converted]
    return any(v is not None and math.isclose(v, truth.value, rel_tol=relative, abs_tol=absolute) for v in values)


def _scaled(value: float, power: int) -> float:
    return float(f"{value!r}e{power}") if "e" not in repr(value) else value * 10.0**power


def _converted(value: float, unit: str, other: str) -> float | None:
    """The value in the other unit; None where there is no such value."""
    registry = _registry()
    try:
        return float(registry.Quantity(value, registry.Unit(unit)).to(registry.Unit(other)).magnitude)
    except Exception:  # other dimensions, overflow
        return None


# --- expressions ------------------------------------------------------------------------------------------------------

_CLOSED_FORM = re.compile(
    r"(?:\\(?:[dt]?frac|sqrt|pi|ln|log|exp|sin|cos|tan|cdot|times|left|right)(?![A-Za-z])|\\,|π|[0-9.+\-*/^(){}\[\]\s!])+"
)
_FUNCTION = re.compile(r"\\(?:sqrt|pi|ln|log|exp|sin|cos|tan|frac|dfrac|tfrac)(?![A-Za-z])|[π^!]")
# latex2sympy evaluates these while it parses, and python's integers cannot be interrupted: nothing large beside them.
_EAGER = re.compile(r"binom|choose|gamma|gcd|lcm|det", re.I)
_SMALL_POWER = re.compile(r"\^\s?(?:\{(?:[A-Za-z+\- ]|[0-9]{1,2}(?![0-9])){1,9}\}|-?[0-9A-Za-z])")
_LARGE = re.compile(r"[0-9]{5}|[!^]")
_MAX_POWER = 10_000
_SET_AS_UNIT = re.compile(r"\\(?:text|mathrm|rm|mbox|unit|si|circ|degree)(?![A-Za-z])|[%°]")
_ANSWER_SECONDS = 5.0  # math-verify's own default


def same_expression(found: str, truth: str, *, seconds: float = _ANSWER_SECONDS) -> bool | None:
    """Whether two expressions are equal: as strings up to spaces, as numbers to six digits, or as math-verify says.

    Args:
      found: what a text says, see `final_answer`.
      truth: what is right; where it is a set, an equation or an interval, math-verify takes its form as the wanted one.
      seconds: the time that math-verify may take, of its thread.

    Returns:
      None where it was not decided: one is no expression, is too long or too large, or time ran out.

    Examples:
      >>> same_expression("x = 2", "x=2"), same_expression("1/2", "0.5"), same_expression("0.3", "1/3")
      (True, True, False)
    """
    if max(len(found), len(truth)) > MAX_ANSWER:
        return None
    found, truth = _tidy(found), _tidy(truth)
    if found and _compact(found) == _compact(truth):
        return True
    as_numbers = _same_number(found, truth)
    if as_numbers is not None:
        return as_numbers
    if max(len(found), len(truth)) > MAX_EXPRESSION:
        return None
    try:
        return _within(seconds, _verified, found, truth)
    except (_OutOfTime, RecursionError, MemoryError, _TooLarge):
        return None


def _same_number(found: str, truth: str) -> bool | None:
    r"""Whether two numbers are the same; None where they are something else, or may be.

    math-verify would round 1e-8 and 2e-8 to the same six decimals, and reads 1\frac{3}{4} as a product.
    """
    (ours, more), (theirs, more_of_truth) = _number(found), _number(truth)
    if ours is None or theirs is None or more or more_of_truth or "=" in found + truth:
        return None
    if max(abs(ours.value), abs(theirs.value)) >= 2**53:  # floats would take neighbouring integers for the same
        return None
    with_unit = found if ours.unit else truth
    if (ours.unit is None) != (theirs.unit is None) and not _SET_AS_UNIT.search(with_unit):
        return None  # 3t and 3mg are more likely products of symbols
    integers = ours.value.is_integer() and theirs.value.is_integer()
    return numbers_agree(ours, theirs, relative=1e-12 if integers else 2e-6)


def _tidy(text: str) -> str:
    text = re.sub(r"\s+", " ", re.sub(r"\\[()\[\]]|\\?\$|\x00", " ", text))
    return text.strip().rstrip(" .,;:")


def _compact(text: str) -> str:
    """Spaces only where they part two words or numbers; one spelling of what looks alike."""
    text = re.sub(r"\\(?:left|right|displaystyle|[,;:!])(?![A-Za-z])|\\[ ]", "", text)
    text = re.sub(r"\\[dt]frac(?![A-Za-z])", r"\\frac", re.sub(r"\{([A-Za-z0-9])\}", r"\1", text))
    return re.sub(r"(?<=[^\w]) | (?=[^\w])", "", text)


def _verified(found: str, truth: str) -> bool | None:
    from math_verify import verify

    ours, theirs = _parsed(found), _parsed(truth)
    if verify(theirs, ours, timeout_seconds=None, allow_set_relation_comp=True):
        return True
    return False if all(any(not isinstance(e, str) for e in parsed) for parsed in (ours, theirs)) else None


def _closed_form(text: str) -> Number | None:
    r"""The value of an expression such as \frac{\pi}{4} that is a real number."""
    side = _SIDES.split(_tidy(text).replace(r"\approx", "≈"))[-1].strip()
    if not _CLOSED_FORM.fullmatch(side) or not _FUNCTION.search(side):
        return None

    def value() -> float:
        expression: Any = next(iter(_parsed(side.replace("π", r"\pi "))), None)
        return float(expression.doit().evalf()) if getattr(expression, "is_number", False) else math.nan

    try:
        found = _within(_ANSWER_SECONDS, value)
    except (_OutOfTime, _TooLarge, RecursionError, MemoryError, TypeError, ValueError, ArithmeticError, AttributeError):
        return None
    return Number(found) if math.isfinite(found) else None


def _parsed(text: str) -> list[Any]:
    """The expression as math-verify parses it, before and after a fallback to the text; none of them large.

    Raises:
      _TooLarge: it holds a number that would take long to compute.
    """
    from latex2sympy2_extended import NormalizationConfig
    from math_verify import LatexExtractionConfig, parse

    if _EAGER.search(text) and (text.count("^") > 3 or _LARGE.search(_SMALL_POWER.sub("", text))):
        raise _TooLarge
    # Units are not dropped: 5 m is not 5 kg. Units are for `number`.
    keep = NormalizationConfig(basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none")
    config = LatexExtractionConfig(boxed_match_priority=-1, normalization_config=keep)
    expressions = parse(f"${text}$", [config], parsing_timeout=None)
    for expression in expressions:
        _size(expression)
    return expressions


def _size(expression: Any) -> float:
    """An upper bound, and at least 1, of the magnitudes in an expression; symbols count as 1.

    Raises:
      _TooLarge: a power or a factorial beyond `_MAX_POWER`; python's integers would compute it without a break.
    """
    parts = expression.flat() if hasattr(expression, "flat") else getattr(expression, "args", ())
    name, sizes = type(expression).__name__, [_size(part) for part in parts]
    if sizes and name in ("Pow", "factorial", "factorial2", "gamma", "binomial"):
        if max(sizes[1:] or sizes) > _MAX_POWER:
            raise _TooLarge
    try:
        if getattr(expression, "is_Number", False):
            size = abs(float(expression))
        elif name == "Pow":
            size = sizes[0] ** sizes[1]
        elif name in ("exp", "factorial", "factorial2", "gamma"):
            size = math.gamma(sizes[0] + 3)  # above them all
        else:
            size = math.prod(sizes) if name == "Mul" else math.fsum(sizes)
    except (OverflowError, ValueError):
        return math.inf
    return max(size, 1.0) if size == size else math.inf


class _TooLarge(Exception):
    """An expression holds a number that would take long to compute."""


class _OutOfTime(BaseException):
    """Not an Exception, as sympy and math-verify go on after those."""


@functools.cache
def _warm_up() -> None:
    """A process's first expressions import much, and make tables: seconds that are not an answer's."""
    _verified("(x+1)^2", "x^2+2x+1")
    _verified(r"\sin(2x)", r"2\sin(x)\cos(x)")


def _within(seconds: float, call: Callable, *arguments: Any) -> Any:
    """`call(*arguments)`, in any thread.

    math-verify's own timeout is a signal, for the main thread alone. A profile hook is called at every call and return of
    its own thread and may raise there. It does not interrupt one long operation on python's integers: see `_size`. Time
    is the thread's own, so that what others do on the machine decides nothing.

    Raises:
      _OutOfTime: after so many seconds.
    """
    import math_verify

    # Its one warning says that timeouts are now the caller's: they are.
    logging.getLogger(math_verify.__name__).setLevel(logging.ERROR)
    _warm_up()
    end, before = time.thread_time() + seconds, sys.getprofile()

    def hook(frame: Any, *_: Any) -> None:
        if time.thread_time() > end and not _is_importing(frame):
            raise _OutOfTime

    sys.setprofile(hook)
    try:
        return call(*arguments)
    finally:
        sys.setprofile(before)


def _is_importing(frame: Any) -> bool:
    """Whether a module is being imported; one that was interrupted could not be imported again."""
    while frame is not None and not frame.f_code.co_filename.startswith("<frozen importlib"):
        frame = frame.f_back
    return frame is not None
