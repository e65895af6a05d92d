"""Stage II on your data: train the model under rubrics, or by one of the methods that RCSD is compared with.

    python -m rcsd_jax.main --config=configs/stage2.py --config.model.path=HF_DIR --config.data.path=FILE.jsonl \\
        --config.rubric.writer=WORKDIR_OF_STAGE1/adapter

Variants (`configs/stage2.py:<variant>`).

RCSD, by what the teacher sees:

- "paper" (default): the rubrics that the Stage I model writes;
- "ground_truth": the rows' own rubrics;
- "generic", "noisy", "random", "reduced": the paper's ablations;
- "reason_first": written rubrics, which the teacher analyses before the completion follows.

Published runs, setting by setting, as `docs/published.md` lists them:

- "release": RCSD's authors: reference and written rubric, which the teacher analyses first; top-k, clip, small LoRA, three epochs;
- "opsd": the teacher sees the reference; Jensen-Shannon divergence;
- "sdpo": the teacher sees another of the student's own eight completions, one that succeeded, or else what its own failed at;
- "sdft": TRL's defaults: the teacher sees a demonstration, the row's reference.

Plain forms, each with RCSD's loss and sizes, so that only the teacher differs from "ground_truth":

- "reference": the teacher sees the reference;
- "reference_ema": its weights are also an average of the student's, and the loss skips the first tokens;
- "success": the teacher sees another of the student's own four completions, one that succeeded;
- "feedback": the teacher sees what the grader says of the student's own completion.

Other methods:

- "sampled_token": on-policy distillation under ground-truth rubrics, by policy gradient;
- "sft": cross entropy of the references;
- "grpo", "dr_grpo": a reward for the right answer in `\\boxed{}` (`reward.grader`);
- "grpo_rubric": the reward is the rubric score from a judge (`judge.model` at an endpoint, or `judge.checkpoint`);
- "mixed": "paper" plus the reward for the answer.

Methods of the same family, with RCSD's sizes; `docs/methods.md` has their sources and equations:

- "pw_opsd": "reference", and late tokens of a completion count more;
- "purified": "reference", without what the reference teaches someone who does not know the question;
- "contrastive": "success", whose target is pushed away from a teacher that sees a failure; "rlcsd": GRPO with the same contrast;
- "dopd": "ground_truth", and each token's target is the teacher or the student itself under the rubric;
- "u_opsd": no answers: the teacher sees the shortest completion of the majority, and the student learns from its longest other one;
- "credit": "ground_truth", and tokens count more where the criteria speak that the completion fails;
- "rubric_dropout": "grpo_rubric", and each step grades by another part of the rubric;
- "fixed_advantage": no teacher and no reward; the least likely tokens become less likely. The control for all others.

Student and teacher think, in training and in evaluation. "non_thinking", as in `configs/stage2.py:release,non_thinking`, turns this off.
With "student_non_thinking" the student learns from completions without a thought, and the teacher and everybody in evaluation think.

"from_32b" makes Qwen3-32B the teacher of a size, as in `configs/stage2.py:qwen3_8b,from_32b`; otherwise the teacher is the student's own.
A size, as in `configs/stage2.py:qwen3_8b,release`, adds model, mesh and memory settings for a slice: see
`rcsd_jax/settings/sizes.py`.
"""

from typing import Any

from ml_collections import ConfigDict

from rcsd_jax.roles import published
from rcsd_jax.settings import keys, sizes, thinking

QUESTION, REFERENCE = ("question",), ("question", "reference")
REWARDED = dict(reward=dict(grader="boxed"), sampling=dict(group=4))
STEPS = dict(train=dict(steps=500))  # the paper's for SFT and GRPO
# Evaluation of a teacher whose fields exist only during training, or of none.
NO_TEACHER = dict(roles=("base", "trained"))

PUBLISHED: dict[str, dict[str, Any]] = {
    "release": dict(
        prompts=published.RELEASE,
        data=dict(max_teacher_prompt=2048),
        lora=dict(rank=16, alpha=32.0, targets=("q", "v")),
        teacher=dict(
            fields=("question", "reference", "rubric"), reason_tokens=4096, reason_by="student", transition="raw"
        ),
        rubric=dict(
            source="written",
            writer_fields=REFERENCE,
            constrained=False,
            max_new_tokens=1024,
            temperature=0.7,
            resample=0,
            on_reject="drop",
            salvage=False,
            min_criteria=1,
            max_criteria=1000,
        ),
        loss=dict(top_k=20, entry_clip=0.05, reduction="completions"),
        optimizer=dict(schedule="linear"),
        train=dict(steps=0, epochs=3.0),
    ),
    "opsd": dict(
        prompts=published.OPSD,
        data=dict(max_teacher_prompt=20_000),
        teacher=dict(fields=REFERENCE),
        sampling=dict(temperature=1.1, max_new_tokens=2048),
        loss=dict(beta=0.5, reduction="completions"),
        optimizer=dict(learning_rate=2e-4, schedule="linear"),
        train=dict(steps=0, epochs=30.0),
    ),
    "sdpo": dict(
        prompts=published.SDPO,
        data=dict(max_teacher_prompt=10_240),
        lora=dict(rank=0),
        student=dict(thinking=False),
        teacher=dict(
            fields=("question", "success", "feedback"),
            attempts_shown="first",
            thinking=False,
            weights="ema",
            ema_decay=0.95,
        ),
        sampling=dict(group=8, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=8192),
        reward=dict(grader="boxed", success=0.5),
        policy=dict(scale_advantages=False),
        loss=dict(beta=0.5, top_k=100, top_k_support="student", tail="bucket", importance_clip=2.0),
        optimizer=dict(learning_rate=1e-5, warmup_steps=10, weight_decay=0.01),
        train=dict(batch_size=256, steps=0, epochs=30.0),
        eval=NO_TEACHER,
    ),
    "sdft": dict(
        prompts=published.SDFT,
        data=dict(max_student_prompt=512),
        lora=dict(rank=0),
        teacher=dict(fields=REFERENCE),
        sampling=dict(group=8, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=256),
        loss=dict(beta=0.5, top_k=100, top_k_support="student", importance_clip=2.0, reduction="completions"),
        optimizer=dict(learning_rate=5e-5, schedule="linear"),
        train=dict(batch_size=8, steps=0, epochs=3.0),
    ),
}

