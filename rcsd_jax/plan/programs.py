"""The jitted programs of a run, from its config and a slice's devices: only shapes, no weights.

They are the trainer's own functions. This file, `lowering.py` and `networks.py` hold all that this package knows of the trainer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rcsd_jax.methods.networks import BASE, RoleSeveral
from rcsd_jax.models import sharding
from rcsd_jax.models.decoder import Decoder
from rcsd_jax.models.placement import check_divisible
from rcsd_jax.plan import windows
from rcsd_jax.plan.lowering import Lowering
from rcsd_jax.plan.networks import decoder_config, own_teacher, params_on
from rcsd_jax.plan.planned import PackedRows, Plan, Program, lengths_of
from rcsd_jax.roles import opened_model
from rcsd_jax.run import training_state
from rcsd_jax.settings.stage import Settings


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
    params = params_on(shape, mesh)
    teachers, of_teacher = own_teacher(config, model, mesh)
    setup = training_state.setup(model, params, config, mesh, teachers)
    if config.model.quantization != "none":
        setup = setup._replace(frozen={BASE: {"params": params_on(shape, mesh, config.model.quantization)}})
    setup = setup._replace(frozen=setup.frozen | of_teacher)
    role = setup.recipe.roles.teacher
    scorer = shape if role is None or isinstance(role, RoleSeveral) else role.decoder.config
    make = Lowering(config, mesh, setup, sizes, rows)
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
            *windows.within_windows(shape, sizes.student_prompt),
        ),
        Program(
            "decode", sizes.completion * sizes.batch / decoded / passes, decoded, make.decode,
            attended=windows.read_of_a_full_cache(shape, make.cache_places()) / make.cache_places(),
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
