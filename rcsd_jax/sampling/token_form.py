"""Compiles the form of a text for a tokenizer: what each token does in each state, and which tokens a text can still afford.

The result is a few tables on the devices. A step of sampling looks up a row of bits, and one entry for the token drawn.

A text that runs out of tokens must still end whole. So every state has a distance: the tokens that certainly finish a text from
there. If some token could lead further away than there are tokens left, the text goes the shortest way. The distance counts one or
two tokens more for the end of a span: if the span is not new, these make it new.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from rcsd_jax.sampling.text_form import CONTINUATION, CUT, DEAD, OTHER, OTHER_ALNUM, TextForm

ANY, SHORTEST, SAME_SPAN = range(3)
"""The rows of bits of a state: all tokens of the form, those on a shortest way to the end, those that do not end a span."""

BASE = 0x01000193
"""Of the polynomial, modulo 2^32, that stands for a span's letters. If two that differ look equal, only an end is put off."""

_FAR = 2**30
_WORDS = 128  # rows of bits are multiples of this: so they lie on a TPU as they are read


class Letters(NamedTuple):
    """What a character adds to what tells spans apart.

    Two spans of only sure characters differ if all their letters differ. If one has another character, such as `²`, which may
    count as equal to a 2, they certainly differ if their sure letters do.
    """

    all: str
    sure: str
    unsure: bool = False


class TokenForm(NamedTuple):
    """A form for a tokenizer of V tokens: S states, 0 to K finished spans, and C classes of tokens that do the same.

    A row of bits has W words; token v is bit v // W of word v % W.
    """

    token_class: np.ndarray  # [V] int32
    next_state: np.ndarray  # [S, C] int16; `DEAD`
    row: np.ndarray  # [S, K + 1, 3] int32, places in `bits`
    bits: np.ndarray  # [M, W] uint32
    reach: np.ndarray  # [S, K + 1] int32, how many tokens must be left for ANY
    distance: np.ndarray  # [S, K + 1] int32, how many tokens finish a text
    span: np.ndarray  # [S] bool, the state is within a span
    can_end: np.ndarray  # [S] bool, the span can end with the next token
    factor: np.ndarray  # [V, 2] uint32; a token makes p * factor + term of the polynomials p of all and of sure letters
    term: np.ndarray  # [V, 2] uint32
    unsure: np.ndarray  # [V] bool, the token may hold a character that is not sure
    fresh: np.ndarray  # [F] int32, first tokens of endings, the shortest first; at least one ending makes a span new
    fresh_factor: np.ndarray  # [F, 2] uint32, of the whole endings
    fresh_term: np.ndarray  # [F, 2] uint32
    start: np.ndarray  # [] int32, the first state
    done: np.ndarray  # [] int32, the state after the end token

    @property
    def shortest(self) -> int:
        """How many tokens suffice for a text, with the end token."""
        return int(self.distance[self.start, 0])

    @property
    def digest(self) -> str:
        """Tells forms apart."""
        found = hashlib.sha256()
        for table in self:
            found.update(np.ascontiguousarray(table).tobytes())
        return found.hexdigest()[:16]


class _Tokens(NamedTuple):
    """The T tokens that a text of some form can hold."""

    ids: np.ndarray  # [T] int64
    symbols: np.ndarray  # [T, longest] int16, `DEAD` after the token's end
    length: np.ndarray  # [T] int64
    letter: np.ndarray  # [T] int64, the place of the first symbol with letters; a large number without


class _Edges(NamedTuple):
    """What the tokens that can follow do in one state, or what all do in all: where they lead, and for which counts of spans."""

    target: np.ndarray
    lowest: np.ndarray
    highest: np.ndarray


