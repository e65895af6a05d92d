"""The training of a stage: from the newest checkpoint, or the first state, to the last step."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from rcsd_jax import losses
from rcsd_jax.data.examples import Example
from rcsd_jax.host.errors import UserError
from rcsd_jax.host.metrics import MetricWriter, Progress, compilations
from rcsd_jax.methods import train
from rcsd_jax.methods.rollout import Batch, Options, Without
from rcsd_jax.models import lora, sharding
from rcsd_jax.models.placement import lora_shardings, param_shardings
from rcsd_jax.roles import contexts
from rcsd_jax.roles.opened_model import Model, sampling_of
from rcsd_jax.run.checkpoints import Checkpoints
from rcsd_jax.run.environment import Run
from rcsd_jax.run.grading import graded
from rcsd_jax.run.preparation import Encoded
from rcsd_jax.run.rows import Rows
from rcsd_jax.settings import config as configs

_LORA_KEY = 2**32 - 1  # folded into the seed's key, as the steps are: no step has this number


class Setup(NamedTuple):
    """What training needs beside its state."""

    frozen: Any  # the weights that do not change: a LoRA's base, a fixed teacher; None where all change
    optimizer: optax.GradientTransformation
    rate: Callable[[Any], Any]  # step -> learning rate
    abstract: train.TrainState  # shapes, dtypes and shardings of the state


def setup(model: Model, params: Any, config: ConfigDict, mesh: jax.sharding.Mesh) -> Setup:
    """Everything but the state, which `first_state` makes or a checkpoint holds: a state is never held twice."""
    decoder_config = model.decoder.config
    optimizer, rate = train.make_optimizer(steps=config.train.steps, **config.optimizer)
    make = functools.partial(train.init_state, optimizer=optimizer, ema=configs.teacher_weights(config) == "ema")
    abstract_trained = jax.eval_shape(functools.partial(_first_trained, model, config=config), params)
    if config.lora.rank:
        placement = lora_shardings(decoder_config, mesh, abstract_trained)
    else:
        placement = param_shardings(decoder_config, mesh)
    abstract = jax.eval_shape(make, abstract_trained)
    everywhere = sharding.replicated(mesh)
    opt_placement = optax.tree_map_params(
        optimizer, lambda _, s: s, abstract.opt_state, placement, transform_non_params=lambda _: everywhere
    )
    of_ema = None if abstract.ema is None else placement
    shardings = train.TrainState(everywhere, placement, opt_placement, of_ema)  # type: ignore[arg-type]  # of shardings
    abstract = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, shardings)
    frozen = params if config.lora.rank or configs.teacher_weights(config) == "fixed" else None
    return Setup(frozen, optimizer, rate, abstract)


def first_state(model: Model, params: Any, config: ConfigDict, setup: Setup) -> train.TrainState:
    """The state before the first step, on the mesh."""
    trained = _first_trained(model, params, config=config)
    make = functools.partial(train.init_state, optimizer=setup.optimizer, ema=setup.abstract.ema is not None)
    shardings = jax.tree.map(lambda x: x.sharding, setup.abstract)
    return jax.jit(make, out_shardings=shardings, donate_argnums=() if config.lora.rank else (0,))(trained)


def _first_trained(model: Model, params: Any, *, config: ConfigDict) -> Any:
    if config.lora.rank:
        settings = config.lora
        key = jax.random.fold_in(jax.random.key(config.seed), _LORA_KEY)
        targets = tuple(settings.targets)
        return lora.init_lora(model.decoder.config, key, rank=settings.rank, alpha=settings.alpha, targets=targets)
    # In float32, whatever the storage: an update of 5e-6 is less than bfloat16 resolves. And copied, because the step
    # donates its state, which must not share buffers with a fixed teacher's weights.
    return jax.tree.map(lambda x: jnp.array(x, jnp.float32, copy=True), params)


class Start(NamedTuple):
    """Where training begins."""

    step: int
    place: int  # in the order of rows, see `rows.Rows.take`


def begin(
    model: Model, params: Any, setup: Setup, rows: Rows, checkpoints: Checkpoints, run: Run
) -> tuple[train.TrainState, Start]:
    """The state to begin with and where: at the newest intact checkpoint, or at the first step.

    Raises:
      UserError: not one checkpoint is intact, or it was trained with other prompts.
    """
    restored = checkpoints.restore_newest(setup.abstract)
    if restored is None:
        return first_state(model, params, run.config, setup), Start(0, 0)
    for folder, problem in restored.damaged:
        run.console.print(f"{run.name}: a damaged checkpoint ({problem}) was moved to {folder}", soft_wrap=True)
    if restored.position["data"] != rows.digest:
        raise UserError(
            "the prompts are not those that the last checkpoint was trained with: data, rubrics or templates changed",
            file=run.workdir / "checkpoints" / str(restored.step),
            remedy=f"restore the data and {restored.position['rubric_cache']}, or start anew with another --workdir",
        )
    run.console.print(f"{run.name}: continuing at step {restored.step}")
    # A checkpoint without a place in the data is older, of a run that drew no other rows than it used.
    place = restored.position.get("place", restored.step * _questions(run.config))
    return restored.state, Start(restored.step, place)


def train_loop(
    state: train.TrainState,
    start: Start,
    setup: Setup,
    model: Model,
    rows: Rows,
    checkpoints: Checkpoints,
    run: Run,
    evaluate_at: Callable[[int, Any], None],
    examples: Mapping[str, Example],
) -> train.TrainState:
    """Trains from `start` to the last step and returns its state; `state` is donated.

    `examples` are those of the data by id, as they are graded: with their own rubrics, whatever the teacher is shown.

    `evaluate_at(step, trained)` is called after every `eval.every` steps but the last; a run that ended in it begins with
    it.

    Raises:
      UserError: the loss is not finite. Preempted: asked to stop; the state is saved.
    """
    config = run.config
    steps = config.train.steps
    step_fn = _step_function(setup, model, run, examples)
    take = functools.partial(rows.take, count=_questions(config))

    def evaluated_after(step: int) -> bool:
        return bool(config.eval.every) and step % config.eval.every == 0 and 0 < step < steps

    # What a checkpoint holds beside the state: on what the steps to come depend. Their keys follow from seed and step.
    position = {"seed": config.seed, "data": rows.digest, "rubric_cache": "rubrics.jsonl"}

    def save(step: int, place: int, writer: MetricWriter) -> None:
        try:
            writer.sync()  # a run that goes on from this checkpoint has the rows of all steps before it
        finally:
            checkpoints.save(step, state, position | {"place": place})

    first, place = start
    if evaluated_after(first):
        evaluate_at(first, state.trained)
    if first < steps:
        told = f"compiling a step of {config.train.batch_size} completions, then training steps {first + 1} to {steps}"
        run.console.print(f"{run.name}: {told}")
    progress = Progress(run.console, f"{run.name}: train", steps, done=first)
    with progress, contextlib.closing(MetricWriter(run.workdir, first_step=first)) as writer:
        if first < steps:
            upcoming = take(place)
        for step in range(first, steps):
            began = time.monotonic()
            at, (data, place) = place, upcoming
            state, metrics = step_fn(state, data)
            if step + 1 < steps:
                upcoming = take(place)  # while the devices work
            scalars = _scalars(metrics, setup.rate(step), began)
            if not metrics["finite"]:
                save(step, at, writer)  # the step kept the state that it was given
                checkpoints.wait()
                raise _not_finite(step, metrics, [data.examples[i] for i in _batch_rows(data, config)])
            if step % config.train.log_every == 0 or step == steps - 1:
                writer.write(step, scalars)
            progress.advance(1, int(scalars["completion_tokens"]), f"loss {scalars['loss']:.4f}")
            done, stopping = step + 1, run.stop.is_set()  # read once: what is saved and whether to go on must agree
            if done % config.checkpoint.every == 0 or done == steps or stopping or evaluated_after(done):
                save(done, place, writer)
            if stopping:
                checkpoints.wait()
                run.stop.raise_if_set(f"saved at step {done} of {steps}")
            if evaluated_after(done):
                evaluate_at(done, state.trained)
    return state


def _questions(config: ConfigDict) -> int:
    """Rows of the data that a step takes."""
    return config.train.batch_size // config.sampling.group


def _batch_rows(data: Encoded, config: ConfigDict) -> list[int]:
    """The rows of a step's data as they are in its batch: each as often as it has completions."""
    return [i for i in range(len(data.examples)) for _ in range(config.sampling.group)]


