"""Grades completions during training, on the host between sampling and learning: for rewards, and for teachers that see attempts.

A group is the completions of one question, which follow each other. All batches of a rollout are graded at once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jax.experimental import multihost_utils

from rcsd_jax.data.examples import Example, rubric_of
from rcsd_jax.evaluate import judged_sets
from rcsd_jax.evaluate.graders import GRADERS, grade_all
from rcsd_jax.host import multihost
from rcsd_jax.host.errors import UserError
from rcsd_jax.host.padding import pad_left
from rcsd_jax.losses import policy_gradient
from rcsd_jax.methods import dealing
from rcsd_jax.methods.contract import Completions, Without
from rcsd_jax.methods.recipe import Recipe
from rcsd_jax.models import sharding
from rcsd_jax.roles.encode import teacher_prompt
from rcsd_jax.roles.opened_model import Model
from rcsd_jax.roles.settings import TeacherSettings
from rcsd_jax.rubrics import scoring
from rcsd_jax.rubrics.parsing import drop_thinking
from rcsd_jax.run import groups
from rcsd_jax.run.environment import Run
from rcsd_jax.run.recipe import block_of_completions
from rcsd_jax.sampling.sampler import completions_of
from rcsd_jax.settings.stage import Settings


def graded(
    completions: Completions,
    asked: Sequence[Example],
    shown: Sequence[Example],
    recipe: Recipe,
    model: Model,
    run: Run,
) -> tuple[Completions, list[dict[str, float]]]:
    """Adds advantages to completions and, if the teacher sees attempts, its prompts; also returns the metrics of each batch.

    Only answers are graded and shown, without the thoughts before them.

    Args:
      completions: of a rollout, k * B rows on the mesh.
      asked: the rows' examples, as they are graded.
      shown: the same examples as the roles see them, perhaps with other rubrics.
      recipe: of the step that sampled them.
      model: decodes and encodes.
      run: config and mesh.

    Raises:
      UserError: the grader gives no score of the name that `reward.score` holds.
    """
    config = run.config
    samples = multihost_utils.process_allgather(completions.samples._replace(experts=None), tiled=True)
    written = completions_of(samples, recipe.rollout.sampling.eos_ids)
    block = block_of_completions(config, model)
    texts = [model.decode(one.tokens) if block is None else block.text(one.tokens, model.decode) for one in written]
    grader = GRADERS[config.reward.grader]
    group, scale = recipe.rollout.group, recipe.loss.policy.scale_advantages
    scores, met = _grades(asked, texts, group, run)
    rewards = np.array([_score(one, config) for one in scores], np.float32)  # [B]
    lengths = np.array([len(one.tokens) for one in written])
    advantages = np.asarray(policy_gradient.group_advantages(rewards, group_size=group, scale=scale))

    own = sharding.own_rows(len(asked), run.mesh)
    completions = completions._replace(advantages=sharding.to_mesh(advantages[own], run.mesh))
    if config.loss.completions != "all":
        chosen = groups.learnt_from(config.loss.completions, rewards < config.reward.success, lengths, group)
        mine = sharding.to_mesh(chosen[own], run.mesh)
        completions = completions._replace(completion_mask=completions.completion_mask & mine[:, None])
    if met is not None:
        failed = _failed(asked, met, completions.without.weights.shape[1])
        completions = completions._replace(failed=sharding.to_mesh(failed[own], run.mesh))
    batches = recipe.rollout.batches
    parts = [dealing.places(number, len(asked), batches=batches, group=group) for number in range(batches)]
    means = [_means([scores[i] for i in rows], rewards[rows], group) for rows in parts]
    if not config.teacher.attempts:
        return completions, means
    feedback = grader.feedback or (lambda truth, text: None)
    plain = [without_thoughts(text) for text in texts]
    shortest = lengths if config.reward.shown == "shortest" else None
    successes = _others(plain, rewards >= config.reward.success, group, shortest)
    told = [
        dataclasses.replace(one, extra={**one.extra, "success": success, "feedback": feedback(truth, text)})
        for one, truth, text, success in zip(shown, asked, texts, successes, strict=True)
    ]
    completions, taught = _with_attempts(completions, told, own, model, run)
    if config.further == "failure":
        failures = _others(plain, rewards < config.reward.success, group, shortest)
        wrong = [
            dataclasses.replace(one, extra={**one.extra, "success": failure if right else None})
            for one, failure, right in zip(told, failures, taught, strict=True)
        ]
        completions = _with_wrong_hints(completions, wrong, own, model, run)
    return completions, [
        of_batch | {"share_taught": float(taught[rows].mean())} for of_batch, rows in zip(means, parts, strict=True)
    ]


def _means(scores: Sequence[dict[str, float]], rewards: np.ndarray, group: int) -> dict[str, float]:
    """The metrics of a batch's scores and rewards [B]."""
    graded = ~np.isnan(rewards)  # a judge may not have answered
    means = {f"graded_{name}": _mean(np.array([one[name] for one in scores])[graded]) for name in scores[0]}
    means["groups_alike"] = float(np.mean([_alike(one) for one in rewards.reshape(-1, group)]))
    return means if graded.all() else means | {"share_graded": float(graded.mean())}


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else 0.0


def _alike(rewards: np.ndarray) -> bool:
    """Whether a group carries no signal: all its graded completions have equal scores."""
    known = rewards[~np.isnan(rewards)]
    return len(known) == 0 or bool(np.ptp(known) == 0)


