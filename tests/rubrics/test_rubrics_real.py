"""400 real RaR-Science rows: every ground-truth rubric parses, every raw model text gets an outcome and a reason."""

import json
from collections import Counter
from pathlib import Path

import pytest

from rcsd_jax.rubrics import parsing, schema

PATH = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "rar_science_400.jsonl"

pytestmark = pytest.mark.skipif(not PATH.exists(), reason="needs ../shared/data/rar_science_400.jsonl")

# Measured. The rejected are thoughts (untagged) that were cut before the final array, arrays cut before their third
# criterion, and copies of the prompt's two-criterion example.
OUTCOMES = {
    "learned": {
        ("strict", "ok"): 317,
        ("salvaged", "repaired"): 6,
        ("salvaged", "unterminated"): 23,
        ("rejected", "no_array"): 32,
        ("rejected", "too_few"): 22,
    },
    "qwen3_8b_direct": {
        ("strict", "ok"): 308,
        ("salvaged", "repaired"): 1,
        ("salvaged", "unterminated"): 25,
        ("rejected", "no_array"): 52,
        ("rejected", "too_few"): 14,
    },
}


@pytest.fixture(scope="module")
def rows():
    return [json.loads(line) for line in PATH.read_text(encoding="utf-8").splitlines()]


def test_all_ground_truth_rubrics_parse(rows):
    rubrics = [schema.from_records(row["rubrics"]["GT"]) for row in rows]
    assert [len(rubric) for rubric in rubrics] == [len(row["rubrics"]["GT"]) for row in rows]
    kinds = Counter(criterion.kind for rubric in rubrics for criterion in rubric.criteria)
    assert kinds == {"Essential": 929, "Important": 1019, "Optional": 669, "Pitfall": 393}
    for rubric in rubrics:
        assert parsing.parse(schema.to_json(rubric)).rubric == rubric
        assert parsing.parse(schema.to_json(rubric, style="strings")).rubric == rubric


@pytest.mark.parametrize("model", OUTCOMES)
def test_every_model_text_has_an_outcome_and_a_reason(rows, model):
    parsed = [parsing.parse(row["rubrics"][model]) for row in rows]
    assert Counter((p.status, p.code) for p in parsed) == OUTCOMES[model]
    assert all(len(p.reason) > len(p.code) + 2 for p in parsed)
    assert all((p.rubric is None) == (p.status == "rejected") for p in parsed)


@pytest.mark.parametrize("model", OUTCOMES)
def test_accepted_rubrics_are_clean(rows, model):
    for row in rows:
        rubric = parsing.parse(row["rubrics"][model]).rubric
        if rubric is None:
            continue
        assert 3 <= len(rubric) <= 25
        for criterion in rubric.criteria:
            assert schema.split_class(criterion.description)[0] is None
            assert criterion.description.isprintable() and criterion.title
        assert parsing.parse(schema.to_json(rubric)).rubric == rubric


@pytest.mark.parametrize(
    "model, row, code, size, shown",
    [
        ("learned", 101, "repaired", 7, r"$ \text{H}_2\text{O} \rightleftharpoons \text{H}^+ + \text{OH}^- $"),
        ("learned", 192, "repaired", 8, r"$ 2.17 \times 10^7 $"),
        ("learned", 347, "repaired", 8, r"$2\cos(kx-wt)$"),
        ("learned", 5, "unterminated", 5, "average NaOH volume"),
        ("learned", 15, "unterminated", 5, "beyond the key facts"),
        ("qwen3_8b_direct", 4, "repaired", 7, "'tetrahedral geometry'"),
        ("qwen3_8b_direct", 44, "unterminated", 6, ""),
    ],
)
def test_rows_read_by_hand(rows, model, row, code, size, shown):
    parsed = parsing.parse(rows[row]["rubrics"][model])
    assert (parsed.code, len(parsed.rubric)) == (code, size)
    assert any(shown in criterion.description for criterion in parsed.rubric.criteria)


def test_cutting_a_text_anywhere_only_loses_criteria(rows):
    for row in rows[::40]:
        text = row["rubrics"]["learned"]
        whole = parsing.parse(text, min_criteria=1)
        if whole.status != "strict":
            continue
        for cut in range(0, len(text), 97):
            part = parsing.parse(text[:cut], min_criteria=1)
            assert part.status in ("salvaged", "rejected")
            if part.rubric is not None:
                assert part.rubric.criteria == whole.rubric.criteria[: len(part.rubric)]
