"""The arms of all tables: named configurations on the embedded world. A table chooses some of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from configs import tiny
from configs import world as world_config
from experiments import bases
from rcsd_jax.world import documents

FLAWED = (0.0, 0.25, documents.FLAWED, 0.5, 0.75, 1.0)  # shares of references with a wrong step; the world's own is one
_OTHER_FLAWED = tuple(x for x in FLAWED if x != documents.FLAWED)  # shares with their own arms

RATES = (5e-5, 1.5e-4, 4.5e-4)
"""Learning rates that `experiments.learning_rates` tries with an arm."""
_MORE_RATES = {
    "sft": (1.35e-3,),
    "sdpo_feedback": (1.67e-5,),
    "rcsd_live": (1.67e-5,),
}  # the best of `RATES` lies at its edge

ROLLOUTS = (1, 2, 4, 8)  # batches of a rollout, each for one update
IMPORTANCE_CLIP = 2.0

EMPHASES = {
    "position": "late tokens",
    "low_probability": "unlikely tokens",
    "teacher_sure": "teacher sure",
    "student_unsure": "student unsure",
    "gap": "roles differ",
    "agreement": "criteria agree",
}
"""Kinds of `loss.emphasis` -> the words for them."""

# Arms that are evaluated every quarter of the steps, for `experiments.curves` and `experiments.cost`.
CURVES = (
    "sft", "grpo", "dr_grpo", "grpo_rubric", "opsd", "sdft", "sdpo", "sdpo_feedback", "opsd_authors", "sdft_authors",
    "sdpo_authors", "mixed", "rcsd_sampled", "rcsd_live", "rcsd_ema", "rcsd_reverse", "rcsd_true", "rcsd",
)  # fmt: skip

NO_CLIP = dict(loss=dict(entry_clip=None))
"""The changes to a method whose authors clip entries, which does harm in the worlds here, whatever the target is."""

SHOWN_REFERENCES = ("opsd", "opsd_authors", "pw_opsd", "purified")
"""Arms of the family whose teachers see references; they also run with other shares of flawed ones."""
SHOWN_NONE = ("rcsd_true", "contrastive_whole", "fixed_advantage")
"""Arms with which these are compared where all references are flawed."""


class Arm(NamedTuple):
    """A variant of `configs/world.py`, the changes to it, and the writer of its teacher's rubrics, if a model writes them.

    `size`: of the model: "medium", the package's own, or of `bases.SIZES`. `writer`: the name of a Stage I, or "base" for the
    untrained model, "base_<size>" for one of another size. `teacher`: the size of the base that teaches instead of the model's own.
    `asks_again`: whether it is also evaluated on questions that it trained on.
    """

    label: str
    variant: str
    changes: dict[str, Any] = {}
    writer: str = "stage1"
    size: str = "medium"
    teacher: str = ""
    asks_again: bool = False


def _paper(label: str, **changes: Any) -> Arm:
    return Arm(label, "paper", changes)


def _true(label: str, **changes: Any) -> Arm:
    return Arm(label, "ground_truth", changes)


def _percent(share: float) -> str:
    return f"{100 * share:.0f}"


def flawed(method: str, share: float) -> str:
    """The arm of a method ("opsd", "rcsd", "rcsd_derived") with a share of `FLAWED`."""
    return method if share == documents.FLAWED else f"{method}_flawed_{_percent(share)}"


def leaking(name: str) -> str:
    """The arm of `SHOWN_REFERENCES` or `SHOWN_NONE` with all references flawed, which is also asked what it trained on."""
    return f"{name}_leak"


def flawless(name: str) -> str:
    """The arm of `SHOWN_REFERENCES` with no reference flawed."""
    return flawed(name, 0.0)


def _with_flaws(name: str, share: float) -> Arm:
    """An arm that changes nothing else of its variant's data, with a share of flawed references."""
    arm = ARMS[name]
    changes = arm.changes | dict(data=dict(flawed=share))
    return arm._replace(label=f"{arm.label}, {_percent(share)}% flawed", changes=changes)


def _rollout(batches: int, *, weighted: bool) -> Arm:
    number = "1 batch" if batches == 1 else f"{batches} batches"
    changes: dict[str, Any] = dict(train=dict(batches_per_rollout=batches))
    if weighted:
        changes["loss"] = dict(importance_clip=IMPORTANCE_CLIP)
    return Arm(f"{number} a rollout" + (", weighted" if weighted else ""), "ground_truth", changes)


def stale(batches: int, *, weighted: bool) -> str:
    """The arm with rollouts of so many batches, with importance weights or without."""
    if batches == 1 and not weighted:
        return "rcsd_true"
    return f"rollouts_of_{batches}" + ("_weighted" if weighted else "")


