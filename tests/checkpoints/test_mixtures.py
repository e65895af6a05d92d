"""Checkpoints of mixtures of experts: both ways to store experts, and gradients, against `transformers`."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from rcsd_jax.checkpoints import loading, saving
from rcsd_jax.checkpoints.tensors import tensors_of_model
from rcsd_jax.host.errors import UserError
from rcsd_jax.models import decoder
from rcsd_jax.models.declarations import declarations, leaf_at
from rcsd_jax.models.head import head_matrix
from tests.checkpoints_for_tests import VOCAB_SIZE, transformers_model, write_checkpoint


@pytest.fixture(scope="module")
def model():
    return transformers_model("qwen3_moe")


@pytest.fixture(scope="module")
def apart(tmp_path_factory):
    """As the hub has them: a tensor for each expert, which is also what transformers writes if nobody asks otherwise."""
    return write_checkpoint(tmp_path_factory.mktemp("apart"), "qwen3_moe")


def whole(model, directory):
    """As transformers 5 has them in memory, and writes them if it is asked to: a tensor for all experts of a layer."""
    model.save_pretrained(directory, save_original_format=False)
    return directory


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_experts_stored_together_are_the_same_experts(model, apart, tmp_path):
    fused = whole(model, tmp_path / "fused")
    assert "model.layers.0.mlp.experts.gate_up_proj" in load_file(fused / "model.safetensors")
    assert "model.layers.1.mlp.experts.7.up_proj.weight" in load_file(apart / "model.safetensors")
    config, params = loading.load_model(fused, dtype=jnp.float32)
    assert config == loading.load_model(apart, dtype=jnp.float32)[0]
    same(params, loading.load_model(apart, dtype=jnp.float32)[1])
    saved = saving.save_model(tmp_path / "saved", config, params, source=fused)
    same(load_file(saved / "model.safetensors"), load_file(apart / "model.safetensors"))


def test_config_json_keeps_the_name_that_it_has_for_experts(model, apart, tmp_path):
    config, params = loading.load_model(apart, dtype=jnp.float32)
    written = {}
    for name in ("num_experts", "num_local_experts"):
        source = tmp_path / name
        source.mkdir()
        raw = json.loads((apart / "config.json").read_text())
        del raw["num_local_experts"]
        (source / "config.json").write_text(json.dumps(raw | {name: 8}))
        written[name] = json.loads(
            (saving.save_model(tmp_path / "out", config, params, source=source) / "config.json").read_text()
        )
        assert {k for k in written[name] if k.startswith("num_") and k.endswith("experts")} == {name}
        assert written[name][name] == 8
    # Without a source, as the hub has it.
    alone = json.loads((saving.save_model(tmp_path / "out", config, params) / "config.json").read_text())
    assert alone["num_experts"] == 8 and alone["norm_topk_prob"] is True and alone["moe_intermediate_size"] == 24


@pytest.mark.parametrize("damage", ["shape", "missing"])
def test_damaged_experts_are_named(model, tmp_path, damage):
    directory, name = whole(model, tmp_path / "fused"), "model.layers.1.mlp.experts.gate_up_proj"
    tensors = load_file(directory / "model.safetensors")
    tensors[name] = np.ascontiguousarray(tensors[name][:-1])
    if damage == "missing":
        del tensors[name]
    save_file(tensors, directory / "model.safetensors")
    with pytest.raises(UserError) as caught:
        loading.load_model(directory, dtype=jnp.float32)
    expected = {"shape": name, "missing": "model.layers.1.mlp.experts.0.gate_proj.weight"}
    assert caught.value.field == expected[damage] and "\n" not in str(caught.value)


def test_gradients_of_router_and_experts_are_those_of_torch(model, apart):
    """Of a loss on real tokens only, of left-padded rows."""
    config, params = loading.load_model(apart, dtype=jnp.float32)
    rng = np.random.default_rng(0)
    tokens, mask = rng.integers(1, VOCAB_SIZE, size=(3, 12)), np.arange(12) >= np.array([[0], [5], [11]])
    direction = rng.normal(size=(3, 12, VOCAB_SIZE)).astype(np.float32) * mask[..., None]

    def loss(params):
        positions = decoder.positions_from_mask(jnp.asarray(mask))
        how = dict(segment_ids=jnp.asarray(mask, jnp.int32), positions=positions)
        hidden, _ = decoder.Decoder(config).apply({"params": params}, jnp.asarray(tokens, jnp.int32), **how)
        return (jnp.asarray(direction) * (hidden @ head_matrix(config, params))).sum()

    ours = jax.jit(jax.grad(loss))(params)
    model.zero_grad()
    positions = (torch.tensor(mask.astype(int)).cumsum(1) - 1).clamp(min=0)
    out = model(torch.tensor(tokens), attention_mask=torch.tensor(mask.astype(int)), position_ids=positions)
    (out.logits * torch.tensor(direction)).sum().backward()
    theirs = {name: x.grad.numpy() for name, x in model.named_parameters()}
    moved = 0
    for path, tensors in tensors_of_model(config).items():
        transposed = declarations(config)[path].is_matrix
        for index, name in tensors.names.items():
            mine = np.asarray(leaf_at(ours, path))[index]
            if "experts" in name:
                prefix, expert, side, _ = name.rsplit(".", 3)
                fused = theirs[f"{prefix}.{'down_proj' if side == 'down_proj' else 'gate_up_proj'}"][int(expert)]
                other = fused if side == "down_proj" else np.split(fused, 2)[side == "up_proj"]
            else:
                other = theirs[name]
            scale = max(np.abs(other).max(), 1e-6)  # an expert that has no token gets none
            moved += scale > 1e-6
            np.testing.assert_allclose(mine.T if transposed else mine, other, rtol=0, atol=1e-4 * scale, err_msg=name)
    assert moved > 0.9 * sum(len(tensors.names) for tensors in tensors_of_model(config).values())
