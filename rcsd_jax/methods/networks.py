"""The networks of student and teacher: for each role a decoder, and where its weights come from.

    student                full model     RoleNetwork(decoder, moving="trained")
                           LoRA           RoleNetwork(decoder, frozen=BASE, moving="trained")
    teacher                fixed          RoleNetwork(decoder, frozen=BASE)
                           live           the student's
                           EMA            the student's with moving="average"
                           a checkpoint   RoleNetwork(its decoder, frozen="its name")

Frozen weights have names. Roles that name the same ones share them, so memory holds one copy.
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

Frozen: TypeAlias = dict[str, Variables]
"""Name -> weights that training does not change."""

BASE = "base"
"""The name of the weights that a run starts from: a LoRA's base, and a fixed teacher."""


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
      moving: which part of the state it uses, "trained" or "average". With frozen weights these are adapters, without them the
        whole model. None: it uses no part, and never changes.
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
