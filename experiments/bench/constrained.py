"""What the form of a rubric costs a token: the same batch sampled with and without it, taking turns.

    taskset -c 0,1 python -m experiments.bench.constrained [--batch 16 --prompt 64 --new 128 --repeats 7] [--vocabulary 151936]

The model is that of `setting.py`. Its tokens stand for what JSON is written with and for made-up words. Without `--vocabulary` the
whole of `generate` is timed; with it only what a step does after its logits, with as many tokens as that.
"""

import argparse
import dataclasses
import functools
import itertools
import os
import time

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench.setting import Sizes, decoder_config, prompts, seconds
from rcsd_jax.models.declarations import init_params
from rcsd_jax.models.decoder import Decoder
from rcsd_jax.roles.rubric_form import letters, rubric_form
from rcsd_jax.sampling import SamplingConfig, constrained, generate, sample_token
from rcsd_jax.sampling.token_form import TokenForm, compile_form

END = 7
FILTERS = dict(temperature=1.0, top_k=20, top_p=0.95)


def made_up_tokens(count: int) -> list[bytes | None]:
    """Eight special tokens, 256 bytes, the words of a rubric, marks, and words of syllables."""
    known = [bytes([i]) for i in range(256)]
    known += [
        b" Criteria",
        b"Essential",
        b"Important",
        b"Optional",
        b"Pit",
        b"fall",
        b'"title',
        b'"description',
        b'"weight',
    ]
    known += [b'": ', b'", "', b'."', b'",', b"},", b" {", b'{"', b"\n    ", b" 10"]
    syllables = [a + b for a in "bcdfghjklmnprstvwz" for b in "aeiou"]
    words = (" " + "".join(parts) for n in (1, 2, 3) for parts in itertools.product(syllables, repeat=n))
    return [None] * 8 + known + [word.encode() for word in itertools.islice(words, count - len(known) - 8)]


def timed_form(count: int) -> TokenForm:
    """The form of 3 to 25 criteria over so many tokens; prints what it takes."""
    began = time.perf_counter()
    texts = made_up_tokens(count)
    form = compile_form(rubric_form("objects", 3, 25), texts, [END], vocab_size=count, letters=letters)
    size = sum(np.asarray(table).nbytes for table in form)
    states, classes = form.next_state.shape
    print(
        f"{count} tokens: compiled in {time.perf_counter() - began:.1f} s; {size / 1e6:.1f} MB, {states} states,"
        f" {classes} classes, {len(form.bits)} rows of bits; the shortest text has {form.shortest} tokens"
    )
    return form


def measure(free, held, repeats: int, tokens: int) -> None:
    """Prints wall and CPU time a token of both, and how much more the second takes: the median of the turns."""
    turns = []
    for _ in range(repeats + 1):  # the first compiles
        turns.append([seconds(lambda run=run: jax.block_until_ready(run())) for run in (free, held)])
    times = np.array(turns[1:]) / tokens * 1e6  # [repeats, 2, wall and CPU]
    for name, one in zip(("wall", "CPU"), np.moveaxis(times, 2, 0), strict=True):
        free_time, held_time = np.median(one, axis=0)
        more = np.median(one[:, 1] / one[:, 0]) - 1
        print(f"{name}: free {free_time:.1f} us a token, held to the form {held_time:.1f} us; by turns {more:+.1%}")


def whole_sampling(args: argparse.Namespace) -> None:
    config = decoder_config()
    form = jax.device_put(timed_form(config.vocab_size))
    params = jax.jit(functools.partial(init_params, config))(jax.random.key(0))
    tokens, _ = prompts(Sizes(batch=args.batch, prompt=args.prompt, teacher_prompt=args.prompt), config.vocab_size)
    keys, mask = jax.random.split(jax.random.key(0), args.batch), jnp.ones(tokens.shape, bool)
    sampling = SamplingConfig(args.new, **FILTERS)  # without an end token, so that all rows are full

    @jax.jit
    def run(params, form):
        return generate(Decoder(config), {"params": params}, tokens, mask, keys, sampling, form=form).tokens

    measure(lambda: run(params, None), lambda: run(params, form), args.repeats, args.batch * args.new)


def after_the_logits(args: argparse.Namespace) -> None:
    form = jax.device_put(timed_form(args.vocabulary))
    logits = jax.random.normal(jax.random.key(1), (args.batch, args.vocabulary))
    sampling = dataclasses.replace(SamplingConfig(args.new), **FILTERS)

    @jax.jit
    def run(form):
        def step(place, t):
            keys = jax.random.split(jax.random.fold_in(jax.random.key(0), t), args.batch)
            here = logits * (1 + t * 1e-6)  # else it could be computed once for all steps
            if place is not None:
                here = constrained.constrained_logits(form, place, here)
            token, _ = sample_token(here, keys, sampling)
            return None if place is None else constrained.advanced(form, place, token), token

        start = None if form is None else constrained.beginning(form, jnp.full(args.batch, args.new))
        return jax.lax.scan(step, start, jnp.arange(args.new))[1]

    measure(lambda: run(None), lambda: run(form), args.repeats, args.batch * args.new)


def main() -> None:
    parser = argparse.ArgumentParser()
    for name, default in dict(batch=16, prompt=64, new=128, repeats=7, vocabulary=0).items():
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    (after_the_logits if args.vocabulary else whole_sampling)(args)


if __name__ == "__main__":
    main()
