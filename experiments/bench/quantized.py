"""How far a model with quantized matrices is from the same model: what `model.quantization` and `sampling.int8_weights` cost in nats.

    python -m experiments.bench.quantized --model=DIR --data=FILE.jsonl [--bits=8 --question=question --count=32 --tokens=64]

The quantized copy answers the questions, as it does in training, and both models score its completions. Prints, as means over the
completions' tokens: both KL divergences over the whole vocabulary, the share of tokens where both find the same token likeliest,
the difference of the sampled token's log-probability, and the importance weight's effective share of the sample.
"""

import argparse
import functools
import json
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rcsd_jax import losses
from rcsd_jax.models import sharding
from rcsd_jax.models.head import head_matrix
from rcsd_jax.models.quantization import quantized
from rcsd_jax.models.scoring import completion_hidden
from rcsd_jax.roles.opened_model import Model, load_weights, open_model
from rcsd_jax.sampling import SamplingConfig, generate

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
    model: Model, params: Any, tokens: np.ndarray, mask: np.ndarray, sampling: SamplingConfig, bits: int
) -> dict[str, float]:
    """The means that this benchmark prints.

    Args:
      model: the decoder; params: its parameters.
      tokens, mask: prompts [B, P].
      sampling: of the quantized copy.
      bits: of its numbers.
    """
    decoder, plain = model.decoder, {"params": params}
    quantize = functools.partial(quantized, decoder.config, form=f"int{bits}")
    copy = {"params": jax.jit(quantize)(params)}
    keys = jax.vmap(jax.random.key)(np.arange(len(tokens), dtype=np.uint32))
    samples = jax.jit(generate, static_argnums=(0, 5))(decoder, copy, tokens, mask, keys, sampling)

    head, temperature = head_matrix(decoder.config, params), sampling.scoring_temperature

    @jax.jit
    def scored(copy: Any, plain: Any) -> dict[str, jax.Array]:
        written = tokens, mask, samples.tokens, samples.mask
        rounded, exact = (completion_hidden(decoder, variables, *written) for variables in (copy, plain))
        score = functools.partial(
            losses.score_from_hidden, tokens=samples.tokens, chunk_size=CHUNK, temperature=temperature
        )
        of_rounded, of_exact = score(exact, head, rounded, head), score(rounded, head, exact, head)
        likeliest = [jax.lax.map(lambda row: jnp.argmax(row @ head, axis=-1), hidden) for hidden in (rounded, exact)]
        moved = of_rounded.student_log_probs - of_rounded.teacher_log_probs
        return {
            "KL(quantized || plain)": of_rounded.divergence,
            "KL(plain || quantized)": of_exact.divergence,
            "entropy of the plain model": of_exact.teacher_entropy,
            "same likeliest token": likeliest[0] == likeliest[1],
            "|log p(quantized) - log p(plain)|": jnp.abs(moved),
            "ratio": jnp.exp(moved),
        }

    real = np.asarray(samples.mask)
    values = {name: np.asarray(x, np.float64)[real] for name, x in scored(copy, plain).items()}
    ratio = values["ratio"]
    return {name: float(x.mean()) for name, x in values.items()} | {
        "effective share of the sample": float(ratio.sum() ** 2 / (ratio**2).sum() / len(ratio)),
        "tokens": len(ratio),
    }


def main() -> None:
    """Prints one line a quantity."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a Hugging Face directory")
    parser.add_argument("--data", required=True, help="JSONL")
    parser.add_argument("--question", default="question", help="the field of the question")
    parser.add_argument("--count", type=int, default=32, help="questions")
    parser.add_argument("--tokens", type=int, default=64, help="of a completion")
    parser.add_argument("--temperature", type=float, default=1.2)
    parser.add_argument("--bits", type=int, default=8, choices=(8, 4), help="of a number: int8 or int4")
    flags = parser.parse_args()
    settings: Any = SimpleNamespace(dtype="float32", param_dtype="float32", remat="none", kernels="auto")
    model, mesh = open_model(flags.model, settings), sharding.make_mesh(devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        sampling = SamplingConfig(flags.tokens, flags.temperature, eos_ids=model.eos_ids)
        prompts = asked(model, flags.data, flags.question, flags.count)
        for name, value in compare(model, load_weights(model, mesh), *prompts, sampling, flags.bits).items():
            print(f"{name:34s} {value:.5g}")


if __name__ == "__main__":
    main()
