"""models/lora.py: adapters against the merged weights and against `peft`."""

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

from rcsd_jax.checkpoints import huggingface, lora
from rcsd_jax.host.errors import UserError
from rcsd_jax.models import decoder
from tests.checkpoints_for_tests import KINDS, VOCAB_SIZE, write_checkpoint

RANK, ALPHA = 4, 12
ALL = ("q", "k", "v", "o", "gate", "up", "down")
TOKENS = np.random.default_rng(1).integers(1, VOCAB_SIZE, size=(2, 13)).astype(np.int32)


@pytest.fixture(scope="module", params=list(KINDS))
def case(request, tmp_path_factory):
    """One checkpoint of each kind with adapters on every target, as if trained: b is not zero."""
    directory = write_checkpoint(tmp_path_factory.mktemp(request.param), request.param)
    config, params = huggingface.load(directory, dtype=jnp.float32)
    config = dataclasses.replace(config, lora_scale=lora.lora_scale(RANK, ALPHA))
    adapters = trained(lora.init_lora(config, jax.random.key(0), rank=RANK, alpha=ALPHA, targets=ALL))
    return types.SimpleNamespace(directory=directory, config=config, params=params, adapters=adapters)


@pytest.fixture(scope="module")
def config():
    return decoder.DecoderConfig(
        family="qwen3", vocab_size=64, hidden_size=16, intermediate_size=24, num_layers=2, num_heads=2, num_kv_heads=1,
        head_dim=8, rope_theta=1e4, rope_scaling=None, rms_norm_eps=1e-6, tie_embeddings=True, qkv_bias=False,
        qk_norm=True, max_position=64, dtype=jnp.float32, param_dtype=jnp.float32, remat="none",
    )  # fmt: skip


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
    return hidden @ decoder.head_matrix(config, variables["params"])


def their_logits(model):
    with torch.no_grad():
        return model.eval()(torch.tensor(TOKENS, dtype=torch.long)).logits.numpy()


def peft_model(base, adapter_directory):
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return peft.PeftModel.from_pretrained(model, adapter_directory)


def test_new_adapters_change_nothing_and_a_fixed_teacher_needs_no_second_copy(case):
    base = our_logits(case.config, {"params": case.params})
    new = lora.init_lora(case.config, jax.random.key(1), rank=RANK, alpha=ALPHA, targets=ALL)
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

    saved = huggingface.save(tmp_path / "merged", case.config, merged, source=case.directory)
    exported = transformers.AutoModelForCausalLM.from_pretrained(saved, dtype=torch.float32)
    np.testing.assert_allclose(their_logits(exported), applied, rtol=0, atol=1e-4)


def test_merging_keeps_the_parameter_dtype_and_rounds_once(case):
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), case.params)
    merged = lora.merge(params, case.adapters, 3.0)["layers"]["down"]
    adapter = jax.tree.map(np.float64, case.adapters["down"])
    exact = np.asarray(params["layers"]["down"], np.float64) + 3.0 * adapter["a"] @ adapter["b"]
    assert merged.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(merged, np.float64), exact, rtol=2**-8, atol=1e-6)
    wide = lora.merge(params, case.adapters, 3.0, dtype=jnp.float32)["layers"]["down"]
    assert wide.dtype == jnp.float32
    np.testing.assert_allclose(wide, exact, rtol=1e-5, atol=1e-7)


def test_peft_loads_the_saved_adapter_with_the_same_logits(case, tmp_path):
    saved = lora.save_peft(
        tmp_path / "adapter", case.config, case.adapters, rank=RANK, alpha=ALPHA, targets=ALL, base_path=case.directory
    )
    applied = our_logits(case.config, {"params": case.params, "lora": case.adapters})
    np.testing.assert_allclose(their_logits(peft_model(case.directory, saved)), applied, rtol=0, atol=1e-4)

    again = lora.load_peft(saved, case.config)
    assert (again.rank, again.alpha, set(again.targets)) == (RANK, ALPHA, set(ALL))
    jax.tree.map(np.testing.assert_array_equal, again.adapters, case.adapters)


