"""What a step is made of, besides its state: the roles, and the options of sampling, loss and update."""

from __future__ import annotations

import dataclasses

import optax

from rcsd_jax.methods.contract import LossOptions
from rcsd_jax.methods.networks import Roles
from rcsd_jax.methods.rollout import RolloutOptions


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The static choices of a step."""

    roles: Roles
    rollout: RolloutOptions
    loss: LossOptions
    optimizer: optax.GradientTransformation
    method: str = "self_distillation"  # of `METHODS`
    ema_decay: float = 0.999  # of the state's average, a step
    microbatches: int = 1  # parts into which a batch of the longest sequences is split; one part is in memory at a time
    row_lengths: int = 0  # how many static lengths packed rows can have; 0: every sequence is padded to the longest
    split_rows: bool = False  # packed rows are split over the mesh's fsdp axis, see `sharding.LAYOUTS`
