"""Completions from a decoder: one batch at a time, a queue through few slots, or many prompts from the host through a `sampler`."""

from rcsd_jax.sampling.decoding import (
    GREEDY_BELOW,
    Samples,
    SamplingConfig,
    generate,
    sample_token,
)

__all__ = ["GREEDY_BELOW", "Samples", "SamplingConfig", "generate", "sample_token"]
