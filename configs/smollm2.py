"""Stage II on the worded problems in English with SmolLM2-135M-Instruct, on a CPU; `docs/recipes/smollm2.md` has the commands in order.

    python -m rcsd_jax.world data/english
    python -m rcsd_jax.main --config=configs/smollm2.py --workdir=runs/smollm2 --config.model.path=smollm2

The variants are those of `configs/stage2.py`: "ground_truth" (default), "reference" (OPSD), "sft", "grpo" and the others, each with the
method of that file and the sizes of this one. "paper" and "mixed" need `rubric.writer`. `--config.data.path=FOLDER/train.jsonl` and
`--config.eval.splits.NAME=FILE.jsonl` read other rows.
"""

from ml_collections import ConfigDict

from configs import stage2, world
from rcsd_jax.settings import keys
from rcsd_jax.world.english.prompts import PROMPTS

VARIANTS = tuple(stage2.VARIANTS)


def get_config(variant: str = "ground_truth") -> ConfigDict:
    if variant not in VARIANTS:
        raise ValueError(f"unknown variant {variant!r}: use one of {', '.join(VARIANTS)}")
    config = keys.stage()
    config.prompts = PROMPTS
    # On a CPU, a step takes 2.4 times as long in bfloat16 as in float32.
    config.model.update(dtype="float32", param_dtype="float32", remat="none")
    config.lora.update(rank=16, alpha=32.0)
    config.data.update(path="data/english/train.jsonl", max_student_prompt=320, max_teacher_prompt=512, pad_to=32)
    config.rubric.update(style="strings")
    config.sampling.update(max_new_tokens=64, temperature=0.7, top_k=0, top_p=1.0)
    config.optimizer.update(learning_rate=1e-3, warmup_steps=2)
    config.update(world.method(stage2.VARIANTS[variant]))
    config.teacher.reason_tokens = 0  # what so small a model writes about a rubric says little
    config.train.update(steps=16, batch_size=16, row_lengths=1)
    config.checkpoint.every = 5
    config.eval.update(grader="english", count=100, batch_size=32, temperature=0.7, greedy=(False,))
    config.eval.splits = dict(in_distribution="data/english/eval.jsonl", out_of_distribution="data/english/ood.jsonl")
    if config.reward.grader not in ("", "majority"):
        config.reward.grader = "english"
    return config
