"""A judge behind an OpenAI-compatible endpoint: many prompts at once, with retries, limits and time-outs.

How a reply is treated:

    200 with a choice                                an answer, whatever its content
    401, 402, 403, 404, 429 without quota left       the run ends with one line, because another try would not help
    408, 409, 429, 5xx, no connection, time-out,
    200 without a choice or not in JSON              tried again after a growing pause, or after `Retry-After`
    400 and the like                                 no answer to this prompt; the others go on

A prompt whose tries are used up gets no answer. If that happens to many prompts in a row, the run ends with one line.

The key is read from the environment and kept only in this object. A server's error message is shortened and cleared of the key
before it is shown. The message about a rejected key is not shown, because servers repeat parts of the key.
"""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import logging
import os
import queue
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from rcsd_jax.host.errors import UserError
from rcsd_jax.judge.asking import Answer, Receive
from rcsd_jax.judge.pace import Pace

_POLL_S = 0.1  # how long a stop request may wait until it is noticed
_HOPELESS = 20  # prompts in a row without an answer that end the run
_LONGEST_RETRY_AFTER_S = 300.0  # do not wait for a quota that returns tomorrow
_SHORTEST_SECRET = 8  # shorter keys, such as "none" for a local server, may occur as words in texts


@dataclass(frozen=True)
class EndpointSettings:
    """How to reach a judge and how to ask it.

    Attributes:
      model: its name at the endpoint.
      base_url: the endpoint, up to and without /chat/completions.
      key_variable: the environment variable that holds the key; empty for an endpoint without keys.
      temperature, seed, max_tokens: as in the request; None leaves them out. A judge that thinks needs more `max_tokens`.
      extra: further fields of the request's body, JSON values and no secrets, such as
        {"response_format": {"type": "json_object"}} or {"max_completion_tokens": 4096}.
      concurrency: the largest number of requests at a time.
      timeout_s: seconds for one try, from sending to the last byte.
      retries: tries after the first.
      backoff_s: seconds before the second try. They double with each try, up to `longest_backoff_s`; a random part of up to
        half is left out.
      requests_per_minute: a limit that counts tries; None for no limit.
      tokens_per_minute: an approximate limit, input and output; None for no limit. A request's tokens are estimated from
        earlier requests.
    """

    model: str
    base_url: str = "https://api.openai.com/v1"
    key_variable: str = "OPENAI_API_KEY"
    temperature: float | None = 0.0
    seed: int | None = None
    max_tokens: int | None = 4096
    extra: Mapping[str, Any] = field(default_factory=dict)
    concurrency: int = 16
    timeout_s: float = 120.0
    retries: int = 8
    backoff_s: float = 1.0
    longest_backoff_s: float = 60.0
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None


class Failed(NamedTuple):
    """A try without an answer: what was wrong, whether and when to try again, and whether it ends the run."""

    problem: str
    retry: bool = True
    after_s: float = 0.0
    end: UserError | None = None
    tokens: tuple[int, int] = (0, 0)
    uncounted: int = 0