def _score(scores: dict[str, float], config: Settings) -> float:
    if config.reward.score not in scores:
        raise UserError(
            f"the grader '{config.reward.grader}' gives no such score",
            field="reward.score",
            value=config.reward.score,
            remedy=f"use one of {sorted(scores)}",
        )
    return scores[config.reward.score]


def without_thoughts(text: str) -> str:
    """The text as it is shown to a teacher: a thought says how the writer got there, not what is right."""
    rest = drop_thinking(text)
    return text if rest == text else rest.strip()


def _others(texts: Sequence[str], chosen: np.ndarray, group: int, lengths: np.ndarray | None) -> list[str | None]:
    """For each row another text of its group that is chosen, see `groups.other`, or None."""
    found = [groups.other(i, group, chosen, lengths) for i in range(len(texts))]
    return [None if j is None else texts[j] for j in found]


def _grades(
    asked: Sequence[Example], texts: Sequence[str], group: int, run: Run
) -> tuple[list[dict[str, float]], list[Sequence[float | None]] | None]:
    """The scores of texts, and whether they meet each criterion of their example's rubric, if the loss needs that."""
    name, wanted = run.config.reward.grader, run.config.loss.emphasis == "credit"
    grader = GRADERS[name]
    if (answer := grader.answer) is not None:
        found = [answer(drop_thinking(text)) for text in texts]
        votes = multihost.from_main(lambda: groups.agreement(found, group, same=grader.same).tolist())
        return [{"accuracy": float(vote)} for vote in votes], None
    if grader.grade is None:
        assert run.judges is not None, "settings say that a judge grades"
        judgements = run.judges.first(asked, [drop_thinking(text) for text in texts], "met")
        scores = judged_sets.rewards(asked, judgements)
        return scores, [one.met for one in judgements] if wanted else None
    pairs = list(zip(asked, texts, strict=True))
    scores = multihost.shared(lambda pair: grade_all(name, [pair[0]], [pair[1]])[0], pairs)
    if not wanted:
        return scores, None
    decide = grader.criteria
    assert decide is not None, "settings say that it grades criteria"
    return scores, multihost.shared(lambda pair: list(decide(pair[0], drop_thinking(pair[1]))), pairs)


def _failed(asked: Sequence[Example], met: Sequence[Sequence[float | None]], count: int) -> np.ndarray:
    """[B, count] float32: how much each failed criterion weighs, see `scoring.failed`; 0 beyond a rubric's criteria."""
    weights = np.zeros((len(asked), count), np.float32)
    for at, (example, one) in enumerate(zip(asked, met, strict=True)):
        of_criteria = scoring.failed(rubric_of(example), one)
        weights[at, : len(of_criteria)] = of_criteria[:count]  # a single criterion is never left out, and has no place
    return weights


def attempts_seen(known: Mapping[str, Any], teacher: TeacherSettings) -> tuple[str, ...]:
    """The attempt fields that the teacher sees of those with a value in `known`; empty: it is not asked, and the row is not taught."""
    there = tuple(name for name in teacher.attempts if known[name])
    if teacher.attempts_shown == "all":
        return there if there == teacher.attempts else ()
    return there[:1] if teacher.attempts_shown == "first" else there


def _with_attempts(
    completions: Completions, told: Sequence[Example], own: np.ndarray, model: Model, run: Run
) -> tuple[Completions, np.ndarray]:
    """The teacher's prompts of examples with attempts, and which rows are taught: not without an attempt or with too long a prompt."""
    config = run.config

    def encode(example: Example) -> np.ndarray | None:
        seen = attempts_seen(example.extra, config.teacher)
        if not seen:
            return None
        prompt = teacher_prompt(model.tokenizer, example, config.encoding, attempts=seen)
        return prompt if config.limits.prompt_fits(example, prompt, role="teacher") else None

    prompts = multihost.shared(encode, told)
    taught = np.array([prompt is not None for prompt in prompts])
    tokens, mask = _padded([prompts[i] for i in own], model, config)
    tokens, mask, mine = sharding.to_mesh((tokens, mask, taught[own]), run.mesh)
    return completions._replace(teacher_tokens=tokens, teacher_mask=mask, taught=mine), taught


def _with_wrong_hints(
    completions: Completions, wrong: Sequence[Example], own: np.ndarray, model: Model, run: Run
) -> Completions:
    """The teacher's prompts with a failure in the place of a success; weight 0 where there is none, or where it is too long."""
    config = run.config

    def encode(example: Example) -> np.ndarray | None:
        if not example.extra["success"]:
            return None
        prompt = teacher_prompt(model.tokenizer, example, config.encoding, attempts=("success",))
        return prompt if len(prompt) <= config.limits.teacher else None

    prompts = multihost.shared(encode, wrong)
    tokens, mask = _padded([prompts[i] for i in own], model, config)
    weights = np.array([[prompts[i] is not None] for i in own], np.float32)
    without = sharding.to_mesh(Without(tokens[:, None], mask[:, None], weights), run.mesh)  # type: ignore[arg-type]
    return completions._replace(without=without)


def _padded(prompts: Sequence[np.ndarray | None], model: Model, config: Settings) -> tuple[np.ndarray, np.ndarray]:
    """Prompts in one shape for the whole run, because the length of a step's attempts is not known before."""
    length = -(-config.data.max_teacher_prompt // config.data.pad_to) * config.data.pad_to
    nothing = np.asarray([model.pad_id], np.int32)
    return pad_left([nothing if prompt is None else prompt for prompt in prompts], length, model.pad_id)
