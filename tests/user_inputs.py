"""What a user brings: a small random Qwen3 directory with a BPE tokenizer and chat template, and JSONL rows.

python -m tests.user_inputs MODEL_DIRECTORY ROWS.jsonl
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path

# Qwen3's template in small: turns, a thinking switch that writes an empty thinking block, and the generation prompt.
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"]


def real_rows_path() -> Path:
    """400 real rows with rubrics that lie beside the repository where the project is developed."""
    return Path(__file__).resolve().parents[2] / "shared" / "data" / "rar_science_400.jsonl"


def made_up_rows(count: int = 64) -> list[dict]:
    """Rows in a common format, for a clone without the real ones."""
    rows = []
    for i in range(count):
        mass, volume = 2 + i % 11, 2 + i % 7
        rows.append(
            {
                "question": f"A sample of {mass * volume} g fills {volume} ml. What is its density?",
                "reference_answer": f"Density is mass over volume: {mass * volume} g / {volume} ml = \\boxed{{{mass} g/ml}}.",
                "rubric": [
                    {"title": "Formula", "description": "Essential Criteria: Divides mass by volume.", "weight": 10},
                    {"title": "Value", "description": f"Essential Criteria: States {mass} g/ml.", "weight": 10},
                    {"title": "Unit", "description": "Important Criteria: Gives the unit.", "weight": 6},
                    {"title": "Inverse", "description": "Pitfall Criteria: Divides volume by mass.", "weight": -4},
                ],
            }
        )
    return rows


def make_tokenizer(directory: Path, texts: Iterable[str], *, vocab_size: int = 1024):
    """A byte-level BPE tokenizer trained on `texts`, saved with the chat template; returns it as transformers reads it."""
    import tokenizers
    import transformers

    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=CHAT_TEMPLATE
    )
    tokenizer.save_pretrained(directory)
    return tokenizer


def make_model(directory: Path, *, vocab_size: int, eos_id: int, seed: int = 0, **overrides) -> None:
    """A random Qwen3 of a few hundred thousand parameters, written by transformers itself."""
    import torch
    import transformers

    torch.manual_seed(seed)
    settings = dict(
        vocab_size=vocab_size,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        eos_token_id=eos_id,
    )
    transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**settings | overrides)).save_pretrained(directory)


def write_rows(path: Path, rows: Iterable[dict]) -> None:
    """Rows as JSON Lines."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def make_user_inputs(directory: Path, rows_path: Path, rows: list[dict] | None = None) -> None:
    """Model directory and JSONL in one go."""
    rows = made_up_rows() if rows is None else rows
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer(directory, [json.dumps(row, ensure_ascii=False) for row in rows])
    make_model(directory, vocab_size=len(tokenizer), eos_id=tokenizer.eos_token_id)
    write_rows(rows_path, rows)


if __name__ == "__main__":
    make_user_inputs(Path(sys.argv[1]), Path(sys.argv[2]))
