"""One stage of a run, top to bottom: model, data, rubrics, state, evaluation, training, export, evaluation.

What a stage resumes from, in this order:
  1. `summary.json`: the stage is complete; it is read and nothing is done again.
  2. the newest whole checkpoint: state, and the step from which data and random keys follow.
  3. `rubrics.jsonl`: rubrics already written.
  4. nothing: the checkpoint that the config names.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import rich.console
from ml_collections import ConfigDict

from rcsd_jax import contexts, preparation, train
from rcsd_jax.checkpoints import Checkpoints
from rcsd_jax.completions import complete
from rcsd_jax.contexts import Role
from rcsd_jax.data.batches import batches
from rcsd_jax.errors import UserError
from rcsd_jax.evaluate.graders import GRADERS
from rcsd_jax.evaluate.table import evaluate
from rcsd_jax.methods.self_distillation import Batch, Options
from rcsd_jax.metrics import MetricWriter, Progress, compilations
from rcsd_jax.models import huggingface, lora, sharding
from rcsd_jax.models.decoder import Decoder
from rcsd_jax.preemption import StopRequest
from rcsd_jax.rubric_writing import write_rubrics
from rcsd_jax.rubrics.cache import RubricCache
from rcsd_jax.rubrics.schema import to_json
from rcsd_jax.sampling import SamplingConfig
from rcsd_jax.workdir import claimed, read_json, write_json, write_text


class Model(NamedTuple):
    """A checkpoint on the mesh, with its tokenizer."""

    decoder: Decoder
    params: Any
    tokenizer: Any
    eos_ids: tuple[int, ...]
    pad_id: int
    directory: Path


class Run(NamedTuple):
    """Where and how a stage runs: what every part of it needs to know."""

    config: ConfigDict
    workdir: Path
    mesh: jax.sharding.Mesh
    console: rich.console.Console
    stop: StopRequest
    name: str


def run_stage(config: ConfigDict, workdir: Path, console: rich.console.Console, *, name: str = "") -> dict[str, Any]:
    """Runs or continues a stage and returns its summary (what `summary.json` holds).

    Raises:
      UserError: bad input or settings. Preempted: SIGTERM or Ctrl-C; the state is saved.
    """
    name = name or "run"
    mesh = sharding.make_mesh(**config.mesh)
    with claimed(workdir, config), jax.set_mesh(mesh), StopRequest() as stop:
        if (workdir / "summary.json").exists():
            console.print(f"{name}: complete, see {workdir}")
            return read_json(workdir / "summary.json")
        run = Run(config, workdir, mesh, console, stop, name)

        # Everything that can be wrong with the input is found before weights are read, and hours before they are used.
        model = open_model(config.model.path, config, lora_rank=config.lora.rank, lora_alpha=config.lora.alpha)
        sharding.check_divisible(model.decoder.config, mesh, config.train.batch_size // config.train.microbatches)
        questions = evaluation_questions(model, config)
        examples = preparation.read_examples(config, config.data.path, require=preparation.required_fields(config))
        examples, rubric_counts = rubrics_for(examples, run)
        data = preparation.encode(examples, model.tokenizer, config)
        console.print(f"{name}: {len(data.examples)} examples, {data.skipped} skipped as too long")

        model = load_weights(model, config, mesh)
        evaluation = {
            role: evaluate_role(role, questions[role], model, {"params": model.params}, run)
            for role in ("base", "teacher")
            if role in questions
        }

        state, frozen, optimizer, rate, shardings = init(model, config, mesh)
        model = model._replace(params=None)  # from here on the state holds the weights

        def student(state):
            return train.student_variables(state.trained, frozen, lora=bool(config.lora.rank))

        def evaluate_at(step, state):
            evaluate_role(f"step_{step}", questions["trained"], model, student(state), run)

        state = train_loop(state, frozen, optimizer, rate, shardings, model, data, run, evaluate_at)

        paths = export(student(state), model, config, workdir)
        if "trained" in questions:
            evaluation["trained"] = evaluate_role("trained", questions["trained"], model, student(state), run)
        summary = {
            "task": config.task,
            "evaluation": evaluation,
            "rubrics": rubric_counts,
            "examples": len(data.examples),
            "skipped": data.skipped,
            "compilations": compilations(),
            "paths": paths | {"metrics": str(workdir / "metrics.jsonl"), "checkpoints": str(workdir / "checkpoints")},
        }
        if jax.process_index() == 0:
            write_json(workdir / "summary.json", summary)
        return summary


# --- model -----------------------------------------------------------------------------------------------------------


def open_model(path: str, config: ConfigDict, *, lora_rank: int = 0, lora_alpha: float = 1.0) -> Model:
    """A Hugging Face directory's configuration and tokenizer; `params` is None until `load_weights`."""
    directory = huggingface.resolve(path)
    decoder_config = huggingface.read_config(directory, **_precision(config))
    if lora_rank:
        decoder_config = dataclasses.replace(decoder_config, lora_scale=lora.lora_scale(lora_rank, lora_alpha))
    tokenizer = huggingface.load_tokenizer(directory)
    eos_ids = huggingface.eos_ids(directory, tokenizer)
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else eos_ids[0]
    return Model(Decoder(decoder_config), None, tokenizer, eos_ids, pad_id, directory)


