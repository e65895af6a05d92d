"""Where a method pulls: the share of its gradient by class of token, at the first step.

The pull of a token is the L2 norm of the loss's gradient in the student's hidden state that predicts it. This exists for every method:
with a teacher, with rewards, with weights of tokens. The completions are the base's, graded as the run grades them.
"""

from __future__ import annotations

import functools
import tempfile

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from rcsd_jax.host.console import Console
from rcsd_jax.host.files import as_path
from rcsd_jax.host.preemption import StopRequest
from rcsd_jax.methods import METHODS
from rcsd_jax.methods.contract import Completions, tokens_of, weigh
from rcsd_jax.methods.networks import Frozen
from rcsd_jax.methods.recipe import Recipe
from rcsd_jax.methods.score_both import score_student, scored_with, teacher_scores
from rcsd_jax.methods.state import TrainState
from rcsd_jax.methods.teacher_scores import after_teacher
from rcsd_jax.models import sharding
from rcsd_jax.roles.opened_model import load_weights
from rcsd_jax.roles.token_classes import CLASSES, class_of_tokens, totals
from rcsd_jax.run import rollouts, training_state
from rcsd_jax.run.environment import Run
from rcsd_jax.run.frozen_weights import load_teachers
from rcsd_jax.run.inputs import open_inputs, prepared
from rcsd_jax.settings.unpack import unpack

COMPLETIONS = 256


def by_class(config: ConfigDict, stop: StopRequest, *, completions: int = COMPLETIONS) -> dict[str, float]:
    """Class of token -> percent of the pull of a run's first step, with so many completions instead of its batch."""
    config = config.copy_and_resolve_references()
    # Two passes, so that a program draws that does not learn.
    config.train.update(batch_size=completions, batches_per_rollout=1, passes_per_rollout=2)
    settings = unpack(config)
    mesh = sharding.make_mesh(**settings.mesh)
    with jax.set_mesh(mesh), tempfile.TemporaryDirectory() as folder:
        run = Run(settings, as_path(folder), mesh, Console(quiet=True), stop, "pull")
        model, teachers, _, examples = open_inputs(settings, mesh)
        rows, _ = prepared(examples, model, run, teachers)
        params = load_weights(model, mesh)
        setup = training_state.setup(model, params, settings, mesh, teachers)
        setup = setup._replace(frozen=setup.frozen | load_teachers(teachers, model, params, mesh))
        state = training_state.first_state(model, params, settings, setup)
        data, _ = rows.take(0, count=settings.questions_per_rollout)
        programs = rollouts.programs_of(setup, model, run, {example.id: example for example in examples})
        drawn = programs.begin(state, data, 0, 0).completions
        found = jax.jit(functools.partial(of_tokens, setup.recipe))(state, setup.frozen, drawn)
        tokens, mask, pull = jax.device_get((drawn.samples.tokens, drawn.samples.mask, found))
    of_class = totals(pull, tokens, mask, class_of_tokens(model.tokenizer, model.decoder.config.vocab_size))
    return {name: float(100 * x / of_class.sum()) for name, x in zip(CLASSES, of_class, strict=True)}


def of_tokens(recipe: Recipe, state: TrainState, frozen: Frozen, completions: Completions) -> jax.Array:
    """The pull of every token [B, N] float32; 0 where the loss leaves it out."""
    student, teacher = recipe.roles.at(state, frozen)
    rows = completions, weigh(completions, recipe.loss.reduction, recipe.loss.emphasis)
    hidden = None
    if teacher is not None:
        scores = teacher_scores(teacher, completions, recipe.loss)
        hidden, rows = scores.hidden, after_teacher(*rows, scores, recipe.loss)
    tokens, weights = tokens_of(rows[0]), rows[1]

    def loss(student_hidden: jax.Array) -> jax.Array:
        scored = scored_with(student, student_hidden, teacher, hidden)
        return METHODS[recipe.method].loss_and_sums(scored, tokens, weights, recipe.loss)[0]

    return jnp.linalg.norm(jax.grad(loss)(score_student(student, completions)), axis=-1)
