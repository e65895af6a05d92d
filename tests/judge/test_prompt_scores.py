"""Scores of given tokens from a local server in vLLM's form that delays, drops and lies."""

import json
import math
import time

import numpy as np
import pytest

from rcsd_jax.host.errors import UserError
from rcsd_jax.judge.endpoint import EndpointSettings
from rcsd_jax.judge.prompt_scores import GivenTokens, PromptScores, decoded
from tests.judge_server import Handler, JudgeServer

VOCABULARY = 11


def log_probs_of(tokens):
    """[T, V] float64: the distribution at each place depends on the token before it; NumPy's softmax of made-up logits."""
    before = np.asarray((0, *tokens[:-1]))
    logits = np.sin(np.arange(VOCABULARY)[None] * (before[:, None] + 1.0)) * 2
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def entries_of(tokens, top_k):
    """vLLM's `prompt_logprobs`: the k likeliest and the token itself, with ids as text; null at the first place."""
    places = [None]
    for token, row in list(zip(tokens, log_probs_of(tokens), strict=True))[1:]:
        ids = dict.fromkeys([*np.argsort(-row)[:top_k].tolist(), token])
        places.append({str(i): {"logprob": float(row[i]), "rank": 1, "decoded_token": f"t{i}"} for i in ids})
    return places


class ScoringHandler(Handler):
    def prompt_of(self, body):
        return tuple(body["prompt"])

    def answer(self, body):
        self.score(entries_of(body["prompt"], body["prompt_logprobs"]))

    def score(self, places):
        choice = {"index": 0, "text": "x", "finish_reason": "length", "logprobs": None, "prompt_logprobs": places}
        usage = {"prompt_tokens": len(places or ()), "completion_tokens": 1, "total_tokens": len(places or ()) + 1}
        reply = {
            "id": "1",
            "object": "text_completion",
            "created": 0,
            "model": "m",
            "choices": [choice],
            "usage": usage,
        }
        return self.send(200, json.dumps(reply).encode())  # NaN as Python writes it


@pytest.fixture
def server(monkeypatch):
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    with JudgeServer(ScoringHandler) as server:
        yield server


def scores_of(server, asked, top_k=3, **changes):
    usual = dict(model="teacher", base_url=server.url, key_variable="", temperature=0.0, max_tokens=1)
    quick = dict(concurrency=4, backoff_s=0.01, longest_backoff_s=0.05, timeout_s=5.0, retries=3)
    endpoint = PromptScores(EndpointSettings(**usual | quick | changes), top_k=top_k, vocabulary=VOCABULARY)
    found = {}
    endpoint(asked, lambda i, answer: found.setdefault(i, answer), lambda: None)
    return found


ASKED = [GivenTokens((1, 2, 3, 4, 5 + i), 2) for i in range(6)]


@pytest.mark.parametrize("top_k", [0, 3])
def test_scores_are_those_of_the_given_tokens_and_of_the_likeliest(server, top_k):
    found = scores_of(server, ASKED, top_k)
    for i, (tokens, first) in enumerate(ASKED):
        ids, log_probs = decoded(found[i].text)
        assert ids.shape == (3, top_k + 1)
        for j, row in enumerate(log_probs_of(tokens)[first:]):
            wanted = dict.fromkeys([*np.argsort(-row)[:top_k].tolist(), tokens[first + j]])
            assert [x for x in ids[j].tolist() if x >= 0] == list(wanted)
            np.testing.assert_allclose(log_probs[j][ids[j] >= 0], row[list(wanted)], rtol=1e-6)
    body = server.bodies[0]
    assert (body["prompt_logprobs"], body["max_tokens"], body["model"]) == (top_k, 1, "teacher")
    assert sorted(x["prompt"][-1] for x in server.bodies) == [5, 6, 7, 8, 9, 10]


def test_requests_wait_together_and_what_is_dropped_or_late_is_asked_again(server):
    def misbehave(handler, prompt, nth):
        if nth == 0 and prompt[-1] == 6:
            return handler.drop()
        if nth == 0 and prompt[-1] == 7:
            return handler.send(503, {"error": {"message": "busy"}})
        if nth == 0 and prompt[-1] == 8:
            time.sleep(0.6)  # longer than a try may take
        return None

    server.misbehave, server.delay = misbehave, 0.1
    found = scores_of(server, ASKED, timeout_s=0.4)
    assert server.most == 4 and all(answer.text for answer in found.values())
    assert {i: answer.requests for i, answer in found.items()} == {0: 1, 1: 2, 2: 2, 3: 2, 4: 1, 5: 1}


def test_a_prompt_that_is_refused_says_why(server):
    server.misbehave = lambda handler, prompt, nth: handler.send(400, {"error": {"message": "max allowed: 20"}})
    found = scores_of(server, ASKED[:1], 30)
    assert found[0].text is None and "max allowed: 20" in found[0].problem and found[0].requests == 1


def changed(change):
    def misbehave(handler, prompt, nth):
        places = entries_of(prompt, 3)
        return handler.score(change(places) or places)

    return misbehave


def _wrong_ids(places):
    places[3] = {str((int(i) + 1) % VOCABULARY): x for i, x in places[3].items()}


def _number(value):
    def change(places):
        next(iter(places[3].values()))["logprob"] = value

    return change


LIES = {
    "wrong token ids": (_wrong_ids, "no log-probability of token 4 at place 3"),
    "an id beyond the vocabulary": (lambda x: x[3].update({"11": {"logprob": -9.0}}), "'11' at place 3"),
    "NaN": (_number(math.nan), "log-probability nan"),
    "a probability above 1": (_number(0.5), "log-probability 0.5"),
    "a sum above 1": (lambda x: [y.update(logprob=-0.1) for y in x[3].values()] and None, "more than 1"),
    "a text": (_number("-1"), "log-probability -1"),
    "a missing entry": (lambda x: x[3].pop("4") and None, "no log-probability of token 4 at place 3"),
    "a missing place": (lambda x: x.__setitem__(3, None), "no log-probabilities at place 3"),
    "too few of the likeliest": (lambda x: [x[3].pop(i) for i in [k for k in x[3] if k != "4"]] and None, "3 were asked for"),
    "too few places": (lambda x: x[:-1], "4 places for 5 tokens"),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_ends_the_run_with_one_line(server, lie):
    change, words = LIES[lie]
    server.misbehave = changed(change)
    with pytest.raises(UserError) as error:
        scores_of(server, ASKED[:1])
    assert words in str(error.value) and error.value.field == "teacher_endpoint.base_url"
    assert "\n" not in str(error.value) and error.value.remedy and len(server.bodies) == 1


def test_a_server_without_prompt_log_probabilities(server):
    server.misbehave = lambda handler, prompt, nth: handler.score(None)
    with pytest.raises(UserError, match="no prompt_logprobs"):
        scores_of(server, ASKED[:1])
