"""Measures the distance of a model with quantized weights from the plain one, on the run's own prompts."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from rcsd_jax import losses
from rcsd_jax.methods.networks import BASE, Frozen, Network
from rcsd_jax.models.decoder import positions_from_mask
from rcsd_jax.models.sharding import to_mesh
from rcsd_jax.roles.encode import Encoded
from rcsd_jax.roles.opened_model import Model
from rcsd_jax.roles.own_teacher import Teachers
from rcsd_jax.run.batch import make_batch
from rcsd_jax.run.recipe import frozen_name
from rcsd_jax.settings.stage import Settings


def divergences(
    plain: Frozen,
    quantized: Frozen,
    data: Encoded,
    model: Model,
    teachers: Teachers,
    config: Settings,
    mesh: jax.sharding.Mesh,
) -> dict[str, dict[str, float]]:
    """Compares the next-token distributions of networks with plain and with quantized weights, over the prompts of a microbatch.

    Args:
      plain: all frozen weights.
      quantized: those that are quantized, so stored.
      data: the run's prompts, of which the first ones are used.
      model: the student's.
      teachers: those that are other models.
      config: of the run.
      mesh: the run's.

    Returns:
      Role, or name of a teacher -> means over "tokens" tokens of its prompts, in nats: "kl", KL(plain || quantized), and "entropy",
      of the plain model, for comparison.
    """
    compared = functools.partial(_compared, data=data, config=config, model=model, mesh=mesh)
    found: dict[str, dict[str, float]] = {}
    if BASE in quantized:
        roles = [] if config.teacher_weights in ("own", "endpoint") else ["teacher"]
        roles += ["student"] if config.lora.rank else []
        found |= compared(*(Network(model.decoder, of[BASE]) for of in (plain, quantized)), roles=roles)
    for of, teacher in teachers.items():
        if (name := frozen_name(of)) in quantized:
            networks = (Network(teacher.model.decoder, weights[name]) for weights in (plain, quantized))
            found[name] = compared(*networks, roles=["teacher"])["teacher"]
    return found


def _compared(
    plain: Network,
    quantized: Network,
    *,
    data: Encoded,
    config: Settings,
    model: Model,
    mesh: jax.sharding.Mesh,
    roles: Sequence[str],
) -> dict[str, dict[str, float]]:
    rows = [i % len(data.examples) for i in range(config.train.batch_size // config.train.microbatches)]
    batch = to_mesh(make_batch(rows, data, config, model.pad_id, mesh), mesh)
    compare = jax.jit(functools.partial(_compare, chunk_size=config.loss.chunk_size))
    prompts = {
        "teacher": (batch.teacher_tokens, batch.teacher_mask),
        "student": (batch.student_tokens, batch.student_mask),
    }
    results = {role: compare(plain, quantized, *prompts[role]) for role in roles}
    return {role: {name: float(value) for name, value in result.items()} for role, result in results.items()}


def described(quantized: dict[str, dict[str, float]]) -> str:
    """The divergences of all roles in one line."""
    roles = (f"{role} {x['kl']:.2g} at an entropy of {x['entropy']:.2g}" for role, x in quantized.items())
    return f"KL(plain || quantized) in nats a token of the prompts: {', '.join(roles)}"


def _compare(
    plain: Network, quantized: Network, tokens: jax.Array, mask: jax.Array, *, chunk_size: int
) -> dict[str, jax.Array]:
    def hidden(network: Network) -> jax.Array:
        segments, positions = mask.astype(jnp.int32), positions_from_mask(mask)
        return network.decoder.apply(network.variables, tokens, segment_ids=segments, positions=positions)[0]

    scores = losses.score_from_hidden(
        hidden(quantized), plain.head, hidden(plain), plain.head, tokens, chunk_size=chunk_size
    )
    means = {"kl": scores.divergence, "entropy": scores.teacher_entropy}
    return {name: losses.masked_mean(values, mask) for name, values in means.items()} | {"tokens": mask.sum()}
