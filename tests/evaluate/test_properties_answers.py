"""Properties of answers and their grades, whatever a model writes; see `test_properties.py`."""

import itertools

import pytest
from hypothesis import assume
from hypothesis import strategies as st

from rcsd_jax.data.examples import Example
from rcsd_jax.evaluate import answers
from rcsd_jax.evaluate.answers import expressions
from rcsd_jax.evaluate.graders import boxed_feedback, grade_all, grade_boxed, grade_number, grade_option
from tests.test_properties import TEXT, holds, inputs, made_of

PIECES = (
    "\\boxed{", "\\boxed", "\\fbox{", "{", "}", "\\{", "\\", "$", "\\text{", "\\mathrm{", "\\frac{1}{2}", "\\frac", "answer",
    "The answer is ", "Final answer: ", "**", " is the correct answer", "option ", "(B)", "A", "b.", "12", "1,234", "-", "3.5",
    "e5", "10^", "\\times 10^{-4}", "/", "°C", "K", "kg", " m/s", "\\circ", "per", "square ", "^2", "million", "mıllion", "bİllion",
    "²", "½", "٣", "\\sqrt", "\\pi", "!", "=", "\\approx", "%", ",", ";", "\n", " and ", "=5", "\\infty", "\\int", "yes", "no",
    "答案是", "故选：", "B正确", "La réponse est ", "Option B is correct", "Wait. ", "So ", "<answer>", "#### ", "±", "\\pm", "R",
)  # fmt: skip
COMPLETIONS = made_of(*PIECES)
OPTIONS = ["nucleus", "A", "12 kg", "Golgi apparatus"]


def example_of(reference=None, answer=None, **extra):
    return Example("1", "q", reference, None, answer, "rows:1", extra)


@inputs(200, 8_300)
def test_no_text_stops_an_extraction(count):
    def check(text):
        for found in (answers.option(text, OPTIONS), answers.number(text), answers.final_answer(text)):
            assert (found.value is None) == (found.reason in answers.UNPARSED)
        assert answers.option(text, OPTIONS).value in (None, 0, 1, 2, 3)

    holds(check, count, COMPLETIONS)


@inputs(30, 1_000)
def test_no_text_stops_a_grader(count):
    def check(text, truth):
        # The pieces of both together stay small: math-verify takes long over long ones.
        example = example_of(truth or "1", "5", unit="kg", options=OPTIONS, correct=1)
        for grader in ("boxed", "option", "number"):
            (scores,) = grade_all(grader, [example], [text])
            assert set(scores.values()) <= {0.0, 1.0}
        boxed_feedback(example, text)

    holds(check, count, made_of(*PIECES, most=6), made_of(*PIECES, most=4, text=TEXT))


@inputs(100, 4_000)
def test_expressions_that_are_equal_as_written_are_equal(count):
    def check(text, other):
        assume(len(expressions.tidy(text)) > 0)
        assert answers.same_expression(text, text) is True
        assert answers.same_expression(f"  {text} ", f"${text}$") is True

    holds(check, count, st.text(st.characters(exclude_characters="\\$ \x00.,;:"), min_size=1, max_size=10), st.none())


BALANCED = st.recursive(
    st.one_of(
        st.text(st.characters(exclude_characters="{}\\"), max_size=8),
        st.sampled_from(("\\{", "\\}", "\\\\ ", "\\frac ", "$", "\n")),
    ),
    lambda inner: st.one_of(inner.map("{{{}}}".format), st.lists(inner, max_size=3).map("".join)),
    max_leaves=8,
)
PROSE = st.text(st.characters(exclude_characters="{}\\"), max_size=30)


@inputs(200, 3_000)
def test_a_box_is_found_whatever_it_holds(count):
    def check(content, before, after):
        assume(content.strip() and "boxed" not in content and "fbox" not in content)
        assert answers.last_boxed(f"{before}\\boxed{{{content}}}{after}") == content.strip()

    holds(check, count, BALANCED, PROSE, PROSE)


DRESSES = (
    "\\boxed{{{}}}", "So, $\\boxed{{{}}}$.", "\\[\\boxed{{ {} }}\\]", "\\boxed{{\\text{{{}}}}}", "\\fbox{{{}}}",
    "The answer is {}.", "**Final answer:** {}", "The final answer is $\\mathrm{{{}}}$.", "{}", "Answer: **{}**",
)  # fmt: skip
DECIMALS = st.decimals(-(10**6), 10**6, places=3).map("{:f}".format)


@inputs(100, 1_500)
def test_a_number_is_graded_alike_in_any_dress(count):
    def check(found, truth, unit):
        example = example_of(answer=truth, unit=unit)
        for value in (found, truth):
            texts = [dress.format(f"{value} {unit}".strip()) for dress in DRESSES]
            grades = [grade_number(example, text) for text in texts]
            assert all(grade == grades[0] for grade in grades), list(zip(texts, grades, strict=True))
            assert grades[0]["parsed"] == 1.0
        assert grades[0]["accuracy"] == 1.0

    holds(check, count, DECIMALS, DECIMALS, st.sampled_from(("", "kg", "m/s", "J")))


