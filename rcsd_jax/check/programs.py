"""The run's programs: each compiled and run on these devices, its time and memory against the planner's figures.

The programs of an update run with random prompts, and with the model's weights if they are in a local directory, else random ones.
What they draw is scored again by the trainer. The parts that the planner prices, such as one decode step, run with arrays of the right
shapes, where there is a plan to compare them with.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rcsd_jax import losses
from rcsd_jax.check.finding import FAILED, NOT_CHECKED, OK, WARNING, Finding, seconds, size
from rcsd_jax.methods.contract import Completions, Without
from rcsd_jax.methods.networks import Network
from rcsd_jax.methods.rollout import Batch
from rcsd_jax.methods.score_both import score_student
from rcsd_jax.methods.state import TrainState, shardings_of
from rcsd_jax.methods.step import JittedStep, jit_step
from rcsd_jax.models import sharding
from rcsd_jax.models.declarations import init_params
from rcsd_jax.models.decoder import Decoder
from rcsd_jax.models.placement import param_shardings
from rcsd_jax.plan import measure
from rcsd_jax.plan import programs as planner
from rcsd_jax.plan.chips import Chip
from rcsd_jax.plan.compiler import Compilation, Memory
from rcsd_jax.plan.measure import Measured
from rcsd_jax.plan.networks import own_teacher
from rcsd_jax.plan.planned import TRANSITION, WHOLE, Plan, Program
from rcsd_jax.roles.opened_model import Model, load_weights
from rcsd_jax.roles.own_teacher import load_adapters, on_the_same_base
from rcsd_jax.run import training_state
from rcsd_jax.run.frozen_weights import quantized
from rcsd_jax.run.recipe import frozen_name
from rcsd_jax.run.training_state import Setup
from rcsd_jax.settings.stage import Settings

SLOW = 2.0
"""How much longer than planned a program may take."""

LIMITS = {"float32": 1e-3, "bfloat16": 0.03, "approximate": 0.2}
"""Largest mean difference of a token's log-probability between sampler and trainer, in nats: by dtype, and for a sampler with int8 or
merged weights, which is another model by design."""

PARTS = {
    "train step": ("prefill", "decode", "teacher scoring", "student forward+backward", "update"),
    "rollout": ("prefill", "decode"),
    "learning": ("teacher scoring", "student forward+backward", "update"),
}
"""Of the programs of an update, those that the planner prices one by one."""


class Here(NamedTuple):
    """A stage on these devices.

    Attributes:
      config: of the stage, as it is checked.
      mesh: over the devices.
      plan: of the same programs.
      model: its decoder; it has no tokenizer.
      setup: what training needs besides its state.
      first: makes the first state; with adapters, some that change something.
      weights: where they are from.
    """

    config: Settings
    mesh: jax.sharding.Mesh
    plan: Plan
    model: Model
    setup: Setup
    first: Callable[[], TrainState]
    weights: str


def on_these_devices(config: Settings) -> Here:
    """Opens a stage's model and its plan.

    Raises:
      UserError: no shape of the model is known, or the mesh does not fit devices, model or batch.
    """
    plan = planner.plan(config, jax.devices())
    # No end token, so that every completion takes as long as the plan says.
    model = Model(Decoder(plan.decoder), None, (), 0, Path(config.model.path).expanduser())
    with jax.set_mesh(plan.mesh):
        params, weights = _params(model, plan.mesh)
        teachers, _ = own_teacher(config, model, plan.mesh)
        setup = training_state.setup(model, params, config, plan.mesh, teachers)
        frozen = setup.frozen
        for name, one in teachers.items():
            shared = on_the_same_base(one, model)
            own = params if shared else _params(one.model, plan.mesh, sharding.SPREAD_RULES)[0]
            frozen = frozen | {frozen_name(name): {"params": own} | load_adapters(one, plan.mesh)}
        setup = setup._replace(frozen=frozen | quantized(frozen, model, teachers, config, plan.mesh))

    kept = None if config.lora.rank else params

    def first() -> TrainState:
        given = jax.tree.map(jnp.copy, kept)  # `first_state` gives it away
        state = training_state.first_state(model, given, config, setup)
        if not config.lora.rank:
            return state
        filled = jax.jit(_with_adapters, out_shardings=shardings_of(setup.abstract).trained)
        return dataclasses.replace(state, trained=filled(state.trained))

    return Here(config, plan.mesh, plan, model, setup, first, weights)


def _params(
    model: Model, mesh: jax.sharding.Mesh, rules: Mapping[str, Any] = sharding.DEFAULT_RULES
) -> tuple[Any, str]:
    directory, config = model.directory, model.decoder.config
    if directory.is_dir() and any(directory.glob("*.safetensors")):
        return load_weights(model, mesh, rules), f"weights of {directory}"
    make = functools.partial(init_params, config)
    return jax.jit(make, out_shardings=param_shardings(config, mesh, rules))(jax.random.key(0)), "random weights"


def _with_adapters(trained: Any) -> Any:
    """Adapters whose second matrix, which begins at zero, changes something."""
    return {
        target: {**both, "b": 0.02 * jax.random.normal(jax.random.key(i), both["b"].shape, both["b"].dtype)}
        for i, (target, both) in enumerate(trained.items())
    }


# --- the programs of an update ---------------------------------------------------------------------------------------


class Ran(NamedTuple):
    """A program that ran.

    Attributes:
      compilation: the compiler's answer on these devices.
      seconds: of its second run.
      result: of its first.
    """

    compilation: Compilation
    seconds: float
    result: Any


def run_update(here: Here) -> dict[str, Ran]:
    """Compiles and runs an update: "train step", or "rollout" and "learning". Each runs twice; the second run is timed."""
    config = here.config
    with jax.set_mesh(here.mesh):
        step: JittedStep = jit_step(here.setup.recipe, shardings_of(here.setup.abstract))
        arguments = here.setup.frozen, _batch(here), np.uint32(config.seed)
        if config.train.updates_per_rollout == 1 and not config.reward.grader:
            return {"train step": _ran(step.train_step, lambda: (here.first(), *arguments))}
        rollout = _ran(step.draw, lambda: (here.first(), *arguments))
        completions = first_batch(rollout.result[0], config.train.batch_size)
        if here.config.loss.emphasis == "credit":  # as if completions had failed some criteria
            completions = completions._replace(failed=completions.without.weights)
        learning = _ran(step.learn, lambda: (here.first(), here.setup.frozen, completions))
        return {"rollout": rollout, "learning": learning}


def first_batch(completions: Completions, rows: int) -> Completions:
    """The first rows of a rollout's completions."""
    return jax.tree.map(lambda x: x[:rows], completions)


