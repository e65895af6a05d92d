"""The completions that a report shows token by token: which questions, and what both roles say of what was written."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from rcsd_jax.checkpoints import loading
from rcsd_jax.checkpoints.peft import is_peft, load_peft
from rcsd_jax.data.examples import Example
from rcsd_jax.host.files import AnyPath, fetched
from rcsd_jax.host.padding import pad_right
from rcsd_jax.methods.contract import LossOptions
from rcsd_jax.methods.networks import (
    BASE,
    Better,
    Mixture,
    Network,
    Networks,
    RoleBetter,
    RoleMixture,
    RoleNetwork,
    RoleSeveral,
    Several,
    Teacher,
)
from rcsd_jax.methods.rollout import analyst
from rcsd_jax.models import sharding
from rcsd_jax.models.placement import lora_shardings, param_shardings
from rcsd_jax.report.tokens import Scores, score_tokens, write_analyses
from rcsd_jax.roles import contexts
from rcsd_jax.roles.attribution import ablated_contexts, attribution
from rcsd_jax.roles.encode import teacher_prompt
from rcsd_jax.roles.opened_model import Model, load_weights, open_model
from rcsd_jax.roles.own_teacher import NO_TEACHERS, Teachers, open_teachers, teacher_of
from rcsd_jax.run import checkpoints, training_state
from rcsd_jax.run.batch import make_batch
from rcsd_jax.run.frozen_weights import load_teachers, quantized
from rcsd_jax.run.recipe import loss_options, rollout_options
from rcsd_jax.run.rows import encode_all
from rcsd_jax.sampling.decoding import Samples
from rcsd_jax.settings.stage import Settings

ROLES = ("base", "trained", "teacher")
END = "\u2403"  # stands for the end token
_BATCH = 4
_NO_LIMIT = 2**31 - 1

Chosen = Sequence[tuple[Example, Mapping[str, tuple[str, bool]]]]
"""Examples, each with role -> (text, whether it was cut)."""


def scored_completions(config: Settings, workdir: AnyPath, chosen: Chosen) -> list[dict[str, dict[str, Any]]]:
    """What the trained student and the teacher of a finished run say of completions, token by token.

    Both are scored as the train step scores them: with its teacher's weights, contexts, guidance and analysis, and by its
    divergence. Of completions of "base" they are those of the first step; of the others, those of the last. The teacher sees
    the example's own rubric. A completion's tokens are those of its text, which may be others than were sampled, and the end
    unless it was cut.

    Args:
      config: of the run.
      workdir: of the run, with its `adapter` or `export`, and its last checkpoint where the teacher is an average.
      chosen: examples and what was written.

    Returns:
      For each example role -> what the page takes of a completion: tokens, divergence (None where the loss leaves a token
      out), student_log_prob, teacher_log_prob, weight, student_top, teacher_top; target_log_prob, target_divergence and target_top
      where the target is not the teacher; and attribution where the teacher sees a rubric of several criteria.

    Raises:
      UserError: weights that cannot be read.
    """
    mesh = sharding.make_mesh(**config.mesh)
    with jax.set_mesh(mesh):
        model, own, first, last = _networks(config, workdir, mesh)
        return scored_by(model, dict.fromkeys(ROLES, last) | {"base": first}, config, chosen, own)


def has_weights(config: Settings, workdir: AnyPath) -> bool:
    """Whether `scored_completions` finds what it reads in a run's folder."""
    averaged = config.teacher_weights == "ema"
    trained = (workdir / "export").exists() or (workdir / "adapter").exists()
    here = config.teacher_weights != "endpoint"  # a teacher that can be asked again on these devices
    return trained and here and (not averaged or checkpoints.newest_step(workdir / "checkpoints") > 0)


