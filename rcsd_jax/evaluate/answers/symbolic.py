"""math-verify and sympy within limits of time and size, because a model may write anything."""

from __future__ import annotations

import functools
import itertools
import logging
import math
import re
import sys
import time
from collections.abc import Callable
from typing import Any

ANSWER_SECONDS = 5.0  # math-verify's own default
# latex2sympy evaluates these while it parses, and python's integers cannot be interrupted: nothing large may stand next to them.
_EAGER = re.compile(r"binom|choose|gamma|gcd|lcm|det", re.I)
_SMALL_POWER = re.compile(r"\^\s?(?:\{(?:[A-Za-z+\- ]|[0-9]{1,2}(?![0-9])){1,9}\}|-?[0-9A-Za-z])")
_LARGE = re.compile(r"[0-9]{5}|[!^]")
_MAX_POWER = 10_000
_EQUALS = re.compile(r"(?<![\\<>!])=")
_UPRIGHT_E = re.compile(r"\\(?:mathrm|text)\s?\{e\}")
_EVENTS = 64  # calls and returns between two looks at the clock, which costs more than most of them
_BIG_GAMMA = re.compile(r"(?:\\Gamma(?![A-Za-z])|Γ)(?!\s*(?:\(|\\left))")


def equal(found: str, truth: str, *, seconds: float = ANSWER_SECONDS) -> bool | None:
    """Whether math-verify considers two LaTeX expressions equal; None if one is not an expression or too large, or time ran out.

    None also where sympy fails, which may contradict itself about what an expression is.
    """
    try:
        return _within(seconds, _verified, found, truth)
    except (_OutOfTime, RecursionError, MemoryError, _TooLarge, TypeError, ValueError, ArithmeticError, AttributeError):
        return None


def value(text: str) -> float | None:
    r"""The value of a LaTeX expression such as \frac{\pi}{4}; None if it is not a finite real number."""
    try:
        found = _within(ANSWER_SECONDS, _evaluated, text)
    except (_OutOfTime, _TooLarge, RecursionError, MemoryError, TypeError, ValueError, ArithmeticError, AttributeError):
        return None
    return found if math.isfinite(found) else None


def _evaluated(text: str) -> float:
    expression: Any = next(iter(_parsed(text)), None)
    return float(expression.doit().evalf()) if getattr(expression, "is_number", False) else math.nan


def _verified(found: str, truth: str) -> bool | None:
    from math_verify import verify  # late: takes a second

    ours, theirs = _parsed(found), _parsed(truth)
    if verify(theirs, ours, timeout_seconds=None, allow_set_relation_comp=True):
        return not (_only_alike(ours[0], theirs[0]) or _rounded_alike(ours[0], theirs[0]))
    return False if all(any(not isinstance(e, str) for e in parsed) for parsed in (ours, theirs)) else None


def _parsed(text: str) -> list[Any]:
    """The expression as math-verify parses it, if it can, and its text; never a large expression.

    Its own `parse` treats R and r as one symbol, and reduces a sentence that holds a fraction to the fraction.

    Raises:
      _TooLarge: it holds a number that would take long to compute.
    """
    # Late: together they take a second.
    from latex2sympy2_extended import NormalizationConfig, latex2sympy, normalize_latex
    from latex2sympy2_extended.latex2sympy2 import ConversionConfig
    from math_verify.grader import should_treat_as_complex

    if _EAGER.search(text) and (text.count("^") > 3 or _LARGE.search(_SMALL_POWER.sub("", text))):
        raise _TooLarge
    # Units are not dropped: 5 m is not 5 kg. Units are for `number`.
    keep = NormalizationConfig(basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none")
    text = normalize_latex(_UPRIGHT_E.sub("e", text), keep)
    sides = _EQUALS.split(text)
    chain = len(sides) > 2 and not re.search("[,;]", text)  # if an equation does not parse, its last side
    for part in (text, sides[-1]) if chain else (text,):
        try:
            expression = latex2sympy(
                _BIG_GAMMA.sub(r"\\text{BigGamma}", part),  # else it is Euler's constant, as the small one
                is_real=not should_treat_as_complex(part),
                normalization_config=None,
                conversion_config=ConversionConfig(lowercase_symbols=False),
            )
        except Exception:  # a grammar may raise anything on foreign text
            continue
        _size(expression)
        return [expression, text]
    return [text]


def _only_alike(ours: Any, theirs: Any) -> bool:
    """Whether two expressions were equal only because `verify` lowercases longer names and Euler's e."""
    names, others = _names(ours), _names(theirs)
    if len(names) == 1 != len(others) or len(others) == 1 != len(names):  # it joins factors: \text{ab} is a b
        joined = ["".join(sorted("".join(some))) for some in (names, others)]
        return joined[0] != joined[1] and joined[0].lower() == joined[1].lower()
    lower = {name.lower() for name in names - others}
    return any(name.lower() in lower for name in others - names)


def _names(expression: Any) -> frozenset[str]:
    import sympy  # late: takes a second

    names = frozenset(str(symbol.name) for symbol in getattr(expression, "free_symbols", ()))
    return names | {"e"} if getattr(expression, "has", None) and expression.has(sympy.E) else names


def _rounded_alike(ours: Any, theirs: Any) -> bool:
    """Whether two numbers were equal only because `verify` rounds to six decimals: 1/2004! and 1/2006!."""
    if not all(getattr(e, "is_number", False) and getattr(e, "is_finite", False) for e in (ours, theirs)):
        return False
    a, b = (abs(e.evalf(20)) for e in (ours, theirs))
    return max(a, b) < 1e-3 and bool(abs(a - b) > 1e-3 * max(a, b))


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
    """Not an Exception, because sympy and math-verify catch those and continue."""


@functools.cache
def _warm_up() -> None:
    """Parses a first expression. It imports modules and makes tables for seconds, which no answer should be charged for."""
    _verified("(x+1)^2", "x^2+2x+1")
    _verified(r"\sin(2x)", r"2\sin(x)\cos(x)")


def _within(seconds: float, call: Callable, *arguments: Any) -> Any:
    """`call(*arguments)`, in any thread.

    math-verify's own timeout is a signal, which works only in the main thread. A profile hook is called at every call and
    return of its own thread and may raise there. It does not interrupt one long operation on python's integers: see
    `_size`. Time is the thread's CPU time, so other work on the machine does not matter.

    Raises:
      _OutOfTime: after this many seconds.
    """
    import math_verify  # late: takes a second

    # Its only warning says that timeouts are now up to the caller, as they are here.
    logging.getLogger(math_verify.__name__).setLevel(logging.ERROR)
    _warm_up()
    end, before, events = time.thread_time() + seconds, sys.getprofile(), itertools.count(1)

    def hook(frame: Any, *_: Any) -> None:
        if next(events) % _EVENTS == 0 and time.thread_time() > end and not _is_importing(frame):
            raise _OutOfTime

    sys.setprofile(hook)
    try:
        return call(*arguments)
    finally:
        sys.setprofile(before)


def _is_importing(frame: Any) -> bool:
    """Whether a module is being imported; after an interruption it could not be imported again."""
    while frame is not None and not frame.f_code.co_filename.startswith("<frozen importlib"):
        frame = frame.f_back
    return frame is not None
