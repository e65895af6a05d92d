"""Our model in EleutherAI's lm-evaluation-harness gives the numbers of its `hf` model on the same weights."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rcsd_jax.host.errors import UserError
from rcsd_jax.sampling.decoding import SamplingConfig
from tests import eight_devices
from tests.checkpoints_for_tests import write_checkpoint, write_tokenizer

pytest.importorskip("lm_eval")
pytestmark = pytest.mark.slow

import lm_eval  # noqa: E402
from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

from rcsd_jax.evaluate.harness import HarnessModel  # noqa: E402

LIMIT = 40  # tokens that a model takes in these tests: some texts are longer
DOCS = [
    {"question": "some words about pairs", "choices": [" first", " second one", " third"], "answer": 1},
    {"question": "more words, and many of them. " * 4, "choices": [" yes", " no"], "answer": 0},
    {"question": "a", "choices": [" b c d e", " e", " f", " ab"], "answer": 3},
    {"question": "what follows the words", "choices": [" pairs", " some"], "answer": 0},
]


def tasks(folder):
    """Multiple choice, perplexity of texts, and texts up to a stop string, of the same rows."""
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in DOCS))
    shared = dict(
        dataset_path="json",
        dataset_kwargs=dict(data_files={"test": str(rows)}, cache_dir=str(folder / "cache")),
        test_split="test",
        doc_to_text="Q: {{question}}\nA:",
    )
    choose = dict(task="choose", output_type="multiple_choice", doc_to_choice="{{choices}}", doc_to_target="{{answer}}")
    roll = dict(task="roll", output_type="loglikelihood_rolling", doc_to_target="{{question}}{{choices[0]}}")
    write = dict(task="write", output_type="generate_until", doc_to_target="{{choices[0]}}")
    return [
        shared | choose | dict(metric_list=[dict(metric="acc"), dict(metric="acc_norm")]),
        shared | roll | dict(doc_to_text="", metric_list=[dict(metric="word_perplexity"), dict(metric="bits_per_byte")]),
        shared | write | dict(
            generation_kwargs=dict(until=["e", "\n"], max_gen_toks=12, do_sample=False),
            metric_list=[dict(metric="exact_match")],
        ),
    ]  # fmt: skip


def evaluated(model, folder):
    found = lm_eval.simple_evaluate(
        model, tasks=tasks(folder), task_manager=TaskManager(include_defaults=False), bootstrap_iters=0
    )
    responses = {
        name: [one["resps"] for one in sorted(rows, key=lambda one: one["doc_id"])]
        for name, rows in found["samples"].items()
    }
    return found["results"], responses


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    directory = write_checkpoint(tmp_path_factory.mktemp("model"), "qwen3_tied", vocab_size=400, num_hidden_layers=2)
    return write_tokenizer(directory, [json.dumps(DOCS)])


@pytest.fixture(scope="module")
def ours(base):
    return HarnessModel(str(base), dtype="float32", batch_size=3, max_length=LIMIT, pad_to=8, fsdp=1)


@pytest.fixture(scope="module")
def theirs(base):
    return HFLM(str(base), dtype="float32", device="cpu", batch_size=3, max_length=LIMIT)


def test_three_tasks_have_the_numbers_of_the_hf_model(ours, theirs, tmp_path):
    expected, their_responses = evaluated(theirs, tmp_path)
    results, responses = evaluated(ours, tmp_path)
    assert set(results) == set(expected) == {"choose", "roll", "write"}
    for task, scores in expected.items():
        for name, value in scores.items():
            if isinstance(value, float):
                np.testing.assert_allclose(results[task][name], value, rtol=1e-4, err_msg=f"{task} {name}")
    for mine, his in zip(sum(responses["choose"], []), sum(their_responses["choose"], []), strict=True):
        (log_prob, greedy), (their_log_prob, their_greedy) = mine[0], his[0]
        np.testing.assert_allclose(float(log_prob), float(their_log_prob), rtol=1e-4)
        assert greedy == their_greedy
    assert responses["write"] == their_responses["write"]
    texts = [text for (((text),),) in responses["write"]]
    assert len(set(texts)) > 1 and not any("e" in text for text in texts)


def test_what_greedy_sampling_writes_is_greedy_for_both(ours, theirs):
    context = ours.tok_encode("Q: some words\nA:")
    with jax.set_mesh(ours._mesh):
        ((_, (written,)),) = ours._sampler.generate([np.asarray(context)], [0], SamplingConfig(6, temperature=0.0))
    tokens = written.tokens.tolist()
    asked = [
        (None, context, tokens),
        (None, context, [*tokens[:-1], (tokens[-1] + 1) % 400]),
        (None, context, tokens[:1]),
    ]
    scored = ours._loglikelihood_tokens(asked)
    assert [greedy for _, greedy in scored] == [True, False, True]
    expected = theirs._loglikelihood_tokens(asked, disable_tqdm=True)
    assert [greedy for _, greedy in expected] == [True, False, True]
    np.testing.assert_allclose([x for x, _ in scored], [x for x, _ in expected], rtol=1e-4)


def test_prompts_are_those_of_the_chat_template(base):
    model = HarnessModel(str(base), dtype="float32", batch_size="auto", enable_thinking=False, fsdp=1)
    text = model.apply_chat_template([{"role": "user", "content": "some words"}])
    assert text == "<|im_start|>user\nsome words<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    assert model.max_length == 512 and model._sampler.batch_size == 32
    assert model._sampler.variables["params"]["embed"].dtype == jnp.float32


def test_a_setting_that_the_sampler_lacks_is_one_line(ours):
    asked = lambda **settings: ours.generate_until([Instance("generate_until", {}, ("Q:", settings), 0)])
    with pytest.raises(UserError, match="field 'repetition_penalty' = 1.1: the sampler has no such setting"):
        asked(repetition_penalty=1.1)
    with pytest.raises(UserError, match="field 'max_gen_toks' = 40: leaves no room for a context"):
        asked(max_gen_toks=LIMIT)


SCRIPT = """
import json, sys
from rcsd_jax.evaluate.harness import HarnessModel

found = []
for mesh in (dict(fsdp=8), dict(data=2, fsdp=2, tensor=2)):
    model = HarnessModel(sys.argv[1], dtype="float32", batch_size=3, pad_to=8, **mesh)
    ids = model.tok_encode("some words about pairs")
    found.append(model._loglikelihood_tokens([(None, ids[:n], ids[n:]) for n in (1, 2, 3)]))
print(json.dumps(found))
"""


def test_a_mesh_changes_no_number(base, ours):
    ids = ours.tok_encode("some words about pairs")
    expected = ours._loglikelihood_tokens([(None, ids[:n], ids[n:]) for n in (1, 2, 3)])
    for found in eight_devices.run(SCRIPT, base):
        np.testing.assert_allclose([x for x, _ in found], [x for x, _ in expected], rtol=1e-4)
        assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