@inputs(100, 1_000)
def test_an_option_is_graded_alike_in_any_dress(count):
    def check(correct, chosen, before):
        options = ["a nucleus", "mitochondria", "two ribosomes", "Golgi apparatus"]
        example = example_of(options=options, correct=correct)
        for shown in ("ABCD"[chosen], f"({'ABCD'[chosen]})", f"{'ABCD'[chosen]}. {options[chosen]}", options[chosen]):
            for dress in DRESSES:
                text = dress.format(shown)
                assert grade_option(example, text) == {"accuracy": float(correct == chosen), "parsed": 1.0}, text
        boxed = f"{before}\\boxed{{{'ABCD'[chosen]}}}"
        assert grade_option(example, boxed)["accuracy"] == float(correct == chosen)

    holds(check, count, st.integers(0, 3), st.integers(0, 3), PROSE)


@inputs(50, 1_000)
def test_statements_of_two_options_are_unparsed_unless_the_last_is_final(count):
    statements = (
        "The answer is {}.", "Option {} is the correct answer.", "{} is the correct option", "答案是{}。", "I choose {}.",
        "La réponse est ({}).", "Die Antwort ist {}.",
    )  # fmt: skip

    def check(one, another, first, second, between):
        example = example_of(options=["a nucleus", "mitochondria", "two ribosomes", "Golgi apparatus"], correct=second)
        text = f"{one.format('ABCD'[first])}{between}{another.format('ABCD'[second])}"
        assert grade_option(example, text)["parsed"] == float(first == second), text
        assert grade_option(example, f"{text}\nFinal answer: {'ABCD'[second]}") == {"accuracy": 1.0, "parsed": 1.0}

    letters, forms = st.integers(0, 3), st.sampled_from(statements)
    holds(check, count, forms, forms, letters, letters, st.sampled_from((" ", "\n", "\n- Option: ", " It makes ATP. ")))


SYMBOLS = "abcdfghjkmnpqrstuvwyzRT"
FORMS = ("?", "2\\pi ?", "?^2 + 1", "\\frac{?}{3}", "\\sqrt{?}", "?_0", "x = ?", "(1, ?)", "\\{1, ?\\}", "5?")


@pytest.mark.parametrize(
    "symbols",
    [pytest.param((symbol,), id=symbol) for symbol in "ar"] + [pytest.param(SYMBOLS, id="all", marks=pytest.mark.slow)],
)
def test_symbols_have_a_case(symbols):
    for symbol, form in itertools.product(symbols, FORMS if len(symbols) > 1 else FORMS[::4]):
        found, truth = form.replace("?", symbol), form.replace("?", symbol.swapcase())
        example = example_of(f"\\boxed{{{truth}}}")
        assert grade_boxed(example, f"\\boxed{{{found}}}")["accuracy"] == 0.0, (found, truth)
        assert grade_boxed(example, f"\\boxed{{{truth}}}")["accuracy"] == 1.0, truth


@pytest.mark.parametrize("word", ("yes", "no", "even", "the integers", "isosceles", "\\text{north}"))
def test_words_have_no_case(word):
    assert grade_boxed(example_of(f"\\boxed{{{word}}}"), f"\\boxed{{{word.capitalize()}}}")["accuracy"] == 1.0


@inputs(5, 200)
def test_an_expression_is_graded_alike_in_any_dress(count):
    boxes = (
        "\\boxed{{{}}}",
        "$\\boxed{{ {} }}$",
        "\\[ \\boxed{{\\displaystyle {}}} \\]",
        "\\fbox{{{}}}",
        "\\boxed{{${}$}}",
    )

    def check(found, truth):
        example = example_of(f"We get \\boxed{{{truth}}}.")
        for value in (found, truth):
            grades = [grade_boxed(example, box.format(value)) for box in boxes]
            assert all(grade == grades[0] for grade in grades), (value, grades)
        assert grades[0] == {"accuracy": 1.0, "parsed": 1.0}

    terms = st.tuples(st.sampled_from(("\\frac{1}{2}", "x", "\\sqrt{3}", "2^{n}", "\\pi")), st.integers(1, 9))
    expressions = st.lists(terms, min_size=1, max_size=2).map(lambda x: " + ".join(f"{n}{term}" for term, n in x))
    holds(check, count, expressions, expressions)


def test_scales_are_spelled_in_ascii():
    assert answers.number("5 Million").value.value == 5e6
    for text in ("5 mıllion", "5 bİllion"):  # "ı" and "İ" pass for an i where case is ignored
        assert answers.number(text).value == answers.Number(5.0)  # nor does an m before them for metres
