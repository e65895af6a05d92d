"""What each key of a config decides: what is learned, for how long, which scores and files a run has, or none of these.

A run may continue in its folder with other values of the keys that do not decide what is learned; see `run.starts`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

DECIDES: dict[str, tuple[str, ...]] = {
    # What is learned: a run with another value is another run.
    "learning": (
        "seed", "task", "method", "prompts",
        "model.path", "model.dtype", "model.param_dtype", "model.quantization", "model.thought_begin", "model.thought_end",
        "lora.rank", "lora.alpha", "lora.targets",
        "data.source", "data.path", "data.fields.question", "data.fields.reference", "data.fields.rubric",
        "data.fields.answer", "data.fields.solution", "data.fields.id", "data.incomplete", "data.split", "data.count", "data.flawed", "data.max_student_prompt",
        "data.max_teacher_prompt", "data.too_long",
        "student.fields", "student.shown_in", "student.thinking",
        "teacher.fields", "teacher.shown_in", "teacher.thinking", "teacher.weights", "teacher.path", "teacher.paths", "teacher.of_sources", "teacher.quantization", "teacher.ema_decay", "teacher.current_share", "teacher.reason_tokens",
        "teacher_endpoint.model", "teacher_endpoint.base_url", "teacher.reason_by", "teacher.reason_thinking", "teacher.transition", "teacher.attempts_shown",
        "teacher.guidance", "teacher.guidance_by", "teacher.better_of_two",
        "rubric.source", "rubric.style", "rubric.min_criteria", "rubric.max_criteria", "rubric.noisy_fraction",
        "rubric.reduced_fraction", "rubric.dropout", "rubric.writer", "rubric.writer_fields", "rubric.writer_thinking", "rubric.constrained", "rubric.resample",
        "rubric.on_reject", "rubric.salvage", "rubric.max_prompt", "rubric.max_new_tokens", "rubric.temperature", "rubric.top_k", "rubric.top_p",
        "sampling.max_new_tokens", "sampling.temperature", "sampling.top_k", "sampling.top_p", "sampling.source",
        "sampling.group", "sampling.int8_cache", "sampling.merged_adapters", "sampling.int8_weights", "sampling.presence_penalty",
        "reward.grader", "reward.score", "reward.success", "reward.shown",
        "policy.clip_low", "policy.clip_high", "policy.kl", "policy.scale_advantages", "policy.weight",
        "loss.divergence", "loss.beta", "loss.top_k", "loss.top_k_support", "loss.tail", "loss.entry_clip",
        "loss.token_clip", "loss.importance_clip", "loss.thinking", "loss.mask_cut", "loss.skip_first", "loss.reduction",
        "loss.completions", "loss.emphasis", "loss.emphasis_strength", "loss.emphasis_share",
        "optimizer.learning_rate", "optimizer.schedule", "optimizer.warmup_steps", "optimizer.clip", "optimizer.b1",
        "optimizer.b2", "optimizer.weight_decay",
        "train.router", "train.routing_replay", "train.epochs", "train.batch_size", "train.batches_per_rollout", "train.passes_per_rollout",
    ),
    # How long it is learned. Finished steps stay valid, unless their learning rates depended on it.
    "length": ("train.steps",),
    # Scores: of every set, of the run's own sets, of one set, of sampled answers, of a judge's grades, of its agreement with another.
    "scores": ("eval.count", "eval.max_new_tokens", "eval.thinking"),
    "scores of own sets": ("eval.grader",),
    "scores of a set": ("eval.path", "eval.splits", "eval.benchmarks"),
    "scores of samples": ("eval.samples", "eval.temperature"),
    "scores by a judge": (
        "judge.model", "judge.base_url", "judge.checkpoint", "judge.per_call", "judge.reasks", "judge.max_characters",
        "judge.temperature", "judge.seed", "judge.max_tokens", "judge.extra",
    ),
    "agreement of judges": ("judge.second_model", "judge.second_base_url", "judge.second_checkpoint"),
    # What a finished run should have: missing parts are made.
    "results": ("eval.roles", "eval.greedy", "export.merged", "export.adapter", "export.dtype"),
    # How, how fast and in how much memory it is computed, what is printed, and what is saved on the way.
    "nothing": (
        "model.remat", "model.kernels", "data.pad_to", "data.tfds_dir", "rubric.batch_size", "sampling.slots",
        "sampling.draft_tokens",
        "loss.chunk_size", "train.microbatches", "train.row_lengths", "train.split_rows", "train.log_every", "checkpoint.every", "checkpoint.keep",
        "log.wandb", "log.mlflow", "log.trackio", "log.completions_every",
        "mesh.data", "mesh.group", "mesh.fsdp", "mesh.expert", "mesh.tensor",
        "eval.every", "eval.every_splits", "eval.batch_size",
        "teacher_endpoint.key_variable", "teacher_endpoint.concurrency", "teacher_endpoint.timeout_s", "teacher_endpoint.retries",
        "teacher_endpoint.requests_per_minute",
        "judge.key_variable", "judge.second_key_variable", "judge.concurrency", "judge.timeout_s", "judge.retries", "judge.requests_per_minute",
        "judge.tokens_per_minute", "judge.input_price", "judge.output_price", "judge.batch_size",
    ),
}  # fmt: skip
"""What depends on a key -> the keys; a section stands for all of its keys.

Keys on which nothing depends may still change the last bits of a number, as another mesh does.
"""
_DECIDES = {key: what for what, keys in DECIDES.items() for key in keys}


def decides(key: str, config: Mapping[str, Any]) -> str:
    """What depends on a key, an entry of `DECIDES`; "learning" for a key that this version does not know."""
    place = key
    while place not in _DECIDES:
        place, dot, _ = place.rpartition(".")
        if not dot:
            return "learning"
    what = _DECIDES[place]
    rewarded = what == "scores by a judge" and at(config, "reward.grader") == "judge"
    return "learning" if rewarded else what


def at(config: Any, key: str) -> Any:
    """The value of a dotted key of a config given as a plain dict; None if it is missing."""
    for part in key.split("."):
        config = config.get(part) if isinstance(config, Mapping) else None
    return config
