"""Rubrics as data: criteria with a class and a weight, read from and written to the formats found in the wild.

The four classes follow RaR (Rubrics as Rewards, arXiv 2507.17746). These formats of a criterion are read, mixed freely:

    {"title": "Final value", "description": "Essential Criteria: States 0.228.", "weight": 5}   RaR
    "Essential Criteria: States 0.228."                                                         RaR, as strings
    {"criterion": "States 0.228.", "points": 5, "tags": ["axis:accuracy"]}                      RubricHub, HealthBench
    {"rubric_item": "Does it state 0.228?"}                                                     ResearchQA

`shapes.py` reads whole rubrics that are not a list of these.
"""

from __future__ import annotations

import functools
import json
import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

KINDS = ("Essential", "Important", "Optional", "Pitfall")

# RaR's categorical weights (1.0, 0.7, 0.3, 0.9) in the 1..10 scheme; a pitfall counts against the answer.
DEFAULT_WEIGHTS = {"Essential": 10.0, "Important": 7.0, "Optional": 3.0, "Pitfall": -9.0}

MIN_CRITERIA, MAX_CRITERIA = 3, 25

# Names that models use for the classes, collected from the raw texts of two 8B models.
_CLASS_NAMES = {
    "Essential": "essential critical core required mandatory must",
    "Important": "important key mid midweight significant supporting",
    "Optional": "optional relevant valuable bonus minor",
    "Pitfall": "pitfall negative contradiction penalty",
}
_KIND_OF = {name: kind for kind, names in _CLASS_NAMES.items() for name in names.split()}
# ASCII, because otherwise "ı" and "ſ" would match i and s. Bold marks after the colon close those before the name; if there are
# none before the name, they belong to the description.
_PREFIX = re.compile(
    rf"\s*(\*+)?\s*(?P<name>{'|'.join(_KIND_OF)})(?:\s+criteri(?:a|on))?\s*\**\s*:\s*(?(1)\**)\s*", re.I | re.A
)

_NUMBER = re.compile(r"\s*([+-]?(?:\d+(?:\.\d+)?|\.\d+)(?:e[+-]?\d+)?)\s*(?:p(?:oin)?ts?)?(?![\w.])", re.I)
_ALIASES = {
    "title": ("title", "name"),
    "description": ("description", "criterion", "criteria", "rubric_item", "requirement", "text"),
    "weight": ("weight", "points", "score"),
    "kind": ("class", "kind", "category"),
}


class RubricError(ValueError):
    """A rubric or criterion that cannot be used.

    `code` is short and stable, `detail` describes the fault, `count` is the number of usable criteria if known.
    """

    def __init__(self, code: str, detail: str, *, count: int = 0):
        self.code, self.detail, self.count = code, detail, count
        super().__init__(f"{code}: {detail}")


@dataclass(frozen=True)
class Criterion:
    """One requirement.

    Attributes:
      title: two to five words; empty if the source has none (the list-of-strings format).
      description: the requirement, without its class prefix. For a Pitfall it names what a good answer avoids.
      weight: finite and not zero; negative exactly for a Pitfall.
      kind: "Essential", "Important", "Optional" or "Pitfall".
      extra: what else the source says of it, such as HealthBench's tags; models do not see it, and it does not tell
        criteria apart.

    Raises:
      RubricError: codes `no_description`, `bad_class`, `bad_weight`.
    """

    title: str
    description: str
    weight: float
    kind: str
    extra: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not any(map(str.isalnum, self.description)):
            raise RubricError("no_description", f"criterion {self.title!r} says {self.description!r}")
        if self.kind not in KINDS:
            raise RubricError("bad_class", f"class {self.kind!r} is none of {', '.join(KINDS)}")
        if not math.isfinite(self.weight) or self.weight == 0:
            raise RubricError("bad_weight", f"weight {self.weight!r} of {self.description[:40]!r} is not usable")
        if (self.weight < 0) != (self.kind == "Pitfall"):
            raise RubricError("bad_weight", f"weight {self.weight!r} has the wrong sign for class {self.kind}")


