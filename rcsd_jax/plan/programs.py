"""The jitted programs of a run, from its config and a slice's devices: only shapes, no weights.

They are the trainer's own functions. Everything that this package knows of the trainer is here.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, overload

import jax
import jax.numpy as jnp

from rcsd_jax.checkpoints.hf_config import config_of_fields, read_config
from rcsd_jax.checkpoints.peft import is_peft, load_peft, read_peft_config
from rcsd_jax.host.errors import UserError
from rcsd_jax.methods import contract, packed_learning, packing, rollout, step
from rcsd_jax.methods.networks import (
    BASE,
    Frozen,
    Mixture,
    Network,
    RoleMixture,
    RoleNetwork,
    RoleSeveral,
    hidden_width,
)
from rcsd_jax.methods.score_both import score_teacher
from rcsd_jax.methods.state import shardings_of, update
from rcsd_jax.models import few_layers, lora, quantization, sharding
from rcsd_jax.models.cache import POOL_AXES, init_cache
from rcsd_jax.models.config import DecoderConfig
from rcsd_jax.models.declarations import abstract_params
from rcsd_jax.models.decoder import Decoder
from rcsd_jax.models.kernels import paged, splash
from rcsd_jax.models.placement import check_divisible, lora_shardings, param_shardings, sampling_layout
from rcsd_jax.models.weights import cast
from rcsd_jax.plan import published, windows
from rcsd_jax.plan.packing import blocks_computed
from rcsd_jax.roles import opened_model
from rcsd_jax.roles.own_teacher import OwnTeacher, Teachers
from rcsd_jax.run import training_state
from rcsd_jax.run.recipe import frozen_name
from rcsd_jax.run.training_state import Setup
from rcsd_jax.sampling import decoding
from rcsd_jax.sampling.slots import usual_refill
from rcsd_jax.sampling.speculative import Text, speculative_step
from rcsd_jax.settings.stage import Settings

TRANSITION = 16
"""Tokens between the analysis and the completion of a teacher that reasons first: the template's, about."""


class Program(NamedTuple):
    """A program to compile.

    Attributes:
      name: one of `NAMES`.
      runs: how often a step runs it, on average.
      rows: of the batch that one run takes; of packed rows, the sequences in them.
      lower: traces it; compiling what it returns takes the time.
      trips: how often its loops run whose end the compiler does not know; None: it knows all.
      row: places of its rows, if attention computes a part of them: they are packed, or layers have windows; else 0.
      attended: the pairs of blocks that attention computes of them, over those of rows that are one sequence without windows; of the
        program "decode", the places of a full cache that it reads, over all.
    """

    name: str
    runs: float
    rows: float
    lower: Callable[[], jax.stages.Lowered]
    trips: int | None = None
    row: int = 0
    attended: float = 1.0


WHOLE = ("train step", "rollout", "learning")
"""Programs that the trainer runs: a whole step, or, if a rollout serves several, its two parts. The others are parts of these."""

NAMES = (*WHOLE, "prefill", "decode", "teacher scoring", "student forward+backward", "update")


class Lengths(NamedTuple):
    """Sizes of a run's arrays."""

    batch: int
    microbatches: int
    student_prompt: int
    teacher_prompt: int  # with analysis and transition
    completion: int


class Queue(NamedTuple):
    """How a queue of completions goes through slots.

    Attributes:
      slots: rows that are decoded together.
      refill: prompts that are prefilled together.
      shards: of rows on the mesh; each has its part of slots, prompts and refill.
      group: completions of a prompt.
    """

    slots: int
    refill: int
    shards: int
    group: int


class PackedRows(NamedTuple):
    """The rows of a trip over packed rows.

    Attributes:
      row: places of each.
      rows: of all shards.
    """

    row: int
    rows: int


class Plan(NamedTuple):
    """What is to be compiled."""

    decoder: DecoderConfig
    teacher: DecoderConfig  # the same, unless it is another model
    mesh: jax.sharding.Mesh
    lengths: Lengths
    lora_rank: int
    lora_targets: tuple[str, ...]
    weight_bytes: float  # of one chip: what decoding reads for every token, as it lies in the program "decode"
    cache_bytes: float  # of one chip: keys and values of whole sequences there
    read_bytes: float  # of these, what a token attends to
    queue: Queue | None  # how completions are sampled; None: all rows of the batch at once
    packed: bool  # sequences are learned from in packed rows; a run of a program over them is a trip
    layout: str  # of `sharding.LAYOUTS`, how devices share the rows that are learned from
    programs: dict[str, Program]