VARIANTS: dict[str, dict[str, Any]] = {
    "paper": dict(rubric=dict(source="written")),
    "reason_first": dict(rubric=dict(source="written"), teacher=dict(reason_tokens=512, reason_thinking=False)),
    "ground_truth": dict(),
    **{name: dict(rubric=dict(source=name)) for name in ("generic", "noisy", "random", "reduced")},
    **PUBLISHED,
    "reference": dict(teacher=dict(fields=REFERENCE)),
    "reference_ema": dict(teacher=dict(fields=REFERENCE, weights="ema"), loss=dict(skip_first=3)),
    "success": dict(teacher=dict(fields=("question", "success"), weights="ema", ema_decay=0.95), eval=NO_TEACHER)
    | REWARDED,
    "feedback": dict(
        teacher=dict(fields=("question", "feedback"), weights="ema", ema_decay=0.95),
        reward=dict(grader="boxed"),
        eval=NO_TEACHER,
    ),
    "sampled_token": dict(loss=dict(divergence="sampled_token")),
    "sft": dict(method="sft", teacher=dict(fields=QUESTION), sampling=dict(source="reference"), eval=NO_TEACHER)
    | STEPS,
    "grpo": dict(method="grpo", teacher=dict(fields=QUESTION), eval=NO_TEACHER, loss=dict(reduction="completions"))
    | REWARDED
    | STEPS,
    "mixed": dict(method="self_distillation_and_grpo", rubric=dict(source="written")) | REWARDED,
}
FAMILY: dict[str, dict[str, Any]] = {
    "pw_opsd": dict(
        teacher=dict(fields=REFERENCE),
        loss=dict(entry_clip=0.05, reduction="completions", emphasis="position", emphasis_strength=0.75),
    ),
    "purified": dict(teacher=dict(fields=REFERENCE, guidance=1.0, guidance_by="purified")),
    "contrastive": dict(
        teacher=dict(fields=("question", "success"), guidance=0.5, guidance_by="failure"),
        loss=dict(entry_clip=0.05, reduction="completions"),
        eval=NO_TEACHER,
    )
    | REWARDED,
    "rlcsd": dict(
        method="rlcsd",
        teacher=dict(fields=("question", "success"), guidance_by="failure"),
        loss=dict(reduction="completions"),
        eval=NO_TEACHER,
    )
    | REWARDED,
    "dopd": dict(teacher=dict(better_of_two=True)),
    "u_opsd": dict(
        teacher=dict(fields=("question", "success")),
        sampling=dict(group=8),
        reward=dict(grader="majority", shown="shortest"),
        loss=dict(entry_clip=0.05, completions="longest_wrong"),
        eval=NO_TEACHER,
    ),
    "credit": dict(reward=dict(grader="judge", score="rubric_score"), loss=dict(emphasis="credit")),
    "fixed_advantage": dict(
        method="fixed_advantage", teacher=dict(fields=QUESTION), eval=NO_TEACHER, loss=dict(emphasis="low_probability")
    ),
}
VARIANTS["grpo_rubric"] = VARIANTS["grpo"] | dict(reward=dict(grader="judge", score="rubric_score"))
FAMILY["rubric_dropout"] = VARIANTS["grpo_rubric"] | dict(rubric=dict(dropout=0.4))
VARIANTS["dr_grpo"] = VARIANTS["grpo"] | dict(policy=dict(scale_advantages=False), loss=dict(reduction="longest"))
VARIANTS |= FAMILY


def get_config(variant: str = "paper") -> ConfigDict:
    variant, parts = sizes.split(variant or "", tuple(VARIANTS))
    who_thinks, parts = thinking.split(parts)
    config = keys.stage()
    config.update(VARIANTS[variant or "paper"])
    thinking.apply(config, who_thinks)
    thinking.give_evaluation_room(config)
    sizes.apply(config, parts, (*VARIANTS, *thinking.VARIANTS))
    return config
