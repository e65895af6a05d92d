"""Sampling against its peers on the same weights in the same run: static and continuous batches, transformers, Tunix.

    taskset -c 0,1 python -m experiments.bench.sampling [--batch 16 --prompt 64 --new 128 --queue 256 --repeats 5]

Two workloads of the model of `setting.py`, without end token:
  batch: one batch, every completion of full length;
  queue: prompts whose completions have heavy-tailed lengths, `batch` rows at a time.
Every repeat runs all paths one after another; printed are medians and ratios to ours. Greedy tokens are compared first.

Tunix is measured if it is installed. With --no-deps it leaves JAX as it is:

    pip install --no-deps google-tunix google-metrax qwix clu sentencepiece perfetto jaxtyping wadler-lindig pillow
"""

import argparse
import functools
import os
import pathlib
import statistics
import tempfile
import time

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench import torch_step
from experiments.bench.setting import Sizes, decoder_config, prompts
from rcsd_jax.checkpoints import loading
from rcsd_jax.models.decoder import Decoder
from rcsd_jax.sampling import SamplingConfig, generate
from rcsd_jax.sampling.slots import generate_queue

FILTERS = dict(temperature=1.2, top_k=20, top_p=0.95)


def heavy_tailed(count, longest):
    """Four of five lengths short and lognormal, the others anywhere up to the longest."""
    rng = np.random.default_rng(0)
    short = np.clip(rng.lognormal(np.log(longest / 8), 0.5, count).astype(int), 1, longest)
    return np.where(rng.random(count) < 0.8, short, rng.integers(1, longest + 1, count)).astype(np.int32)


def ours(directory, batch):
    """(tokens, new, greedy) -> tokens of one batch, and (tokens, limits, new, refill) -> tokens and occupancy."""
    config, params = loading.load_model(directory, dtype=jnp.float32)
    decoder, variables = Decoder(config), {"params": params}
    sampling = lambda new, greedy: SamplingConfig(new, **(dict(temperature=0.0) if greedy else FILTERS))

    @functools.partial(jax.jit, static_argnums=(2, 3))
    def one_batch(variables, tokens, new, greedy):
        keys = jax.random.split(jax.random.key(0), len(tokens))
        return generate(decoder, variables, tokens, jnp.ones(tokens.shape, bool), keys, sampling(new, greedy)).tokens

    @functools.partial(jax.jit, static_argnums=3)
    def queue(variables, tokens, limits, new):
        keys = jax.random.split(jax.random.key(0), len(tokens))
        mask = jnp.ones(tokens.shape, bool)
        samples, occupancy = generate_queue(
            decoder, variables, tokens, mask, keys, sampling(new, False), slots=batch, limits=limits
        )
        return samples.mask.sum(), occupancy

    return functools.partial(one_batch, variables), functools.partial(queue, variables)


def with_transformers(directory):
    """The same two as `ours`, by transformers' generate; rows of a batch end at their own limits."""
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None

    class Limits(transformers.StoppingCriteria):
        def __init__(self, limits, prompt):
            self.limits, self.prompt = torch.as_tensor(limits), prompt

        def __call__(self, input_ids, scores, **_):
            return torch.as_tensor(input_ids.shape[1] - self.prompt >= self.limits)

    def run(tokens, new, greedy=False, limits=None):
        tokens = torch.as_tensor(tokens, dtype=torch.long)
        settings = dict(do_sample=False) if greedy else dict(do_sample=True, **FILTERS)
        stop = None if limits is None else transformers.StoppingCriteriaList([Limits(limits, tokens.shape[1])])
        with torch.inference_mode():
            out = model.generate(
                tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=new, stopping_criteria=stop, **settings
            )
        return out[:, tokens.shape[1] :].numpy()

    return run


