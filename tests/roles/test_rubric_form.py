"""Writers held to the form of a rubric: every text is one, whatever the model prefers, and nothing else is forbidden."""

import functools
import json
import re
import unicodedata
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rcsd_jax import world
from rcsd_jax.checkpoints.token_texts import token_texts
from rcsd_jax.checkpoints.tokenizer import load_tokenizer
from rcsd_jax.host.errors import UserError
from rcsd_jax.roles import rubric_form
from rcsd_jax.roles.rubric_form import letters
from rcsd_jax.rubrics import schema
from rcsd_jax.rubrics.parsing import parse
from rcsd_jax.sampling import SamplingConfig, constrained, sample_token
from rcsd_jax.sampling.token_form import compile_form
from tests.checkpoints_for_tests import write_tokenizer
from tests.user_inputs import made_up_rows

# What a rubric of 3 to 5 criteria looks like, written down a second time, as regular expressions.
_GAP = r"(?: |\r?\n[ \t]{0,8})?"
_STRING = r'(?:[^"\\\x00-\x1f\x7f]|\\["\\/])*'
_SAID = rf'" ?(?P<kind>Essential|Important|Optional|Pitfall) Criteria:(?P<said>{_STRING})"'
_TITLE = rf'"title": ?"{_STRING}",{_GAP}'
_OBJECT = rf'\{{{_GAP}(?:{_TITLE})?"description": ?{_SAID},{_GAP}"weight": ?(?P<weight>-?(?:10|[1-9])){_GAP}\}}'
ITEMS = {"objects": _OBJECT, "strings": _SAID}


def whole_text(style):
    """The expression of a whole text; groups of criteria are left out, because a name may stand for one group only."""
    item = re.sub(r"\?P<\w+>", "?:", ITEMS[style])
    start = r"(?: |(?:\r?\n){1,2}[ \t]{0,8})?"
    return re.compile(rf"{start}\[{_GAP}{item}{_GAP}(?:,{_GAP}{item}{_GAP}){{2,4}}\]")


