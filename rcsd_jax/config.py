"""The configuration of one stage, with its defaults (the paper's settings), and the checks that need no data.

A job is either one stage (a config made by `stage`) or several run in order (`job`), each in its own folder of the
workdir. Configs are data: this module knows the keys, `rcsd_jax.stage` gives them meaning.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from rcsd_jax import contexts
from rcsd_jax.errors import UserError

CHOICES = {
    "task": ("solve", "write_rubric"),
    "data.source": ("jsonl", "tfds", "world"),
    "data.too_long": ("skip", "fail"),
    "model.dtype": ("float32", "bfloat16"),
    "model.param_dtype": ("float32", "bfloat16"),
    "model.remat": ("none", "full"),
    "teacher.weights": ("fixed", "live", "ema"),
    "rubric.source": ("data", "generic", "noisy", "random", "reduced", "written"),
    "rubric.on_reject": ("generic", "drop"),
    "loss.divergence": ("vocabulary", "sampled_token"),
    "loss.top_k_support": ("teacher", "student"),
    "loss.tail": ("renormalize", "bucket"),
    "optimizer.schedule": ("constant", "linear", "cosine"),
    "eval.grader": ("", "world", "boxed", "rubric"),
}


def stage() -> ConfigDict:
    """One stage: the paper's Stage II on the user's JSONL. Every key that exists is here."""
    none_or = _placeholders()
    return ConfigDict(
        dict(
            seed=0,
            task="solve",  # what is written: a solution, or a rubric ("write_rubric")
            prompts=contexts.ENGLISH,
            model=dict(
                path="",  # a Hugging Face directory or hub name: Qwen3, Qwen2.5 or Llama 3
                dtype="bfloat16",  # of activations
                param_dtype="bfloat16",  # as stored; what is trained is kept in float32
                remat="full",
            ),
            lora=dict(  # rank 0: full fine-tuning
                rank=64, alpha=128.0, targets=("q", "k", "v", "o", "gate", "up", "down")
            ),
            data=dict(
                source="jsonl",
                path="",  # the JSONL file, the TFDS name (or name#split), or the world's split
                fields=dict(question="", reference="", rubric="", id=""),  # column names; empty: the usual aliases
                tfds_split="train",
                tfds_dir="",
                count=0,  # of the world's problems
                max_student_prompt=2048,
                max_teacher_prompt=4096,
                too_long="skip",  # or "fail": a prompt is never cut
                pad_to=128,  # prompt lengths are rounded up to multiples of this, so few shapes are compiled
            ),
            student=dict(fields=("question",), thinking=False),
            teacher=dict(
                fields=("question", "rubric"),
                thinking=False,
                weights="fixed",
                ema_decay=0.999,
                reason_tokens=0,  # > 0: the teacher first writes an analysis of at most this many tokens
            ),
            rubric=dict(
                source="data",  # the rows' own rubrics, a variant of them, or "written" by a model
                style="objects",
                min_criteria=3,
                max_criteria=25,
                noisy_fraction=0.5,
                reduced_fraction=0.5,
                writer="",  # the directory of the Stage I model that writes them
                writer_fields=("question",),
                writer_thinking=False,
                resample=2,  # how often a rejected rubric is sampled again
                on_reject="generic",  # what then: the generic rubric, or drop the question
                max_new_tokens=1024,
                temperature=1.0,
                top_k=20,
                top_p=0.95,
                batch_size=32,
            ),
            sampling=dict(max_new_tokens=4096, temperature=1.2, top_k=20, top_p=0.95),
            loss=dict(
                divergence="vocabulary",
                beta=0.0,  # 0: forward KL, 1: reverse KL, between: generalized JSD
                top_k=none_or["int"],
                top_k_support="teacher",
                tail="renormalize",
                entry_clip=none_or["float"],
                token_clip=none_or["float"],
                importance_clip=none_or["float"],
                mask_cut=False,
                skip_first=0,
                chunk_size=256,
            ),
            optimizer=dict(
                learning_rate=5e-6, schedule="constant", warmup_steps=0, clip=1.0, b1=0.9, b2=0.999, weight_decay=0.0
            ),
            train=dict(steps=100, batch_size=32, microbatches=1, log_every=1),
            checkpoint=dict(every=20, keep=2),
            mesh=dict(data=1, fsdp=-1, tensor=1),  # -1: all remaining devices
            eval=dict(
                grader="",  # empty: no evaluation; "world", "boxed" (last \\boxed{} against the reference), "rubric"
                path="",  # rows held out for evaluation; of TFDS, name#split
                splits=ConfigDict(),  # or several sets: name -> path (or the world's split)
                every=0,  # > 0: also evaluate the student every so many steps
                count=256,
                batch_size=256,
                roles=("base", "teacher", "trained"),
                greedy=(False, True),
                temperature=1.0,
            ),
            export=dict(merged=True, adapter=True),
        )
    )


def job(**stages: ConfigDict) -> ConfigDict:
    """Several stages run in the order given; stage i+1 may name `{workdir}/<stage i>/export` in its settings."""
    return ConfigDict(dict(stages=tuple(stages), **stages))


def stages_of(config: ConfigDict) -> list[tuple[str, ConfigDict]]:
    """The stages of a config as (name, config); the name of a single stage is empty."""
    return [(name, config[name]) for name in config.stages] if "stages" in config else [("", config)]


def check(config: ConfigDict) -> None:
    """Raises UserError for a value that no stage can run with, naming its key."""
    for name, one in stages_of(config):
        prefix = f"{name}." if name else ""
        for key, choices in CHOICES.items():
            value = _get(one, key)
            if value not in choices:
                nearest = difflib.get_close_matches(str(value), choices, n=1)
                hint = f"did you mean '{nearest[0]}'? " if nearest else ""
                raise UserError("no such choice", field=prefix + key, value=value, remedy=f"{hint}use one of {choices}")
        _check_numbers(one, prefix)


def _check_numbers(one: ConfigDict, prefix: str) -> None:
    def need(ok: bool, key: str, problem: str, remedy: str):
        if not ok:
            raise UserError(problem, field=prefix + key, value=_get(one, key), remedy=remedy)

    for key in ("train.steps", "train.batch_size", "train.microbatches", "sampling.max_new_tokens", "checkpoint.every"):
        need(_get(one, key) >= 1, key, "must be at least 1", "set a positive number")
    need(
        one.train.batch_size % one.train.microbatches == 0,
        "train.microbatches",
        f"does not divide train.batch_size = {one.train.batch_size}",
        "choose a divisor of the batch size",
    )
    need(0.0 <= one.loss.beta <= 1.0, "loss.beta", "must lie in [0, 1]", "0 is forward KL, 1 is reverse KL")
    need(one.sampling.temperature >= 0, "sampling.temperature", "must not be negative", "0 is greedy")
    if one.eval.grader:
        remedy = "give held-out rows as eval.path, or set eval.grader to an empty string"
        need(bool(one.eval.path) or bool(one.eval.splits), "eval.path", "nothing to evaluate on", remedy)
        need(
            one.eval.grader != "world" or one.data.source == "world",
            "eval.grader",
            "grades the embedded world's problems only",
            "use 'boxed' or 'rubric'",
        )
    need(bool(one.model.path), "model.path", "no model given", f"pass --config.{prefix}model.path=HF_DIRECTORY")
    need(bool(one.data.path), "data.path", "no data given", f"pass --config.{prefix}data.path=FILE.jsonl")
    if one.rubric.source == "written" and "rubric" in one.teacher.fields:
        remedy = f"pass --config.{prefix}rubric.writer=EXPORT_DIRECTORY of a Stage I run"
        need(bool(one.rubric.writer), "rubric.writer", "no rubric writer given", remedy)


def fingerprint(config: ConfigDict) -> str:
    """A hash of everything in the config, to tell whether a workdir belongs to it."""
    return hashlib.sha256(to_json(config).encode()).hexdigest()[:16]


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


def _placeholders():
    from ml_collections import config_dict

    # A placeholder is None until a flag sets it, and then has its type.
    return {"int": config_dict.placeholder(int), "float": config_dict.placeholder(float)}
