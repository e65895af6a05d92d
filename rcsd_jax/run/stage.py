"""One stage of a run, top to bottom: model, data, rubrics, state, evaluation, training, export, evaluation.

What a stage resumes from, in this order:
  1. `summary.json`: the stage is complete; it is read and nothing is done again, unless `rcsd_jax.run.starts` says so.
  2. the newest whole checkpoint: state, and the step from which data and random keys follow.
  3. `rubrics.jsonl`: rubrics already written.
  4. nothing: the checkpoint that the config names.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping
from typing import Any

import jax
from ml_collections import ConfigDict

from rcsd_jax.evaluate.questions import Questions
from rcsd_jax.host import multihost
from rcsd_jax.host.console import Console, say_once
from rcsd_jax.host.files import AnyPath, as_path, write_json
from rcsd_jax.host.metrics import compilations
from rcsd_jax.host.preemption import StopRequest
from rcsd_jax.methods.networks import BASE
from rcsd_jax.methods.state import TrainState
from rcsd_jax.models import sharding
from rcsd_jax.roles.opened_model import load_weights
from rcsd_jax.roles.own_teacher import weights_digest
from rcsd_jax.run import provenance, starts, training_state
from rcsd_jax.run.advice import advice
from rcsd_jax.run.checkpoints import Checkpoints
from rcsd_jax.run.environment import Run
from rcsd_jax.run.evaluation import evaluate_role
from rcsd_jax.run.export import export
from rcsd_jax.run.frozen_weights import load_teachers, quantized
from rcsd_jax.run.inputs import open_inputs, prepared
from rcsd_jax.run.judge import judges_of
from rcsd_jax.run.loop import train_loop
from rcsd_jax.run.quantization_divergence import described, divergences
from rcsd_jax.run.recipe import frozen_name
from rcsd_jax.run.rows import AT_START
from rcsd_jax.run.tracking import scores, tracked
from rcsd_jax.run.workdir import claimed, from_main_if_written
from rcsd_jax.sampling.sampler import Sampler
from rcsd_jax.settings import keys
from rcsd_jax.settings.unpack import unpack


def run_stage(
    given: ConfigDict, workdir: AnyPath, console: Console, stop: StopRequest, *, name: str = ""
) -> dict[str, Any]:
    """Runs or continues a stage and returns its summary (what `summary.json` holds).

    Raises:
      UserError: bad input or settings. Preempted: SIGTERM or Ctrl-C; the state is saved.
    """
    config, workdir = unpack(given, name=name), as_path(workdir)
    name = name or "run"
    mesh = sharding.make_mesh(**config.mesh)
    with claimed(workdir, given.to_dict()) as changed, jax.set_mesh(mesh), contextlib.ExitStack() as closing:
        if not changed and (summary := from_main_if_written(workdir / "summary.json")) is not None:
            console.print(f"{name}: complete, see {workdir}", soft_wrap=True)
            return summary
        if multihost.is_main():
            provenance.record(workdir)
        run = Run(config, workdir, mesh, console, stop, name)
        if config.graded_by_judge:
            run = run._replace(judges=closing.enter_context(judges_of(run)))

        # Everything that can be wrong with the input is found before weights are read, and hours before they are used.
        console.print(f"{name}: reading model {config.model.path} and data {config.data.path}", soft_wrap=True)
        model, teachers, questions, examples = open_inputs(config, mesh, say=say_once(console))
        graded_as = {e.id: e for e in examples}
        rows, rubric_counts = prepared(examples, model, run, teachers)
        if config.train.epochs:
            told = f"{config.train.epochs:g} epochs of {rows.fitting} rows"
            config = config.with_steps(rows.fitting)
            run = run._replace(config=config)
            console.print(f"{name}: {told} are {config.train.steps} steps")

        for line in advice(config):
            console.print(f"{name}: {line}", soft_wrap=True)
        if changed:
            told = multihost.from_main(lambda: starts.apply(workdir, given.to_dict()))
            console.print(f"{name}: goes on with another config: {told}", soft_wrap=True)
        run = run._replace(track=closing.enter_context(tracked(run, keys.flat(given))))

        console.print(f"{name}: loading weights of {model.directory}", soft_wrap=True)
        params = load_weights(model, mesh)
        sampler = run.sampler(model, config.eval.batch_size)
        samplers = dict.fromkeys(("base", "teacher"), sampler.with_weights({"params": params}))
        training = training_state.setup(model, params, config, mesh, teachers)
        own = load_teachers(
            teachers, model, params, mesh, say=lambda line: console.print(f"{name}: {line}", soft_wrap=True)
        )
        for of, teacher in teachers.items():
            of_teacher = run.sampler(teacher.model, config.eval.batch_size)
            samplers["teacher"] = of_teacher.with_weights(own[frozen_name(of)])
        digests = {of: multihost.from_main(functools.partial(weights_digest, one)) for of, one in teachers.items()}
        training = training._replace(frozen=training.frozen | own, teachers=digests)

        def evaluated(label: str, asked: Mapping[str, Questions], by: Sampler, step: int) -> dict[str, Any]:
            found = evaluate_role(label, asked, model, by, run)
            run.track(step, scores("teacher" if label == "teacher" else "student", found))
            return found

        evaluation: dict[str, Any] = {
            role: evaluated(role, questions[role], samplers[role], 0)
            for role in ("base", "teacher")
            if role in questions
        }
        samplers = {}  # they hold weights

        checkpoints = Checkpoints(workdir / "checkpoints", keep=config.checkpoint.keep)

        def student(state: TrainState) -> Any:
            return training.recipe.roles.student.at(state, training.frozen).variables

        def evaluate_at(step: int, state: TrainState) -> None:
            asked = {s: questions["trained"][s] for s in config.eval.every_splits or questions["trained"]}
            evaluated(f"step_{step}", asked, sampler.with_weights(student(state)), step)

        fewer_bits = quantized(training.frozen, model, teachers, config, mesh)
        distances = divergences(training.frozen, fewer_bits, rows.first, model, teachers, config, mesh)
        if distances:
            console.print(f"{name}: quantized weights, {described(distances)}", soft_wrap=True)
        training = training._replace(frozen=training.frozen | fewer_bits)

        with contextlib.closing(checkpoints):
            state, start = training_state.begin(model, params, training, rows, checkpoints, run)
            params, own, fewer_bits = None, {}, {}  # what does not change lives on in `training.frozen`
            state = train_loop(state, start, training, model, rows, checkpoints, run, evaluate_at, graded_as)
        if len(rows.examples) > AT_START:
            console.print(f"{name}: of all rows looked at {rows.skipped} were skipped as too long")

        plainly = config.export.merged or "trained" in questions  # what is trained serves with the plain weights
        if config.model.quantization != "none" and config.lora.rank and plainly:
            plain = {"params": load_weights(model, mesh)}
            training = training._replace(frozen=training.frozen | {BASE: plain})
        console.print(f"{name}: writing the trained model to {workdir}", soft_wrap=True)
        paths = export(student(state), model, config, workdir)
        if "trained" in questions:
            trained = sampler.with_weights(student(state))
            evaluation["trained"] = evaluated("trained", questions["trained"], trained, config.train.steps)
        summary = {
            "task": config.task,
            "evaluation": evaluation,
            "rubrics": rubric_counts,
            "examples": len(rows.examples) - rows.left_out,
            "skipped": rows.skipped,
            "quantization": distances,
            "compilations": compilations(),
            "paths": paths | {"metrics": str(workdir / "metrics.jsonl"), "checkpoints": str(workdir / "checkpoints")},
        }
        if multihost.is_main():
            write_json(workdir / "summary.json", summary)
        return summary
