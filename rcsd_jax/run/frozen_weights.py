"""The weights that training does not change: a LoRA's base or fixed teacher, and teachers that are other models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax

from rcsd_jax.methods.networks import BASE, Frozen
from rcsd_jax.models import quantization
from rcsd_jax.models.sharding import DEFAULT_RULES, SPREAD_RULES
from rcsd_jax.roles.opened_model import Model
from rcsd_jax.roles.own_teacher import Teachers, load_teacher
from rcsd_jax.run.recipe import frozen_name
from rcsd_jax.settings.stage import Settings


def load_teachers(
    teachers: Teachers,
    model: Model,
    params: Mapping[str, Any],
    mesh: jax.sharding.Mesh,
    *,
    say: Callable[[str], None] = lambda line: None,
) -> Frozen:
    """The plain weights of teachers that are other models, by their names among the frozen ones.

    Args:
      teachers: the opened ones.
      model: the student's.
      params: the student's before training, which a teacher on the same base shares.
      mesh: the run's.
      say: is called before each is read.
    """
    frozen: Frozen = {}
    for of, teacher in teachers.items():
        say(f"loading weights of the teacher {teacher.path}")
        frozen[frozen_name(of)] = load_teacher(teacher, model, params, mesh)
    return frozen


def quantized(frozen: Frozen, model: Model, teachers: Teachers, config: Settings, mesh: jax.sharding.Mesh) -> Frozen:
    """Those of the plain weights that the config quantizes, so stored; adapters stay as they are.

    Of weights that two names share, there is one quantized copy if both are stored in the same form.
    """
    stored = {BASE: (model, DEFAULT_RULES, config.model.quantization)} if BASE in frozen else {}
    own = config.teacher.quantization
    stored |= {frozen_name(of): (teacher.model, SPREAD_RULES, own) for of, teacher in teachers.items()}
    made: dict[tuple[int, str], Any] = {}
    found: Frozen = {}
    for name, (of, rules, form) in stored.items():
        params = frozen[name]["params"]
        if form == "none":
            continue
        if (id(params), form) not in made:
            made[id(params), form] = quantization.on_mesh(of.decoder.config, params, mesh, rules, form)
        found[name] = {**frozen[name], "params": made[id(params), form]}
    return found
