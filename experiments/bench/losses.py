"""Chunked divergence from hidden states against the plain path: compiled temporary memory and time.

    python -m experiments.bench.losses [--batch 2 --seq 1024 --hidden 1024 --vocab 151936 --chunk 64 --repeats 5]

value_and_grad of the summed forward KL, float32, both with and without the head's gradient (full training, LoRA).
`--repeats 0` compiles and reports memory alone.
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


def compiled_step(function, argnums, arrays):
    return jax.jit(jax.value_and_grad(function, argnums)).lower(*arrays).compile()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in dict(batch=2, seq=1024, hidden=1024, vocab=151_936, chunk=64, repeats=5).items():
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    shapes = [(args.batch, args.seq, args.hidden), (args.hidden, args.vocab)] * 2
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    if args.repeats:
        keys = jax.random.split(jax.random.key(0), 4)
        arrays = [jax.random.normal(k, s) * (args.hidden**-0.5 if len(s) == 2 else 1) for k, s in zip(keys, shapes)]
    print(f"{jax.devices()[0].device_kind}, {vars(args)}")
    for label, argnums in {"hidden and head": (0, 1), "hidden only (LoRA)": (0,)}.items():
        steps = {
            "plain": compiled_step(plain, argnums, arrays),
            "chunked": compiled_step(chunked(args.chunk), argnums, arrays),
        }
        memory = {name: step.memory_analysis().temp_size_in_bytes for name, step in steps.items()}
        print(f"gradient of {label}: temporaries plain {memory['plain'] / 2**20:.1f} MiB, "
              f"chunked {memory['chunked'] / 2**20:.1f} MiB, ratio {memory['chunked'] / memory['plain']:.4f}")
        times = {name: [] for name in steps}
        for repeat in range(args.repeats + 1 if args.repeats else 0):
            for name, step in steps.items():
                start = time.perf_counter()
                jax.block_until_ready(step(*arrays))
                if repeat:  # the first pass warms up
                    times[name].append(time.perf_counter() - start)
        if args.repeats:
            median = {name: statistics.median(values) for name, values in times.items()}
            print(f"  median of {args.repeats}: plain {median['plain']:.3f} s, chunked {median['chunked']:.3f} s, "
                  f"ratio {median['chunked'] / median['plain']:.3f}")


if __name__ == "__main__":
    main()
