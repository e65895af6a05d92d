"""Stage II on your data: train the reasoner under rubrics.

    python -m rcsd_jax.main --config=configs/stage2.py --config.model.path=HF_DIR --config.data.path=FILE.jsonl \\
        --config.rubric.writer=WORKDIR_OF_STAGE1/adapter

Variants (`configs/stage2.py:<variant>`), each a choice of what the teacher sees: "paper" (default), the rubrics that the
Stage I model writes; "release", reference and written rubric, with the release's top-k and clip; "ground_truth", the
rows' own rubrics; "generic", "noisy", "random", "reduced"; "opsd", the reference alone; "reason_first", the teacher
analyses the rubric before the completion follows. With a size, as in `configs/stage2.py:qwen3_8b,release`, also model,
mesh and memory settings for a slice: see `rcsd_jax/sizes.py`.
"""

from rcsd_jax import config as c
from rcsd_jax import sizes

TEACHER_FIELDS = {"release": ("question", "reference", "rubric"), "opsd": ("question", "reference")}
RUBRIC_SOURCE = {
    "ground_truth": "data",
    "opsd": "data",
    "generic": "generic",
    "noisy": "noisy",
    "random": "random",
    "reduced": "reduced",
}
VARIANTS = ("paper", "release", "reason_first", *RUBRIC_SOURCE)


def get_config(variant="paper"):
    variant, parts = sizes.split(variant or "", VARIANTS)
    config = c.stage()
    sizes.apply(config, parts, VARIANTS)
    config.teacher.fields = TEACHER_FIELDS.get(variant, ("question", "rubric"))
    config.rubric.source = RUBRIC_SOURCE.get(variant, "written")
    if variant == "release":
        config.loss.update(top_k=20, entry_clip=0.05)
    if variant == "reason_first":
        config.teacher.reason_tokens = 512
    return config
