"""The same losses on one device and on eight, whatever the mesh; in a process of its own, which has eight CPU devices."""

import numpy as np
import pytest

from tests import eight_devices

SCRIPT = """
import json, sys
import jax, numpy as np
from configs import stage2
from pathlib import Path
from rcsd_jax.data import sources
from rcsd_jax.run import training_state
from rcsd_jax.run.rows import encode_all
from rcsd_jax.settings.unpack import unpack
from rcsd_jax.run.batch import make_batch
from rcsd_jax.methods.state import shardings_of
from rcsd_jax.methods.step import jit_step
from rcsd_jax.models import sharding
from rcsd_jax.roles.opened_model import load_weights, open_model

user, lora_rank = Path(sys.argv[1]), int(sys.argv[2])
losses = {}
for name, shape in {"padded": (1, 1, 1), "1x8": (1, 8, 1), "8x1": (8, 1, 1), "2x2x2": (2, 2, 2)}.items():
    config = stage2.get_config("ground_truth")
    config.model.update(path=str(user / "model"), dtype="float32", param_dtype="float32")
    config.lora.rank = lora_rank
    config.data.path = str(user / "rows.jsonl")
    config.sampling.update(max_new_tokens=12, temperature=1.0)
    config.train.update(batch_size=8, steps=3, row_lengths=0 if name == "padded" else 2)
    config.optimizer.learning_rate = 2e-4  # Adam turns rounding of the smallest gradients into whole steps of this size
    config = unpack(config)
    mesh = sharding.make_mesh(*shape, devices=jax.devices()[: int(np.prod(shape))])
    with jax.set_mesh(mesh):
        model = open_model(config.model.path, config.model, lora_rank=lora_rank, lora_alpha=8.0)
        params = load_weights(model, mesh)
        examples = sources.read_as(config.data.path, config.reading(require=("question", "rubric")))
        data = encode_all(examples, model.tokenizer, config.encoding, config.limits)
        setup = training_state.setup(model, params, config, mesh)
        state = training_state.first_state(model, params, config, setup)
        split = [x for x in jax.tree.leaves(state.trained) if x.addressable_shards[0].data.size < x.size]
        assert bool(split) == (int(np.prod(shape[1:])) > 1), name
        step = jit_step(setup.recipe, shardings_of(setup.abstract)).train_step
        for i in range(3):
            batch = make_batch(list(range(8 * i, 8 * i + 8)), data, config, model.pad_id)
            state, metrics, completions = step(state, setup.frozen, sharding.to_mesh(batch, mesh), 0)
            losses.setdefault(name, []).append([float(metrics["loss"]), float(metrics["grad_norm"])])
print(json.dumps(losses))
"""


@pytest.mark.slow
@pytest.mark.parametrize("lora_rank", [0, 4])
def test_same_losses_on_every_mesh(user_dir, lora_rank):
    losses = eight_devices.run(SCRIPT, user_dir, lora_rank)
    assert set(losses) == {"padded", "1x8", "8x1", "2x2x2"} and min(v[0][0] for v in losses.values()) > 0
    for name in ("1x8", "8x1", "2x2x2"):
        np.testing.assert_allclose(losses[name], losses["padded"], rtol=1e-4, atol=1e-4, err_msg=name)
