"""Stage I on your data: learn to write a rubric from a question.

    python -m rcsd_jax.main --config=configs/stage1.py --config.model.path=HF_DIR --config.data.path=FILE.jsonl

Variants (`configs/stage1.py:release`): with "paper" (default), the student sees the question, and the teacher also the
reference. With "release", both see question and reference, and the teacher also the row's own rubric. A size, as in
`configs/stage1.py:qwen3_8b`, adds model, mesh and memory settings for a slice: see `rcsd_jax/settings/sizes.py`. Both roles think;
"non_thinking" and "student_non_thinking" change that, as in `configs/stage2.py`.
"""

from ml_collections import ConfigDict

from rcsd_jax.settings import keys, sizes, thinking

ROLES = {
    "paper": (("question",), ("question", "reference")),
    "release": (("question", "reference"), ("question", "reference", "rubric")),
}
VARIANTS = tuple(ROLES)


def get_config(variant: str = "paper") -> ConfigDict:
    variant, parts = sizes.split(variant or "", tuple(ROLES))
    who_thinks, parts = thinking.split(parts)
    config = keys.stage()
    sizes.apply(config, parts, (*ROLES, *thinking.VARIANTS))
    config.task = "write_rubric"
    config.student.fields, config.teacher.fields = ROLES[variant or "paper"]
    thinking.apply(config, who_thinks)
    if not config.student.thinking:
        config.sampling.max_new_tokens = 1024  # generated rubrics average 8.4 criteria, about 300 tokens
    return config
