"""The model families whose checkpoints can be read and written, by the `model_type` of their config.json."""

from rcsd_jax.checkpoints.families.family import Family
from rcsd_jax.checkpoints.families.gemma3 import GEMMA3, GEMMA3_TEXT
from rcsd_jax.checkpoints.families.granite import GRANITE
from rcsd_jax.checkpoints.families.llama import LLAMA
from rcsd_jax.checkpoints.families.mistral import MISTRAL
from rcsd_jax.checkpoints.families.olmo import OLMO2, OLMO3
from rcsd_jax.checkpoints.families.qwen import QWEN2, QWEN3
from rcsd_jax.checkpoints.families.qwen_moe import QWEN3_MOE
from rcsd_jax.checkpoints.families.smollm3 import SMOLLM3

FAMILIES: dict[str, Family] = {
    "qwen3": QWEN3,
    "qwen3_moe": QWEN3_MOE,
    "qwen2": QWEN2,
    "llama": LLAMA,
    "gemma3": GEMMA3,
    "gemma3_text": GEMMA3_TEXT,
    "smollm3": SMOLLM3,
    "mistral": MISTRAL,
    "olmo2": OLMO2,
    "olmo3": OLMO3,
    "granite": GRANITE,
}
