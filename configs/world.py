"""Stage II on the embedded world by any method of `configs/stage2.py`. A run takes a minute or two on two cores.

    python -m rcsd_jax.main --config=configs/world.py:grpo

The variants are those of `configs/stage2.py`, with the world's programs as graders instead of a judge, and "sdpo_feedback", whose
teacher sees the criteria that the student's own completion failed. The default is "ground_truth". Variants with written rubrics
("paper", "release", "mixed") need `rubric.writer`; `configs/tiny.py` leaves one under `runs/tiny/stage1/export`.
"""

from ml_collections import ConfigDict

from configs import stage2, tiny

FEEDBACK = dict(teacher=dict(fields=("question", "feedback")), sampling=dict(group=1))
VARIANTS = (*stage2.VARIANTS, "sdpo_feedback")

# Of 5e-5, 1.5e-4 and 4.5e-4 (`experiments.learning_rates`, with a seed that no table uses), the middle one is best for most methods
# and is the default.
LEARNING_RATE = 1.5e-4
OTHER_RATES = {"sft": 4.5e-4, "sdpo_feedback": 5e-5}


def get_config(variant: str = "ground_truth") -> ConfigDict:
    if variant not in VARIANTS:
        raise ValueError(f"unknown variant {variant!r}: use one of {', '.join(VARIANTS)}")
    name = {"sdpo_feedback": "sdpo"}.get(variant, variant)
    config = tiny.solving()
    config.rubric.update(source="data", writer="")
    config.update(stage2.VARIANTS[name])
    config.train.steps = 40
    config.optimizer.warmup_steps = 5
    if config.reward.grader:
        config.reward.grader = "world"
    config.update(FEEDBACK if variant == "sdpo_feedback" else {})
    config.teacher.reason_tokens = 0  # the base model has not read analyses
    config.optimizer.learning_rate = OTHER_RATES.get(variant, LEARNING_RATE)
    return config
