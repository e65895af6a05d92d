"""models/sharding.py: meshes and the table on one device, and the same forward pass on eight."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from rcsd_jax.host.errors import UserError
from rcsd_jax.models import sharding
from rcsd_jax.models.config import DecoderConfig
from rcsd_jax.models.declarations import abstract_params
from rcsd_jax.models.placement import check_divisible, lora_shardings, param_shardings, sampling_layout
from tests import eight_devices

CONFIG = DecoderConfig(
    family="qwen3", vocab_size=32, hidden_size=16, intermediate_size=24, num_layers=2, num_heads=4, num_kv_heads=2,
    head_dim=8, rope_theta=1e4, max_position=128,
)  # fmt: skip


STORED = ("group", "fsdp", "expert")  # the axes over which matrices are stored


def abstract_mesh(data=1, fsdp=1, tensor=1, expert=1):
    return jax.sharding.AbstractMesh((data, 1, fsdp, expert, tensor), sharding.AXES)


# -- meshes ------------------------------------------------------------------------------------------------------------


def test_mesh_has_its_axes_and_one_may_take_what_remains():
    devices = np.array([jax.devices()[0]] * 8).tolist()
    for sizes, expected in {
        (8, 1, 1): (8, 1, 1),
        (-1, 1, 1): (8, 1, 1),
        (2, -1, 2): (2, 2, 2),
        (1, 2, -1): (1, 2, 4),
        (8, -1, 1): (8, 1, 1),
    }.items():
        mesh = sharding.make_mesh(*sizes, devices=devices)
        assert mesh.axis_names == ("data", "group", "fsdp", "expert", "tensor")
        assert (mesh.shape["data"], mesh.shape["fsdp"], mesh.shape["tensor"]) == expected and mesh.shape["group"] == 1


@pytest.mark.parametrize("sizes", [(3, 1, 1), (16, 1, 1), (-1, 3, 1), (-1, -1, 1), (0, 8, 1), (-2, -4, 1), (-1, 16, 1)])
def test_mesh_that_does_not_fit_is_refused(sizes):
    with pytest.raises(UserError, match="8 devices") as caught:
        sharding.make_mesh(*sizes, devices=[jax.devices()[0]] * 8)
    assert caught.value.field == "mesh"


@pytest.mark.parametrize(
    "mesh, batch, field, what",
    [
        (dict(data=2, fsdp=2), 6, "mesh.data x mesh.group x mesh.fsdp", "6 rows"),
        (dict(tensor=3), 6, "mesh.tensor", "4 attention heads"),
        (dict(tensor=4), 4, "mesh.tensor", "2 key/value heads"),
        (dict(fsdp=3), 6, "mesh.group x mesh.fsdp", "16 hidden_size"),
    ],
)
def test_indivisible_size_names_the_mesh_key(mesh, batch, field, what):
    with pytest.raises(UserError, match=what) as caught:
        check_divisible(CONFIG, abstract_mesh(**mesh), {"eval.batch_size": batch})
    assert caught.value.field == field


def test_devices_that_share_rows_share_their_heads_too():
    check_divisible(CONFIG, abstract_mesh(1, 2, 1), {}, split_rows=True)
    check_divisible(CONFIG, abstract_mesh(1, 4, 1), {})
    with pytest.raises(UserError, match="4 devices .* cannot share 2 key/value heads") as caught:
        check_divisible(CONFIG, abstract_mesh(1, 4, 1), {}, split_rows=True)
    assert caught.value.field == "train.split_rows"


def test_divisible_sizes_pass():
    check_divisible(CONFIG, abstract_mesh(2, 2, 2), {"eval.batch_size": 8, "rubric.batch_size": 4})


# -- the table ---------------------------------------------------------------------------------------------------------


def test_specs_follow_the_table():
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    specs = jax.tree.map(lambda s: s.spec, param_shardings(CONFIG, mesh))
    layers = specs["layers"]
    assert specs["embed"] == P("tensor", STORED) and specs["head"] == P(STORED, "tensor")
    assert specs["final_norm"] == P(None) and layers["q_norm"] == P(None, None)
    for name in ("q", "k", "v", "gate", "up"):
        assert layers[name] == P(None, STORED, "tensor"), name
    for name in ("o", "down"):
        assert layers[name] == P(None, "tensor", STORED), name
    assert jax.tree.structure(specs) == jax.tree.structure(abstract_params(CONFIG))
    assert sharding.batch_sharding(mesh).spec == P(("data", *STORED)) and sharding.replicated(mesh).spec == P()
    adapters = lora_shardings(CONFIG, mesh, {"q": None, "down": None})
    assert set(adapters) == {"q", "down"}
    assert (adapters["q"]["a"].spec, adapters["q"]["b"].spec) == (P(None, STORED, None), P(None, None, "tensor"))
    assert (adapters["down"]["a"].spec, adapters["down"]["b"].spec) == (P(None, "tensor", None), P(None, None, STORED))


def test_spec_takes_other_rules_and_refuses_unknown_axes():
    assert sharding.spec(("embed", None), {"embed": "tensor"}) == P("tensor", None)
    with pytest.raises(KeyError):
        sharding.spec(("no such axis",))


def test_constrain_does_nothing_without_our_mesh():
    x, axes = jnp.ones((3, 5)), ("batch", None)
    jaxpr = lambda: str(jax.make_jaxpr(lambda x: sharding.constrain(x, axes))(x))
    assert sharding.constrain(x, axes) is x and "sharding_constraint" not in jaxpr()
    with jax.set_mesh(jax.make_mesh((1,), ("model",), devices=jax.devices()[:1])):
        assert "sharding_constraint" not in jaxpr()
    with jax.set_mesh(sharding.make_mesh(devices=jax.devices()[:1])):
        assert "sharding_constraint" in jaxpr()


# -- eight devices -----------------------------------------------------------------------------------------------------

SCRIPT = """
import json, warnings
warnings.simplefilter("error")
import jax, jax.numpy as jnp, numpy as np
from rcsd_jax.models.config import DecoderConfig, LayerKind
from rcsd_jax.models.declarations import init_params
from rcsd_jax.models.placement import check_divisible, param_shardings
from rcsd_jax.models.rope import LinearRope, Rope
from rcsd_jax.models import decoder, sharding
from rcsd_jax.sampling import SamplingConfig, generate
assert jax.device_count() == 8
local, far = LayerKind(True, Rope(1e4, None)), LayerKind(False, Rope(1e6, LinearRope(8.0)))
config = DecoderConfig(  # as Gemma 3, with windows shorter than prompts
    family="gemma3_text", vocab_size=32, hidden_size=16, intermediate_size=32, num_layers=2, num_heads=4, num_kv_heads=2,
    head_dim=8, max_position=128, layer_kinds=(local, far), window=4, post_norms=True, norm_plus_one=True,
    norm_in_float32=True, activation="gelu_tanh", embedding_scale=4.0, score_scale=0.3, tie_embeddings=True,
)
params = jax.jit(init_params, static_argnums=0)(config, jax.random.key(0))
params = jax.tree.map(lambda x: 10 * np.asarray(x) if x.ndim != 1 else np.asarray(x), params)
tokens = np.random.default_rng(0).integers(1, 32, size=(8, 9)).astype(np.int32)
mask = np.arange(9)[None] >= np.arange(8)[:, None] % 4
report = {}
for name, shape in {"1": (1, 1, 1), "1x8x1": (1, 8, 1), "8x1x1": (8, 1, 1), "2x2x2": (2, 2, 2)}.items():
    mesh = sharding.make_mesh(*shape, devices=jax.devices()[: int(np.prod(shape))])
    check_divisible(config, mesh, {"batch": 8})
    with jax.set_mesh(mesh):
        placed = jax.tree.map(jax.device_put, params, param_shardings(config, mesh))
        rows, row_mask = sharding.to_mesh((tokens, mask), mesh)
        def run(params, tokens, mask):
            hidden, _ = decoder.Decoder(config).apply(
                {"params": params}, tokens, segment_ids=mask.astype(jnp.int32),
                positions=decoder.positions_from_mask(mask),
            )
            keys = jax.vmap(jax.random.key)(jnp.arange(8))
            return hidden, generate(
                decoder.Decoder(config), {"params": params}, tokens, mask, keys, SamplingConfig(6, eos_ids=(3,))
            )
        hidden, samples = jax.jit(run)(placed, rows, row_mask)
        report[name] = {
            "hidden": np.where(mask[..., None], np.asarray(hidden), 0).tolist(),
            "tokens": np.asarray(samples.tokens).tolist(),
            "up": placed["layers"]["up"].addressable_shards[0].data.shape,
            "rows": rows.addressable_shards[0].data.shape,
            "hidden_shard": hidden.addressable_shards[0].data.shape,
        }
