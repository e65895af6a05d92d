r"""Final answers in what a model wrote: options, numbers with units, expressions. Never raises, whatever the text.

A text's answer is, in this order: its last complete `\boxed{}` that is not empty; else, unless a box was begun and
cut, its last statement ("the answer is (C)", "答案是C", "option C is correct") that can be read; else the whole text, or of
options its first or last line, if that is nothing but an answer. Statements that contradict each other are none, unless
the last one is more final or takes the others back. A letter or number that is merely mentioned is none. Thinking blocks
are dropped by the caller.

What could not be read is *unparsed*, and not *wrong*: `FinalAnswer.value` is None and `FinalAnswer.reason` one of `UNPARSED`.

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
