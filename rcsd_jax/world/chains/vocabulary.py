"""The words of chains, in the order of their token ids: a token for each word, and for each number up to ten."""

from __future__ import annotations

from rcsd_jax.world.chains.criteria import CLASSES, GENERIC
from rcsd_jax.world.chains.problems import KINDS, LABELS, MODULUS
from rcsd_jax.world.prompts import PROMPTS
from rcsd_jax.world.tokenizer import MARKS, SPECIAL


def vocabulary() -> tuple[str, ...]:
    """Every token, in the order of its id."""
    texts = [*map(str, range(MODULUS)), *LABELS, *MARKS, "start end ? = ; check ok wait answer \\boxed{ }"]
    for name, kind in KINDS.items():
        texts += [name, kind.rule]
    texts += ["check every", *GENERIC, *CLASSES.values(), "Criteria:"]
    texts += [*PROMPTS["headings"].values(), *PROMPTS["reason"].values()]
    texts += [PROMPTS["solve"]["request"], PROMPTS["write_rubric"]["request"]]
    return tuple(dict.fromkeys([*SPECIAL, *(word for text in texts for word in text.split())]))
