"""The collectives of eight devices: results, bytes and time, and those that are made wrong."""

import types

import pytest

from rcsd_jax.check import collectives
from rcsd_jax.check.finding import NOT_CHECKED
from rcsd_jax.models import sharding
from rcsd_jax.plan.chips import CHIPS
from tests import eight_devices

SCRIPT = """
import json
import jax
from rcsd_jax.check import collectives
from rcsd_jax.models import sharding

mesh = sharding.make_mesh(data=2, fsdp=4)
told = lambda findings: [[f.name, f.verdict, f.measured, dict(f.numbers)] for f in findings]
right = told(collectives.check_collectives(mesh, None))
wrong = {
    "all-gather": lambda x, axis: jax.lax.all_gather(x, axis, tiled=True)[::-1],
    "reduce-scatter": lambda x, axis: 2 * jax.lax.psum_scatter(x, axis, tiled=True),
    # Of a quarter of the devices: over the other axis, the sums are of others.
    "all-reduce": lambda x, axis: jax.lax.psum(x, "fsdp" if axis == "data" else "data"),
}
collectives.OPERATIONS |= wrong
print(json.dumps({"right": right, "wrong": told(collectives._check(mesh, "data", kind, None) for kind in wrong)}))
"""


@pytest.fixture(scope="module")
def told():
    return eight_devices.run(SCRIPT)


def test_every_operation_over_every_axis_is_right_and_sends_what_it_should(told):
    names = [name for name, *_ in told["right"]]
    kinds = ("all-gather", "reduce-scatter", "all-reduce")
    assert names == [f"{kind} over mesh.{axis}" for axis in ("data (2)", "fsdp (4)") for kind in kinds]
    assert {verdict for _, verdict, *_ in told["right"]} == {"ok"}
    array = 2**18
    of_ring = [array, array / 2, array, 3 * array, 3 / 4 * array, 6 / 4 * array]  # each sends to its neighbour
    assert [numbers["bytes_sent"] for *_, numbers in told["right"]] == of_ring


def test_wrong_results_are_found(told):
    assert [(verdict, measured) for _, verdict, measured, _ in told["wrong"]] == [
        ("failed", "wrong on 8 of 8 devices")
    ] * 3


def test_one_device_has_none():
    import jax

    (found,) = collectives.check_collectives(sharding.make_mesh(devices=jax.devices()[:1]), None)
    assert found.verdict == NOT_CHECKED


def test_times_are_held_against_the_links_of_the_chip():
    """On v5e:4x4 an axis of four neighbours is a line of one link at its ends, 50 GB/s in one direction."""
    devices = [types.SimpleNamespace(coords=(x, y, 0)) for x in range(4) for y in range(4)]
    mesh = types.SimpleNamespace(devices=types.SimpleNamespace(flat=devices))
    rates = collectives._rates(mesh, CHIPS["v5e"])
    assert rates.collective("all-gather", (0, 1, 2, 3), 5e9) == pytest.approx(0.1, rel=1e-3)