def load_weights(model: Model, config: ConfigDict, mesh: jax.sharding.Mesh) -> Model:
    """The model with its weights read onto the mesh."""
    placement = sharding.param_shardings(model.decoder.config, mesh)
    _, params = huggingface.load(model.directory, shardings=placement, **_precision(config))
    return model._replace(params=params)


def _precision(config: ConfigDict) -> dict[str, Any]:
    settings = config.model
    return dict(dtype=jnp.dtype(settings.dtype), param_dtype=jnp.dtype(settings.param_dtype), remat=settings.remat)


def init(model: Model, config: ConfigDict, mesh: jax.sharding.Mesh):
    """The state before the first step, the frozen weights (or None), the optimizer and the state's shardings."""
    decoder_config = model.decoder.config
    ema, full = config.teacher.weights == "ema", config.lora.rank == 0
    optimizer, rate = train.make_optimizer(steps=config.train.steps, **config.optimizer)
    if full:
        placement = sharding.param_shardings(decoder_config, mesh)
        # In float32, whatever the storage: an update of 5e-6 is less than bfloat16 resolves. And copied, because the
        # step donates its state, which must not share buffers with a fixed teacher's weights.
        trained = jax.tree.map(lambda x: jnp.array(x, jnp.float32, copy=True), model.params)
        frozen = model.params if config.teacher.weights == "fixed" else None
    else:
        key = jax.random.fold_in(jax.random.key(config.seed), 1)
        trained = lora.init_lora(
            decoder_config, key, rank=config.lora.rank, alpha=config.lora.alpha, targets=tuple(config.lora.targets)
        )
        placement = sharding.lora_shardings(decoder_config, mesh, trained)
        frozen = model.params
    make = functools.partial(train.init_state, optimizer=optimizer, ema=ema)
    abstract = jax.eval_shape(make, trained)
    replicated = sharding.replicated(mesh)
    opt_placement = optax.tree_map_params(
        optimizer, lambda _, s: s, abstract.opt_state, placement, transform_non_params=lambda _: replicated
    )
    shardings = train.TrainState(replicated, placement, opt_placement, placement if ema else None)
    state = jax.jit(make, out_shardings=shardings, donate_argnums=(0,) if full else ())(trained)
    return state, frozen, optimizer, rate, shardings


# --- rubrics ---------------------------------------------------------------------------------------------------------


