"""`--check`: reads a run's config, model and data as the run does, and stops. No weights are read and nothing is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ml_collections import ConfigDict

from rcsd_jax.data.examples import Example
from rcsd_jax.host.console import Console, say_once
from rcsd_jax.host.files import AnyPath, as_path
from rcsd_jax.models import sharding
from rcsd_jax.roles.opened_model import Model, open_unloaded
from rcsd_jax.run import preparation
from rcsd_jax.run.evaluate_model import questions_of
from rcsd_jax.run.inputs import check_positions, counted, open_inputs
from rcsd_jax.run.judge import endpoint_of
from rcsd_jax.run.rows import Rows
from rcsd_jax.settings import config as configs


def check_stage(config: ConfigDict, console: Console, name: str = "", *, earlier: Sequence[AnyPath] = ()) -> None:
    """Reads what a stage reads before weights, and says how much it is.

    Args:
      config: of the stage, with the paths that it names.
      console: where to.
      name: of the stage.
      earlier: folders of the stages before it. What they have still to write is not looked for.

    Raises:
      UserError: whatever the stage would raise before it reads weights.
    """
    name = name or "run"
    mesh = sharding.make_mesh(**config.mesh)
    waits = lambda path: any(path.startswith(f"{folder}/") for folder in earlier) and not as_path(path).exists()
    _check_judge(config)
    if waits(config.model.path):
        examples = preparation.read_examples(config, config.data.path, require=preparation.required_fields(config))
        later = f"their prompts are checked when {config.model.path} is written"
        console.print(f"{name}: {len(examples)} examples; {later}", soft_wrap=True)
        return
    model, questions, examples = open_inputs(config, mesh, say=say_once(console))
    examples, rubrics = _with_rubrics(examples, config, waits)
    rows = Rows(examples, model.tokenizer, config)
    if not rows.start(positions=model.decoder.config.max_position):
        raise preparation.nothing_fits(len(examples), config)
    check_positions(model, rows, config)
    console.print(f"{name}: model {config.model.path}; {counted(rows)}{rubrics}", soft_wrap=True)
    _say_questions(questions, console, name)


def check_evaluation(config: ConfigDict, console: Console) -> None:
    """The same of an evaluation without training.

    Raises:
      UserError: whatever it would raise before it reads weights.
    """
    _check_judge(config)
    model: Model = open_unloaded(config.model.path, config.model)
    questions = questions_of(config, model, sharding.make_mesh(**config.mesh), say=say_once(console))
    console.print(f"evaluate: model {config.model.path}", soft_wrap=True)
    _say_questions(questions, console, "evaluate")


def _with_rubrics(
    examples: list[Example], config: ConfigDict, waits: Callable[[str], bool]
) -> tuple[list[Example], str]:
    """The examples with rubrics, and what is to be said of those. Where a model will write them the generic one stands in."""
    if config.rubric.source != "written" or "rubric" not in config.teacher.fields:
        return preparation.with_rubric_variant(examples, config), ""
    writer = config.rubric.writer
    if not waits(writer):
        open_unloaded(writer, config.model)
    stand_in = config.copy_and_resolve_references()
    stand_in.rubric.source = "generic"
    return preparation.with_rubric_variant(examples, stand_in), f" (rubrics will be written by {writer})"


def _check_judge(config: ConfigDict) -> None:
    if not configs.graded_by_judge(config):
        return
    if config.judge.checkpoint:
        open_unloaded(config.judge.checkpoint, config.model)
    else:
        endpoint_of(config.judge)


def _say_questions(questions: Mapping[str, Mapping[str, preparation.Questions]], console: Console, name: str) -> None:
    for role, asked in questions.items():
        sets = ", ".join(f"{split} ({len(of.examples)} questions)" for split, of in asked.items())
        console.print(f"{name}: {role} is evaluated on {sets}", soft_wrap=True)
