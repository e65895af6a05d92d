"""How the step's time grows with completion length and with batch.

    python -m experiments.bench.scaling [--lengths 64 128 256 512 --batches 4 8 16 32 --repeats 5]

One Markdown row a setting: seconds of sampling, training and the whole step, and tokens per second of the whole step. The
length varies at the batch of `--batch`, the batch at the length of `--completion`; settings take turns.
"""

import argparse
import dataclasses
import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import numpy as np

from experiments.bench.setting import add_sizes, random_step, seconds, sizes_of


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_sizes(parser)
    parser.add_argument("--lengths", type=int, nargs="*", default=[64, 128, 256, 512])
    parser.add_argument("--batches", type=int, nargs="*", default=[4, 8, 16, 32])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--chunk-rows", type=int, default=256, help="rows times positions of a chunk of the divergence")
    args = parser.parse_args()
    sizes = sizes_of(args)
    settings = [dataclasses.replace(sizes, completion=n) for n in args.lengths]
    settings += [dataclasses.replace(sizes, batch=n) for n in args.batches]
    settings = list(dict.fromkeys(settings))
    steps = [random_step(s, chunk_size=max(args.chunk_rows // s.batch, 1)) for s in settings]
    times = [[] for _ in settings]  # [turn, sampling / training / whole, wall and CPU]
    for repeat in range(args.repeats + 1):
        for step, rows in zip(steps, times, strict=True):
            row = [seconds(step.sample), seconds(step.train), seconds(step.whole)]
            if repeat:  # the first pass warms up
                rows.append(row)
    print(f"seconds, medians of {args.repeats}; in brackets CPU seconds")
    print("| batch | completion | sampling | training | whole step | completion tokens / s |")
    print("|---|---|---|---|---|---|")
    for setting, rows in zip(settings, times, strict=True):
        medians = np.median(rows, axis=0)
        cells = " | ".join(f"{wall:.2f} ({cpu:.2f})" for wall, cpu in medians)
        speed = setting.batch * setting.completion / medians[2, 0]
        print(f"| {setting.batch} | {setting.completion} | {cells} | {speed:.0f} |", flush=True)


if __name__ == "__main__":
    main()
