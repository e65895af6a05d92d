"""Loading, saving and tokenizers against `transformers`: same logits, same greedy tokens, the same bytes back."""

from __future__ import annotations

import json
import pathlib
import shutil
import subprocess
import sys
import textwrap
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file
from tokenizers import AddedToken

from rcsd_jax.checkpoints import loading, saving
from rcsd_jax.checkpoints.directory import resolve
from rcsd_jax.checkpoints.hf_config import read_config
from rcsd_jax.checkpoints.tokenizer import load_tokenizer, within_vocabulary
from rcsd_jax.host.errors import UserError
from rcsd_jax.models import decoder
from rcsd_jax.models.head import head_matrix
from rcsd_jax.roles.opened_model import open_model
from rcsd_jax.sampling import decoding
from rcsd_jax.settings import keys
from tests import xla_flags
from tests.checkpoints_for_tests import (
    FAMILY_KINDS,
    KINDS,
    VOCAB_SIZE,
    transformers_model,
    write_checkpoint,
    write_tokenizer,
)
from tests.settings_for_tests import settings_of

LENGTHS = (17, 9, 1)
ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module", params=[*KINDS, *FAMILY_KINDS])
def case(request, tmp_path_factory):
    """One checkpoint of each kind: its directory, the transformers model, our config and parameters, and prompts."""
    directory = write_checkpoint(tmp_path_factory.mktemp(request.param), request.param)
    config, params = loading.load_model(directory, dtype=jnp.float32)
    rng = np.random.default_rng(0)
    prompts = [rng.integers(1, VOCAB_SIZE, size=n).astype(np.int32) for n in LENGTHS]
    tokens, mask = left_padded(prompts)
    return types.SimpleNamespace(
        directory=directory,
        model=transformers_model(request.param),
        config=config,
        params=params,
        prompts=prompts,
        tokens=tokens,
        mask=mask,
        logits=our_logits(config, params, prompts),
    )


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("plain"), "qwen3")


def our_logits(config, params, prompts):
    """Logits [B + 1, T, V] of the prompts left-padded to T, one a row, and in the last row of all of them packed."""
    width = sum(map(len, prompts))
    tokens, mask = left_padded(prompts, width)
    tokens = np.concatenate([tokens, np.concatenate(prompts)[None]])
    segment_ids = np.concatenate([mask, [np.repeat(np.arange(len(prompts)) + 1, LENGTHS)]]).astype(np.int32)
    packed_positions = np.concatenate([np.arange(len(prompt)) for prompt in prompts])
    positions = np.concatenate([decoder.positions_from_mask(jnp.asarray(mask)), [packed_positions]]).astype(np.int32)

    @jax.jit
    def run(params):
        hidden, _ = decoder.Decoder(config).apply(
            {"params": params}, tokens, segment_ids=segment_ids, positions=positions
        )
        return hidden @ head_matrix(config, params)

    return np.asarray(run(params))


def their_logits(model, tokens, mask=None):
    mask = torch.tensor(np.ones_like(tokens) if mask is None else mask, dtype=torch.long)
    positions = (mask.cumsum(1) - 1).clamp(min=0)  # as `generate` has them
    with torch.no_grad():
        output = model(torch.tensor(tokens, dtype=torch.long), attention_mask=mask, position_ids=positions)
    return output.logits.float().numpy()


def left_padded(prompts, width=None):
    width = width or max(LENGTHS)
    tokens, mask = np.zeros((2, len(prompts), width), np.int32)
    for row, prompt in enumerate(prompts):
        tokens[row, width - len(prompt) :], mask[row, width - len(prompt) :] = prompt, 1
    return tokens, mask


def edit_config(directory, **fields):
    file = directory / "config.json"
    raw = json.loads(file.read_text())
    file.write_text(json.dumps({k: v for k, v in {**raw, **fields}.items() if v != "absent"}))


# -- parity ------------------------------------------------------------------------------------------------------------


def test_logits_with_left_padding_are_those_of_transformers(case):
    ours = case.logits[:-1, -max(LENGTHS) :][case.mask == 1]
    theirs = their_logits(case.model, case.tokens, case.mask)[case.mask == 1]
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)
    assert theirs.std() > 0.5


