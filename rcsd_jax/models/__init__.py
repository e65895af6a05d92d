"""The decoder, its sharding, LoRA, and Hugging Face directories."""

from rcsd_jax.models.decoder import Decoder, DecoderConfig, head_matrix, init_params

__all__ = ["Decoder", "DecoderConfig", "head_matrix", "init_params"]