@dataclass(frozen=True)
class Rubric:
    """Criteria in the order they were written."""

    criteria: tuple[Criterion, ...]

    def __len__(self) -> int:
        return len(self.criteria)


def check(criteria: Sequence[Criterion], *, min_criteria: int = MIN_CRITERIA, max_criteria: int = MAX_CRITERIA) -> None:
    """Raises RubricError (`too_few`, `too_many`, `no_positive_weight`) if the criteria are not a usable rubric."""
    count = len(criteria)
    if count < min_criteria:
        raise RubricError("too_few", f"{count} usable criteria, at least {min_criteria} wanted", count=count)
    if count > max_criteria:
        raise RubricError("too_many", f"{count} usable criteria, at most {max_criteria} wanted", count=count)
    if all(criterion.weight < 0 for criterion in criteria):
        raise RubricError("no_positive_weight", f"all {count} criteria are pitfalls: nothing to score", count=count)


def from_records(
    records: Sequence[Any],
    *,
    min_criteria: int = MIN_CRITERIA,
    max_criteria: int = MAX_CRITERIA,
    bare_strings: bool = False,
) -> Rubric:
    """A rubric from a list of records in any of the formats; see `criterion_from` for what is inferred.

    A criterion that repeats the description of an earlier one (see `normalised`) is left out, because it would count twice.

    Args:
      records: the criteria.
      min_criteria: with fewer criteria it is no rubric.
      max_criteria: with more criteria it is no rubric.
      bare_strings: whether strings without a class are criteria too. They are Important. They weigh 1 if no criterion of the
        list has a class or a weight.

    Raises:
      RubricError: the first bad record's code, or `not_a_list`, `too_few`, `too_many`, `no_positive_weight`.

    Examples:
      >>> rows = ["Essential Criteria: States 0.228.", {"criterion": "Shows units.", "points": 2}, "Pitfall Criteria: Guesses."]
      >>> [(c.kind, c.weight) for c in from_records(rows).criteria]
      [('Essential', 10.0), ('Optional', 2.0), ('Pitfall', -9.0)]
      >>> from_records(rows[:1])
      Traceback (most recent call last):
      rcsd_jax.rubrics.schema.RubricError: too_few: 1 usable criteria, at least 3 wanted
    """
    if isinstance(records, (str, bytes, Mapping)) or not isinstance(records, Sequence):
        raise RubricError("not_a_list", f"a rubric is a list of criteria, not {type(records).__name__}")
    scale = weight_scale(records)
    bare_weight = None
    if bare_strings:
        plain = all(isinstance(record, str) and split_class(record)[0] is None for record in records)
        bare_weight = 1.0 if plain else DEFAULT_WEIGHTS["Important"]
    found = []
    for number, record in enumerate(records, start=1):
        try:
            found.append(criterion_from(record, scale=scale, bare_weight=bare_weight))
        except RubricError as error:
            raise RubricError(error.code, f"criterion {number}: {error.detail}", count=error.count) from error
    criteria = without_repeats(found)
    check(criteria, min_criteria=min_criteria, max_criteria=max_criteria)
    return Rubric(criteria)