def test_logits_of_packed_segments_are_those_of_separate_runs(case):
    theirs = np.concatenate([their_logits(case.model, prompt[None])[0] for prompt in case.prompts])
    np.testing.assert_allclose(case.logits[-1], theirs, rtol=0, atol=1e-4)


def test_64_greedy_tokens_are_those_of_transformers_generate(case):
    settings = decoding.SamplingConfig(max_new_tokens=64, temperature=0.0, eos_ids=(VOCAB_SIZE + 1,))
    generate = jax.jit(lambda *arguments: decoding.generate(decoder.Decoder(case.config), *arguments, settings))
    keys = jax.random.split(jax.random.key(0), len(LENGTHS))
    samples = generate({"params": case.params}, jnp.asarray(case.tokens), jnp.asarray(case.mask, bool), keys)
    with torch.no_grad():
        theirs = case.model.generate(
            torch.tensor(case.tokens, dtype=torch.long),
            attention_mask=torch.tensor(case.mask, dtype=torch.long),
            max_new_tokens=64,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
    np.testing.assert_array_equal(np.asarray(samples.tokens), theirs[:, case.tokens.shape[1] :].numpy())
    assert len(np.unique(np.asarray(samples.tokens))) > 10


# -- config.json -------------------------------------------------------------------------------------------------------


def test_older_place_of_rope_gives_the_same_config(case, tmp_path):
    shutil.copy(case.directory / "config.json", tmp_path / "config.json")
    rope = json.loads((tmp_path / "config.json").read_text())["rope_parameters"]
    if "rope_theta" not in rope:
        pytest.skip("RoPE by type of layer has older fields of its own")
    theta, kind = rope.pop("rope_theta"), rope.pop("rope_type")
    older = {"type": kind, **rope} if kind != "default" else None
    edit_config(tmp_path, rope_parameters="absent", rope_theta=theta, rope_scaling=older)
    assert read_config(tmp_path, dtype=jnp.float32) == case.config


@pytest.mark.parametrize(
    ("kind", "fields", "named"),
    [
        ("qwen3", {"model_type": "mixtral"}, "model_type"),
        ("qwen3", {"model_type": "absent"}, "model_type"),
        ("qwen3", {"hidden_size": "absent"}, "hidden_size"),
        ("qwen2", {"attention_bias": True}, "attention_bias"),
        ("llama3", {"use_sliding_window": True, "sliding_window": 16}, "use_sliding_window"),
        ("qwen3", {"layer_types": ["full_attention", "sliding_attention", "full_attention"]}, "layer_types"),
        ("qwen3", {"hidden_act": "gelu"}, "hidden_act"),
        ("qwen3", {"num_key_value_heads": 3}, "num_key_value_heads"),
        ("qwen3", {"quantization_config": {"bits": 4}}, "quantization_config"),
        ("qwen3", {"num_experts": 8}, "num_experts"),
        ("qwen3", {"mlp_bias": True}, "mlp_bias"),
        ("llama3", {"rope_parameters": {"rope_type": "longrope", "factor": 4.0}}, "rope_parameters.rope_type"),
        ("llama3", {"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, "rope_parameters.low_freq_factor"),
        ("qwen2", {"rope_parameters": None, "rope_scaling": {"type": "linear"}}, "rope_scaling.factor"),
        ("gemma3_text", {"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
        ("gemma3_text", {"sliding_window": None}, "layer_types"),
        ("gemma3_text", {"rope_parameters": {"rope_type": "default"}}, "rope_parameters.rope_type"),
        ("smollm3", {"no_rope_layers": [1]}, "no_rope_layers"),
        ("mistral", {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        ("olmo3", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "rope_scaling"),
        ("granite", {"logits_scaling": 0}, "logits_scaling"),
    ],
)
def test_unsupported_config_names_file_and_field(tmp_path, kind, fields, named):
    transformers_model(kind).config.save_pretrained(tmp_path)
    read_config(tmp_path, dtype=jnp.float32)
    edit_config(tmp_path, **fields)
    with pytest.raises(UserError, match=r"config\.json") as caught:
        read_config(tmp_path, dtype=jnp.float32)
    assert caught.value.field == named


# -- weights -----------------------------------------------------------------------------------------------------------


def all_tensors(directory):
    tensors = {}
    for file in sorted(directory.glob("*.safetensors")):
        tensors |= load_file(file)
    return tensors


_SINGLE_AND_SHARDED = [
    ("single", jnp.float32),
    ("sharded", jnp.float32),
    ("single", jnp.bfloat16),
    ("sharded", jnp.bfloat16),
]


@pytest.mark.parametrize(
    ("kind", "files", "dtype"),
    [(kind, *how) for kind in KINDS for how in _SINGLE_AND_SHARDED]
    + [(kind, "single", jnp.bfloat16) for kind in FAMILY_KINDS],
)
def test_round_trip_is_bit_exact_and_transformers_agrees(kind, files, dtype, tmp_path):
    sharded = files == "sharded"
    source = write_checkpoint(
        tmp_path / "in", kind, bfloat16=dtype == jnp.bfloat16, max_shard_size="20KB" if sharded else "1GB"
    )
    assert len(list(source.glob("*.safetensors"))) > 1 if sharded else (source / "model.safetensors").is_file()
    config, params = loading.load_model(source, dtype=dtype)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(dtype)}
    saved = saving.save_model(
        tmp_path / "out", config, params, source=source, max_shard_bytes=20_000 if sharded else 1 << 30
    )
    assert (saved / "model.safetensors.index.json").is_file() == sharded

    before, after = all_tensors(source), all_tensors(saved)
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert after[name].dtype == tensor.dtype == jnp.dtype(dtype)
        assert after[name].tobytes() == tensor.tobytes(), name
    again, params_again = loading.load_model(saved, dtype=dtype)
    assert again == config
    jax.tree.map(np.testing.assert_array_equal, params_again, params)
    before, after = (json.loads((directory / "config.json").read_text()) for directory in (source, saved))
    assert {name: after[name] for name in before} == before

    model = transformers.AutoModelForCausalLM.from_pretrained(saved, dtype="auto").eval()
    assert model.dtype == (torch.bfloat16 if dtype == jnp.bfloat16 else torch.float32)
    original = transformers.AutoModelForCausalLM.from_pretrained(source, dtype="auto").eval()
    tokens = np.arange(1, 12)[None]
    np.testing.assert_array_equal(their_logits(model, tokens), their_logits(original, tokens))


def test_directory_saved_without_a_source_loads_in_transformers(case, tmp_path):
    saved = saving.save_model(tmp_path / "out", case.config, case.params)
    model = transformers.AutoModelForCausalLM.from_pretrained(saved, dtype="auto").eval()
    tokens = np.arange(1, 60)[None]
    np.testing.assert_allclose(their_logits(model, tokens), their_logits(case.model, tokens), rtol=0, atol=1e-4)


def test_the_text_model_of_a_checkpoint_that_sees_images(tmp_path):
    """Its logits are transformers', whatever version wrote the tensors' names; it is saved as a text model."""
    text = transformers_model("gemma3_text").config.to_dict()
    vision = dict(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
    )
    config = transformers.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4, eos_token_id=7)
    torch.manual_seed(0)
    model = transformers.Gemma3ForConditionalGeneration(config).float().eval()
    model.save_pretrained(tmp_path / "in")
    tokens = np.arange(1, 18)[None]
    ours, params = loading.load_model(tmp_path / "in", dtype=jnp.float32)
    saved = saving.save_model(tmp_path / "out", ours, params, source=tmp_path / "in")
    text_model = transformers.AutoModelForCausalLM.from_pretrained(saved, dtype=torch.float32).eval()
    assert type(text_model).__name__ == "Gemma3ForCausalLM" and text_model.config.eos_token_id == 7
    np.testing.assert_allclose(their_logits(text_model, tokens), their_logits(model, tokens), rtol=0, atol=1e-5)
    assert {name.split(".")[0] for name in all_tensors(saved)} == {"model"}

    stored = all_tensors(tmp_path / "in")
    other = (
        "model.language_model."
        if any(name.startswith("language_model.") for name in stored)
        else "language_model.model."
    )
    old = "language_model.model." if other.startswith("model") else "model.language_model."
    save_file(
        {name.replace(old, other): tensor for name, tensor in stored.items()}, tmp_path / "in" / "model.safetensors"
    )
    again, params_again = loading.load_model(tmp_path / "in", dtype=jnp.float32)
    assert again == ours and any(name.startswith(old) for name in stored)
    jax.tree.map(np.testing.assert_array_equal, params_again, params)


def test_parameter_dtype_may_differ_from_the_stored_and_the_activation_dtype(tmp_path):
    source = write_checkpoint(tmp_path, "qwen3", bfloat16=True)
    config, params = loading.load_model(source, dtype=jnp.bfloat16, param_dtype=jnp.float32)
    assert (config.dtype, config.param_dtype) == (jnp.bfloat16, jnp.float32)
    stored = load_file(source / "model.safetensors")
    down = np.stack([stored[f"model.layers.{i}.mlp.down_proj.weight"].T for i in range(config.num_layers)])
    assert params["layers"]["down"].dtype == jnp.float32
    np.testing.assert_array_equal(params["layers"]["down"], down.astype(np.float32))


def test_saved_in_another_dtype(tmp_path):
    config, params = loading.load_model(write_checkpoint(tmp_path, "qwen3"), dtype=jnp.float32)
    saved = saving.save_model(tmp_path / "narrow", config, params, dtype=jnp.bfloat16)
    again, narrow = loading.load_model(saved, dtype=jnp.bfloat16)
    assert json.loads((saved / "config.json").read_text())["torch_dtype"] == "bfloat16"
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, y.astype(jnp.bfloat16)), narrow, params)


def test_tied_head_and_inverse_frequencies_stored_by_older_exporters_are_ignored(tmp_path):
    source = write_checkpoint(tmp_path, "qwen3_tied")
    tensors = load_file(source / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(4, np.float32)
    save_file(tensors, source / "model.safetensors")
    _, params = loading.load_model(source, dtype=jnp.float32)
    assert "head" not in params


def change(directory, edit):
    file = directory / "model.safetensors"
    tensors = load_file(file)
    edit(tensors)
    save_file(tensors, file)


def cut(directory):
    file = directory / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


UP = "model.layers.1.mlp.up_proj.weight"
BAD_WEIGHTS = {
    "missing": (lambda d: change(d, lambda t: t.pop(UP)), UP),
    "unexpected": (lambda d: change(d, lambda t: t.update({"model.extra": np.ones(2, np.float32)})), "model.extra"),
    "misshaped": (lambda d: change(d, lambda t: t.update({UP: t[UP].T.copy()})), UP),
    "integers": (lambda d: change(d, lambda t: t.update({UP: t[UP].astype(np.int8)})), UP),
    "cut short": (cut, "model.norm.weight"),
    "not safetensors": (lambda d: (d / "model.safetensors").write_bytes(b"hello"), None),
    "no weights": (lambda d: (d / "model.safetensors").unlink(), None),
    "other config": (lambda d: edit_config(d, vocab_size=96), "model.embed_tokens.weight"),
}


@pytest.mark.parametrize("damage", list(BAD_WEIGHTS))
def test_bad_weights_name_file_and_tensor(qwen3, tmp_path, damage):
    directory = tmp_path / "model"
    shutil.copytree(qwen3, directory)
    act, tensor = BAD_WEIGHTS[damage]
    act(directory)
    with pytest.raises(UserError, match="model") as caught:
        loading.load_model(directory, dtype=jnp.float32)
    assert caught.value.field == tensor


def test_missing_shard_is_named(tmp_path):
    source = write_checkpoint(tmp_path, "qwen2", max_shard_size="20KB")
    shard = sorted(source.glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(UserError, match=shard.name):
        loading.load_model(source, dtype=jnp.float32)


def run_python(code, *arguments, **environment):
    """Runs code in a fresh interpreter, whose device count and memory are its own; returns what it printed."""
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
        env={"PATH": "", "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), **environment},
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


def test_sharded_loading_places_each_slice_and_saves_the_same_bytes(qwen3, tmp_path):
    code = """
    import sys, jax, jax.numpy as jnp, numpy as np
    from jax.sharding import NamedSharding, PartitionSpec as P
    from rcsd_jax.models import decoder
    from rcsd_jax.checkpoints import loading, saving
    from rcsd_jax.checkpoints.directory import resolve
    from rcsd_jax.checkpoints.hf_config import read_config
    from rcsd_jax.checkpoints.tokenizer import load_tokenizer
    from rcsd_jax.models.config import DecoderConfig
    from rcsd_jax.models.declarations import declarations
    from rcsd_jax.models.head import head_matrix
    source, target = sys.argv[1:]
    config, whole = loading.load_model(source, dtype=jnp.float32)
    mesh = jax.make_mesh((2, 4), ("fsdp", "tensor"))
    def sharding(leaf):  # every pattern: inner axes of stacked kernels, both axes of others, replicated vectors
        return NamedSharding(mesh, {1: P(), 2: P(None, None), 3: P(None, "fsdp", "tensor")}[leaf.ndim])
    shardings = jax.tree.map(sharding, whole)
    shardings["embed"] = NamedSharding(mesh, P(None, "tensor"))
    shardings["head"] = NamedSharding(mesh, P(("fsdp", "tensor"), None))
    _, params = loading.load_model(source, dtype=jnp.float32, shardings=shardings)
    jax.tree.map(np.testing.assert_array_equal, params, whole)
    assert jax.tree.all(jax.tree.map(lambda leaf, s: leaf.sharding == s, params, shardings))
    assert params["layers"]["gate"].addressable_shards[0].data.shape == (2, 16, 12)
    saving.save_model(target, config, params)
    """
    run_python(code, qwen3, tmp_path / "out", XLA_FLAGS=xla_flags.with_devices(8))
    before, after = all_tensors(qwen3), all_tensors(tmp_path / "out")
    assert {name: tensor.tobytes() for name, tensor in before.items()} == {n: t.tobytes() for n, t in after.items()}


@pytest.mark.skipif(not pathlib.Path("/proc/self/status").exists(), reason="peak memory is read from Linux's /proc")
def test_peak_memory_of_load_and_save_is_the_model_and_one_tensor(tmp_path):
    code = """
    import json, math, pathlib, sys, jax, jax.numpy as jnp
    from rcsd_jax.checkpoints import loading, saving
    from rcsd_jax.models.config import DecoderConfig
    from rcsd_jax.models.declarations import declarations
    from rcsd_jax.models import decoder
    def status(field):  # ru_maxrss would include the parent process at the fork
        return 1024 * int(pathlib.Path("/proc/self/status").read_text().split(field + ":")[1].split()[0])
    directory, fields, mode = sys.argv[1:]
    config = DecoderConfig(**json.loads(fields), dtype=jnp.float32, param_dtype=jnp.float32)
    declared = declarations(config)
    if mode == "write":
        params = {"layers": {}}
        for path, parameter in declared.items():
            (params["layers"] if len(path) > 1 else params)[path[-1]] = jnp.full(parameter.shape, 0.5, jnp.float32)
        saving.save_model(directory, config, params)
        sys.exit()
    report = {"model": sum(4 * math.prod(p.shape) for p in declared.values())}
    jnp.zeros(8).block_until_ready()
    start = status("VmRSS")
    config, params = loading.load_model(directory, dtype=jnp.float32)
    report["load"] = status("VmHWM") - start
    saving.save_model(directory + "_again", config, params)
    report["save"] = status("VmHWM") - start
    print(json.dumps(report))
    """
    fields = dict(family="qwen3", vocab_size=4096, hidden_size=512, intermediate_size=4096, num_layers=16, num_heads=8)
    fields |= dict(num_kv_heads=8, head_dim=64, rope_theta=1e4, rms_norm_eps=1e-6, tie_embeddings=False)
    fields |= dict(rope_scaling=None, qkv_bias=False, qk_norm=True, max_position=128, remat="none")
    run_python(code, tmp_path / "model", json.dumps(fields), "write")
    report = json.loads(run_python(code, tmp_path / "model", json.dumps(fields), "measure"))
    tensor = 4 * 512 * 4096  # the largest; one stacked parameter is sixteen of them, 134e6
    assert report["model"] > 400e6
    assert report["load"] < report["model"] + tensor + 8e6, report
    assert report["save"] < report["model"] + tensor + 100e6, report  # compiling the fetches took up to 60e6


# -- the directory as a whole ------------------------------------------------------------------------------------------


def test_save_carries_over_tokenizer_and_further_config_fields(qwen3, tmp_path):
    source = tmp_path / "in"
    shutil.copytree(qwen3, source)
    write_tokenizer(source, ["some words to make pairs of"])
    edit_config(source, eos_token_id=2, unsloth_version="kept")
    config, params = loading.load_model(source, dtype=jnp.float32)
    saved = saving.save_model(tmp_path / "out", config, params, source=source)
    raw = json.loads((saved / "config.json").read_text())
    assert (raw["eos_token_id"], raw["unsloth_version"]) == (2, "kept")
    assert (saved / "generation_config.json").is_file()
    messages = [{"role": "user", "content": "some words"}]
    tokenizers = [load_tokenizer(directory) for directory in (saved, source)]
    ours, theirs = (tokenizer.apply_chat_template(messages, tokenize=False) for tokenizer in tokenizers)
    assert ours == theirs == "<|im_start|>user\nsome words<|im_end|>\n"


def test_interrupted_save_leaves_the_old_directory_and_a_later_one_succeeds(qwen3, tmp_path, monkeypatch):
    target = tmp_path / "model"
    shutil.copytree(qwen3, target)
    config, params = loading.load_model(target, dtype=jnp.float32)
    doubled = jax.tree.map(lambda leaf: 2 * leaf, params)
    write_shard, before = saving._write_shard, all_tensors(target)

    def killed(file, *arguments):
        write_shard(file, *arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(saving, "_write_shard", killed)
    with pytest.raises(KeyboardInterrupt):
        saving.save_model(target, config, doubled)
    monkeypatch.undo()
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]
    assert all(np.array_equal(tensor, before[name]) for name, tensor in all_tensors(target).items())

    left_by_sigkill = tmp_path / ".model.partial"
    left_by_sigkill.mkdir()
    (left_by_sigkill / "model-00001-of-00002.safetensors").write_bytes(b"half")
    saving.save_model(target, config, doubled)
    assert sorted(entry.name for entry in target.iterdir()) == ["config.json", "model.safetensors"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]
    np.testing.assert_array_equal(loading.load_model(target, dtype=jnp.float32)[1]["embed"], doubled["embed"])


def test_save_does_not_replace_a_directory_of_something_else(qwen3, tmp_path):
    config, params = loading.load_model(qwen3, dtype=jnp.float32)
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="something other than a model"):
        saving.save_model(tmp_path, config, params)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_save_refuses_parameters_of_another_config(qwen3, tmp_path):
    config, params = loading.load_model(qwen3, dtype=jnp.float32)
    with pytest.raises(ValueError, match="final_norm"):
        saving.save_model(tmp_path / "out", config, {**params, "final_norm": jnp.ones(7)})
    with pytest.raises(ValueError, match="declares"):
        saving.save_model(tmp_path / "out", config, {**params, "extra": jnp.ones(7)})
    assert not (tmp_path / "out").exists()


# -- tokenizer and hub -------------------------------------------------------------------------------------------------


def test_tokenizer_loads_where_torch_is_not_installed(tmp_path):
    write_tokenizer(tmp_path, ["mass over volume"])
    code = """
    import sys
    sys.modules["torch"] = None
    from rcsd_jax.checkpoints.tokenizer import load_tokenizer
    tokenizer = load_tokenizer(sys.argv[1])
    print(tokenizer.decode(tokenizer("mass over volume").input_ids))
    """
    assert run_python(code, tmp_path).strip() == "mass over volume"


@pytest.mark.parametrize("kind", FAMILY_KINDS)
def test_a_vocabulary_may_be_padded_beyond_the_tokenizer(kind, tmp_path):
    write_checkpoint(tmp_path, kind, vocab_size=320)
    write_tokenizer(tmp_path, ["words"], vocab_size=290)
    model = open_model(str(tmp_path), settings_of(keys.stage()).model)
    assert len(model.tokenizer) < 300 and model.decoder.config.vocab_size == 320
    assert model.tokenizer.decode([model.tokenizer("w").input_ids[0], 319]) == "w"
    config, params = loading.load_model(tmp_path, dtype=jnp.float32)
    assert params["embed"].shape[0] == 320 and head_matrix(config, params).shape[1] == 320
    edit_config(tmp_path, vocab_size=200)
    with pytest.raises(UserError, match="tokens, more than the model"):
        open_model(str(tmp_path), settings_of(keys.stage()).model)


def test_a_template_that_asks_for_the_date_has_the_same_every_day(tmp_path):
    write_tokenizer(tmp_path, ["words"])
    (tmp_path / "chat_template.jinja").write_text("{{ strftime_now('%d %b %Y, %A') }}: {{ messages[0].content }}")
    written = load_tokenizer(tmp_path).apply_chat_template([{"role": "user", "content": "Why?"}], tokenize=False)
    assert written == "01 Jan 2025, Wednesday: Why?"


def test_a_special_token_that_the_model_lacks_is_ordinary_text(tmp_path):
    """As in Gemma 3's text models, whose tokenizer is also that of the models that see images."""
    write_tokenizer(tmp_path, ["words"])
    tokenizer = load_tokenizer(tmp_path)
    size = len(tokenizer)
    beyond = [AddedToken(text, special=special) for text, special in (("<image>", True), ("<pixel>", False))]
    tokenizer.add_tokens(beyond[:1], special_tokens=True)
    assert tokenizer("a<image>b").input_ids[1] == size
    assert within_vocabulary(tokenizer, size + 1)("a<image>b").input_ids[1] == size
    shorter = within_vocabulary(tokenizer, size)
    assert len(shorter) == size and max(shorter("a<image>b").input_ids) < size
    assert shorter.decode(shorter("a<image>b").input_ids) == "a<image>b"
    # What the template writes, and what is no special token, is not taken away.
    tokenizer.add_tokens(beyond[1:])
    assert len(within_vocabulary(tokenizer, size)) == size + 1
    tokenizer.add_tokens(beyond[:1], special_tokens=True)
    tokenizer.chat_template += "<image>"
    assert len(within_vocabulary(tokenizer, size)) == size + 2


def test_directory_without_a_usable_tokenizer(qwen3, tmp_path):
    with pytest.raises(UserError, match="no tokenizer here"):
        load_tokenizer(qwen3)
    write_tokenizer(tmp_path / "plain", ["words"], chat_template=False)
    with pytest.raises(UserError, match="no chat template.*instruction-tuned"):
        load_tokenizer(tmp_path / "plain")
    (tmp_path / "plain" / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        load_tokenizer(tmp_path / "plain")


def test_hub_id_is_downloaded_and_an_unreachable_hub_is_told(qwen3, monkeypatch):
    import huggingface_hub

    asked = []
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **_: asked.append(name) or str(qwen3))
    assert resolve("someone/some-model") == qwen3
    assert loading.load_model("someone/some-model", dtype=jnp.float32)[0].vocab_size == VOCAB_SIZE
    assert set(asked) == {"someone/some-model"}

    def unreachable(*_, **__):
        raise ConnectionError("name not resolved")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(UserError, match="someone/some-model.*name not resolved.*network"):
        resolve("someone/some-model")
    with pytest.raises(UserError, match="no such model directory"):
        resolve("./not/here")
