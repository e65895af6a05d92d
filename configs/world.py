"""Stage II on the embedded world by any method of `configs/stage2.py`. A run takes a minute or two on two cores.

    python -m rcsd_jax.main --config=configs/world.py:grpo

The variants are those of `configs/stage2.py`, with the world's programs as graders instead of a judge. Of a published run ("opsd",
"sdpo", "sdft", "release") they have the method, that is teacher, loss and group, but not what is for large models: prompts, lengths,
LoRA, batch, learning rate and temperature. The default is "ground_truth". Variants with written rubrics ("paper", "release", "mixed")
need `rubric.writer`; `configs/tiny.py` leaves one under `runs/tiny/stage1/export`.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import stage2, tiny

VARIANTS = tuple(stage2.VARIANTS)
NOT_OF_THE_METHOD = ("prompts", "data", "lora", "optimizer", "train")
OF_THE_METHOD = dict(sampling=("group", "source"), rubric=("source", "dropout"))  # of these sections, only these keys

# Of 5e-5, 1.5e-4 and 4.5e-4 (`experiments.learning_rates`, with a seed that no table uses), the middle one is best for most methods
# and is the default.
LEARNING_RATE = 1.5e-4
OTHER_RATES = {"sft": 4.5e-4, "feedback": 5e-5, "purified": 5e-5, "fixed_advantage": 5e-5}


def get_config(variant: str = "ground_truth") -> ConfigDict:
    if variant not in VARIANTS:
        raise ValueError(f"unknown variant {variant!r}: use one of {', '.join(VARIANTS)}")
    config = tiny.solving()
    config.rubric.update(source="data", writer="")
    config.update(method(stage2.VARIANTS[variant]))
    config.train.steps = 40
    config.optimizer.warmup_steps = 5
    if config.reward.grader:
        config.reward.grader = "world_majority" if config.reward.grader == "majority" else "world"
    config.teacher.reason_tokens = 0  # the base model has not read analyses
    config.optimizer.learning_rate = OTHER_RATES.get(variant, LEARNING_RATE)
    return config


def method(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of a variant that make up its method."""
    sections = {name: values for name, values in settings.items() if name not in NOT_OF_THE_METHOD}
    for name, keys in OF_THE_METHOD.items():
        if name in sections:
            sections[name] = {key: value for key, value in sections[name].items() if key in keys}
    return sections
