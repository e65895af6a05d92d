"""Opening a teacher of its own: its tokens are the student's, its base is shared, and what does not fit is one line."""

import json
import shutil

import jax
import numpy as np
import pytest

from rcsd_jax.checkpoints.peft import save_peft
from rcsd_jax.host.errors import UserError
from rcsd_jax.models import lora, sharding
from rcsd_jax.roles.opened_model import load_weights, open_model
from rcsd_jax.roles.own_teacher import load_teacher, open_teacher, shared_tokens, weights_digest
from rcsd_jax.settings import keys
from tests import user_inputs
from tests.settings_for_tests import settings_of

MESH = sharding.make_mesh(devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def settings():
    config = keys.stage()
    config.model.update(dtype="float32", param_dtype="float32")
    return settings_of(config).model


@pytest.fixture(scope="module")
def student(user_dir, settings):
    return open_model(str(user_dir / "model"), settings)


def teacher_in(directory, user_dir, *, padding=0, tokenizer=None, **shape):
    """A model directory with the user's tokenizer, changed by `tokenizer(its JSON)`, whose embedding has `padding` more rows."""
    directory.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (user_dir / "model" / name).exists():
            shutil.copy(user_dir / "model" / name, directory)
    content = json.loads((directory / "tokenizer.json").read_text())
    size = len(content["model"]["vocab"])
    if tokenizer:
        tokenizer(content)
        (directory / "tokenizer.json").write_text(json.dumps(content))
    user_inputs.make_model(directory, vocab_size=size + padding, eos_id=2, seed=5, **shape)
    return str(directory)


def test_a_larger_embedding_is_cut_to_the_tokens_that_both_have(user_dir, tmp_path, settings, student):
    size = student.decoder.config.vocab_size
    wider = open_teacher(teacher_in(tmp_path / "wider", user_dir, padding=9, hidden_size=32), settings, student, MESH)
    assert wider.shared_tokens == size and wider.model.decoder.config.hidden_size == 32
    assert open_teacher(str(student.directory), settings, student, MESH).shared_tokens is None
    assert shared_tokens(wider.model, student) == size  # whoever is the larger one


def test_tokens_that_only_one_tokenizer_has_at_its_end_are_left_out(user_dir, tmp_path, settings, student):
    def with_a_tool(content):
        token = content["added_tokens"][-1] | {"id": len(content["model"]["vocab"]), "content": "<tool>"}
        content["added_tokens"].append(token)

    directory = teacher_in(tmp_path / "longer", user_dir, padding=9, tokenizer=with_a_tool)
    longer = open_teacher(directory, settings, student, MESH)
    assert len(longer.model.tokenizer) == len(student.tokenizer) + 1
    assert longer.shared_tokens == len(student.tokenizer)


def test_a_token_that_is_another_text_is_named(user_dir, tmp_path, settings, student):
    vocabulary = student.tokenizer.get_vocab()
    texts = {number: text for text, number in vocabulary.items()}
    one, other = texts[40], texts[41]

    def swapped(content):
        vocab = content["model"]["vocab"]
        vocab[one], vocab[other] = vocab[other], vocab[one]

    directory = teacher_in(tmp_path / "swapped", user_dir, tokenizer=swapped)
    with pytest.raises(UserError) as error:
        open_teacher(directory, settings, student, MESH)
    assert f"token 40 is {one!r} for the student and {other!r} for the teacher" in str(error.value)
    assert error.value.field == "teacher.path" and "tokenizer" in error.value.remedy


def test_sizes_that_the_mesh_does_not_divide_are_the_teacher_s(user_dir, tmp_path, settings, student):
    directory = teacher_in(tmp_path / "odd", user_dir, num_attention_heads=6, num_key_value_heads=3)
    sizes = tuple(2 if axis == "tensor" else 1 for axis in sharding.AXES)
    mesh = jax.sharding.AbstractMesh(sizes, sharding.AXES)
    with pytest.raises(
        UserError, match="does not divide the 3 teacher's key/value heads.*mesh.tensor|mesh.tensor.*teacher's"
    ):
        open_teacher(directory, settings, student, mesh)


def test_an_adapter_on_the_student_s_base_shares_its_weights(user_dir, tmp_path, settings, student):
    params, config = load_weights(student, MESH), student.decoder.config
    adapters = lora.init_lora(config, jax.random.key(0), rank=2, alpha=8.0, targets=("q",))
    adapters = jax.tree.map(lambda x: x + 0.5, adapters)
    described = dict(rank=2, alpha=8.0, targets=("q",), base_path=student.directory)
    save_peft(tmp_path / "adapter", config, adapters, **described)
    teacher = open_teacher(str(tmp_path / "adapter"), settings, student, MESH)
    variables = load_teacher(teacher, student, params, MESH)
    assert variables["params"] is params and teacher.model.decoder.config.lora_scale == 4.0
    np.testing.assert_array_equal(variables["lora"]["q"]["b"], adapters["q"]["b"])

    before = weights_digest(teacher)
    save_peft(tmp_path / "adapter", config, jax.tree.map(lambda x: 2 * x, adapters), **described)
    assert weights_digest(teacher) != before
    own = open_teacher(str(student.directory), settings, student, MESH)
    assert load_teacher(own, student, params, MESH)["params"] is params
    assert weights_digest(own) == before.split("+")[0]