def _ran(program: Any, arguments: Callable[[], tuple[Any, ...]]) -> Ran:
    began = time.monotonic()
    compiled = program.lower(*arguments()).compile()
    compilation = _compilation(compiled, time.monotonic() - began)
    result = jax.block_until_ready(compiled(*arguments()))
    return Ran(compilation, _timed(compiled, arguments()), result)


def _compilation(compiled: Any, took: float) -> Compilation:
    m, text = compiled.memory_analysis(), compiled.as_text() or ""
    if m is None:
        return Compilation(text, None, "", took)
    results = m.output_size_in_bytes - m.alias_size_in_bytes
    needed = m.argument_size_in_bytes + m.temp_size_in_bytes + results
    peak = getattr(m, "peak_memory_in_bytes", needed)
    return Compilation(text, Memory(m.argument_size_in_bytes, m.temp_size_in_bytes, results, peak, needed), "", took)


def _timed(compiled: Any, arguments: tuple[Any, ...]) -> float:
    jax.block_until_ready(arguments)
    began = time.monotonic()
    jax.block_until_ready(compiled(*arguments))
    return time.monotonic() - began


def _batch(here: Here) -> Batch:
    """Random prompts of both roles at their limits, on the mesh; some have a little padding."""
    config, lengths = here.config, here.plan.lengths
    rows = config.questions_per_step * config.train.batches_per_rollout
    count = rows * config.sampling.group
    random = np.random.default_rng(0)
    reasons = bool(config.teacher.reason_tokens)
    teacher = lengths.teacher_prompt - (config.teacher.reason_tokens + TRANSITION if reasons else 0)
    tokens = lambda *shape: random.integers(0, here.plan.decoder.vocab_size, shape, dtype=np.int32)
    seen = lambda length: np.arange(length) >= (np.arange(count) % 4)[:, None]
    nothing = np.zeros((count, 0), np.int32)
    further = config.encoding.further
    contexts = (config.rubric.max_criteria if further == "criteria" else 1) if further else 0
    more: Any = (
        tokens(count, contexts, teacher),
        np.ones((count, contexts, teacher), bool),
        np.ones((count, contexts), np.float32),
    )
    arrays: Any = (  # NumPy arrays, until they are on the mesh
        np.arange(count, dtype=np.int32),
        np.repeat(tokens(rows, lengths.student_prompt), config.sampling.group, axis=0),
        np.repeat(seen(lengths.student_prompt)[:rows], config.sampling.group, axis=0),
        tokens(count, teacher),
        seen(teacher),
        tokens(count, TRANSITION if reasons else 0),
        nothing,
        nothing.astype(bool),
        Without(*more),
    )
    own = sharding.own_rows(count, here.mesh)
    return sharding.to_mesh(jax.tree.map(lambda x: x[own], Batch(*arrays)), here.mesh)


