"""Grading by a judge in a run: which model it is, whom of the processes it is asked by, and what scores follow."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rcsd_jax.data.examples import Example, rubric_of
from rcsd_jax.evaluate.graders import GradeAll
from rcsd_jax.host import multihost
from rcsd_jax.host.errors import Preempted, UserError
from rcsd_jax.host.metrics import Progress
from rcsd_jax.judge import judging
from rcsd_jax.judge.asking import Answer, Ask, Usage, in_batches
from rcsd_jax.judge.cache import AnswerCache
from rcsd_jax.judge.endpoint import Endpoint, EndpointSettings
from rcsd_jax.roles import contexts
from rcsd_jax.run.running import Run, completer, open_served
from rcsd_jax.sampling import SamplingConfig


@contextlib.contextmanager
def judge_of(run: Run) -> Iterator[GradeAll]:
    """The judge of `judge.checkpoint` or at `judge.base_url`, and the file of its answers, `verdicts.jsonl`, while it lasts.

    The judge gives "rubric_score", NaN where no criterion with positive weight was judged, and "judged", the share of criteria
    that were.

    Raises:
      UserError: see `judge.endpoint.Endpoint` and `judge.cache.AnswerCache`.
    """
    settings = run.config.judge
    local = bool(settings.checkpoint)
    # A local model is asked by all processes together, an endpoint by process 0, which alone keeps the file.
    mine = _agreed(
        lambda: AnswerCache(run.workdir / "verdicts.jsonl" if multihost.is_main() else None), everywhere=True
    )
    ask: Ask | None
    with mine as cache:
        if local:
            for key, answer in multihost.from_main(lambda: dict(cache.items())).items():
                cache.put(key, answer)
            ask, identity = _local(run)
        else:
            found = _agreed(lambda: endpoint_of(settings.endpoint) if multihost.is_main() else None, everywhere=True)
            ask, identity = found or (None, {})
        yield functools.partial(_grade, run=run, ask=ask, identity=identity, cache=cache, local=local)


def _grade(
    examples: Sequence[Example],
    texts: Sequence[str],
    *,
    run: Run,
    ask: Ask | None,
    identity: Mapping[str, Any],
    cache: AnswerCache,
    local: bool,
) -> list[dict[str, float]]:
    requests = [judging.Request(e.question, text, rubric_of(e)) for e, text in zip(examples, texts, strict=True)]

    def stop() -> None:
        if not local:  # a local model's batches ask all processes
            run.stop.raise_if_heard("the judge's answers so far are kept")

    def judge() -> tuple[list[judging.Judgement], Usage]:
        assert ask is not None, "an endpoint is missing in processes that do not judge"
        with Progress(run.console, f"{run.name}: judge", 0) as progress:

            def told(done: int, of: int) -> None:
                if done == 1:
                    progress.extend(of)
                progress.advance(1, 0)

            return judging.judge_all(
                requests,
                ask=ask,
                identity=identity,
                cache=cache,
                settings=run.config.judge.judging,
                stop=stop,
                progress=told,
            )

    judgements, usage = judge() if local else _agreed(judge)
    _tell(run, judgements, usage)
    return [
        {
            "rubric_score": float("nan") if one.score is None else one.score,
            "judged": 1.0 - one.unjudged / max(len(one.met), 1),
        }
        for one in judgements
    ]


def _tell(run: Run, judgements: Sequence[judging.Judgement], usage: Usage) -> None:
    unjudged = sum(one.unjudged for one in judgements)
    cost = "" if usage.cost is None else f", ${usage.cost:.2f}"
    tokens = f"{usage.input_tokens:,} + {usage.output_tokens:,} tokens"
    line = f"judge: {usage.asked:,} asked ({usage.reasked:,} again), {usage.cached:,} known, {tokens}{cost}"
    run.console.print(line)
    if unjudged:
        first = next(r for one in judgements for r, met in zip(one.reasons, one.met, strict=True) if met is None)
        count = sum(len(one.met) for one in judgements)
        line = f"warning: {unjudged:,} of {count:,} criteria have no verdict and are in no score; {first}"
        run.console.print(line, soft_wrap=True)


def endpoint_of(settings: EndpointSettings) -> tuple[Ask, Mapping[str, Any]]:
    """The endpoint that a config's `judge` names, and what identifies its answers; nothing is sent.

    Raises:
      UserError: see `judge.endpoint.Endpoint`.
    """
    endpoint = Endpoint(settings)
    return endpoint, endpoint.identity


def _local(run: Run) -> tuple[Ask, Mapping[str, Any]]:
    settings = run.config.judge
    max_tokens = settings.endpoint.max_tokens or 0
    model, digest, load = open_served(settings.checkpoint, run.config, run.mesh)
    load = functools.cache(load)  # and never called where every answer is known
    sampling = SamplingConfig(max_new_tokens=max_tokens, temperature=0.0, eos_ids=model.eos_ids)
    room = model.decoder.config.max_position - max_tokens

    def write(prompts: Sequence[str]) -> list[Answer]:
        encode = functools.partial(contexts.encode_chat, model.tokenizer, thinking=False)
        encoded = [encode([{"role": "user", "content": prompt}]) for prompt in prompts]
        answers = [Answer(None, f"a prompt of {len(p)} tokens leaves no room for an answer") for p in encoded]
        fitting = [i for i, p in enumerate(encoded) if len(p) <= room]
        complete = completer(model, load(), sampling, settings.batch_size, run)
        for chosen, completions in complete([encoded[i] for i in fitting], range(len(fitting))) if fitting else ():
            for at, one in zip(chosen, completions, strict=True):
                answers[fitting[at]] = Answer(model.decode(one.tokens), cut=one.cut, output_tokens=len(one.tokens))
        return answers

    identity = {"checkpoint": digest, "max_tokens": max_tokens, "dtype": run.config.model.dtype}
    return in_batches(write, 4 * settings.batch_size), identity


def _agreed(make: Callable[[], Any], *, everywhere: bool = False) -> Any:
    """What `make` returns in process 0 (`everywhere`: in this process), or its error, raised in all: none waits for another."""

    def attempt() -> tuple[Any, Any]:
        try:
            return make(), None
        except UserError as error:
            known = ("problem", "remedy", "file", "row", "field", "value")
            return None, (UserError, {name: getattr(error, name) for name in known})
        except Preempted as stopped:
            return None, (Preempted, {"state": str(stopped), "signal": stopped.signal})

    if everywhere:
        value, problem = attempt()
        problem = next((one for one in multihost.gather(problem) if one), None)
    else:
        value, problem = multihost.from_main(attempt)
    if problem is None:
        return value
    kind, fields = problem
    first = next(iter(fields))
    raise kind(fields.pop(first), **fields)
