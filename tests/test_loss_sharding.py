"""The loss over a mesh: the vocabulary stays split over `tensor` and rows over the other axes; logits are never gathered."""

import re

import pytest

from tests import eight_devices

SCRIPT = """
import json, sys
import jax, jax.numpy as jnp
from rcsd_jax import losses
from rcsd_jax.models import sharding
from rcsd_jax.models.decoder import DecoderConfig, head_matrix

B, N, D, V, CHUNK = 8, 24, 64, 1016, 6
config = DecoderConfig(family="qwen3", vocab_size=V, hidden_size=D, intermediate_size=96, num_layers=2, num_heads=4,
    num_kv_heads=4, head_dim=16)
mesh = sharding.make_mesh(data=1, group=1, fsdp=2, tensor=4)
place = lambda shape, axes, dtype: jax.ShapeDtypeStruct(
    shape, dtype, sharding=jax.sharding.NamedSharding(mesh, sharding.spec(axes)))
head = place((D, V), ("embed", "vocab"), jnp.float32)
hidden = place((B, N, D), ("batch", None, None), jnp.float32)
tokens = place((B, N), ("batch", None), jnp.int32)
weights = place((B, N), ("batch", None), jnp.float32)
options = json.loads(sys.argv[1])

def loss(student, head, teacher, frozen, tokens, weights):
    matrices = head_matrix(config, {"head": head}), head_matrix(config, {"head": frozen})
    if options == "tokens alone":
        log_probs, _ = losses.token_log_probs_from_hidden(student, matrices[0], tokens, chunk_size=CHUNK)
        return losses.weighted_sum(-log_probs, weights), log_probs
    return losses.weighted_divergence_from_hidden(
        student, matrices[0], teacher, jax.lax.stop_gradient(matrices[1]), tokens, weights, chunk_size=CHUNK, **options)

with jax.set_mesh(mesh):
    gradient = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
    print(json.dumps(gradient.lower(hidden, head, hidden, head, tokens, weights).compile().as_text()))
"""
ROWS, CHUNK, D, PART = 4, 6, 64, 254  # of one device


@pytest.mark.parametrize(
    "options",
    ['"tokens alone"', '{"divergence": "sampled_token"}', "{}", '{"beta": 0.5}', '{"beta": 1.0, "temperature": 1.2}'],
)
def test_logits_stay_split(options):
    text = eight_devices.run(SCRIPT, options)
    shapes = [tuple(map(int, s.split(","))) for s in re.findall(r"\b(?:f32|bf16)\[([\d,]+)\]", text)]
    assert any(PART in s and CHUNK in s and ROWS in s for s in shapes), (
        "no split logits: the test looks for another program"
    )
    assert not [s for s in shapes if 4 * PART in s], "an array has the whole vocabulary"
    gathered = [
        tuple(map(int, s.split(",")))
        for line in text.splitlines()
        if re.search(r"\ball-gather(?:-start)?\(", line)
        for s in re.findall(r"\b(?:f32|bf16)\[([\d,]+)\]", line.split(" all-gather")[0])
    ]
    # What is gathered is the head, over fsdp, once for each role.
    assert gathered and {tuple(sorted(s)) for s in gathered} == {(D, PART)}, gathered
