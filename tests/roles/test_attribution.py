"""The criteria × tokens matrix against forward passes one by one, and where it peaks on the embedded world."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from configs import world as world_config
from rcsd_jax import world
from rcsd_jax.checkpoints import loading
from rcsd_jax.roles.attribution import ablated_contexts, attribution
from rcsd_jax.roles.encode import teacher_prompt
from rcsd_jax.roles.opened_model import open_model
from rcsd_jax.rubrics.schema import Rubric
from rcsd_jax.settings.unpack import unpack
from rcsd_jax.world.documents import careful_solution
from tests.plain_logits import logits_after


@pytest.fixture(scope="module")
def teacher():
    config = unpack(world_config.get_config("ground_truth"))
    model = open_model(config.model.path, config.model)
    variables = {"params": loading.load_model(model.directory, dtype=jnp.float32)[1]}
    return model, variables, lambda example: teacher_prompt(model.tokenizer, example, config.encoding)


def solution(example, model):
    return np.asarray(model.tokenizer(careful_solution(example.extra["problem"]))["input_ids"], np.int32)


def log_probs(model, variables, prompt, completion):
    logits = logits_after(model.decoder, variables, prompt, completion)
    return scipy.special.log_softmax(logits / 0.8, axis=-1)[np.arange(len(completion)), completion]


def test_matrix_is_the_difference_of_two_forward_passes(teacher):
    model, variables, encode = teacher
    examples = sorted(world.examples("eval", 12, 3), key=lambda e: len(e.rubric.criteria))
    examples = [examples[0], examples[-1]]  # of different numbers of criteria
    completions = [solution(e, model) for e in examples]
    contexts = [ablated_contexts(e, encode) for e in examples]
    got = attribution(model.decoder, variables, contexts, completions, temperature=0.8, chunk_size=16)
    for example, completion, matrix, context in zip(examples, completions, got, contexts, strict=True):
        criteria = example.rubric.criteria
        assert matrix.shape == (len(criteria), len(completion)) and len(context.prefix) > 10
        whole = log_probs(model, variables, encode(example), completion)
        for k in range(len(criteria)):
            less = dataclasses.replace(example, rubric=Rubric(criteria[:k] + criteria[k + 1 :]))
            np.testing.assert_allclose(
                matrix[k], whole - log_probs(model, variables, encode(less), completion), atol=2e-4
            )
    assert len(got[0]) < len(got[1]) and np.abs(got[1]).max() > 0.1


def test_a_converted_quantity_is_the_criterion_s_own(teacher):
    model, variables, encode = teacher
    examples = [e for e in world.examples("eval", 60, 4) if e.extra["problem"].complications == ("convert_b",)][:4]
    matrices = attribution(
        model.decoder,
        variables,
        [ablated_contexts(e, encode) for e in examples],
        [solution(e, model) for e in examples],
    )
    for example, matrix in zip(examples, matrices, strict=True):
        texts = [model.tokenizer.decode([i]) for i in solution(example, model)]
        lines = "".join(f"{text} " for text in texts).split(";")
        start = len(lines[0].split()) + 1  # law ; conversion ; …
        place = [c.description.startswith("convert") for c in example.rubric.criteria].index(True)
        assert start <= matrix[place].argmax() < start + len(lines[1].split())


def test_of_one_criterion_nothing_can_be_left_out(teacher):
    one = world.examples("eval", 1)[0]
    with pytest.raises(ValueError, match="1 criteria"):
        ablated_contexts(dataclasses.replace(one, rubric=Rubric(one.rubric.criteria[:1])), teacher[2])