def compile_form(
    form: TextForm,
    texts: Sequence[bytes | None],
    ends: Sequence[int],
    *,
    vocab_size: int,
    letters: Callable[[str], Letters | None],
    thought_begin: int | None = None,
    thought_end: int | None = None,
) -> TokenForm:
    """A form for a tokenizer.

    Some tokens are left out, because others write the same text: those that go beyond the beginning of a span, that end a span
    and begin another, or that end one after letters of it or where no single character ends it.

    Args:
      form: the form.
      texts: the bytes of each token; None if it stands for none.
      ends: the tokens that end a completion.
      vocab_size: V, at least the number of texts.
      letters: what each character adds to what tells spans apart; None if no text may hold it.
      thought_end: if given, a text begins with a thought, which is any tokens up to and with this one.
      thought_begin: if given, that is so if the first token is this one; else a text begins without a thought.

    Raises:
      ValueError: the tokens cannot write such a text.
    """
    ending = np.array(sorted(set(ends)), np.int64)
    tokens, factor, term, unsure = _tokens_of(texts, set(ends), vocab_size, letters)
    free = lambda ids, target: (ids, _Edges(np.full(len(ids), target), 0 * ids, np.full(len(ids), form.most)))
    table = [_walk(form, tokens, state) for state in range(len(form.step))]
    done = len(table)
    table[form.whole] = free(ending, done)
    table.append(free(ending, done))
    start = form.start
    if thought_end is not None:
        start = len(table)
        held = [i for i, text in enumerate(texts) if text is not None and i not in ends and i != thought_end]
        ids = np.array([*held, thought_end], np.int64)
        table.append(free(ids, start))
        table[-1][1].target[ids == thought_end] = form.start
        if thought_begin is not None:
            first = free(np.append(table[form.start][0], thought_begin), start)
            for field, before in zip(first[1], table[form.start][1], strict=True):
                field[:-1] = before
            table[form.start] = first
            start = form.start
    token_class, edges = _by_class(table, vocab_size, form.most)
    span = np.append(form.span, np.zeros(len(table) - len(form.span), bool))
    ends_span = span[:, None] & ~span[edges.target] & (edges.target != DEAD)
    can_end = ends_span.any(axis=1)
    fresh, spare = _fresh(edges, can_end, token_class, factor, term, unsure, form.most)
    cost = np.where(ends_span, 1 + spare, 1)
    distance, arrivals = _distances(edges, cost, ends_span, done, form.most)
    if distance[start, 0] >= _FAR:
        raise ValueError("its tokens cannot write such a text")
    allowed = arrivals < _FAR  # [S, K + 1, C]
    shortest = allowed & (arrivals + cost[:, None] == distance[..., None])
    rows = np.stack([allowed, shortest, allowed & ~ends_span[:, None]], axis=2)
    rows[done] = allowed[done][:, None]  # rows without a text go on drawing end tokens
    rows[distance >= _FAR] = rows[done, 0]  # and here no text comes
    row, bits = _rows_of_bits(rows, token_class)
    return TokenForm(
        token_class=token_class.astype(np.int32),
        next_state=edges.target.astype(np.int16),
        row=row,
        bits=bits,
        reach=np.where(allowed, arrivals, 0).max(axis=2).astype(np.int32) + 1,
        distance=distance.astype(np.int32),
        span=span,
        can_end=can_end,
        factor=factor,
        term=term,
        unsure=unsure,
        **fresh,
        start=np.array(start, np.int32),
        done=np.array(done, np.int32),
    )


def _tokens_of(
    texts: Sequence[bytes | None], ends: set[int], vocab_size: int, letters: Callable[[str], Letters | None]
) -> tuple[_Tokens, np.ndarray, np.ndarray, np.ndarray]:
    """The tokens that a text can hold, and every token's factor and term, [V, 2] each, and whether it is unsure, [V]."""
    letters = functools.cache(letters)
    factor, term = np.ones((vocab_size, 2), np.uint32), np.zeros((vocab_size, 2), np.uint32)
    unsure = np.zeros(vocab_size, bool)
    ids, symbols, places = [], [], []
    for token, text in enumerate(texts):
        read = _symbols(text, letters) if text and token not in ends else None
        if read is None:
            continue
        found, place, keys, unsure[token] = read
        ids.append(token)
        symbols.append(found)
        places.append(place)
        for kind, key in enumerate(keys):
            value = 0
            for byte in key:
                value = (value * BASE + byte) % 2**32
            factor[token, kind], term[token, kind] = pow(BASE, len(key), 2**32), value
    length = np.array([len(found) for found in symbols], np.int64)
    padded = np.full((len(ids), max(length, default=1)), DEAD, np.int16)
    for row, found in zip(padded, symbols, strict=True):
        row[: len(found)] = found
    return _Tokens(np.array(ids, np.int64), padded, length, np.array(places, np.int64)), factor, term, unsure


