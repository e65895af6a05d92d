"""Lines about settings that are allowed, and seldom meant."""

import dataclasses

import jax
import pytest

from configs import stage2, tiny
from rcsd_jax.run.advice import advice
from tests.settings_for_tests import settings_of


@pytest.mark.parametrize(
    "backend, dtype, told", [("cpu", "bfloat16", True), ("cpu", "float32", False), ("tpu", "bfloat16", False)]
)
def test_bfloat16_on_a_cpu_is_slow(backend, dtype, told, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    config = stage2.get_config("ground_truth")
    config.model.dtype = dtype
    assert any("set model.dtype=float32" in line for line in advice(settings_of(config))) is told


def test_an_int8_copy_that_samples_wants_a_correction():
    settings = settings_of(stage2.get_config("ground_truth"))
    small = dataclasses.replace(settings, sampling=dataclasses.replace(settings.sampling, int8_weights=True))
    assert "set loss.importance_clip=2" in advice(small)[-1]
    corrected = dataclasses.replace(small, loss=dataclasses.replace(small.loss, importance_clip=2.0))
    assert not any("int8" in line for line in advice(corrected))


def test_the_tiny_world_needs_none():
    config = tiny.get_config()
    assert not any(advice(settings_of(config[stage])) for stage in ("stage1", "stage2"))
