"""Sizes of Qwen3 and Gemma 3 and the slices they train on, which a variant such as `configs/stage2.py:qwen3_8b` sets.

A variant is names joined by commas, in any order: a size (`qwen3_8b`), `full` for full fine-tuning instead of LoRA, a
slice (`v5e_4x4`; without one, the size's first below), `from_32b` for the model of its family of that size as the teacher, and a variant
of the config itself. `python -m rcsd_jax.plan` shows what each needs; experiments/tpu/README.md has the tables.
"""

from typing import Any

from ml_collections import ConfigDict

MODELS = {
    "qwen3_0.6b": "Qwen/Qwen3-0.6B",
    "qwen3_1.7b": "Qwen/Qwen3-1.7B",
    "qwen3_4b": "Qwen/Qwen3-4B",
    "qwen3_8b": "Qwen/Qwen3-8B",
    "qwen3_14b": "Qwen/Qwen3-14B",
    "qwen3_32b": "Qwen/Qwen3-32B",
    "qwen3_30b_a3b": "Qwen/Qwen3-30B-A3B",
    **{f"gemma3_{size}": f"google/gemma-3-{size}-it" for size in ("270m", "1b", "12b")},
}
MIXTURES = ("qwen3_30b_a3b",)
ATTENTION = ("q", "k", "v", "o")
"""What has adapters in a mixture of experts. The experts can have them too, see `lora.targets`."""


_BATCH = 32  # completions, for which the microbatches are


def _slice(
    group: int,
    fsdp: int,
    tensor: int,
    microbatches: int,
    remat: str,
    *,
    expert: int = 1,
    shared_rows: bool = False,
    slots: int = 0,
    evaluated: int = 0,
    **loss: int,
) -> dict[str, Any]:
    mesh = dict(data=1, group=group, fsdp=fsdp, expert=expert, tensor=tensor)
    train = dict(split_rows=True, row_lengths=6) if shared_rows else {}
    caches: dict[str, Any] = dict(sampling=dict(slots=slots), rubric=dict(batch_size=slots)) if slots else {}
    if evaluated:
        caches["eval"] = dict(batch_size=evaluated)
    return dict(mesh=mesh, microbatches=microbatches, remat=remat, train=train, caches=caches, loss=loss)


# Where memory allows, the loss takes more positions at once: for every chunk the output matrix is read, and under full
# fine-tuning its gradient is added up over the devices.
# fsdp x tensor divides the 8 key/value heads (4 of the mixtures), so that sampling can split the model over it.
# Experts are dealt out: a layer's weigh 1.2 GB, which devices would gather for every few tokens.
# Ironwood (tpu7x) has two devices a chip, so a mesh over 2x2x1 has eight.
# Only a single chip needs `sampling.slots`, where the caches of a whole batch do not fit; rubrics are written in as many rows. Elsewhere as
# many as the batch has rows fit where the step fits, and rollouts of 20 batches keep 85% of them busy.
# `evaluated`: rows of an evaluation, where the caches of 32 with 32,768 places each (112 KiB a place for Qwen3 0.6B and 1.7B, 144 for 4B and
# 8B) take more than about 10 of the 15.75 GiB of a v5e.
LORA = {
    "qwen3_0.6b": {
        "v5e_2x2": _slice(1, 4, 1, 4, "mlp", evaluated=8),
        "v5e_1x1": _slice(1, 1, 1, 16, "mlp", slots=8, evaluated=2),
        "v6e_1x1": _slice(1, 1, 1, 16, "mlp", slots=16, evaluated=4),
    },
    "qwen3_1.7b": {
        "v5e_2x2": _slice(1, 4, 1, 8, "projections", evaluated=8, chunk_size=512),
        "v5e_1x1": _slice(1, 1, 1, 32, "mlp", slots=8, evaluated=2),
        "v6e_1x1": _slice(1, 1, 1, 32, "mlp", slots=16, evaluated=4),
    },
    "qwen3_4b": {
        "v5e_2x4": _slice(1, 8, 1, 4, "mlp", evaluated=16, chunk_size=512),
        "v5e_4x4": _slice(2, 8, 1, 2, "mlp", chunk_size=512),
    },
    "qwen3_8b": {
        "v5e_4x4": _slice(2, 8, 1, 2, "projections", shared_rows=True),
        "v5p_2x2x1": _slice(1, 4, 1, 4, "projections", chunk_size=1024),
        "tpu7x_2x2x1": _slice(1, 8, 1, 2, "projections", chunk_size=1024),
    },
    "qwen3_14b": {
        "v5e_4x8": _slice(4, 8, 1, 1, "attention"),
        "v5p_2x2x1": _slice(1, 4, 1, 4, "projections", chunk_size=1024),
    },
    "qwen3_32b": {
        "v5p_2x2x4": _slice(2, 8, 1, 2, "projections", chunk_size=1024),
        "tpu7x_2x2x1": _slice(1, 8, 1, 4, "projections", chunk_size=1024),
    },
    "qwen3_30b_a3b": {
        "v5p_2x2x2": _slice(1, 1, 1, 1, "projections", expert=8, chunk_size=1024),
        "v5e_4x8": _slice(1, 4, 1, 1, "mlp", expert=8, shared_rows=True, chunk_size=512),
    },
    "gemma3_270m": {"v5e_1x1": _slice(1, 1, 1, 16, "mlp"), "v6e_1x1": _slice(1, 1, 1, 16, "mlp")},
    "gemma3_1b": {"v5e_1x1": _slice(1, 1, 1, 32, "mlp"), "v6e_1x1": _slice(1, 1, 1, 32, "mlp")},
    "gemma3_12b": {
        "v5e_4x4": _slice(2, 8, 1, 2, "attention", shared_rows=True),
        "v6e_2x4": _slice(1, 8, 1, 4, "mlp", shared_rows=True),
    },
}
FULL = {
    "qwen3_0.6b": {"v5e_2x2": _slice(1, 4, 1, 8, "mlp", evaluated=8)},
    "qwen3_1.7b": {"v5e_2x4": _slice(1, 8, 1, 4, "attention", evaluated=16)},
    "qwen3_4b": {
        "v5e_4x4": _slice(2, 8, 1, 2, "attention"),
        "v5p_2x2x1": _slice(1, 4, 1, 8, "projections", chunk_size=2048),
    },
    "qwen3_8b": {
        "v5p_2x2x2": _slice(1, 8, 1, 4, "projections", chunk_size=2048),
        "tpu7x_2x2x1": _slice(1, 8, 1, 4, "projections", chunk_size=2048),
    },
    "qwen3_14b": {"v5p_2x2x4": _slice(2, 8, 1, 2, "projections", chunk_size=2048)},
    "qwen3_32b": {"v5p_2x4x4": _slice(4, 8, 1, 1, "mlp", chunk_size=2048)},
}