def _symbols(
    token: bytes, letters: Callable[[str], Letters | None]
) -> tuple[list[int], int, tuple[bytes, bytes], bool] | None:
    """A token's symbols, the place of the first one with letters, all letters and the sure ones, and whether there may be others.

    None for a token that no text holds. Parts of characters are letters as they are.
    """
    begin = 0
    while begin < len(token) and _continues(token[begin]):
        begin += 1
    unsure = False
    try:
        text, rest = token[begin:].decode(), b""
    except UnicodeDecodeError as error:
        text, rest = token[begin : begin + error.start].decode(), token[begin + error.start :]
        found = _unsure(rest, letters)
        if found is None:
            return None
        unsure = found
    symbols = [CONTINUATION] * begin
    place = 0 if begin else 2**30
    key, sure = token[:begin], b""
    for char in text:
        letter = letters(char)
        if letter is None:
            return None
        if letter.all:
            place = min(place, len(symbols))
        key += letter.all.encode()
        sure += letter.sure.encode()
        unsure |= letter.unsure
        symbols.append(ord(char) if char.isascii() else OTHER_ALNUM if char.isalnum() else OTHER)
    if rest:
        place = min(place, len(symbols))
        symbols.append(CUT[_size(rest[0]) - len(rest) - 1])
        key += rest
    return symbols, place, (key, sure), unsure


def _continues(byte: int) -> bool:
    return byte & 0xC0 == 0x80


def _size(byte: int) -> int:
    """How many bytes a character of UTF-8 has that begins with this one."""
    return 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4


def _unsure(begin: bytes, letters: Callable[[str], Letters | None]) -> bool | None:
    """Whether a character that begins with these bytes may be unsure; None if one of them may not be used, or is none."""
    missing = _size(begin[0]) - len(begin)
    if not (0xC2 <= begin[0] <= 0xF4 and 0 < missing <= len(CUT) and all(map(_continues, begin[1:]))):
        return None
    unsure = False
    for number in range(64**missing):
        rest = bytes(0x80 | number >> 6 * i & 0x3F for i in reversed(range(missing)))
        try:
            letter = letters((begin + rest).decode())
        except UnicodeDecodeError:
            return None
        if letter is None or letter.sure:
            return None
        unsure |= letter.unsure
    return unsure


def _walk(form: TextForm, tokens: _Tokens, state: int) -> tuple[np.ndarray, _Edges]:
    """The ids of the tokens that can follow in a state, and what they do."""
    alive = np.arange(len(tokens.ids))
    at, ended, lowest = np.full(len(alive), state), 0 * alive, 0 * alive
    highest = np.full(len(alive), form.most)
    here = form.step[state]
    can_end = not form.span[state] or bool((~form.span[here] & (here != DEAD)).any())
    found = []
    for place in range(tokens.symbols.shape[1] + 1):
        over = tokens.length[alive] == place
        found.append([x[over] for x in (tokens.ids[alive], at, lowest, highest)])
        alive, at, ended, lowest, highest = (x[~over] for x in (alive, at, ended, lowest, highest))
        if not len(alive):
            break
        symbol = tokens.symbols[alive, place]
        target = form.step[at, symbol]
        enters, leaves = ~form.span[at] & form.span[target], form.span[at] & ~form.span[target]
        lowest = np.maximum(lowest, form.lowest[at, symbol] - ended)
        highest = np.minimum(highest, form.highest[at, symbol] - ended)
        keep = (target != DEAD) & (lowest <= highest)
        keep &= ~(enters & ((tokens.length[alive] > place + 1) | (ended > 0)))
        keep &= ~(leaves & ((tokens.letter[alive] < place) | (not can_end)))
        alive, at, ended, lowest, highest = (x[keep] for x in (alive, target, ended + leaves, lowest, highest))
    ids, *edges = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return ids, _Edges(*edges)


def _by_class(table: list[tuple[np.ndarray, _Edges]], vocab_size: int, most: int) -> tuple[np.ndarray, _Edges]:
    """The class [V] of every token, and what each class does in each state, [S, C]."""
    classes, count = np.zeros(vocab_size, np.int64), 1
    for ids, edges in table:
        code = ((classes[ids] * len(table) + edges.target) * (most + 1) + edges.lowest) * (most + 1) + edges.highest
        _, split = np.unique(code, return_inverse=True)
        classes[ids] = count + split
        count += len(ids)
    _, example, classes = np.unique(classes, return_index=True, return_inverse=True)
    found = []
    for ids, edges in table:
        whole = np.full((3, vocab_size), DEAD)
        whole[:, ids] = edges
        found.append(whole[:, example])
    return classes, _Edges(*np.stack(found, axis=1))


