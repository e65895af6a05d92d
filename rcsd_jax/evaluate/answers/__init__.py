r"""Reads final answers in a model's text: options, numbers with units, expressions. Never raises, whatever the text.

A text's answer is the first of these that exists:

1. the last complete `\boxed{}` that is not empty;
2. unless a box was begun and cut: the last statement that can be read ("the answer is (C)", "答案是C", "option C is correct");
3. the whole text if it is nothing but an answer; for options also the first or last line.

Statements that contradict each other give no answer, unless the last one is more final or takes the others back. A letter or
number that is only mentioned is not an answer. The caller drops thinking blocks.

An answer that cannot be read is *unparsed*, not *wrong*: `FinalAnswer.value` is None and `FinalAnswer.reason` one of `UNPARSED`.

Numbers are found by regular expressions, converted by pint and compared as SciBench does; expressions are compared by
math-verify. Both are imported when they are first needed. Every search is linear: over whole texts single passes with
bounded repetitions, and the rest over answers of at most `MAX_ANSWER` or `MAX_EXPRESSION` characters.
"""

from rcsd_jax.evaluate.answers.expressions import same_expression
from rcsd_jax.evaluate.answers.numbers import number
from rcsd_jax.evaluate.answers.options import option
from rcsd_jax.evaluate.answers.places import UNPARSED, FinalAnswer, final_answer, last_boxed
from rcsd_jax.evaluate.answers.quantities import Number, numbers_agree

__all__ = [
    "FinalAnswer",
    "Number",
    "UNPARSED",
    "final_answer",
    "last_boxed",
    "number",
    "numbers_agree",
    "option",
    "same_expression",
]