def rubrics_for(examples, run: Run) -> tuple[list, dict[str, int]]:
    """The examples with the rubrics that the teacher sees: from the rows, a variant of them, or written by a model."""
    config = run.config
    if config.rubric.source != "written" or "rubric" not in config.teacher.fields:
        return preparation.with_rubric_variant(examples, config), {}
    settings = config.rubric
    writer = open_model(settings.writer, config)
    load = functools.cache(lambda: load_weights(writer, config, run.mesh).params)  # not where every text is cached
    role = Role(tuple(settings.writer_fields), settings.writer_thinking)
    prompts = preparation.prompts_of(config)
    encoded = [contexts.encode_role(writer.tokenizer, e, role, prompts, "write_rubric") for e in examples]
    kept = [i for i, e in enumerate(examples) if preparation.fits(e, encoded[i], config, role="rubric writer")]
    too_long = len(examples) - len(kept)
    examples, encoded = [examples[i] for i in kept], [encoded[i] for i in kept]
    sampling = _sampling(settings, writer.eos_ids)
    with Progress(run.console, "write rubrics", 0) as progress:

        def write(wanted, seeds):
            if not wanted:
                return
            progress.extend(len(wanted))
            complete_all = completer(writer, {"params": load()}, sampling, settings.batch_size, run)
            for chosen, completions in complete_all(wanted, seeds):
                yield chosen, completions
                progress.advance(len(chosen), sum(len(c.tokens) for c in completions))

        examples, counts = write_rubrics(
            examples,
            encoded,
            write=write,
            decode=_decoder_of(writer),
            cache=RubricCache(run.workdir / "rubrics.jsonl"),
            checkpoint=huggingface.digest(writer.directory),
            settings=dataclasses.asdict(sampling),
            resample=settings.resample,
            fallback=preparation.fallback_rubric(config) if settings.on_reject == "generic" else None,
            min_criteria=settings.min_criteria,
            max_criteria=settings.max_criteria,
            seed=config.seed,
        )
    counts |= {"too_long": too_long}
    run.console.print(f"rubrics: {counts}")
    return examples, counts


def _rubrics_digest(examples) -> str:
    texts = [[e.id, None if e.rubric is None else to_json(e.rubric)] for e in examples]
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:16]


# --- training --------------------------------------------------------------------------------------------------------


