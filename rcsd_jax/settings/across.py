"""Checks across the settings of several subjects."""

from __future__ import annotations

import functools
from collections.abc import Callable

from rcsd_jax.evaluate.graders import GRADERS
from rcsd_jax.host.errors import UserError
from rcsd_jax.losses import emphasis
from rcsd_jax.methods import METHODS
from rcsd_jax.roles.contexts import ATTEMPT_FIELDS, FIELDS
from rcsd_jax.settings.stage import Settings

Need = Callable[[bool, str, str, str], None]
"""(whether it holds, key, problem, remedy)."""


def check_across(settings: Settings, *, stage: str = "", trains: bool = True) -> None:
    """Raises UserError, which names a key, if settings of several subjects do not fit together.

    Args:
      settings: of one stage.
      stage: its name, if the config has several stages.
      trains: whether it trains; otherwise it needs no data.
    """

    def need(ok: bool, key: str, problem: str, remedy: str) -> None:
        if not ok:
            raise UserError(
                problem, field=key, value=functools.reduce(getattr, key.split("."), settings), remedy=remedy
            )

    _check_batch(settings, need)
    _check_method(settings, need)
    _check_teacher(settings, need)
    _check_contexts(settings, need)
    _check_emphasis(settings, need)
    _check_quantization(settings, need)
    _check_graders(settings, need)
    flags = f"--config.{stage}." if stage else "--config."
    _check_paths(settings, need, flags, trains=trains)


def _check_batch(s: Settings, need: Need) -> None:
    """The batch divides evenly, and completions keep tokens to learn from."""
    batch, slots, group = s.train.batch_size, s.sampling.slots, s.sampling.group
    rollout = s.train.batches_per_rollout * batch
    problem = f"does not divide the {rollout} completions of a rollout"
    remedy = "choose a divisor of them, or 0 for as many as a batch has"
    need(slots == 0 or rollout % slots == 0, "sampling.slots", problem, remedy)
    need(
        batch % group == 0 and (slots == 0 or slots % group == 0 or group % slots == 0),
        "sampling.group",
        f"does not divide train.batch_size = {batch} or sampling.slots = {slots}",
        "choose a divisor of both",
    )
    remedy = "lower it, or raise sampling.max_new_tokens"
    need(s.loss.skip_first < s.sampling.max_new_tokens, "loss.skip_first", "leaves no token in the loss", remedy)


def _check_method(s: Settings, need: Need) -> None:
    """Rewards, groups and references fit the method."""
    rewarded, attempts = METHODS[s.method].rewarded, s.teacher.attempts
    graded = rewarded or attempts or s.loss.completions != "all" or s.loss.emphasis == "credit"
    if graded:
        need(bool(s.reward.grader), "reward.grader", "nothing grades the completions", "set reward.grader")
    if s.reward.grader and GRADERS[s.reward.grader].answer is not None:
        need(s.sampling.group > 1, "sampling.group", "leaves no other completion to compare with", "set 8")
    if METHODS[s.method].contrasts:
        wrong = s.teacher.guidance_by in ("failure", "other_row")
        need(wrong, "teacher.guidance_by", "gives the method no wrong hint", "set 'failure' or 'other_row'")
        seen = s.teacher.guidance_by != "failure" or "success" in attempts
        need(seen, "teacher.fields", "have no 'success', in whose place a failure stands", "add it")
        need(not s.teacher.guidance, "teacher.guidance", "has no effect on the method", "set 0.0")
        on_devices = s.teacher_weights != "endpoint" and not s.teacher.better_of_two
        need(on_devices, "method", "needs one teacher on these devices", "choose another teacher")
    if "feedback" in attempts:
        gives = GRADERS[s.reward.grader].feedback is not None
        need(gives, "reward.grader", "gives no feedback", "remove 'feedback' from teacher.fields")
    if rewarded or "success" in attempts:
        remedy = "set sampling.group, to 4 as in the paper"
        need(s.sampling.group > 1, "sampling.group", "leaves no other completion to compare with", remedy)
    if s.sampling.source == "reference":
        for key in ("batches_per_rollout", "passes_per_rollout"):
            once = getattr(s.train, key) == 1
            need(once, f"train.{key}", "needs sampled completions, and sampling.source=reference has none", "set 1")
        need(s.sampling.group == 1, "sampling.group", "a question has only one reference", "set 1")
        need(not graded, "sampling.source", "references are not graded", "set 'student'")
    if s.train.routing_replay != "off":
        key, remedy = "train.routing_replay", "set 'off'"
        need(s.sampling.source == "student", key, "replays what the student sampled, and it does not sample", remedy)
        need(s.sampling.draft_tokens == 0, key, "does not go with sampling.draft_tokens", remedy)
    need(s.method == "grpo" or not s.policy.kl, "policy.kl", "has an effect only with method 'grpo'", "set policy.kl=0")