class Endpoint:
    """Asks the endpoint; an `asking.Ask`. `prompt_scores` asks another kind of model in the same way.

    Attributes:
      whose: what messages call the model.
      section: of the config, whose keys messages name.
      identity: everything that decides its answer to a prompt, as `cache.key_of` takes it.
    """

    whose, section = "judge", "judge"

    def __init__(self, settings: EndpointSettings):
        """Reads the key; nothing is sent.

        Raises:
          UserError: the openai package or the key is missing, or a setting is invalid.
        """
        _check(settings, self.section)
        self._settings = settings
        self._key, self._openai = _key(settings.key_variable, self.whose, self.section), _openai_package(self.section)
        self._body = {
            name: value
            for name in ("model", "temperature", "seed", "max_tokens")
            if (value := getattr(settings, name)) is not None
        }
        self.identity = {"base_url": settings.base_url.rstrip("/"), **self._body, "extra": dict(settings.extra)}
        self._requests, self._tokens = Pace(settings.requests_per_minute), Pace(settings.tokens_per_minute)
        self._answered = self._answered_tokens = self._failed_in_a_row = 0
        self._random = random.Random()  # only pauses depend on it

    def __call__(self, prompts: Sequence[Any], receive: Receive, stop: Callable[[], None]) -> None:
        """See `asking.Ask`. If `stop` raises, open requests are abandoned and their answers are lost.

        Raises:
          UserError: see the module.
        """
        arrived: queue.SimpleQueue = queue.SimpleQueue()
        halted = threading.Event()
        # A thread of its own, because a notebook's main thread already runs an event loop.
        with ThreadPoolExecutor(1, self.section) as thread:
            asking = thread.submit(asyncio.run, self._ask(prompts, arrived, halted))
            asking.add_done_callback(lambda _: arrived.put(None))  # wakes the loop below
            try:
                while not asking.done():
                    with contextlib.suppress(queue.Empty):
                        _receive(arrived.get(timeout=_POLL_S), receive)
                    stop()
            finally:
                halted.set()
                wait([asking])
                while not arrived.empty():
                    _receive(arrived.get(), receive)
            asking.result()

    async def _ask(self, prompts: Sequence[Any], arrived: queue.SimpleQueue, halted: threading.Event) -> None:
        settings, waiting = self._settings, iter(enumerate(prompts))
        client = self._openai.AsyncOpenAI(
            api_key=self._key or "none", base_url=settings.base_url, timeout=settings.timeout_s, max_retries=0
        )

        async def work() -> None:
            for i, prompt in waiting:
                arrived.put((i, await self._answer(client, prompt)))

        async with client:
            workers = [asyncio.create_task(work()) for _ in range(min(settings.concurrency, len(prompts)))]
            running = set(workers)
            try:
                while running and not halted.is_set():
                    done, running = await asyncio.wait(running, timeout=_POLL_S, return_when=asyncio.FIRST_EXCEPTION)
                    for worker in done:
                        worker.result()
            finally:
                for worker in running:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)

    async def _answer(self, client: Any, prompt: Any) -> Answer:
        """Asks one prompt, as often as the settings allow."""
        settings = self._settings
        tokens, uncounted = [0, 0], 0
        for attempt in range(settings.retries + 1):
            guess = self._answered_tokens / self._answered if self._answered else self._guess(prompt)
            await self._tokens.turn(guess)
            await self._requests.turn()
            reply = await self._try(client, prompt)
            used = reply.tokens if isinstance(reply, Failed) else (reply.input_tokens, reply.output_tokens)
            self._tokens.add(sum(used) - guess)
            tokens, uncounted = [a + b for a, b in zip(tokens, used, strict=True)], uncounted + reply.uncounted
            spent: dict[str, Any] = dict(
                requests=attempt + 1, input_tokens=tokens[0], output_tokens=tokens[1], uncounted=uncounted
            )
            if isinstance(reply, Answer):
                self._answered, self._failed_in_a_row = self._answered + 1, 0
                self._answered_tokens += sum(used)
                return reply._replace(**spent)
            if reply.end is not None:
                raise reply.end
            if not reply.retry or attempt == settings.retries:
                break
            if reply.after_s > _LONGEST_RETRY_AFTER_S:
                raise self._hopeless(
                    f"the {self.whose}'s endpoint wants a pause of {reply.after_s:.0f} s", reply.problem
                )
            self._requests.pause(reply.after_s)  # for all: the endpoint means this client, not this prompt
            pause = min(settings.backoff_s * 2**attempt, settings.longest_backoff_s) * self._random.uniform(0.5, 1.0)
            await asyncio.sleep(pause)
        assert isinstance(reply, Failed), "an answer has been returned"
        # A refused prompt says nothing about the others: a run that continues may have only such prompts left.
        self._failed_in_a_row += reply.retry
        if self._failed_in_a_row >= _HOPELESS:
            raise self._hopeless(
                f"the {self.whose}'s endpoint answered none of {_HOPELESS} prompts in a row", reply.problem
            )
        return Answer(None, f"no answer after {spent['requests']} tries: {reply.problem}", **spent)

    def _guess(self, prompt: Any) -> float:
        """The tokens of a request, before any was counted."""
        return len(prompt) / 3

    async def _send(self, client: Any, prompt: Any) -> Any:
        return await client.chat.completions.create(
            messages=[{"role": "user", "content": prompt}], **self._body, extra_body=dict(self._settings.extra)
        )

    async def _try(self, client: Any, prompt: Any) -> Answer | Failed:
        # The client's exceptions hold the request with the key, so they must not be the cause or context of ours.
        openai, settings = self._openai, self._settings
        try:
            async with asyncio.timeout(settings.timeout_s):
                reply = await self._send(client, prompt)
        except openai.APIStatusError as error:
            return self._refusal(error)
        except (openai.APITimeoutError, TimeoutError):
            return Failed(f"nothing came in {settings.timeout_s:g} s")
        except openai.APIConnectionError as error:
            return Failed(f"no connection ({type(error.__cause__ or error).__name__})")
        except (openai.APIError, ValueError):
            return Failed("the reply is not JSON")
        return self._read(reply, prompt)

    def _read(self, reply: Any, prompt: Any) -> Answer | Failed:
        """Reads a reply carefully: the client checks no types, and servers leave out different fields."""
        usage = getattr(reply, "usage", None)
        fields = getattr(usage, "prompt_tokens", None), getattr(usage, "completion_tokens", None)
        counts = [count for count in fields if isinstance(count, int)]
        counted = len(counts) == 2
        tokens = (counts[0], counts[1]) if counted else (0, 0)
        choices: Any = getattr(reply, "choices", None)
        message = getattr(choices[0], "message", None) if isinstance(choices, list) and choices else None
        if message is None:
            said = getattr(reply, "error", None)
            problem = f"the reply holds no choice ({self._clean(said)})" if said else "the reply holds no choice"
            return Failed(problem, tokens=tokens, uncounted=int(usage is not None and not counted))
        text = getattr(message, "content", None)
        return Answer(
            self._without_key(text if isinstance(text, str) else ""),
            cut=getattr(choices[0], "finish_reason", None) == "length",
            input_tokens=tokens[0],
            output_tokens=tokens[1],
            uncounted=int(not counted),
        )

    def _refusal(self, error: Any) -> Failed:
        """The failure that a status other than 2xx stands for."""
        status, settings = error.status_code, self._settings
        if status in (401, 403):
            problem, variable = f"the {self.whose}'s endpoint rejects the key (status {status})", settings.key_variable
            remedy = "set it to a key that is valid there, or name another variable"
            return Failed(
                problem, end=UserError(problem, field=f"{self.section}.key_variable", value=variable, remedy=remedy)
            )
        said = error.body.get("message") if isinstance(error.body, dict) else error.body
        problem = f"status {status}: {self._clean(said)}" if said else f"status {status}"
        if status == 404 or error.code == "model_not_found":
            end = UserError(
                f"there is no such model at {settings.base_url}, or no such endpoint ({problem})",
                field=f"{self.section}.model",
                value=settings.model,
                remedy=f"correct {self.section}.model or {self.section}.base_url",
            )
            return Failed(problem, end=end)
        if status == 402 or error.code == "insufficient_quota":
            return Failed(problem, end=self._hopeless(f"the {self.whose}'s account is used up", problem))
        retry = status in (408, 409, 429) or status >= 500
        return Failed(problem, retry=retry, after_s=_retry_after(error.response.headers.get("retry-after")))

    def _hopeless(self, what: str, problem: str) -> UserError:
        return UserError(
            f"{what} ({problem})",
            field=f"{self.section}.base_url",
            value=self._settings.base_url,
            remedy="check the endpoint and repeat the command: the answers so far are kept",
        )

    def _clean(self, said: Any) -> str:
        """A server's message, shortened to one line."""
        text = " ".join(self._without_key(str(said)).split())
        return text if len(text) <= 200 else text[:199] + "…"

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "***") if len(self._key) >= _SHORTEST_SECRET else text


