"""Methods: losses of completions that student and teacher score. A new one is a file here and a line in `METHODS`.

A method is `loss_and_sums(scored, completions, weights, options)` of completion tokens, whose contract `self_distillation` spells out. Sampling,
scoring, microbatches, updates, checkpoints and metrics are the same for all.
"""

from collections.abc import Callable
from typing import NamedTuple

from rcsd_jax.methods import fixed_advantage, grpo, mixed, rlcsd, self_distillation, sft


class Method(NamedTuple):
    """A method's loss, whether it has a teacher, whether completions are graded for it, and whether hints are contrasted."""

    loss_and_sums: Callable
    teacher: bool = False
    rewarded: bool = False
    contrasts: bool = False


METHODS: dict[str, Method] = {
    "self_distillation": Method(self_distillation.loss_and_sums, teacher=True),
    "grpo": Method(grpo.loss_and_sums, rewarded=True),
    "fixed_advantage": Method(fixed_advantage.loss_and_sums),
    "sft": Method(sft.loss_and_sums),
    "rlcsd": Method(rlcsd.loss_and_sums, teacher=True, rewarded=True, contrasts=True),
    "self_distillation_and_grpo": Method(mixed.loss_and_sums, teacher=True, rewarded=True),
}
