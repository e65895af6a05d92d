"""Every key of config.json, changed alone: our logits are transformers', or the key is refused."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import save_file

from rcsd_jax.checkpoints import hf_config, loading
from rcsd_jax.checkpoints.families import FAMILIES
from rcsd_jax.checkpoints.hf_config import read_config
from rcsd_jax.host.errors import UserError
from rcsd_jax.models import decoder
from rcsd_jax.models.head import head_matrix

TOKENS = np.random.default_rng(0).integers(0, 13, size=(1, 24)).astype(np.int32)
SIZES = dict(
    vocab_size=13, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=4,
    num_key_value_heads=2, head_dim=8, max_position_embeddings=64, dtype="float32", architectures=["One"],
)  # fmt: skip
LLAMA3 = dict(
    rope_type="llama3", rope_theta=500.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
    original_max_position_embeddings=16,
)  # fmt: skip
KINDS = {
    "qwen3": ("Qwen3Config", {"rope_type": "default", "rope_theta": 500.0}),
    "qwen2": ("Qwen2Config", {"rope_type": "default", "rope_theta": 500.0}),
    "llama": ("LlamaConfig", LLAMA3),
    "qwen3_moe": ("Qwen3MoeConfig", {"rope_type": "default", "rope_theta": 500.0}),
}
OWN_SIZES = {"qwen3_moe": dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=8, norm_topk_prob=True)}
ABSENT = object()
YARN = {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 16}
NESTED = {"full_attention": {"rope_type": "default", "rope_theta": 77.0}}
# Instead of what `another` gives. First those of which the decoder has one value, or that it does not know.
REFUSED = {
    "hidden_act": ["gelu"], "attention_bias": [True], "mlp_bias": [True], "num_experts": [8], "use_mrope": [True],
    "partial_rotary_factor": [0.5], "rope_interleaved": [True], "quantization_config": [{"quant_method": "fp8"}],
    "use_sliding_window": [True], "is_encoder_decoder": [True], "not_heard_of": ["value", 0, False, {}],
    "layer_types": [["sliding_attention"], ["linear_attention"], ["full_attention"] * 2, "full_attention"],
    "per_layer_config": [{"0": {"intermediate_size": 12}}], "original_max_position_embeddings": [8],
    "is_causal": [False], "attn_logit_softcapping": [5.0], "auto_map": [{"AutoModelForCausalLM": "modeling.Other"}],
    "rope_parameters.rope_type": ["linear", "dynamic", "yarn", "longrope", "proportional"],
    "mlp_only_layers": [[0]], "decoder_sparse_step": [2], "rope_parameters.mrope_section": [[2, 1, 1]], "rope_parameters.attention_factor": [2.0],
}  # fmt: skip
FOLLOWED = {
    "model_type": ["qwen2", "mistral"],
    "num_key_value_heads": [4, 3, None],
    "head_dim": [4],
    "rope_theta": [77.0, 0],
    "rope_scaling": [
        {"rope_type": "default"}, {"rope_type": "default", "rope_theta": 500.0}, {"type": "default", "rope_theta": 77.0},
        {"type": "linear", "factor": 4.0}, LLAMA3, {**LLAMA3, "factor": 2.0}, YARN, "yarn",
    ],
    "rope_parameters": [{}, {"type": "default", "rope_theta": 77.0}, LLAMA3, YARN, NESTED, "default"],
    "rope_parameters.partial_rotary_factor": [0.5, 1.0],
}  # fmt: skip
WITHOUT_EFFECT = {
    "dtype": ["bfloat16"],
    "torch_dtype": ["bfloat16"],
    "id2label": [{"0": "a", "1": "b"}],
    "problem_type": ["regression"],
    "attention_dropout": [0.5],
    "sliding_window": [4],
    "eos_token_id": [[1, 2]],
}


@functools.cache
def written(kind):
    """config.json as transformers writes it."""
    name, rope = KINDS[kind]
    return json.loads(
        getattr(transformers, name)(**SIZES, **OWN_SIZES.get(kind, {}), rope_parameters=rope).to_json_string()
    )


def without_effect(kind):
    return {*hf_config.WITHOUT_EFFECT, *FAMILIES[kind].without_effect}


def keys(kind):
    """All that transformers writes or takes, all that we know, and what none of them knows."""
    fields = {field.name for field in dataclasses.fields(getattr(transformers, KINDS[kind][0]))}
    ours = {*hf_config.FOLLOWED, *FAMILIES[kind].followed, *hf_config.ONLY, *without_effect(kind)}
    within = {f"rope_parameters.{key}" for key in KINDS[kind][1]}
    return sorted({*written(kind), *fields, *ours, *REFUSED, *FOLLOWED, *within})


def another(value):
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int | float):
        return [value * 2]
    return ["another"] if isinstance(value, str) else [3] if value is None else []


def changed(kind, key):
    """(value, config.json with it) for other values of the key, and without it."""
    raw = written(kind)
    outer, inner = key.split(".") if key.startswith("rope_parameters.") else (key, "")
    place, name = (raw[outer], inner) if inner else (raw, key)
    for value in [ABSENT, *(REFUSED | FOLLOWED | WITHOUT_EFFECT).get(key, another(place.get(name)))]:
        edited = {k: v for k, v in place.items() if k != name} | ({} if value is ABSENT else {name: value})
        yield value, (raw | {outer: edited} if inner else edited)


@functools.partial(jax.jit, static_argnums=0)
def _our_logits(config, params):
    ones = jnp.ones(TOKENS.shape, jnp.int32)
    positions = jnp.arange(TOKENS.shape[1])[None]
    hidden, _ = decoder.Decoder(config).apply({"params": params}, TOKENS, segment_ids=ones, positions=positions)
    return hidden @ head_matrix(config, params)


OURS = {}


def our_logits(directory, model):
    """Of the directory's config.json with the model's weights. They follow from their shapes, so the same are read once."""
    config = read_config(directory, dtype=jnp.float32)
    tensors = model.state_dict()
    known = config, tuple((name, *x.shape) for name, x in tensors.items())
    if known not in OURS:
        save_file({name: x.clone() for name, x in tensors.items()}, directory / "model.safetensors")
        OURS[known] = np.asarray(_our_logits(config, loading.load_model(directory, dtype=jnp.float32)[1]))
    return OURS[known]


def their_model(directory):
    """A model of the directory's config.json as transformers reads it, with weights that follow from their shapes."""
    torch.set_num_threads(1)  # at these sizes more threads only wait for each other
    config = transformers.AutoConfig.from_pretrained(directory)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    generator = torch.Generator()
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            noise = torch.randn(tensor.shape, generator=generator.manual_seed(tensor.numel() + len(name)))
            # As in `checkpoints_for_tests`: what is swapped or forgotten shows.
            tensor.copy_(1 + 0.2 * noise if "norm" in name else 0.35 * noise)
    return model


