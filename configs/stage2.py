"""Stage II on your data: train the model under rubrics, or by one of the methods that RCSD is compared with.

    python -m rcsd_jax.main --config=configs/stage2.py --config.model.path=HF_DIR --config.data.path=FILE.jsonl \\
        --config.rubric.writer=WORKDIR_OF_STAGE1/adapter

Variants (`configs/stage2.py:<variant>`).

RCSD, by what the teacher sees:

- "paper" (default): the rubrics that the Stage I model writes;
- "release": reference and written rubric, with the release's top-k and clip;
- "ground_truth": the rows' own rubrics;
- "generic", "noisy", "random", "reduced": the paper's ablations;
- "reason_first": written rubrics, which the teacher analyses before the completion follows.

Other methods:

- "opsd": the teacher sees the reference;
- "sdft": the teacher sees the reference, its weights are an average of the student's, and the loss skips the first tokens;
- "sdpo": the teacher sees another of the student's own four completions, one that succeeded;
- "sampled_token": on-policy distillation under ground-truth rubrics, by policy gradient;
- "sft": cross entropy of the references;
- "grpo", "dr_grpo": a reward for the right answer in `\\boxed{}` (`reward.grader`);
- "grpo_rubric": the reward is the rubric score from a judge (`judge.model` at an endpoint, or `judge.checkpoint`);
- "mixed": "paper" plus the reward for the answer.

Student and teacher think, in training and in evaluation. "non_thinking", as in `configs/stage2.py:release,non_thinking`, turns this off.
With "student_non_thinking" the student learns from completions without a thought, and the teacher and everybody in evaluation think.

A size, as in `configs/stage2.py:qwen3_8b,release`, adds model, mesh and memory settings for a slice: see
`rcsd_jax/settings/sizes.py`.
"""

from typing import Any

from ml_collections import ConfigDict

from rcsd_jax.settings import keys, sizes, thinking

QUESTION, REFERENCE = ("question",), ("question", "reference")
REWARDED = dict(reward=dict(grader="boxed"), sampling=dict(group=4))
STEPS = dict(train=dict(steps=500))  # the paper's for SFT and GRPO

VARIANTS: dict[str, dict[str, Any]] = {
    "paper": dict(rubric=dict(source="written")),
    "release": dict(
        rubric=dict(source="written", max_new_tokens=1024),
        teacher=dict(fields=("question", "reference", "rubric")),
        loss=dict(top_k=20, entry_clip=0.05),
    ),
    "reason_first": dict(rubric=dict(source="written"), teacher=dict(reason_tokens=512, reason_thinking=False)),
    "ground_truth": dict(),
    **{name: dict(rubric=dict(source=name)) for name in ("generic", "noisy", "random", "reduced")},
    "opsd": dict(teacher=dict(fields=REFERENCE)),
    "sdft": dict(teacher=dict(fields=REFERENCE, weights="ema"), loss=dict(skip_first=3)),
    "sdpo": dict(
        teacher=dict(fields=("question", "success"), weights="ema", ema_decay=0.95),
        eval=dict(roles=("base", "trained")),
    )
    | REWARDED,
    "sampled_token": dict(loss=dict(divergence="sampled_token")),
    "sft": dict(
        method="sft",
        teacher=dict(fields=QUESTION),
        sampling=dict(source="reference"),
        eval=dict(roles=("base", "trained")),
    )
    | STEPS,
    "grpo": dict(
        method="grpo",
        teacher=dict(fields=QUESTION),
        eval=dict(roles=("base", "trained")),
        loss=dict(reduction="completions"),
    )
    | REWARDED
    | STEPS,
    "mixed": dict(method="self_distillation_and_grpo", rubric=dict(source="written")) | REWARDED,
}
VARIANTS["grpo_rubric"] = VARIANTS["grpo"] | dict(reward=dict(grader="judge", score="rubric_score"))
VARIANTS["dr_grpo"] = VARIANTS["grpo"] | dict(policy=dict(scale_advantages=False), loss=dict(reduction="longest"))


def get_config(variant: str = "paper") -> ConfigDict:
    variant, parts = sizes.split(variant or "", tuple(VARIANTS))
    who_thinks, parts = thinking.split(parts)
    config = keys.stage()
    sizes.apply(config, parts, (*VARIANTS, *thinking.VARIANTS))
    config.update(VARIANTS[variant or "paper"])
    thinking.apply(config, who_thinks)
    if config.student.thinking or config.eval.thinking:
        config.eval.max_new_tokens = 32768  # many thoughts on hard questions are longer than training's completions
    return config
