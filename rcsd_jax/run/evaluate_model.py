"""Evaluates a model or an adapter without training, for `python -m rcsd_jax.evaluate`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import jax
from ml_collections import ConfigDict

from rcsd_jax.evaluate.questions import Questions, evaluation_questions
from rcsd_jax.host import multihost
from rcsd_jax.host.console import Console, say_once
from rcsd_jax.host.errors import UserError
from rcsd_jax.host.files import AnyPath, as_path, write_json
from rcsd_jax.host.preemption import StopRequest
from rcsd_jax.models import sharding
from rcsd_jax.models.placement import check_divisible
from rcsd_jax.roles.opened_model import Model, open_served
from rcsd_jax.run import provenance, starts
from rcsd_jax.run.environment import Run
from rcsd_jax.run.evaluation import check_budget, evaluate_role
from rcsd_jax.run.judge import judges_of
from rcsd_jax.run.workdir import claimed, from_main_if_written
from rcsd_jax.settings.stage import Settings
from rcsd_jax.settings.unpack import unpack


def evaluate_model(
    given: ConfigDict, workdir: AnyPath, console: Console, stop: StopRequest
) -> dict[str, dict[str, Any]]:
    """Evaluates `model.path`, a model or a LoRA adapter, in the roles of `eval.roles`; role -> split -> mode -> scores.

    Sets that are finished in `workdir` are not evaluated again.

    Raises:
      UserError: bad input or settings. Preempted: SIGTERM or Ctrl-C; sampled answers are kept.
    """
    config, workdir = unpack(given, trains=False), as_path(workdir)
    mesh = sharding.make_mesh(**config.mesh)
    with claimed(workdir, given.to_dict()) as changed, jax.set_mesh(mesh), contextlib.ExitStack() as closing:
        if not changed and (summary := from_main_if_written(workdir / "summary.json")) is not None:
            console.print(f"complete, see {workdir}", soft_wrap=True)
            return summary["evaluation"]
        if multihost.is_main():
            provenance.record(workdir)
        console.print(f"evaluate: reading model {config.model.path} and questions", soft_wrap=True)
        run = Run(config, workdir, mesh, console, stop, "evaluate")
        if config.graded_by_judge:
            run = run._replace(judges=closing.enter_context(judges_of(run)))
        model, _, load = open_served(config.model.path, config.model, mesh)
        questions = questions_of(config, model, mesh, say=say_once(console))
        if changed:
            told = multihost.from_main(lambda: starts.apply(workdir, given.to_dict()))
            console.print(f"goes on with another config: {told}", soft_wrap=True)
        console.print(f"evaluate: loading weights of {config.model.path}", soft_wrap=True)
        sampler = run.sampler(model, config.eval.batch_size).with_weights(load())
        evaluation = {role: evaluate_role(role, asked, model, sampler, run) for role, asked in questions.items()}
        if multihost.is_main():
            write_json(workdir / "summary.json", {"task": config.task, "evaluation": evaluation})
        return evaluation


def questions_of(
    config: Settings, model: Model, mesh: jax.sharding.Mesh, *, say: Callable[[str], None] = lambda line: None
) -> dict[str, dict[str, Questions]]:
    """Role -> split -> its questions, at least one. `say` is called with the questions left out.

    Raises:
      UserError: there are none, they cannot be read, or the mesh cannot divide a batch.
    """
    check_divisible(model.decoder.config, mesh, {"eval.batch_size": config.eval.batch_size})
    questions = evaluation_questions(
        config.eval, config.reading(), config.evaluation_encoding, config.limits, model.tokenizer, say=say
    )
    if not questions:
        remedy = "set eval.benchmarks, or eval.grader and eval.path, and eval.roles"
        raise UserError("nothing to evaluate", field="eval.benchmarks", remedy=remedy)
    check_budget(questions, model, config)
    if "base" in questions:
        questions.pop("trained", None)  # nothing was trained, so they would be the same
    return questions
