"""Stage I on your data: learn to write a rubric from a question.

    python -m rcsd_jax.main --config=configs/stage1.py --config.model.path=HF_DIR --config.data.path=FILE.jsonl

Variants (`configs/stage1.py:release`): with "paper" (default), the student sees the question, and the teacher also the
reference. "release" is the authors' run as `docs/published.md` lists it: both see question and reference, and the teacher also the
row's own rubric. A size, as in `configs/stage1.py:qwen3_8b`, adds model, mesh and memory settings for a slice: see
`rcsd_jax/settings/sizes.py`. Both roles think; "non_thinking" and "student_non_thinking" change that, as in `configs/stage2.py`.
"""

from typing import Any

from ml_collections import ConfigDict

from rcsd_jax.roles import published
from rcsd_jax.settings import keys, sizes, thinking

VARIANTS: dict[str, dict[str, Any]] = {
    "paper": dict(
        student=dict(fields=("question",)),
        teacher=dict(fields=("question", "reference")),
    ),
    "release": dict(
        prompts=published.RELEASE_STAGE1,
        student=dict(fields=("question", "reference")),
        teacher=dict(fields=("question", "reference", "rubric")),
        rubric=dict(min_criteria=1, max_criteria=1000),
        loss=dict(entry_clip=0.05, reduction="completions"),
        optimizer=dict(learning_rate=2e-5, schedule="linear"),
        train=dict(steps=1000),
    ),
}


def get_config(variant: str = "paper") -> ConfigDict:
    variant, parts = sizes.split(variant or "", tuple(VARIANTS))
    who_thinks, parts = thinking.split(parts)
    config = keys.stage()
    config.task = "write_rubric"
    config.update(VARIANTS[variant or "paper"])
    thinking.apply(config, who_thinks)
    if not config.student.thinking:
        config.sampling.max_new_tokens = 1024  # generated rubrics average 8.4 criteria, about 300 tokens
    sizes.apply(config, parts, (*VARIANTS, *thinking.VARIANTS))
    return config