def sentencepiece_like():
    """A tokenizer whose words begin with a mark, with tokens for single bytes; as Gemma's and Mistral's."""
    import tokenizers
    from tokenizers import decoders
    from transformers import PreTrainedTokenizerFast

    pieces = ["<pad>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    pieces += [*map(chr, range(33, 127)), "▁", "é", "²", "▁c", "▁th", '",', "▁{", "½", "中"]
    model = tokenizers.models.BPE(
        vocab={piece: i for i, piece in enumerate(pieces)}, merges=[("▁", "c")], byte_fallback=True, unk_token="<pad>"
    )
    backend = tokenizers.Tokenizer(model)
    marks = decoders.Replace("▁", " ")
    backend.decoder = decoders.Sequence([marks, decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="</s>")


@pytest.fixture(scope="module")
def tokenizer_of(tmp_path_factory):
    """A tokenizer by name: of bytes, byte-level BPE trained on rubrics, SentencePiece's kind, the world's words."""
    texts = [json.dumps(row["rubric"], indent=2) + row["question"] for row in made_up_rows()]

    @functools.cache
    def tokenizer(name):
        if name == "words":
            return load_tokenizer(world.base_directory())
        if name == "pieces":
            return sentencepiece_like()
        texts_of, size = {"bytes": ([], 259), "bpe": (texts, 700)}[name]
        return load_tokenizer(write_tokenizer(tmp_path_factory.mktemp(name), texts_of, vocab_size=size))

    return tokenizer


@pytest.fixture(scope="module")
def form_of(tokenizer_of):
    """(tokenizer, style) -> the form of 3 to 5 criteria, over five tokens more than the tokenizer has."""

    @functools.cache
    def form(name, style):
        tokenizer = tokenizer_of(name)
        text_form = rubric_form.rubric_form(style, 3, 5)
        return compile_form(
            text_form, token_texts(tokenizer), [tokenizer.eos_token_id], vocab_size=len(tokenizer) + 5, letters=letters
        )

    return form


LONGEST = 600


@functools.partial(jax.jit, static_argnums=4)
def write(form, preferred, keys, length, sampling):
    """Texts of rows that prefer the same tokens everywhere, with noise: tokens, log-probs [LONGEST, B], last states [B]."""

    def step(t, carry):
        place, tokens, log_probs = carry
        key = jax.vmap(jax.random.fold_in, (0, None))(keys, t)
        noise = jax.vmap(lambda k: jax.random.normal(k, preferred.shape[1:]))(key)
        logits = constrained.constrained_logits(form, place, preferred + 0.1 * noise)
        token, log_prob = sample_token(logits, key, sampling)
        return constrained.advanced(form, place, token), tokens.at[t].set(token), log_probs.at[t].set(log_prob)

    start = constrained.beginning(form, jnp.full(len(keys), length))
    empty = jnp.zeros((LONGEST, len(keys)), jnp.int32)
    place, tokens, log_probs = jax.lax.fori_loop(0, length, step, (start, empty, empty.astype(jnp.float32)))
    return tokens, log_probs, place.state


@pytest.mark.parametrize(
    "name, style, temperature",
    [
        ("bytes", "objects", 1.0),
        ("bpe", "objects", 1.0),
        ("bpe", "objects", 0.0),
        ("pieces", "strings", 1.0),
        ("words", "strings", 1.0),
    ],
)
def test_every_text_of_a_random_model_is_a_rubric(tokenizer_of, form_of, name, style, temperature):
    """With as many tokens as the shortest text takes, and with some to spare."""
    tokenizer, form = tokenizer_of(name), form_of(name, style)
    rows = 32
    preferred = jax.random.normal(jax.random.key(1), (rows, len(form.token_class))) * 4
    # Half of the rows want to end their strings at once, and so to write the same description again and again.
    quotes = jnp.array([text is not None and b'"' in text for text in token_texts(tokenizer)] + [False] * 5)
    preferred += jnp.where((jnp.arange(rows) % 2 == 0)[:, None] & quotes, 20.0, 0.0)
    sampling = SamplingConfig(LONGEST, temperature=temperature, top_k=50, top_p=0.95)
    counts, different = set(), set()
    for spare in (0, 60):
        length = form.shortest + spare
        tokens, log_probs, state = write(form, preferred, jax.random.split(jax.random.key(0), rows), length, sampling)
        tokens = np.asarray(tokens)[:length].T
        assert (state == form.done).all() and np.isfinite(log_probs).all()
        for text in [tokenizer.decode(row[row != tokenizer.eos_token_id]) for row in tokens]:
            parsed = parse(text, min_criteria=3, max_criteria=5)
            assert parsed.status == "strict", (parsed.reason, text)
            assert whole_text(style).fullmatch(text), text
            for item in re.finditer(ITEMS[style], text):
                assert style == "strings" or item["weight"].startswith("-") == (item["kind"] == "Pitfall")
            counts.add(len(parsed.rubric))
            different.add(text)
    assert len(different) > 20 and 3 in counts, counts
    if style == "strings":
        assert counts >= {3, 4}


@jax.jit
def may_draw(form, tokens):
    """[LONGEST] bool: whether a row with tokens to spare may draw each of these after those before it."""

    def step(place, token):
        ok = constrained.allowed(form, place, len(form.token_class))[0, token]
        return constrained.advanced(form, place, token[None]), ok

    return jax.lax.scan(step, constrained.beginning(form, jnp.array([10**6])), tokens)[1]


def follow(form, tokens):
    """The place of the first token that a row may not draw; None if it may draw all."""
    ok = np.asarray(may_draw(form, jnp.array(tokens + [0] * (LONGEST - len(tokens)))))[: len(tokens)]
    return None if ok.all() else int(ok.argmin())


@pytest.mark.parametrize("indent", [None, 2])
def test_rubrics_as_they_are_printed_can_be_written(tokenizer_of, form_of, indent):
    tokenizer, form = tokenizer_of("bpe"), form_of("bpe", "objects")
    for row in made_up_rows(2):
        tokens = tokenizer.encode(json.dumps(row["rubric"], indent=indent)) + [tokenizer.eos_token_id]
        assert follow(form, tokens) is None
    said = r"Essential Criteria: Shows \\frac{a}{b} < 3, \"so\": r<R, 0<t, é, ψ, 中/z."
    rubric = [{"title": "A b", "description": json.loads(f'"{said}"'), "weight": 10}, *made_up_rows(1)[0]["rubric"]]
    assert follow(form, tokenizer.encode(json.dumps(rubric, ensure_ascii=False)) + [tokenizer.eos_token_id]) is None
    untitled = [{key: value for key, value in criterion.items() if key != "title"} for criterion in row["rubric"]]
    assert follow(form, tokenizer.encode(json.dumps(untitled, indent=indent)) + [tokenizer.eos_token_id]) is None


TEXT = '[{"title": "A", "description": "%s", "weight": 5}, {"title": "A", "description": "%s", "weight": %s}'


@pytest.mark.parametrize(
    "text, refused",
    [
        ("Sure", "S"),
        (TEXT % ("Essential Criteria: A.", "Important Criteria: a", ""), '"'),  # the same again
        (TEXT % ("Essential Criteria: Of A.", "Important Criteria: of  a;", ""), '"'),
        (TEXT % ("Essential Criteria: ..", "", ""), '"'),  # nothing said
        (TEXT % ("Pitfall Criteria: A", "", ""), "P"),  # nothing to score yet
        (TEXT % ("Essential Criteria: A", "Pitfall Criteria: B", "5"), "5"),  # the wrong sign
        (TEXT % ("Essential Criteria: A", "Important Criteria: B", "-5"), "-"),
        (TEXT % ("Essential Criteria: A", "Important Criteria: B", "11"), "1"),
        (TEXT % ("Essential Criteria: A", "Important Criteria: B", "7") + "]", "]"),  # too few
        (TEXT % (r"Essential Criteria: \frac", "", ""), "f"),  # LaTeX that JSON would misread
        (TEXT % ("Essential Criteria: </think", "", ""), "h"),
    ],
)
def test_what_is_no_rubric_cannot_be_written(tokenizer_of, form_of, text, refused):
    tokenizer, form = tokenizer_of("bytes"), form_of("bytes", "objects")
    at = follow(form, tokenizer.encode(text))
    assert at is not None and tokenizer.encode(text)[at] == tokenizer.encode(refused)[0]


def test_the_sixth_criterion_is_refused(tokenizer_of, form_of):
    tokenizer, form = tokenizer_of("bytes"), form_of("bytes", "strings")
    five = ", ".join(f'"Optional Criteria: {letter}"' for letter in "abcde")
    assert follow(form, tokenizer.encode(f"[{five}]") + [tokenizer.eos_token_id]) is None
    assert follow(form, tokenizer.encode(f"[{five},")) == len(f"[{five}")


@pytest.mark.parametrize("opened", [True, False])
def test_a_thought_comes_first_and_leaves_room_for_the_rubric(tokenizer_of, opened):
    """A model that never wants to end its thought, which the prompt opens, or the model itself if it wants to."""
    tokenizer = tokenizer_of("bytes")
    texts = token_texts(tokenizer)
    begin, end = texts.index(b"^"), texts.index(b"~")  # these stand for the ends of a thought
    form = compile_form(
        rubric_form.rubric_form("strings", 1, 2),
        texts,
        [tokenizer.eos_token_id],
        vocab_size=len(tokenizer),
        letters=letters,
        thought_end=end,
        thought_begin=None if opened else begin,
    )
    keys, length = jax.random.split(jax.random.key(0), 8), form.shortest + 30
    wishes = jnp.zeros((8, len(tokenizer))).at[:, end].set(-30.0)
    wishes = wishes.at[:4, begin].set(8.0).at[4:, begin].set(-30.0)
    tokens, _, state = write(form, wishes, keys, length, SamplingConfig(LONGEST))
    assert (state == form.done).all()
    for number, row in enumerate(np.asarray(tokens)[:length].T):
        ends = np.flatnonzero(row == end)[:1]
        thinks = opened or number < 4
        text = tokenizer.decode(row[ends[0] + 1 :] if thinks else row, skip_special_tokens=True)
        assert parse(text, min_criteria=1, max_criteria=2).status == "strict"
        assert not thinks or ends[0] == (30 if opened else 29)


def test_draws_follow_the_models_probabilities_renormalised(tokenizer_of, form_of):
    """Where one of four classes follows, and two thirds of the model's probability are on other tokens."""
    scipy_stats = pytest.importorskip("scipy.stats")
    tokenizer, form = tokenizer_of("bytes"), form_of("bytes", "strings")
    place = constrained.beginning(form, jnp.array([1000]))
    advanced = jax.jit(constrained.advanced)
    for token in tokenizer.encode('["Optional Criteria: a", "'):
        place = advanced(form, place, jnp.array([token]))
    logits = jnp.zeros((1, len(form.token_class))) + jnp.log(1 / 300)
    wanted = {" ": 0.3, "E": 0.1, "I": 0.2, "O": 0.25, "P": 0.15}
    ids = np.array([tokenizer.encode(char)[0] for char in wanted])
    shares = np.array(list(wanted.values()))
    logits = logits.at[0, ids].set(jnp.log(shares * 0.4))
    rows = 5000
    masked = jnp.repeat(constrained.constrained_logits(form, place, logits), rows, axis=0)
    keys = jax.random.split(jax.random.key(0), rows)
    for sampling, kept in (
        (SamplingConfig(1), shares),
        (SamplingConfig(1, temperature=0.5), shares**2 / (shares**2).sum()),
        (SamplingConfig(1, top_k=2), np.where(shares >= 0.25, shares, 0) / 0.55),
        (SamplingConfig(1, top_p=0.5), np.where(shares >= 0.25, shares, 0) / 0.55),
    ):
        tokens, log_probs = (np.asarray(x) for x in sample_token(masked, keys, sampling))
        counts = np.array([(tokens == i).sum() for i in ids])
        assert counts.sum() == rows and (counts[kept == 0] == 0).all()
        assert scipy_stats.chisquare(counts[kept > 0], kept[kept > 0] * rows).pvalue > 1e-4
        unfiltered = shares ** (1 / sampling.temperature)
        unfiltered /= unfiltered.sum()
        for i, share in zip(ids, unfiltered, strict=True):
            np.testing.assert_allclose(np.exp(log_probs[tokens == i]), share, rtol=1e-5)


@pytest.mark.parametrize("name", ["bytes", "bpe", "pieces", "words"])
def test_token_texts_are_what_decoding_writes(tokenizer_of, name):
    tokenizer = tokenizer_of(name)
    texts = token_texts(tokenizer)
    known = [i for i, text in enumerate(texts) if text is not None]
    assert all(texts[i] is None for i in tokenizer.all_special_ids) and len(known) > len(texts) - 10
    rng = np.random.default_rng(0)
    for _ in range(30):
        ids = rng.choice(known, 12)
        found = b"".join(texts[i] for i in ids)
        try:
            wanted = found.decode()
        except UnicodeDecodeError:
            continue
        assert tokenizer.decode(ids) == (
            wanted[1:] if wanted.startswith(" ") and name in ("pieces", "words") else wanted
        )


PLACES = st.sampled_from(
    [
        "a",
        "C",
        "²",
        "½",
        "ω",
        "Ω",
        "é",
        "e\u0301",
        "ﬁ",
        "ℏ",
        "≠",
        "\u00a0",
        "K",
        "か\u3099",
        "が",
        "각",
        "가\u11a8",
        "中",
    ]
)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(PLACES | st.characters(exclude_categories=["Cs"]), max_size=6),
    st.sampled_from(["NFC", "NFD", "NFKC", "NFKD"]),
)
def test_descriptions_that_count_as_equal_are_not_told_apart(chars, form):
    text = "".join(chars)
    for case in (str.upper, str.lower, str):
        other = " " + case(unicodedata.normalize(form, text)) + " ."
        found = [[letters(char) for char in one] for one in (text, other)]
        if schema.normalised(text) != schema.normalised(other) or None in found[0] + found[1]:
            continue
        unsure = any(letter.unsure for letter in found[0] + found[1])
        kind = "sure" if unsure else "all"
        ours, theirs = ("".join(getattr(letter, kind) for letter in one) for one in found)
        assert ours == theirs, (text, other)


@pytest.mark.parametrize(
    "first, second, differ",
    [
        ("A²", "A2", False),  # the same once compared
        ("A² b", "A² c", True),
        ("ω", "Ω", False),
        ("b ψ", "c ω", True),
        ("b ψ", "b ω", False),  # by their first byte alone, they could be the same
        ("中", "国", True),
    ],
)
def test_descriptions_with_other_characters(tokenizer_of, form_of, first, second, differ):
    tokenizer, form = tokenizer_of("bytes"), form_of("bytes", "strings")
    text = f'["Optional Criteria: a {first}", "Optional Criteria: a {second}"'
    at = follow(form, tokenizer.encode(text))
    assert at is None if differ else at == len(tokenizer.encode(text)) - 1


def settings_of(**changes):
    plain = dict(style="objects", min_criteria=3, max_criteria=25, max_new_tokens=1024)
    return SimpleNamespace(**plain | changes)


def model_of(tokenizer, directory="writer"):
    config = SimpleNamespace(vocab_size=len(tokenizer))
    return SimpleNamespace(
        tokenizer=tokenizer,
        eos_ids=(tokenizer.eos_token_id,),
        decoder=SimpleNamespace(config=config),
        directory=directory,
    )


def test_what_cannot_be_held_to_the_form_is_one_line(tokenizer_of):
    with pytest.raises(UserError, match="rubric.max_new_tokens.*may take .* tokens"):
        rubric_form.writer_form(model_of(tokenizer_of("bytes")), settings_of(max_new_tokens=50), None)
    with pytest.raises(UserError, match="rubric.constrained.*cannot write such a text"):
        rubric_form.writer_form(model_of(tokenizer_of("words")), settings_of(), None)  # it has no word "title"
    with pytest.raises(UserError, match="not backed by the tokenizers library"):
        rubric_form.writer_form(model_of(SimpleNamespaceTokenizer()), settings_of(), None)


class SimpleNamespaceTokenizer:
    eos_token_id = 0

    def __len__(self):
        return 3


def test_a_form_is_kept_and_read_again(tokenizer_of, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(rubric_form, "_KEPT_ABOVE", 0.0)
    model = model_of(tokenizer_of("bpe"))
    first = rubric_form.writer_form(model, settings_of(), None)
    (path,) = tmp_path.glob("rcsd_jax/token_forms/*.npz")
    monkeypatch.setattr(rubric_form, "compile_form", None)  # it cannot be compiled again
    again = rubric_form.writer_form(model, settings_of(), None)
    assert again.digest == first.digest and again.shortest == first.shortest
    jax.tree.map(np.testing.assert_array_equal, first, again)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(TypeError):
        rubric_form.writer_form(model, settings_of(), None)
