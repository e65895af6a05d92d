"""The card of a model: README.md with the hub's metadata."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from rcsd_jax.report.summary import ROLE_NAMES, SCORE_NAMES
from rcsd_jax.share.facts import Facts

_ABSTRACT = "https://arxiv.org/abs/2606.19327"


def card(facts: Facts, repository: str, *, files: tuple[str, ...] = ()) -> str:
    """README.md of a repository OWNER/NAME. `files`: those besides the model's that the card names."""
    name = repository.split("/")[-1]
    base = f"[{facts.base}](https://huggingface.co/{facts.base})" if facts.on_hub else f"`{facts.base}`"
    what = "A LoRA adapter for" if facts.adapter else "Trained from"
    return "\n".join(
        [
            "---",
            _metadata(facts, name),
            "---",
            "",
            f"# {name}",
            "",
            f"{what} {base} with rcsd_jax ([paper]({_ABSTRACT})): {_told(facts)}.",
            "",
            "## Use",
            "",
            *_use(facts, repository),
            "",
            *_scores(facts.evaluation),
            *_training(facts),
            *_files(files),
            "## License",
            "",
            _license(facts),
            "",
        ]
    )


def _metadata(facts: Facts, name: str) -> str:
    import huggingface_hub  # late: only sharing needs it

    license = facts.license
    of_hub = [path.removeprefix("hub:").split("#")[0].split(":")[0] for path in facts.data if path.startswith("hub:")]
    results = [
        huggingface_hub.EvalResult(
            task_type="text-generation",
            dataset_type=split,
            dataset_name=split.replace("_", " "),
            metric_type=score,
            metric_name=f"{SCORE_NAMES[score]}, {mode}, percent",
            metric_value=round(100 * scores[score], 2),
        )
        for role, split, mode, score, scores in _lines(facts.evaluation)
        if role == "trained"
    ]
    data = huggingface_hub.ModelCardData(
        base_model=facts.base if facts.on_hub else None,
        license=license.id if license else None,
        license_name=license.name if license else None,
        license_link=license.link if license else None,
        library_name="peft" if facts.adapter else "transformers",
        pipeline_tag="text-generation",
        tags=["rcsd_jax", "jax", facts.config["method"], *(["lora"] if facts.config["lora.rank"] else [])],
        datasets=of_hub or None,
        model_name=name if results else None,
        eval_results=results or None,
    )
    return data.to_yaml().strip()


def _told(facts: Facts) -> str:
    config = facts.config
    method = f"method `{config['method']}`"
    seen = [field for field in config["teacher.fields"] if field != "question"]
    if config["method"].startswith("self_distillation"):
        method += f", whose teacher also saw {' and '.join(seen)}" if seen else ""
    length = f"{config['train.epochs']:g} epochs" if config["train.epochs"] else f"{config['train.steps']} steps"
    return f"{method}; {length} of {config['train.batch_size']} completions"


def _use(facts: Facts, repository: str) -> list[str]:
    if facts.adapter:
        load = [
            "from peft import AutoPeftModelForCausalLM",
            "from transformers import AutoTokenizer",
            "",
            f'model = AutoPeftModelForCausalLM.from_pretrained("{repository}")',
            f'tokenizer = AutoTokenizer.from_pretrained("{facts.base}")',
        ]
        rank = facts.config["lora.rank"]
        serve = f"vllm serve {facts.base} --enable-lora --max-lora-rank={rank} --lora-modules rcsd={repository}"
    else:
        load = [
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            "",
            f'model = AutoModelForCausalLM.from_pretrained("{repository}")',
            f'tokenizer = AutoTokenizer.from_pretrained("{repository}")',
        ]
        serve = f"vllm serve {repository} --dtype=bfloat16"
    return ["```python", *load, "```", "", "```bash", serve, "```"]


def _lines(evaluation: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str, Mapping[str, Any]]]:
    """(role, set, mode, score, scores) of every score with a value."""
    for role, splits in evaluation.items():
        for split, modes in splits.items():
            for mode, scores in modes.items():
                for score in SCORE_NAMES:
                    if scores.get(score) is not None:
                        yield role, split, mode, score, scores


def _scores(evaluation: Mapping[str, Any]) -> list[str]:
    rows = []
    for role, split, mode, score, scores in _lines(evaluation):
        interval = scores.get(f"{score}_interval")
        between = "–" if interval is None else "{:.1f} to {:.1f}".format(*(100 * x for x in interval))
        who = ROLE_NAMES.get(role, role).split(" (")[0]
        what = f"{split.replace('_', ' ')} ({scores['questions']})"
        rows.append(f"| {who} | {what} | {mode} | {SCORE_NAMES[score]} | {100 * scores[score]:.1f} | {between} |")
    if not rows:
        return []
    head = ["| model | questions of | | score | percent | 95% interval |", "|---|---|---|---|---|---|"]
    return ["## Scores", "", *head, *rows, "", "Intervals: bootstrap over questions.", ""]


def _training(facts: Facts) -> list[str]:
    world = {"world": "the embedded world, ", "chains": "chains of steps, "}.get(facts.config["data.source"], "")
    data = world + ", ".join(f"`{path}`" for path in facts.data)
    versions = ", ".join(f"{name} {version}" for name, version in facts.versions.items())
    rows = [f"| `{key}` | `{_cell(value)}` |" for key, value in facts.changed.items()]
    return [
        "## Training",
        "",
        f"Data: {data}. Settings that differ from the defaults; `training_config.json` holds all:",
        "",
        "| key | value |",
        "|---|---|",
        *rows,
        "",
        *([f"Versions: {versions}.", ""] if versions else []),
    ]


def _cell(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return (text if len(text) <= 120 else text[:119] + "…").replace("|", "\\|").replace("`", "'")


def _files(files: tuple[str, ...]) -> list[str]:
    if "report.html" not in files:
        return []
    return ["`report.html` shows the run: curves, scores, and completions token by token.", ""]


def _license(facts: Facts) -> str:
    if facts.license is None:
        return f"That of the base model, `{facts.base}`; see there."
    name = facts.license.name or facts.license.id
    shown = f"[{name}]({facts.license.link})" if facts.license.link else name
    return f"{shown}, as the base model."