def decoder_config(config: Settings) -> DecoderConfig:
    """The shape of `model.path`: of a directory, or of a published model by its name; nothing is downloaded.

    Raises:
      UserError: neither.
    """
    return _shape_of(config.model.path, "model.path", config, config.lora.rank, config.lora.alpha)


def _shape_of(path: str, field: str, config: Settings, rank: int = 0, alpha: float = 1.0) -> DecoderConfig:
    """The shape of a model, with the scale of adapters on it."""
    if Path(path).expanduser().is_dir():
        shape = read_config(path, **opened_model.precision(config.model))
    elif path in published.PUBLISHED:
        shape = config_of_fields(published.PUBLISHED[path], path, **opened_model.precision(config.model))
    else:
        raise UserError(
            "neither a model directory nor a model whose shape is known here",
            field=field,
            value=path,
            remedy=f"give a directory with config.json, or one of {', '.join(published.PUBLISHED)}",
        )
    kernels = config.model.kernels
    if rank:
        shape = dataclasses.replace(shape, lora_scale=lora.lora_scale(rank, alpha))
    return dataclasses.replace(shape, kernels="pallas" if kernels == "auto" else kernels)  # as on a TPU


def lengths_of(config: Settings) -> Lengths:
    """The longest that the config allows: every prompt and completion at its limit."""
    reason = config.teacher.reason_tokens
    return Lengths(
        config.train.batch_size,
        config.train.microbatches,
        config.data.max_student_prompt,
        config.data.max_teacher_prompt + (reason + TRANSITION if reason else 0),
        config.sampling.max_new_tokens,
    )