def scored_by(
    model: Model,
    scorers: Mapping[str, Networks],
    config: Settings,
    chosen: Chosen,
    own: Teachers = NO_TEACHERS,
) -> list[dict[str, dict[str, Any]]]:
    """`scored_completions` with weights at hand: `scorers` are those that score what each role wrote, `own` teachers that are other models."""
    config = dataclasses.replace(
        config,
        sampling=dataclasses.replace(
            config.sampling, source="student"
        ),  # whoever wrote them: the completions are given
        data=dataclasses.replace(config.data, max_student_prompt=_NO_LIMIT, max_teacher_prompt=_NO_LIMIT),
    )
    options, loss = rollout_options(config, model), loss_options(config, model, own)
    flat = [(i, role) for i, (_, written) in enumerate(chosen) for role in written]
    questions = np.asarray([i for i, _ in flat], np.int32)
    data = encode_all([example for example, _ in chosen], model.tokenizer, config.encoding, config.limits)
    # A row's random key is its question's: a teacher that reasons first does so once for all answers to it.
    batch = make_batch(questions.tolist(), data, config, model.pad_id)._replace(row=questions)  # type: ignore[arg-type]
    pieces = [_pieces(model, *chosen[i][1][role]) for i, role in flat]
    samples = _samples([ids for ids, _ in pieces], [chosen[i][1][role][1] for i, role in flat], model, config)
    key = jax.random.fold_in(jax.random.key(config.seed), config.train.steps)

    described: list[dict[str, dict[str, Any]]] = [{} for _ in chosen]
    parts: dict[tuple[str, str], list[int]] = {}  # (who scores, which of several teachers) -> completions
    for at, (i, role) in enumerate(flat):
        of = teacher_of(chosen[i][0], config.teacher) if len(own) > 1 else ""
        parts.setdefault(("base" if role == "base" else "trained", of), []).append(at)
    for (who, of), mine in parts.items():
        networks = scorers[who]
        if isinstance(networks.teacher, Several):
            networks = networks._replace(teacher=networks.teacher.networks[list(own).index(of)])
        teacher = networks.teacher.teacher if isinstance(networks.teacher, Better) else networks.teacher
        assert isinstance(teacher, Network | Mixture), "a report has one"
        some, written = jax.tree.map(lambda x: x[mine], (batch, samples))  # noqa: B023
        analyses = write_analyses(analyst(networks, options), some, key, options, batch_size=_BATCH)
        scores = score_tokens(networks, some, written, analyses, options, loss, batch_size=_BATCH)
        for place, at in enumerate(mine):
            i, role = flat[at]
            analysis = None if analyses is None else np.asarray(analyses.tokens[place][analyses.mask[place]])
            question, ids = chosen[i][0], pieces[at][0]
            matrix = _attribution(model, teacher, question, ids, analysis, data.transition, loss, config)
            described[i][role] = _described(model, pieces[at][1], scores[place], matrix)
    return [{role: found[role] for role in written} for found, (_, written) in zip(described, chosen, strict=True)]


