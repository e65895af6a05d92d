"""Does the attribution of a criterion peak at the step that it is about? On the embedded world, where that is known.

    python -m experiments.attribution [--count=256] [--seed=90]

The base model as teacher, shown the true rubric, scores careful solutions. A hit: of all tokens, the one that a criterion
speaks for most lies in the line of its step. Chance is that line's share of the tokens; as a control, the same is counted
for the line of the rubric's next criterion.
"""

from __future__ import annotations

import argparse

import jax.numpy as jnp
import numpy as np

from configs import world as world_config
from experiments import statistics, tables
from rcsd_jax import world
from rcsd_jax.checkpoints import loading
from rcsd_jax.data.examples import Example
from rcsd_jax.host.console import Console
from rcsd_jax.roles.attribution import ablated_contexts, attribution
from rcsd_jax.roles.encode import teacher_prompt
from rcsd_jax.roles.opened_model import open_model
from rcsd_jax.settings.unpack import unpack
from rcsd_jax.world.criteria import steps
from rcsd_jax.world.documents import careful_solution

BATCH = 32


def spans(example: Example, tokenizer) -> dict[str, tuple[int, int]]:
    """Step -> the tokens [start, end) of its line in the careful solution; the last line is unit's and box's."""
    problem = example.extra["problem"]
    lines = careful_solution(problem).split(" ; ")
    names = [s for s in steps(problem) if s in ("law", "convert_a", "convert_b", "distractor")] + ["product"]
    names += [s for s in steps(problem) if s in ("twice", "check")] + ["answer"]
    found, text = {}, ""
    for name, line in zip(names, lines, strict=True):
        start = len(tokenizer(text, add_special_tokens=False)["input_ids"])
        text += line + " ; "
        found[name] = (start, len(tokenizer(text, add_special_tokens=False)["input_ids"]))
    last = found.pop("answer")
    return found | {"unit": last, "box": last}


def main() -> None:
    """Prints hit rates by step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=256)
    parser.add_argument("--seed", type=int, default=90)
    flags = parser.parse_args()
    config = unpack(world_config.get_config("ground_truth"))
    model = open_model(str(world.base_directory()), config.model)
    variables = {"params": loading.load_model(model.directory, dtype=jnp.float32)[1]}
    examples = world.examples("eval", flags.count, flags.seed)
    encode = lambda example: teacher_prompt(model.tokenizer, example, config.encoding)
    found: dict[str, list[tuple[float, float, float, float]]] = {}
    for start in range(0, len(examples), BATCH):
        part = examples[start : start + BATCH]
        completions = [
            np.asarray(model.tokenizer(careful_solution(e.extra["problem"]), add_special_tokens=False)["input_ids"])
            for e in part
        ]
        contexts = [ablated_contexts(e, encode) for e in part]
        matrices = attribution(model.decoder, variables, contexts, completions, pad_id=model.pad_id)
        for example, matrix in zip(part, matrices, strict=True):
            problem, where = example.extra["problem"], spans(example, model.tokenizer)
            order = steps(problem)
            for k, step in enumerate(order):
                (a, b), (c, d) = where[step], where[order[(k + 1) % len(order)]]
                peak, count = int(matrix[k].argmax()), matrix.shape[1]
                hit = (float(a <= peak < b), (b - a) / count, float(c <= peak < d), float(matrix[k].max()))
                found.setdefault(step, []).append(hit)
                found.setdefault("all", []).append(hit)
    rows: tables.Rows = {}
    for step, hits in found.items():
        values = np.array(hits)
        columns = {
            "hits, percent": 100 * values[:, 0],
            "chance, percent": 100 * values[:, 1],
            "control, percent": 100 * values[:, 2],
        }
        rows[step] = {name: statistics.estimate(column) for name, column in columns.items()}
        rows[step]["times chance"] = statistics.Estimate(values[:, 0].mean() / values[:, 1].mean(), float("nan"), 1)
        rows[step]["highest, nats"] = statistics.estimate(values[:, 3])
    title = f"Attribution of criteria, {flags.count} questions, mean ± 95% interval over criteria"
    tables.show(Console(), title, rows, first="step")


if __name__ == "__main__":
    main()
