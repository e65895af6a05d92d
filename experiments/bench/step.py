"""A whole step of the trainer against the same step in PyTorch, on the CPU, with the same weights.

    taskset -c 0,1 python -m experiments.bench.step [--repeats 7 --chunk 16 --batch 16 --prompt 64 ...]

Peers: assembled by hand (`transformers.generate`, two forwards, TRL's generalized JSD, AdamW with clipping), and TRL's
`SDFTTrainer`. All sample at temperature 1 from the whole vocabulary, never end early, and take one update of float32
weights against a fixed teacher. The three take turns, a step each, in one process; the first turn warms up.
"""

import argparse
import os
import pathlib
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
import torch

from experiments.bench import torch_step
from experiments.bench.setting import add_sizes, loaded_step, seconds, sizes_of, summary

TARGETS = {"whole": 2.0, "sampling": 3.0}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_sizes(parser)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--chunk", type=int, default=16, help="positions per chunk of the divergence")
    parser.add_argument("--threads", type=int, default=2, help="of PyTorch; JAX uses the cores that it is given")
    args = parser.parse_args()
    sizes = sizes_of(args)
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as scratch:
        directory = pathlib.Path(scratch) / "model"
        torch_step.write_model(directory)
        jax_step = loaded_step(directory, sizes, chunk_size=args.chunk)
        hand = torch_step.HandStep(directory, sizes)
        count = sum(x.size for x in jax.tree.leaves(jax_step.state.trained)) / 1e6
        print(f"{count:.2f} M parameters, float32, {sizes}, {torch.get_num_threads()} threads, chunks of {args.chunk}")
        _check_same_loss(jax_step, hand)
        times = {name: [] for name in ("rcsd_jax", "by hand", "SDFTTrainer")}  # (sampling, the rest, whole)

        def turn(trl_whole: np.ndarray, trl_sampling: np.ndarray) -> None:
            times["SDFTTrainer"].append((trl_sampling, trl_whole - trl_sampling, trl_whole))
            sampling, whole = seconds(jax_step.sample), seconds(jax_step.whole)
            times["rcsd_jax"].append((sampling, seconds(jax_step.train), whole))
            sampling = seconds(hand.sample)
            training = seconds(hand.train, torch.tensor(np.asarray(jax_step.completions.samples.tokens)).long())
            times["by hand"].append((sampling, training, sampling + training))

        torch_step.run_trainer(directory, pathlib.Path(scratch) / "trl", sizes, args.repeats + 1, turn)
    _report({name: rows[1:] for name, rows in times.items()})


def _check_same_loss(jax_step, hand) -> None:
    """Both sides' loss of the same completions; raises if they differ."""
    completion = torch.tensor(np.asarray(jax_step.completions.samples.tokens)).long()
    with torch.no_grad():
        theirs = hand.loss(completion).item()
    ours = float(jax_step.train()["loss"])
    print(f"loss of the same completions: rcsd_jax {ours:.6f}, by hand {theirs:.6f}", flush=True)
    np.testing.assert_allclose(ours, theirs, rtol=1e-3)


def _report(times: dict[str, list[tuple[np.ndarray, np.ndarray, np.ndarray]]]) -> None:
    for i, part in enumerate(("sampling", "training", "whole")):
        print(part)
        columns = {name: np.array([row[i] for row in rows]) for name, rows in times.items()}  # [turn, wall and CPU]
        for name, values in columns.items():
            line = f"  {name:12} median of {len(values)}: {summary(values)}"
            if name != "rcsd_jax":
                wall, cpu = np.median(values, axis=0) / np.median(columns["rcsd_jax"], axis=0)
                turns = np.median(values[:, 0] / columns["rcsd_jax"][:, 0])
                line += f"; {wall:.2f} x rcsd_jax (median of the turns' ratios {turns:.2f}, CPU {cpu:.2f})"
                line += f", target {TARGETS[part]:.0f}" if part in TARGETS else ""
            print(line)


if __name__ == "__main__":
    main()
