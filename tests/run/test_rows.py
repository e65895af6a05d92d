"""Which rows a run prepares and when, and that they are the same whatever was prepared before."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rcsd_jax import world
from rcsd_jax.checkpoints.tokenizer import load_tokenizer
from rcsd_jax.data.batches import batches
from rcsd_jax.host.errors import UserError
from rcsd_jax.roles import encode
from rcsd_jax.roles.limits import Bounds, may_exceed, most_tokens
from rcsd_jax.roles.opened_model import Model
from rcsd_jax.run import inputs, rows
from rcsd_jax.run.batch import make_batch
from rcsd_jax.run.rows import Rows
from rcsd_jax.settings import keys
from tests.settings_for_tests import settings_of

EXAMPLES = world.examples("stage2", 60)
POSITIONS = 10_000


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(world.base_directory())


@pytest.fixture(autouse=True)
def small_start(monkeypatch):
    monkeypatch.setattr(rows, "AT_START", 8)


@pytest.fixture
def encoded(monkeypatch):
    """The ids of the examples that were encoded, in order."""
    ids, original = [], encode.encode_rows

    def encode_rows(examples, *arguments):
        ids.extend(example.id for example in examples)
        return original(examples, *arguments)

    monkeypatch.setattr(encode, "encode_rows", encode_rows)
    return ids


def config_of(**data):
    config = keys.stage()
    config.prompts = world.PROMPTS
    config.sampling.max_new_tokens = 8
    config.train.update(steps=3, batch_size=4)
    config.data.update(dict(max_student_prompt=1000, max_teacher_prompt=1000, pad_to=8) | data)
    return config


def started(config, tokenizer, examples=EXAMPLES, **settings):
    found = Rows(examples, tokenizer, settings_of(config))
    assert found.start(positions=settings.pop("positions", POSITIONS), **settings)
    return found


def taken(found, place, steps, count=4):
    """The ids of so many batches, and the place behind them."""
    ids = []
    for _ in range(steps):
        data, place = found.take(place, count)
        ids.append([example.id for example in data.examples])
    return ids, place


def longer(example, words):
    """An example whose question takes so many tokens more."""
    return dataclasses.replace(example, question=example.question + " so" * words)


def test_rows_are_those_of_the_batches_and_only_those_in_use_are_encoded(tokenizer, encoded):
    found = started(config_of(), tokenizer)
    order = batches([e.id for e in EXAMPLES], batch_size=4, seed=0)
    assert encoded == [*order[0], *order[1]]
    assert taken(found, 0, 20)[0] == [order[step] for step in range(20)]
    assert len(encoded) == len(set(encoded)) == 60  # in the second epoch nothing again
    few = started(config_of(), tokenizer, EXAMPLES[:8])  # of few rows all, in the order of the data
    assert few.first.examples == EXAMPLES[:8]


def test_a_row_s_prompts_are_those_of_all_rows_at_once(tokenizer):
    config = config_of()
    asked = settings_of(config)
    whole = rows.encode_all(EXAMPLES, tokenizer, asked.encoding, asked.limits)
    data, _ = started(config, tokenizer).take(0, 60)
    for i, example in enumerate(data.examples):
        at = EXAMPLES.index(example)
        np.testing.assert_array_equal(data.student[i], whole.student[at])
        np.testing.assert_array_equal(data.teacher[i], whole.teacher[at])


def test_rows_that_do_not_fit_give_way_and_a_run_goes_on_from_its_place(tokenizer):
    examples = [longer(e, 200) if i % 3 == 0 else e for i, e in enumerate(EXAMPLES)]
    config = config_of(max_student_prompt=100)
    found = started(config, tokenizer, examples)
    ids, _ = taken(found, 0, 20)
    order = batches([e.id for e in examples], batch_size=60, seed=0)
    fit = {e.id for i, e in enumerate(examples) if i % 3}
    flat = [one for epoch in range(2) for one in order[epoch] if one in fit]
    assert sum(ids, []) == flat and found.skipped == 20
    first, place = taken(found, 0, 7)
    assert place > 28 and taken(started(config, tokenizer, examples), place, 13)[0] == ids[7:]


def test_nothing_fits(tokenizer, encoded):
    examples = [longer(e, 200) for e in EXAMPLES]
    config = config_of(max_student_prompt=100)
    assert not Rows(examples, tokenizer, settings_of(config)).start(positions=POSITIONS) and len(encoded) == 60
    only = [EXAMPLES[17] if i == 17 else e for i, e in enumerate(examples)]
    assert started(config, tokenizer, only).take(0, 2)[0].examples == [EXAMPLES[17]] * 2


def test_where_a_long_row_is_an_error_it_is_found_at_the_start_cheaply(tokenizer, encoded):
    late = batches(list(range(60)), batch_size=60, seed=0)[0][-1]
    config = config_of(max_student_prompt=600, too_long="fail")
    examples = list(EXAMPLES)
    examples[late] = longer(EXAMPLES[late], 300)  # many characters, and few enough tokens
    assert started(config, tokenizer, examples).skipped == 0
    assert len(encoded) == 9 and examples[late].id in encoded
    examples[late] = longer(EXAMPLES[late], 700)
    with pytest.raises(UserError, match=rf"world:stage2:{late}: .*the student's prompt has 7\d\d tokens"):
        Rows(examples, tokenizer, settings_of(config)).start(positions=POSITIONS)


def test_a_row_beyond_the_model_s_positions_is_found_at_the_start(tokenizer):
    late = batches(list(range(60)), batch_size=60, seed=0)[0][-1]
    examples = list(EXAMPLES)
    examples[late] = longer(EXAMPLES[late], 400)
    found = started(config_of(), tokenizer, examples, positions=300)
    model = Model(type("", (), {"config": type("", (), {"max_position": 300})}), tokenizer, (), 0, None)
    with pytest.raises(UserError, match="more than the model's 300 positions"):
        inputs.check_positions(model.decoder.config.max_position, found, settings_of(config_of()))


def test_usual_shapes_depend_on_the_first_rows_alone(tokenizer):
    late = batches(list(range(60)), batch_size=60, seed=0)[0][-1]
    examples = list(EXAMPLES)
    examples[late] = longer(EXAMPLES[late], 300)
    config = config_of()
    found = started(config, tokenizer, examples)
    needed = max(len(x) for x in found.first.student)
    place, shapes = 0, {}
    for _ in range(15):
        data, place = found.take(place, 4)
        batch = make_batch([0, 1, 2, 3], data, settings_of(config), 0)
        shapes[any(len(x) > needed for x in data.student)] = batch.student_tokens.shape
    assert shapes == {False: (4, -(-needed // 8) * 8), True: (4, 512)}
    config.train.steps = 50
    assert started(config, tokenizer, examples).first.longest == found.first.longest


def test_a_rubric_with_more_criteria_than_the_first_have(tokenizer):
    config = config_of()
    config.teacher.update(guidance=0.5, guidance_by="criteria")
    config.rubric.max_criteria = 12
    order = batches(list(range(60)), batch_size=60, seed=0)[0]
    examples = [
        dataclasses.replace(e, rubric=dataclasses.replace(e.rubric, criteria=e.rubric.criteria[:2])) for e in EXAMPLES
    ]
    examples[order[-1]] = EXAMPLES[order[-1]]
    found = started(config, tokenizer, examples)
    usual = make_batch([0, 1, 2, 3], found.take(0, 4)[0], settings_of(config), 0).without
    data = found.take(56, 4)[0]
    beyond = make_batch([0, 1, 2, 3], data, settings_of(config), 0).without
    assert usual.weights.shape == (4, 2) and beyond.weights.shape == (4, 12)
    count = len(EXAMPLES[order[-1]].rubric.criteria)
    assert (beyond.weights[3] != 0).sum() == count > 2 and (beyond.weights[:3] != 0).sum() == 6
    for k in range(count):
        np.testing.assert_array_equal(beyond.tokens[3, k][beyond.mask[3, k]], data.without[3].prompts[k])


def test_rubrics_are_written_for_every_row_in_use_and_no_other(tokenizer):
    config = config_of()
    config.train.steps = 4
    order = batches([e.id for e in EXAMPLES], batch_size=60, seed=0)[0]
    bare = [dataclasses.replace(e, rubric=None) for e in EXAMPLES]
    rubric, asked, dropped = EXAMPLES[0].rubric, [], {order[0], order[9]}

    def give_rubrics(examples):
        asked.extend(e.id for e in examples)
        return [dataclasses.replace(e, rubric=rubric) for e in examples if e.id not in dropped]

    found = started(config, tokenizer, bare, give_rubrics=give_rubrics)
    assert asked == order[:18] and found.left_out == 2 and found.skipped == 0
    ids, _ = taken(found, 0, 4)
    assert sum(ids, []) == [one for one in order[:18] if one not in dropped] and len(asked) == 18
    longer_run = config_of()
    longer_run.train.steps = 8
    more = started(longer_run, tokenizer, bare, give_rubrics=give_rubrics)
    assert taken(more, 0, 4)[0] == ids and more.digest == found.digest


def test_the_digest_is_of_all_rows_and_not_of_the_steps(tokenizer):
    late = batches(list(range(60)), batch_size=60, seed=0)[0][-1]
    changed = list(EXAMPLES)
    changed[late] = longer(EXAMPLES[late], 1)
    config = config_of()
    digest = started(config, tokenizer).digest
    assert started(config, tokenizer, changed).digest != digest
    config.train.steps = 50
    assert started(config, tokenizer).digest == digest


def normalising_tokenizer(kind):
    import tokenizers
    import transformers

    bytes_alone = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE({c: i for i, c in enumerate(sorted(bytes_alone))}, []))
    bpe.normalizer = kind()
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=True)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=bpe)


def test_rows_of_which_it_is_certain_fit():
    """A tokenizer with a token for every byte: its prompts are as long as they can be."""
    import tokenizers

    finest = normalising_tokenizer(tokenizers.normalizers.NFC)
    examples = [longer(e, 10 * i) for i, e in enumerate(EXAMPLES[:20])]
    examples[7] = dataclasses.replace(examples[7], question="\u0958" * 30)
    finest.chat_template = (
        "{% for message in messages %}<{{ message.role }}> {{ message.content | trim }}\n{% endfor %}"
    )
    encoding = settings_of(config_of()).encoding
    lengths = [len(row.teacher) for row in encode.encode_rows(examples, finest, encoding)]
    found = []
    for limit in range(min(lengths) - 1, max(lengths) + 30, 7):
        doubtful = may_exceed(examples, Bounds(None, limit, None), finest, encoding)
        assert {i for i, length in enumerate(lengths) if length > limit} <= set(doubtful)
        found.append(len(doubtful))
    assert found[0] == 20 and found[-1] == 0
    finest.chat_template = "{% for message in messages %}{{ message.content | tojson }}{% endfor %}"
    assert len(may_exceed(examples, Bounds(None, 10**6, None), finest, encoding)) == 20


def test_no_text_has_more_tokens_than_its_bound():
    """With a token for every byte of the normalised text no tokenizer makes more of it."""
    import tokenizers

    finest = normalising_tokenizer(tokenizers.normalizers.NFC)

    @settings(max_examples=300, deadline=None)
    @given(st.one_of(st.text(), st.text(st.sampled_from("a \u0958\u0344\U0001d160\u2126é\ufb2c漢"))))
    def check(text):
        tokens = len(finest(text, add_special_tokens=False)["input_ids"])
        assert tokens <= most_tokens(text)

    check()
    assert most_tokens("plain text") < 20  # else the bound would be of no use


def test_epochs_count_the_rows_that_fit(tokenizer):
    config = config_of()
    config.train.update(steps=0, epochs=2.5)
    examples = [longer(e, 2000) if i in (3, 40) else e for i, e in enumerate(EXAMPLES)]
    found = started(config, tokenizer, examples)
    assert found.fitting == 58 and found.skipped == 2  # all rows are prepared
    train = settings_of(config).with_steps(found.fitting).train
    assert (train.steps, train.epochs) == (37, 0.0)  # 145 rows, 4 a step
    config.train.update(batches_per_rollout=2, passes_per_rollout=3)
    assert settings_of(config).with_steps(58).train.steps == 19 * 6
    config.train.update(steps=6, epochs=0.0)
    assert settings_of(config).with_steps(58) == settings_of(config)


def test_rubrics_are_written_for_every_row_of_an_epoch(tokenizer):
    config, asked = config_of(), []
    config.train.update(steps=0, epochs=1.0)

    def give_rubrics(examples):
        asked.extend(e.id for e in examples)
        return examples[1:] if len(asked) == len(examples) else examples

    found = started(config, tokenizer, give_rubrics=give_rubrics)
    assert sorted(asked) == sorted(e.id for e in EXAMPLES) and found.fitting == 59


@pytest.mark.parametrize(
    "steps, epochs, key", [(3, 1.0, "train.epochs"), (0, 0.0, "train.steps"), (0, -1.0, "train.epochs")]
)
def test_a_run_has_steps_or_epochs(steps, epochs, key):
    config = config_of()
    config.train.update(steps=steps, epochs=epochs)
    with pytest.raises(UserError) as error:
        settings_of(config)
    assert error.value.field == key
