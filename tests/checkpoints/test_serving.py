"""What is exported, read as servers read it: vLLM and SGLang by their rules, transformers and peft by themselves."""

import dataclasses
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
import transformers
from safetensors import safe_open

from rcsd_jax.checkpoints import loading, saving
from rcsd_jax.checkpoints.peft import save_peft
from rcsd_jax.checkpoints.tokenizer import end_token_ids, load_tokenizer
from rcsd_jax.models import lora
from tests.checkpoints_for_tests import write_checkpoint, write_tokenizer

RANK, ALPHA, TARGETS = 3, 6.0, ("q", "v", "o", "gate", "down")
MESSAGES = [{"role": "user", "content": "some words"}]
# vLLM joins these matrices; an adapter names the parts. All end in what its linear layers are called.
PACKED = {
    "q_proj": "qkv_proj",
    "k_proj": "qkv_proj",
    "v_proj": "qkv_proj",
    "gate_proj": "gate_up_proj",
    "up_proj": "gate_up_proj",
}


@pytest.fixture(scope="module", params=["qwen3_tied", "qwen2", "llama3"])
def exported(request, tmp_path_factory):
    """`export/` in several files and `adapter/`, of a base with a chat template and two end tokens."""
    folder = tmp_path_factory.mktemp(request.param)
    base = write_checkpoint(folder / "base", request.param, vocab_size=400, num_hidden_layers=2)
    write_tokenizer(base, ["some words to make pairs of"])
    written = json.loads((base / "generation_config.json").read_text())
    (base / "generation_config.json").write_text(
        json.dumps(written | {"eos_token_id": [2, 0], "temperature": 0.6, "do_sample": True})
    )
    config, params = loading.load_model(base, dtype=jnp.float32)
    config = dataclasses.replace(config, lora_scale=lora.lora_scale(RANK, ALPHA))
    adapters = lora.init_lora(config, jax.random.key(0), rank=RANK, alpha=ALPHA, targets=TARGETS)
    adapters = {
        t: {"a": x["a"], "b": 0.1 * jax.random.normal(jax.random.key(1), x["b"].shape)} for t, x in adapters.items()
    }
    merged = lora.merge(params, adapters, config.lora_scale)
    export = saving.save_model(folder / "export", config, merged, source=base, max_shard_bytes=50_000)
    adapter = save_peft(folder / "adapter", config, adapters, rank=RANK, alpha=ALPHA, targets=TARGETS, base_path=base)
    return types.SimpleNamespace(base=base, export=export, adapter=adapter, tied=config.tie_embeddings)


def tensors_of(*files):
    """Name -> shape of every tensor; a name in two files would be loaded twice."""
    found = {}
    for file in files:
        with safe_open(file, "np") as tensors:
            for name in tensors.keys():
                assert name not in found
                found[name] = tuple(tensors.get_slice(name).get_shape())
    return found


def test_the_config_names_a_model_that_a_server_knows(exported):
    config = transformers.AutoConfig.from_pretrained(exported.export)
    base = transformers.AutoConfig.from_pretrained(exported.base)
    (architecture,) = config.architectures
    assert architecture in transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
    same = (
        "model_type",
        "architectures",
        "tie_word_embeddings",
        "max_position_embeddings",
        "rope_parameters",
    )
    assert [getattr(config, key, None) for key in same] == [getattr(base, key, None) for key in same]
    assert config.head_dim == (getattr(base, "head_dim", None) or base.hidden_size // base.num_attention_heads)
    assert config.dtype == torch.float32


def test_the_files_hold_every_weight_once_and_no_other(exported):
    index = json.loads((exported.export / "model.safetensors.index.json").read_text())
    files = sorted(exported.export.glob("*.safetensors"))
    assert len(files) > 1 and {file.name for file in files} == set(index["weight_map"].values())  # others are ignored
    tensors = tensors_of(*files)
    assert set(tensors) == set(index["weight_map"])
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.from_pretrained(exported.export))
    # A tied head is no weight of its own here, and vLLM refuses a name that its model lacks.
    assert tensors == {name: tuple(value.shape) for name, value in model.named_parameters()}
    assert ("lm_head.weight" in tensors) == (not exported.tied)


def test_a_server_stops_and_samples_as_the_base_says(exported):
    settings = transformers.GenerationConfig.from_pretrained(exported.export)
    tokenizer = transformers.AutoTokenizer.from_pretrained(exported.export)
    stops = {
        tokenizer.eos_token_id,
        *settings.eos_token_id,
    }  # vLLM: the tokenizer's and those of generation_config.json
    assert stops == {2, 0} == set(end_token_ids(exported.base, load_tokenizer(exported.base)))
    assert settings.temperature == 0.6


def test_a_server_writes_prompts_as_the_base_does(exported):
    ours, theirs = (transformers.AutoTokenizer.from_pretrained(path) for path in (exported.export, exported.base))
    for switch in ({}, {"enable_thinking": False}):
        chat = dict(add_generation_prompt=True, tokenize=False) | switch
        text = ours.apply_chat_template(MESSAGES, **chat)
        assert text == theirs.apply_chat_template(MESSAGES, **chat) and text.startswith(
            "<|im_start|>user\nsome words<|im_end|>\n"
        )
        assert ours(text)["input_ids"] == theirs(text)["input_ids"]
    assert (ours.pad_token_id, ours.eos_token_id, len(ours)) == (theirs.pad_token_id, theirs.eos_token_id, len(theirs))


def test_the_adapter_is_one_that_vllm_takes(exported):
    fields = json.loads((exported.adapter / "adapter_config.json").read_text())
    assert fields["r"] == RANK and fields["lora_alpha"] / fields["r"] == ALPHA / RANK  # its scale
    assert isinstance(fields["r"], int) and isinstance(fields["target_modules"], list)
    assert (
        fields["bias"] == "none"
        and not fields.get("modules_to_save")
        and not fields["use_dora"]
        and not fields["use_rslora"]
    )
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.from_pretrained(exported.base))
    linear = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    modules = {}
    for name, shape in tensors_of(exported.adapter / "adapter_model.safetensors").items():
        assert name.startswith("base_model.model.")
        *path, side, last = name.split(".")[2:]
        assert last == "weight" and side in ("lora_A", "lora_B")
        modules.setdefault(".".join(path), {})[side] = shape
    for name, sides in modules.items():
        assert sides == {"lora_A": (RANK, linear[name].in_features), "lora_B": (linear[name].out_features, RANK)}
    named = {name.rpartition(".")[2] for name in modules}
    assert named == set(fields["target_modules"]) and len(modules) == 2 * len(TARGETS)
    assert {PACKED.get(name, name) for name in named} <= {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"}


def test_the_adapter_in_peft_and_in_transformers_is_the_merged_model(exported):
    tokens = torch.tensor([[5, 17, 333, 8, 2]])

    def logits(model):
        with torch.no_grad():
            return model.eval()(tokens).logits.numpy()

    merged = logits(transformers.AutoModelForCausalLM.from_pretrained(exported.export))
    by_itself = peft.AutoPeftModelForCausalLM.from_pretrained(
        exported.adapter, dtype=torch.float32
    )  # it finds its base
    base = transformers.AutoModelForCausalLM.from_pretrained(exported.base, dtype=torch.float32)
    before = logits(base)
    base.load_adapter(str(exported.adapter))
    np.testing.assert_allclose(logits(by_itself), merged, rtol=0, atol=1e-4)
    np.testing.assert_allclose(logits(base), merged, rtol=0, atol=1e-4)
    assert np.abs(merged - before).max() > 0.1