def _step_function(setup: Setup, model: Model, run: Run, examples: Mapping[str, Example]) -> Callable:
    """(state, a step's data) -> (state, metrics): a step with everything else bound; the state is donated.

    One program, unless completions are graded: then the host does so between the program that samples and the one that
    learns.
    """
    config = run.config
    shardings = jax.tree.map(lambda x: x.sharding, setup.abstract)
    static = step_settings(config, model, setup.optimizer)

    def batch_of(data: Encoded) -> tuple[Batch, np.uint32]:
        batch = make_batch(_batch_rows(data, config), data, config, model.pad_id, run.mesh)
        return sharding.to_mesh(batch, run.mesh), np.uint32(config.seed)

    if not config.reward.grader:
        whole = train.jit_train_step(shardings, **static)
        return lambda state, data: whole(state, setup.frozen, *batch_of(data))[:2]
    sample, learn = train.jit_halves(shardings, **static)

    def step(state: train.TrainState, data: Encoded) -> tuple[train.TrainState, dict[str, Any]]:
        completions = sample(state, setup.frozen, *batch_of(data))
        shown = [data.examples[i] for i in _batch_rows(data, config)]
        asked = [examples[example.id] for example in shown]
        completions, grades = graded(completions, asked, shown, static["options"].sampling, model, run)
        state, metrics = learn(state, setup.frozen, completions)
        return state, metrics | grades

    return step


