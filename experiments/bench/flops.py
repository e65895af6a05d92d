"""Training FLOP/s of the small model as a share of the machine's measured float32 matmul peak.

    python -m experiments.bench.flops [--repeats 7 --chunk 16 --batch 16 --prompt 64 ...]

The peak is the best of square products of several sizes, and the training part is the trainer's own step on completions
sampled before; both take turns. Model FLOPs are counted by `setting.train_flops`, whose text is the formula.
"""

import argparse
import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench.setting import add_sizes, random_step, seconds, sizes_of, summary, train_flops

SIZES = (512, 1024, 2048)
TARGET = 0.6


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_sizes(parser)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--chunk", type=int, default=16, help="positions per chunk of the divergence")
    args = parser.parse_args()
    sizes = sizes_of(args)
    step = random_step(sizes, chunk_size=args.chunk)
    products = {size: product(size) for size in SIZES}
    training, rates = [], {size: [] for size in SIZES}
    for repeat in range(args.repeats + 1):
        took = seconds(step.train)
        if repeat:  # the first pass warms up
            training.append(took)
        for size, product in products.items():
            took = seconds(product)
            if repeat:
                rates[size].append(2.0 * size**3 / took)
    # By wall time the best product of all; by CPU time, which spinning threads blur less than waiting ones, the median's.
    peak_wall = max(rate[0] for values in rates.values() for rate in values)
    peak_cpu = max(np.median([rate[1] for rate in values]) for values in rates.values())
    flops = train_flops(step.decoder.config, sizes)
    wall, cpu = np.median(training, axis=0)
    print(
        f"{jax.devices()[0].device_kind}, {sizes}, chunks of {args.chunk}, {flops / 1e9:.1f} GFLOP of training a step"
    )
    print(f"training: median of {args.repeats}: {summary(training)}, {flops / wall / 1e9:.1f} GFLOP/s")
    print(f"matmul peak: {peak_wall / 1e9:.1f} GFLOP/s, {peak_cpu / 1e9:.1f} GFLOP a CPU second")
    print(f"share of the peak: {flops / wall / peak_wall:.3f} by wall time, {flops / cpu / peak_cpu:.3f} by CPU time, ")
    print(f"target {TARGET}")


def product(size: int):
    """A function that multiplies two float32 matrices [size, size] and waits."""
    a, b = jnp.full((size, size), 0.5), jnp.full((size, size), 0.25)
    multiply = jax.jit(jnp.matmul)
    return lambda: jax.block_until_ready(multiply(a, b))


if __name__ == "__main__":
    main()
