"""Log-probabilities of given tokens from a model behind an OpenAI-compatible endpoint that returns `prompt_logprobs`, as vLLM does.

A request to /completions has token ids as its prompt and asks for one more token, which is ignored. In the reply, place i of
`prompt_logprobs` maps token ids, as text, to {"logprob": ...}: the k likeliest tokens there and token i itself; place 0 is null. They are
log-probabilities at temperature 1.

A reply of another form is an error of the server, not of the network: the run ends with one line that says what was wrong. All else is
as with a judge, see `endpoint`.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from rcsd_jax.host.errors import UserError
from rcsd_jax.judge.asking import Answer
from rcsd_jax.judge.endpoint import Endpoint, EndpointSettings, Failed

_ROUNDING = 1e-3  # by which a probability, or a sum of them, may exceed 1


class GivenTokens(NamedTuple):
    """Token ids, of which those from `first` on are scored."""

    tokens: tuple[int, ...]
    first: int


class PromptScores(Endpoint):
    """Asks for scores of `GivenTokens`s; the text of an answer is `encoded`, read by `decoded`."""

    whose, section = "teacher", "teacher_endpoint"

    def __init__(self, settings: EndpointSettings, *, top_k: int, vocabulary: int):
        """`top_k`: how many of the likeliest tokens at each place; 0: only the given one. `vocabulary`: ids are below this.

        Raises:
          UserError: as `Endpoint`.
        """
        super().__init__(settings)
        self._top_k, self._vocabulary = top_k, vocabulary
        self.identity = {**self.identity, "prompt_logprobs": top_k}

    def _guess(self, prompt: GivenTokens) -> float:
        return len(prompt.tokens)

    async def _send(self, client: Any, prompt: GivenTokens) -> Any:
        more = {"prompt_logprobs": self._top_k} | dict(self._settings.extra)
        return await client.completions.create(prompt=list(prompt.tokens), **self._body, extra_body=more)

    def _read(self, reply: Any, prompt: GivenTokens) -> Answer | Failed:
        usage, choices = getattr(reply, "usage", None), getattr(reply, "choices", None)
        counted = getattr(usage, "prompt_tokens", None)
        tokens = counted if isinstance(counted, int) else 0
        if not isinstance(choices, list) or not choices:
            return Failed("the reply holds no choice", tokens=(tokens, 0))
        places = getattr(choices[0], "prompt_logprobs", None)
        try:
            found = self._checked(places, prompt)
        except ValueError as error:
            problem = f"the teacher's endpoint gives {error}"
            remedy = (
                "check that it serves the teacher, with the student's tokens, and returns prompt_logprobs as vLLM does"
            )
            end = UserError(problem, field="teacher_endpoint.base_url", value=self._settings.base_url, remedy=remedy)
            return Failed(problem, end=end)
        return Answer(encoded(found, self._top_k), input_tokens=tokens, output_tokens=1)

    def _checked(self, places: Any, prompt: GivenTokens) -> list[list[tuple[int, float]]]:
        """The entries of each scored place, the likeliest first.

        Raises:
          ValueError: they are not those that were asked for; the text follows "gives".
        """
        if not isinstance(places, list):
            raise ValueError("no prompt_logprobs")
        if len(places) != len(prompt.tokens):
            raise ValueError(f"prompt_logprobs of {len(places)} places for {len(prompt.tokens)} tokens")
        return [self._entries(places[i], prompt.tokens[i], i) for i in range(prompt.first, len(places))]

    def _entries(self, place: Any, token: int, number: int) -> list[tuple[int, float]]:
        if not isinstance(place, Mapping):
            raise ValueError(f"no log-probabilities at place {number}")
        entries: dict[int, float] = {}
        for name, value in place.items():
            log_prob = value.get("logprob") if isinstance(value, Mapping) else None
            if not (isinstance(name, str) and name.isdecimal() and int(name) < self._vocabulary):
                raise ValueError(f"the token {str(name)[:20]!r} at place {number}, which the student does not have")
            if not isinstance(log_prob, int | float) or not math.isfinite(log_prob) or log_prob > _ROUNDING:
                raise ValueError(f"the log-probability {log_prob} for token {name} at place {number}")
            entries[int(name)] = min(float(log_prob), 0.0)
        if token not in entries:
            raise ValueError(f"no log-probability of token {token} at place {number}, but of {sorted(entries)[:3]}")
        if len(entries) < min(self._top_k, self._vocabulary):
            raise ValueError(f"{len(entries)} log-probabilities at place {number}, and {self._top_k} were asked for")
        if sum(map(math.exp, entries.values())) > 1 + _ROUNDING:
            raise ValueError(f"probabilities at place {number} whose sum is more than 1")
        ordered = sorted(entries.items(), key=lambda entry: (-entry[1], entry[0]))
        return ordered[: self._top_k] + [entry for entry in ordered[self._top_k :] if entry[0] == token]


def width_of(top_k: int) -> int:
    """Entries of a place: the likeliest, and the given token if it is not among them."""
    return top_k + 1


def encoded(places: Sequence[Sequence[tuple[int, float]]], top_k: int) -> str:
    """Entries as text.

    Examples:
      >>> decoded(encoded([[(7, -0.5)], [(3, -0.25)]], 0))[0].tolist()
      [[7], [3]]
    """
    shape = len(places), width_of(top_k)
    tokens, log_probs = np.full(shape, -1, "<i4"), np.zeros(shape, "<f4")
    for i, entries in enumerate(places):
        for j, (token, log_prob) in enumerate(entries):
            tokens[i, j], log_probs[i, j] = token, log_prob
    texts = [base64.b64encode(x.tobytes()).decode() for x in (tokens, log_probs)]
    return json.dumps({"width": shape[1], "tokens": texts[0], "log_probs": texts[1]})


def decoded(text: str) -> tuple[np.ndarray, np.ndarray]:
    """Tokens [n, K] int32, -1 for none, and log-probabilities [n, K] float32."""
    fields = json.loads(text)
    raw = [
        np.frombuffer(base64.b64decode(fields[name]), kind) for name, kind in (("tokens", "<i4"), ("log_probs", "<f4"))
    ]
    tokens, log_probs = (x.reshape(-1, fields["width"]) for x in raw)
    return tokens, log_probs