def _samples(completions: Sequence[np.ndarray], cut: Sequence[bool], model: Model, config: Settings) -> Samples:
    """Completions in the form of samples, [B, N], NumPy arrays."""
    length = -(-max(map(len, completions)) // config.data.pad_to) * config.data.pad_to
    tokens, mask = pad_right(completions, length, model.pad_id)
    arrays: tuple[Any, ...] = (tokens, mask, np.zeros(tokens.shape, np.float32), np.asarray(cut, bool))
    return Samples(*arrays)


def _networks(
    config: Settings, workdir: AnyPath, mesh: jax.sharding.Mesh
) -> tuple[Model, Teachers, Networks, Networks]:
    """The model, teachers that are other models, and both roles' networks before the first step and after the last, as training has them."""
    model = open_model(config.model.path, config.model, lora_rank=config.lora.rank, lora_alpha=config.lora.alpha)
    decoder_config = model.decoder.config
    params = load_weights(model, mesh)
    own = open_teachers(config.teacher.own, config.model, model, mesh, split_rows=config.train.split_rows)
    setup = training_state.setup(model, params, config, mesh, own)
    (student, teacher), state = setup.recipe.roles, setup.abstract
    frozen = setup.frozen | load_teachers(own, model, params, mesh)
    frozen |= quantized(frozen, model, own, config, mesh)
    # New adapters add nothing.
    untrained = Network(model.decoder, frozen[BASE] if config.lora.rank else {"params": params})
    if state.ema is not None:
        average = checkpoints.read_part(workdir / "checkpoints", {"ema": state.ema})["ema"]
        state = dataclasses.replace(state, ema=average)
    exported = None
    if config.lora.rank and is_peft(workdir / "adapter"):
        adapters = load_peft(workdir / "adapter", decoder_config).adapters
        adapters = jax.device_put(adapters, lora_shardings(decoder_config, mesh, adapters))
        state = dataclasses.replace(state, trained=adapters)
    else:
        placement = param_shardings(decoder_config, mesh)
        precise = dict(dtype=decoder_config.dtype, param_dtype="float32")  # as what is trained is kept
        whole = loading.load_model(fetched(str(workdir / "export")), shardings=placement, **precise)[1]
        exported = Network(model.decoder, {"params": whole})  # of a LoRA without its adapter too, as one

    def trained(role: RoleNetwork) -> Network:
        return exported if exported is not None and role == student else role.at(state, frozen)

    def trained_one(role: RoleNetwork | RoleMixture) -> Network | Mixture:
        return trained(role) if isinstance(role, RoleNetwork) else role.of(trained(role.initial), trained(role.current))

    def untrained_one(role: RoleNetwork | RoleMixture) -> Network | Mixture:
        return untrained if role.moving else role.at(state, frozen)

    def composed(role: Any, one: Any, of_student: Network) -> Teacher:
        """A teacher whose networks are `one(their role)`."""
        if isinstance(role, RoleBetter):
            return Better(one(role.teacher), of_student)
        return role.at(state, frozen) if isinstance(role, RoleSeveral) else one(role)  # several never change

    if teacher is None:  # of a method without one: where it began
        return model, own, Networks(untrained, untrained), Networks(trained(student), untrained)
    of_student = trained(student)
    first = composed(teacher, untrained_one, untrained)
    last = composed(teacher, trained_one, of_student)
    return model, own, Networks(untrained, first), Networks(of_student, last)


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


def _attribution(
    model: Model,
    teacher: Network | Mixture,
    example: Example,
    completion: np.ndarray,
    analysis: np.ndarray | None,
    transition: np.ndarray,
    loss: LossOptions,
    config: Settings,
) -> np.ndarray | None:
    """A completion's matrix; None where no teacher of one network sees a rubric of several criteria. An analysis stays as it is."""
    encoding = config.encoding
    role = encoding.teacher
    if "rubric" not in role.fields or example.rubric is None or len(example.rubric) < 2 or isinstance(teacher, Mixture):
        return None

    def encode(example: Example) -> np.ndarray:
        if analysis is None:
            return teacher_prompt(model.tokenizer, example, encoding)
        shown = example, role, encoding.texts, config.task
        how: dict[str, Any] = dict(transition=encoding.transition, thinking=encoding.reason_thinking)
        prompt, _ = contexts.encode_reason_first(model.tokenizer, *shown, **how)
        ended = np.isin(analysis, model.eos_ids)
        return np.concatenate([prompt, analysis[~ended], transition])

    # One at a time: its contexts are many rows, each with keys and values of its own.
    bound: dict[str, Any] = dict(pad_id=model.pad_id, pad_to=config.data.pad_to, temperature=loss.temperature)
    return attribution(teacher.decoder, teacher.variables, [ablated_contexts(example, encode)], [completion], **bound)[
        0
    ]


def _described(model: Model, texts: list[str], scores: Scores, matrix: np.ndarray | None) -> dict[str, Any]:
    def top(ids: np.ndarray, probabilities: np.ndarray) -> list[list[list]]:
        return [
            [[_piece(model, int(i)), float(p)] for i, p in zip(row, of_row, strict=True)]
            for row, of_row in zip(ids, probabilities, strict=True)
        ]

    described: dict[str, Any] = {
        "tokens": texts,
        "divergence": [
            float(x) if learned else None for x, learned in zip(scores.divergence, scores.completion_mask, strict=True)
        ],
        "student_log_prob": scores.student_log_prob.tolist(),
        "teacher_log_prob": scores.teacher_log_prob.tolist(),
        "weight": scores.weight.tolist(),
        "student_top": top(*scores.student_top),
        "teacher_top": top(*scores.teacher_top),
        "attribution": None if matrix is None else matrix.tolist(),
    }
    if (target := scores.target) is not None:
        described |= {
            "target_log_prob": target.log_prob.tolist(),
            "target_divergence": target.divergence.tolist(),
            "target_top": top(*target.top),
        }
    return described


def _piece(model: Model, token: int) -> str:
    """A token as it reads within a text: some tokenizers drop the space before the first one."""
    if token in model.eos_ids:
        return END
    return model.tokenizer.decode([token, token])[len(model.tokenizer.decode([token])) :]
