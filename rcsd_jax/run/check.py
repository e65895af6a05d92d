"""`--check`: reads a run's config, model and data as the run does, and stops. It loads no weights and writes nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from rcsd_jax.data import sources
from rcsd_jax.data.examples import Example
from rcsd_jax.data.rubrics_of_rows import with_rubrics
from rcsd_jax.evaluate.graders import check_rows
from rcsd_jax.evaluate.questions import Questions
from rcsd_jax.host.console import Console, say_once
from rcsd_jax.host.files import AnyPath, as_path
from rcsd_jax.models import sharding
from rcsd_jax.roles.opened_model import Model, open_unloaded
from rcsd_jax.run.evaluate_model import questions_of
from rcsd_jax.run.inputs import check_positions, counted, open_inputs, positions_of
from rcsd_jax.run.judge import endpoint_of
from rcsd_jax.run.rows import Rows
from rcsd_jax.run.tracking import check_installed
from rcsd_jax.settings.stage import Settings


def check_stage(config: Settings, console: Console, name: str = "", *, earlier: Sequence[AnyPath] = ()) -> None:
    """Reads everything that a stage reads before weights, and prints the counts.

    Args:
      config: of the stage.
      console: where to print.
      name: of the stage.
      earlier: folders of the stages before it. Files that they have not written yet are not looked for.

    Raises:
      UserError: any error that the stage would raise before it loads weights.
    """
    check_installed(config, name)
    name = name or "run"
    mesh = sharding.make_mesh(**config.mesh)
    waits = lambda path: any(path.startswith(f"{folder}/") for folder in earlier) and not as_path(path).exists()
    _check_judge(config)
    if waits(config.model.path):
        examples = sources.read_as(config.data.path, config.reading(require=config.required_fields))
        check_rows(config.reward.grader, examples)
        later = f"their prompts are checked when {config.model.path} is written"
        console.print(f"{name}: {len(examples)} examples; {later}", soft_wrap=True)
        return
    if any(map(waits, config.teacher.own.values())):
        own = dataclasses.replace(config.teacher, path="", paths={}, of_sources={}, quantization="none")
        config = dataclasses.replace(config, teacher=own)
    model, teachers, questions, examples = open_inputs(config, mesh, say=say_once(console))
    examples, rubrics = _with_rubrics(examples, config, waits)
    rows = Rows(examples, model.tokenizer, config)
    positions = positions_of(model, teachers)
    if not rows.start(positions=positions):
        raise config.limits.nothing_fits(len(examples))
    check_positions(positions, rows, config)
    of_teacher = "".join(f"; teacher {path}" for path in config.teacher.own.values())
    console.print(f"{name}: model {config.model.path}{of_teacher}; {counted(rows)}{rubrics}", soft_wrap=True)
    _say_questions(questions, console, name)


def check_evaluation(config: Settings, console: Console) -> None:
    """The same for an evaluation without training.

    Raises:
      UserError: any error that it would raise before it loads weights.
    """
    _check_judge(config)
    model: Model = open_unloaded(config.model.path, config.model)
    questions = questions_of(config, model, sharding.make_mesh(**config.mesh), say=say_once(console))
    console.print(f"evaluate: model {config.model.path}", soft_wrap=True)
    _say_questions(questions, console, "evaluate")


def _with_rubrics(examples: list[Example], config: Settings, waits: Callable[[str], bool]) -> tuple[list[Example], str]:
    """The examples with rubrics, and a note on these. If a model will write them, the generic rubric stands in."""
    if not config.writes_rubrics:
        return _from_source(examples, config), ""
    writer = config.rubric.writer
    if not waits(writer):
        open_unloaded(writer, config.model)
    stand_in = dataclasses.replace(config, rubric=dataclasses.replace(config.rubric, source="generic"))
    return _from_source(examples, stand_in), f" (rubrics will be written by {writer})"


def _from_source(examples: list[Example], config: Settings) -> list[Example]:
    return with_rubrics(examples, config.rubric, generic=config.generic_rubric, seed=config.seed)


def _check_judge(config: Settings) -> None:
    if not config.graded_by_judge:
        return
    for judge in (config.judge.first, config.judge.second):
        if judge is not None and judge.checkpoint:
            open_unloaded(judge.checkpoint, config.model)
        elif judge is not None:
            endpoint_of(judge.endpoint)


def _say_questions(questions: Mapping[str, Mapping[str, Questions]], console: Console, name: str) -> None:
    for role, asked in questions.items():
        sets = ", ".join(f"{split} ({len(of.examples)} questions)" for split, of in asked.items())
        console.print(f"{name}: {role} is evaluated on {sets}", soft_wrap=True)
