"""The configuration of one stage, with its defaults (the paper's settings), and the checks that need no data.

A job is either one stage (a config made by `stage`) or several run in order (`job`), each in its own folder of the
workdir. Configs are data: this module knows the keys, `rcsd_jax.run.stage` gives them meaning.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict, config_dict

from rcsd_jax.evaluate.benchmarks import BENCHMARKS
from rcsd_jax.host.errors import UserError
from rcsd_jax.roles import contexts

CHOICES = {
    "task": ("solve", "write_rubric"),
    "method": ("self_distillation", "grpo", "sft", "self_distillation_and_grpo"),
    "data.source": ("jsonl", "parquet", "hub", "tfds", "world"),
    "data.too_long": ("skip", "fail"),
    "model.dtype": ("float32", "bfloat16"),
    "model.param_dtype": ("float32", "bfloat16"),
    "model.remat": ("none", "full", "attention", "mlp", "projections"),
    "model.kernels": ("auto", "xla", "pallas"),
    "teacher.weights": ("fixed", "live", "ema"),
    "teacher.guidance_by": ("context", "criteria"),
    "rubric.source": ("data", "generic", "noisy", "random", "reduced", "written"),
    "rubric.on_reject": ("generic", "drop"),
    "sampling.source": ("student", "teacher", "reference"),
    "loss.reduction": ("tokens", "completions", "longest"),
    "loss.divergence": ("vocabulary", "sampled_token"),
    "loss.top_k_support": ("teacher", "student"),
    "loss.tail": ("renormalize", "bucket"),
    "optimizer.schedule": ("constant", "linear", "cosine"),
    "reward.grader": ("", "world", "boxed", "rubric", "judge"),
    "judge.per_call": ("criterion", "rubric"),
    "eval.grader": ("", "world", "boxed", "rubric", "judge"),
    "export.dtype": ("float32", "bfloat16"),
}


def stage() -> ConfigDict:
    """One stage: the paper's Stage II on the user's JSONL. Every key that exists is here."""
    return ConfigDict(
        dict(
            seed=0,  # of the order of data, of adapters and of sampling
            task="solve",  # what is written: a solution, or a rubric ("write_rubric")
            method="self_distillation",  # the loss: `rcsd_jax.methods.METHODS`
            prompts=contexts.ENGLISH,  # the texts around what a role sees
            model=dict(
                path="",  # a Hugging Face directory or hub name: Qwen3, Qwen2.5 or Llama 3
                dtype="bfloat16",  # of activations
                param_dtype="bfloat16",  # as stored; what is trained is kept in float32
                remat="full",  # what the backward pass recomputes: `models.config.REMAT`
                kernels="auto",  # of attention: Pallas on TPU, else XLA
                int8_weights=False,  # hold weights that do not change (LoRA's base, a fixed teacher) as int8
            ),
            lora=dict(  # rank 0: full fine-tuning; adapters are scaled by alpha / rank
                rank=64, alpha=128.0, targets=("q", "k", "v", "o", "gate", "up", "down")
            ),
            data=dict(
                source="jsonl",  # of a path that does not say
                path="",  # FILE.jsonl, FILE.parquet, hub:OWNER/NAME[:CONFIGURATION][#SPLIT], tfds:NAME[#SPLIT], or the world's split
                # column names; empty: the usual aliases
                fields=dict(question="", reference="", rubric="", answer="", id=""),
                split="train",  # of data sets whose path names none
                tfds_dir="",  # where TFDS keeps prepared data; empty: its default
                count=0,  # of the world's problems
                flawed=config_dict.placeholder(float),  # share of the world's references with a wrong step
                max_student_prompt=2048,  # tokens
                max_teacher_prompt=4096,  # tokens, also of the rubric writer
                too_long="skip",  # leave a row with a longer prompt out, or "fail": a prompt is never cut
                pad_to=128,  # prompt lengths are rounded up to multiples of this, so few shapes are compiled
            ),
            # What a role sees of a row, in this order, and the chat template's thinking switch.
            student=dict(fields=("question",), thinking=False),
            teacher=dict(
                fields=("question", "rubric"),  # as of the student
                thinking=False,
                weights="fixed",  # the initial ones; "live": the current ones; "ema": their average
                ema_decay=0.999,  # of "ema", a step
                reason_tokens=0,  # > 0: the teacher first writes an analysis of at most this many tokens
                guidance=0.0,  # > 0: its logits are pushed on along what its fields change, by this factor
                guidance_by="context",  # all fields at once, or "criteria", each by its weight
            ),
            rubric=dict(
                source="data",  # the rows' own rubrics, a variant of them, or "written" by a model
                style="objects",  # as models are shown it: with titles and weights, or "strings" with classes alone
                min_criteria=3,  # fewer are no rubric
                max_criteria=25,  # nor are more
                noisy_fraction=0.5,  # of the criteria, which "noisy" takes from other questions
                reduced_fraction=0.5,  # of the criteria, which "reduced" keeps
                writer="",  # what Stage I made and writes them: a model's directory or an adapter's
                writer_fields=("question",),  # what the writer sees
                writer_thinking=False,
                resample=2,  # how often a rejected rubric is sampled again
                on_reject="generic",  # what then: the generic rubric, or drop the question
                max_new_tokens=1024,  # of a written rubric
                temperature=1.0,
                top_k=20,  # 0: all tokens
                top_p=0.95,
                batch_size=32,  # rubrics written at a time
            ),
            sampling=dict(
                max_new_tokens=4096,  # the longest completion, in evaluation too
                temperature=1.2,  # divides logits while sampling and in the loss; 0: greedy, and the loss takes 1
                top_k=20,  # 0: all tokens
                top_p=0.95,  # 1: all tokens
                source="student",  # who writes the completions: a role, or "reference", the data
                group=1,  # completions of each question; a batch has batch_size / group questions
                slots=0,  # > 0: so many rows at a time, finished ones making room for the next; 0: the whole batch
                int8_cache=False,  # keep keys and values as int8; evaluation never does
                merged_adapters=False,  # decode with LoRA added into the weights, faster; evaluation never does
            ),
            # Completions are graded where a method needs rewards, or the teacher the student's own success or feedback.
            reward=dict(grader="", score="accuracy", success=1.0),  # a success has at least this score
            policy=dict(  # of GRPO
                clip_low=0.2,  # how far a token's ratio to the sampler may fall below 1 and count
                clip_high=0.2,  # and rise above it
                kl=0.0,  # weight of the KL from the reference model: what teacher.weights and teacher.fields say
                scale_advantages=True,  # by the group's deviation; False: Dr. GRPO
                weight=1.0,  # beside self-distillation
            ),
            # Grader "judge": another model decides each criterion of the row's rubric.
            judge=dict(
                model="",  # its name at an OpenAI-compatible endpoint
                base_url="https://api.openai.com/v1",
                key_variable="OPENAI_API_KEY",  # the environment variable that holds the key; empty: none is wanted
                checkpoint="",  # or a model or adapter that is run here
                per_call="criterion",  # asked about one criterion at a time, or the whole "rubric"
                reasks=2,  # how often an answer that cannot be read is asked for again; then it is in no score
                max_characters=200_000,  # longer prompts are not asked, and said to be so
                temperature=0.0,
                seed=config_dict.placeholder(int),  # None: none is sent
                max_tokens=4096,  # of an answer
                extra=ConfigDict(),  # further fields of a request
                concurrency=16,  # requests at a time
                timeout_s=120.0,  # of one request
                retries=8,  # of a request that failed
                requests_per_minute=config_dict.placeholder(float),  # None: no limit
                tokens_per_minute=config_dict.placeholder(float),  # None: no limit
                input_price=config_dict.placeholder(float),  # US dollars per million tokens
                output_price=config_dict.placeholder(float),  # likewise
                batch_size=32,  # of a checkpoint
            ),
            loss=dict(
                divergence="vocabulary",  # its whole sum, or "sampled_token": a policy gradient of the reverse KL
                beta=0.0,  # 0: forward KL, 1: reverse KL, between: generalized JSD
                # A placeholder is None until it is set. Each key has its own: a shared one would set them all.
                top_k=config_dict.placeholder(int),  # entries kept at each position; None: all
                top_k_support="teacher",  # whose likeliest entries these are
                tail="renormalize",  # drop the mass outside, or "bucket": it is one more entry
                entry_clip=config_dict.placeholder(float),  # upper clamp of each entry's term, before the sum
                token_clip=config_dict.placeholder(float),  # upper clamp of a token's divergence
                importance_clip=config_dict.placeholder(float),  # of p_trainer / p_sampler; None: no such weight
                mask_cut=False,  # leave completions that hit the length limit out
                skip_first=0,  # tokens at the beginning of a completion that are left out
                reduction="tokens",  # all tokens weigh alike, or all "completions" (GRPO); "longest": Dr. GRPO
                chunk_size=256,  # positions whose logits are in memory at a time
            ),
            # AdamW; clip: of the gradient's norm, 0: none; after the warm-up "linear" and "cosine" fall to 0 at the last step.
            optimizer=dict(
                learning_rate=5e-6, schedule="constant", warmup_steps=0, clip=1.0, b1=0.9, b2=0.999, weight_decay=0.0
            ),
            # batch_size: completions of a step, learnt from in so many microbatches one after the other.
            train=dict(steps=100, batch_size=32, microbatches=1, log_every=1),
            # Every so many steps, and how many are kept.
            checkpoint=dict(every=20, keep=2),
            # What the axes split: `models.sharding.LAYOUTS`. -1: all remaining devices.
            mesh=dict(data=1, group=1, fsdp=-1, tensor=1),
            eval=dict(
                grader="",  # empty: no evaluation; "world", "boxed" (last \\boxed{} against the reference), "rubric"
                path="",  # rows held out for evaluation
                splits=ConfigDict(),  # or several sets: name -> path (or the world's split)
                # the path of each benchmark to be asked, or "" for where it is published; None: not asked
                benchmarks={name: config_dict.placeholder(str) for name in BENCHMARKS},
                samples=1,  # completions of each question where they are sampled
                every=0,  # > 0: also evaluate the student every so many steps
                every_splits=(),  # on which of the sets then; empty: on all
                count=256,  # questions of a set, at most
                batch_size=32,  # completions sampled at a time
                roles=("base", "teacher", "trained"),
                greedy=(False, True),  # modes: sampled, greedy
                temperature=1.0,  # where sampled; filters are those of sampling
            ),
            # The whole model, and LoRA's adapter; float32, because bfloat16 rounds away most of what a small rate changed
            export=dict(merged=True, adapter=True, dtype="float32"),
        )
    )


def job(**stages: ConfigDict) -> ConfigDict:
    """Several stages run in the order given; stage i+1 may name `{workdir}/<stage i>/export` in its settings."""
    return ConfigDict(dict(stages=tuple(stages), **stages))


AT_LEAST_ONE = (
    "train.steps", "train.batch_size", "train.microbatches", "train.log_every", "checkpoint.every", "checkpoint.keep",
    "sampling.max_new_tokens", "rubric.max_new_tokens", "rubric.batch_size", "rubric.min_criteria", "eval.count",
    "eval.batch_size", "eval.samples", "judge.max_characters", "judge.max_tokens", "judge.concurrency", "judge.batch_size", "sampling.group", "data.pad_to", "data.max_student_prompt", "data.max_teacher_prompt", "loss.top_k",
    "loss.chunk_size",
)  # fmt: skip
FINITE = (
    "sampling.temperature", "rubric.temperature", "eval.temperature", "loss.entry_clip", "loss.token_clip",
    "loss.importance_clip", "policy.clip_high", "policy.kl", "policy.weight", "reward.success", "teacher.guidance",
    "optimizer.learning_rate", "optimizer.clip", "optimizer.weight_decay", "lora.alpha",
)  # fmt: skip
AT_LEAST_ZERO = (
    "sampling.temperature", "sampling.top_k", "rubric.temperature", "rubric.top_k", "rubric.resample", "eval.every",
    "eval.temperature", "lora.rank", "teacher.reason_tokens", "loss.skip_first", "optimizer.clip",
    "optimizer.weight_decay", "optimizer.warmup_steps", "policy.clip_low", "policy.clip_high", "policy.kl",
    "policy.weight", "teacher.guidance",
)  # fmt: skip


def stages_of(config: ConfigDict) -> list[tuple[str, ConfigDict]]:
    """The stages of a config as (name, config); the name of a single stage is empty."""
    return [(name, config[name]) for name in config.stages] if "stages" in config else [("", config)]


def check(config: ConfigDict, *, trains: bool = True) -> None:
    """Raises UserError for a value that no stage can run with, naming its key; one that only evaluates needs no data."""
    for name, one in stages_of(config):
        prefix = f"{name}." if name else ""
        for key, choices in CHOICES.items():
            value = _get(one, key)
            if value not in choices:
                nearest = difflib.get_close_matches(str(value), choices, n=1)
                hint = f"did you mean '{nearest[0]}'? " if nearest else ""
                raise UserError("no such choice", field=prefix + key, value=value, remedy=f"{hint}use one of {choices}")
        _check_numbers(one, prefix, trains=trains)


def _check_numbers(one: ConfigDict, prefix: str, *, trains: bool) -> None:
    def need(ok: bool, key: str, problem: str, remedy: str) -> None:
        if not ok:
            raise UserError(problem, field=prefix + key, value=_get(one, key), remedy=remedy)

    for key in AT_LEAST_ONE:
        value = _get(one, key)
        need(value is None or value >= 1, key, "must be at least 1", "set a positive number")
    for key in AT_LEAST_ZERO:
        need(_get(one, key) >= 0, key, "must not be negative", "set 0 or a positive number")
    for key in ("loss.entry_clip", "loss.token_clip", "loss.importance_clip"):
        value = _get(one, key)
        need(value is None or value > 0, key, "must be positive", "set a positive number, or leave it out")
    for key in ("loss.top_k", "loss.entry_clip"):
        unread = one.loss.divergence == "sampled_token" and _get(one, key) is not None
        need(
            not unread,
            key,
            "is of the whole vocabulary's divergence",
            "leave it out, or set loss.divergence=vocabulary",
        )
    for key in ("sampling.top_p", "rubric.top_p"):
        need(0.0 < _get(one, key) <= 1.0, key, "must lie in (0, 1]", "1.0 keeps every token")
    need(0 <= one.seed < 2**32, "seed", "must lie in 0..2**32-1", "choose another seed")
    for key in FINITE:
        value = _get(one, key)
        need(value is None or math.isfinite(value), key, "is not a finite number", "set a finite number")
    for key in ("teacher.ema_decay", "policy.clip_low", "rubric.noisy_fraction", "optimizer.b1", "optimizer.b2"):
        need(0.0 <= _get(one, key) <= 1.0, key, "must lie in [0, 1]", "set a number from 0 to 1")
    need(one.data.flawed is None or 0.0 <= one.data.flawed <= 1.0, "data.flawed", "must lie in [0, 1]", "set a share")
    need(0.0 < one.rubric.reduced_fraction <= 1.0, "rubric.reduced_fraction", "must lie in (0, 1]", "0.5 keeps half")
    need(
        one.rubric.min_criteria <= one.rubric.max_criteria,
        "rubric.min_criteria",
        f"is more than rubric.max_criteria = {one.rubric.max_criteria}",
        "lower it, or raise the other",
    )
    remedy = "lower it, or raise sampling.max_new_tokens"
    need(one.loss.skip_first < one.sampling.max_new_tokens, "loss.skip_first", "leaves no token in the loss", remedy)
    for key in ("student.fields", "teacher.fields", "rubric.writer_fields"):
        names, known = _get(one, key), tuple(contexts.FIELDS)
        need(set(names) <= set(known), key, "names an unknown field", f"use some of {known}")
        need("question" in names, key, "lacks the question, which every role sees", "add 'question'")
    modes = one.eval.greedy
    remedy = "set (False,), (True,) or (False, True)"
    need(all(isinstance(m, bool) for m in modes), "eval.greedy", "holds something else than True and False", remedy)
    rate = one.optimizer.learning_rate
    need(rate > 0, "optimizer.learning_rate", "must be positive", "the paper's is 5e-6")
    need(
        one.train.batch_size % one.train.microbatches == 0,
        "train.microbatches",
        f"does not divide train.batch_size = {one.train.batch_size}",
        "choose a divisor of the batch size",
    )
    slots = one.sampling.slots
    need(
        slots >= 0 and (slots == 0 or one.train.batch_size % slots == 0),
        "sampling.slots",
        f"does not divide train.batch_size = {one.train.batch_size}",
        "choose a divisor of the batch size, or 0 for the whole batch at once",
    )
    group = one.sampling.group
    need(
        one.train.batch_size % group == 0 and (slots == 0 or slots % group == 0 or group % slots == 0),
        "sampling.group",
        f"does not divide train.batch_size = {one.train.batch_size} or sampling.slots = {slots}",
        "choose a divisor of both",
    )
    _check_method(one, need)
    need(
        not one.model.int8_weights or one.lora.rank > 0 or teacher_weights(one) == "fixed",
        "model.int8_weights",
        "all weights change: none can be held as int8",
        "train a LoRA (lora.rank), or take teacher.weights=fixed",
    )
    need(
        not (one.model.int8_weights and one.sampling.merged_adapters),
        "sampling.merged_adapters",
        "adapters cannot be added into int8 weights",
        "set it or model.int8_weights to False",
    )
    need(0.0 <= one.loss.beta <= 1.0, "loss.beta", "must lie in [0, 1]", "0 is forward KL, 1 is reverse KL")
    if one.eval.every:
        remedy = "set eval.grader or eval.benchmarks and keep 'trained' in eval.roles, or set eval.every=0"
        evaluated = bool(one.eval.grader) or bool(benchmarks_of(one))
        need(evaluated and "trained" in one.eval.roles, "eval.every", "nothing to evaluate", remedy)
    own = (tuple(one.eval.splits) or ("eval",)) if one.eval.grader else ()
    splits = (*own, *benchmarks_of(one))
    need(set(one.eval.every_splits) <= set(splits), "eval.every_splits", "no such set", f"use some of {splits}")
    known = ("base", "teacher", "trained")
    need(set(one.eval.roles) <= set(known), "eval.roles", "no such role", f"use some of {known}")
    if one.eval.grader:
        remedy = "give held-out rows as eval.path, or set eval.grader to an empty string"
        need(bool(one.eval.path) or bool(one.eval.splits), "eval.path", "nothing to evaluate on", remedy)
        need(
            one.eval.grader != "world" or one.data.source == "world",
            "eval.grader",
            "grades the embedded world's problems only",
            "use 'boxed' or 'rubric'",
        )
    if graded_by_judge(one):
        remedy = "name a model at judge.base_url, or give judge.checkpoint"
        need(bool(one.judge.model) != bool(one.judge.checkpoint), "judge.model", "not one judge", remedy)
    need(bool(one.model.path), "model.path", "no model given", f"pass --config.{prefix}model.path=HF_DIRECTORY")
    need(bool(one.data.path) or not trains, "data.path", "no data given", f"pass --config.{prefix}data.path=FILE.jsonl")
    if one.rubric.source == "written" and "rubric" in one.teacher.fields:
        remedy = f"pass --config.{prefix}rubric.writer=the adapter or export folder of a Stage I run"
        need(bool(one.rubric.writer), "rubric.writer", "no rubric writer given", remedy)


def benchmarks_of(one: ConfigDict) -> dict[str, str]:
    """Name -> path of the benchmarks that are asked."""
    return {name: path for name, path in one.eval.benchmarks.items() if path is not None}


def graded_by_judge(one: ConfigDict) -> bool:
    """Whether something in a stage is graded by a judge."""
    graders = {BENCHMARKS[name].grader for name in benchmarks_of(one)}
    return "judge" in graders | {one.eval.grader, one.reward.grader}


def _check_method(one: ConfigDict, need: Callable[[bool, str, str, str], None]) -> None:
    rewarded = one.method in ("grpo", "self_distillation_and_grpo")
    from_attempts = [name for name in contexts.ATTEMPT_FIELDS if name in one.teacher.fields]
    if rewarded or from_attempts:
        need(bool(one.reward.grader), "reward.grader", "nothing grades the completions", "set reward.grader")
    if one.reward.grader == "world":
        need(one.data.source == "world", "reward.grader", "grades the embedded world's problems only", "use 'boxed'")
    if "feedback" in from_attempts:
        need(one.reward.grader != "judge", "reward.grader", "gives no feedback", "take 'feedback' from teacher.fields")
    if rewarded or "success" in from_attempts:
        remedy = "set sampling.group, to 4 as in the paper"
        need(one.sampling.group > 1, "sampling.group", "leaves nothing to compare a completion with", remedy)
    remedy = "leave 'success' and 'feedback' to the teacher"
    need(not set(contexts.ATTEMPT_FIELDS) & set(one.student.fields), "student.fields", "are not known to it", remedy)
    if from_attempts:
        need(
            not one.teacher.reason_tokens,
            "teacher.reason_tokens",
            f"cannot analyse {' and '.join(from_attempts)}, which are known after sampling alone",
            "set 0",
        )
        remedy = "take 'teacher' out: what it sees is known in training alone"
        need(not one.eval.grader or "teacher" not in one.eval.roles, "eval.roles", "asks the teacher", remedy)
    teacher = teacher_weights(one)
    for key, off in (("teacher.guidance", 0.0), ("teacher.reason_tokens", 0)):
        value = _get(one, key)
        need(teacher != "none" or value == off, key, "is of the teacher, which this method has not", f"set {off}")
    if guided_by_criteria(one):
        seen = "rubric" in one.teacher.fields and not one.teacher.reason_tokens and not from_attempts
        problem = "needs a teacher that sees a rubric, writes no analysis and is shown no attempts"
        need(seen, "teacher.guidance_by", problem, "set 'context'")
    if one.sampling.source == "teacher":
        problem = "lets a teacher write that is not there, or does not know yet what it will see"
        need(teacher != "none" and not from_attempts, "sampling.source", problem, "set 'student'")
        need(
            not one.teacher.reason_tokens, "sampling.source", "does not go with teacher.reason_tokens", "set 'student'"
        )
    if one.sampling.source == "reference":
        need(one.sampling.group == 1, "sampling.group", "a reference is one completion", "set 1")
        need(not rewarded and not from_attempts, "sampling.source", "references are not graded", "set 'student'")
    remedy = "set policy.kl=0"
    need(one.method == "grpo" or not one.policy.kl, "policy.kl", "is of the method 'grpo' alone", remedy)


def teacher_weights(one: ConfigDict) -> str:
    """Which weights the teacher of a stage has; "none" where its method needs no teacher."""
    distils = one.method in ("self_distillation", "self_distillation_and_grpo")
    return one.teacher.weights if distils or one.policy.kl else "none"


def guided_by_criteria(one: ConfigDict) -> bool:
    """Whether the teacher of a stage is pushed along single criteria."""
    return bool(one.teacher.guidance) and one.teacher.guidance_by == "criteria"


def to_json(config: ConfigDict) -> str:
    """The config as stable, readable JSON."""
    return json.dumps(config.to_dict(), indent=1, sort_keys=True, default=list)


def differences(ours: Any, theirs: Any, prefix: str = "") -> list[str]:
    """Keys whose values differ between two configs read as plain dicts."""
    if not (isinstance(ours, Mapping) and isinstance(theirs, Mapping)):
        return [] if ours == theirs else [prefix]
    found = []
    for key in sorted(set(ours) | set(theirs)):
        found += differences(ours.get(key), theirs.get(key), f"{prefix}.{key}" if prefix else key)
    return found


def all_keys(config: ConfigDict, prefix: str = "") -> list[str]:
    """Every dotted key of a config, for suggestions."""
    keys = []
    for key in config:
        value = config.get_oneway_ref(key).get() if not isinstance(config[key], ConfigDict) else config[key]
        keys.append(prefix + key)
        if isinstance(value, ConfigDict):
            keys += all_keys(value, f"{prefix}{key}.")
    return keys


def _get(config: ConfigDict, key: str) -> Any:
    for part in key.split("."):
        config = config[part]
    return config