def test_an_adapter_that_peft_wrote_gives_its_logits(case, tmp_path):
    base = transformers.AutoModelForCausalLM.from_pretrained(case.directory, dtype=torch.float32)
    settings = peft.LoraConfig(r=2, lora_alpha=6, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    torch.manual_seed(0)
    theirs = peft.get_peft_model(base, settings)
    theirs.save_pretrained(tmp_path)
    adapters, rank, alpha, targets = lora.load_peft(tmp_path, case.config)
    assert (rank, alpha, set(targets)) == (2, 6, {"q", "down"})
    config = dataclasses.replace(case.config, lora_scale=lora.lora_scale(rank, alpha))
    ours = our_logits(config, {"params": case.params, "lora": adapters})
    np.testing.assert_allclose(ours, their_logits(theirs), rtol=0, atol=1e-4)


def test_initial_values(config):
    def init(key, targets, rank=RANK):
        return lora.init_lora(config, jax.random.key(key), rank=rank, alpha=ALPHA, targets=targets)

    adapters = init(0, ALL, rank=64)
    assert set(adapters) == set(lora.lora_targets(config)) == set(ALL)
    assert adapters["down"]["a"].shape == (2, 24, 64)
    assert adapters["k"]["b"].shape == (2, 64, 8)
    assert {leaf.dtype for leaf in jax.tree.leaves(adapters)} == {jnp.dtype(jnp.float32)}
    # peft draws from U(-1/sqrt(in), 1/sqrt(in)): the same standard deviation, so the same first updates of b.
    assert float(adapters["down"]["a"].std()) == pytest.approx((3 * 24) ** -0.5, rel=0.05)
    assert not any(adapter["b"].any() for adapter in adapters.values())
    np.testing.assert_array_equal(init(0, ("v",))["v"]["a"], init(0, ALL)["v"]["a"])
    assert not np.array_equal(init(0, ALL)["k"]["a"], init(0, ALL)["v"]["a"])
    assert not np.array_equal(init(1, ALL)["v"]["a"], init(0, ALL)["v"]["a"])
    assert not np.array_equal(adapters["q"]["a"][0], adapters["q"]["a"][1])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"targets": ("q", "gates")}, r"lora\.targets.*gates.*did you mean 'gate'"),
        ({"targets": ("q_proj",)}, "did you mean 'q'"),
        ({"targets": ("embed",)}, "not a LoRA target.*valid: q, k, v, o, gate, up, down"),
        ({"targets": ()}, "names no target"),
        ({"rank": 0}, r"lora\.rank.*positive"),
        ({"alpha": -1}, r"lora\.alpha.*positive"),
    ],
)
def test_bad_settings(config, tmp_path, settings, message):
    settings = {"rank": RANK, "alpha": ALPHA, "targets": ("q",), **settings}
    with pytest.raises(UserError, match=message):
        lora.init_lora(config, jax.random.key(0), **settings)
    with pytest.raises(UserError, match=message):
        lora.save_peft(tmp_path / "adapter", config, {}, base_path="base", **settings)
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
    assert lora.read_peft_config(tmp_path) == ("base", 8, 8)
    if key in lora._WITHOUT_EFFECT and key not in OTHERS:
        return
    value = not DEFAULTS[key] if isinstance(DEFAULTS.get(key), bool) else ["something"]
    file.write_text(json.dumps(DEFAULTS | {key: OTHERS.get(key, value)}))
    with pytest.raises(UserError, match=f"adapter_config.json.*'{key}'"):
        lora.read_peft_config(tmp_path)


def test_bad_adapter_directories(config, tmp_path):
    adapters = lora.init_lora(config, jax.random.key(0), rank=RANK, alpha=ALPHA, targets=("q", "up"))
    settings = dict(rank=RANK, alpha=ALPHA, base_path="base")
    with pytest.raises(UserError, match="adapter cannot be read.*adapter_config.json"):
        lora.load_peft(tmp_path, config)
    with pytest.raises(ValueError, match="targets are"):
        lora.save_peft(tmp_path / "adapter", config, adapters, targets=("q",), **settings)

    directory = lora.save_peft(tmp_path / "adapter", config, adapters, targets=("q", "up"), **settings)
    with pytest.raises(UserError, match=r"q_proj\.lora_A.*shape \(4, 32\)"):
        lora.load_peft(directory, dataclasses.replace(config, hidden_size=32, head_dim=16))
    with pytest.raises(UserError, match=r"layers\.1\..*does not belong|layers\.1\..*shape"):
        lora.load_peft(directory, dataclasses.replace(config, num_layers=1))

    file = directory / "adapter_config.json"
    good = json.loads(file.read_text())
    for name, value in [("use_dora", True), ("use_rslora", True), ("peft_type", "IA3"), ("r", 0), ("bias", "all")]:
        file.write_text(json.dumps({**good, name: value}))
        with pytest.raises(UserError, match=f"adapter_config.json.*'{name}'"):
            lora.load_peft(directory, config)
