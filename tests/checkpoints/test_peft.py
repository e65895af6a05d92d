"""checkpoints/peft.py: adapters against the merged weights and against `peft`."""

from __future__ import annotations

import dataclasses
import functools
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
import transformers

from rcsd_jax.checkpoints import loading, saving
from rcsd_jax.checkpoints import peft as ours
from rcsd_jax.checkpoints.hf_config import read_config
from rcsd_jax.checkpoints.peft import load_peft, read_peft_config, save_peft
from rcsd_jax.host.errors import UserError
from rcsd_jax.models import decoder, lora
from rcsd_jax.models.head import head_matrix
from tests.checkpoints_for_tests import FAMILY_KINDS, KINDS, VOCAB_SIZE, write_checkpoint
from tests.models.test_lora import ALPHA, BAD_SETTINGS, CONFIG, RANK

TOKENS = np.random.default_rng(1).integers(1, VOCAB_SIZE, size=(2, 13)).astype(np.int32)


FAMILIES = [
    kind if kind in ("gemma3_text", "olmo2", "qwen3_moe") else pytest.param(kind, marks=pytest.mark.slow)
    for kind in FAMILY_KINDS
]


@pytest.fixture(scope="module", params=[*KINDS, *FAMILIES])
def case(request, tmp_path_factory):
    """One checkpoint of each kind with adapters on every target, as if trained: b is not zero."""
    directory = write_checkpoint(tmp_path_factory.mktemp(request.param), request.param)
    config, params = loading.load_model(directory, dtype=jnp.float32)
    config = dataclasses.replace(config, lora_scale=lora.lora_scale(RANK, ALPHA))
    targets = lora.lora_targets(config)
    adapters = trained(lora.init_lora(config, jax.random.key(0), rank=RANK, alpha=ALPHA, targets=targets))
    return types.SimpleNamespace(directory=directory, config=config, params=params, adapters=adapters, targets=targets)


def trained(adapters):
    return {
        target: {"a": adapter["a"], "b": 0.1 * jax.random.normal(jax.random.key(len(target)), adapter["b"].shape)}
        for target, adapter in adapters.items()
    }


def our_logits(config, variables):
    return np.asarray(_our_logits(config, variables))


@functools.partial(jax.jit, static_argnums=0)
def _our_logits(config, variables):
    ones = jnp.ones(TOKENS.shape, jnp.int32)
    hidden, _ = decoder.Decoder(config).apply(
        variables, jnp.asarray(TOKENS), segment_ids=ones, positions=decoder.positions_from_mask(ones)
    )
    return hidden @ head_matrix(config, variables["params"])


def their_logits(model):
    with torch.no_grad():
        return model.eval()(torch.tensor(TOKENS, dtype=torch.long)).logits.numpy()


def peft_model(base, adapter_directory):
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return peft.PeftModel.from_pretrained(model, adapter_directory)


def test_new_adapters_change_nothing_and_a_fixed_teacher_needs_no_second_copy(case):
    base = our_logits(case.config, {"params": case.params})
    new = lora.init_lora(case.config, jax.random.key(1), rank=RANK, alpha=ALPHA, targets=case.targets)
    with_new = our_logits(case.config, {"params": case.params, "lora": new})
    np.testing.assert_allclose(with_new, base, rtol=0, atol=2e-5)  # equal but for the compiler's order of sums
    student = our_logits(case.config, {"params": case.params, "lora": case.adapters})
    assert np.abs(student - base).max() > 0.1
    # The fixed teacher: the very same arrays, without the collection.
    teacher = our_logits(case.config, {"params": case.params})
    their_base = transformers.AutoModelForCausalLM.from_pretrained(case.directory, dtype=torch.float32)
    np.testing.assert_allclose(teacher, their_logits(their_base), rtol=0, atol=1e-4)


def test_merged_weights_are_the_adapters_applied_also_in_transformers(case, tmp_path):
    before = jax.tree.map(np.array, case.params)
    merged = lora.merge(case.params, case.adapters, case.config.lora_scale)
    jax.tree.map(np.testing.assert_array_equal, case.params, before)
    applied = our_logits(case.config, {"params": case.params, "lora": case.adapters})
    np.testing.assert_allclose(our_logits(case.config, {"params": merged}), applied, rtol=0, atol=1e-4)

    saved = saving.save_model(tmp_path / "merged", case.config, merged, source=case.directory)
    exported = transformers.AutoModelForCausalLM.from_pretrained(saved, dtype=torch.float32)
    np.testing.assert_allclose(their_logits(exported), applied, rtol=0, atol=1e-4)


