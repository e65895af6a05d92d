"""Every key of config.json, changed alone: our logits are transformers', or the key is refused."""

import copy
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
YARN = {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 16}
DEFAULT = {"rope_type": "default", "rope_theta": 500.0}
BY_TYPE = {"full_attention": YARN, "sliding_attention": DEFAULT}
# The class in transformers, RoPE, and fields.
KINDS = {
    "qwen3": ("Qwen3Config", DEFAULT, {}),
    "qwen2": ("Qwen2Config", DEFAULT, dict(use_sliding_window=True, sliding_window=8, max_window_layers=0)),
    "llama": ("LlamaConfig", LLAMA3, {}),
    "gemma3_text": ("Gemma3TextConfig", BY_TYPE, dict(num_hidden_layers=2, sliding_window=8, sliding_window_pattern=2)),
    "smollm3": ("SmolLM3Config", DEFAULT, dict(num_hidden_layers=2, no_rope_layer_interval=2)),
    "mistral": ("MistralConfig", DEFAULT, dict(sliding_window=8)),
    "qwen3_moe": (
        "Qwen3MoeConfig",
        DEFAULT,
        dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=8, norm_topk_prob=True),
    ),
    "olmo2": ("Olmo2Config", DEFAULT, {}),
    "olmo3": (
        "Olmo3Config",
        BY_TYPE,
        dict(num_hidden_layers=2, sliding_window=8, layer_types=["sliding_attention", "full_attention"]),
    ),
    "granite": ("GraniteConfig", DEFAULT, dict(embedding_multiplier=2.0, attention_multiplier=0.3, logits_scaling=0.5)),
}
WHOLE = ("qwen3", "qwen2", "llama")  # of which every field is changed; of the others, those that are theirs
# That these are read does not mean that there are layers without experts, or two numbers of experts.
OTHERWISE_REFUSED = ("mlp_only_layers", "decoder_sparse_step", "num_experts")
ABSENT = object()
NESTED = {"full_attention": {"rope_type": "default", "rope_theta": 77.0}}
# Instead of what `another` gives. First those of which the decoder has one value, or that it does not know.
REFUSED = {
    "hidden_act": ["gelu"], "hidden_activation": ["gelu"], "attention_bias": [True], "mlp_bias": [True], "num_experts": [8], "use_mrope": [True],
    "partial_rotary_factor": [0.5], "rope_interleaved": [True], "quantization_config": [{"quant_method": "fp8"}],
    "use_bidirectional_attention": [True], "final_logit_softcapping": [5.0], "is_encoder_decoder": [True], "not_heard_of": ["value", 0, False, {}],
    "layer_types": [["linear_attention"], ["full_attention"] * 3, "full_attention"],
    "per_layer_config": [{"0": {"intermediate_size": 12}}], "original_max_position_embeddings": [8],
    "is_causal": [False], "attn_logit_softcapping": [5.0], "auto_map": [{"AutoModelForCausalLM": "modeling.Other"}],
    "rope_parameters.rope_type": ["linear", "dynamic", "yarn", "longrope", "proportional"],
    "mlp_only_layers": [[0]], "decoder_sparse_step": [2], "rope_parameters.mrope_section": [[2, 1, 1]], "rope_parameters.attention_factor": [2.0],
}  # fmt: skip
FOLLOWED = {
    "model_type": ["qwen2", "mistral"],
    "num_key_value_heads": [4, 3],
    "use_sliding_window": [True, False, "yes"],
    "sliding_window": [4, None, 0],
    "sliding_window_pattern": [1, 3],
    "max_window_layers": [0, 1],
    "no_rope_layers": [[0, 1], [1, 1, 0], [1], [2, 1], "all"],
    "no_rope_layer_interval": [1, 3],
    "head_dim": [4],
    "rope_theta": [77.0, 0],
    "rope_scaling": [
        {"rope_type": "default"}, {"rope_type": "default", "rope_theta": 500.0}, {"type": "default", "rope_theta": 77.0},
        {"type": "linear", "factor": 4.0}, LLAMA3, {**LLAMA3, "factor": 2.0}, YARN, "yarn",
    ],
    "rope_parameters": [
        {}, {"type": "default", "rope_theta": 77.0}, LLAMA3, YARN, NESTED, "default", BY_TYPE | {"full_attention": LLAMA3},
        DEFAULT | {"rope_type": "linear", "factor": 4.0}, DEFAULT | {"rope_type": "dynamic", "factor": 4.0},
        YARN | {"attention_factor": 2.0, "beta_fast": 4, "beta_slow": 0.5}, YARN | {"mscale": 2.0, "mscale_all_dim": 0.5},
        YARN | {"truncate": False}, {"rope_type": "yarn", "factor": 4.0}, YARN | {"truncate": "no"}, YARN | {"factor": None},
    ],
    "rope_parameters.partial_rotary_factor": [0.5, 1.0],
    "rope_parameters.full_attention": [LLAMA3, YARN | {"truncate": False}],
    "rope_parameters.sliding_attention": [DEFAULT | {"rope_type": "linear", "factor": 4.0}],
}  # fmt: skip
WITHOUT_EFFECT = {
    "dtype": ["bfloat16"],
    "torch_dtype": ["bfloat16"],
    "id2label": [{"0": "a", "1": "b"}],
    "problem_type": ["regression"],
    "attention_dropout": [0.5],
    "eos_token_id": [[1, 2]],
    "cache_implementation": ["hybrid"],
}


