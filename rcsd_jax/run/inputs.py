"""Reads a stage's inputs before its weights: the model's configuration, the questions of its evaluations, and its rows."""

from __future__ import annotations

import collections
from collections.abc import Callable

import jax

from rcsd_jax.data import sources
from rcsd_jax.data.examples import Example
from rcsd_jax.data.other_rows import with_other_rows
from rcsd_jax.data.rubrics_of_rows import with_rubrics
from rcsd_jax.evaluate.graders import check_rows
from rcsd_jax.evaluate.questions import Questions, evaluation_questions
from rcsd_jax.host.errors import UserError
from rcsd_jax.models import sharding
from rcsd_jax.models.placement import check_divisible
from rcsd_jax.roles.encode import say_where_system_turns_go
from rcsd_jax.roles.opened_model import Model, open_model
from rcsd_jax.roles.own_teacher import Teachers, open_teachers, teacher_of
from rcsd_jax.run import endpoint_teacher, recipe
from rcsd_jax.run.environment import Run
from rcsd_jax.run.evaluation import check_budget
from rcsd_jax.run.rows import AT_START, Rows
from rcsd_jax.run.rubrics import rubric_writer, tell_rubrics
from rcsd_jax.settings.stage import Settings


def open_inputs(
    config: Settings, mesh: jax.sharding.Mesh, *, say: Callable[[str], None] = lambda line: None
) -> tuple[Model, Teachers, dict[str, dict[str, Questions]], list[Example]]:
    """The model and teachers that are other models, without their weights, role -> split -> questions of evaluation, and the examples to learn from.

    `say` is called with what was read from which columns and left out, with columns that are not read, and if the chat template
    refuses system turns.

    Raises:
      UserError: one of them cannot be read or used, or the mesh cannot divide a batch.
    """
    model = open_model(config.model.path, config.model, lora_rank=config.lora.rank, lora_alpha=config.lora.alpha)
    split_rows = config.train.split_rows
    quantization = config.model.quantization
    check_divisible(model.decoder.config, mesh, _batch_sizes(config), split_rows=split_rows, quantization=quantization)
    _check_queue(config, mesh)
    quantization = config.teacher.quantization
    teachers = open_teachers(
        config.teacher.own, config.model, model, mesh, split_rows=split_rows, quantization=quantization
    )
    for name, one in teachers.items():
        if one.model.tokenizer.chat_template != model.tokenizer.chat_template:
            whose = f"the teacher {name}'s" if name else "the teacher's"
            say(f"{whose} chat template differs from the student's, which its prompts have")
    if config.teacher_weights == "endpoint":
        endpoint_teacher.endpoint_of(config, model.decoder.config.vocab_size)  # for its errors
    reading = config.reading(require=config.required_fields, say=say, tell=lambda account: say(account.line()))
    recipe.rollout_options(config, model)  # for its errors
    asked_as = config.evaluation_encoding, config.limits, model.tokenizer
    questions = evaluation_questions(config.eval, reading, *asked_as, say=say)
    check_budget(questions, model, config)
    examples = sources.read_as(config.data.path, reading)
    check_rows(config.reward.grader, examples)
    if config.teacher.paths:
        for example in examples:
            teacher_of(example, config.teacher)  # for its errors
    say_where_system_turns_go(examples, model.tokenizer, config.encoding, say)
    return model, teachers, questions, examples


def prepared(examples: list[Example], model: Model, run: Run, teachers: Teachers) -> tuple[Rows, dict[str, int]]:
    """The rows with the teacher's rubrics, as far as a run must know them before it starts; and counts of the outcomes of
    rubrics that a model wrote.

    Raises:
      UserError: a row cannot be used, or no row can.
    """
    config, counts = run.config, collections.Counter[str]()
    if config.teacher.further == "other_row":
        examples = with_other_rows(examples, seed=config.seed)
    positions = positions_of(model, teachers)
    if config.writes_rubrics:
        rows = Rows(examples, model.tokenizer, config)
        with rubric_writer(run, counts) as give_rubrics:
            some_fit = rows.start(positions=positions, give_rubrics=give_rubrics)
        tell_rubrics(counts, run, none_left=not some_fit and not rows.skipped)
    else:
        examples = with_rubrics(examples, config.rubric, generic=config.generic_rubric, seed=config.seed)
        rows = Rows(examples, model.tokenizer, config)
        some_fit = rows.start(positions=positions)
    if not some_fit:
        raise config.limits.nothing_fits(len(examples))
    run.console.print(f"{run.name}: {counted(rows)}")
    check_positions(positions, rows, config)
    return rows, dict(counts)


def positions_of(model: Model, teachers: Teachers) -> int:
    """The number of positions that the models of both roles support."""
    models = [model, *(one.model for one in teachers.values())]
    return min(one.decoder.config.max_position for one in models)


def counted(rows: Rows) -> str:
    """The number of rows to learn from, in words, as far as they were read."""
    looked_at = f"{rows.skipped} skipped as too long"
    if len(rows.examples) > AT_START:
        looked_at = f"{rows.skipped} of those looked at so far skipped as too long, the others are looked at when used"
    sources = collections.Counter(example.source for example in rows.examples)
    mixture = f" of {', '.join(f'{name} ({n})' for name, n in sources.items())}" if len(sources) > 1 else ""
    return f"{len(rows.examples) - rows.left_out} examples{mixture}, {looked_at}"


def check_positions(positions: int, rows: Rows, config: Settings) -> None:
    """Raises UserError if the longest row exceeds the positions that the models support."""
    analysis = config.teacher.reason_tokens + len(rows.first.transition)
    found = rows.longest()
    longest = max(found.student, found.teacher + analysis) + config.sampling.max_new_tokens
    if longest > positions:
        raise UserError(
            f"the longest prompt and completion take {longest} tokens, more than the model's {positions} positions",
            field="sampling.max_new_tokens",
            value=config.sampling.max_new_tokens,
            remedy="lower it, data.max_student_prompt or data.max_teacher_prompt",
        )


def _check_queue(config: Settings, mesh: jax.sharding.Mesh) -> None:
    """Raises UserError if the prompts of a rollout go through a queue whose shards do not divide them."""
    prompts, shards = config.questions_per_rollout, sharding.row_shards("sampling", mesh)
    queued = config.sampling.slots or config.train.batches_per_rollout > 1
    if queued and prompts % shards:
        raise UserError(
            f"the mesh samples in {shards} shards, which do not divide the {prompts} questions of a rollout",
            field="train.batches_per_rollout",
            value=config.train.batches_per_rollout,
            remedy="raise it or train.batch_size, or lower mesh.data",
        )


def _batch_sizes(config: Settings) -> dict[str, int]:
    """Config key -> rows that the mesh must divide."""
    sizes = {"train.batch_size / train.microbatches": config.train.batch_size // config.train.microbatches}
    if config.sampling.slots:
        sizes["sampling.slots"] = config.sampling.slots
    if config.eval.grader or config.eval.asked:
        sizes["eval.batch_size"] = config.eval.batch_size
    if config.writes_rubrics:
        sizes["rubric.batch_size"] = config.rubric.batch_size
    return sizes
