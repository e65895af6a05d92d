"""Turns LaTeX, markdown and unicode into plain text."""

from __future__ import annotations

import re
import unicodedata

_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾", "0123456789+-()")
_PLAIN_CHARACTERS = str.maketrans(
    dict.fromkeys("‐‑‒–—−﹣", "-") | dict.fromkeys("×✕⨯·⋅∙•∗", "*") | dict.fromkeys("“”″", '"')
    | dict.fromkeys("‘’′", "'") | {"⁄": "/", "∕": "/", "÷": "/", "˚": "°", "º": "°", "。": ".", "、": ","}
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
        (r"\\pm(?![A-Za-z])|\+\s?/\s?-", "±"),
        (r"\\(?:AA|r\{A\}|mathring\{A\})(?![A-Za-z])", "Å"),
        (r"(?<=[0-9A-Za-z)])\*\*(?=\s?[-+(]?[0-9])", "^"),
        (r"\*\*", ""),
    )
]
_COMMAND = re.compile(r"\\([A-Za-z]{2,8})(?![A-Za-z])")


def plain(text: str) -> str:
    """The text without the markup of LaTeX and markdown: one spelling for each sign, single spaces."""
    text = re.sub(r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾]+", lambda match: "^" + match[0].translate(_SUPERSCRIPTS), text)
    text = re.sub(r"(?=[¼-¾⅐-⅞])", " ", text)  # 1½ is not 11/2
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
