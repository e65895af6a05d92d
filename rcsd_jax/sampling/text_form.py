"""The form of a text, as an automaton over its characters: a list of items, each with a span that must be new in its text.

`token_form` compiles a form for a tokenizer, and `constrained` lets a decoder write only texts of that form. A form counts finished
spans, and edges may depend on the count. So a list of 3 to 25 items takes the states of one item.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

DEAD = -1

# Symbols: the 128 ASCII characters, then all others by what they are.
OTHER, OTHER_ALNUM = 128, 129
CUT = (130, 131)  # the first bytes of a character of which 1, 2 are missing
CONTINUATION = 132  # one of these missing bytes
SYMBOLS = 133

ALNUM = tuple(i for i in range(128) if chr(i).isalnum())


@dataclasses.dataclass(frozen=True)
class TextForm:
    """An automaton of S states over symbols.

    Attributes:
      step: [S, SYMBOLS] int32, the next state, or `DEAD`.
      lowest, highest: [S, SYMBOLS] int32, how many spans must, and may, be finished for the step.
      span: [S] bool, within a span. A text's spans must differ.
      start: the first state.
      whole: the state of finished texts.
      most: the most spans that a text has.
    """

    step: np.ndarray
    lowest: np.ndarray
    highest: np.ndarray
    span: np.ndarray
    start: int
    whole: int
    most: int


class FormBuilder:
    """Builds a form. Texts are written from any of several states, here called places."""

    def __init__(self, most: int):
        """A form without states, whose texts have at most `most` spans."""
        self._most = most
        self._span: list[bool] = []
        self._edges: dict[tuple[int, int], tuple[int, int, int]] = {}

    def state(self, *, span: bool = False) -> int:
        """A new state."""
        self._span.append(span)
        return len(self._span) - 1

    def edge(
        self, places: Iterable[int], symbols: Iterable[int], target: int, *, lowest: int = 0, highest: int | None = None
    ) -> None:
        """From every place, each of the symbols leads to the target while `lowest` to `highest` spans are finished."""
        highest = self._most if highest is None else highest
        for place in places:
            for symbol in symbols:
                assert (place, symbol) not in self._edges, f"two edges from state {place} at {symbol}"
                self._edges[place, symbol] = target, lowest, highest

    def literal(
        self, places: Iterable[int], text: str, into: int | None = None, *, lowest: int = 0, highest: int | None = None
    ) -> list[int]:
        """An ASCII text; it ends in `into` or in a new state."""
        places = list(places)
        for at, symbol in enumerate(text.encode("ascii")):
            target = self.state() if into is None or at < len(text) - 1 else into
            self.edge(places, [symbol], target, lowest=lowest, highest=highest)
            lowest, highest, places = 0, None, [target]
        return places

    def maybe_space(self, places: Sequence[int]) -> list[int]:
        """At most one space."""
        return [*places, *self.literal(places, " ")]

    def layout(self, places: Sequence[int], *, lines: int = 1, indent: int = 8) -> list[int]:
        """White space as JSON is printed: nothing, one space, or up to `lines` line breaks and then an indent."""
        found = self.maybe_space(places)
        for _ in range(lines):
            line = self.state()
            self.edge(places, b"\n", line)
            self.edge(self.literal(places, "\r"), b"\n", line)
            found.append(line)
            places = [line]
        for _ in range(indent):
            (place,) = places
            nearer = self.state()
            self.edge([place], b" \t", nearer)
            found.append(nearer)
            places = [nearer]
        return found

    def string(self, begin: int, end: int) -> None:
        """A JSON string of one line with a letter or digit in it, from the state after its quote (a span's, if it is one) to `end`.

        Escapes are of quote and slashes only, so that no escape is a LaTeX macro or another way to write a letter. Nothing in it
        looks like a tag of thoughts, such as `</think>`.
        """
        new = lambda: self.state(span=self._span[begin])
        inside, tag_t, tag_r = new(), new(), new()
        self._text([tag_t], inside, inside, refused=b"hH")  # neither <think> nor <thought>
        self._text([tag_r], inside, inside, refused=b"eE")  # nor <reasoning>
        for home in (begin, inside):
            tag, escape = new(), new()
            self._text([home], home, inside)
            self._text([tag], home, inside, refused=b"/tTrR")
            self.edge([tag], b"/", tag)
            self.edge([tag], b"tT", tag_t)
            self.edge([tag], b"rR", tag_r)
            self.edge([escape], b'"\\/', home)
            places = [home, tag] if home == begin else [home, tag, tag_t, tag_r]
            self.edge(places, b"<", tag)
            self.edge(places, b"\\", escape)
            missing = home
            for symbol in CUT:
                cut = new()
                self.edge(places, [symbol], cut)
                self.edge([cut], [CONTINUATION], missing)
                missing = cut
            if home == inside:
                self.edge(places, b'"', end)

    def _text(self, places: Sequence[int], home: int, inside: int, *, refused: bytes = b"") -> None:
        """From every place, letters and digits lead inside, and other characters that need no care home."""
        plain = set(range(32, 127)) - set(b'"\\<' + refused)
        self.edge(places, [*plain.intersection(ALNUM), OTHER_ALNUM], inside)
        self.edge(places, [*plain.difference(ALNUM), OTHER], home)

    def form(self, start: int, whole: int) -> TextForm:
        """The form, whose texts begin in `start` and end in `whole`."""
        shape = len(self._span), SYMBOLS
        step, lowest, highest = np.full(shape, DEAD, np.int32), np.zeros(shape, np.int32), np.zeros(shape, np.int32)
        for (place, symbol), edge in self._edges.items():
            step[place, symbol], lowest[place, symbol], highest[place, symbol] = edge
        return TextForm(step, lowest, highest, np.array(self._span), start, whole, self._most)
