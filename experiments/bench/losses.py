"""Chunked divergence from hidden states against the plain path: compiled temporary memory and time.

    python -m experiments.bench.losses [--batch 2 --seq 1024 --hidden 1024 --vocab 151936 --chunk 96 --repeats 5]

value_and_grad of the summed forward KL, float32, with the head's gradient (full training) and without it (LoRA), by
three paths from hidden states: `divergence_from_hidden` summed, `weighted_divergence_from_hidden` (what the train step
uses), and the plain path under `lax.scan` with `jax.checkpoint`, the textbook alternative.
`--repeats 0` compiles and reports only memory.
"""

import argparse
import statistics
import time

import jax
import jax.numpy as jnp

from rcsd_jax import losses


def plain(student_hidden, student_head, teacher_hidden, teacher_head):
    return losses.per_token_divergence(student_hidden @ student_head, teacher_hidden @ teacher_head).sum()


def chunked(chunk_size):
    def total(*arrays):
        return losses.divergence_from_hidden(*arrays, chunk_size=chunk_size).sum()

    return total


def weighted(chunk_size):
    def total(student_hidden, *arrays):
        ones = jnp.ones(student_hidden.shape[:2])
        tokens = jnp.zeros(student_hidden.shape[:2], jnp.int32)
        return losses.weighted_divergence_from_hidden(student_hidden, *arrays, tokens, ones, chunk_size=chunk_size)[0]

    return total


def rematerialised(chunk_size):
    def total(student_hidden, student_head, teacher_hidden, teacher_head):
        @jax.checkpoint
        def step(carry, chunk):
            return carry + plain(chunk[0], student_head, chunk[1], teacher_head), None

        def split(x):
            x = jnp.pad(x, [(0, 0), (0, -x.shape[1] % chunk_size), (0, 0)])
            return jnp.moveaxis(x.reshape(x.shape[0], -1, chunk_size, x.shape[-1]), 1, 0)

        return jax.lax.scan(step, jnp.float32(0.0), (split(student_hidden), split(teacher_hidden)))[0]

    return total


def compiled_step(function, argnums, arrays):
    return jax.jit(jax.value_and_grad(function, argnums)).lower(*arrays).compile()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in dict(batch=2, seq=1024, hidden=1024, vocab=151_936, chunk=96, repeats=5).items():
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    shapes = [(args.batch, args.seq, args.hidden), (args.hidden, args.vocab)] * 2
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    if args.repeats:
        keys = jax.random.split(jax.random.key(0), 4)
        arrays = [
            jax.random.normal(k, s) * (args.hidden**-0.5 if len(s) == 2 else 1)
            for k, s in zip(keys, shapes, strict=True)
        ]
    print(f"{jax.devices()[0].device_kind}, {vars(args)}")
    for label, argnums in {"hidden and head": (0, 1), "hidden only (LoRA)": (0,)}.items():
        paths = {
            "plain": plain,
            "chunked": chunked(args.chunk),
            "weighted": weighted(args.chunk),
            "checkpoint": rematerialised(args.chunk),
        }
        steps = {name: compiled_step(path, argnums, arrays) for name, path in paths.items()}
        memory = {name: step.memory_analysis().temp_size_in_bytes for name, step in steps.items()}
        times = {name: [] for name in steps}
        for repeat in range(args.repeats + 1 if args.repeats else 0):
            for name, step in steps.items():
                start = time.perf_counter()
                jax.block_until_ready(step(*arrays))
                if repeat:  # the first pass warms up
                    times[name].append(time.perf_counter() - start)
        print(f"gradient of {label}")
        for name in steps:
            line = f"  {name:12} temporaries {memory[name] / 2**20:8.1f} MiB, {memory[name] / memory['plain']:.4f} of plain"
            if args.repeats:
                median, base = statistics.median(times[name]), statistics.median(times["plain"])
                line += f"; median of {args.repeats}: {median:.3f} s, {median / base:.3f} of plain"
            print(line, flush=True)


if __name__ == "__main__":
    main()
