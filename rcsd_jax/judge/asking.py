"""The interface for asking a model: prompts go in, answers come back one by one. An endpoint and a local model implement it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple


class Answer(NamedTuple):
    """The outcome of one prompt.

    Attributes:
      text: the model's text; None if there is no answer, and then `problem` says why.
      problem: see `text`.
      cut: the text ended at the length limit.
      requests: how often the prompt was sent.
      input_tokens, output_tokens: as the endpoint counted them, over all `requests`.
      uncounted: replies without such a count.
    """

    text: str | None
    problem: str = ""
    cut: bool = False
    requests: int = 1
    input_tokens: int = 0
    output_tokens: int = 0
    uncounted: int = 0


# ask(prompts, receive, stop): calls receive(index, answer) exactly once for every prompt, as soon as its answer is there
# and in the caller's thread, and stop() now and then: what stop raises ends the asking, after all that has arrived was
# received. Each prompt is the text of one user message.
Receive = Callable[[int, Answer], None]
Ask = Callable[[Sequence[str], Receive, Callable[[], None]], None]


def in_batches(write: Callable[[Sequence[str]], Sequence[str | Answer]], batch_size: int) -> Ask:
    """Asks a function from prompts to texts, such as a local model, `batch_size` prompts at a time.

    If a text is not enough (it was cut, or the prompt is too long for the model), `write` returns an Answer.
    """

    def ask(prompts: Sequence[str], receive: Receive, stop: Callable[[], None]) -> None:
        for start in range(0, len(prompts), batch_size):
            stop()
            batch = prompts[start : start + batch_size]
            for i, (_, one) in enumerate(zip(batch, write(batch), strict=True)):
                receive(start + i, one if isinstance(one, Answer) else Answer(one))

    return ask


class Usage(NamedTuple):
    """The cost of answers.

    Attributes:
      asked: prompts that were asked, including repeats.
      reasked: how many of these repeated a prompt whose answer could not be read.
      cached: prompts whose answer was already in the cache.
      unanswered: prompts that were asked and got no answer.
      requests: requests sent, including repeats.
      input_tokens, output_tokens: what the endpoint counted.
      uncounted: replies without a count; if it is not 0, tokens and cost are too low.
      cost: US dollars; None without prices.
    """

    asked: int
    reasked: int
    cached: int
    unanswered: int
    requests: int
    input_tokens: int
    output_tokens: int
    uncounted: int
    cost: float | None


def usage_of(
    answers: Iterable[Answer],
    *,
    input_price: float | None = None,
    output_price: float | None = None,
    reasked: int = 0,
    cached: int = 0,
) -> Usage:
    """Adds answers up. For all answers of an `AnswerCache`, this is the cost of its file over all runs.

    Args:
      answers: the answers to add up.
      input_price, output_price: US dollars per million tokens.
      reasked, cached: see `Usage`.
    """
    answers = list(answers)
    tokens = sum(answer.input_tokens for answer in answers), sum(answer.output_tokens for answer in answers)
    cost = None
    if input_price is not None and output_price is not None:
        cost = (tokens[0] * input_price + tokens[1] * output_price) / 1e6
    return Usage(
        asked=len(answers),
        reasked=reasked,
        cached=cached,
        unanswered=sum(answer.text is None for answer in answers),
        requests=sum(answer.requests for answer in answers),
        input_tokens=tokens[0],
        output_tokens=tokens[1],
        uncounted=sum(answer.uncounted for answer in answers),
        cost=cost,
    )
