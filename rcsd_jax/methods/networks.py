"""The networks of student and teacher: for each role a decoder, and where its weights come from.

    student                full model     RoleNetwork(decoder, moving="trained")
                           LoRA           RoleNetwork(decoder, frozen=BASE, moving="trained")
    teacher                fixed          RoleNetwork(decoder, frozen=BASE)
                           live           the student's
                           EMA            the student's with moving="average"
                           trust region   RoleMixture of the fixed one and the live one
                           its own        RoleNetwork(its decoder, frozen=TEACHER)
                           several        RoleSeveral of such, of which each completion has one
                           better of two  RoleBetter of one of these and the student's

Frozen weights have names. Roles that name the same ones share them, so memory holds one copy.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import flax.struct
import jax
import jax.numpy as jnp

from rcsd_jax.methods.state import TrainState
from rcsd_jax.models.decoder import Decoder
from rcsd_jax.models.head import head_matrix

Variables: TypeAlias = Mapping[str, Any]
"""What a decoder is applied to: {"params": ...}, and "lora" where adapters are in use."""

Frozen: TypeAlias = dict[str, Variables]
"""Name -> weights that training does not change."""

BASE = "base"
"""The name of the weights that a run starts from: a LoRA's base, and a fixed teacher."""

TEACHER = "teacher"
"""The name of the weights of a teacher of its own."""


@flax.struct.dataclass
class Network:
    """A decoder with its variables, which writes completions and scores them. A pytree whose decoder is static."""

    decoder: Decoder = flax.struct.field(pytree_node=False)
    variables: Variables

    @property
    def head(self) -> jax.Array:
        """The output matrix [D, V]: logits = hidden @ head."""
        return head_matrix(self.decoder.config, self.variables["params"])


@flax.struct.dataclass
class Mixture:
    """Two networks that score together: logits = (1 - share) * initial's + share * current's (SDPO's trust region).

    Logits are linear in hidden states, so the mixture has hidden states and a head like one network: if both have the same head,
    the mixed states; otherwise the states of both side by side, [..., 2 D], on a head [2 D, V].
    """

    initial: Network
    current: Network
    share: float = flax.struct.field(pytree_node=False)
    same_head: bool = flax.struct.field(pytree_node=False)

    @property
    def decoder(self) -> Decoder:
        """That of both."""
        return self.initial.decoder

    @property
    def head(self) -> jax.Array:
        """The output matrix [D or 2 D, V]."""
        return self.initial.head if self.same_head else jnp.concatenate([self.initial.head, self.current.head])


@flax.struct.dataclass
class Several:
    """Networks of which each completion has one as its teacher, `Completions.teacher`; they only score."""

    networks: tuple[Network, ...]

    @property
    def head(self) -> tuple[jax.Array, ...]:
        """The output matrix [D, V] of each; D and V may differ."""
        return tuple(network.head for network in self.networks)


@flax.struct.dataclass
class Better:
    """A teacher and the student itself after the teacher's prompts: each token has one of the two as its target."""

    teacher: Network | Mixture
    student: Network

    @property
    def head(self) -> tuple[jax.Array, ...]:
        """The output matrix [D, V] of each; D may differ."""
        return self.teacher.head, self.student.head


Teacher: TypeAlias = Network | Mixture | Several | Better


def hidden_of(network: Network | Mixture, score: Callable[[Network], jax.Array]) -> jax.Array:
    """The final hidden states `score(network)` [..., D]; of a mixture [..., D or 2 D], as its head takes them."""
    if isinstance(network, Network):
        return score(network)
    initial, current = score(network.initial), score(network.current)
    first, second = (1 - network.share) * initial.astype(jnp.float32), network.share * current.astype(jnp.float32)
    mixed = first + second if network.same_head else jnp.concatenate([first, second], axis=-1)
    return mixed.astype(initial.dtype)


def hidden_width(network: Network | Mixture) -> int:
    """The last axis of `hidden_of`."""
    size = network.decoder.config.hidden_size
    return size if isinstance(network, Network) or network.same_head else 2 * size


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


@dataclasses.dataclass(frozen=True)
class RoleMixture:
    """Where a mixture comes from; hashable."""

    initial: RoleNetwork
    current: RoleNetwork
    share: float  # of the current network's logits

    @property
    def decoder(self) -> Decoder:
        """That of both."""
        return self.initial.decoder

    @property
    def frozen(self) -> str | None:
        """The initial network's frozen weights."""
        return self.initial.frozen

    @property
    def moving(self) -> str | None:
        """The part of the state that the current network uses."""
        return self.current.moving

    def of(self, initial: Network, current: Network) -> Mixture:
        """The mixture of these two."""
        return Mixture(initial, current, self.share, self.initial.frozen == self.current.frozen)

    def at(self, state: TrainState, frozen: Frozen) -> Mixture:
        """The mixture at a state of the training."""
        return self.of(self.initial.at(state, frozen), self.current.at(state, frozen))


@dataclasses.dataclass(frozen=True)
class RoleSeveral:
    """Where several teachers come from; hashable."""

    teachers: tuple[RoleNetwork, ...]

    frozen = None
    moving = None

    def at(self, state: TrainState, frozen: Frozen) -> Several:
        """The networks at a state of the training, which never change."""
        return Several(tuple(role.at(state, frozen) for role in self.teachers))


@dataclasses.dataclass(frozen=True)
class RoleBetter:
    """Where the better of two comes from; hashable."""

    teacher: RoleNetwork | RoleMixture
    student: RoleNetwork

    @property
    def decoder(self) -> Decoder:
        """The teacher's."""
        return self.teacher.decoder

    @property
    def frozen(self) -> str | None:
        """The teacher's frozen weights."""
        return self.teacher.frozen

    @property
    def moving(self) -> str | None:
        """The part of the state that the teacher uses, or else the student."""
        return self.teacher.moving or self.student.moving

    def at(self, state: TrainState, frozen: Frozen) -> Better:
        """Both networks at a state of the training."""
        return Better(self.teacher.at(state, frozen), self.student.at(state, frozen))


class Networks(NamedTuple):
    """The networks of both roles at one state."""

    student: Network
    teacher: Teacher | None


class Roles(NamedTuple):
    """Where the networks of both roles come from; the teacher is None where the method has none."""

    student: RoleNetwork
    teacher: RoleNetwork | RoleMixture | RoleSeveral | RoleBetter | None

    def at(self, state: TrainState, frozen: Frozen) -> Networks:
        """Both networks at a state of the training."""
        teacher = None if self.teacher is None else self.teacher.at(state, frozen)
        return Networks(self.student.at(state, frozen), teacher)