def criterion_from(record: Any, *, scale: float = 10.0, bare_weight: float | None = None) -> Criterion:
    """One criterion from an object or a string.

    The first of these decides the class: a negative weight (always a Pitfall), an explicit class field or a class name in
    the weight field, the prefix of the description, the size of the weight (`kind_of_weight`). A missing weight comes
    from the class (`DEFAULT_WEIGHTS`); a Pitfall's weight is made negative. An object with neither class nor weight is
    Important, the middle class. A string must carry its prefix; otherwise any list of words would be a rubric.

    Args:
      record: an object with a description (or criterion), or a string.
      scale: the largest weight of the scheme that the record's list uses; see `weight_scale`.
      bare_weight: the weight of a string without a prefix; None: such a string is no criterion.

    Raises:
      RubricError: `bad_record`, `no_description`, `no_class`, `bad_class`, `bad_weight`.

    Examples:
      >>> criterion_from({"title": "Value", "description": "Essential Criteria: States 0.228.", "weight": "5 points"})
      Criterion(title='Value', description='States 0.228.', weight=5.0, kind='Essential')
      >>> criterion_from({"rubric_item": "Does it state 0.228?"}).kind
      'Important'
    """
    if isinstance(record, str):
        kind, description = split_class(record)
        if kind is None and bare_weight is not None:
            return Criterion("", description, bare_weight, "Important")
        if kind is None:
            raise RubricError("no_class", f"string {record[:40]!r} has no class prefix such as 'Essential Criteria:'")
        return Criterion("", description, DEFAULT_WEIGHTS[kind], kind)
    if not isinstance(record, Mapping):
        raise RubricError("bad_record", f"a criterion is an object or a string, not {type(record).__name__}")
    title, text, weight_field, explicit, extra = _fields(record)
    if not isinstance(text, str):
        raise RubricError("no_description", f"criterion {title!r} has no description; keys {sorted(map(str, record))}")
    prefix, description = split_class(text)
    weight, named = _weight_and_class(weight_field)
    if isinstance(explicit, str) and explicit.strip():
        named = _KIND_OF.get(explicit.strip().split()[0].casefold(), named)
    kind = named or prefix
    if weight is not None and weight < 0:
        kind = "Pitfall"
    if kind is None:
        kind = "Important" if weight is None else kind_of_weight(weight, scale=scale)
    if weight is None:
        weight = DEFAULT_WEIGHTS[kind]
    weight = -abs(weight) if kind == "Pitfall" else weight
    return Criterion(_clean(title) if isinstance(title, str) else "", description, weight, kind, extra)


def kind_of_weight(weight: float, *, scale: float = 10.0) -> str:
    """The class that a weight suggests: negative Pitfall, above 4/5 of the scale Essential, from half of it Important,
    below that Optional. So 9 and 10 of ten, and 5 of five, are Essential; 5..8 of ten, and 3 and 4 of five, Important.

    Examples:
      >>> kind_of_weight(9), kind_of_weight(5), kind_of_weight(2), kind_of_weight(-1), kind_of_weight(5, scale=5)
      ('Essential', 'Important', 'Optional', 'Pitfall', 'Essential')
    """
    if weight < 0:
        return "Pitfall"
    return "Essential" if weight > 0.8 * scale else "Important" if weight >= 0.5 * scale else "Optional"


def weight_scale(records: Sequence[Any]) -> float:
    """The scheme of a list of records, judged by its largest weight: 1, 5 or 10, or that weight itself if it is above 10.

    Examples:
      >>> weight_scale([{"weight": 3}, {"points": "4/5"}]), weight_scale([{"weight": 20}])
      (5.0, 20.0)
    """
    weights = [0.0]
    for record in records:
        if isinstance(record, Mapping):
            try:
                weight, _ = _weight_and_class(_fields(record).weight)
            except RubricError:  # reported with its place when the criterion itself is read
                continue
            weights.append(0.0 if weight is None else weight)
    largest = max(weights)
    return next((scale for scale in (1.0, 5.0, 10.0) if 0 < largest <= scale), max(largest, 10.0))


def split_class(text: str) -> tuple[str | None, str]:
    """Splits 'Essential Criteria: States …' into ("Essential", "States …"); (None, text) without a known prefix.

    Case, spaces before the colon, bold marks, 'Criterion' or neither word, and common other names of the classes
    ("Negative" for Pitfall, "Critical" for Essential, …) are accepted.

    Examples:
      >>> split_class("**Critical Criterion**: States 0.228.")
      ('Essential', 'States 0.228.')
      >>> split_class("States 0.228.")
      (None, 'States 0.228.')
    """
    text = _clean(text)
    match = _PREFIX.match(text)
    if match is None:
        return None, text
    return _KIND_OF[match["name"].casefold()], text[match.end() :]


