"""The settings of one stage as values: a frozen dataclass for each subject, which the room that uses it declares and checks.

`unpack.unpack` makes them from a config. The rooms below work with these values and know nothing of configs.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import rcsd_jax.world  # noqa: F401  # it puts its data source, generic rubric and grader into the tables
from rcsd_jax.checkpoints.settings import ExportSettings, LoraSettings, ModelSettings
from rcsd_jax.data.settings import DataSettings
from rcsd_jax.data.sources import Reading
from rcsd_jax.evaluate.graders import GRADERS
from rcsd_jax.evaluate.settings import EvaluationSettings, RewardSettings
from rcsd_jax.host import checks
from rcsd_jax.host.trackers import CLIENTS
from rcsd_jax.judge.settings import JudgeChoice
from rcsd_jax.judge.teacher_settings import TeacherEndpoint
from rcsd_jax.losses import emphasis
from rcsd_jax.methods import METHODS
from rcsd_jax.methods.optimizer import OptimizerSettings
from rcsd_jax.methods.settings import LossSettings, PolicySettings
from rcsd_jax.roles.contexts import ATTEMPT_FIELDS, Role
from rcsd_jax.roles.encode import Encoding
from rcsd_jax.roles.limits import Limits
from rcsd_jax.roles.settings import TeacherSettings
from rcsd_jax.rubrics import sources as rubric_sources
from rcsd_jax.rubrics.schema import Rubric
from rcsd_jax.rubrics.settings import RubricSettings
from rcsd_jax.sampling.settings import SamplingSettings


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """The section `train`; `settings/keys.py` says what each key means."""

    steps: int
    epochs: float
    batch_size: int
    microbatches: int
    row_lengths: int
    router: bool
    routing_replay: str = checks.one_of(("off", "compare", "replay"))
    split_rows: bool
    batches_per_rollout: int
    passes_per_rollout: int
    log_every: int

    def __post_init__(self) -> None:
        checks.choices(self)
        sizes = ("batch_size", "microbatches", "batches_per_rollout", "passes_per_rollout", "log_every")
        checks.at_least_one(self, *sizes)
        checks.at_least_zero(self, "steps", "epochs", "row_lengths")
        checks.finite(self, "epochs")
        problem, remedy = "does not say how long to train, nor does train.epochs", "set one of the two"
        checks.need(self.steps > 0 or self.epochs > 0, self, "steps", problem, remedy)
        problem = f"cannot be combined with train.steps = {self.steps}"
        checks.need(not (self.steps and self.epochs), self, "epochs", problem, "set train.steps=0, or this to 0")
        packed = self.row_lengths > 0 or not self.split_rows
        checks.need(packed, self, "split_rows", "needs packed rows", "set train.row_lengths to 4, or this to False")
        problem = f"does not divide train.batch_size = {self.batch_size}"
        even = self.batch_size % self.microbatches == 0
        checks.need(even, self, "microbatches", problem, "choose a divisor of the batch size")
        served = self.updates_per_rollout
        problem = f"is not whole rollouts: each serves {served} updates, batches_per_rollout x passes_per_rollout"
        below, above = self.steps // served * served, -(-self.steps // served) * served
        remedy = f"set {above}" + (f" or {below}" if below else "")
        checks.need(self.steps % served == 0, self, "steps", problem, remedy)

    @property
    def updates_per_rollout(self) -> int:
        """The number of updates that learn from one rollout."""
        return self.batches_per_rollout * self.passes_per_rollout


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointSettings:
    """The section `checkpoint`; `settings/keys.py` says what each key means."""

    every: int
    keep: int

    def __post_init__(self) -> None:
        checks.at_least_one(self, "every", "keep")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogSettings:
    """The section `log`; `settings/keys.py` says what each key means."""

    wandb: str
    mlflow: str
    trackio: str
    completions_every: int

    def __post_init__(self) -> None:
        checks.at_least_zero(self, "completions_every")

    @property
    def trackers(self) -> Mapping[str, str]:
        """Name -> project of the trackers in use."""
        return {name: project for name in CLIENTS if (project := getattr(self, name))}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of a stage by subject: a field for every section of its config.

    Attributes:
      prompts: the texts of prompts around a row's fields.
      mesh: axis -> devices, the arguments of `models.sharding.make_mesh`, which checks them.
    """

    seed: int
    task: str = checks.one_of(("solve", "write_rubric"))
    method: str = checks.one_of(METHODS)
    prompts: Mapping[str, Any]
    model: ModelSettings
    lora: LoraSettings
    data: DataSettings
    student: Role
    teacher: TeacherSettings
    teacher_endpoint: TeacherEndpoint
    rubric: RubricSettings
    sampling: SamplingSettings
    reward: RewardSettings
    policy: PolicySettings
    judge: JudgeChoice
    loss: LossSettings
    optimizer: OptimizerSettings
    train: TrainSettings
    checkpoint: CheckpointSettings
    log: LogSettings
    mesh: Mapping[str, Any]
    eval: EvaluationSettings
    export: ExportSettings

    def __post_init__(self) -> None:
        checks.choices(self)
        ok = 0 <= self.seed < 2**32
        checks.need(ok, self, "seed", "must lie in 0..2**32-1", "choose another seed")

    # --- what follows from several subjects ---

    @property
    def teacher_weights(self) -> str:
        """The teacher's weights: "none" if the method needs no teacher, "own" if they are other models'.

        "endpoint" if it is a model at an endpoint.
        """
        if not (METHODS[self.method].teacher or self.policy.kl):
            return "none"
        if self.teacher_endpoint.model:
            return "endpoint"
        return "own" if self.teacher.own else self.teacher.weights

    @property
    def writes_rubrics(self) -> bool:
        """Whether a model writes the rubrics that the teacher sees."""
        return self.rubric.written and "rubric" in self.teacher.fields

    @property
    def graded_by_judge(self) -> bool:
        """Whether a judge grades something."""
        return "judge" in self.eval.graders | {self.reward.grader}

    @property
    def uncorrected_sampler(self) -> bool:
        """Whether an int8 copy samples for a loss that does not know. GRPO's ratio is to the sampler by itself."""
        return self.sampling.int8_weights and METHODS[self.method].teacher and self.loss.importance_clip is None

    @property
    def questions_per_step(self) -> int:
        """The number of rows that an update learns from."""
        return self.train.batch_size // self.sampling.group

    @property
    def questions_per_rollout(self) -> int:
        """The number of rows that are sampled together."""
        return self.train.batches_per_rollout * self.questions_per_step

    def with_steps(self, rows: int) -> Settings:
        """These settings with the number of updates that `train.epochs` passes over so many rows take, in whole rollouts."""
        train = self.train
        if not train.epochs:
            return self
        rollouts = math.ceil(train.epochs * rows / self.questions_per_rollout)
        steps = max(rollouts, 1) * train.updates_per_rollout
        return dataclasses.replace(self, train=dataclasses.replace(train, steps=steps, epochs=0.0))

    @property
    def generic_rubric(self) -> Rubric:
        """The rubric that fits any question of the data."""
        return rubric_sources.generic_rubric(self.data.source)

    def reading(self, **how: Any) -> Reading:
        """How the rows are read; `how` replaces fields of it."""
        data, rubric = self.data, self.rubric
        reading = Reading(
            source=data.source,
            split=data.split,
            data_dir=data.tfds_dir or None,
            fields={name: column for name, column in data.fields.items() if column},
            min_criteria=rubric.min_criteria,
            max_criteria=rubric.max_criteria,
            incomplete=data.incomplete,
            count=data.count,
            seed=self.seed,
            flawed=data.flawed,
        )
        return dataclasses.replace(reading, **how)

    @property
    def further(self) -> str:
        """The contexts with which the teacher also scores, of `contexts.FURTHER`: for guidance, for the method, or to weigh tokens."""
        if self.loss.emphasis in emphasis.OF_CONTEXTS:
            return "criteria"
        return self.teacher.guidance_by if METHODS[self.method].contrasts else self.teacher.further

    @property
    def encoding(self) -> Encoding:
        """How rows become the prompts of both roles; without a teacher, the student's twice."""
        return Encoding(
            student=self.student,
            teacher=self.student if self.teacher_weights == "none" else self.teacher.role,
            texts={**self.prompts, "rubric_style": self.rubric.style},
            task=self.task,
            reasons=self.teacher.reason_tokens > 0,
            transition=self.teacher.transition,
            reason_thinking=self.teacher.reason_thinking,
            learns_references=self.sampling.source == "reference",
            further=self.further,
        )

    @property
    def evaluation_encoding(self) -> Encoding:
        """The same for evaluation."""
        return self.encoding.with_thinking(self.eval.thinking)

    @property
    def evaluation_budget(self) -> int:
        """The number of tokens of the longest completion in evaluation."""
        return self.eval.max_new_tokens or self.sampling.max_new_tokens

    @property
    def limits(self) -> Limits:
        """How long prompts and references may be."""
        return Limits(
            student=self.data.max_student_prompt,
            teacher=self.data.max_teacher_prompt,
            writer=self.rubric.max_prompt,
            reference=self.sampling.max_new_tokens,
            fails=self.data.too_long == "fail",
        )

    @property
    def required_fields(self) -> tuple[str, ...]:
        """Fields that every row must have: those that the roles see, without the rubric if it does not come from the row."""
        encoding = self.encoding
        seen = dict.fromkeys((*encoding.student.fields, *encoding.teacher.fields))
        if self.sampling.source == "reference":
            seen |= dict.fromkeys(["rubric" if self.task == "write_rubric" else "reference"])
        if self.reward.grader:
            seen |= dict.fromkeys(GRADERS[self.reward.grader].needs)
        if self.rubric.written and "rubric" in seen:
            seen |= dict.fromkeys(self.rubric.writer_fields)
        of_row = rubric_sources.RUBRIC_SOURCES[self.rubric.source].of_row or bool(self.reward.grader)
        return tuple(name for name in seen if name not in ATTEMPT_FIELDS and (name != "rubric" or of_row))