def train_loop(state, frozen, optimizer, rate, shardings, model: Model, data, run: Run, evaluate_at):
    """Trains from the newest checkpoint (or the given state) to the last step; returns the last state."""
    config, workdir = run.config, run.workdir
    steps, settings = config.train.steps, config.checkpoint
    checkpoints = Checkpoints(workdir / "checkpoints", keep=settings.keep)
    position = {"seed": config.seed, "rubrics": _rubrics_digest(data.examples), "rubric_cache": "rubrics.jsonl"}
    start = checkpoints.latest_step() or 0
    if start:
        state, saved = checkpoints.restore(start, state)
        if saved["rubrics"] != position["rubrics"]:
            raise UserError(
                "the rubrics or the data changed since the last checkpoint",
                file=workdir / "rubrics.jsonl",
                remedy="restore the file, or start anew with another --workdir",
            )
        run.console.print(f"{run.name}: continuing at step {start}")
    step_fn = train.jit_train_step(
        shardings,
        decoder=model.decoder,
        optimizer=optimizer,
        options=options_of(config, model),
        teacher=config.teacher.weights,
        lora=bool(config.lora.rank),
        ema_decay=config.teacher.ema_decay,
        microbatches=config.train.microbatches,
    )
    order = batches(
        list(range(len(data.examples))),
        batch_size=config.train.batch_size,
        seed=config.seed,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    writer = MetricWriter(workdir, first_step=start)
    try:
        with Progress(run.console, f"{run.name}: train", steps, done=start) as progress:
            for step in range(start, steps):
                began = time.monotonic()
                rows = order[step]
                batch = sharding.to_mesh(make_batch(rows, data, config, model.pad_id), run.mesh)
                state, metrics, _ = step_fn(state, frozen, batch, np.uint32(config.seed))
                scalars = _scalars(metrics, rate(step), time.monotonic() - began)
                _stop_if_not_finite(step, rows, metrics, state, data, checkpoints, position)
                if step % config.train.log_every == 0 or step == steps - 1:
                    writer.write(step, scalars)
                progress.advance(1, int(scalars["completion_tokens"]), f"loss {scalars['loss']:.4f}")
                stopping = run.stop.is_set()  # read once: what is saved and whether to go on must agree
                evaluating = config.eval.every and (step + 1) % config.eval.every == 0 and step + 1 < steps
                if (step + 1) % settings.every == 0 or step == steps - 1 or stopping or evaluating:
                    checkpoints.save(step + 1, state, position | {"data_position": step + 1})
                if stopping:
                    checkpoints.wait()
                    run.stop.raise_if_set(f"saved at step {step + 1} of {steps}")
                if evaluating:
                    evaluate_at(step + 1, state)
    finally:
        checkpoints.close()
        writer.close()
    return state


def options_of(config: ConfigDict, model: Model) -> Options:
    """The step's static choices from the config."""
    divergence = {
        k: v for k, v in config.loss.items() if k not in ("chunk_size", "importance_clip", "mask_cut", "skip_first")
    }
    return Options(
        sampling=_sampling(config.sampling, model.eos_ids),
        divergence=tuple(sorted(divergence.items())),
        temperature=config.sampling.temperature or 1.0,
        chunk_size=config.loss.chunk_size,
        reason_tokens=config.teacher.reason_tokens,
        importance_clip=config.loss.importance_clip,
        mask_cut=config.loss.mask_cut,
        skip_first=config.loss.skip_first,
        pad_id=model.pad_id,
    )


def make_batch(rows: list[int], data: preparation.Encoded, config: ConfigDict, pad_id: int) -> Batch:
    """This process's rows of a global batch, padded to lengths of which a run has few."""
    local = len(rows)
    first = jax.process_index() * local
    student, teacher = [data.student[i] for i in rows], [data.teacher[i] for i in rows]
    return Batch(
        np.arange(first, first + local, dtype=np.int32),
        *contexts.pad_left(student, _padded_length(student, data.student, config.data.pad_to), pad_id),
        *contexts.pad_left(teacher, _padded_length(teacher, data.teacher, config.data.pad_to), pad_id),
        np.tile(data.transition, (local, 1)),
    )


def _padded_length(rows, everything, pad_to: int) -> int:
    # Processes see different rows but must agree on shapes, so with several of them the data's longest prompt decides.
    longest = max(len(row) for row in (rows if jax.process_count() == 1 else everything))
    return -(-longest // pad_to) * pad_to


def _scalars(metrics: dict[str, jax.Array], rate: Any, seconds: float) -> dict[str, float]:
    scalars = {k: float(v) for k, v in metrics.items() if k not in ("row_loss", "finite")}
    return scalars | {
        "learning_rate": float(rate),
        "step_seconds": seconds,
        "tokens_per_second": scalars["completion_tokens"] / seconds,
        "compilations": compilations(),
    }


def _stop_if_not_finite(step: int, rows, metrics, state, data, checkpoints: Checkpoints, position) -> None:
    if bool(metrics["finite"]):
        return
    # The step kept the old state, so what is saved is the last good one; it stands for `step` updates.
    checkpoints.save(step, state, position | {"data_position": step})
    checkpoints.wait()
    row_loss = np.asarray(jax.device_get(metrics["row_loss"]))
    bad = [data.examples[i].origin for i, x in zip(rows, row_loss, strict=False) if not np.isfinite(x)]
    raise UserError(
        f"non-finite loss or gradient at step {step}; the state before it is saved; "
        f"offending rows: {', '.join(bad) or 'none alone, the gradient overflowed'}",
        field="loss",
        value=float(metrics["loss"]),
        remedy="lower optimizer.learning_rate, or take the rows out",
    )


# --- evaluation and export -------------------------------------------------------------------------------------------


def evaluation_questions(model: Model, config: ConfigDict) -> dict[str, dict[str, preparation.Questions]]:
    """Role -> split -> the questions that it will be asked; empty without a grader."""
    if not config.eval.grader:
        return {}
    return preparation.evaluation_questions(config, model.tokenizer, GRADERS[config.eval.grader].needs)


def evaluate_role(
    label: str, questions: dict[str, preparation.Questions], model: Model, variables: Any, run: Run
) -> dict[str, Any]:
    """Split -> mode -> scores, kept in `evaluation_<label>.json`; texts go to `completions_<label>.jsonl`."""
    config, workdir = run.config, run.workdir
    path = workdir / f"evaluation_{label}.json"
    if path.exists():
        return read_json(path)
    results: dict[str, Any] = {}
    lines = []
    for split, asked in questions.items():
        for greedy in config.eval.greedy:
            temperature = 0.0 if greedy else config.eval.temperature
            sampling = _sampling(config.sampling, model.eos_ids, temperature=temperature)
            scores, records = evaluate(
                asked.examples,
                asked.prompts,
                complete=completer(model, variables, sampling, config.eval.batch_size, run),
                decode=_decoder_of(model),
                grade=GRADERS[config.eval.grader].grade,
            )
            mode = "greedy" if greedy else "sampled"
            results.setdefault(split, {})[mode] = scores
            lines += [json.dumps({"split": split, "mode": mode, **r}, ensure_ascii=False) for r in records]
    run.console.print(f"evaluated {label.replace('_', ' ')}")
    if jax.process_index() == 0:
        write_text(workdir / f"completions_{label}.jsonl", "\n".join(lines) + "\n")
        write_json(path, results)
    return results


def export(variables, model: Model, config: ConfigDict, workdir: Path) -> dict[str, str]:
    """Writes the trained model as a Hugging Face directory, and under LoRA also as a PEFT adapter; returns the paths."""
    paths, decoder_config = {}, model.decoder.config
    params, adapters = variables["params"], variables.get("lora")
    if adapters is not None and config.export.adapter:
        paths["adapter"] = str(workdir / "adapter")
        lora.save_peft(
            workdir / "adapter",
            decoder_config,
            adapters,
            rank=config.lora.rank,
            alpha=config.lora.alpha,
            targets=tuple(config.lora.targets),
            base_path=str(model.directory),
        )
    if adapters is None or config.export.merged:
        paths["export"] = str(workdir / "export")
        if adapters is not None:
            params = lora.merge(params, adapters, decoder_config.lora_scale)
        params = jax.tree.map(lambda x: x.astype(decoder_config.param_dtype), params)
        huggingface.save(workdir / "export", decoder_config, params, source=model.directory)
    return paths


# --- small things ----------------------------------------------------------------------------------------------------


def _sampling(settings: ConfigDict, eos_ids: tuple[int, ...], temperature: float | None = None) -> SamplingConfig:
    return SamplingConfig(
        max_new_tokens=settings.max_new_tokens,
        temperature=settings.temperature if temperature is None else temperature,
        top_k=settings.top_k or None,
        top_p=settings.top_p if settings.top_p < 1.0 else None,
        eos_ids=eos_ids,
    )


def completer(model: Model, variables: Any, sampling: SamplingConfig, batch_size: int, run: Run):
    """(prompts, seeds) -> batches of (indexes, completions), with everything else bound; ends when the run is stopped."""

    def complete_all(prompts, seeds):
        bound = dict(mesh=run.mesh, batch_size=batch_size, pad_to=run.config.data.pad_to, pad_id=model.pad_id)
        for batch in complete(model.decoder, variables, prompts, seeds, sampling, **bound):
            yield batch
            run.stop.raise_if_set("between two batches of completions; results so far are kept")

    return complete_all


def _decoder_of(model: Model):
    return functools.partial(model.tokenizer.decode, skip_special_tokens=True)