def without_repeats(criteria: Sequence[Criterion]) -> tuple[Criterion, ...]:
    """The criteria whose normalised description did not occur before, in order."""
    first: dict[str, Criterion] = {}
    for criterion in criteria:
        first.setdefault(normalised(criterion.description), criterion)
    return tuple(first.values())


def normalised(description: str) -> str:
    """A description in the form that is compared: compatibility form, lower case, single spaces, no final punctuation.

    Examples:
      >>> normalised("  States  the UNIT. ")
      'states the unit'
    """
    text = description if description.isascii() else unicodedata.normalize("NFKC", description)
    return " ".join(text.casefold().split()).rstrip(" .;,")


def to_json(rubric: Rubric, style: str = "objects") -> str:
    """The rubric as one line of JSON, the form that models see and files store.

    Args:
      rubric: the rubric.
      style: "objects" for {title, description, weight} with the class as prefix of the description (`from_records`
        gives an equal rubric back), or "strings" for only the prefixed descriptions (weights become the defaults).

    Raises:
      ValueError: an unknown style.

    Examples:
      >>> one = Rubric((Criterion("Unit", "Gives the unit.", 7.0, "Important"),))
      >>> to_json(one)
      '[{"title": "Unit", "description": "Important Criteria: Gives the unit.", "weight": 7}]'
      >>> to_json(one, style="strings")
      '["Important Criteria: Gives the unit."]'
    """
    if style == "strings":
        return json.dumps([_prefixed(c) for c in rubric.criteria], ensure_ascii=False)
    if style != "objects":
        raise ValueError(f"style {style!r} is neither 'objects' nor 'strings'")
    records = []
    for c in rubric.criteria:
        weight = int(c.weight) if float(c.weight).is_integer() else c.weight
        title = {"title": c.title} if c.title else {}
        records.append({**title, "description": _prefixed(c), "weight": weight})
    return json.dumps(records, ensure_ascii=False)


def _prefixed(criterion: Criterion) -> str:
    return f"{criterion.kind} Criteria: {criterion.description}"


class _Fields(NamedTuple):
    """A record's value of each field; None if the field is missing or empty."""

    title: Any
    description: Any
    weight: Any
    kind: Any
    extra: Mapping[str, Any]  # all that is read as none of them


def _fields(record: Mapping) -> _Fields:
    """The value of each field, under the first of its names that holds something."""
    values: list[Any] = []
    used = set()
    for keys in _keys_of(tuple(record)):
        value = None
        for key in keys:
            value = record[key]
            if value is not None and value != "":
                used.add(key)
                break
        values.append(value)
    extra = {str(key): value for key, value in record.items() if key not in used and value is not None}
    return _Fields._make([*values, extra])


@functools.lru_cache(maxsize=1024)
def _keys_of(keys: tuple[Any, ...]) -> tuple[tuple[Any, ...], ...]:
    """The keys that name each field, in the order of its aliases. Cached, because a data set's records have few sets of keys."""
    named = {str(key).strip().casefold(): key for key in keys}
    return tuple(tuple(named[alias] for alias in aliases if alias in named) for aliases in _ALIASES.values())


def _weight_and_class(value: Any) -> tuple[float | None, str | None]:
    """A weight field holds a number, a number in a string ("5", "+.5", "5pts", "8/10"), a class name, or nothing."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return None, None
    if isinstance(value, str):
        number = _NUMBER.match(value)
        kind = _KIND_OF.get(value.strip().casefold())
        if number is None and kind is None:
            raise RubricError("bad_weight", f"weight {value[:40]!r} is not a number")
        if number is None:
            return None, kind
        value = float(number.group(1))
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise RubricError("bad_weight", f"weight {str(value)[:40]} of type {type(value).__name__} is not a number")
    if abs(value) > 1e6 or value != value or value == 0:
        raise RubricError("bad_weight", f"weight {str(value)[:40]} is not a usable number")
    return float(value), None


def _clean(text: str) -> str:
    """Collapses white space, and replaces lone surrogates, which a UTF-8 file cannot hold."""
    if text.isascii():
        return " ".join(text.split())
    return " ".join(text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").split())
