"""What saving costs a training step: the tiny job's Stage II with checkpoints every step, every 20 steps, and none.

    python -m experiments.bench.checkpointing [--steps=20 --repeats=5 --batch=32 --max_new_tokens=64]

One state and one compiled step serve all; the three kinds of blocks of `--steps` steps take turns, and a block ends when its
steps are computed and, for those that save, when the last save is on disk. Prints each kind's median time per step, and the
median over rounds of its ratio to the block without checkpoints in the same round.
"""

import argparse
import shutil
import statistics
import tempfile
import time

import jax
import numpy as np

from configs import tiny
from rcsd_jax.data import sources
from rcsd_jax.methods.state import shardings_of
from rcsd_jax.methods.step import jit_step
from rcsd_jax.models import sharding
from rcsd_jax.roles.opened_model import load_weights, open_model
from rcsd_jax.run import training_state
from rcsd_jax.run.batch import make_batch
from rcsd_jax.run.checkpoints import Checkpoints
from rcsd_jax.run.rows import encode_all
from rcsd_jax.settings.unpack import unpack

KINDS = {"every step": 1, "every 20 steps": 20, "none": 0}


def prepare(batch: int, max_new_tokens: int):
    """(first state, step function of (state, number) -> state) of the tiny job's Stage II with the world's own rubrics."""
    config = tiny.get_config().stage2
    config.rubric.source = "data"
    config.train.batch_size = batch
    config.sampling.max_new_tokens = max_new_tokens
    config = unpack(config)
    mesh = sharding.make_mesh(**config.mesh)
    jax.set_mesh(mesh)
    model = open_model(config.model.path, config.model)
    examples = sources.read_as(config.data.path, config.reading(require=("question", "rubric"), count=4 * batch))
    data = encode_all(examples, model.tokenizer, config.encoding, config.limits)
    params = load_weights(model, mesh)
    setup = training_state.setup(model, params, config, mesh)
    step_fn = jit_step(setup.recipe, shardings_of(setup.abstract)).train_step
    # One batch for all steps: with batches of their own, blocks would differ in what they sample and in its length.
    fed = sharding.to_mesh(make_batch(list(range(batch)), data, config, model.pad_id, mesh), mesh)

    def step(state):
        state, metrics, _ = step_fn(state, setup.frozen, fed, np.uint32(0))
        float(metrics["loss"])  # as the training loop, which logs it
        return state

    return training_state.first_state(model, params, config, setup), step


def block(state, step, steps: int, every: int) -> tuple[float, float]:
    """(seconds until the steps are done, seconds until everything is on disk too)."""
    folder = tempfile.mkdtemp(prefix="rcsd_jax_")
    checkpoints = Checkpoints(folder, keep=2)
    began = time.monotonic()
    for number in range(1, steps + 1):
        new = step(state)
        if every and number % every == 0:
            checkpoints.save(number, new, {"data_position": number})
        state = new
    trained = time.monotonic() - began
    checkpoints.wait()
    written = time.monotonic() - began
    checkpoints.close()
    shutil.rmtree(folder)
    return trained, written


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--max_new_tokens", type=int, default=64)
    arguments = parser.parse_args()
    first, step = prepare(arguments.batch, arguments.max_new_tokens)
    size = sum(x.nbytes for x in jax.tree.leaves(first)) / 1e6
    fresh = jax.jit(
        lambda tree: jax.tree.map(lambda x: x + 0, tree)
    )  # a step donates its state, and every block starts alike
    block(fresh(first), step, 2, 1)  # compiles
    times = {kind: [] for kind in KINDS}
    for number in range(arguments.repeats):
        order = list(KINDS) if number % 2 else list(KINDS)[::-1]
        for kind in order:
            times[kind].append(block(fresh(first), step, arguments.steps, KINDS[kind]))
    print(f"state {size:.1f} MB, {arguments.repeats} rounds of {arguments.steps} steps a kind")
    for kind, pairs in times.items():
        per_step = statistics.median(written for _, written in pairs) / arguments.steps
        until_trained, until_written = (
            statistics.median(a[i] / b[i] for a, b in zip(pairs, times["none"], strict=True)) - 1 for i in (0, 1)
        )
        print(
            f"{kind:15} {1000 * per_step:8.1f} ms a step; cost {100 * until_trained:+.1f} % until the last step is done, "
            f"{100 * until_written:+.1f} % until all is on disk"
        )


if __name__ == "__main__":
    main()
