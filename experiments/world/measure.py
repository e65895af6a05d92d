"""How the base model behaves in each context: `python -m experiments.world.measure --model DIR --count 256`.

Accuracy and rubric score of solutions, unaided and with each kind of privileged context, and the F1 of the rubrics that
it writes, sampled (temperature 1) and greedy, in distribution and out of it.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import pathlib
import random
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rcsd_jax import world
from rcsd_jax.checkpoints import loading
from rcsd_jax.checkpoints.tokenizer import load_tokenizer
from rcsd_jax.data.examples import Example
from rcsd_jax.models.decoder import Decoder
from rcsd_jax.roles.contexts import Role, encode_role, pad_left
from rcsd_jax.rubrics.parsing import parse
from rcsd_jax.rubrics.schema import Rubric
from rcsd_jax.sampling import SamplingConfig, generate
from rcsd_jax.world.documents import MENTION, MENTION_WITH_REFERENCE, NOISE, NOISE_WITH_REFERENCE, write_rubric
from rcsd_jax.world.examples import rubric_from_strings

QUESTION, REFERENCE, RUBRIC = ("question",), ("question", "reference"), ("question", "rubric")
ALL = ("question", "reference", "rubric")

Complete = Callable[..., list[str]]


@functools.partial(jax.jit, static_argnames=("decoder", "sampling"))
def _generate(decoder, params, tokens, mask, keys, sampling):
    return generate(decoder, {"params": params}, tokens, mask, keys, sampling)


def completer(decoder: Decoder, params: Any, tokenizer: Any) -> Complete:
    """complete(examples, fields, task, temperature=, seed=) -> texts."""

    def complete(examples: Sequence[Example], fields: tuple[str, ...], task: str, *, temperature: float, seed: int = 0):
        length = world.QUESTION_TOKENS if fields == QUESTION else world.TEACHER_TOKENS
        rows = [encode_role(tokenizer, e, Role(fields), world.PROMPTS, task) for e in examples]
        tokens, mask = pad_left(rows, length, tokenizer.pad_token_id)
        limit = world.SOLUTION_TOKENS if task == "solve" else world.RUBRIC_TOKENS
        sampling = SamplingConfig(max_new_tokens=limit, temperature=temperature, eos_ids=(tokenizer.eos_token_id,))
        keys = jax.random.split(jax.random.key(seed), len(rows))
        found = _generate(decoder, params, jnp.asarray(tokens), jnp.asarray(mask), keys, sampling)
        ids, kept = np.asarray(found.tokens), np.asarray(found.mask)
        return [tokenizer.decode(row[keep], skip_special_tokens=True) for row, keep in zip(ids, kept, strict=True)]

    return complete


def with_rubrics(examples: Sequence[Example], rubrics: Sequence[Rubric | None]) -> list[Example]:
    """The examples with other rubrics to show; one that could not be parsed becomes the generic rubric."""
    shown = [rubric or world.generic_rubric() for rubric in rubrics]
    return [dataclasses.replace(e, rubric=rubric) for e, rubric in zip(examples, shown, strict=True)]


def parsed_rubrics(texts: Sequence[str]) -> list[Rubric | None]:
    return [parse(text, min_criteria=1).rubric for text in texts]


def drawn_rubrics(examples: Sequence[Example], *, mention: float, noise: tuple[float, ...]) -> list[Rubric]:
    """Rubrics of a given quality, as the documents have them."""
    rng = random.Random(0)
    return [rubric_from_strings(write_rubric(e.extra["problem"], rng, mention=mention, noise=noise)) for e in examples]


def solution_scores(examples: Sequence[Example], texts: Sequence[str]) -> tuple[float, float]:
    """Mean accuracy and rubric score, in percent."""
    grades = [world.grade_solution(e, text) for e, text in zip(examples, texts, strict=True)]
    return 100 * float(np.mean([g.correct for g in grades])), 100 * float(np.mean([g.rubric_score for g in grades]))


def rubric_scores(examples: Sequence[Example], rubrics: Sequence[Rubric | None]) -> float:
    return 100 * float(np.mean([world.grade_rubric(e, r) for e, r in zip(examples, rubrics, strict=True)]))


def contexts(complete: Complete, examples: Sequence[Example]) -> dict[str, tuple[Sequence[Example], tuple[str, ...]]]:
    """Name -> (examples with the rubric to show, the fields shown)."""
    own = parsed_rubrics(complete(examples, QUESTION, "write_rubric", temperature=1.0, seed=7))
    sloppy = drawn_rubrics(examples, mention=MENTION, noise=NOISE)
    sharp = drawn_rubrics(examples, mention=MENTION_WITH_REFERENCE, noise=NOISE_WITH_REFERENCE)
    generic = [world.generic_rubric()] * len(examples)
    return {
        "unaided": (examples, QUESTION),
        "true rubric": (examples, RUBRIC),
        "own rubric": (with_rubrics(examples, own), RUBRIC),
        "sloppy rubric": (with_rubrics(examples, sloppy), RUBRIC),
        "sharp rubric": (with_rubrics(examples, sharp), RUBRIC),
        "generic rubric": (with_rubrics(examples, generic), RUBRIC),
        "reference": (examples, REFERENCE),
        "reference and true rubric": (examples, ALL),
    }


def measure(complete: Complete, examples: Sequence[Example], *, names: Sequence[str] | None = None) -> dict[str, str]:
    """One line of numbers for each context: accuracy/rubric score sampled, the same greedy; rubric F1 likewise."""
    lines = {}
    for name, (shown, fields) in contexts(complete, examples).items():
        if names is None or name in names:
            scores = [solution_scores(examples, complete(shown, fields, "solve", temperature=t)) for t in (1.0, 0.0)]
            lines[name] = "   ".join(f"{accuracy:5.1f} / {score:5.1f}" for accuracy, score in scores)
    for name, fields in (("F1, question", QUESTION), ("F1, with reference", REFERENCE)):
        values = [
            rubric_scores(examples, parsed_rubrics(complete(examples, fields, "write_rubric", temperature=t)))
            for t in (1.0, 0.0)
        ]
        lines[name] = "   ".join(f"{value:13.1f}" for value in values)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=pathlib.Path, default=world.base_directory())
    parser.add_argument("--count", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    config, params = loading.load_model(arguments.model, dtype=jnp.float32)
    tokenizer = load_tokenizer(arguments.model)
    complete = completer(Decoder(config), params, tokenizer)
    for split in ("eval", "ood"):
        print(f"{split:26s} sampled acc/score   greedy acc/score")
        for name, line in measure(complete, world.examples(split, arguments.count, arguments.seed)).items():
            print(f"{name:26s} {line}", flush=True)


if __name__ == "__main__":
    main()
