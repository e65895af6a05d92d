"""The decoder, its placement on a mesh, LoRA and quantized weights: pure functions of pytrees."""

from rcsd_jax.models.config import DecoderConfig
from rcsd_jax.models.declarations import init_params
from rcsd_jax.models.decoder import Decoder
from rcsd_jax.models.head import head_matrix

__all__ = ["Decoder", "DecoderConfig", "head_matrix", "init_params"]
