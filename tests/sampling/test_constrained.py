"""Completions that are texts of a form: what is allowed is what some whole text goes on with, in batches, slots and on meshes."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rcsd_jax.models.decoder import Decoder
from rcsd_jax.models.sharding import make_mesh
from rcsd_jax.sampling import SamplingConfig, constrained, generate, slots
from rcsd_jax.sampling.decoder_sampler import DecoderSampler
from rcsd_jax.sampling.text_form import FormBuilder
from rcsd_jax.sampling.token_form import Letters, compile_form
from tests import eight_devices
from tests.sampling import test_continuous_batching
from tests.sampling.test_continuous_batching import PAD

CONFIG = dataclasses.replace(test_continuous_batching.CONFIG, num_layers=1)
small = functools.partial(test_continuous_batching.small, CONFIG)

TOKENS = [
    None, None, None, None, "[", "]", '"', ",", "a", "b", "c", "ab", '["', '","', '"]', ".", "A", "[]", '",', "x y", '."', "ba",
]  # fmt: skip
TEXTS = [None if token is None else token.encode() for token in TOKENS]
ENDS = (3, 1)
WHOLE = re.compile(r'\["[^"]*[A-Za-z][^"]*"(,"[^"]*[A-Za-z][^"]*")*\]')


def list_of_strings(fewest, most):
    """A list of different strings."""
    build = FormBuilder(most)
    start, item, after, whole = (build.state() for _ in range(4))
    text = build.state(span=True)
    build.literal([start], "[", item)
    build.literal([item], '"', text)
    build.string(text, after)
    build.literal([after], ",", item, highest=most - 1)
    build.literal([after], "]", whole, lowest=fewest)
    return build.form(start, whole)


def letters(char):
    said = char.lower() if char.isalnum() else ""
    return Letters(said, said)


@functools.cache
def form_of(fewest=2, most=3, vocab_size=CONFIG.vocab_size):
    return compile_form(list_of_strings(fewest, most), TEXTS, ENDS, vocab_size=vocab_size, letters=letters)


def strings_of(text):
    return ["".join(letters(c).all for c in said) for said in re.findall(r'"([^"]*)"', text)]


def is_whole(text, fewest=2, most=3):
    said = strings_of(text)
    return bool(WHOLE.fullmatch(text)) and fewest <= len(said) == len(set(said)) <= most


def goes_on_to_a_text(text):
    """Whether a text is the beginning of a whole one, written down from what a list of two or three different strings is."""
    if not re.match(r'(\[("|$)|$)', text):
        return False
    closed = re.findall(r'"([^"]*)"', text)
    keys = ["".join(letters(c).all for c in said) for said in closed]
    if len(set(keys)) < len(keys) or not all(keys) or len(keys) > 3:
        return False
    rest = re.sub(r'"[^"]*"', "S", text)
    if rest.count('"'):  # a string is open
        head = rest.partition('"')[0]
        return bool(re.fullmatch(r"\[(S,)*", head)) and len(keys) < 3
    if rest.endswith("]"):
        return bool(re.fullmatch(r"\[S(,S)*\]", rest)) and len(keys) >= 2
    return bool(re.fullmatch(r"\[?|\[(S,)*S?", rest)) and (not rest.endswith(",") or len(keys) < 3)


def is_left_out(text, token):
    """Whether a token opens a string and goes on, or ends one and opens another: others write the same text."""
    opens = [(text + token[:i]).count('"') % 2 == 0 for i, c in enumerate(token) if c == '"']
    return True in opens and (not token.endswith('"') or len(opens) > 1)


def test_the_allowed_tokens_are_those_with_which_some_whole_text_goes_on():
    """Along random texts, against what a list of two or three different strings is."""
    form, rng, checked = form_of(), np.random.default_rng(0), set()
    allowed = jax.jit(lambda place: constrained.allowed(form, place, CONFIG.vocab_size)[0])
    advanced = jax.jit(lambda place, token: constrained.advanced(form, place, token[None]))
    for _ in range(60):
        place, text = constrained.beginning(form, jnp.array([1000])), ""
        while text is not None and len(text) < 40:
            mask = np.asarray(allowed(place))
            wanted = [t is not None and goes_on_to_a_text(text + t) and not is_left_out(text, t) for t in TOKENS]
            for end in ENDS:
                wanted[end] = is_whole(text)
            np.testing.assert_array_equal(mask, wanted + [False] * (CONFIG.vocab_size - len(TOKENS)), err_msg=text)
            checked.add(text)
            likely = np.array([3 if token and '"' in token else 1 for token in TOKENS]) * mask[: len(TOKENS)]
            token = rng.choice(len(TOKENS), p=likely / likely.sum())
            place, text = advanced(place, jnp.int32(token)), None if token in ENDS else text + TOKENS[token]
    assert len(checked) > 200 and sum(map(is_whole, checked)) > 10


SAMPLING = SamplingConfig(max_new_tokens=form_of().shortest + 4, temperature=1.3, top_k=9, top_p=0.98, eos_ids=ENDS)


@pytest.fixture(scope="module")
def batch():
    """Prompts, and completions of a static batch of them under the form."""
    variables, tokens, mask, _ = small()
    write = jax.jit(lambda form, *a: generate(Decoder(CONFIG), variables, *a, SAMPLING, pad_id=PAD, form=form))
    keys = jax.vmap(jax.random.key)(np.arange(24))
    samples = jax.tree.map(np.asarray, write(form_of(), tokens, mask, keys))
    return [row[keep] for row, keep in zip(tokens, mask, strict=True)], samples


def test_a_batch_of_a_random_model_is_whole_texts(batch):
    _, samples = batch
    texts = [
        "".join(TOKENS[t] or "" for t in row[keep]) for row, keep in zip(samples.tokens, samples.mask, strict=True)
    ]
    assert all(map(is_whole, texts)) and len(set(texts)) > 10 and not samples.cut.any()
    assert (samples.log_probs <= 1e-5).all() and (samples.log_probs < -0.1).any()
    last = samples.mask.sum(axis=1) - 1
    assert np.isin(samples.tokens[np.arange(24), last], ENDS).all() and len(set(last)) > 2


def test_slots_write_the_same_texts(batch):
    """By the sampler of many prompts on the host."""
    prompts, samples = batch
    mesh = make_mesh(devices=jax.devices()[:1])
    sampler = DecoderSampler(Decoder(CONFIG), small()[0], mesh, batch_size=6, pad_to=4, pad_id=PAD)
    with jax.set_mesh(mesh):
        groups = list(sampler.generate(prompts, range(24), SAMPLING, form_of()))
    found = {i: completion for chosen, group in groups for i, completion in zip(chosen, group, strict=True)}
    for i, completion in found.items():
        wanted = samples.tokens[i][samples.mask[i]]
        np.testing.assert_array_equal(completion.tokens, wanted[~np.isin(wanted, ENDS)])
    assert len(found) == 24 and not any(completion.cut for completion in found.values())


SCRIPT = """
import json
import jax
import numpy as np
from rcsd_jax.models import sharding
from rcsd_jax.models.placement import param_shardings
from tests.sampling.test_constrained import CONFIG, PAD, SAMPLING, Decoder, DecoderSampler, form_of, small
variables, tokens, mask, _ = small()
prompts = [row[keep] for row, keep in zip(tokens, mask)]
report = []
for shape in ((1, 1, 1), (1, 8, 1), (2, 2, 2)):
    mesh = sharding.make_mesh(*shape, devices=jax.devices()[: int(np.prod(shape))])
    params = jax.tree.map(jax.device_put, variables["params"], param_shardings(CONFIG, mesh))
    sampler = DecoderSampler(Decoder(CONFIG), {"params": params}, mesh, batch_size=8, pad_to=4, pad_id=PAD)
    with jax.set_mesh(mesh):
        groups = list(sampler.generate(prompts, range(24), SAMPLING, form_of()))
    found = {int(i): c for chosen, group in groups for i, c in zip(chosen, group)}
    report.append([[np.asarray(found[i].tokens).tolist(), bool(found[i].cut)] for i in range(24)])