print(json.dumps(report))
"""


@pytest.mark.slow
def test_same_output_on_one_device_and_on_eight():
    report = eight_devices.run(SCRIPT, timeout=300)
    assert np.std(report["1"]["hidden"]) > 0.1 and len(np.unique(report["1"]["tokens"])) > 5
    for name in ("1x8x1", "8x1x1", "2x2x2"):
        np.testing.assert_allclose(report[name]["hidden"], report["1"]["hidden"], rtol=0, atol=1e-4, err_msg=name)
        assert report[name]["tokens"] == report["1"]["tokens"], name
    shards = {name: (r["up"], r["rows"], r["hidden_shard"][0]) for name, r in report.items()}
    assert shards["1x8x1"] == ([2, 2, 32], [1, 9], 1)
    assert shards["8x1x1"] == ([2, 16, 32], [1, 9], 1)
    assert shards["2x2x2"] == ([2, 8, 16], [2, 9], 2)


AXES = """
import json, re
import jax, jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from rcsd_jax.models.cache import POOL_AXES, init_cache
from rcsd_jax.models.config import DecoderConfig
from rcsd_jax.models.declarations import init_params
from rcsd_jax.models.head import head_matrix
from rcsd_jax.models.placement import param_shardings
from rcsd_jax.models import decoder, sharding
COLLECTIVES = ("all-gather", "all-reduce", "all-to-all", "reduce-scatter", "collective-permute")
CONFIG = DecoderConfig(
    family="qwen3", vocab_size=32, hidden_size=16, intermediate_size=24, num_layers=2, num_heads=4, num_kv_heads=2,
    head_dim=8, rope_theta=1e4, max_position=128)