# --- sampler and trainer ---------------------------------------------------------------------------------------------


def check_sampler(here: Here, ran: Mapping[str, Ran]) -> Finding:
    """The sampler's log-probabilities of an update's completions against the trainer's, at the same weights."""
    name = "log-probabilities of sampler and trainer"
    if here.config.sampling.source != "student":
        return Finding("sampler", name, NOT_CHECKED, "the teacher writes the completions")
    completions = ran["train step"].result[2] if "train step" in ran else ran["rollout"].result[0]
    completions = first_batch(completions, here.config.train.batch_size)
    options = here.setup.recipe.loss

    @jax.jit
    def compare(state: TrainState, frozen: Any, completions: Completions) -> dict[str, jax.Array]:
        student: Network = here.setup.recipe.roles.student.at(state, frozen)
        samples, chunk = completions.samples, min(options.chunk_size, completions.samples.tokens.shape[1])
        ours = losses.token_log_probs_from_hidden(
            score_student(student, completions),
            student.head,
            samples.tokens,
            chunk_size=chunk,
            temperature=options.temperature,
            mask=samples.mask,
        )[0]
        difference = jnp.where(samples.mask, jnp.abs(ours - samples.log_probs), 0.0)
        tokens = samples.mask.sum()
        return {"mean": difference.sum() / tokens, "largest": difference.max(), "tokens": tokens}

    with jax.set_mesh(here.mesh):
        found = {key: float(x) for key, x in compare(here.first(), here.setup.frozen, completions).items()}
    limit = LIMITS[_precision(here)]
    good = found["mean"] <= limit
    measured = f"they differ by {found['mean']:.2g} nats a token, at most {found['largest']:.2g}"
    expected = f"at most {limit:g}; {found['tokens']:.0f} tokens, {here.weights}"
    return Finding("sampler", name, OK if good else FAILED, measured, expected, found | {"limit": limit})


def _precision(here: Here) -> str:
    sampling = here.config.sampling
    if sampling.int8_cache or sampling.int8_weights or sampling.merged_adapters:
        return "approximate"
    exact = here.plan.decoder.dtype == jnp.float32 and jax.default_backend() != "tpu"
    return "float32" if exact else "bfloat16"


# --- time and memory -------------------------------------------------------------------------------------------------


def check_programs(here: Here, ran: Mapping[str, Ran], chip: Chip | None) -> list[Finding]:
    """Every program: does it run, and in the planned time?

    Args:
      here: the stage.
      ran: the result of `run_update`.
      chip: the planner's figures of these devices. None: only the programs of an update are timed.
    """
    parts: dict[str, Ran] = {}
    planned: dict[str, Measured] = {}
    if chip is not None:
        for name, program in here.plan.programs.items():
            if name not in WHOLE:
                parts[name] = _run_part(program, here.plan)
                planned[name] = measure.measured(here.plan, chip, program, parts[name].compilation)
    times = {name: m.cost.seconds for name, m in planned.items()}
    for name in ran:
        runs = {part: here.plan.programs[part].runs for part in PARTS[name] if part in planned}
        if runs:
            each = here.config.train.updates_per_rollout if name == "rollout" else 1
            times[name] = each * sum(times[part] * count for part, count in runs.items())
    return [_judged(name, one, times.get(name)) for name, one in {**ran, **parts}.items()]


def _judged(name: str, ran: Ran, planned: float | None) -> Finding:
    memory = ran.compilation.memory
    numbers: dict[str, Any] = {"seconds": ran.seconds, "compile_seconds": ran.compilation.seconds}
    measured, expected, verdict = seconds(ran.seconds), "no plan for this device", OK
    if memory is not None:
        numbers["bytes_needed"] = memory.needed
        measured += f", {size(memory.needed)} a device"
    if planned is not None:
        numbers |= {"seconds_planned": planned, "over_planned": ran.seconds / planned}
        expected = f"{seconds(planned)} planned; {ran.seconds / planned:.3g} times as long"
        verdict = WARNING if ran.seconds > SLOW * planned else OK
    if wrong := _not_finite(ran.result):
        verdict, measured = FAILED, f"not finite: {wrong}"
    return Finding("programs", name, verdict, measured, expected, numbers)


