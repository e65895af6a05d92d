"""Methods: losses of completions that student and teacher score. A new one is a file here and a line in `METHODS`.

A method is `loss_and_sums(scored, completions, weights, options)`, whose contract `self_distillation` spells out. Sampling,
scoring, microbatches, updates, checkpoints and metrics are the same for all.
"""

from collections.abc import Callable

from rcsd_jax.methods import grpo, mixed, self_distillation, sft

METHODS: dict[str, Callable] = {
    "self_distillation": self_distillation.loss_and_sums,
    "grpo": grpo.loss_and_sums,
    "sft": sft.loss_and_sums,
    "self_distillation_and_grpo": mixed.loss_and_sums,
}
