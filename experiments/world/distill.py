"""Is the world a lively test? A plain self-distillation loop on it, without the package's trainer.

`python -m experiments.world.distill --task solve --rubrics true|own|generic|sharp --steps 60 --learning_rate 2e-4`
Forward KL, fixed teacher, full fine-tuning; `--task write_rubric` is Stage I (the teacher sees the reference).
"""

from __future__ import annotations

import argparse
import functools
import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.world import measure
from rcsd_jax import world
from rcsd_jax.contexts import Role, encode_role, pad_left
from rcsd_jax.models import huggingface
from rcsd_jax.models.decoder import Decoder, head_matrix
from rcsd_jax.models.scoring import completion_hidden
from rcsd_jax.sampling import SamplingConfig, generate


@functools.partial(jax.jit, static_argnames=("decoder", "optimizer", "sampling"))
def step(decoder, optimizer, sampling, params, state, teacher, student_prompt, teacher_prompt, keys):
    """Samples from the student, scores the same tokens in both roles, and moves the student to the teacher."""
    samples = generate(decoder, {"params": params}, *student_prompt, keys, sampling)

    def log_probs(weights: Any, prompt: Any) -> jax.Array:
        hidden = completion_hidden(decoder, {"params": weights}, *prompt, samples.tokens, samples.mask)
        return jax.nn.log_softmax(hidden @ head_matrix(decoder.config, weights))  # [B, N, V]

    target = jax.lax.stop_gradient(log_probs(teacher, teacher_prompt))

    def loss_of(weights: Any) -> jax.Array:
        divergence = jnp.sum(jnp.exp(target) * (target - log_probs(weights, student_prompt)), axis=-1)
        return jnp.sum(divergence * samples.mask) / jnp.sum(samples.mask)

    loss, gradients = jax.value_and_grad(loss_of)(params)
    updates, state = optimizer.update(gradients, state, params)
    return optax.apply_updates(params, updates), state, loss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=pathlib.Path, default=world.base_directory())
    parser.add_argument("--task", choices=("solve", "write_rubric"), default="solve")
    parser.add_argument("--rubrics", choices=("true", "own", "generic", "sharp"), default="true")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--learning_rate", type=float, default=2e-4)
    parser.add_argument("--count", type=int, default=256)
    parser.add_argument("--every", type=int, default=15)
    parser.add_argument("--seed", type=int, default=0)
    a = parser.parse_args()
    config, base = huggingface.load(a.model, dtype=jnp.float32)
    tokenizer = huggingface.load_tokenizer(a.model)
    decoder = Decoder(config)
    solving = a.task == "solve"
    fields = measure.RUBRIC if solving else measure.REFERENCE
    pool = world.examples("stage2" if solving else "stage1", a.batch * a.steps, a.seed)
    if solving and a.rubrics != "true":
        shown = measure.contexts(measure.completer(decoder, base, tokenizer), pool)
        pool, _ = shown[f"{a.rubrics} rubric"]
    limit = world.SOLUTION_TOKENS if solving else world.RUBRIC_TOKENS
    sampling = SamplingConfig(max_new_tokens=limit, temperature=1.0, eos_ids=(tokenizer.eos_token_id,))
    schedule = optax.warmup_cosine_decay_schedule(0.0, a.learning_rate, 5, a.steps, a.learning_rate / 10)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=0.0))
    params, state = base, optimizer.init(base)
    held = {split: world.examples(split, a.count, a.seed) for split in ("eval", "ood")}

    def report(done: int) -> None:
        complete = measure.completer(decoder, params, tokenizer)
        line = []
        for split, examples in held.items():
            for temperature in (1.0, 0.0):
                texts = complete(examples, measure.QUESTION, a.task, temperature=temperature)
                if solving:
                    line.append("%5.1f / %5.1f" % measure.solution_scores(examples, texts))
                else:
                    line.append("%5.1f" % measure.rubric_scores(examples, measure.parsed_rubrics(texts)))
        print(f"step {done:3d}   eval sampled, greedy; ood sampled, greedy:  " + "   ".join(line), flush=True)

    report(0)
    began = time.time()
    for i in range(a.steps):
        batch = pool[i * a.batch : (i + 1) * a.batch]
        prompts = []
        for seen, length in ((measure.QUESTION, world.QUESTION_TOKENS), (fields, world.TEACHER_TOKENS)):
            rows = [encode_role(tokenizer, e, Role(seen), world.PROMPTS, a.task) for e in batch]
            prompts.append(tuple(map(jnp.asarray, pad_left(rows, length, tokenizer.pad_token_id))))
        keys = jax.random.split(jax.random.fold_in(jax.random.key(a.seed), i), a.batch)
        params, state, loss = step(decoder, optimizer, sampling, params, state, base, *prompts, keys)
        if (i + 1) % a.every == 0:
            pace = (time.time() - began) / (i + 1)
            print(f"step {i + 1:3d}   loss {float(loss):.4f}   {pace:.2f} s/step", flush=True)
            report(i + 1)
    assert np.isfinite(float(loss))


if __name__ == "__main__":
    main()
