"""Stage I on your data: learn to write a rubric from a question.

    python -m rcsd_jax.main --config=configs/stage1.py --config.model.path=HF_DIR --config.data.path=FILE.jsonl

Variants (`configs/stage1.py:release`): "paper" (default), the student sees the question and the teacher also the
reference; "release", both see question and reference and the teacher also the row's own rubric.
"""

from rcsd_jax import config as c

ROLES = {
    "paper": (("question",), ("question", "reference")),
    "release": (("question", "reference"), ("question", "reference", "rubric")),
}


def get_config(variant="paper"):
    variant = variant or "paper"
    if variant not in ROLES:
        raise ValueError(f"unknown variant {variant!r} of configs/stage1.py: use one of {tuple(ROLES)}")
    config = c.stage()
    config.task = "write_rubric"
    config.student.fields, config.teacher.fields = ROLES[variant]
    config.sampling.max_new_tokens = 1024  # generated rubrics average 8.4 criteria, some 300 tokens
    return config
