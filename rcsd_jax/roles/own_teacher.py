"""A teacher of its own: another model, or a LoRA adapter, whose weights training never changes.

It scores the student's completions as they are. So both must have the same tokens: distillation across tokenizers is left out.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

import jax

from rcsd_jax.checkpoints.directory import digest
from rcsd_jax.checkpoints.peft import is_peft, load_peft
from rcsd_jax.checkpoints.settings import ModelSettings
from rcsd_jax.data.examples import Example
from rcsd_jax.host.errors import UserError
from rcsd_jax.host.files import fetched
from rcsd_jax.models.placement import check_divisible, lora_shardings
from rcsd_jax.models.sharding import SPREAD_RULES
from rcsd_jax.roles.opened_model import Model, load_weights, open_unloaded
from rcsd_jax.roles.settings import TeacherSettings

Teachers: TypeAlias = "Mapping[str, OwnTeacher]"
"""Name -> teacher; the only one may have the name ""."""

NO_TEACHERS: Teachers = types.MappingProxyType({})


class OwnTeacher(NamedTuple):
    """An opened teacher, without its weights.

    Attributes:
      path: the directory of a model or of an adapter.
      model: the model, or the base of an adapter.
      shared_tokens: the number of first tokens that student and teacher both have; None: each has all tokens of the other.
    """

    path: str
    model: Model
    shared_tokens: int | None


def open_teacher(
    path: str,
    settings: ModelSettings,
    student: Model,
    mesh: jax.sharding.Mesh,
    *,
    split_rows: bool = False,
    quantization: str = "none",
) -> OwnTeacher:
    """Opens a model or an adapter as the teacher of a student; no weights are loaded.

    Raises:
      UserError: it cannot be read, it has other tokens than the student, or the mesh does not divide it.
    """
    path = fetched(path)
    model = open_unloaded(path, settings)
    stored: dict[str, Any] = dict(quantization=quantization, rules=SPREAD_RULES, whose="teacher's ")
    check_divisible(model.decoder.config, mesh, {}, split_rows=split_rows, **stored)
    return OwnTeacher(path, model, shared_tokens(student, model))


def open_teachers(
    paths: Mapping[str, str], settings: ModelSettings, student: Model, mesh: jax.sharding.Mesh, **how: Any
) -> dict[str, OwnTeacher]:
    """`open_teacher` of each of several paths by name."""
    return {name: open_teacher(path, settings, student, mesh, **how) for name, path in paths.items()}


def shared_tokens(student: Model, teacher: Model) -> int | None:
    """The number of first tokens that both have: what a larger embedding or a longer tokenizer adds is left out. None: all.

    Raises:
      UserError: a token is another text for each of the two.
    """
    ours, theirs = (_texts(model.tokenizer) for model in (student, teacher))
    for number, (our, their) in enumerate(zip(ours, theirs, strict=False)):
        if our != their:
            raise UserError(
                f"token {number} is {our!r} for the student and {their!r} for the teacher",
                file=teacher.directory,
                field="teacher.path",
                remedy="choose a teacher with the student's tokenizer",
            )
    sizes = {model.decoder.config.vocab_size for model in (student, teacher)}
    if len(ours) != len(theirs):
        sizes |= {len(ours), len(theirs)}
    return min(sizes) if len(sizes) > 1 else None


def _texts(tokenizer: Any) -> list[str | None]:
    """The text of every token by its id."""
    vocabulary = tokenizer.get_vocab()
    texts: list[str | None] = [None] * (max(vocabulary.values(), default=-1) + 1)
    for text, number in vocabulary.items():
        texts[number] = text
    return texts


def weights_digest(teacher: OwnTeacher) -> str:
    """Identifies a teacher's weights, wherever they are."""
    of_base = digest(teacher.model.directory)
    return f"{of_base}+{digest(teacher.path)}" if is_peft(teacher.path) else of_base


def load_teacher(
    teacher: OwnTeacher, student: Model, params: Mapping[str, Any], mesh: jax.sharding.Mesh
) -> dict[str, Any]:
    """A teacher's variables, over all devices of the mesh.

    Args:
      teacher: of `open_teacher`.
      student: of the run.
      params: the student's, before training. A teacher on the same base uses them, so memory holds one copy.
      mesh: the run's.
    """
    same = on_the_same_base(teacher, student)
    return {"params": params if same else load_weights(teacher.model, mesh, SPREAD_RULES)} | load_adapters(
        teacher, mesh
    )


def on_the_same_base(teacher: OwnTeacher, student: Model) -> bool:
    """Whether a teacher's weights, apart from adapters, are those from which the student starts."""
    return teacher.model.directory.resolve() == student.directory.resolve()


def load_adapters(teacher: OwnTeacher, mesh: jax.sharding.Mesh) -> dict[str, Any]:
    """A teacher's variables besides "params": "lora", if it is an adapter."""
    if not is_peft(teacher.path):
        return {}
    config = teacher.model.decoder.config
    adapters = load_peft(teacher.path, config).adapters
    return {"lora": jax.device_put(adapters, lora_shardings(config, mesh, adapters, SPREAD_RULES))}


def teacher_of(example: Example, settings: TeacherSettings) -> str:
    """The name of the teacher of a row, of several: its column `teacher`, or what `teacher.of_sources` has for its source.

    Raises:
      UserError: it has none, or one that nobody knows.
    """
    name = example.extra.get("teacher") or settings.of_sources.get(example.source)
    if name in settings.paths:
        return str(name)
    problem = "names no teacher, nor does its source" if name is None else "names an unknown teacher"
    remedy = f"use one of {', '.join(settings.paths)}, or add it to teacher.paths"
    raise UserError(problem, file=example.origin, field="teacher", value=name, remedy=remedy)
