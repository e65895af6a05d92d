"""Both stages on 400 real rows with a small random Qwen3 and a BPE tokenizer made from those rows."""

import json

import jax
import numpy as np
import pytest

from configs import stage2
from rcsd_jax.checkpoints import loading
from rcsd_jax.data import sources
from rcsd_jax.methods.state import shardings_of
from rcsd_jax.methods.step import jit_step
from rcsd_jax.models import sharding
from rcsd_jax.models.decoder import Decoder
from rcsd_jax.models.head import head_matrix
from rcsd_jax.roles.opened_model import load_weights, open_model
from rcsd_jax.run import training_state
from rcsd_jax.run.batch import make_batch
from rcsd_jax.run.rows import encode_all
from tests import user_inputs
from tests.cli.test_main import run
from tests.settings_for_tests import settings_of

pytestmark = pytest.mark.slow
LIMITS = dict(max_new_tokens=24)


@pytest.fixture(scope="module")
def inputs(real_rows, tmp_path_factory):
    directory = tmp_path_factory.mktemp("real")
    user_inputs.make_user_inputs(directory / "model", directory / "rows.jsonl", real_rows)
    return directory


def flags(inputs, workdir):
    return [
        f"--workdir={workdir}", f"--config.model.path={inputs / 'model'}", f"--config.data.path={inputs / 'rows.jsonl'}",
        "--config.data.fields.rubric=rubrics.GT", "--config.train.steps=3", "--config.train.batch_size=8",
        "--config.sampling.max_new_tokens=24", "--config.model.dtype=float32", "--config.model.param_dtype=float32",
        "--config.lora.rank=8", "--config.rubric.max_new_tokens=160", "--config.rubric.resample=0", "--config.rubric.batch_size=64",
        "--config.data.max_teacher_prompt=2048",
    ]  # fmt: skip


@pytest.mark.parametrize("config", ["stage2.py:ground_truth", "stage2.py:release"])
def test_the_program_trains_and_its_export_loads_in_transformers(config, inputs, tmp_path):
    import torch
    import transformers

    more, total = [], 400
    if config == "stage2.py:release":  # without a form, a random model would write no rubric
        total, lines = 24, (inputs / "rows.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        (inputs / "few.jsonl").write_text("".join(lines[:total]), encoding="utf-8")
        more = [
            f"--config.rubric.writer={inputs / 'model'}", "--config.rubric.constrained=True", "--config.train.epochs=0",
            "--config.teacher.reason_tokens=8", "--config.rubric.max_criteria=4", f"--config.data.path={inputs / 'few.jsonl'}",
        ]  # fmt: skip
    code, out, err = run(f"--config=configs/{config}", *flags(inputs, tmp_path / "run"), *more)
    assert code == 0, err
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["examples"] + summary["skipped"] + summary["rubrics"].get("too_long", 0) == total
    if config == "stage2.py:release":  # a random model, whose every text is a rubric all the same
        counts = summary["rubrics"]
        assert counts["strict"] == total - counts.get("too_long", 0) > 20 and counts["cut"] == counts["dropped"] == 0
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "export", dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "run" / "export")
    tokens = np.asarray(tokenizer("Why is the sky blue?")["input_ids"])[None]
    decoder_config, params = loading.load_model(tmp_path / "run" / "export", dtype=np.float32)
    ones = np.ones_like(tokens)
    hidden, _ = Decoder(decoder_config).apply(
        {"params": params}, tokens, segment_ids=ones, positions=np.arange(tokens.size)[None]
    )
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens)).logits.numpy()
    np.testing.assert_allclose(hidden @ head_matrix(decoder_config, params), expected, atol=1e-4)


def test_the_loss_falls_on_a_fixed_batch(inputs):
    config = stage2.get_config("ground_truth")
    config.model.update(path=str(inputs / "model"), dtype="float32", param_dtype="float32")
    config.data.update(path=str(inputs / "rows.jsonl"), max_teacher_prompt=2048)
    config.data.fields.rubric = "rubrics.GT"
    config.sampling.update(LIMITS)
    config.lora.rank = 16
    config.optimizer.learning_rate = 2e-3
    config = settings_of(config)
    mesh = sharding.make_mesh()
    model = open_model(config.model.path, config.model, lora_rank=16, lora_alpha=128.0)
    params = load_weights(model, mesh)
    # A random model hardly minds its context; wider weights make the roles disagree, so that there is something to learn.
    params = jax.tree.map(lambda x: 6.0 * x if x.ndim > 2 else x, params)
    params |= {"embed": 10.0 * params["embed"]}
    examples = sources.read_as(config.data.path, config.reading(require=("question", "rubric")))[:8]
    data = encode_all(examples, model.tokenizer, config.encoding, config.limits)
    setup = training_state.setup(model, params, config, mesh)
    state = training_state.first_state(model, params, config, setup)
    step = jit_step(setup.recipe, shardings_of(setup.abstract)).train_step
    batch = make_batch(list(range(len(data.examples))), data, config, model.pad_id)
    losses = []
    for _ in range(18):
        state, metrics, _ = step(state.replace(step=jax.numpy.int32(0)), setup.frozen, batch, 0)
        losses.append(float(metrics["loss"]))
    assert np.mean(losses[-5:]) < 0.8 * losses[0], losses
