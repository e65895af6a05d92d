"""One stage of a run, top to bottom: model, data, rubrics, state, evaluation, training, export, evaluation.

What a stage resumes from, in this order:
  1. `summary.json`: the stage is complete; it is read and nothing is done again, unless `rcsd_jax.run.starts` says so.
  2. the newest whole checkpoint: state, and the step from which data and random keys follow.
  3. `rubrics.jsonl`: rubrics already written.
  4. nothing: the checkpoint that the config names.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from rcsd_jax.checkpoints import saving
from rcsd_jax.checkpoints.peft import save_peft
from rcsd_jax.data.examples import Example
from rcsd_jax.host import multihost
from rcsd_jax.host.console import Console
from rcsd_jax.host.errors import UserError
from rcsd_jax.host.files import AnyPath, as_path, is_remote, write_json
from rcsd_jax.host.metrics import Progress, compilations
from rcsd_jax.host.preemption import StopRequest
from rcsd_jax.methods import train
from rcsd_jax.models import lora, quantization, sharding
from rcsd_jax.models.placement import check_divisible
from rcsd_jax.roles import contexts
from rcsd_jax.roles.contexts import Role
from rcsd_jax.rubrics.cache import RubricCache
from rcsd_jax.run import loop, preparation, provenance, starts
from rcsd_jax.run.checkpoints import Checkpoints
from rcsd_jax.run.evaluate_role import evaluate_role
from rcsd_jax.run.int8_divergence import int8_divergence
from rcsd_jax.run.judged import judge_of
from rcsd_jax.run.rows import AT_START, GiveRubrics, Rows
from rcsd_jax.run.rubric_writing import write_rubrics
from rcsd_jax.run.running import Model, Run, completer, load_weights, open_model, open_served, sampling_of, say_once
from rcsd_jax.run.workdir import claimed, from_main_if_written
from rcsd_jax.sampling.many import Completion
from rcsd_jax.settings import config as configs


def run_stage(
    config: ConfigDict, workdir: AnyPath, console: Console, stop: StopRequest, *, name: str = ""
) -> dict[str, Any]:
    """Runs or continues a stage and returns its summary (what `summary.json` holds).

    Raises:
      UserError: bad input or settings. Preempted: SIGTERM or Ctrl-C; the state is saved.
    """
    name, workdir = name or "run", as_path(workdir)
    mesh = sharding.make_mesh(**config.mesh)
    with claimed(workdir, config) as changed, jax.set_mesh(mesh), contextlib.ExitStack() as closing:
        if not changed and (summary := from_main_if_written(workdir / "summary.json")) is not None:
            console.print(f"{name}: complete, see {workdir}", soft_wrap=True)
            return summary
        if multihost.is_main():
            provenance.record(workdir)
        run = Run(config, workdir, mesh, console, stop, name)
        if configs.graded_by_judge(config):
            run = run._replace(judge=closing.enter_context(judge_of(run)))

        # Everything that can be wrong with the input is found before weights are read, and hours before they are used.
        console.print(f"{name}: reading model {config.model.path} and data {config.data.path}", soft_wrap=True)
        model, questions, examples = open_inputs(config, mesh, say=say_once(console))
        graded_as = {e.id: e for e in examples}
        rows, rubric_counts = prepared(examples, model, run)

        if changed:
            told = multihost.from_main(lambda: starts.apply(workdir, config))
            console.print(f"{name}: goes on with another config: {told}", soft_wrap=True)

        console.print(f"{name}: loading weights of {model.directory}", soft_wrap=True)
        params = load_weights(model, config, mesh)
        evaluation: dict[str, Any] = {
            role: evaluate_role(role, questions[role], model, {"params": params}, run)
            for role in ("base", "teacher")
            if role in questions
        }

        training = loop.setup(model, params, config, mesh)
        checkpoints = Checkpoints(workdir / "checkpoints", keep=config.checkpoint.keep)

        def student(trained: Any) -> Any:
            return train.student_variables(trained, training.frozen, lora=bool(config.lora.rank))

        def evaluate_at(step: int, trained: Any) -> None:
            asked = {s: questions["trained"][s] for s in config.eval.every_splits or questions["trained"]}
            evaluate_role(f"step_{step}", asked, model, student(trained), run)

        int8 = {}
        if config.model.int8_weights:
            frozen = quantization.on_mesh(model.decoder.config, params, mesh)
            int8 = int8_divergence(model, {"params": params}, {"params": frozen}, rows.first, config, mesh)
            console.print(f"{name}: int8 weights, {_described(int8)}", soft_wrap=True)
            training = training._replace(frozen=frozen)

        with contextlib.closing(checkpoints):
            state, start = loop.begin(model, params, training, rows, checkpoints, run)
            params = None  # what does not change lives on in `training.frozen`
            state = loop.train_loop(state, start, training, model, rows, checkpoints, run, evaluate_at, graded_as)
        if len(rows.examples) > AT_START:
            console.print(f"{name}: of all rows looked at {rows.skipped} were skipped as too long")

        plainly = config.export.merged or "trained" in questions  # what is trained serves with the plain weights
        if config.model.int8_weights and config.lora.rank and plainly:
            training = training._replace(frozen=load_weights(model, config, mesh))
        console.print(f"{name}: writing the trained model to {workdir}", soft_wrap=True)
        paths = export(student(state.trained), model, config, workdir)
        if "trained" in questions:
            evaluation["trained"] = evaluate_role("trained", questions["trained"], model, student(state.trained), run)
        summary = {
            "task": config.task,
            "evaluation": evaluation,
            "rubrics": rubric_counts,
            "examples": len(rows.examples) - rows.left_out,
            "skipped": rows.skipped,
            "int8_weights": int8,
            "compilations": compilations(),
            "paths": paths | {"metrics": str(workdir / "metrics.jsonl"), "checkpoints": str(workdir / "checkpoints")},
        }
        if multihost.is_main():
            write_json(workdir / "summary.json", summary)
        return summary


def open_inputs(
    config: ConfigDict, mesh: jax.sharding.Mesh, *, say: Callable[[str], None] = lambda line: None
) -> tuple[Model, dict[str, dict[str, preparation.Questions]], list[Example]]:
    """The model without its weights, role -> split -> questions of evaluation, and the examples to learn from.

    `say` is told what of them is not read.

    Raises:
      UserError: one of them cannot be read or used, or the mesh cannot share it out.
    """
    model = open_model(config.model.path, config, lora_rank=config.lora.rank, lora_alpha=config.lora.alpha)
    check_divisible(model.decoder.config, mesh, _batch_sizes(config))
    questions = preparation.evaluation_questions(config, model.tokenizer, say=say)
    require = preparation.required_fields(config)
    examples = preparation.read_examples(config, config.data.path, require=require, say=say)
    return model, questions, examples


def _described(int8: dict[str, dict[str, float]]) -> str:
    roles = (f"{role} {x['kl']:.2g} at an entropy of {x['entropy']:.2g}" for role, x in int8.items())
    return f"KL(plain || int8) in nats a token of the prompts: {', '.join(roles)}"


# --- rows ------------------------------------------------------------------------------------------------------------


def prepared(examples: list[Example], model: Model, run: Run) -> tuple[Rows, dict[str, int]]:
    """The rows with the rubrics that the teacher sees, as far as a run has to know them before it starts; and counts of
    what became of rubrics that a model wrote.

    Raises:
      UserError: a row that cannot be used, or none that can.
    """
    config, counts = run.config, collections.Counter[str]()
    give_rubrics = None
    if config.rubric.source == "written" and "rubric" in config.teacher.fields:
        give_rubrics = rubric_writer(run, counts)
    else:
        examples = preparation.with_rubric_variant(examples, config)
    rows = Rows(examples, model.tokenizer, config)
    some_fit = rows.start(positions=model.decoder.config.max_position, give_rubrics=give_rubrics)
    if give_rubrics:
        tell_rubrics(counts, run, none_left=not some_fit and not rows.skipped)
    if not some_fit:
        raise preparation.nothing_fits(len(examples), config)
    run.console.print(f"{run.name}: {counted(rows)}")
    check_positions(model, rows, config)
    return rows, dict(counts)


def counted(rows: Rows) -> str:
    """How many rows there are to learn from, in words, as far as they were looked at."""
    looked_at = f"{rows.skipped} skipped as too long"
    if len(rows.examples) > AT_START:
        looked_at = f"{rows.skipped} of those looked at so far skipped as too long, the others are looked at when used"
    return f"{len(rows.examples) - rows.left_out} examples, {looked_at}"


def check_positions(model: Model, rows: Rows, config: ConfigDict) -> None:
    """Raises UserError if the longest row goes beyond the positions that the model was made for."""
    analysis = config.teacher.reason_tokens + len(rows.first.transition)
    found = rows.longest()
    longest = max(found.student, found.teacher + analysis) + config.sampling.max_new_tokens
    limit = model.decoder.config.max_position
    if longest > limit:
        raise UserError(
            f"the longest prompt and completion take {longest} tokens, more than the model's {limit} positions",
            field="sampling.max_new_tokens",
            value=config.sampling.max_new_tokens,
            remedy="lower it, data.max_student_prompt or data.max_teacher_prompt",
        )


# --- rubrics ---------------------------------------------------------------------------------------------------------


def rubric_writer(run: Run, counts: collections.Counter[str]) -> GiveRubrics:
    """A function that has a model write rubrics for questions, and adds to `counts` what became of them."""
    config = run.config
    settings = config.rubric
    writer, digest, load = open_served(settings.writer, config, run.mesh)
    load = functools.cache(load)  # and never called where every text is cached
    role = Role(tuple(settings.writer_fields), settings.writer_thinking)
    texts = preparation.prompts_of(config)
    sampling = sampling_of(settings, writer)
    cache = open_cache(run.workdir / "rubrics.jsonl")

    def encoded(mine: Sequence[Example]) -> list[np.ndarray]:
        prompts = [contexts.role_text(writer.tokenizer, e, role, texts, "write_rubric") for e in mine]
        return contexts.encode_texts(writer.tokenizer, prompts)

    def give_rubrics(examples: list[Example]) -> list[Example]:
        prompts = multihost.shared_list(encoded, examples)
        asked = [
            (e, p)
            for e, p in zip(examples, prompts, strict=True)
            if preparation.fits(e, p, config, role="rubric writer")
        ]
        with Progress(run.console, "write rubrics", 0) as progress:

            def write(
                wanted: Sequence[np.ndarray], seeds: Sequence[int]
            ) -> Iterator[tuple[list[int], list[Completion]]]:
                if not wanted:
                    return
                progress.extend(len(wanted))
                complete_all = completer(writer, load(), sampling, settings.batch_size, run)
                for chosen, completions in complete_all(wanted, seeds):
                    yield chosen, completions
                    progress.advance(len(chosen), sum(len(c.tokens) for c in completions))

            written, more = write_rubrics(
                [e for e, _ in asked],
                [p for _, p in asked],
                write=write,
                decode=writer.decode,
                cache=cache,
                checkpoint=digest,
                settings=dataclasses.asdict(sampling),
                resample=settings.resample,
                fallback=preparation.fallback_rubric(config) if settings.on_reject == "generic" else None,
                min_criteria=settings.min_criteria,
                max_criteria=settings.max_criteria,
                seed=config.seed,
            )
        counts.update(more | {"too_long": len(examples) - len(asked)})
        return written

    return give_rubrics


def tell_rubrics(counts: Mapping[str, int], run: Run, *, none_left: bool) -> None:
    """Says what became of the rubrics that a model wrote.

    Raises:
      UserError: no question is left.
    """
    run.console.print(f"rubrics: {dict(counts)}")
    if counts.get("strict") or counts.get("salvaged"):
        return
    if none_left:
        raise UserError(
            f"no question is left: all {counts.get('rejected', 0)} texts that the writer wrote were rejected",
            file=run.workdir / "rubrics.jsonl",
            field="rubric.writer",
            value=run.config.rubric.writer,
            remedy="read the reasons there; take a better writer, or set rubric.on_reject=generic",
        )
    run.console.print("warning: not one text was a rubric; every question has the generic one")


def open_cache(path: AnyPath) -> RubricCache:
    """The rubrics written so far: process 0 keeps the file, the others what it holds."""
    mine = RubricCache(path if multihost.is_main() else None)
    held = multihost.from_main(mine.held)
    if not multihost.is_main():
        mine.put_many(held)
    return mine


# --- export -------------------------------------------------------------------------------------------


def export(variables: Mapping[str, Any], model: Model, config: ConfigDict, workdir: AnyPath) -> dict[str, str]:
    """Writes the trained model as a Hugging Face directory, and under LoRA also as a PEFT adapter; returns the paths."""
    paths, decoder_config = {}, model.decoder.config
    params, adapters = variables["params"], variables.get("lora")
    if adapters is not None and config.export.adapter:
        paths["adapter"] = str(workdir / "adapter")
        save_peft(
            workdir / "adapter",
            decoder_config,
            adapters,
            rank=config.lora.rank,
            alpha=config.lora.alpha,
            targets=tuple(config.lora.targets),
            base_path=config.model.path if is_remote(config.model.path) else str(model.directory),
        )
    if adapters is None or config.export.merged:
        paths["export"] = str(workdir / "export")
        dtype = jnp.dtype(config.export.dtype)
        if adapters is not None:
            params = lora.merge(params, adapters, decoder_config.lora_scale, dtype=dtype)
        saving.save_model(workdir / "export", decoder_config, params, source=model.directory, dtype=dtype)
    return paths


def _batch_sizes(config: ConfigDict) -> dict[str, int]:
    """Config key -> rows that the mesh has to share out."""
    sizes = {"train.batch_size / train.microbatches": config.train.batch_size // config.train.microbatches}
    if config.sampling.slots:
        sizes["sampling.slots"] = config.sampling.slots
    if config.eval.grader or configs.benchmarks_of(config):
        sizes["eval.batch_size"] = config.eval.batch_size
    if config.rubric.source == "written" and "rubric" in config.teacher.fields:
        sizes["rubric.batch_size"] = config.rubric.batch_size
    return sizes