@functools.cache
def written(kind):
    """config.json as transformers writes it."""
    name, rope, fields = KINDS[kind]
    ids = dict(pad_token_id=None, bos_token_id=None, eos_token_id=None)  # some classes' own are beyond this vocabulary
    config = getattr(transformers, name)(
        **{**SIZES, **ids, **copy.deepcopy(fields)}, rope_parameters=copy.deepcopy(rope)
    )
    return {**json.loads(config.to_json_string()), **ids}


def without_effect(kind):
    return {*hf_config.WITHOUT_EFFECT, *FAMILIES[kind].without_effect}


def keys(kind):
    """All that transformers writes or takes, all that we know, and what none of them knows."""
    fields = {field.name for field in dataclasses.fields(getattr(transformers, KINDS[kind][0]))}
    ours = {*hf_config.FOLLOWED, *FAMILIES[kind].followed, *hf_config.ONLY, *without_effect(kind)}
    within = {f"rope_parameters.{key}" for key in KINDS[kind][1]}
    if kind not in WHOLE:
        family = FAMILIES[kind]
        shared = {"layer_types", "rope_parameters", "tie_word_embeddings", "attn_logit_softcapping", "not_heard_of"}
        return sorted({*family.followed, *family.defaults, *family.without_effect, family.activation, *shared, *within})
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
        related = ("num_key_value_heads", "num_local_experts", "layer_types", "rope_scaling", "no_rope_layers")
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
        np.testing.assert_allclose(our_logits(tmp_path, model), theirs, rtol=1e-5, atol=1e-4, err_msg=repr(value))
        outcomes.append("followed")
    family, (_, rope, _) = FAMILIES[kind], KINDS[kind]
    known = {*hf_config.FOLLOWED, *family.followed, *family.defaults, family.activation}
    by_type = key.endswith("_attention") and key.removeprefix("rope_parameters.") not in rope
    if key in without_effect(kind):
        assert set(outcomes) == {"followed"}
    elif key in REFUSED and (key not in family.followed or key in OTHERWISE_REFUSED):
        assert set(outcomes[1:]) == {"refused"}
    elif key.split(".")[0] not in known or by_type:
        assert "refused" in outcomes[1:]
    elif key != "num_hidden_layers" and (kind, key) not in (("llama", "model_type"), ("qwen2", "model_type")):
        assert "followed" in outcomes[1:]  # others say how many, or are of this kind only


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
        ({"rope_scaling": YARN}, "rope_scaling"),  # as Qwen's model cards say, beside what transformers 5 writes
        ({"rope_scaling": {"rope_type": "default"}}, "rope_scaling"),  # for transformers theta is then 10000
        ({"rope_parameters": {"rope_theta": None}}, "rope_parameters.rope_theta"),
        ({"rope_parameters": {"rope_theta": "1e6"}}, "rope_parameters.rope_theta"),
        ({"vocab_size": 13.0}, "vocab_size"),
        ({"num_hidden_layers": True}, "num_hidden_layers"),
        ({"num_hidden_layers": "1"}, "num_hidden_layers"),
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
