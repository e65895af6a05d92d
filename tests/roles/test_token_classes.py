"""Which tokens are content, numbers, connectives and format."""

import numpy as np
import pytest

from rcsd_jax import world
from rcsd_jax.checkpoints.tokenizer import load_tokenizer
from rcsd_jax.roles.token_classes import CLASSES, class_of_tokens, token_class, totals


@pytest.mark.parametrize(
    "text, expected",
    [(" energy", "content"), ("Therefore", "connective"), (" so", "connective"), ("42", "number"), (" x2", "number"),
     ("\\boxed", "format"), (" ;", "format"), ("\n\n", "format"), ("", "format"), ("**", "format"), ("μ", "content")],
)  # fmt: skip
def test_class_of_a_text(text, expected):
    assert token_class(text) == expected


def test_classes_of_a_vocabulary_and_sums():
    tokenizer = load_tokenizer(world.base_directory())
    class_of = class_of_tokens(tokenizer, len(tokenizer) + 3)
    ids = np.array(tokenizer("law so 1 ;")["input_ids"])
    assert [CLASSES[class_of[i]] for i in ids] == ["content", "connective", "number", "format"]
    assert all(CLASSES[class_of[i]] == "format" for i in (*tokenizer.all_special_ids, len(tokenizer) + 2))
    values, tokens = np.array([[1.0, 2.0, 4.0, 8.0]] * 2), np.stack([ids, ids])
    mask = np.array([[1, 1, 1, 1], [1, 0, 0, 1]])
    assert totals(values, tokens, mask, class_of).tolist() == [2.0, 4.0, 2.0, 16.0]