def _distances(
    edges: _Edges, cost: np.ndarray, ends_span: np.ndarray, done: int, most: int
) -> tuple[np.ndarray, np.ndarray]:
    """[S, K + 1]: how many tokens finish a text; [S, K + 1, C]: how many do so after a token; tokens cost [S, C]."""
    counts = np.arange(most + 1)

    def after(distance: np.ndarray, edges: _Edges, ends: np.ndarray) -> np.ndarray:
        """[..., K + 1]: the distance where edges [...] lead."""
        count = counts + ends[..., None]
        ok = (edges.lowest[..., None] <= counts) & (counts <= edges.highest[..., None]) & (count <= most)
        ok &= edges.target[..., None] != DEAD
        return np.where(ok, distance[edges.target[..., None], np.minimum(count, most)], _FAR)

    state = np.broadcast_to(np.arange(len(cost))[:, None], edges.target.shape)
    kinds = np.unique(np.stack([state, *edges, ends_span, cost])[:, edges.target != DEAD], axis=1)
    few, ends = _Edges(*kinds[1:4]), kinds[4]
    distance = np.full((len(cost), most + 1), _FAR)
    distance[done] = 0
    while True:
        nearer = distance.copy()
        np.minimum.at(nearer, kinds[0], after(distance, few, ends) + kinds[5][:, None])
        nearer = np.minimum(nearer, _FAR)
        if (nearer == distance).all():
            break
        distance = nearer
    return distance, after(distance, edges, ends_span.astype(np.int64)).swapaxes(1, 2)


def _rows_of_bits(rows: np.ndarray, token_class: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows [S, K + 1, 3, C] of classes -> the place of each, [S, K + 1, 3], among the different rows of bits [M, W]."""
    shape, count = rows.shape[:3], rows.shape[3]
    packed, place = np.unique(np.packbits(rows.reshape(-1, count), axis=1), axis=0, return_inverse=True)
    words = -(-len(token_class) // 32)
    words = words if words < _WORDS else -(-words // _WORDS) * _WORDS
    bits = np.zeros((len(packed), words), np.uint32)
    for row, classes in zip(bits, np.unpackbits(packed, axis=1, count=count), strict=True):
        planes = np.zeros(32 * words, np.uint32)
        planes[: len(token_class)] = classes[token_class]
        row[:] = (planes.reshape(32, words) << np.arange(32, dtype=np.uint32)[:, None]).sum(axis=0, dtype=np.uint32)
    return place.reshape(shape).astype(np.int32), bits


def _fresh(
    edges: _Edges,
    can_end: np.ndarray,
    token_class: np.ndarray,
    factor: np.ndarray,
    term: np.ndarray,
    unsure: np.ndarray,
    most: int,
) -> tuple[dict[str, np.ndarray], int]:
    """Endings of a span, each of which makes it another one: the fields of the form, and how many tokens the longest has."""
    if not can_end.any():
        return dict(fresh=np.zeros(1, np.int32), fresh_factor=factor[:1], fresh_term=term[:1]), 0
    # Tokens that follow wherever a span can end, after which it still can.
    target = edges.target[can_end]
    good = (target != DEAD) & can_end[target] & (edges.lowest[can_end] == 0) & (edges.highest[can_end] == most)
    ids = np.flatnonzero(good.all(axis=0)[token_class] & ~unsure)
    # With equal factors, tokens of different terms make different spans. Of those with equal sure letters, one is enough.
    _, first = np.unique(np.concatenate([factor[ids], term[ids, 1:]], axis=1), axis=0, return_index=True)
    ids = ids[np.sort(first)]
    _, group, counts = np.unique(factor[ids], axis=0, return_inverse=True, return_counts=True)
    ids = ids[group.reshape(-1) == counts.argmax()][:most] if len(ids) else ids
    found = ids, factor[ids], term[ids]
    if len(ids) < most <= len(ids) ** 2:
        one, two = (x.reshape(-1) for x in np.meshgrid(ids, ids, indexing="ij"))
        pairs = one, factor[one] * factor[two], term[one] * factor[two] + term[two]
        fields = [np.concatenate([x, pair[:most]]) for x, pair in zip(found, pairs, strict=True)]
        return dict(zip(("fresh", "fresh_factor", "fresh_term"), fields, strict=True)), 2
    if len(ids) < most:
        raise ValueError(f"{most} spans may need {most} different endings; it has {len(ids)} letters for them")
    return dict(zip(("fresh", "fresh_factor", "fresh_term"), found, strict=True)), 1
