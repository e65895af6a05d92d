"""The main job on the embedded world: Stage I, rubrics for Stage II, Stage II, and evaluation. It takes minutes on two cores."""

from ml_collections import ConfigDict

from rcsd_jax.settings import keys
from rcsd_jax.world import RUBRIC_TOKENS, SOLUTION_TOKENS, base_directory
from rcsd_jax.world.prompts import PROMPTS

VARIANTS = ()


def get_config() -> ConfigDict:
    return keys.job(stage1=_stage1(), stage2=solving())


def _common() -> ConfigDict:
    config = keys.stage()
    config.prompts = PROMPTS
    config.model.update(path=str(base_directory()), dtype="float32", param_dtype="float32", remat="none")
    config.lora.rank = 0
    config.data.update(source="world", max_student_prompt=128, max_teacher_prompt=192, pad_to=32, too_long="fail")
    config.rubric.update(style="strings", min_criteria=1, max_criteria=12)
    config.loss.chunk_size = 256
    config.sampling.update(temperature=1.0, top_k=0, top_p=1.0)
    config.train.row_lengths = 1  # each more takes seconds to compile, and saves less in a run of minutes
    config.checkpoint.every = 20
    config.mesh.fsdp = 1
    config.eval.batch_size = 256
    config.eval.splits = dict(in_distribution="eval", out_of_distribution="ood")
    return config


def _stage1() -> ConfigDict:
    """Paper's Stage I: the teacher sees the reference, the student learns to write the rubric without it."""
    config = _common()
    config.task = "write_rubric"
    config.teacher.fields = ("question", "reference")
    config.data.update(path="stage1", count=2048)
    config.sampling.max_new_tokens = RUBRIC_TOKENS
    config.optimizer.update(learning_rate=3e-4, warmup_steps=5)
    config.train.steps = 50
    config.eval.grader = "rubric"
    return config


def solving() -> ConfigDict:
    """Paper's Stage II: the teacher sees the rubric that Stage I's model wrote."""
    config = _common()
    config.seed = 1
    config.teacher.fields = ("question", "rubric")
    config.data.update(path="stage2", count=1024)
    config.rubric.update(
        source="written",
        writer="{workdir}/stage1/export",
        constrained=False,  # the world measures what a writer learns, also of the form
        max_new_tokens=RUBRIC_TOKENS,
        batch_size=256,
        top_k=0,
        top_p=1.0,
    )
    config.sampling.max_new_tokens = SOLUTION_TOKENS
    # Warms up over the whole run: otherwise everything is learned in its first half, and the curve shows nothing.
    config.optimizer.update(learning_rate=5e-5, warmup_steps=80)
    config.train.steps = 80
    config.eval.grader = "world"
    return config