ARMS: dict[str, Arm] = {
    "rcsd": _paper("RCSD"),
    "sft": Arm("SFT", "sft"),
    "grpo": Arm("GRPO", "grpo"),
    "dr_grpo": Arm("Dr. GRPO", "dr_grpo"),
    "grpo_rubric": Arm("GRPO, rubric reward", "grpo_rubric"),
    "opsd": Arm("OPSD", "reference"),
    "sdft": Arm("SDFT", "reference_ema"),
    "sdpo": Arm("SDPO, own success", "success"),
    "sdpo_feedback": Arm("SDPO, feedback", "feedback"),
    "mixed": Arm("RCSD + reward", "mixed"),
    # as their authors run them: teacher, loss and group
    "opsd_authors": Arm("OPSD, authors' loss", "opsd"),
    "sdft_authors": Arm("SDFT, authors' loss", "sdft"),
    "sdpo_authors": Arm("SDPO, authors' loss", "sdpo"),
    # teachers
    # At the rate of the others it collapses: teacher and student run away together.
    "rcsd_live": _paper("live teacher", teacher=dict(weights="live"), optimizer=dict(learning_rate=5e-5)),
    "rcsd_ema": _paper("EMA teacher", teacher=dict(weights="ema", ema_decay=0.9)),
    "rcsd_guided_0.5": _paper("guidance 0.5", teacher=dict(guidance=0.5)),
    "rcsd_guided_1": _paper("guidance 1", teacher=dict(guidance=1.0)),
    "rcsd_weighted_0.5": _paper("guidance 0.5 by weights", teacher=dict(guidance=0.5, guidance_by="criteria")),
    "rcsd_weighted_1": _paper("guidance 1 by weights", teacher=dict(guidance=1.0, guidance_by="criteria")),
    # divergences
    "rcsd_jsd": _paper("JSD", loss=dict(beta=0.5)),
    "rcsd_reverse": _paper("reverse KL", loss=dict(beta=1.0)),
    "rcsd_top_k": _paper("forward KL, top 5", loss=dict(top_k=5)),
    "rcsd_entry_clip": _paper("forward KL, entries clipped at 0.05", loss=dict(entry_clip=0.05)),
    "rcsd_token_clip": _paper("forward KL, tokens clipped at 0.5", loss=dict(token_clip=0.5)),
    "rcsd_sampled": _paper("sampled token", loss=dict(divergence="sampled_token")),
    # rollouts of several batches
    **{
        stale(k, weighted=weighted): _rollout(k, weighted=weighted)
        for weighted in (False, True)
        for k in ROLLOUTS
        if weighted or k > 1
    },
    # rubrics
    "rcsd_true": Arm("ground truth", "ground_truth"),
    "rcsd_untrained": Arm("untrained writer", "paper", writer="base"),
    **{f"rcsd_{name}": Arm(name, name) for name in ("generic", "noisy", "random", "reduced")},
    "rcsd_untrained_large": Arm("untrained larger writer", "paper", writer="base_large"),
    # the family since, `docs/methods.md`
    "pw_opsd": Arm("PW-OPSD", "pw_opsd"),
    "purified": Arm("Purified OPSD", "purified"),
    "pw_opsd_whole": Arm("PW-OPSD, no clip", "pw_opsd", NO_CLIP),
    "contrastive": Arm("right against wrong", "contrastive"),
    "contrastive_whole": Arm("right against wrong, no clip", "contrastive", NO_CLIP),
    "rlcsd": Arm("RLCSD", "rlcsd"),
    "dopd": Arm("DOPD", "dopd"),
    "u_opsd": Arm("U-OPSD", "u_opsd"),
    "rubric_dropout": Arm("GRPO, rubric dropout", "rubric_dropout"),
    "fixed_advantage": Arm("fixed advantage", "fixed_advantage"),
    # tokens that count more, under true rubrics; the last by the criteria that a completion fails
    **{f"true_{kind}": _true(f"true rubrics, {words}", loss=dict(emphasis=kind)) for kind, words in EMPHASES.items()},
    "credit": Arm("credit by criterion", "credit"),
    "true_weighted": _true("true rubrics, guidance by criteria", teacher=dict(guidance=0.5, guidance_by="criteria")),
    "true_sampled": _true("true rubrics, sampled token", loss=dict(divergence="sampled_token")),
    "true_dropout": _true("true rubrics, dropout", rubric=dict(dropout=0.4), optimizer=dict(learning_rate=5e-5)),
    # sizes of the model
    **{f"rcsd_{size}": Arm(f"RCSD, {size}", "paper", writer=f"stage1_{size}", size=size) for size in bases.SIZES},
    **{f"rcsd_true_{size}": Arm(f"ground truth, {size}", "ground_truth", size=size) for size in bases.SIZES},
    # a teacher of its own, five times as large, with the true rubric and without
    "large_teacher": Arm("larger teacher, with rubric", "ground_truth", teacher="large"),
    "large_teacher_plain": Arm(
        "larger teacher, without rubric", "ground_truth", dict(teacher=dict(fields=("question",))), teacher="large"
    ),
    # flawed references: for OPSD, and for the Stage I that writes RCSD's rubrics
    **{
        f"opsd_flawed_{_percent(x)}": Arm(f"OPSD, {_percent(x)}% flawed", "reference", dict(data=dict(flawed=x)))
        for x in _OTHER_FLAWED
    },
    **{
        f"rcsd_flawed_{_percent(x)}": Arm(
            f"RCSD, {_percent(x)}% flawed", "paper", dict(data=dict(flawed=x)), writer=f"stage1_flawed_{_percent(x)}"
        )
        for x in _OTHER_FLAWED
    },
    # A Stage I that is fitted to rubrics that are drawn from the flawed references. A teacher would not pass the flaws on: the base
    # writes right rubrics even if it is shown these, because in its documents rubrics of flawed references are right.
    **{
        flawed("rcsd_derived", x): Arm(
            f"RCSD, {_percent(x)}% flawed, derived rubrics",
            "paper",
            dict(data=dict(flawed=x)),
            writer=f"stage1_derived_{_percent(x)}",
        )
        for x in FLAWED
    },
}

