"""Small random Hugging Face directories, written by `transformers` itself: the other side of the parity tests."""

from __future__ import annotations

import pathlib

VOCAB_SIZE = 97
# Weights this wide give logits whose two best entries are far apart, so that greedy tokens do not hang on rounding.
WEIGHT_STD = 0.35

_COMMON = dict(
    vocab_size=VOCAB_SIZE,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=5,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=512,
)
_LLAMA3_ROPE = dict(
    rope_type="llama3",
    rope_theta=10000.0,
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=32,
)
# Two layers are unrolled by the decoder, five are scanned.
KINDS = {
    "qwen3": (
        "Qwen3",
        dict(num_hidden_layers=2, head_dim=16, rope_parameters=dict(rope_type="default", rope_theta=1e6)),
    ),
    "qwen3_tied": ("Qwen3", dict(head_dim=8, tie_word_embeddings=True)),
    "qwen2": ("Qwen2", dict(tie_word_embeddings=True, rope_parameters=dict(rope_type="default", rope_theta=1e6))),
    "llama3": ("Llama", dict(rope_parameters=_LLAMA3_ROPE)),
}
# Families that differ from these by switches, with shapes that are not the usual ones: heads that are not hidden / heads wide, one
# key/value head or as many as heads, tied or not. Prompts are longer than windows, and than the contexts that yarn stretches.
FAMILY_KINDS = {
    "qwen3_moe": (
        "Qwen3Moe",
        dict(
            num_hidden_layers=2, head_dim=16, num_key_value_heads=1, num_experts=8, num_experts_per_tok=3,
            moe_intermediate_size=24, norm_topk_prob=True,
        ),
    ),
    "gemma3_text": (
        "Gemma3Text",
        dict(
            head_dim=16, num_key_value_heads=1, query_pre_attn_scalar=24, sliding_window=5, sliding_window_pattern=2,
            rope_parameters=dict(
                full_attention=dict(rope_type="linear", rope_theta=1e6, factor=8.0),
                sliding_attention=dict(rope_type="default", rope_theta=1e4),
            ),
        ),
    ),
    "smollm3": ("SmolLM3", dict(num_hidden_layers=2, head_dim=16, num_key_value_heads=1, no_rope_layer_interval=2)),
    "mistral": ("Mistral", dict(num_hidden_layers=2, head_dim=16, num_key_value_heads=4, sliding_window=6)),
    "olmo2": ("Olmo2", dict(num_hidden_layers=2, head_dim=16, num_key_value_heads=1, tie_word_embeddings=True, rope_parameters=dict(rope_type="linear", rope_theta=5e5, factor=2.0))),
    "olmo3": (
        "Olmo3",
        dict(
            num_hidden_layers=2, head_dim=16, num_key_value_heads=1, sliding_window=7, layer_types=["sliding_attention", "full_attention"],
            rope_parameters=dict(
                full_attention=dict(rope_type="yarn", rope_theta=5e5, factor=8.0, original_max_position_embeddings=64),
                sliding_attention=dict(rope_type="default", rope_theta=5e5),
            ),
        ),
    ),
    "granite": (
        "Granite",
        dict(
            num_hidden_layers=2, head_dim=16, num_key_value_heads=1, attention_bias=True, mlp_bias=True, tie_word_embeddings=True, embedding_multiplier=3.0,
            residual_multiplier=0.8, attention_multiplier=0.2, logits_scaling=2.0,
        ),
    ),
}  # fmt: skip

# Where embeddings are scaled up and are the output matrix too, a token would otherwise be followed by itself.
_EMBEDDING_STD = {"gemma3_text": 0.12, "granite": 0.2}


def transformers_model(kind: str, *, seed: int = 0, **overrides):
    """A random float32 `transformers` model in eval mode.

    Args:
      kind: one of KINDS or FAMILY_KINDS.
      seed: of the weights.
      **overrides: fields of the `transformers` config, on top of the kind's.
    """
    import torch
    import transformers

    torch.set_num_threads(1)  # at these sizes more threads only wait for each other
    name, fields = (KINDS | FAMILY_KINDS)[kind]
    ids = dict(pad_token_id=None, bos_token_id=None, eos_token_id=None)  # some classes' own are beyond this vocabulary
    config = getattr(transformers, f"{name}Config")(**{**_COMMON, **ids, **fields, **overrides})
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, tensor in model.named_parameters():
            noise = torch.randn(tensor.shape, generator=generator)
            # Norm weights around what they are without training, one or of Gemma zero, and biases that are not zero: a swapped
            # or forgotten one then shows.
            std = _EMBEDDING_STD.get(kind, WEIGHT_STD) if "embed" in key else WEIGHT_STD
            tensor.copy_(tensor + 0.2 * noise if "norm" in key else std * noise)
    return model.float().eval()


def write_checkpoint(
    directory, kind: str, *, seed: int = 0, bfloat16: bool = False, max_shard_size: str = "1GB", **overrides
) -> pathlib.Path:
    """Writes config.json and safetensors of a random model (see `transformers_model`); returns the directory.

    A small `max_shard_size` such as "40KB" gives several shards and an index.
    """
    import torch

    model = transformers_model(kind, seed=seed, **overrides)
    if bfloat16:
        model = model.to(torch.bfloat16)
    model.save_pretrained(directory, max_shard_size=max_shard_size)
    return pathlib.Path(directory)


def write_tokenizer(directory, texts, *, vocab_size: int = 400, chat_template: bool = True) -> pathlib.Path:
    """Trains a byte-level BPE tokenizer on texts and writes it, with a Qwen-like chat template; returns the directory.

    Special tokens: <|endoftext|> (padding), <|im_start|>, <|im_end|> (end of a turn).
    """
    import tokenizers
    import transformers

    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=special[0], eos_token=special[2], additional_special_tokens=special[1:]
    )
    if chat_template:
        fast.chat_template = (
            "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
            "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
            "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
        )
    fast.save_pretrained(directory)
    return pathlib.Path(directory)
