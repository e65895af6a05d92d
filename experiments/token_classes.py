"""Where the divergence between teacher and student goes: by class of token, with and without clips.

    python -m experiments.token_classes [--count=256] [--seed=90]

The base model in both roles on the embedded world; the teacher is shown what a variant shows it. Of every class: its share of
the tokens, of the forward KL, of the pull without clip and under each clip, and the mean |log p_T - log p_S| of its sampled
tokens. The pull is the L1 norm of the loss's gradient in a token's logits: what a token weighs in training. (Clipped by
entries, the sum over the vocabulary is no divergence: the negative terms stay whole, and it is often below zero.)
"""

from __future__ import annotations

import argparse
import functools

import jax
import jax.numpy as jnp
import numpy as np
import rich.table

from configs import world as world_config
from rcsd_jax import losses, world
from rcsd_jax.checkpoints import loading
from rcsd_jax.host.console import Console
from rcsd_jax.methods import rollout
from rcsd_jax.methods.networks import Network, Networks
from rcsd_jax.methods.score_both import score_both
from rcsd_jax.roles.opened_model import open_model
from rcsd_jax.roles.token_classes import CLASSES, class_of_tokens, totals
from rcsd_jax.run.batch import make_batch
from rcsd_jax.run.recipe import loss_options, rollout_options
from rcsd_jax.run.rows import encode_all
from rcsd_jax.settings.unpack import unpack

CLIPS = {
    "no clip": {},
    "entries at 0.05": dict(entry_clip=0.05),
    "tokens at 0.5": dict(token_clip=0.5),
    "top 5": dict(top_k=5),
}
STYLE = ("connective", "format")


def main() -> None:
    """Prints a table for teachers that see rubrics, and one for teachers that see references."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=256)
    parser.add_argument("--seed", type=int, default=90)
    flags = parser.parse_args()
    for variant in ("ground_truth", "reference"):
        show(variant, flags.count, flags.seed)


def show(variant: str, count: int, seed: int) -> None:
    """Samples, scores and prints."""
    config = unpack(world_config.get_config(variant))
    model = open_model(str(world.base_directory()), config.model)
    params = loading.load_model(model.directory, dtype=jnp.float32)[1]
    examples = world.examples("stage2", count, seed)
    data = encode_all(examples, model.tokenizer, config.encoding, config.limits)
    batch = make_batch(list(range(count)), data, config, model.pad_id)
    network, options = Network(model.decoder, {"params": params}), rollout_options(config, model)
    found = _scores(Networks(network, network), batch, options, loss_options(config, model))
    tokens, mask, scores, pulls = jax.device_get(found)
    class_of = class_of_tokens(model.tokenizer, model.decoder.config.vocab_size)
    of_class = functools.partial(totals, tokens=tokens, mask=mask, class_of=class_of)
    gap = of_class(np.abs(scores.teacher_log_probs - scores.student_log_probs))
    counts = of_class(np.ones(tokens.shape))
    pulled = {f"pull, {name}": of_class(pulls[name]) for name in CLIPS}
    shares = {"tokens": counts, "divergence": of_class(scores.divergence)} | pulled

    table = rich.table.Table(title=f"{variant}: {count} completions, shares in percent")
    table.add_column("class")
    for name in (*shares, "mean gap, nats"):
        table.add_column(name, justify="right")
    for i, name in enumerate(CLASSES):
        table.add_row(
            name, *(f"{100 * x[i] / x.sum():.1f}" for x in shares.values()), f"{gap[i] / max(counts[i], 1):.2f}"
        )
    style = [CLASSES.index(name) for name in STYLE]
    table.add_row("style: both", *(f"{100 * x[style].sum() / x.sum():.1f}" for x in shares.values()), "")
    whole = pulled["pull, no clip"].sum()
    table.add_row("kept of the pull", "", "", *(f"{100 * x.sum() / whole:.1f}" for x in pulled.values()), "")
    Console(width=160).print(table)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _scores(networks, batch, options, loss):
    """Sampled tokens, their mask, `losses.DivergenceStats` without clip, and clip -> pull [B, N]."""
    samples = rollout.draw(networks, batch, rollout.row_keys(batch, jax.random.key(0)), options)
    completions = rollout.assemble(batch, samples, None, options)
    scored = score_both(networks, completions, loss)
    tokens, mask = completions.samples.tokens, completions.samples.mask
    settings = dict(temperature=loss.temperature)
    scores = losses.score_from_hidden(*scored, tokens, chunk_size=loss.chunk_size, **settings)
    student = scored.student_hidden @ scored.student_head  # [B, N, V]; the world's vocabulary is small
    teacher = scored.teacher_hidden @ scored.teacher_head

    def pull(clip):
        total = lambda logits: losses.per_token_divergence(logits, teacher, **settings, **clip).sum()
        return jnp.abs(jax.grad(total)(student)).sum(axis=-1)

    return tokens, mask, scores, {name: pull(clip) for name, clip in CLIPS.items()}


if __name__ == "__main__":
    main()