# LoRA with a larger model as the teacher; both are in memory. (student, teacher) -> its slices.
FROM = {("qwen3_8b", "qwen3_32b"): {"v5p_2x2x1": _slice(1, 4, 1, 4, "projections", chunk_size=1024)}}


def split(variant: str, own: tuple[str, ...]) -> tuple[str, list[str]]:
    """A variant's parts: the config's own name ("" if there is none) and the rest.

    Raises:
      ValueError: two of the config's own names.
    """
    parts = [part for part in variant.split(",") if part]
    chosen = [part for part in parts if part in own]
    if len(chosen) > 1:
        raise ValueError(f"{' and '.join(chosen)} are two variants: choose one")
    return "".join(chosen), [part for part in parts if part not in own]


def apply(config: ConfigDict, parts: list[str], own: tuple[str, ...]) -> None:
    """Sets model, mesh, microbatches and remat of a size on a slice, for the batch of a config; does nothing without parts.

    Raises:
      ValueError: a part that is neither a size, a slice of it, nor `full`; or no `full` for a config that trains all weights.
    """
    if not parts:
        return
    full, rest = "full" in parts, [part for part in parts if part != "full"]
    size = next((part for part in rest if part in MODELS), None)
    if size is None:
        known = (*own, *MODELS)
        raise ValueError(
            f"unknown variant {parts[0]!r}: use of {', '.join(known)}, and with a size also full and a slice"
        )
    if not config.lora.rank and not full:
        raise ValueError(f"the variant trains all weights, and {size} without full is for LoRA: use {size},full")
    rest, teacher = _teacher(rest, size)
    table = _slices(size, teacher, full)
    called = ",".join([size, *(["full"] if full else []), *([f"from_{teacher.rpartition('_')[2]}"] if teacher else [])])
    named = [part for part in rest if part != size] or [next(iter(table), "")]
    if len(named) > 1 or named[0] not in table:
        raise ValueError(
            f"{called} has no {named[-1] or 'slice'!r}: use one of {', '.join(table) or 'the sizes without it'}"
        )
    settings = table[named[0]]
    config.model.update(path=MODELS[size], remat=settings["remat"])
    config.mesh.update(settings["mesh"])
    config.train.microbatches = settings["microbatches"] * max(1, config.train.batch_size // _BATCH)
    config.train.update(settings["train"])
    for section, values in settings["caches"].items():
        config[section].update(values)
    config.loss.update(settings["loss"])
    if teacher:
        config.teacher.path = MODELS[teacher]
    if full:
        config.lora.rank = 0
    if size in MIXTURES:
        config.lora.targets = ATTENTION


def _teacher(parts: list[str], size: str) -> tuple[list[str], str]:
    """A variant's parts without `from_<size>`, and that size of the student's family, which is the teacher; "" if there is none."""
    named = [part for part in parts if part.startswith("from_")]
    family = size.partition("_")[0]
    return [part for part in parts if part not in named], "".join(part.replace("from", family) for part in named[:1])


def _slices(size: str, teacher: str, full: bool) -> dict[str, dict[str, Any]]:
    if teacher:
        return {} if full else FROM.get((size, teacher), {})
    return (FULL if full else LORA).get(size, {})


def topology(variant: str) -> str | None:
    """The slice of a variant with a size, as libtpu names it ("v5e:4x4"); None without a size.

    Examples:
      >>> topology("qwen3_8b,release"), topology("qwen3_8b,v5p_2x2x1"), topology("release")
      ('v5e:4x4', 'v5p:2x2x1', None)
    """
    parts = variant.split(",")
    size = next((part for part in parts if part in MODELS), None)
    if size is None:
        return None
    table = _slices(size, _teacher(parts, size)[1], "full" in parts)
    return next((part for part in parts if part in table), next(iter(table), "")).replace("_", ":", 1)
