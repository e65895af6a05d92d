"""Shapes of published models, for planning a run before anything is downloaded: fields of their config.json."""

from __future__ import annotations

from typing import Any

# name: hidden, intermediate, layers, heads, whether the output matrix is the embedding. arXiv 2505.09388, table 1, and the
# models' pages on huggingface.co; the parameter counts of `tests/test_plan.py` are those of their safetensors.
_QWEN3 = {
    "0.6B": (1024, 3072, 28, 16, True),
    "1.7B": (2048, 6144, 28, 16, True),
    "4B": (2560, 9728, 36, 32, True),
    "8B": (4096, 12288, 36, 32, False),
    "14B": (5120, 17408, 40, 40, False),
    "32B": (5120, 25600, 64, 64, False),
}


def _qwen3(hidden: int, intermediate: int, layers: int, heads: int, tied: bool) -> dict[str, Any]:
    return {
        "model_type": "qwen3",
        "vocab_size": 151936,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "max_position_embeddings": 40960,
        "tie_word_embeddings": tied,
    }


# name: hidden, intermediate of an expert, layers, heads. The field intermediate_size is there, but no layer has that width.
_QWEN3_MOE = {"30B-A3B": (2048, 768, 48, 32), "235B-A22B": (4096, 1536, 94, 64)}


def _qwen3_moe(hidden: int, expert: int, layers: int, heads: int) -> dict[str, Any]:
    return _qwen3(hidden, 3 * hidden, layers, heads, False) | {
        "model_type": "qwen3_moe",
        "num_key_value_heads": 4,
        "moe_intermediate_size": expert,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
    }


# name: hidden, intermediate, layers, heads, key/value heads, width of a head, window, query_pre_attn_scalar. arXiv 2503.19786, table 1, and
# the models' pages. From 4B on, these are the text models of checkpoints that also see images: those have 64 more rows of the
# vocabulary, and positions beyond 32,768 by RoPE scaling of the global layers.
_GEMMA3 = {
    "270m": (640, 2048, 18, 4, 1, 256, 512, 256),
    "1b": (1152, 6912, 26, 4, 1, 256, 512, 256),
    "4b": (2560, 10240, 34, 8, 4, 256, 1024, 256),
    "12b": (3840, 15360, 48, 16, 8, 256, 1024, 256),
    "27b": (5376, 21504, 62, 32, 16, 128, 1024, 168),
}


def _gemma3(
    hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int, head_dim: int, window: int, scalar: int
) -> dict[str, Any]:
    sees_images = layers > 26
    return {
        "model_type": "gemma3_text",
        "vocab_size": 262208 if sees_images else 262144,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "hidden_activation": "gelu_pytorch_tanh",
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "rope_local_base_freq": 1e4,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0} if sees_images else None,
        "max_position_embeddings": 131072 if sees_images else 32768,
        "sliding_window": window,
        "sliding_window_pattern": 6,
        "query_pre_attn_scalar": scalar,
        "tie_word_embeddings": True,
    }


PUBLISHED: dict[str, dict[str, Any]] = {
    **{f"Qwen/Qwen3-{size}": _qwen3(*shape) for size, shape in _QWEN3.items()},
    **{f"Qwen/Qwen3-{size}": _qwen3_moe(*shape) for size, shape in _QWEN3_MOE.items()},
    **{f"google/gemma-3-{size}-it": _gemma3(*shape) for size, shape in _GEMMA3.items()},
}
"""Hub id -> fields of config.json that decide shapes."""