params = init_params(CONFIG, jax.random.key(0))
tokens = jax.random.randint(jax.random.key(1), (8, 6), 0, 32)
model, found, asked = decoder.Decoder(CONFIG), [], []

def loss(params, tokens, cache):
    positions, segments = jnp.broadcast_to(jnp.arange(6), (8, 6)), jnp.ones_like(tokens)
    hidden, cache = model.apply({"params": params}, tokens, positions=positions, segment_ids=segments, cache=cache)
    return jnp.square(hidden @ head_matrix(CONFIG, params)).sum(), (hidden, cache)

for names, kind in ((sharding.AXES, "Auto"), (sharding.AXES, "Explicit"), (("data", "model"), "Explicit")):
    sizes = (2, 1, 2, 1, 2) if names == sharding.AXES else (4, 2)
    mesh = jax.make_mesh(sizes, names, axis_types=(getattr(AxisType, kind),) * len(names))
    with jax.set_mesh(mesh):
        of_cache = weights = NamedSharding(mesh, P())
        rows = NamedSharding(mesh, P("data"))
        if names == sharding.AXES:
            weights, rows = param_shardings(CONFIG, mesh), sharding.batch_sharding(mesh)
            of_cache = NamedSharding(mesh, sharding.spec(POOL_AXES))
        on = jax.device_put((params, tokens, init_cache(CONFIG, 8, 8)), (weights, rows, of_cache))
        # Of explicit axes, results lie as their arguments do; so they shall of automatic ones.
        places = ((None, (rows, of_cache)), weights)
        step = jax.jit(jax.value_and_grad(loss, has_aux=True), out_shardings=places).lower(*on).compile()
        found.append(jax.tree.map(jax.device_get, step(*on)))
        asked.append({x: len(re.findall(rf"{x}(?:-start)?\\(", step.as_text())) for x in COLLECTIVES})
apart = [max(jax.tree.leaves(jax.tree.map(lambda a, b: float(abs(a - b).max()), found[0], x))) for x in found[1:]]
print(json.dumps([apart, asked]))
"""


def test_explicit_axes_give_the_same_with_the_same_communication():
    """Of the project's own mesh, and of one with other names, as another project has it."""
    apart, (automatic, explicit, _) = eight_devices.run(AXES)
    assert max(apart) < 1e-3
    assert explicit == automatic and explicit["all-gather"] > 0


@pytest.mark.parametrize(
    "fsdp, tensor, layout",
    [(1, 1, "sampling"), (2, 1, "sampling"), (1, 2, "sampling"), (2, 2, "train"), (8, 1, "train")],
)
def test_sampling_splits_matrices_where_the_mesh_divides_the_heads(fsdp, tensor, layout):
    with jax.sharding.use_abstract_mesh(abstract_mesh(fsdp=fsdp, tensor=tensor)):
        assert sampling_layout(CONFIG) == layout
    assert sampling_layout(CONFIG) == "train"  # without a mesh there is nothing to divide


def test_rows_are_split_over_every_axis_that_the_layout_names():
    mesh = jax.sharding.AbstractMesh((2, 3, 5, 1, 7), sharding.AXES)
    assert (sharding.row_shards("train", mesh), sharding.row_shards("sampling", mesh)) == (30, 6)
    with jax.sharding.use_abstract_mesh(mesh):
        assert sharding.row_shards("train") == 30
    assert sharding.row_shards("train") == 1
