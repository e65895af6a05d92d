"""A stage's settings in small: its own model, mesh, batch and method, on short prompts and completions."""

from __future__ import annotations

import dataclasses

import jax

from rcsd_jax.settings.stage import Settings

STUDENT_PROMPT, TEACHER_PROMPT, COMPLETION, ANALYSIS = 128, 192, 64, 32
"""Tokens at most."""
BATCHES = 2
"""Of a rollout at most."""


def as_run_here(config: Settings) -> Settings:
    """The settings with the kernels of these devices named, as a run chooses them, and without what needs data or a tokenizer."""
    kernels = config.model.kernels
    if kernels == "auto":
        kernels = "pallas" if jax.default_backend() == "tpu" else "xla"
    source = "student" if config.sampling.source == "reference" else config.sampling.source
    train = config.train
    if not train.steps:  # of a run in epochs
        train = dataclasses.replace(train, steps=train.updates_per_rollout, epochs=0.0)
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, kernels=kernels),
        sampling=dataclasses.replace(config.sampling, source=source),
        # All completions are cut, and none has a thought that ends.
        loss=dataclasses.replace(config.loss, thinking="all", mask_cut=False, skip_first=0),
        train=train,
    )


def small(config: Settings) -> Settings:
    """The settings with short prompts, completions and rollouts."""
    data, sampling, teacher, train = config.data, config.sampling, config.teacher, config.train
    batches = min(train.batches_per_rollout, BATCHES)
    fewer = dataclasses.replace(train, batches_per_rollout=batches, passes_per_rollout=1, steps=batches, epochs=0.0)
    slots = sampling.slots if (batches * train.batch_size) % (sampling.slots or 1) == 0 else 0
    return dataclasses.replace(
        config,
        data=dataclasses.replace(
            data,
            max_student_prompt=min(data.max_student_prompt, STUDENT_PROMPT),
            max_teacher_prompt=min(data.max_teacher_prompt, TEACHER_PROMPT),
        ),
        sampling=dataclasses.replace(sampling, max_new_tokens=min(sampling.max_new_tokens, COMPLETION), slots=slots),
        teacher=dataclasses.replace(teacher, reason_tokens=min(teacher.reason_tokens, ANALYSIS)),
        train=fewer,
    )
