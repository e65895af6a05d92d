"""The judges of a run: their models, the process that asks them, and their verdicts."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rcsd_jax.data.examples import Example, asked_text, rubric_of
from rcsd_jax.evaluate.judged_sets import AskJudge, Judges
from rcsd_jax.host import multihost
from rcsd_jax.host.metrics import Progress
from rcsd_jax.host.shared_log import held_by_all
from rcsd_jax.judge import judging
from rcsd_jax.judge.asking import Answer, Ask, Usage, in_batches
from rcsd_jax.judge.cache import AnswerCache
from rcsd_jax.judge.endpoint import Endpoint, EndpointSettings
from rcsd_jax.judge.settings import NamedJudge
from rcsd_jax.roles import contexts
from rcsd_jax.roles.opened_model import open_served
from rcsd_jax.run.environment import Run
from rcsd_jax.sampling.decoding import SamplingConfig


@contextlib.contextmanager
def judges_of(run: Run) -> Iterator[Judges]:
    """The judge of `judge.checkpoint` or at `judge.base_url`, and a second one if `judge` names it, while this lasts.

    Their answers are kept in `verdicts.jsonl` and `verdicts_second.jsonl`.

    Raises:
      UserError: see `judge.endpoint.Endpoint` and `judge.cache.AnswerCache`.
    """
    settings = run.config.judge
    with contextlib.ExitStack() as closing:
        first = closing.enter_context(_judge("judge", settings.first, "verdicts.jsonl", run))
        second = None
        if settings.second is not None:
            second = closing.enter_context(_judge("second judge", settings.second, "verdicts_second.jsonl", run))
        yield Judges(first, second)


@contextlib.contextmanager
def _judge(name: str, chosen: NamedJudge, file: str, run: Run) -> Iterator[AskJudge]:
    path = run.workdir / file
    if chosen.checkpoint:  # all processes ask it together
        with held_by_all(AnswerCache, path) as cache:
            ask, identity = _local(chosen.checkpoint, run)
            yield functools.partial(_judged, name, chosen, run=run, ask=ask, identity=identity, cache=cache)
        return
    # Only process 0 asks an endpoint and keeps the file.
    is_main = multihost.is_main()
    with multihost.agreed(lambda: AnswerCache(path if is_main else None), everywhere=True) as cache:
        found = multihost.agreed(lambda: endpoint_of(chosen.endpoint) if is_main else None, everywhere=True)
        ask, identity = found or (_asked_elsewhere, {})
        yield functools.partial(_judged, name, chosen, run=run, ask=ask, identity=identity, cache=cache)


def _asked_elsewhere(*_: Any) -> None:
    raise AssertionError("only process 0 asks an endpoint")


def _judged(
    name: str,
    chosen: NamedJudge,
    examples: Sequence[Example],
    texts: Sequence[str],
    verdict: str,
    *,
    run: Run,
    ask: Ask,
    identity: Mapping[str, Any],
    cache: AnswerCache,
) -> list[judging.Judgement]:
    requests = [
        judging.Request(asked_text(e), text, rubric_of(e), verdict) for e, text in zip(examples, texts, strict=True)
    ]
    local = bool(chosen.checkpoint)

    def stop() -> None:
        if not local:  # a local model's batches ask all processes
            run.stop.raise_if_heard("the judge's answers so far are kept")

    def judge() -> tuple[list[judging.Judgement], Usage]:
        with Progress(run.console, f"{run.name}: {name}", 0) as progress:

            def told(done: int, of: int) -> None:
                if done == 1:
                    progress.extend(of)
                progress.advance(1, 0)

            return judging.judge_all(
                requests,
                ask=ask,
                identity=identity,
                cache=cache,
                settings=chosen.judging,
                stop=stop,
                progress=told,
            )

    judgements, usage = judge() if local else multihost.agreed(judge)
    _tell(name, run, judgements, usage)
    return judgements


def _tell(name: str, run: Run, judgements: Sequence[judging.Judgement], usage: Usage) -> None:
    unjudged = sum(one.unjudged for one in judgements)
    cost = "" if usage.cost is None else f", ${usage.cost:.2f}"
    tokens = f"{usage.input_tokens:,} + {usage.output_tokens:,} tokens"
    line = f"{name}: {usage.asked:,} asked ({usage.reasked:,} again), {usage.cached:,} known, {tokens}{cost}"
    run.console.print(line)
    if unjudged:
        first = next(r for one in judgements for r, met in zip(one.reasons, one.met, strict=True) if met is None)
        count = sum(len(one.met) for one in judgements)
        line = f"warning: {unjudged:,} of {count:,} criteria have no verdict and are in no score of the {name}; {first}"
        run.console.print(line, soft_wrap=True)


def endpoint_of(settings: EndpointSettings) -> tuple[Ask, Mapping[str, Any]]:
    """The endpoint that a config's `judge` names, and what identifies its answers; nothing is sent.

    Raises:
      UserError: see `judge.endpoint.Endpoint`.
    """
    endpoint = Endpoint(settings)
    return endpoint, endpoint.identity


def _local(checkpoint: str, run: Run) -> tuple[Ask, Mapping[str, Any]]:
    settings = run.config.judge
    model, digest, load = open_served(checkpoint, run.config.model, run.mesh)
    load = functools.cache(load)  # and never called where every answer is known
    sampler = run.sampler(model, settings.batch_size)
    max_tokens = settings.endpoint.max_tokens or 1
    sampling = SamplingConfig(max_new_tokens=max_tokens, temperature=0.0, eos_ids=model.eos_ids)
    room = model.decoder.config.max_position - max_tokens

    def write(prompts: Sequence[str]) -> list[Answer]:
        encode = functools.partial(contexts.encode_chat, model.tokenizer, thinking=False)
        encoded = [encode([{"role": "user", "content": prompt}]) for prompt in prompts]
        answers = [Answer(None, f"a prompt of {len(p)} tokens leaves no room for an answer") for p in encoded]
        fitting = [i for i, p in enumerate(encoded) if len(p) <= room]
        if not fitting:
            return answers
        drawn = sampler.with_weights(load()).generate([encoded[i] for i in fitting], range(len(fitting)), sampling)
        for chosen, completions in drawn:
            for at, one in zip(chosen, completions, strict=True):
                answers[fitting[at]] = Answer(model.decode(one.tokens), cut=one.cut, output_tokens=len(one.tokens))
        return answers

    identity = {"checkpoint": digest, "max_tokens": max_tokens, "dtype": run.config.model.dtype}
    return in_batches(write, 4 * settings.batch_size), identity