def test_peft_loads_the_saved_adapter_with_the_same_logits(case, tmp_path):
    how = dict(rank=RANK, alpha=ALPHA, targets=case.targets, base_path=case.directory)
    saved = save_peft(tmp_path / "adapter", case.config, case.adapters, **how)
    applied = our_logits(case.config, {"params": case.params, "lora": case.adapters})
    np.testing.assert_allclose(their_logits(peft_model(case.directory, saved)), applied, rtol=0, atol=1e-4)

    again = load_peft(saved, case.config)
    assert (again.rank, again.alpha, set(again.targets)) == (RANK, ALPHA, set(case.targets))
    jax.tree.map(np.testing.assert_array_equal, again.adapters, case.adapters)


def test_an_adapter_that_peft_wrote_gives_its_logits(case, tmp_path):
    base = transformers.AutoModelForCausalLM.from_pretrained(case.directory, dtype=torch.float32)
    second = "o" if case.config.num_experts else "down"
    settings = peft.LoraConfig(r=2, lora_alpha=6, target_modules=["q_proj", f"{second}_proj"], init_lora_weights=False)
    torch.manual_seed(0)
    theirs = peft.get_peft_model(base, settings)
    theirs.save_pretrained(tmp_path)
    adapters, rank, alpha, targets = load_peft(tmp_path, case.config)
    assert (rank, alpha, set(targets)) == (2, 6, {"q", second})
    config = dataclasses.replace(case.config, lora_scale=lora.lora_scale(rank, alpha))
    ours = our_logits(config, {"params": case.params, "lora": adapters})
    np.testing.assert_allclose(ours, their_logits(theirs), rtol=0, atol=1e-4)


def test_experts_that_peft_adapted_are_refused_by_name(tmp_path):
    """It keeps the adapters of all experts of a layer in one matrix, and those of two matrices in one."""
    directory = write_checkpoint(tmp_path / "base", "qwen3_moe")
    base = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["down_proj"])).save_pretrained(tmp_path / "adapter")
    with pytest.raises(UserError) as caught:
        load_peft(tmp_path / "adapter", read_config(directory, dtype=jnp.float32))
    assert caught.value.field == "target_parameters"


@pytest.mark.parametrize(("settings", "message"), BAD_SETTINGS)
def test_bad_settings(tmp_path, settings, message):
    settings = {"rank": RANK, "alpha": ALPHA, "targets": ("q",), **settings}
    with pytest.raises(UserError, match=message):
        save_peft(tmp_path / "adapter", CONFIG, {}, base_path="base", **settings)
    assert not (tmp_path / "adapter").exists()


DEFAULTS = json.loads(json.dumps(peft.LoraConfig().to_dict(), default=list)) | {"base_model_name_or_path": "base"}
OTHERS = {
    "init_lora_weights": "pissa",
    "revision": "a1b2c3",
    "peft_type": "IA3",
    "bias": "all",
    "r": 0,
    "lora_alpha": -1,
}


@pytest.mark.parametrize("key", [*DEFAULTS, "not_heard_of"])
def test_every_field_of_an_adapter_is_plain_or_refused(key, tmp_path):
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(DEFAULTS))
    assert read_peft_config(tmp_path) == ("base", 8, 8)
    if key in ours._WITHOUT_EFFECT and key not in OTHERS:
        return
    value = not DEFAULTS[key] if isinstance(DEFAULTS.get(key), bool) else ["something"]
    file.write_text(json.dumps(DEFAULTS | {key: OTHERS.get(key, value)}))
    with pytest.raises(UserError, match=f"adapter_config.json.*'{key}'"):
        read_peft_config(tmp_path)


def test_bad_adapter_directories(tmp_path):
    adapters = lora.init_lora(CONFIG, jax.random.key(0), rank=RANK, alpha=ALPHA, targets=("q", "up"))
    settings = dict(rank=RANK, alpha=ALPHA, base_path="base")
    with pytest.raises(UserError, match="adapter cannot be read.*adapter_config.json"):
        load_peft(tmp_path, CONFIG)
    with pytest.raises(ValueError, match="targets are"):
        save_peft(tmp_path / "adapter", CONFIG, adapters, targets=("q",), **settings)

    directory = save_peft(tmp_path / "adapter", CONFIG, adapters, targets=("q", "up"), **settings)
    with pytest.raises(UserError, match=r"q_proj\.lora_A.*shape \(4, 32\)"):
        load_peft(directory, dataclasses.replace(CONFIG, hidden_size=32, head_dim=16))
    with pytest.raises(UserError, match=r"layers\.1\..*does not belong|layers\.1\..*shape"):
        load_peft(directory, dataclasses.replace(CONFIG, num_layers=1))

    file = directory / "adapter_config.json"
    good = json.loads(file.read_text())
    for name, value in [("use_dora", True), ("use_rslora", True), ("peft_type", "IA3"), ("r", 0), ("bias", "all")]:
        file.write_text(json.dumps({**good, name: value}))
        with pytest.raises(UserError, match=f"adapter_config.json.*'{name}'"):
            load_peft(directory, CONFIG)