def _check_emphasis(s: Settings, need: Need) -> None:
    """What tokens are emphasised by is known."""
    key, kind = "loss.emphasis", s.loss.emphasis
    if kind in emphasis.IN_PASS:
        problem = "compares a teacher with the student, and the method does not"
        need(METHODS[s.method].teacher, key, problem, "set 'alike', or choose another method")
    if kind == "teacher_sure":
        problem = "needs the teacher's whole distribution, and an endpoint gives a part"
        need(s.teacher_weights != "endpoint", key, problem, "set 'gap' or 'student_unsure'")
    if kind in emphasis.OF_CONTEXTS:
        seen = METHODS[s.method].teacher and "rubric" in s.teacher.fields and not s.teacher.reason_tokens
        problem = "needs a teacher that sees a rubric, writes no analysis and sees no attempts"
        need(seen and not s.teacher.attempts, key, problem, "set 'alike'")
        problem = "has the contexts of teacher.guidance_by='criteria', and guidance is by others"
        need(not s.teacher.guidance or s.teacher.guidance_by == "criteria", key, problem, "set teacher.guidance=0.0")
        need(s.teacher_weights != "endpoint", key, "needs a teacher on these devices", "set 'alike'")
        need(
            not s.teacher.better_of_two,
            "teacher.better_of_two",
            f"cannot be combined with loss.emphasis={kind}",
            "set False",
        )
    if kind == "credit":
        own = s.rubric.source == "data"
        need(own, "rubric.source", "gives the teacher other criteria than those that are graded", "set 'data'")
        grader = GRADERS[s.reward.grader] if s.reward.grader else None
        decides = grader is not None and (grader.criteria is not None or s.reward.grader == "judge")
        remedy = "set 'judge', or 'world' for the embedded world"
        need(decides, "reward.grader", "does not say which criteria a completion fails", remedy)
    if kind == "low_probability":
        problem = "needs sampled completions, and sampling.source=reference has none"
        need(s.sampling.source != "reference", key, problem, "set 'alike'")


def _check_teacher(s: Settings, need: Need) -> None:
    """The settings of the teacher fit a teacher that exists and knows its fields."""
    remedy = "give 'success' and 'feedback' only to the teacher"
    need(
        not set(ATTEMPT_FIELDS) & set(s.student.fields),
        "student.fields",
        "has fields that the student cannot know",
        remedy,
    )
    attempts, there = s.teacher.attempts, s.teacher_weights != "none"
    if attempts:
        remedy = "remove 'teacher': its attempts exist only during training"
        need(
            not s.eval.grader or "teacher" not in s.eval.roles,
            "eval.roles",
            "includes the teacher, which needs attempts",
            remedy,
        )
    problem = "needs a teacher, and this method has none"
    need(there or s.teacher.guidance == 0.0, "teacher.guidance", problem, "set 0.0")
    need(there or s.teacher.reason_tokens == 0, "teacher.reason_tokens", problem, "set 0")
    key = "teacher.paths" if s.teacher.paths else "teacher.path"
    need(there or not s.teacher.own, key, problem, "leave it out, or choose another method")
    need(there or not s.teacher_endpoint.model, "teacher_endpoint.model", problem, "leave it out")
    if s.teacher_weights == "endpoint":
        _check_endpoint(s, need)
    if len(s.teacher.own) > 1:
        problem = "includes the teacher, and there are several"
        need(not s.eval.grader or "teacher" not in s.eval.roles, "eval.roles", problem, "remove 'teacher'")
        need(not s.policy.kl, "policy.kl", "needs one reference model", "set policy.kl=0, or name one teacher.path")
        need(s.sampling.source != "teacher", "sampling.source", "needs a teacher of one network", "set 'student'")
    if s.sampling.source == "teacher":
        problem = "needs a teacher that exists and sees no attempts"
        need(there and not attempts, "sampling.source", problem, "set 'student'")
        mixes = s.teacher_weights == "trust_region"
        need(not mixes, "sampling.source", "needs a teacher of one network", "set 'student', or other teacher.weights")
        problem = "cannot be combined with teacher.reason_tokens"
        need(not s.teacher.reason_tokens, "sampling.source", problem, "set 'student'")


def _check_contexts(s: Settings, need: Need) -> None:
    """A second network as teacher, and another row's material, are there."""
    if s.teacher.better_of_two:
        key, remedy = "teacher.better_of_two", "set False"
        one = METHODS[s.method].teacher and s.teacher_weights not in ("live", "endpoint") and len(s.teacher.own) < 2
        need(one, key, "needs one teacher on these devices that is not the current student", remedy)
        writes = s.sampling.source == "teacher" or (s.teacher.reason_tokens and s.teacher.reason_by == "teacher")
        need(not writes, key, "cannot be combined with a teacher that writes: two networks only score", remedy)
    if s.further == "other_row" and s.rubric.written:
        problem = "shows another row's rubric, and a model writes rubrics"
        need("rubric" not in s.teacher.fields, "teacher.guidance_by", problem, "set rubric.source=data, or 'context'")


