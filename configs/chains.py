"""Stage II on the longer world, chains of 8 to 16 steps with wrong turns and repairs, by a method of `configs/stage2.py`.

    python -m experiments.world.make_base --world=chains --out=runs/experiments/chains_base
    python -m rcsd_jax.main --config=configs/chains.py:reference

The base takes about 45 minutes on two cores and a run about three. The variants are those of `configs/world.py` whose rubrics no model
writes; the default is "ground_truth". `data.path=train:thorough` has references that show checks and repairs, others are short; the rubrics
of `train:unasked` ask for no checks.
"""

from ml_collections import ConfigDict

from configs import stage2, world
from rcsd_jax.world.chains.rows import QUESTION_TOKENS, SOLUTION_TOKENS, TEACHER_TOKENS
from rcsd_jax.world.registered import CHAINS

VARIANTS = tuple(
    name for name, settings in stage2.VARIANTS.items() if settings.get("rubric", {}).get("source") != "written"
)
BASE = "runs/experiments/chains_base"
"""Where the command above writes the base, and `experiments.chains` too."""


def get_config(variant: str = "ground_truth") -> ConfigDict:
    if variant not in VARIANTS:
        raise ValueError(f"unknown variant {variant!r}: use one of {', '.join(VARIANTS)}")
    config = world.get_config(variant)
    config.model.path = BASE
    config.data.update(
        source=CHAINS, path="train", max_student_prompt=QUESTION_TOKENS, max_teacher_prompt=TEACHER_TOKENS
    )
    config.sampling.max_new_tokens = SOLUTION_TOKENS
    config.eval.grader = CHAINS
    config.reward.grader = config.reward.grader.replace("world", CHAINS)
    return config
