"""The tokenizer of the worlds, a Hugging Face tokenizer directory with one token per word; and the first world's words and digits.

JSON arrays of strings are split at their marks, so that `["a b", "c"]` is `[" a b "," c "]`: what the model writes,
joined by spaces, is JSON again.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Sequence

from rcsd_jax.world.criteria import BOX, CHECK, CLASSES, CONVERT, GENERIC, IGNORE, LAW, TWICE, UNIT
from rcsd_jax.world.problems import DISTRACTORS, KINDS, OOD_TEMPLATES, TEMPLATES
from rcsd_jax.world.prompts import PROMPTS

PAD, END, USER, ASSISTANT, UNKNOWN = "<pad>", "<end>", "<user>", "<assistant>", "<unk>"
SPECIAL = (PAD, END, USER, ASSISTANT, UNKNOWN)
MARKS = ('["', '","', '"]')

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}<assistant> {{ message['content'] }} <end> "
    "{% else %}<user> {{ message['content'] }} {% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
"""User turns and answers alternate; the thinking switch has no effect, because the world's model writes no thoughts."""


def vocabulary() -> tuple[str, ...]:
    """Every token of the first world, in the order of its id."""
    texts = [*"0123456789", "00", "000", *MARKS, ", . : ; ? = * +", "law so ignore double answer \\boxed{ }"]
    texts += [t for template in (*TEMPLATES, *OOD_TEMPLATES) for t in template] + ["done twice"]
    for kind in KINDS.values():
        texts += [kind.result, kind.unit, *kind.nouns]
        for quantity in (kind.a, kind.b):
            texts += [quantity.name, quantity.unit, quantity.other_unit or ""]
    texts += [f"{d.name} {d.unit}" for d in DISTRACTORS]
    texts += [BOX, CHECK, TWICE, UNIT, LAW, CONVERT, IGNORE, *GENERIC, *CLASSES.values(), "Criteria:"]
    texts += [*PROMPTS["headings"].values(), *PROMPTS["reason"].values()]
    texts += [PROMPTS["solve"]["request"], PROMPTS["write_rubric"]["request"]]
    words = [word for text in texts for word in text.split() if not word.startswith("{")]
    return tuple(dict.fromkeys([*SPECIAL, *words]))


def save_tokenizer(directory: pathlib.Path, words: Sequence[str]) -> None:
    """Writes tokenizer.json, tokenizer_config.json and generation_config.json, as `transformers` reads them.

    Args:
      directory: it is made if there is none.
      words: every token in the order of its id, such as `vocabulary()`; `SPECIAL` first.
    """
    # Late: only `experiments.world.make_base` writes a tokenizer.
    from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

    ids = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Replace(Regex(r'"\s*,\s*"'), ' "," '),
            normalizers.Replace(Regex(r'\[\s*"'), ' [" '),
            normalizers.Replace(Regex(r'"\s*\]'), ' "] '),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": PAD,
        "eos_token": END,
        "unk_token": UNKNOWN,
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
        "model_max_length": 512,
        "chat_template": CHAT_TEMPLATE,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    ends = {"eos_token_id": SPECIAL.index(END), "pad_token_id": SPECIAL.index(PAD)}
    (directory / "generation_config.json").write_text(json.dumps(ends, indent=2) + "\n", encoding="utf-8")
