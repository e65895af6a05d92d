"""checkpoints/tensors.py and safetensors.py: a parameter that is stacked along several axes is many tensors, and back."""

import numpy as np
import pytest
from safetensors.numpy import load_file

from rcsd_jax.checkpoints import loading
from rcsd_jax.checkpoints.families import FAMILIES
from rcsd_jax.checkpoints.safetensors import NewTensor, list_tensors, write_file
from rcsd_jax.checkpoints.tensors import tensors_of
from rcsd_jax.models.config import DecoderConfig
from rcsd_jax.models.declarations import declarations
from rcsd_jax.models.parameters import Parameter

EXPERTS = Parameter((2, 3, 4, 5), np.float32, ("layers", "experts", "embed", "mlp"), None, is_matrix=True)
TEMPLATE = "model.layers.{layer}.mlp.experts.{expert}.up_proj.weight"


def test_names_run_over_every_stacked_axis():
    names, shape = tensors_of(EXPERTS, TEMPLATE)
    assert list(names) == [(layer, expert) for layer in range(2) for expert in range(3)]
    assert names[1, 2] == "model.layers.1.mlp.experts.2.up_proj.weight" and shape == (5, 4)
    vector = Parameter((7,), np.float32, (None,), None)
    assert tensors_of(vector, "model.norm.weight") == ({(): "model.norm.weight"}, (7,))


@pytest.mark.parametrize("index", [(slice(None),) * 4, (slice(1, 2), slice(0, 2), slice(1, 3), slice(2, 5))])
def test_any_slice_of_stacked_experts_is_read(tmp_path, index):
    values = np.random.default_rng(0).normal(size=EXPERTS.shape).astype(np.float32)
    names, shape = tensors_of(EXPERTS, TEMPLATE)
    tensors = [NewTensor(name, np.dtype(np.float32), shape) for name in names.values()]
    write_file(tmp_path / "model.safetensors", tensors, (values[place].T for place in names))
    assert {name: x.shape for name, x in load_file(tmp_path / "model.safetensors").items()} == {
        tensor.name: (5, 4) for tensor in tensors
    }
    stored = list_tensors(tmp_path)
    sources = {place: stored[name] for place, name in names.items()}
    np.testing.assert_array_equal(loading._read(EXPERTS, sources, index), values[index])


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_names_every_parameter_it_can_have(name):
    sizes = dict(
        vocab_size=8, hidden_size=4, intermediate_size=4, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=2
    )
    parts = dict.fromkeys(("qkv_bias", "o_bias", "mlp_bias"), any("_bias" in f for f in FAMILIES[name].followed))
    parts |= FAMILIES[name].switches
    if FAMILIES[name].fused:
        parts |= dict(num_experts=2, experts_per_token=1, expert_size=4)
    declared = declarations(DecoderConfig(name, **sizes, **parts))
    assert {path[-1] for path in declared} <= set(FAMILIES[name].names)
    assert all(("{layer}" in FAMILIES[name].names[path[-1]]) == (path[0] == "layers") for path in declared)