def _not_finite(result: Any) -> str:
    """The first array of a result that is not finite; empty if there is none."""
    arrays = [
        (path, x) for path, x in jax.tree_util.tree_leaves_with_path(result) if jnp.issubdtype(x.dtype, jnp.floating)
    ]
    if not arrays:
        return ""
    finite = jax.jit(lambda xs: jnp.stack([jnp.all(jnp.isfinite(x)) for x in xs]))([x for _, x in arrays])
    return next(
        (jax.tree_util.keystr(path) for (path, _), good in zip(arrays, np.asarray(finite), strict=True) if not good), ""
    )


def check_memory(here: Here, ran: Mapping[str, Ran], chip: Chip | None) -> Finding:
    """The most memory that was in use on a device of this process, against what the compiler allocates."""
    name = "peak on a device"
    planned = max((r.compilation.memory.needed for r in ran.values() if r.compilation.memory), default=0.0)
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [s["peak_bytes_in_use"] for s in stats if "peak_bytes_in_use" in s]
    expected = f"{size(planned)} allocated by the largest program"
    if not peaks:
        return Finding("memory", name, NOT_CHECKED, "this device does not say", expected, {"bytes_needed": planned})
    limit = stats[0].get("bytes_limit") or (chip.capacity if chip else 0.0)
    peak = float(max(peaks))
    good = peak <= 1.2 * planned + 2**28  # besides the programs, a second state and what the other checks left
    of_limit = f" of {size(limit)}" if limit else ""
    numbers = {"bytes_peak": peak, "bytes_needed": planned, "bytes_limit": limit}
    return Finding("memory", name, OK if good else WARNING, f"{size(peak)}{of_limit}", expected, numbers)


# --- parts with arrays of the right shapes ---------------------------------------------------------------------------


def _run_part(program: Program, plan: Plan) -> Ran:
    began = time.monotonic()
    lowered = program.lower()
    compiled = lowered.compile()
    compilation = _compilation(compiled, time.monotonic() - began)
    places = plan.lengths.student_prompt + plan.lengths.completion - 1
    make = functools.partial(_filled, lowered.args_info[0], compiled.input_shardings[0], places)
    result = jax.block_until_ready(compiled(*make()))
    return Ran(compilation, _timed(compiled, make()), result)


def _filled(abstract: Any, placement: Any, places: int) -> Any:
    """Arrays as a program of the planner takes them, with so many places of the cache in use. No time depends on other values."""
    paths = jax.tree_util.tree_leaves_with_path(abstract)
    names = [str(getattr(path[-1], "name", getattr(path[-1], "key", ""))) for path, _ in paths]
    shapes = [(x.shape, x.dtype) for _, x in paths]
    structure: Any = jax.tree.structure(abstract)
    needed = structure.flatten_up_to(placement)  # None: the compiler left this argument out
    used = [number for number, place in enumerate(needed) if place is not None]
    make = lambda: [_array(names[number], *shapes[number], places) for number in used]
    made = dict(zip(used, jax.jit(make, out_shardings=[needed[number] for number in used])(), strict=True))
    nothing = lambda shape, dtype: np.broadcast_to(np.zeros((), dtype), shape)  # takes no memory
    arrays = [made[number] if number in made else nothing(*shapes[number]) for number in range(len(names))]
    return jax.tree.unflatten(structure, arrays)


def _array(name: str, shape: tuple[int, ...], dtype: Any, places: int) -> jax.Array:
    if jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key):
        return jax.random.split(jax.random.key(0), shape)
    if dtype == jnp.bool_:
        return jnp.ones(shape, bool)
    if jnp.issubdtype(dtype, jnp.floating):
        return (jax.random.uniform(jax.random.key(1), shape) * 0.02).astype(dtype)  # no variance below 0
    if name == "segment_ids":
        return jnp.ones(shape, dtype)
    if name == "lengths":
        return jnp.full(shape, places, dtype)
    if name in ("positions", "order"):
        return jnp.broadcast_to(jnp.arange(shape[-1], dtype=dtype), shape)
    return jnp.zeros(shape, dtype)
