"""How long prompts and completions really are: a histogram in a JSON file, and batches drawn from it.

    {
      "source": "what was counted, and with which tokenizer",
      "prompts": [[113, 450, 2], [1275, 1616, 1]],
      "completions": {"lognormal": {"median": 800, "sigma": 0.8}}
    }

An entry of `prompts` is [tokens of the student's prompt, tokens of the teacher's, rows that have both]. `completions` may also be
{"counts": [[tokens, completions], ...]}. A completion that would be longer than `sampling.max_new_tokens` is cut there.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rcsd_jax.host.errors import UserError, first_line

SHIPPED = Path(__file__).parent / "histograms"


class Lognormal(NamedTuple):
    """Completion lengths whose logarithm is normally distributed."""

    median: float
    sigma: float


class Histogram(NamedTuple):
    """Lengths in tokens, and how many rows have them.

    Attributes:
      name: as the user gave it.
      source: what was counted.
      student, teacher: [n] int, prompts of both roles.
      rows: [n] int, rows with such prompts.
      completions: a distribution, or ([m] lengths, [m] counts).
    """

    name: str
    source: str
    student: np.ndarray
    teacher: np.ndarray
    rows: np.ndarray
    completions: Lognormal | tuple[np.ndarray, np.ndarray]


class Drawn(NamedTuple):
    """The lengths of a batch's rows, each [B] int."""

    student: np.ndarray
    teacher: np.ndarray
    completion: np.ndarray


def read(name: str) -> Histogram:
    """The histogram in a file, or one that ships.

    Raises:
      UserError: there is neither, or it is not as this module's docstring says.
    """
    path = Path(name).expanduser()
    if not path.exists() and (SHIPPED / f"{name}.json").exists():
        path = SHIPPED / f"{name}.json"
    known = ", ".join(sorted(p.stem for p in SHIPPED.glob("*.json")))
    try:
        fields = json.loads(path.read_text("utf-8"))
    except OSError as error:
        remedy = f"give a JSON file, or the name of a histogram that ships: {known}"
        raise UserError(
            f"cannot be read ({first_line(error)})", field="--lengths", value=name, remedy=remedy
        ) from error
    except ValueError as error:
        remedy = "write it as docs/tpu.md shows"
        raise UserError(f"is not JSON ({first_line(error)})", file=path, remedy=remedy) from error
    prompts = _table(path, fields, "prompts", "tokens of the student's prompt, of the teacher's, and rows", 3)
    student, teacher, rows = prompts.T
    return Histogram(name, str(fields.get("source", "")), student, teacher, rows, _completions(path, fields))


def _completions(path: Path, fields: Mapping[str, Any]) -> Lognormal | tuple[np.ndarray, np.ndarray]:
    given = fields.get("completions")
    if isinstance(given, dict) and set(given) == {"counts"}:
        lengths, counts = _table(path, given, "counts", "tokens of a completion, and completions", 2).T
        return lengths, counts
    match given:
        case {"lognormal": {"median": int() | float() as median, "sigma": int() | float() as sigma, **more}, **others}:
            if not more and not others and 0 < median < math.inf and 0 <= sigma < math.inf:
                return Lognormal(median, sigma)
    raise UserError(
        "is no distribution of lengths",
        file=path,
        field="completions",
        value=given,
        remedy='write {"lognormal": {"median": 800, "sigma": 0.8}} or {"counts": [[tokens, completions], ...]}',
    )


def _table(path: Path, fields: Any, key: str, columns: str, width: int) -> np.ndarray:
    """A list of rows of `width` positive whole numbers, [n, width]."""
    given = fields.get(key) if isinstance(fields, dict) else None
    rows = given if isinstance(given, list) else []
    whole = lambda row: isinstance(row, list) and len(row) == width and all(type(x) is int and x > 0 for x in row)
    if not rows or not all(map(whole, rows)):
        remedy = f"write a list of [{columns}], all of them positive whole numbers"
        raise UserError("is no table of lengths", file=path, field=key, value=given, remedy=remedy)
    return np.array(rows)


def within(histogram: Histogram, *, student: int, teacher: int) -> Histogram:
    """The histogram of the rows that a run keeps: both prompts are within their limits.

    Raises:
      UserError: none is.
    """
    kept = (histogram.student <= student) & (histogram.teacher <= teacher)
    if not kept.any():
        raise UserError(
            f"no row has prompts within {student} and {teacher} tokens",
            field="--lengths",
            value=histogram.name,
            remedy="raise data.max_student_prompt or data.max_teacher_prompt",
        )
    columns = (histogram.student[kept], histogram.teacher[kept], histogram.rows[kept])
    return histogram._replace(student=columns[0], teacher=columns[1], rows=columns[2])


def draw(histogram: Histogram, *, questions: int, group: int, longest: int, seed: int) -> Iterator[Drawn]:
    """Endless batches: rows drawn independently by their counts, and a completion length for each row.

    Args:
      histogram: of the rows that the run keeps.
      questions: of a batch.
      group: rows of a batch with the same question, which follow each other.
      longest: completions are cut there.
      seed: decides the draws.
    """
    random = np.random.default_rng(seed)
    share = histogram.rows / histogram.rows.sum()
    while True:
        chosen = np.repeat(random.choice(len(share), questions, p=share), group)
        if isinstance(histogram.completions, Lognormal):
            median, sigma = histogram.completions
            completion = np.ceil(random.lognormal(math.log(median), sigma, len(chosen)))
        else:
            lengths, counts = histogram.completions
            completion = random.choice(lengths, len(chosen), p=counts / counts.sum())
        completion = np.clip(completion, 1, longest).astype(int)
        yield Drawn(histogram.student[chosen], histogram.teacher[chosen], completion)