def with_tunix(directory, length):
    """(tokens, new, greedy) -> tokens by Tunix's sampler; None if it is not installed."""
    try:
        from tunix.generate.sampler import CacheConfig, Sampler
        from tunix.models.qwen3 import model, params
    except ImportError as error:
        print(f"Tunix is left out ({error}); how to install it stands at the head of experiments/bench/sampling.py")
        return None

    c = decoder_config()

    class Numbers:
        """A tokenizer whose text is the token ids."""

        encode = staticmethod(lambda text: [int(x) for x in text.split()])
        decode = staticmethod(lambda ids: " ".join(map(str, ids)))
        bos_id = staticmethod(lambda: None)
        eos_id = staticmethod(lambda: c.vocab_size)  # which is never drawn
        pad_id = staticmethod(lambda: 0)

    config = model.ModelConfig(
        num_layers=c.num_layers,
        vocab_size=c.vocab_size,
        embed_dim=c.hidden_size,
        hidden_dim=c.intermediate_size,
        num_heads=c.num_heads,
        head_dim=c.head_dim,
        num_kv_heads=c.num_kv_heads,
        rope_theta=c.rope_theta,
        norm_eps=c.rms_norm_eps,
        use_tied_embedding=c.tie_embeddings,
    )
    loaded = params.create_model_from_safe_tensors(str(directory), config, dtype=jnp.float32)
    sampler = Sampler(loaded, Numbers(), CacheConfig(length, config.num_layers, config.num_kv_heads, config.head_dim))

    def run(tokens, new, greedy=False):
        texts = [" ".join(map(str, row)) for row in np.asarray(tokens)]
        settings = {} if greedy else FILTERS
        out = sampler(texts, max_generation_steps=new, max_prompt_length=tokens.shape[1], seed=0, **settings)
        return np.stack([np.asarray(row)[:new] for row in out.tokens])

    return run


def measure(paths, repeats):
    """Name -> median seconds: each path once to compile, then `repeats` rounds of all of them."""
    seconds = {name: [] for name in paths}
    for run in paths.values():
        jax.block_until_ready(run())
    for _ in range(repeats):
        for name, run in paths.items():
            began = time.perf_counter()
            jax.block_until_ready(run())
            seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in seconds.items()}


def report(title, seconds, tokens, reference):
    print(f"\n{title}\n{'path':28s} {'seconds':>8s} {'tokens/s':>9s} {'x ours':>7s}")
    for name, value in seconds.items():
        print(f"{name:28s} {value:8.3f} {tokens / value:9.0f} {value / seconds[reference]:7.2f}")


def main():
    parser = argparse.ArgumentParser()
    for name, default in dict(batch=16, prompt=64, new=128, queue=256, repeats=5).items():
        parser.add_argument(f"--{name}", type=int, default=default)
    a = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        directory = pathlib.Path(scratch)
        torch_step.write_model(directory)
        one_batch, queue = ours(directory, a.batch)
        theirs = with_transformers(directory)
        tunix = with_tunix(directory, a.prompt + a.new)
    rows, _ = prompts(Sizes(batch=a.queue, prompt=a.prompt, teacher_prompt=a.prompt), decoder_config().vocab_size)
    first = rows[: a.batch]
    greedy = np.asarray(one_batch(first, a.new, True))
    print(f"greedy tokens as transformers': {(greedy == theirs(first, a.new, greedy=True)).mean():.1%}")
    paths = {
        "ours": lambda: one_batch(first, a.new, False),
        "transformers": lambda: theirs(first, a.new),
    }
    if tunix:
        print(f"greedy tokens as Tunix': {(greedy == tunix(first, a.new, greedy=True)).mean():.1%}")
        paths["tunix"] = lambda: tunix(first, a.new)
    report(f"batch: {a.batch} x {a.new} tokens", measure(paths, a.repeats), a.batch * a.new, "ours")

    limits = heavy_tailed(a.queue, a.new)
    groups = [slice(i, i + a.batch) for i in range(0, a.queue, a.batch)]
    paths = {
        "ours, continuous": lambda: queue(rows, limits, a.new),
        "ours, static batches": lambda: [queue(rows[g], limits[g], a.new) for g in groups],
        "transformers, static": lambda: [theirs(rows[g], a.new, limits=limits[g]) for g in groups],
    }
    title = f"queue: {a.queue} completions of {limits.min()} to {limits.max()} tokens, mean {limits.mean():.0f}"
    report(title, measure(paths, a.repeats), limits.sum(), "ours, continuous")
    _, occupancy = queue(rows, limits, a.new)
    static = [queue(rows[g], limits[g], a.new)[1] for g in groups]
    share = lambda runs: sum(int(r.live) for r in runs) / (a.batch * sum(int(r.steps) for r in runs))
    print(f"occupancy: continuous {share([occupancy]):.1%}, static {share(static):.1%}")


if __name__ == "__main__":
    main()
