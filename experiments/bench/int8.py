"""How far a model with int8 matrices is from the same model: what `sampling.int8_weights` and `model.int8_weights` cost in nats.

    python -m experiments.bench.int8 --model=DIR --data=FILE.jsonl [--question=question --count=32 --tokens=64]

The int8 copy answers the questions, as it does in training, and both models score its completions. Prints, as means over the
completions' tokens: both KL divergences over the whole vocabulary, the share of tokens where both find the same token likeliest,
the difference of the sampled token's log-probability, and the importance weight's effective share of the sample.
"""

import argparse
import json
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rcsd_jax import losses
from rcsd_jax.models import sharding
from rcsd_jax.models.head import head_matrix
from rcsd_jax.models.scoring import completion_hidden
from rcsd_jax.roles.opened_model import Model, load_weights, open_model
from rcsd_jax.sampling import SamplingConfig, decoding, generate

CHUNK = 32  # positions whose logits of both models are in memory


def asked(model: Model, data: str, field: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The first questions of a JSONL file in the model's chat template: tokens and mask [B, P], padding on the left."""
    with open(data, encoding="utf-8") as lines:
        questions = [json.loads(line)[field] for line, _ in zip(lines, range(count), strict=False)]
    conversations = [[{"role": "user", "content": question}] for question in questions]
    rows = model.tokenizer.apply_chat_template(conversations, add_generation_prompt=True, return_dict=True)["input_ids"]
    longest = max(map(len, rows))
    tokens = np.array([[model.pad_id] * (longest - len(row)) + list(row) for row in rows], np.int32)
    return tokens, np.array([[False] * (longest - len(row)) + [True] * len(row) for row in rows])


def compare(
    model: Model, params: Any, tokens: np.ndarray, mask: np.ndarray, sampling: SamplingConfig
) -> dict[str, float]:
    """The means that this benchmark prints.

    Args:
      model: the decoder; params: its parameters.
      tokens, mask: prompts [B, P].
      sampling: of the int8 copy.
    """
    decoder, plain = model.decoder, {"params": params}
    copy = jax.jit(decoding.sampled_variables, static_argnums=(0, 2))(decoder.config, plain, sampling)
    keys = jax.vmap(jax.random.key)(np.arange(len(tokens), dtype=np.uint32))
    samples = jax.jit(generate, static_argnums=(0, 5))(decoder, plain, tokens, mask, keys, sampling)

    @jax.jit
    def hidden(variables: Any) -> tuple[jax.Array, jax.Array]:
        found = completion_hidden(decoder, variables, tokens, mask, samples.tokens, samples.mask)
        return found, head_matrix(decoder.config, variables["params"])

    both = [hidden(variables) for variables in (copy, plain)]

    @jax.jit
    def scored(start: jax.Array) -> dict[str, jax.Array]:
        place = lambda x: jax.lax.dynamic_slice_in_dim(x, start, CHUNK, 1)
        logits = [jnp.einsum("btd,dv->btv", place(h), w, preferred_element_type=jnp.float32) for h, w in both]
        chosen = [
            losses.token_log_probs(x, place(samples.tokens), temperature=sampling.scoring_temperature) for x in logits
        ]
        bound: Mapping[str, Any] = dict(temperature=sampling.scoring_temperature)
        return {
            "KL(int8 || plain)": losses.per_token_divergence(*reversed(logits), beta=0.0, **bound),
            "KL(plain || int8)": losses.per_token_divergence(*logits, beta=0.0, **bound),
            "same likeliest token": logits[0].argmax(-1) == logits[1].argmax(-1),
            "|log p(int8) - log p(plain)|": jnp.abs(chosen[0] - chosen[1]),
            "ratio": jnp.exp(chosen[1] - chosen[0]),
        }

    parts = [jax.device_get(scored(start)) for start in range(0, sampling.max_new_tokens, CHUNK)]
    real = np.asarray(samples.mask)
    means = {name: float(np.concatenate([x[name] for x in parts], 1)[real].mean()) for name in parts[0]}
    ratio = np.concatenate([x["ratio"] for x in parts], 1)[real].astype(np.float64)
    means |= {
        "effective share of the sample": float(ratio.sum() ** 2 / (ratio**2).sum() / len(ratio)),
        "tokens": real.sum().item(),
    }
    return means


def main() -> None:
    """Prints one line a quantity."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a Hugging Face directory")
    parser.add_argument("--data", required=True, help="JSONL")
    parser.add_argument("--question", default="question", help="the field of the question")
    parser.add_argument("--count", type=int, default=32, help="questions")
    parser.add_argument("--tokens", type=int, default=64, help=f"of a completion; a multiple of {CHUNK}")
    parser.add_argument("--temperature", type=float, default=1.2)
    flags = parser.parse_args()
    if flags.tokens % CHUNK:
        parser.error(f"--tokens must be a multiple of {CHUNK}")
    settings: Any = SimpleNamespace(dtype="float32", param_dtype="float32", remat="none", kernels="auto")
    model, mesh = open_model(flags.model, settings), sharding.make_mesh(devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        sampling = SamplingConfig(flags.tokens, flags.temperature, eos_ids=model.eos_ids, int8_weights=True)
        prompts = asked(model, flags.data, flags.question, flags.count)
        for name, value in compare(model, load_weights(model, mesh), *prompts, sampling).items():
            print(f"{name:32s} {value:.5g}")


if __name__ == "__main__":
    main()