# Of the family, with all references flawed, to see what leaks, and with none; "opsd" with none is there already.
ARMS |= {leaking(name): _with_flaws(name, 1.0)._replace(asks_again=True) for name in (*SHOWN_REFERENCES, *SHOWN_NONE)}
ARMS |= {flawless(name): _with_flaws(name, 0.0) for name in SHOWN_REFERENCES if name != "opsd"}


def rates(name: str) -> tuple[float, ...]:
    """The learning rates that are tried with an arm, in order."""
    return tuple(sorted((*RATES, *_MORE_RATES.get(name, ()))))


def stage2(name: str, seed: int, folder: Path, *, quick: bool) -> ConfigDict:
    """The configuration of an arm's run with a seed; `folder` holds all runs."""
    arm = ARMS[name]
    config = world_config.get_config(arm.variant)
    config.update(arm.changes)
    config.seed = 200 + seed
    config.model.path = str(bases.directory(arm.size, folder))
    if arm.teacher:
        config.teacher.path = str(bases.directory(arm.teacher, folder))
    if config.rubric.source == "written":
        kind, _, size = arm.writer.partition("_")
        trained = folder / arm.writer / f"seed{seed}" / "export"
        config.rubric.writer = str(bases.directory(size or arm.size, folder) if kind == "base" else trained)
    # One arm of each size also evaluates the base and the teacher that sees the true rubric; others only a teacher of their own.
    others: tuple[str, ...] = ("teacher",) if arm.teacher else ()
    if name.startswith("rcsd_true") and not arm.asks_again:
        others = ("base", "teacher")
    config.eval.roles = (*others, "trained")
    if arm.asks_again:
        config.eval.splits = dict(config.eval.splits, trained_on="stage2")
    if name in CURVES:
        config.eval.update(every=config.train.steps // 4, every_splits=("in_distribution",))
    return _shortened(config) if quick else config


def stage1(name: str, seed: int, folder: Path, *, quick: bool) -> ConfigDict:
    """The Stage I that writes rubrics for runs with a seed: "stage1", "stage1_flawed_<percent>",
    "stage1_derived_<percent>" or "stage1_<size>".
    """
    config = tiny.get_config().stage1
    config.seed = 100 + seed
    config.eval.roles = ("base", "trained")
    kind, _, percent = name.removeprefix("stage1").removeprefix("_").partition("_")
    if kind in ("flawed", "derived"):
        config.data.flawed = float(percent) / 100
        if kind == "derived":
            config.data.path = "stage1:derived"
            config.update(dict(method="sft", sampling=dict(source="reference")))
    else:
        config.model.path = str(bases.directory(name.removeprefix("stage1").removeprefix("_") or "medium", folder))
    if quick:
        config.eval.grader = ""
    return _shortened(config) if quick else config


def _shortened(config: ConfigDict) -> ConfigDict:
    """The same configuration, shortened to seconds, to see that it runs."""
    config.train.steps, config.train.batch_size, config.data.count = max(4, config.train.batches_per_rollout), 8, 32
    config.eval.update(count=16, batch_size=16, greedy=(False,))
    if config.eval.every:
        config.eval.every = 2
    return config
