"""The trainer's own functions, traced with abstract arguments: what the trainer passes them, as shapes on the mesh."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, overload

import jax
import jax.numpy as jnp

from rcsd_jax.methods import contract, packed_learning, packing, rollout, step
from rcsd_jax.methods.networks import Mixture, Network, RoleMixture, RoleNetwork, hidden_width
from rcsd_jax.methods.score_both import score_teacher
from rcsd_jax.methods.state import shardings_of, update
from rcsd_jax.models import few_layers, sharding
from rcsd_jax.models.cache import POOL_AXES, init_cache
from rcsd_jax.models.config import DecoderConfig
from rcsd_jax.models.placement import lora_shardings, param_shardings, sampling_layout
from rcsd_jax.models.weights import cast
from rcsd_jax.plan.networks import bytes_of_a_chip, on
from rcsd_jax.plan.planned import TRANSITION, Lengths, PackedRows, Queue
from rcsd_jax.plan.windows import within_windows
from rcsd_jax.run.training_state import Setup
from rcsd_jax.sampling import decoding
from rcsd_jax.sampling.slots import usual_refill
from rcsd_jax.sampling.speculative import Text, speculative_step
from rcsd_jax.settings.stage import Settings


class Lowering:
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
            return on(placement, jax.eval_shape(role.at, state, frozen))
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
        return on(placement, copy)

    def _weights(self) -> decoding.Weights:
        """What `decoding.decoding_weights` gives."""
        config, student, rules = self.decoder.config, self._sampled_variables(), self._rules()
        if self.sampling.merged_adapters:
            student = {"params": student["params"]}
        placement = {"params": param_shardings(config, self.mesh, rules, student["params"])}
        if "lora" in student:
            placement["lora"] = lora_shardings(config, self.mesh, student["lora"], rules)
        placed = on(placement, jax.eval_shape(functools.partial(cast, dtype=config.dtype), student))
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
        return bytes_of_a_chip(leaves)

    def cache_bytes(self) -> float:
        """Bytes of keys and values that a chip holds in the program "decode"."""
        return bytes_of_a_chip(jax.tree.leaves(self._decoding_rows().cache))

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
            on(rows.lengths.sharding if self.queue else self.rows, keys),
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
            return within_windows(config, row)
        return within_windows(config, row, row // length)

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