def _receive(item: tuple[int, Answer] | None, receive: Receive) -> None:
    if item is not None:
        receive(*item)


def _retry_after(value: str | None) -> float:
    """Seconds that a Retry-After header asks for, as a number or as a date; 0 if it is missing or unreadable."""
    if value is None:
        return 0.0
    with contextlib.suppress(TypeError, ValueError):
        return max(0.0, float(value))
    with contextlib.suppress(TypeError, ValueError):
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    return 0.0


def _key(variable: str, whose: str, section: str) -> str:
    if not variable:
        return ""
    key = os.environ.get(variable, "").strip()
    if not key:
        raise UserError(
            f"the environment variable {variable}, which should hold the {whose}'s key, is not set",
            field=f"{section}.key_variable",
            value=variable,
            remedy=f"export {variable}=…, name another variable, or leave it empty for an endpoint without keys",
        )
    if not (key.isascii() and key.isprintable()):
        raise UserError(
            f"the {whose}'s key has characters that a header cannot hold",
            field=f"{section}.key_variable",
            value=variable,
            remedy="set it to the key and nothing else",
        )
    return key


def _openai_package(section: str) -> Any:
    try:
        import openai  # optional
    except ImportError:
        raise UserError(
            "a model at an endpoint needs the package openai, which is not installed",
            field=f"{section}.base_url",
            remedy="pip install 'rcsd_jax[judge]'",
        ) from None
    # At DEBUG the clients log a reply's headers, and a server may repeat the key there; at INFO they log every request.
    for name in ("openai", "httpx", "httpcore", "httpx2", "httpcore2"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return openai


def _check(settings: EndpointSettings, section: str) -> None:
    place = urlsplit(settings.base_url)
    # The value is not shown if it may hold a password.
    if place.username or place.password:
        problem, remedy = (
            "the URL holds a user or a password",
            f"put the key into the environment ({section}.key_variable)",
        )
        raise UserError(problem, field=f"{section}.base_url", remedy=remedy)
    if place.scheme not in ("http", "https") or not place.netloc:
        remedy = "give one such as https://api.openai.com/v1 or http://localhost:8000/v1"
        raise UserError(
            "not the URL of an endpoint", field=f"{section}.base_url", value=settings.base_url, remedy=remedy
        )
    if not settings.model:
        raise UserError("no model", field=f"{section}.model", value=settings.model, remedy="name one of the endpoint's")
    for name in ("concurrency", "timeout_s", "requests_per_minute", "tokens_per_minute"):
        value = getattr(settings, name)
        if value is not None and value <= 0:
            raise UserError("it must be positive", field=f"{section}.{name}", value=value, remedy="raise it")
    for name in ("retries", "backoff_s", "longest_backoff_s"):
        if getattr(settings, name) < 0:
            value = getattr(settings, name)
            raise UserError("it must not be negative", field=f"{section}.{name}", value=value, remedy="raise it")
