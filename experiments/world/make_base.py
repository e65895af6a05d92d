"""Makes the base model of a world: `python -m experiments.world.make_base --out DIR [--world=chains]`.

Reads documents of mixed quality (`rcsd_jax.world.documents`, `rcsd_jax.world.chains.documents`), packed into rows, and learns to
continue their prompts. Deterministic from the seed on one machine; checkpoints in OUT.state let the same command go on after a stop.
"""

from __future__ import annotations

import argparse
import functools
import os
import pathlib
import pickle
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rcsd_jax.checkpoints import saving
from rcsd_jax.checkpoints.tokenizer import load_tokenizer
from rcsd_jax.models import decoder as decoders
from rcsd_jax.models.config import DecoderConfig
from rcsd_jax.models.declarations import init_params
from rcsd_jax.models.head import head_matrix
from rcsd_jax.world.chains.documents import document as document_of_chains
from rcsd_jax.world.chains.vocabulary import vocabulary as vocabulary_of_chains
from rcsd_jax.world.documents import Document, document
from rcsd_jax.world.tokenizer import END, save_tokenizer, vocabulary

PROMPT_WEIGHT = 0.1  # prompts are given, not written: they carry a tenth of a completion's loss


class World(NamedTuple):
    """What a base learns from, and for how long.

    Attributes:
      document: (seed, index) -> a document.
      words: every token in the order of its id.
      steps, rows, length: updates, and the packed rows of each, in tokens.
    """

    document: Callable[[int, int], Document]
    words: tuple[str, ...]
    steps: int
    rows: int
    length: int


WORLDS = {
    "world": World(document, vocabulary(), steps=1600, rows=32, length=160),
    "chains": World(document_of_chains, vocabulary_of_chains(), steps=4000, rows=16, length=336),
}


class Batch(NamedTuple):
    """Packed rows, all [R, T]: tokens, their document (1, 2, … in the row; 0 is padding), place in it, loss weight.

    `weights[r, t]` is the weight of predicting tokens[r, t].
    """

    tokens: np.ndarray
    segment_ids: np.ndarray
    positions: np.ndarray
    weights: np.ndarray


def base_config(vocab_size: int, *, width: int, layers: int) -> DecoderConfig:
    """Qwen3's architecture at about a million parameters."""
    return DecoderConfig(
        family="qwen3",
        vocab_size=vocab_size,
        hidden_size=width,
        intermediate_size=round(width * 10 / 3 / 16) * 16,
        num_layers=layers,
        num_heads=4,
        num_kv_heads=2,
        head_dim=32,
        rope_theta=10000.0,
        rope_scaling=None,
        rms_norm_eps=1e-6,
        tie_embeddings=True,
        qkv_bias=False,
        qk_norm=True,
        max_position=512,
        dtype=jnp.float32,
        param_dtype=jnp.float32,
        remat="none",
    )


def encode_document(tokenizer: Any, one: Document) -> tuple[list[int], int]:
    """Token ids of prompt and completion with its end, and how many of them are the prompt's."""
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": one.message}], tokenize=False, add_generation_prompt=True, enable_thinking=False
    )
    prompt_ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    completion = tokenizer(f"{one.completion} {END}", add_special_tokens=False)["input_ids"]
    return prompt_ids + completion, len(prompt_ids)


def batches(tokenizer: Any, world: World, *, seed: int, first_document: int = 0) -> Iterator[tuple[Batch, int]]:
    """Packed batches and the index of the first document not in them yet; one longer than a row is left out."""
    rows, length = world.rows, world.length
    index = first_document
    while True:
        arrays = Batch(*(np.zeros((rows, length), np.int32) for _ in range(3)), np.zeros((rows, length), np.float32))
        fill, count = np.zeros(rows, int), np.zeros(rows, int)
        while True:
            ids, prompt = encode_document(tokenizer, world.document(seed, index))
            if len(ids) > length:
                index += 1
                continue
            fits = np.flatnonzero(fill + len(ids) <= length)
            if not len(fits):
                break
            row = fits[np.argmax(fill[fits])]
            span = slice(fill[row], fill[row] + len(ids))
            count[row] += 1
            arrays.tokens[row, span] = ids
            arrays.segment_ids[row, span] = count[row]
            arrays.positions[row, span] = np.arange(len(ids))
            arrays.weights[row, span] = [PROMPT_WEIGHT] * prompt + [1.0] * (len(ids) - prompt)
            arrays.weights[row, span.start] = 0.0  # nothing comes before a document's first token
            fill[row] += len(ids)
            index += 1
        yield arrays, index


