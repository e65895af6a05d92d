"""Between the stages, a model writes a rubric for every question, once. Texts are cached as they arrive.

A rejected text is resampled. After the last try the question gets the generic rubric or is dropped, and is counted.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from rcsd_jax.data.examples import Example
from rcsd_jax.evaluate.table import Complete
from rcsd_jax.host import multihost
from rcsd_jax.host.errors import UserError
from rcsd_jax.host.files import as_path, read_json
from rcsd_jax.host.metrics import Progress
from rcsd_jax.host.shared_log import held_by_all
from rcsd_jax.roles import contexts
from rcsd_jax.roles.contexts import Role
from rcsd_jax.roles.opened_model import open_served, sampling_of
from rcsd_jax.roles.thinking import ThinkingBlock, block_of
from rcsd_jax.rubrics.cache import RubricCache, Written, text_key
from rcsd_jax.rubrics.parsing import parse
from rcsd_jax.rubrics.schema import Rubric
from rcsd_jax.run.environment import Run
from rcsd_jax.run.rows import GiveRubrics
from rcsd_jax.sampling.sampler import Batches


@contextlib.contextmanager
def rubric_writer(run: Run, counts: collections.Counter[str]) -> Iterator[GiveRubrics]:
    """A function that lets a model write rubrics for questions and adds the outcomes to `counts`, while the file of texts,
    `rubrics.jsonl`, is open.
    """
    config = run.config
    settings = config.rubric
    writer, digest, load = open_served(settings.writer, config.model, run.mesh)
    load = functools.cache(load)  # and never called if every text is cached
    sampler = run.sampler(writer, settings.batch_size)
    sampling = sampling_of(settings, writer)
    role = Role(tuple(settings.writer_fields), settings.writer_thinking)
    if warning := asked_otherwise(settings.writer, role.fields):
        run.console.print(f"warning: {warning}", soft_wrap=True)
    texts = config.encoding.texts
    block = block_of(writer.tokenizer, config.model, thinking=settings.writer_thinking)

    def encoded(mine: Sequence[Example]) -> list[np.ndarray]:
        prompts = [contexts.role_text(writer.tokenizer, e, role, texts, "write_rubric") for e in mine]
        return contexts.encode_texts(writer.tokenizer, prompts)

    def give_rubrics(cache: RubricCache, examples: list[Example]) -> list[Example]:
        prompts = multihost.shared_list(encoded, examples)
        asked = [
            (e, p)
            for e, p in zip(examples, prompts, strict=True)
            if config.limits.prompt_fits(e, p, role="rubric writer")
        ]
        with Progress(run.console, "write rubrics", 0) as progress:

            def write(wanted: Sequence[np.ndarray], seeds: Sequence[int]) -> Batches:
                if not wanted:
                    return
                progress.extend(len(wanted))
                for chosen, completions in sampler.with_weights(load()).generate(wanted, seeds, sampling):
                    yield chosen, completions
                    progress.advance(len(chosen), sum(len(c.tokens) for c in completions))

            written, more = write_rubrics(
                [e for e, _ in asked],
                [p for _, p in asked],
                write=write,
                decode=functools.partial(_text, writer.decode, block),
                cache=cache,
                checkpoint=digest,
                settings=sampling.described(),
                resample=settings.resample,
                fallback=config.generic_rubric if settings.on_reject == "generic" else None,
                min_criteria=settings.min_criteria,
                max_criteria=settings.max_criteria,
                salvage=settings.salvage,
                seed=config.seed,
            )
        counts.update(more | {"too_long": len(examples) - len(asked)})
        return written

    with held_by_all(RubricCache, run.workdir / "rubrics.jsonl") as cache:
        yield functools.partial(give_rubrics, cache)


def asked_otherwise(writer: str, fields: Sequence[str]) -> str | None:
    """A warning if the Stage I run in whose folder the writer lies showed its student other fields; None also if there is no such run."""
    path = as_path(writer).parent / "config.json"
    found = read_json(path) if path.exists() else None
    if not isinstance(found, dict) or found.get("task") != "write_rubric":
        return None
    learned = tuple(found["student"]["fields"])
    if set(learned) == set(fields):
        return None
    told = f"the rubric writer learned to write from {', '.join(learned)}, and is asked with {', '.join(fields)}"
    return f"{told}; set rubric.writer_fields={learned!r}"


def _text(decode: Callable[[np.ndarray], str], block: ThinkingBlock | None, tokens: np.ndarray) -> str:
    """What a writer wrote after its thought. A thought that does not end is marked as one, so that nothing in it is read as a rubric."""
    if block is None:
        return decode(tokens)
    return block.text(tokens, decode) if block.answer(tokens) is not None else f"<think>{decode(tokens)}"


def tell_rubrics(counts: Mapping[str, int], run: Run, *, none_left: bool) -> None:
    """Prints the outcomes of the rubrics that a model wrote.

    Raises:
      UserError: no question is left.
    """
    run.console.print(f"rubrics: {dict(counts)}")
    if counts.get("strict") or counts.get("salvaged"):
        return
    if none_left:
        raise UserError(
            f"no question is left: all {counts.get('rejected', 0)} texts that the writer wrote were rejected",
            file=run.workdir / "rubrics.jsonl",
            field="rubric.writer",
            value=run.config.rubric.writer,
            remedy="read the reasons there; use a better writer, or set rubric.on_reject=generic",
        )
    run.console.print("warning: no text was a rubric; every question has the generic one")


def write_rubrics(
    examples: Sequence[Example],
    prompts: Sequence[np.ndarray],
    *,
    write: Complete,
    decode: Callable[[np.ndarray], str],
    cache: RubricCache,
    checkpoint: str,
    settings: Mapping[str, Any],
    resample: int,
    fallback: Rubric | None,
    min_criteria: int,
    max_criteria: int,
    salvage: bool = True,
    seed: int,
) -> tuple[list[Example], dict[str, int]]:
    """Examples with written rubrics, and counts of what happened.

    A text depends only on (checkpoint, prompt, settings, seed, attempt). So a killed run continues with the texts that it
    has, and ends with the same rubrics as an uninterrupted run.

    Args:
      examples: the questions, in order.
      prompts: each one's encoded prompt to the writer.
      write: samples completions for prompts, by their seeds.
      decode: token ids to text.
      cache: where texts are kept.
      checkpoint: identifies the writer's weights.
      settings: sampling settings, part of the cache's key.
      resample: tries after the first.
      fallback: the rubric of a question whose every text was rejected; None drops the question.
      min_criteria, max_criteria: the limits of a valid rubric.
      salvage: whether a rubric that was salvaged from a text is used; otherwise the text is rejected.
      seed: of the run.

    Returns:
      (examples, counts): counts of "strict", "salvaged", "fallback", "dropped", "rejected" (texts), "cut", "cached".
    """
    counts: collections.Counter[str] = collections.Counter()
    rubrics: dict[int, Rubric] = {}
    for attempt in range(resample + 1):
        pending = [i for i in range(len(examples)) if i not in rubrics]
        keys = {
            i: text_key(checkpoint=checkpoint, prompt=prompts[i], sampling=settings, attempt=attempt, seed=seed)
            for i in pending
        }
        missing = [i for i in pending if keys[i] not in cache]
        counts["cached"] += len(pending) - len(missing)
        seeds = [int(keys[i][:8], 16) for i in missing]
        for chosen, completions in write([prompts[i] for i in missing], seeds):
            texts = [decode(completion.tokens) for completion in completions]
            parsed = [parse(text, min_criteria=min_criteria, max_criteria=max_criteria) for text in texts]
            cache.put_many(Written(keys[missing[i]], t, p) for i, t, p in zip(chosen, texts, parsed, strict=True))
            counts["cut"] += sum(completion.cut for completion in completions)
        for i in pending:
            written = cache.get(keys[i])
            assert written is not None, "what was missing has been written"
            rubric, status = written.parsed.rubric, written.parsed.status
            if status == "salvaged" and not salvage:
                rubric, status = None, "rejected"
            counts[status] += 1
            if rubric is not None:
                rubrics[i] = rubric
    counts["fallback" if fallback is not None else "dropped"] += len(examples) - len(rubrics)
    with_rubrics = [dataclasses.replace(e, rubric=rubrics.get(i, fallback)) for i, e in enumerate(examples)]
    return [e for e in with_rubrics if e.rubric is not None], dict(counts)
