"""The loss over a mesh: the vocabulary stays split over `tensor` and rows over the other axes; logits are never gathered."""

import importlib.util
import math
import re

import pytest

from tests import eight_devices

SCRIPT = """
import json, os, sys
os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
import jax, jax.numpy as jnp
from rcsd_jax import losses
from rcsd_jax.models import sharding
from rcsd_jax.models.config import DecoderConfig
from rcsd_jax.models.head import head_matrix
from rcsd_jax.plan import chips

B, N, D, V, CHUNK = 8, 24, 64, 1016, 6
config = DecoderConfig(family="qwen3", vocab_size=V, hidden_size=D, intermediate_size=96, num_layers=2, num_heads=4,
    num_kv_heads=4, head_dim=16)
devices = list(chips.open_topology(sys.argv[2])) if sys.argv[2:] else None
mesh = sharding.make_mesh(data=1, group=1, fsdp=2, tensor=4, devices=devices)
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


needs_compiler = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")


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


@needs_compiler
@pytest.mark.parametrize(
    "options", ["{}", '{"top_k": 5}', '{"top_k": 5, "top_k_support": "student", "tail": "bucket"}']
)
def test_on_a_tpu_logits_stay_split(options):
    text = eight_devices.run(SCRIPT, options, "v5e:2x4")
    shapes = [tuple(map(int, s.split(","))) for s in re.findall(r"\b(?:f32|bf16)\[([\d,]+)\]", text)]
    assert any(PART in s and CHUNK in s and ROWS in s for s in shapes)
    assert max(map(math.prod, shapes)) < ROWS * CHUNK * 4 * PART, "an array has the whole vocabulary"


TOP_K = """
import json, sys
import jax, jax.numpy as jnp
from rcsd_jax import losses

# Few distinct logits: of equals, the first are taken.
student, teacher = jnp.round(2 * jax.random.normal(jax.random.key(0), (2, 3, 5, 1024)))

def gradient(student, teacher, support):
    value = lambda x: losses.per_token_divergence(x, teacher, top_k=30, top_k_support=support, tail="bucket")
    return value(student), jax.grad(lambda x: value(x).sum())(student)

def both(student, teacher):
    return [gradient(student, teacher, support) for support in ("teacher", "student")]

alone = jax.jit(both)(student, teacher)
with jax.set_mesh(jax.make_mesh((2, 4), ("data", "tensor"))):
    over_a_mesh = jax.jit(both)(student, teacher)
    asked = str(jax.make_jaxpr(both)(student, teacher)).count("top_k[")
apart = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), alone, over_a_mesh)
print(json.dumps([jax.tree.leaves(apart), asked]))
"""


def test_the_largest_of_parts_are_the_largest():
    apart, asked = eight_devices.run(TOP_K)
    assert len(apart) == 4 and max(apart) < 1e-6
    assert asked >= 8, "of parts, then among their winners, for values and for gradients"


AXES = """
import functools, json, re
import jax, jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from rcsd_jax import losses
from rcsd_jax.losses import policy_gradient

B, N, D, V = 8, 6, 16, 64
draw = lambda i, *shape: jax.random.normal(jax.random.key(i), shape)
place = {"hidden": P("data"), "head": P(None, "tensor"), "logits": P("data", None, "tensor"), "tokens": P("data")}
given = {"hidden": [draw(0, B, N, D), draw(1, B, N, D)], "head": [draw(2, D, V), draw(3, D, V)],
         "logits": [draw(4, B, N, V), draw(5, B, N, V)],
         "tokens": [jax.random.randint(jax.random.key(6), (B, N), 0, V), draw(7, B, N)],
         "local": draw(8, B, N, D)}  # not on the mesh

def everything(student, student_head, logits, given, step):
    (_, teacher), (_, teacher_head), (_, others), (tokens, weights) = (given[k] for k in ("hidden", "head", "logits", "tokens"))
    hidden = student, student_head, teacher, teacher_head
    mask = weights > 0
    schedule = dict(beta=step / 8, temperature=1 + step / 10)  # on the mesh, as all that is computed there
    values = [
        losses.masked_mean(losses.per_token_divergence(logits, others, beta=0.5), mask),
        losses.masked_mean(losses.per_token_divergence(logits, others, top_k=5, tail="bucket", **schedule), mask),
        losses.weighted_sum(losses.token_log_probs(logits, tokens), weights),
        losses.masked_mean(losses.entropy(logits), mask),
        losses.masked_mean(losses.sampled_token_loss(logits, others, tokens, ignore_index=3), mask),
        losses.masked_mean(losses.divergence_from_hidden(*hidden, chunk_size=4, mask=mask, top_k=5), mask),
        losses.weighted_divergence_from_hidden(*hidden, tokens, losses.token_weights(mask, "completions"), chunk_size=4,
            sampler_log_probs=weights, importance_clip=step / 2, **schedule)[0],
        losses.weighted_sum(losses.token_log_probs_from_hidden(student, student_head, tokens, chunk_size=4,
            temperature=schedule["temperature"])[0], weights),
        losses.divergence_from_hidden(given["local"], student_head, given["local"], teacher_head, chunk_size=4).sum(),
        policy_gradient.clipped_policy_loss(weights, 0.9 * weights, policy_gradient.group_advantages(weights[:, 0],
            group_size=2), clip_high=step / 8).sum(),
    ]
    return sum(values), jnp.stack(values)

found, text = {}, {}
for kind in ("Auto", "Explicit"):
    mesh = jax.make_mesh((2, 4), ("data", "tensor"), axis_types=(getattr(AxisType, kind),) * 2)
    with jax.set_mesh(mesh):
        on = {k: [jax.device_put(x, NamedSharding(mesh, place[k])) for x in given[k]] for k in place}
        on["local"] = given["local"]
        step = jax.jit(jax.grad(everything, (0, 1, 2), has_aux=True))
        arguments = on["hidden"][0], on["head"][0], on["logits"][0], on, jnp.int32(3)
        text[kind] = step.lower(*arguments).compile().as_text()
        found[kind] = jax.tree.map(lambda x: jax.device_get(x), step(*arguments))
apart = jax.tree.map(lambda a, b: float(abs(a - b).max()), found["Auto"], found["Explicit"])
count = lambda t: {n: len(re.findall(rf"{n}(?:-start)?\\(", t)) for n in ("all-gather", "all-reduce", "all-to-all")}
print(json.dumps([jax.tree.leaves(apart), count(text["Auto"]), count(text["Explicit"])]))
"""


def test_explicit_axes_give_the_same_with_the_same_communication():
    apart, automatic, explicit = eight_devices.run(AXES)
    assert len(apart) == 4 and max(apart) < 1e-5
    assert explicit == automatic and explicit["all-reduce"] > 0