def step_settings(config: ConfigDict, model: Model, optimizer: optax.GradientTransformation) -> dict[str, Any]:
    """The static arguments of `train.train_step`."""
    return dict(
        decoder=model.decoder,
        optimizer=optimizer,
        options=options_of(config, model),
        method=config.method,
        teacher=configs.teacher_weights(config),
        lora=bool(config.lora.rank),
        ema_decay=config.teacher.ema_decay,
        microbatches=config.train.microbatches,
    )


def options_of(config: ConfigDict, model: Model) -> Options:
    """The step's static choices from the config."""
    of_divergence = [field.name for field in dataclasses.fields(losses.DivergenceOptions)]
    policy = {name: config.policy[name] for name in ("clip_low", "clip_high", "kl", "weight")}
    sampling = sampling_of(config.sampling, model)
    return Options(
        sampling=sampling,
        divergence=losses.DivergenceOptions(**{name: config.loss[name] for name in of_divergence}),
        temperature=sampling.scoring_temperature,
        chunk_size=config.loss.chunk_size,
        source=config.sampling.source,
        reduction=config.loss.reduction,
        guidance=config.teacher.guidance,
        policy=tuple(sorted(policy.items())),
        reason_tokens=config.teacher.reason_tokens,
        importance_clip=config.loss.importance_clip,
        mask_cut=config.loss.mask_cut,
        skip_first=config.loss.skip_first,
        group=config.sampling.group,
        slots=config.sampling.slots,
        pad_id=model.pad_id,
    )


def make_batch(
    rows: list[int], data: Encoded, config: ConfigDict, pad_id: int, mesh: jax.sharding.Mesh | None = None
) -> Batch:
    """A global batch of `rows`, padded to lengths of which a run has few; with a mesh, this process's share of it."""
    own = np.arange(len(rows)) if mesh is None else sharding.own_rows(len(rows), mesh)
    references = config.sampling.max_new_tokens if config.sampling.source == "reference" else 0

    def padded(prompts: Sequence[np.ndarray], longest: int, limit: int) -> tuple[np.ndarray, np.ndarray]:
        lengths = [len(prompts[i]) for i in rows]  # of all rows: the padded length is the same in every process
        length = padded_length(lengths, longest, config.data.pad_to, limit)
        return contexts.pad_left([prompts[rows[i]] for i in own], length, pad_id)

    arrays: tuple[Any, ...] = (  # NumPy's, until they are on the mesh
        own.astype(np.int32),
        *padded(data.student, data.longest.student, config.data.max_student_prompt),
        *padded(data.teacher, data.longest.teacher, config.data.max_teacher_prompt),
        np.tile(data.transition, (len(own), 1)),
        *contexts.pad_right([data.references[rows[i]] for i in own], references, pad_id),
        _without(rows, own, data, config, pad_id),
    )
    return Batch(*arrays)


