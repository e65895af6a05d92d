"""The networks of student and teacher: each is a decoder and the place that its weights come from.

A role is a value. Another teacher is another value: a second checkpoint has its own decoder and its own name among the frozen
weights. Two roles that stand on the same frozen weights have the same name for them, so there is one copy in memory.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

import flax.struct
import jax

from rcsd_jax.methods.state import TrainState
from rcsd_jax.models.decoder import Decoder
from rcsd_jax.models.head import head_matrix

Variables: TypeAlias = Mapping[str, Any]
"""What a decoder is applied to: {"params": ...}, and "lora" where adapters are in use."""

Frozen: TypeAlias = Mapping[str, Variables]
"""Weights that training does not change, by name."""

BASE = "base"
"""The name of the weights that a run begins with: a LoRA's base, and a fixed teacher."""


@flax.struct.dataclass
class Network:
    """A decoder with its variables, which writes completions and scores them. A pytree whose decoder is static."""

    decoder: Decoder = flax.struct.field(pytree_node=False)
    variables: Variables

    @property
    def head(self) -> jax.Array:
        """The output matrix [D, V]: logits = hidden @ head."""
        return head_matrix(self.decoder.config, self.variables["params"])


@dataclasses.dataclass(frozen=True)
class RoleNetwork:
    """Where the network of a role comes from; hashable.

    Attributes:
      decoder: its model.
      frozen: the name of its frozen weights; None: it has none.
      moving: what of the state it has, "trained" or "average": adapters on the frozen weights or, without these, the whole
        model. None: nothing, so that it never changes.
    """

    decoder: Decoder
    frozen: str | None = None
    moving: str | None = None

    def at(self, state: TrainState, frozen: Frozen) -> Network:
        """The network at a state of the training."""
        variables = {} if self.frozen is None else dict(frozen[self.frozen])
        if self.moving is not None:
            variables["params" if self.frozen is None else "lora"] = getattr(state, self.moving)
        return Network(self.decoder, variables)


class Networks(NamedTuple):
    """The networks of both roles at one state."""

    student: Network
    teacher: Network | None


class Roles(NamedTuple):
    """Where the networks of both roles come from; the teacher is None where the method has none."""

    student: RoleNetwork
    teacher: RoleNetwork | None

    def at(self, state: TrainState, frozen: Frozen) -> Networks:
        """Both networks at a state of the training."""
        teacher = None if self.teacher is None else self.teacher.at(state, frozen)
        return Networks(self.student.at(state, frozen), teacher)