def _check_endpoint(s: Settings, need: Need) -> None:
    """What a teacher at an endpoint can give: the log-probabilities of some tokens at temperature 1, of prompts that are there."""
    loss, problem = s.loss, "needs a teacher on these devices, and teacher_endpoint.model is not one"
    remedy = "set loss.divergence=sampled_token, or loss.top_k (vLLM allows 20 unless its --max-logprobs says more)"
    known = loss.divergence == "sampled_token" or loss.top_k is not None
    need(known, "loss.top_k", "the whole vocabulary " + problem, remedy)
    need(loss.top_k is None or loss.top_k_support == "teacher", "loss.top_k_support", problem, "set 'teacher'")
    remedy = "set 1.0: the endpoint's log-probabilities are at this temperature"
    need(s.sampling.temperature in (0.0, 1.0), "sampling.temperature", "divides the logits of both roles", remedy)
    need(not s.teacher.own, "teacher.path", "cannot be combined with teacher_endpoint.model", "set one of the two")
    need(s.teacher.weights == "fixed", "teacher.weights", problem, "set 'fixed'")
    need(not s.teacher.guidance, "teacher.guidance", problem, "set 0.0")
    writes = s.teacher.reason_tokens and s.teacher.reason_by == "teacher"
    need(not writes, "teacher.reason_tokens", problem, "set 0, or teacher.reason_by=student")
    need(s.sampling.source != "teacher", "sampling.source", problem, "set 'student'")
    need(not s.policy.kl, "policy.kl", problem, "set 0.0")
    need(not s.eval.grader or "teacher" not in s.eval.roles, "eval.roles", problem, "remove 'teacher'")


def _check_quantization(s: Settings, need: Need) -> None:
    """Only weights that do not change are quantized, and only the student samples from an int8 copy."""
    quantized = s.model.quantization != "none"
    need(
        not quantized or s.lora.rank > 0 or s.teacher_weights == "fixed",
        "model.quantization",
        "all weights change, so none can be quantized",
        "train a LoRA (lora.rank), or leave teacher.path out and set teacher.weights=fixed",
    )
    need(
        not (quantized and s.sampling.merged_adapters),
        "sampling.merged_adapters",
        "adapters cannot be added into quantized weights",
        "set this to False, or model.quantization='none'",
    )
    copied, key = s.sampling.int8_weights, "sampling.int8_weights"
    frozen = quantized and s.lora.rank > 0
    remedy = "set this to False, or model.quantization='none'"
    need(not (copied and frozen), key, f"the student's base is in {s.model.quantization} already", remedy)
    need(
        not copied or s.sampling.source == "student",
        key,
        "is only for completions that the student writes",
        "set False",
    )


def _check_graders(s: Settings, need: Need) -> None:
    """Graders fit the rows, and a judge exists if one grades."""
    for key, grader in (("reward.grader", s.reward.grader), ("eval.grader", s.eval.grader)):
        source = GRADERS[grader].source if grader else ""
        need(source in ("", s.data.source), key, f"grades only rows of data.source={source}", "use 'boxed' or 'rubric'")
    if s.graded_by_judge:
        remedy = "name a model at judge.base_url, or give judge.checkpoint"
        need(bool(s.judge.model) != bool(s.judge.checkpoint), "judge.model", "must name exactly one judge", remedy)
    if s.judge.second is not None:
        key = "judge.second_checkpoint" if s.judge.second_checkpoint else "judge.second_model"
        problem = "is compared with the judge of an evaluation, and no judge evaluates"
        need("judge" in s.eval.graders, key, problem, "set eval.grader=judge or a judged benchmark, or leave it out")


def _check_paths(s: Settings, need: Need, flags: str, *, trains: bool) -> None:
    """Every path that a run reads is set."""
    need(bool(s.model.path), "model.path", "no model given", f"pass {flags}model.path=HF_DIRECTORY")
    need(bool(s.data.path) or not trains, "data.path", "no data given", f"pass {flags}data.path=FILE.jsonl")
    names, known = s.rubric.writer_fields, tuple(FIELDS)
    need(set(names) <= set(known), "rubric.writer_fields", "names an unknown field", f"use some of {known}")
    problem = "lacks the question, which every role sees"
    need("question" in names, "rubric.writer_fields", problem, "add 'question'")
    if s.writes_rubrics:
        remedy = f"pass {flags}rubric.writer=the adapter or export folder of a Stage I run"
        need(bool(s.rubric.writer), "rubric.writer", "no rubric writer given", remedy)