def _without(rows: list[int], own: np.ndarray, data: Encoded, config: ConfigDict, pad_id: int) -> Without:
    """The prompts without each criterion of the `own` among `rows`, for all as many as the longest rubric has criteria."""
    # At least one, which then weighs nothing: without any, `rollout.teacher_hidden` would take the whole context's guidance.
    count = max(1, data.longest.criteria) if configs.guided_by_criteria(config) else 0
    tokens: Any  # NumPy's arrays, until they are on the mesh
    mask: Any
    if not count:
        tokens, mask = np.zeros((len(own), 0, 0), np.int32), np.zeros((len(own), 0, 0), bool)
        return Without(tokens, mask, np.zeros((len(own), 0), np.float32))  # type: ignore[arg-type]
    if max(len(data.without[i].weights) for i in rows) > count:
        count = config.rubric.max_criteria  # as with prompts: one more shape, for a row that is beyond the usual
    longest, limit = data.longest.teacher, config.data.max_teacher_prompt
    length = padded_length([longest, *(len(data.teacher[i]) for i in rows)], longest, config.data.pad_to, limit)
    weights: Any = np.zeros((len(own), count), np.float32)
    prompts = []
    for at, i in zip(weights, (rows[i] for i in own), strict=True):
        at[: len(data.without[i].weights)] = data.without[i].weights
        # A rubric with fewer has its whole prompt in the places that are left, which weigh nothing.
        prompts += (data.without[i].prompts + [data.teacher[i]] * count)[:count]
    tokens, mask = (x.reshape(len(own), count, length) for x in contexts.pad_left(prompts, length, pad_id))
    return Without(tokens, mask, weights)


def padded_length(lengths: Sequence[int], longest: int, pad_to: int, limit: int) -> int:
    """The length that a batch's prompts are padded to: `pad_to` times a power of two, or what the longest prompt needs.

    So a run whose longest prompt takes n times `pad_to` compiles for at most log2(n) + 1 lengths of each role. A prompt that
    is longer than those which were seen at the start (`longest`) may take up to the limit of its role.

    Examples:
      >>> [padded_length([length], 650, 128, 2048) for length in (100, 200, 600, 650, 800, 1200, 2000)]
      [128, 256, 768, 768, 1024, 2048, 2048]
    """
    limit = max(longest, limit) if max(lengths) > longest else longest
    length = pad_to
    while length < max(lengths):
        length *= 2
    return min(length, -(-limit // pad_to) * pad_to)


def _scalars(metrics: dict[str, jax.Array], rate: Any, began: float) -> dict[str, float]:
    scalars = {k: float(v) for k, v in metrics.items() if k not in ("row_loss", "finite")}
    seconds = time.monotonic() - began  # read when the values are here: until then the step still runs
    return scalars | {
        "learning_rate": float(rate),
        "step_seconds": seconds,
        "tokens_per_second": scalars["completion_tokens"] / seconds,
        "compilations": compilations(),
    }


def _not_finite(step: int, metrics: Mapping[str, jax.Array], examples: Sequence[Example]) -> UserError:
    row_loss = multihost_utils.process_allgather(metrics["row_loss"], tiled=True)
    bad = [e.origin for e, x in zip(examples, row_loss, strict=True) if not np.isfinite(x)]
    return UserError(
        f"non-finite loss, gradient or update at step {step}; the state before it is saved; "
        f"offending rows: {', '.join(bad) or 'none alone, the gradient or the update overflowed'}",
        field="loss",
        value=float(metrics["loss"]),
        remedy="lower optimizer.learning_rate, or take the rows out, and start anew with another --workdir",
    )
