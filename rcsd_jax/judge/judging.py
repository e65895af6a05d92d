"""Judges completions criterion by criterion under their rubrics: from prompts to verdicts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from rcsd_jax.host.checks import one_of
from rcsd_jax.host.errors import UserError
from rcsd_jax.judge import answers, prompts
from rcsd_jax.judge.asking import Answer, Ask, Usage, usage_of
from rcsd_jax.judge.cache import AnswerCache, key_of
from rcsd_jax.rubrics.schema import Rubric

PER_CALL = ("criterion", "rubric")


class Request(NamedTuple):
    """A completion to judge; `verdict` is what is asked about each criterion, one of `rubrics.aggregation.VERDICTS`."""

    question: str
    completion: str
    rubric: Rubric
    verdict: str = "met"


@dataclass(frozen=True)
class JudgeSettings:
    """What is asked, and what it costs.

    Attributes:
      per_call: "criterion" asks about one at a time, "rubric" about all of a rubric in one prompt.
      reasks: how often a prompt is asked again whose answer could not be read.
      max_characters: the longest prompt that is asked; what is longer is reported, never cut.
      input_price, output_price: US dollars per million tokens, or None.
    """

    per_call: str = one_of(PER_CALL, default="criterion")
    reasks: int = 2
    max_characters: int = 200_000
    input_price: float | None = None
    output_price: float | None = None


class Judgement(NamedTuple):
    """What became of one request.

    Attributes:
      met: for each criterion whether it is met, of a Pitfall whether the fault is there, or how far, from 0 to 1; None where
        it is unjudged. `rubrics.aggregation` makes scores of it.
      reasons: the judge's reason for each, or why it is unjudged.
    """

    met: tuple[float | None, ...]
    reasons: tuple[str, ...]

    @property
    def unjudged(self) -> int:
        """How many criteria were not judged."""
        return sum(one is None for one in self.met)


def judge_all(
    requests: Sequence[Request],
    *,
    ask: Ask,
    identity: Mapping[str, Any],
    cache: AnswerCache,
    settings: JudgeSettings,
    stop: Callable[[], None] = lambda: None,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> tuple[list[Judgement], Usage]:
    """Judges all requests, asking for what the cache does not hold.

    Equal prompts are asked once. An answer is in the cache before the next is looked at; so whenever this is ended and
    called again, it asks what is missing, and nothing else. A prompt that the endpoint failed to answer is missing.

    Args:
      requests: what to judge.
      ask: brings prompts to the judge: an `Endpoint`, or `asking.in_batches` of a local model.
      identity: what identifies the judge and how it is asked, part of the cache's keys: `Endpoint.identity`, or the local
        checkpoint and its sampling settings.
      cache: where answers are kept.
      settings: what is asked.
      stop: called now and then; what it raises ends this, with everything that arrived kept. It is called equally often in
        no two processes, so it must not be a collective.
      progress: called with (answers received, answers asked for) in each round of asking; re-asks are a round.

    Returns:
      (judgements, usage): one judgement per request, in their order, and what this call took; what came from the cache cost
        nothing.

    Raises:
      UserError: an unknown `per_call`, a judge that has answered nothing yet and answers nothing now, or what `ask` raises.
    """
    if settings.per_call not in PER_CALL:
        remedy = f"use one of {', '.join(PER_CALL)}"
        raise UserError("unknown setting", field="judge.per_call", value=settings.per_call, remedy=remedy)
    calls = [
        _Call(i, criteria, _prompt_for(r, criteria))
        for i, r in enumerate(requests)
        for criteria in _per_call(len(r.rubric), settings.per_call)
    ]
    outcomes: list[list[answers.Verdict] | answers.Unreadable] = [_too_long(c.prompt, settings) for c in calls]
    pending = {i: call.prompt for i, call in enumerate(calls) if len(call.prompt) <= settings.max_characters}
    given: list[Answer] = []
    reasked = cached = 0
    for attempt in range(settings.reasks + 1):
        keys = {i: key_of(identity, prompt, attempt) for i, prompt in pending.items()}
        wanted = {key: pending[i] for i, key in keys.items()}
        missing = {key: prompt for key, prompt in wanted.items() if key not in cache}
        failures = _ask(missing, ask, cache, given, stop, progress)
        if failures and not len(cache):
            raise UserError(
                f"the judge answered none of {len(failures)} prompts ({next(iter(failures.values()))})",
                field="judge",
                remedy="see to the judge, or correct how it is asked, and repeat the command",
            )
        cached += len(wanted) - len(missing)
        reasked += len(missing) if attempt else 0
        pending = {}
        for i, key in keys.items():
            answer = cache.get(key)
            if answer is None:
                outcomes[i] = answers.Unreadable(failures[key])
                continue
            outcomes[i] = outcome = _read(answer, calls[i], requests)
            if isinstance(outcome, answers.Unreadable):
                pending[i] = prompts.again(calls[i].prompt, outcome.problem, attempt + 1)
        if not pending:
            break
    prices = dict(input_price=settings.input_price, output_price=settings.output_price)
    return _judgements(requests, calls, outcomes), usage_of(given, **prices, reasked=reasked, cached=cached)


class _Call(NamedTuple):
    """One prompt: the request that it belongs to, the criteria that it asks about, and its text."""

    request: int
    criteria: tuple[int, ...]
    prompt: str


def _prompt_for(request: Request, criteria: Sequence[int]) -> str:
    chosen = [request.rubric.criteria[c] for c in criteria]
    return prompts.prompt_for(request.question, request.completion, chosen, verdict=request.verdict)


def _per_call(count: int, per_call: str) -> list[tuple[int, ...]]:
    return [(c,) for c in range(count)] if per_call == "criterion" or not count else [tuple(range(count))]


def _too_long(prompt: str, settings: JudgeSettings) -> answers.Unreadable:
    return answers.Unreadable(f"not asked: {len(prompt)} characters are more than {settings.max_characters}")


def _ask(
    missing: Mapping[str, str],
    ask: Ask,
    cache: AnswerCache,
    given: list[Answer],
    stop: Callable[[], None],
    progress: Callable[[int, int], None],
) -> dict[str, str]:
    """Asks what is missing, prompts by key, into the cache; returns why some got no answer, by key."""
    if not missing:
        return {}
    keys, failures, before = list(missing), {}, len(given)

    def receive(i: int, answer: Answer) -> None:
        if answer.text is None:
            failures[keys[i]] = answer.problem
        else:
            cache.put(keys[i], answer)
        given.append(answer)
        progress(len(given) - before, len(keys))

    stop()
    ask(list(missing.values()), receive, stop)
    return failures


def _read(answer: Answer, call: _Call, requests: Sequence[Request]) -> list[answers.Verdict] | answers.Unreadable:
    request = requests[call.request]
    assert answer.text is not None, "the cache keeps no other"
    names = [prompts.decision_name(request.rubric.criteria[c], request.verdict) for c in call.criteria]
    outcome = answers.read(answer.text, names)
    if isinstance(outcome, answers.Unreadable) and answer.cut:
        return answers.Unreadable(f"{outcome.problem}, and it was cut at the length limit")
    return outcome


def _judgements(
    requests: Sequence[Request],
    calls: Sequence[_Call],
    outcomes: Sequence[list[answers.Verdict] | answers.Unreadable],
) -> list[Judgement]:
    met: list[list[float | None]] = [[None] * len(request.rubric) for request in requests]
    reasons = [[""] * len(request.rubric) for request in requests]
    for call, outcome in zip(calls, outcomes, strict=True):
        for at, criterion in enumerate(call.criteria):
            if isinstance(outcome, answers.Unreadable):
                reasons[call.request][criterion] = outcome.problem
            else:
                met[call.request][criterion], reasons[call.request][criterion] = outcome[at]
    return [Judgement(tuple(m), tuple(why)) for m, why in zip(met, reasons, strict=True)]