def is_refused(directory, key):
    try:
        read_config(directory, dtype=jnp.float32)
    except UserError as error:
        assert error.file == directory / "config.json" and error.remedy and "\n" not in str(error)
        # Where two fields contradict each other, one of them is named.
        related = ("num_key_value_heads", "num_local_experts", "layer_types", "rope_scaling")
        assert error.field.startswith((key.split(".")[0], *related)) or key == "model_type", error
        return True
    return False


@pytest.mark.parametrize("kind, key", [(kind, key) for kind in KINDS for key in keys(kind)])
def test_a_changed_key_is_followed_or_refused(kind, key, tmp_path):
    outcomes = []
    for value, raw in changed(kind, key):
        (tmp_path / "config.json").write_text(json.dumps(raw))
        if is_refused(tmp_path, key):
            outcomes.append("refused")
            continue
        model = their_model(tmp_path)
        with torch.no_grad():
            theirs = model(torch.tensor(TOKENS, dtype=torch.long)).logits.numpy()
        np.testing.assert_allclose(our_logits(tmp_path, model), theirs, rtol=0, atol=1e-4, err_msg=repr(value))
        outcomes.append("followed")
    if key in REFUSED:
        assert set(outcomes[1:]) == {"refused"}
    elif key in without_effect(kind):
        assert set(outcomes) == {"followed"}
    # Others say how many layers there are, or the other families do not have this one's fields.
    elif key != "num_hidden_layers" and (kind, key) not in (("llama", "model_type"), ("qwen3_moe", "model_type")):
        assert "followed" in outcomes[1:]


def test_logits_hang_on_what_is_followed(tmp_path):
    """So that they are told apart where the tests above compare them."""
    (tmp_path / "config.json").write_text(json.dumps(raw := written("llama")))
    ours = our_logits(tmp_path, their_model(tmp_path))
    assert ours.std() > 0.3
    for field, value in (("rms_norm_eps", 0.1), ("rope_parameters", LLAMA3 | {"rope_theta": 77.0})):
        (tmp_path / "config.json").write_text(json.dumps(raw | {field: value}))
        assert np.abs(our_logits(tmp_path, their_model(tmp_path)) - ours).max() > 0.01


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        (
            {"rope_scaling": YARN},
            "rope_scaling.rope_type",
        ),  # as Qwen's model cards say, beside what transformers 5 writes
        ({"rope_scaling": {"rope_type": "default"}}, "rope_scaling"),  # for transformers theta is then 10000
        ({"rope_parameters": {"rope_theta": None}}, "rope_parameters.rope_theta"),
        ({"rope_parameters": {"rope_theta": "1e6"}}, "rope_parameters.rope_theta"),
        ({"vocab_size": 13.0}, "vocab_size"),
        ({"num_hidden_layers": True}, "num_hidden_layers"),
        ({"num_hidden_layers": "1"}, "layer_types"),
        ({"rms_norm_eps": 0}, "rms_norm_eps"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings"),
    ],
)
def test_what_is_not_understood_is_named(tmp_path, fields, named):
    (tmp_path / "config.json").write_text(json.dumps(written("qwen3") | fields))
    with pytest.raises(UserError, match=r"config\.json") as caught:
        read_config(tmp_path, dtype=jnp.float32)
    assert caught.value.field == named


def test_a_field_that_is_null_is_not_there(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(written("qwen3") | {"not_heard_of": None, "rope_scaling": None}))
    assert read_config(tmp_path, dtype=jnp.float32).rope_theta == 500.0
