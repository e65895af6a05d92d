"""The model families whose checkpoints can be read and written, by the `model_type` of their config.json."""

from rcsd_jax.checkpoints.families.family import Family
from rcsd_jax.checkpoints.families.llama import LLAMA
from rcsd_jax.checkpoints.families.qwen import QWEN2, QWEN3, QWEN3_MOE

FAMILIES: dict[str, Family] = {"qwen3": QWEN3, "qwen3_moe": QWEN3_MOE, "qwen2": QWEN2, "llama": LLAMA}
