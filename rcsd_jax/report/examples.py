"""The completions that a report shows token by token: which questions, and what both roles say of what was written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from rcsd_jax import config as configs
from rcsd_jax import contexts, preparation
from rcsd_jax.attribution import attribution, leave_one_out
from rcsd_jax.data.examples import Example
from rcsd_jax.files import AnyPath
from rcsd_jax.models import lora, sharding
from rcsd_jax.report.tokens import Scores, score_tokens
from rcsd_jax.run import Model, load_weights, open_model, sampling_of

ROLES = ("base", "trained", "teacher")
END = "\u2403"  # stands for the end token
_BATCH = 4


def scored_completions(
    config: ConfigDict, workdir: AnyPath, chosen: Sequence[tuple[Example, Mapping[str, tuple[str, bool]]]]
) -> list[dict[str, dict[str, Any]]]:
    """What the trained student and the teacher of a finished run say of completions, token by token.

    The student is the trained one, and for completions of "base" the base. The teacher sees the example's own rubric; its weights are the initial ones, or the trained ones where it followed the
    student. A completion's tokens are those of its text, which may be others than were sampled, and the end unless it was cut.

    Args:
      config: of the run.
      workdir: of the run, with its `adapter` or `export`.
      chosen: examples, each with role -> (text, whether it was cut).

    Returns:
      For each example role -> what the page takes of a completion: tokens, divergence, student_log_prob, teacher_log_prob,
      student_top, teacher_top, and attribution where the teacher sees a rubric of several criteria.

    Raises:
      UserError: weights that cannot be read.
    """
    mesh = sharding.make_mesh(**config.mesh)
    with jax.set_mesh(mesh):
        model, student, base = _weights(config, workdir, mesh)
        teacher = base if configs.teacher_weights(config) in ("fixed", "none") else student
        flat = [(example, role) for example, written in chosen for role in written]
        pieces = [_pieces(model, text, cut) for _, written in chosen for text, cut in written.values()]
        prompts = preparation.prompts_of(config)
        of_student, of_teacher = preparation.roles(config)
        encode = lambda e, role: contexts.encode_role(model.tokenizer, e, role, prompts, config.task)
        student_prompts = [encode(e, of_student) for e, _ in flat]
        teacher_prompts = [encode(e, of_teacher) for e, _ in flat]
        scores: dict[int, Scores] = {}
        # Of what the base wrote, the student is the base: that is where training began.
        for variables, mine in ((base, {"base"}), (student, set(ROLES) - {"base"})):
            of_role = [i for i, (_, role) in enumerate(flat) if role in mine]
            found = score_tokens(
                model.decoder,
                variables,
                teacher,
                [student_prompts[i] for i in of_role],
                [teacher_prompts[i] for i in of_role],
                [pieces[i][0] for i in of_role],
                beta=config.loss.beta,
                temperature=sampling_of(config.sampling, model).scoring_temperature,
                batch_size=_BATCH,
                pad_to=config.data.pad_to,
                pad_id=model.pad_id,
            )
            scores |= dict(zip(of_role, found, strict=True))
        matrices = _attributions(model, teacher, flat, [ids for ids, _ in pieces], config)
    described: list[dict[str, dict[str, Any]]] = [{} for _ in chosen]
    places = [place for place, (_, written) in enumerate(chosen) for _ in written]
    for i, (place, (_, role)) in enumerate(zip(places, flat, strict=True)):
        described[place][role] = _described(model, pieces[i][1], scores[i], matrices[i])
    return described


def _weights(config: ConfigDict, workdir: AnyPath, mesh: jax.sharding.Mesh) -> tuple[Model, Any, Any]:
    """The model, and the variables of the trained student and of the base."""
    adapted = bool(config.lora.rank) and lora.is_peft(workdir / "adapter")
    rank = config.lora.rank if adapted else 0
    model = open_model(config.model.path, config, lora_rank=rank, lora_alpha=config.lora.alpha)
    base = {"params": load_weights(model, config, mesh)}
    if not adapted:
        exported = open_model(str(workdir / "export"), config)
        return model, {"params": load_weights(exported, config, mesh)}, base
    adapters = lora.load_peft(workdir / "adapter", model.decoder.config).adapters
    placement = sharding.lora_shardings(model.decoder.config, mesh, adapters)
    return model, base | {"lora": jax.device_put(adapters, placement)}, base


def _pieces(model: Model, text: str, cut: bool) -> tuple[np.ndarray, list[str]]:
    """Token ids of a text and, unless it was cut, of its end, and the part of the text that each stands for."""
    encoded = model.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, ends = encoded["input_ids"], [end for _, end in encoded["offset_mapping"]]
    # What a token begins within a character is shown with the token that ends it, and gaps with the token after them.
    starts = [0, *np.maximum.accumulate(ends)[:-1]] if ends else []
    texts = [text[a:b] for a, b in zip(starts, ends, strict=True)]
    if texts:
        texts[-1] += text[ends[-1] :]
    if not cut or not ids:
        ids, texts = [*ids, model.eos_ids[0]], [*texts, END]
    return np.asarray(ids, np.int32), texts


def _attributions(
    model: Model,
    teacher: Any,
    flat: Sequence[tuple[Example, str]],
    completions: Sequence[np.ndarray],
    config: ConfigDict,
) -> list[np.ndarray | None]:
    """A matrix for each completion, or None."""
    found: list[np.ndarray | None] = [None] * len(flat)
    if "rubric" not in preparation.roles(config)[1].fields:
        return found
    encode = lambda example: preparation.teacher_prompt(model.tokenizer, example, config)
    able = [i for i, (e, _) in enumerate(flat) if e.rubric is not None and len(e.rubric) > 1]
    for i in able:  # one at a time: its contexts are many rows, each with keys and values of its own
        of_each = [leave_one_out(flat[i][0], encode)]
        bound = dict(pad_id=model.pad_id, pad_to=config.data.pad_to)
        (found[i],) = attribution(model.decoder, teacher, of_each, [completions[i]], **bound)
    return found


def _described(model: Model, texts: list[str], scores: Scores, matrix: np.ndarray | None) -> dict[str, Any]:
    def top(ids: np.ndarray, probabilities: np.ndarray) -> list[list[list]]:
        return [
            [[_piece(model, int(i)), float(p)] for i, p in zip(row, of_row, strict=True)]
            for row, of_row in zip(ids, probabilities, strict=True)
        ]

    return {
        "tokens": texts,
        "divergence": scores.divergence.tolist(),
        "student_log_prob": scores.student_log_prob.tolist(),
        "teacher_log_prob": scores.teacher_log_prob.tolist(),
        "student_top": top(*scores.student_top),
        "teacher_top": top(*scores.teacher_top),
        "attribution": None if matrix is None else matrix.tolist(),
    }


def _piece(model: Model, token: int) -> str:
    """A token as it reads within a text: some tokenizers drop the space before the first one."""
    if token in model.eos_ids:
        return END
    return model.tokenizer.decode([token, token])[len(model.tokenizer.decode([token])) :]