def plan(config: Settings, devices: Sequence[Any], rows: PackedRows | None = None) -> Plan:
    """All programs of a run on these devices.

    Args:
      config: of a stage.
      devices: of the slice.
      rows: of a trip, which hold sequences of the config's lengths; None: the longest.

    Raises:
      UserError: the model's shape is not known, or the mesh does not fit the devices, the model or the batch.
    """
    shape = decoder_config(config)
    mesh = sharding.make_mesh(**config.mesh, devices=list(devices))
    sizes = lengths_of(config)
    batches = {"train.batch_size / train.microbatches": sizes.batch // sizes.microbatches}
    stored: dict[str, Any] = dict(split_rows=config.train.split_rows, quantization=config.model.quantization)
    check_divisible(shape, mesh, batches, **stored)
    # No program depends on which tokens end a completion, only on how many there are.
    model = opened_model.Model(Decoder(shape), None, (0, 1), 0, Path(config.model.path))
    params = _params(shape, mesh)
    teachers, of_teacher = own_teacher(config, model, mesh)
    setup = training_state.setup(model, params, config, mesh, teachers)
    if config.model.quantization != "none":
        setup = setup._replace(frozen={BASE: {"params": _params(shape, mesh, config.model.quantization)}})
    setup = setup._replace(frozen=setup.frozen | of_teacher)
    role = setup.recipe.roles.teacher
    scorer = shape if role is None or isinstance(role, RoleSeveral) else role.decoder.config
    make = _Programs(config, mesh, setup, sizes, rows)
    queue, decoded, prefilled, prompts = make.queue, sizes.batch, sizes.batch, sizes.batch
    if queue:
        decoded, prefilled, prompts = queue.slots, queue.refill, sizes.batch // queue.group
    scored, learnt = make.rows_together(make.teacher_length), make.rows_together(make.student_length)
    updates, passes = config.train.updates_per_rollout, config.train.passes_per_rollout
    drawn = sizes.batch * updates // passes
    table = (
        Program("train step", 1, sizes.batch, make.train_step),
        Program("rollout", 1 / updates, drawn, make.rollout),
        Program("learning", 1, sizes.batch, make.learning),
        Program(
            "prefill", -(-prompts // prefilled) / passes, prefilled, make.prefill, None,
            *_within_windows(shape, sizes.student_prompt),
        ),
        Program(
            "decode", sizes.completion * sizes.batch / decoded / passes, decoded, make.decode,
            attended=read_of_a_full_cache(shape, make.cache_places()) / make.cache_places(),
        ),
        Program(
            "teacher scoring", math.ceil(sizes.batch / scored), scored, make.scoring, None,
            *make.attended(scorer, make.teacher_length),
        ),
        Program(
            "student forward+backward", math.ceil(sizes.batch / learnt), learnt, make.gradients, make.chunks(),
            *make.attended(shape, make.student_length),
        ),
        Program("update", 1, sizes.batch, make.update),
    )  # fmt: skip
    absent = ["train step"] if updates > 1 else ["rollout", "learning"]
    absent += ["teacher scoring"] if setup.recipe.roles.teacher is None else []
    absent += ["prefill", "decode"] if config.sampling.source == "reference" else []
    programs = {program.name: program for program in table if program.name not in absent}
    cache = make.cache_bytes()
    seen = windows.mean(windows.windows_of(shape), lambda window: min(window or math.inf, make.cache_places()))
    held = make.weight_bytes(), cache, cache * seen / make.cache_places()
    targets, packed = tuple(config.lora.targets), bool(setup.recipe.row_lengths)
    return Plan(shape, scorer, mesh, sizes, config.lora.rank, targets, *held, queue, packed, make.layout, programs)


def own_teacher(config: Settings, student: opened_model.Model, mesh: jax.sharding.Mesh) -> tuple[Teachers, Frozen]:
    """A teacher that is another model, and its abstract weights; none if the teacher is the student's own.

    Raises:
      UserError: there are several, its shape is not known, or the mesh does not fit it.
    """
    if config.teacher_weights == "endpoint":
        problem, value = "a teacher at an endpoint is not planned", config.teacher_endpoint.model
        remedy = "leave it out: the plan with the student's own teacher has more work and as much memory"
        raise UserError(problem, field="teacher_endpoint.model", value=value, remedy=remedy)
    if len(config.teacher.own) > 1:
        remedy = "name the largest as teacher.path; the others take their weights' memory more"
        raise UserError("the planner plans one teacher", field="teacher.paths", value=config.teacher.own, remedy=remedy)
    if config.teacher.better_of_two:
        remedy = "plan without it, and add the time of another teacher's scoring"
        raise UserError("the planner plans one teacher", field="teacher.better_of_two", value=True, remedy=remedy)
    for name, path in config.teacher.own.items():
        base, *adapter = read_peft_config(path) if is_peft(path) else (path,)
        shape = _shape_of(base, "teacher.path", config, *adapter)
        split_rows, rules = config.train.split_rows, sharding.SPREAD_RULES
        stored: dict[str, Any] = dict(quantization=config.teacher.quantization, rules=rules, whose="teacher's ")
        check_divisible(shape, mesh, {}, split_rows=split_rows, **stored)
        sizes = {shape.vocab_size, student.decoder.config.vocab_size}
        opened = OwnTeacher(
            path,
            student._replace(decoder=Decoder(shape), directory=Path(base).expanduser()),
            min(sizes) if len(sizes) > 1 else None,
        )
        variables = {"params": _params(shape, mesh, config.teacher.quantization, rules)}
        if adapter:
            adapters = load_peft(path, shape).adapters
            variables["lora"] = _on(lora_shardings(shape, mesh, adapters, rules), adapters)
        return {name: opened}, {frozen_name(name): variables}
    return {}, {}


def read_of_a_full_cache(config: DecoderConfig, places: int) -> float:
    """Places of a row that a token in the last block reads; the mean over these tokens and over layers."""
    block = paged.block(places)
    tokens = range(max(places - block, 0), places)
    read = lambda window: sum(windows.places_read(token, block, window) for token in tokens) / len(tokens)
    return windows.mean(windows.windows_of(config), read)


def _within_windows(config: DecoderConfig, row: int, sequences: int = 1) -> tuple[int, float]:
    """`Program.row` and `.attended` of rows of equally long sequences."""
    if sequences == 1 and not config.slides:
        return 0, 1.0
    padded = row + splash.padding(row)
    computed = functools.partial(blocks_computed, [row // sequences] * sequences, padded, splash.block(padded))
    return padded, windows.mean(windows.windows_of(config), lambda window: computed(window=window))


def _params(
    shape: DecoderConfig, mesh: jax.sharding.Mesh, form: str = "none", rules: Mapping[str, Any] = sharding.DEFAULT_RULES
) -> Any:
    """A model's abstract parameters on the mesh, plain or quantized."""
    params: Any = abstract_params(shape)
    if form != "none":
        params = jax.eval_shape(functools.partial(quantization.quantized, shape, form=form), params)
    return _on(param_shardings(shape, mesh, rules, params), params)


def _on(placement: Any, tree: Any) -> Any:
    """Abstract arrays with their shardings."""
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, placement)


def _bytes_of_a_chip(arrays: Sequence[jax.ShapeDtypeStruct]) -> float:
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * _bits(x.dtype) / 8 for x in arrays)


def _bits(dtype: Any) -> int:
    """Of a number in a device's memory. NumPy takes a byte for an int4, TPUs pack two of them."""
    return 4 if dtype == jnp.int4 else 8 * dtype.itemsize


class _Programs:
    """The trainer's functions with abstract arguments. The mesh is set while they are traced, as the trainer sets it."""

    def __init__(
        self,
        config: Settings,
        mesh: jax.sharding.Mesh,
        setup: Setup,
        sizes: Lengths,
        packed_rows: PackedRows | None,
    ):
        self.config, self.mesh, self.setup, self.sizes, self.packed_rows = config, mesh, setup, sizes, packed_rows
        self.layout = packed_learning.layout_of(setup.recipe)
        self.recipe, self.decoder = setup.recipe, setup.recipe.roles.student.decoder
        self.sampling = setup.recipe.rollout.sampling
        self.rows = sharding.batch_sharding(mesh)
        self.queue = self._queue()
        # Of the longest sequences; with guidance the teacher also scores completions after the student's prompts.
        self.student_length = sizes.student_prompt + sizes.completion
        self.teacher_length = sizes.teacher_prompt + sizes.completion
        if self.recipe.loss.guidance:
            self.teacher_length = max(self.teacher_length, self.student_length)

    def _array(self, *shape: int, dtype: Any = jnp.int32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=self.rows)

    def _scalar(self, dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((), dtype, sharding=sharding.replicated(self.mesh))

    def _lower(self, function: Callable[..., Any], *arguments: Any, **settings: Any) -> jax.stages.Lowered:
        with jax.set_mesh(self.mesh):
            return jax.jit(function, **settings).lower(*arguments)

    def _student(self) -> Network:
        return self._network(self.recipe.roles.student)

    @overload
    def _network(self, role: RoleNetwork) -> Network: ...
    @overload
    def _network(self, role: RoleNetwork | RoleMixture) -> Network | Mixture: ...
    def _network(self, role: RoleNetwork | RoleMixture) -> Network | Mixture:
        """A role's network, abstract."""
        state, frozen = self.setup.abstract, self.setup.frozen
        if isinstance(role, RoleNetwork) and role.moving == "average":  # it lies as what is trained
            placement = self._shardings(dataclasses.replace(role, moving="trained").at(state, frozen))
            return _on(placement, jax.eval_shape(role.at, state, frozen))
        return role.at(state, frozen)

    def _shardings(self, tree: Any) -> Any:
        return jax.tree.map(lambda x: x.sharding, tree)

    def _batch(self, rows: int) -> rollout.Batch:
        s = self.sizes
        reason = self.config.teacher.reason_tokens
        prompt = s.teacher_prompt - (reason + TRANSITION if reason else 0)
        references = s.completion if self.config.sampling.source == "reference" else 0
        return rollout.Batch(
            self._array(rows),
            self._array(rows, s.student_prompt),
            self._array(rows, s.student_prompt, dtype=bool),
            self._array(rows, prompt),
            self._array(rows, prompt, dtype=bool),
            self._array(rows, TRANSITION if reason else 0),
            self._array(rows, references),
            self._array(rows, references, dtype=bool),
            self._without(rows),
        )

    def _step(self) -> step.JittedStep:
        """The programs that the training loop runs."""
        return step.jit_step(self.recipe, shardings_of(self.setup.abstract))

    def train_step(self) -> jax.stages.Lowered:
        with jax.set_mesh(self.mesh):
            batch, seed = self._batch(self.sizes.batch), self._scalar(jnp.uint32)
            return self._step().train_step.lower(self.setup.abstract, self.setup.frozen, batch, seed)

    def rollout(self) -> jax.stages.Lowered:
        with jax.set_mesh(self.mesh):
            rows = self.sizes.batch * self.recipe.rollout.batches
            batch, seed = self._batch(rows), self._scalar(jnp.uint32)
            return self._step().draw.lower(self.setup.abstract, self.setup.frozen, batch, seed)

    def learning(self) -> jax.stages.Lowered:
        with jax.set_mesh(self.mesh):
            completions = self._completions(self.sizes.batch)
            return self._step().learn.lower(self.setup.abstract, self.setup.frozen, completions)

    # --- sampling: what `decoding.generate` does before and inside its loop ------------------------------------------

    def _rules(self) -> Any:
        with jax.set_mesh(self.mesh):
            return sharding.LAYOUTS[sampling_layout(self.decoder.config)]

    def _queue(self) -> Queue | None:
        """What `slots.generate_queue` makes of the settings."""
        slots = self.recipe.rollout.slots
        if not slots:
            return None
        with jax.set_mesh(self.mesh):
            shards = sharding.row_shards(sampling_layout(self.decoder.config))
        return Queue(slots, usual_refill(slots, shards), shards, self.config.sampling.group)

    def _sampling_array(self, shape: tuple[int, ...], axes: tuple[str | None, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        place = jax.sharding.NamedSharding(self.mesh, sharding.spec(axes, self._rules()))
        return jax.ShapeDtypeStruct(shape, dtype, sharding=place)

    def _sampled_variables(self) -> Any:
        """What `decoding.sampled_variables` gives."""
        student = self._student().variables
        if not self.sampling.int8_weights:
            return student
        config = self.decoder.config
        made = functools.partial(decoding.sampled_variables, config, sampling=self.sampling)
        with jax.set_mesh(self.mesh):
            copy = jax.eval_shape(made, student)
        placement = {"params": param_shardings(config, self.mesh, params=copy["params"])}
        if "lora" in copy:
            placement["lora"] = lora_shardings(config, self.mesh, copy["lora"])
        return _on(placement, copy)

    def _weights(self) -> decoding.Weights:
        """What `decoding.decoding_weights` gives."""
        config, student, rules = self.decoder.config, self._sampled_variables(), self._rules()
        if self.sampling.merged_adapters:
            student = {"params": student["params"]}
        placement = {"params": param_shardings(config, self.mesh, rules, student["params"])}
        if "lora" in student:
            placement["lora"] = lora_shardings(config, self.mesh, student["lora"], rules)
        placed = _on(placement, jax.eval_shape(functools.partial(cast, dtype=config.dtype), student))
        head = self._sampling_array((config.hidden_size, config.vocab_size), (None, "vocab"), config.dtype)

        def layers(x: Any) -> tuple[jax.ShapeDtypeStruct, ...]:
            """A stacked array as the tuple that an unrolled decoder reads."""
            rest = jax.sharding.NamedSharding(self.mesh, jax.sharding.PartitionSpec(*x.sharding.spec[1:]))
            return (jax.ShapeDtypeStruct(x.shape[1:], x.dtype, sharding=rest),) * config.num_layers

        if few_layers.unrolled(config):
            placed["params"] = placed["params"] | {"layers": jax.tree.map(layers, placed["params"]["layers"])}
            placed |= {"lora": jax.tree.map(layers, placed["lora"])} if "lora" in placed else {}
        return decoding.Weights(placed, head)

    def weight_bytes(self) -> float:
        """Bytes of weights that a chip holds in the program "decode", and reads for every token."""
        weights = self._weights()
        read = {name: x for name, x in weights.variables["params"].items() if name != "embed"}  # of it, single rows
        leaves = jax.tree.leaves((read, weights.variables.get("lora"), weights.head))
        return _bytes_of_a_chip(leaves)

    def cache_bytes(self) -> float:
        """Bytes of keys and values that a chip holds in the program "decode"."""
        return _bytes_of_a_chip(jax.tree.leaves(self._decoding_rows().cache))

    def cache_places(self) -> int:
        """Places of a row in that cache."""
        return self._decoding_rows().cache.length

    def prefill(self) -> jax.stages.Lowered:
        length = self.sizes.student_prompt
        rows = self.queue.refill if self.queue else self.sizes.batch
        prompts = [self._array(rows, length, dtype=dtype) for dtype in (jnp.int32, bool)]
        decoder, variables, cache_length = self.decoder, self._sampled_variables(), length + self.sizes.completion
        if self.queue:  # inside the loop, with the weights that are there; a prompt's cache is copied to its slot
            with jax.set_mesh(self.mesh):
                decoder = decoding.in_sampling_layout(decoder)
            variables, cache_length = self._weights().variables, length
            prompts = [self._sampling_array(x.shape, ("batch", None), x.dtype) for x in prompts]
        function = functools.partial(
            decoding.prefill, decoder, cache_length=cache_length, int8=self.sampling.int8_cache
        )
        return self._lower(function, variables, *prompts)

    def _decoding_rows(self) -> decoding.Rows | Text:
        s, config, drafts = self.sizes, self.decoder.config, self.recipe.rollout.draft_tokens
        rows = self.queue.slots if self.queue else s.batch
        length = s.student_prompt + s.completion + drafts
        int8 = self.sampling.int8_cache
        cache = jax.eval_shape(functools.partial(init_cache, config, rows, length, int8=int8))
        cache = jax.tree.map(lambda x: self._sampling_array(x.shape, POOL_AXES, x.dtype), cache)
        lengths = self._sampling_array((rows,), ("batch",), jnp.int32)
        if drafts:
            return Text(self._sampling_array((rows, length), ("batch", None), jnp.int32), cache, lengths)
        return decoding.Rows(
            self._sampling_array((rows, config.hidden_size), ("batch", None), config.dtype), cache, lengths
        )

    def decode(self) -> jax.stages.Lowered:
        rows = self._decoding_rows()
        shape: tuple[int, ...] = rows.lengths.shape
        step: Callable[..., Any] = decoding.decode_step
        drawn = 2
        if isinstance(rows, Text):
            shape, step, drawn = (*shape, 1 + self.recipe.rollout.draft_tokens), speculative_step, 3
        keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), shape))
        return self._lower(
            functools.partial(step, self.decoder, sampling=self.sampling),
            self._weights(),
            rows,
            _on(rows.lengths.sharding if self.queue else self.rows, keys),
            donate_argnums=1,
            out_shardings=(*(None,) * drawn, self._shardings(rows)),
        )

    # --- training ----------------------------------------------------------------------------------------------------

    def _completions(self, rows: int) -> contract.Completions:
        s, without = self.sizes, self._without(rows)
        n = s.completion
        samples = decoding.Samples(
            self._array(rows, n),
            self._array(rows, n, dtype=bool),
            self._array(rows, n, dtype=jnp.float32),
            self._array(rows, dtype=bool),
        )
        return contract.Completions(
            self._array(rows, s.student_prompt),
            self._array(rows, s.student_prompt, dtype=bool),
            self._array(rows, s.teacher_prompt),
            self._array(rows, s.teacher_prompt, dtype=bool),
            samples,
            self._array(rows, n, dtype=bool),
            self._array(rows, dtype=jnp.float32),
            without,
            self._array(rows, dtype=bool),
            failed=without.weights if self.config.loss.emphasis == "credit" else None,
        )

    def _without(self, rows: int) -> contract.Without:
        """The teacher's further prompts; without each criterion, of rubrics with as many as the config allows."""
        further = self.config.encoding.further
        count = self.config.rubric.max_criteria if further == "criteria" else 1
        shape = (rows, count, self.sizes.teacher_prompt) if further else (rows, 0, 0)
        return contract.Without(
            self._array(*shape), self._array(*shape, dtype=bool), self._array(*shape[:2], dtype=jnp.float32)
        )

    def scoring(self) -> jax.stages.Lowered:
        teacher = self.recipe.roles.teacher
        assert teacher is not None, "a method without one has no such program"
        if self.recipe.row_lengths:
            trip = self._trip(self.teacher_length)
            score_trip = functools.partial(packed_learning.score_trip, layout=self.layout)
            return self._lower(score_trip, self._network(teacher), trip, out_shardings=self.rows)
        score = functools.partial(score_teacher, loss=self.recipe.loss)
        completions = self._completions(self._microbatch())
        return self._lower(score, self._network(teacher), completions, out_shardings=self.rows)

    def chunks(self) -> int | None:
        """Chunks of the loss in a trip, whose loop ends with the last completion token; None without packing."""
        if not self.recipe.row_lengths:
            return None
        row = self._rows_of_trip(self.student_length).row
        completion = row * self.sizes.completion / self.student_length
        parts = sharding.parts_of_a_row(self.layout, self.mesh)
        return math.ceil(completion / parts / self.recipe.loss.chunk_size)

    def rows_together(self, length: int) -> float:
        """Sequences of this length that one run of a learning program takes."""
        if not self.recipe.row_lengths:
            return self._microbatch()
        row, rows = self._rows_of_trip(length)
        return rows * row / length if self.packed_rows else rows * (row // length)

    def attended(self, config: DecoderConfig, length: int) -> tuple[int, float]:
        """`Program.row` and `.attended` of a role's rows of sequences of this length. Of rows that are asked for, nobody knows what they hold."""
        if self.packed_rows:
            return 0, 1.0
        row = self._rows_of_trip(length).row if self.recipe.row_lengths else length
        if row < 2 * length:
            return _within_windows(config, row)
        return _within_windows(config, row, row // length)

    def _microbatch(self) -> int:
        return self.sizes.batch // self.sizes.microbatches

    def _rows_of_trip(self, longest: int) -> PackedRows:
        """The longest rows of a trip over sequences up to this length."""
        if self.packed_rows:
            return self.packed_rows
        shards = sharding.row_shards(self.layout, self.mesh)
        parts = sharding.parts_of_a_row(self.layout, self.mesh)
        rows, row = packing.largest_trip(longest, self._microbatch() // shards, parts)
        return PackedRows(row, rows * shards)

    def _trip(self, longest: int) -> packed_learning.Trip:
        """A trip over sequences up to this length."""
        row, rows = self._rows_of_trip(longest)
        shards = sharding.row_shards(self.layout, self.mesh)
        parts = sharding.parts_of_a_row(self.layout, self.mesh)
        pieces, length = rows * parts, row // parts
        piece = self._array(pieces, length)
        axes = sharding.spec(("batch", "places", None), sharding.LAYOUTS[self.layout])
        place = jax.sharding.NamedSharding(self.mesh, axes)

        def of_shard(dtype: Any) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((shards, pieces // shards, length), dtype, sharding=place)

        places = of_shard(jnp.int32)
        return packed_learning.Trip(piece, piece, piece, piece, places, places, places, of_shard(jnp.float32))

    def gradients(self) -> jax.stages.Lowered:
        if self.recipe.row_lengths:
            return self._trip_gradients(self.student_length)
        completions, teacher = self._completions(self._microbatch()), None
        hidden: jax.ShapeDtypeStruct | None = None
        if self.recipe.roles.teacher is not None:
            teacher = self._network(self.recipe.roles.teacher)
            shape = *completions.samples.tokens.shape, hidden_width(teacher)
            hidden = self._array(*shape, dtype=teacher.decoder.config.dtype)
        weights = contract.Weights(*[self._array(*completions.samples.tokens.shape, dtype=jnp.float32)] * 2)
        state = self.setup.abstract
        return self._lower(
            functools.partial(step.loss_and_gradient, self.recipe),
            state, self.setup.frozen, teacher, hidden, completions, weights,
            out_shardings=(None, self._shardings(state.trained)),
        )  # fmt: skip

    def _trip_gradients(self, length: int) -> jax.stages.Lowered:
        trip, teacher = self._trip(length), None
        hidden: jax.ShapeDtypeStruct | None = None
        if self.recipe.roles.teacher is not None:
            teacher = self._network(self.recipe.roles.teacher)
            config = teacher.decoder.config
            hidden = self._array(*trip.tokens.shape, hidden_width(teacher), dtype=config.dtype)
        state, tokens = self.setup.abstract, trip.tokens
        number = self._array(*tokens.shape, dtype=jnp.float32)
        of_tokens = contract.CompletionTokens(tokens, number, number), contract.Weights(number, number)
        return self._lower(
            functools.partial(packed_learning.trip_loss_and_gradient, self.recipe),
            state, self.setup.frozen, teacher, hidden, trip, *of_tokens,
            out_shardings=(None, self._shardings(state.trained)),
        )  # fmt: skip

    def update(self) -> jax.stages.Lowered:
        state = self.setup.abstract
        function = functools.partial(update, optimizer=self.recipe.optimizer, ema_decay=self.recipe.ema_decay)
        return self._lower(
            function, state, self._scalar(jnp.float32), state.trained, donate_argnums=0,
            out_shardings=(self._shardings(state), None, None),
        )  # fmt: skip