def loss_of(decoder: decoders.Decoder, params: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Weighted mean of the next token's negative log-probability, and the plain mean over completions."""
    hidden, _ = decoder.apply(
        {"params": params}, batch.tokens, segment_ids=batch.segment_ids, positions=batch.positions
    )
    logits = hidden[:, :-1] @ head_matrix(decoder.config, params)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.tokens[:, 1:])
    weights = batch.weights[:, 1:]
    written = weights == 1.0
    return jnp.sum(losses * weights) / jnp.sum(weights), jnp.sum(losses * written) / jnp.sum(written)


def make_optimizer(*, learning_rate: float, steps: int) -> optax.GradientTransformation:
    warmup = min(60, steps // 4)
    schedule = optax.warmup_cosine_decay_schedule(0.0, learning_rate, warmup, steps, learning_rate * 0.02)
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.98, weight_decay=0.05))


@functools.partial(jax.jit, static_argnames=("decoder", "optimizer"), donate_argnames=("params", "state"))
def train_step(decoder, optimizer, params, state, batch):
    """One update; returns parameters, optimizer state and the plain loss over completions."""
    (_, plain), gradients = jax.value_and_grad(lambda p: loss_of(decoder, p, batch), has_aux=True)(params)
    updates, state = optimizer.update(gradients, state, params)
    return optax.apply_updates(params, updates), state, plain


def export(directory: pathlib.Path, config: DecoderConfig, params: Any, tokenizer_from: pathlib.Path) -> None:
    """Writes the model in bfloat16, with its tokenizer, as a Hugging Face directory."""
    narrow = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    saving.save_model(directory, config, narrow, source=tokenizer_from)


def train(
    out: pathlib.Path, world: World, *, learning_rate: float = 2e-3, seed: int = 0, width: int = 144, layers: int = 4
) -> None:
    """Trains, or goes on from OUT.state, and exports every 150 steps and at the end."""
    state_file = out.parent / f"{out.name}.state" / "state.pkl"
    state_file.parent.mkdir(parents=True, exist_ok=True)
    tokenizer_directory = state_file.parent / "tokenizer"
    save_tokenizer(tokenizer_directory, world.words)
    config = base_config(len(world.words), width=width, layers=layers)
    decoder = decoders.Decoder(config)
    optimizer = make_optimizer(learning_rate=learning_rate, steps=world.steps)
    params = init_params(config, jax.random.key(seed))
    state, start, first_document = optimizer.init(params), 0, 0
    if state_file.exists():
        params, state, start, first_document = pickle.loads(state_file.read_bytes())
    print(f"{sum(x.size for x in jax.tree.leaves(params))} parameters, from step {start}", flush=True)
    began, losses = time.time(), []
    stream = batches(load_tokenizer(tokenizer_directory), world, seed=seed, first_document=first_document)
    for step, (batch, next_document) in zip(range(start, world.steps), stream, strict=False):
        params, state, loss = train_step(decoder, optimizer, params, state, batch)
        losses.append(float(loss))
        if step < 3 or (step + 1) % 20 == 0:
            pace = (time.time() - began) / (step + 1 - start)
            mean = np.mean(losses[-20:])
            print(f"step {step + 1} loss {mean:.4f} {pace:.2f} s/step documents {next_document}", flush=True)
        if (step + 1) % 150 == 0 or step + 1 == world.steps:
            partial = state_file.with_suffix(".part")
            partial.write_bytes(pickle.dumps((jax.device_get(params), jax.device_get(state), step + 1, next_document)))
            os.replace(partial, state_file)
            export(out, config, params, tokenizer_directory)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, required=True, help="the directory to write")
    parser.add_argument("--world", choices=WORLDS, default="world")
    for name in ("steps", "rows", "length"):
        parser.add_argument(f"--{name}", type=int, help="; ".join(f"{w}: {getattr(WORLDS[w], name)}" for w in WORLDS))
    parser.add_argument("--learning_rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--width", type=int, default=144)
    parser.add_argument("--layers", type=int, default=4)
    flags = vars(parser.parse_args())
    sizes = {name: value for name in ("steps", "rows", "length") if (value := flags.pop(name)) is not None}
    train(world=WORLDS[flags.pop("world")]._replace(**sizes), **flags)


if __name__ == "__main__":
    main()
