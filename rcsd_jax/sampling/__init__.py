"""Completions from a decoder: one batch, a queue of prompts through few slots, or many prompts from the host through a `Sampler`."""

from rcsd_jax.sampling.decoding import (
    GREEDY_BELOW,
    Samples,
    SamplingConfig,
    generate,
    sample_token,
)

__all__ = ["GREEDY_BELOW", "Samples", "SamplingConfig", "generate", "sample_token"]
