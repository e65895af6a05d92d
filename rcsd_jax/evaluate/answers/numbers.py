"""The number that a text gives as its answer."""

from __future__ import annotations

from rcsd_jax.evaluate.answers.expressions import closed_form
from rcsd_jax.evaluate.answers.places import SENTENCE_END, FinalAnswer, read
from rcsd_jax.evaluate.answers.quantities import numbers_agree, quantity


def number(text: str) -> FinalAnswer:
    r"""The number that a completion gives as its answer, also from a bare answer such as "5 kJ".

    It reads thousands separators (`1,234.5`, `1\,234`), powers of ten (`3.2e-4`, `3.2 \times 10^{-4}`), fractions, percent,
    `x = 5`, `\approx 5`, `2.5 \pm 0.1` (as 2.5), closed forms without a unit (`\frac{\pi}{4}`), and units in words, symbols
    or LaTeX. Text after the number that is not a unit ("electrons", "downward") counts as prose. Two numbers
    (including `3 \pm 2`), a range, an inequality, a decimal comma and numbers in words give no number.

    Returns:
      A FinalAnswer with a Number.

    Examples:
      >>> number(r"\boxed{3.2 \times 10^{-4}\ \text{J}}").value
      Number(value=0.00032, unit='joule', power=0)
      >>> number("between 3 and 4").value is None
      True
    """
    return read(text, _number_of_line, _number_alone, agree=numbers_agree)


def _number_of_line(line: str) -> FinalAnswer:
    """The number of a box or a line; text may follow the number's sentence."""
    for part in dict.fromkeys((line, SENTENCE_END.split(line, maxsplit=1)[0])):
        found = quantity(part)[0] or closed_form(part)
        if found is not None:
            return FinalAnswer(found, "")
    return FinalAnswer(None, "not_a_number")


def _number_alone(text: str) -> FinalAnswer:
    """The number of a text that may be prose, and then is nothing but the number and a word or two."""
    found, rest = quantity(text)
    found = closed_form(text) if found is None else found if len(rest.split()) <= 3 else None
    return FinalAnswer(found, "" if found else "not_a_number")
