"""Stage II of a mixture of experts with LoRA, from a checkpoint of `transformers` to an export that it reads."""

import json
import shutil

import numpy as np
import pytest

from rcsd_jax.host.files import as_path
from rcsd_jax.host.metrics import read_metrics
from tests import eight_devices, user_inputs
from tests.run.test_stage import config_for, run

EIGHT = """
import json, sys
from pathlib import Path
from tests.run.test_mixture_run import losses
print(json.dumps(losses(Path(sys.argv[1]), Path(sys.argv[2]), expert=8)))
"""


def losses(user_dir, workdir, **mesh):
    """Of three steps on the same completions."""
    config = config_for(user_dir)
    config.model.update(dtype="float32", param_dtype="float32")
    config.data.path = str(user_dir / "eight.jsonl")
    config.mesh.update(mesh)
    config.lora.update(rank=2, targets=("q", "expert_gate", "expert_up", "expert_down"))
    config.sampling.update(source="reference", max_new_tokens=32)
    config.train.update(steps=3, batch_size=8)
    config.optimizer.update(learning_rate=5e-3, warmup_steps=1)
    run(config, workdir)
    return [row["loss"] for row in read_metrics(as_path(workdir))]


@pytest.fixture
def mixture(user_dir, tmp_path):
    """A folder as `user_dir` with another model, and eight rows."""
    import torch
    import transformers

    shutil.copytree(
        user_dir / "model", tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors", "config.json")
    )
    sizes = json.loads((user_dir / "model" / "config.json").read_text())
    kept = ("vocab_size", "hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim", "eos_token_id")
    torch.manual_seed(3)
    shape = transformers.Qwen3MoeConfig(
        **{name: sizes[name] for name in kept}, num_hidden_layers=1, num_experts=8, num_experts_per_tok=3, moe_intermediate_size=32, norm_topk_prob=True,
        max_position_embeddings=4096, initializer_range=0.1,
    )  # fmt: skip
    transformers.Qwen3MoeForCausalLM(shape).save_pretrained(tmp_path / "model")
    user_inputs.write_rows(tmp_path / "eight.jsonl", user_inputs.made_up_rows(8))
    return tmp_path


@pytest.mark.slow
def test_a_mixture_learns_alike_on_eight_devices_and_its_export_is_read(mixture):
    import peft  # not where the script above reads this file, which has no torch
    import torch
    import transformers

    found = losses(mixture, mixture / "one")
    assert np.isfinite(found).all() and found[-1] < 0.95 * found[0]
    np.testing.assert_allclose(eight_devices.run(EIGHT, mixture, mixture / "eight"), found, rtol=1e-4)
    read = lambda place: transformers.AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32)
    tokens = torch.tensor([[5, 17, 300, 8, 41]])
    with torch.no_grad():
        base = read(mixture / "model")
        before = base(tokens).logits
        theirs = peft.PeftModel.from_pretrained(base, mixture / "one" / "adapter")(tokens).logits
        merged = read(mixture / "one" / "export")(tokens).logits
    torch.testing.assert_close(theirs, merged, rtol=0, atol=1e-3)
    assert (merged - before).abs().max() > 0.05
