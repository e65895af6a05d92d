"""The rows of a run in the order of their use. Each gets its prompts when it is first needed, and is kept.

The order is `data.batches.in_order` of all rows, or `mixed` of a mixture's sources, without those left out: too long, or without a rubric. A step's rows follow from the
place in that order at which it begins, which a checkpoint holds. So a resumed run uses exactly the rows that it would have used, and
no row is read before its time.

But shapes are static, and bad input should be found before weights are loaded. So the first `AT_START` rows are prepared before a run
begins, and decide the usual shapes, however long the run is. Rows that might be too long are also prepared, if that is an error.
If the run's length is in epochs, all rows are prepared, because the number of those that fit decides how many steps there are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from rcsd_jax.data.batches import in_order, mixed
from rcsd_jax.data.examples import Example
from rcsd_jax.host import multihost
from rcsd_jax.roles import contexts, encode
from rcsd_jax.roles.encode import Encoded, Encoding, Longest, Row
from rcsd_jax.roles.limits import Bounds, Limits, may_exceed
from rcsd_jax.roles.own_teacher import teacher_of
from rcsd_jax.run.dropout import with_dropout
from rcsd_jax.settings.stage import Settings

AT_START = 2048
"""Rows that are prepared before a run begins. This takes a second or two, and covers all rows of small data."""

GiveRubrics = Callable[[list[Example]], list[Example]]
"""Gives rubrics to examples, and leaves out those that get none. All processes call it together."""


class Rows:
    """All rows of a run, the same in every process, prepared as far as they are needed.

    Attributes:
      examples: all of them, prepared or not.
      first: those prepared at the start that fit, in the order of the data (with more than `AT_START` rows: of use).
      skipped: how many were left out so far because they are too long.
      left_out: the same, including those without a rubric.
      digest: a hash of the prompts and references of the first rows, and of the texts of all rows if there are more; and of their teachers if there are several.
    """

    def __init__(self, examples: Sequence[Example], tokenizer: Any, settings: Settings):
        self.examples, self.skipped, self.left_out = examples, 0, 0
        self._tokenizer, self._settings = tokenizer, settings
        self._encoding, self._limits = settings.encoding, settings.limits
        self._order = _order(examples, settings)
        self._held: dict[int, Row | None] = {}  # row number -> None if it is left out
        self.first: Encoded
        self.digest = ""

    def start(self, *, positions: int, give_rubrics: GiveRubrics | None = None) -> bool:
        """Prepares the rows that must be known before weights are loaded; all processes together. False if no row fits.

        Args:
          positions: the limit of a prompt together with everything after it; rows that may be longer are prepared too.
          give_rubrics: for rubrics that a model writes, for every row that the run will use.

        Raises:
          UserError: `data.too_long` is "fail" and a row is too long, or the chat template refuses a row's turns.
        """
        encode.check_template(self.examples, self._tokenizer, self._encoding)
        count = len(self.examples)
        first = self._drawn(0, AT_START) if count > AT_START else range(count)
        if self._settings.train.epochs:  # their number decides how long the run is
            more: Sequence[int] = range(count)
        else:
            more = self._drawn(0, min(count, self._questions())) if give_rubrics else self._doubtful(positions)
        self._prepare([*first, *more], give_rubrics, together=True)
        fitting = self._fitting(first)
        for begin in range(AT_START, count, AT_START):
            if fitting:
                break
            first = self._drawn(begin, AT_START)
            self._prepare(first, give_rubrics, together=True)
            fitting = self._fitting(first)
        if not fitting:
            return False
        transition = encode.transition_of(fitting[0].example, self._tokenizer, self._encoding)
        self.first = encode.collate(fitting, transition, encode.longest_of(fitting))
        self.digest = self._digest()
        # Other rows take the place of rows left out, and need rubrics too.
        if give_rubrics and not self._settings.train.epochs:
            taken, place, wanted = 0, 0, self._questions()
            while taken < wanted and len(self._held) < count:
                drawn = self._drawn(place, wanted - taken)
                self._prepare(drawn, give_rubrics, together=True)
                taken, place = taken + len(self._fitting(drawn)), place + len(drawn)
        return True

    def take(self, place: int, count: int) -> tuple[Encoded, int]:
        """`count` rows from a place in the order, and the place after them: the same in every process, in any history.

        With `rubric.dropout`, a part of their rubrics.

        Raises:
          UserError: `data.too_long` is "fail" and a row is too long.
        """
        taken: list[Row] = []
        begin = place
        while len(taken) < count:
            drawn = self._drawn(place, count - len(taken))
            self._prepare(drawn, None, together=False)
            taken += self._fitting(drawn)
            place += len(drawn)
        if self._settings.rubric.dropout:
            examples = with_dropout([row.example for row in taken], begin, self._settings)
            rows = encode.encode_rows(examples, self._tokenizer, self._encoding)
            taken = [self._limits.without_too_long(row) for row in rows]
        return encode.collate(taken, self.first.transition, self.first.longest), place

    def longest(self) -> Longest:
        """The longest of all rows prepared so far."""
        return encode.longest_of([row for row in self._held.values() if row is not None])

    @property
    def fitting(self) -> int:
        """How many of the rows prepared so far fit; with `train.epochs`, of all rows."""
        return sum(row is not None for row in self._held.values())

    def _digest(self) -> str:
        total, data = hashlib.sha256(), self.first
        for tokens in (*data.student, *data.teacher, data.transition, *data.references):
            total.update(len(tokens).to_bytes(4, "little") + np.asarray(tokens, np.int32).tobytes())
        if len(self.examples) > AT_START:
            style = self._settings.rubric.style
            for example in self.examples:
                texts = [
                    contexts.FIELDS[name](example, style) for name in ("question", "reference", "answer", "rubric")
                ]
                total.update(repr(texts).encode())
                if example.history:
                    total.update(repr([tuple(turn) for turn in example.history]).encode())
        if self._settings.teacher.paths:
            total.update(repr([teacher_of(example, self._settings.teacher) for example in self.examples]).encode())
        return total.hexdigest()[:16]

    def _questions(self) -> int:
        """The number of rows of all steps."""
        settings = self._settings
        return settings.train.steps // settings.train.updates_per_rollout * settings.questions_per_rollout

    def _drawn(self, place: int, count: int) -> list[int]:
        return [int(self._order[i]) for i in range(place, place + count)]

    def _fitting(self, numbers: Iterable[int]) -> list[Row]:
        return [row for number in numbers if (row := self._held[number]) is not None]

    def _doubtful(self, positions: int) -> list[int]:
        """The rows that must be prepared before weights are loaded, because they may be too long."""
        if len(self.examples) <= AT_START:
            return []
        limits, encoding = self._limits, self._encoding
        behind = self._settings.sampling.max_new_tokens
        transition = encode.transition_of(self.examples[0], self._tokenizer, encoding)
        analysis = self._settings.teacher.reason_tokens + len(transition)

        def limit(most: int, room: int) -> int | None:
            # A row beyond the positions ends the run, even if a row beyond the limits is only left out.
            return min(most, room) if limits.fails or most > room else None

        bounds = Bounds(
            limit(limits.student, positions - behind),
            limit(limits.teacher, positions - behind - analysis),
            behind if limits.fails and encoding.learns_references else None,
        )
        if bounds == Bounds(None, None, None):
            return []
        return may_exceed(self.examples, bounds, self._tokenizer, encoding)

    def _prepare(self, numbers: Iterable[int], give_rubrics: GiveRubrics | None, *, together: bool) -> None:
        new = [number for number in dict.fromkeys(numbers) if number not in self._held]
        examples = [self.examples[number] for number in new]
        if give_rubrics and examples:
            examples = give_rubrics(examples)
        tokens_of = lambda mine: encode.encode_rows(mine, self._tokenizer, self._encoding)
        rows = multihost.shared_list(tokens_of, examples) if together else tokens_of(examples)
        fitting = {row.example.id: self._limits.without_too_long(row) for row in rows if self._limits.fit(row)}
        self.skipped += len(rows) - len(fitting)
        self.left_out += len(new) - len(fitting)
        self._held.update((number, fitting.get(self.examples[number].id)) for number in new)


def _order(examples: Sequence[Example], settings: Settings) -> Sequence[int]:
    """The endless sequence of row numbers: all in one order, or each source of a mixture by its share."""
    shares = settings.data.shares
    if not shares:
        return in_order(range(len(examples)), seed=settings.seed)
    numbers: dict[str, list[int]] = {name: [] for name in shares}
    for number, example in enumerate(examples):
        numbers[example.source].append(number)
    return mixed(list(numbers.values()), shares=list(shares.values()), seed=settings.seed)


def encode_all(examples: Sequence[Example], tokenizer: Any, encoding: Encoding, limits: Limits) -> Encoded:
    """Encodes all examples at once, without those that are too long; all processes call it together.

    Raises:
      UserError: an example lacks a field, or is too long and that is an error, or none is left.
    """
    rows = multihost.shared_list(lambda mine: encode.encode_rows(mine, tokenizer, encoding), examples)
    kept = [limits.without_too_long(row) for row in rows if limits.fit(row)]
    if not kept:
        raise limits.nothing_fits(len(examples))
    transition = encode.transition_of(kept[0].example, tokenizer, encoding)
    return encode.collate(kept, transition, encode.longest_of(kept), skipped=len(rows) - len(kept))