print(json.dumps(report))
"""


@pytest.mark.slow
def test_eight_devices_write_the_same_texts(batch):
    _, samples = batch
    for report in eight_devices.run(SCRIPT):
        for i, (tokens, cut) in enumerate(report):
            wanted = samples.tokens[i][samples.mask[i]]
            np.testing.assert_array_equal(tokens, wanted[~np.isin(wanted, ENDS)])
            assert not cut


def test_a_row_that_must_end_and_repeats_itself_gets_one_more_token():
    """With just enough tokens, a model that always prefers the same letter still writes different strings."""
    form = form_of(3, 3)
    place = constrained.beginning(form, jnp.array([form.shortest]))
    wishes = jnp.zeros((1, CONFIG.vocab_size)).at[0, [8, 6]].set(jnp.array([5.0, 9.0]))

    @jax.jit
    def write(place):
        def step(place, _):
            token = constrained.constrained_logits(form, place, wishes).argmax(axis=1)
            return constrained.advanced(form, place, token), token[0]

        return jax.lax.scan(step, place, None, length=form.shortest)

    place, tokens = write(place)
    said = "".join(TOKENS[token] or "" for token in np.asarray(tokens))
    assert int(place.state[0]) == form.done and is_whole(said, 3, 3), said


def test_too_few_letters_to_tell_strings_apart_are_refused():
    with pytest.raises(ValueError, match="40 spans may need 40 different endings"):
        compile_form(list_of_strings(2, 40), TEXTS, ENDS, vocab_size=24, letters=letters)
    with pytest.raises(ValueError, match="cannot write such a text"):
        compile_form(
            list_of_strings(2, 3), [None if t == b'"' else t for t in TEXTS[:10]], ENDS, vocab_size=24, letters=letters
        )


def test_without_a_form_the_program_has_nothing_of_it(monkeypatch):
    """Neither function of forms is called, and both programs are the same as before they knew of any."""
    variables, tokens, mask, keys = small()
    for name in ("beginning", "after_the_end", "constrained_logits", "advanced"):
        monkeypatch.setattr(constrained, name, None)
    one = jax.make_jaxpr(lambda *a: generate(Decoder(CONFIG), *a, SAMPLING))(variables, tokens, mask, keys[:24])
    queue = lambda *a: slots.generate_queue(Decoder(CONFIG), *a, SAMPLING, slots=6, refill=2)
    assert "u32[24,3]" not in str(one) and "u32[6,3]" not in str(
        jax.make_jaxpr(queue)(variables, tokens, mask, keys[:24])
    )


def test_drafts_and_forms_exclude_each_other():
    variables, tokens, mask, keys = small()
    with pytest.raises(ValueError, match="drafts know no form"):
        slots.generate_queue(
            Decoder(CONFIG), variables, tokens, mask, keys[:24], SAMPLING, slots=6, draft_tokens=2, form=form_of()
        )
