"""Variants that name a model's size and a slice: what they set, that they fit their slice, and what is refused."""

import math

import pytest

from configs import stage1, stage2
from rcsd_jax.plan.chips import CHIPS
from rcsd_jax.plan.published import PUBLISHED
from rcsd_jax.settings import sizes
from rcsd_jax.settings.unpack import check

EVERY = [
    (size, full, name)
    for full, table in ((False, sizes.LORA), (True, sizes.FULL))
    for size in table
    for name in table[size]
]


def devices_of(slice_):
    chip, _, shape = slice_.partition("_")
    return CHIPS[chip].devices_per_chip * math.prod(int(n) for n in shape.split("x"))


@pytest.mark.parametrize("size, full, slice_", EVERY)
def test_every_slice_has_a_mesh_of_its_chips_and_a_config_that_is_valid(size, full, slice_):
    config = stage2.get_config(",".join([size, slice_, *(["full"] if full else [])]))
    config.data.path = "rows.jsonl"
    config.rubric.source = "data"
    check(config)
    mesh = config.mesh
    assert mesh.data * mesh.group * mesh.fsdp * mesh.expert * mesh.tensor == devices_of(slice_)
    assert (config.lora.rank == 0) == full and config.model.path == sizes.MODELS[size]
    heads = PUBLISHED[config.model.path]["num_key_value_heads"]
    assert heads % (mesh.fsdp * mesh.tensor) == 0
    shards = mesh.data * mesh.group * mesh.fsdp * mesh.expert
    assert config.train.batch_size // config.train.microbatches % shards == 0
    assert set(config.lora.targets) == {"q", "k", "v", "o", *(() if size in sizes.MIXTURES else ("gate", "up", "down"))}


@pytest.mark.parametrize("size, full, slice_", [case for case in EVERY if case[0].startswith("qwen3")])
def test_caches_of_evaluation_and_of_written_rubrics_leave_room_for_the_weights(size, full, slice_):
    config = stage2.get_config(",".join([size, slice_, *(["full"] if full else [])]))
    of_model, chip = PUBLISHED[config.model.path], CHIPS[slice_.partition("_")[0]]
    place = (
        2 * 2 * math.prod(of_model[key] for key in ("num_hidden_layers", "num_key_value_heads", "head_dim"))
    )  # bytes
    shards = devices_of(slice_) // config.mesh.tensor
    for one in (config.eval, config.rubric):
        assert one.batch_size % shards == 0
        assert one.batch_size * one.max_new_tokens * place / devices_of(slice_) < 0.65 * chip.capacity


def test_a_larger_size_as_the_teacher():
    for (size, teacher), table in sizes.FROM.items():
        for slice_ in table:
            variant = f"{size},from_{teacher.rpartition('_')[2]},{slice_}"
            config = stage2.get_config(f"{variant},ground_truth")
            config.data.path = "rows.jsonl"
            check(config)
            assert math.prod(config.mesh.values()) == devices_of(slice_)
            assert (config.model.path, config.teacher.path) == (sizes.MODELS[size], sizes.MODELS[teacher])
    assert sizes.topology("qwen3_8b,from_32b") == "v5p:2x2x1"
    for variant in ("qwen3_8b,from_32b,full", "qwen3_8b,from_14b", "qwen3_8b,from_32b,v5e_4x4"):
        with pytest.raises(
            ValueError, match=f"{variant.partition(',v5e')[0].partition(',full')[0].partition(',')[0]}.*has no"
        ):
            stage2.get_config(variant)


def test_a_size_joins_a_variant_in_any_order():
    for variant in ("release,qwen3_8b", "qwen3_8b,release"):
        config = stage2.get_config(variant)
        assert config.loss.top_k == 20 and config.model.path == "Qwen/Qwen3-8B"
    assert sizes.topology("qwen3_8b,release") == "v5e:4x4" and sizes.topology("qwen3_8b,full") == "v5p:2x2x2"
    assert sizes.topology("release") is None
    assert stage1.get_config("qwen3_1.7b").task == "write_rubric"


def test_a_variant_keeps_its_own_adapters_and_a_larger_batch_has_more_parts():
    assert (
        stage2.get_config("qwen3_8b,release").lora.rank == 16
        and stage2.get_config("qwen3_8b,full,release").lora.rank == 0
    )
    usual, large = (stage2.get_config(f"qwen3_8b,full{more}").train for more in ("", ",sdpo"))
    assert large.batch_size // large.microbatches == usual.batch_size // usual.microbatches and large.batch_size == 256


@pytest.mark.parametrize(
    "variant, message",
    [
        ("paperr", "unknown variant 'paperr'.*paper.*qwen3_8b"),
        ("qwen3_8b,v5e_2x2", "no 'v5e_2x2': use one of v5e_4x4"),
        ("paper,release", "paper and release are two variants"),
        ("full", "unknown variant 'full'"),
        ("qwen3_30b_a3b,full", "qwen3_30b_a3b,full has no 'slice'"),
        ("sdpo,qwen3_8b", "trains all weights.*use qwen3_8b,full"),
    ],
)
def test_what_no_variant_is_called_is_refused(variant, message):
    with pytest.raises(ValueError, match=message):
        stage2.get_config(variant)
