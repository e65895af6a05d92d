"""`python -m rcsd_jax.plan`: what it says of a small model, asked of the real TPU compiler where libtpu is installed."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl

from rcsd_jax.checkpoints.hf_config import config_of_fields
from rcsd_jax.host.errors import UserError
from rcsd_jax.plan import measure, model_flops, planned, published
from tests import forked_program
from tests.settings_for_tests import settings_of

ROOT = Path(__file__).resolve().parents[2]
needs_compiler = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")


def plan(*arguments, timeout=500):
    return forked_program.start("rcsd_jax.plan", *arguments).result(timeout)


def shape_of(name, **settings):
    return config_of_fields(published.PUBLISHED[name], name, dtype=jnp.bfloat16, **settings)


def test_a_kernel_that_refuses_a_model_is_told_in_one_line():
    def lower():
        block = pl.BlockSpec((8, 20), lambda i: (0, i))
        copy = pl.pallas_call(
            lambda x, out: out.__setitem__(..., x[...]), jax.ShapeDtypeStruct((8, 100), jnp.float32), grid=(5,),
            in_specs=[block], out_specs=block,
        )  # fmt: skip
        return jax.jit(copy).trace(jnp.zeros((8, 100))).lower(lowering_platforms=("tpu",))

    plan = SimpleNamespace(programs={"decode": planned.Program("decode", 1, 1, lower)})
    with pytest.raises(
        UserError, match=r"^the program 'decode' cannot be compiled .*block shape.*; try .*kernels=xla"
    ) as told:
        measure.compile_one(plan, "decode")
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    "name, count",
    [  # of the safetensors on huggingface.co; tied ones without the copy of the embedding that they also store
        ("Qwen/Qwen3-0.6B", 596_049_920),
        ("Qwen/Qwen3-1.7B", 1_720_574_976),
        ("Qwen/Qwen3-4B", 4_022_468_096),
        ("Qwen/Qwen3-8B", 8_190_735_360),
        ("Qwen/Qwen3-14B", 14_768_307_200),
        ("Qwen/Qwen3-32B", 32_762_123_264),
        ("Qwen/Qwen3-30B-A3B", 30_532_122_624),
        ("Qwen/Qwen3-235B-A22B", 235_093_634_560),
        ("google/gemma-3-270m-it", 268_098_176),
        ("google/gemma-3-1b-it", 999_885_952),
        # Without the tower that sees images, of 416,866,032, and its projection.
        ("google/gemma-3-4b-it", 4_300_079_472 - 416_866_032 - (1152 * 2560 + 1152)),
        ("google/gemma-3-12b-it", 12_187_325_040 - 416_866_032 - (1152 * 3840 + 1152)),
        ("google/gemma-3-27b-it", 27_432_406_640 - 416_866_032 - (1152 * 5376 + 1152)),
    ],
)
def test_published_shapes_have_the_published_number_of_parameters(name, count):
    assert model_flops.parameters(shape_of(name)) == count


def test_flops_of_the_model_by_hand():
    shape = shape_of("Qwen/Qwen3-8B")
    layer = 4096 * (4096 + 2 * 1024) + 4096 * 4096 + 3 * 4096 * 12288
    attention = 36 * 2 * 2 * 32 * 128 * 6144 * 6144 / 2
    forward = 2 * 36 * layer * 6144 + attention
    assert model_flops.scoring(shape, 3, 6144) == 3 * forward
    head = 2 * 4096 * 151936 * 4096
    full = model_flops.student(shape, 1, 2048, 4096, lora_rank=0)
    assert full == 3 * forward + 4 * head
    lora = model_flops.student(shape, 1, 2048, 4096, lora_rank=64, targets=("q", "down"))
    adapters = 36 * 2 * 64 * ((4096 + 4096) + (12288 + 4096)) * 6144
    assert lora == 2 * (forward - attention) + 3 * attention + 3 * adapters + 3 * head


@pytest.mark.parametrize("length", [300, 700])
def test_flops_of_attention_with_windows_are_those_of_the_pairs_that_are_seen(length):
    shape = shape_of("google/gemma-3-1b-it")
    sliding = np.array([(layer + 1) % 6 != 0 for layer in range(26)])
    seen = np.tril(np.ones((length, length)))
    near = np.triu(seen, 1 - 512)
    pairs = (
        sliding.sum() * near.sum() + (~sliding).sum() * seen.sum() - 26 * length / 2
    )  # a token counts half of itself
    matrices = 26 * (1152 * (1024 + 2 * 256) + 1024 * 1152 + 3 * 1152 * 6912)
    assert model_flops.scoring(shape, 2, length) == pytest.approx(
        2 * (2 * matrices * length + 4 * 4 * 256 * pairs), rel=1e-4
    )


def test_flops_of_a_mixture_are_those_of_the_chosen_experts():
    shape = shape_of("Qwen/Qwen3-30B-A3B")
    attention = 48 * 2 * 2 * 32 * 128 * 1024 * 1024 / 2
    layer = 2048 * (4096 + 2 * 512) + 4096 * 2048 + 128 * 2048 + 8 * 3 * 2048 * 768
    assert 48 * layer == pytest.approx(3.3e9 - 2 * 151936 * 2048, rel=0.03)  # "3.3B activated", of which two embeddings
    assert model_flops.scoring(shape, 1, 1024) == 2 * 48 * layer * 1024 + attention
    frozen, experts = (
        model_flops.student(shape, 1, 512, 512, lora_rank=rank, targets=("q", "expert_up")) for rank in (1, 9)
    )
    assert experts - frozen == 3 * 2 * 8 * 48 * ((2048 + 4096) + 8 * (2048 + 768)) * 1024


def test_flops_of_a_larger_teacher_are_its_own():
    student, teacher = shape_of("Qwen/Qwen3-8B"), shape_of("Qwen/Qwen3-32B")
    own, other = (model_flops.student(student, 1, 2048, 4096, lora_rank=64, teacher=x) for x in (None, teacher))
    assert other - own == 2 * (5120 - 4096) * 151936 * 4096


def test_without_the_compiler_one_line_says_what_to_install(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util as u\nfind = u.find_spec\n"
        "u.find_spec = lambda name, *rest: None if name == 'libtpu' else find(name, *rest)\n"
    )
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    command = [sys.executable, "-m", "rcsd_jax.plan", "--config=configs/stage2.py", "--topology=v5e:2x2"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, timeout=100)
    assert result.returncode == 2 and result.stdout == ""
    (line,) = result.stderr.strip().splitlines()
    assert "pip install 'rcsd_jax[tpu]'" in line and line.startswith("error: ")


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--topology=v9z:2x2"], ("v9z:2x2", "v5e:4x4")),
        (["--topology=v5e:2x2", "--config.model.pth=x"], ("model.pth", "model.path")),
        ([], ("--topology", "v5e:4x4")),
    ],
)
def test_bad_flags_are_told_in_one_line(arguments, words):
    code, out, err = plan("--config=configs/stage2.py", *arguments)
    assert code == 2 and out == ""
    (line,) = err.strip().splitlines()
    assert all(word in line for word in words)


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--topology=v5e:3x5"], ("v5e:3x5", "v5e:4x4")),
        (["--topology=v5e:2x2"], ("model.path",)),
        (["--topology=v5e:2x2", "--config.model.path=Qwen/Qwen9"], ("Qwen/Qwen9", "Qwen/Qwen3-8B")),
        (["--topology=v5e:2x2", "--config.model.path=Qwen/Qwen3-8B", "--config.mesh.tensor=3"], ("mesh", "4 devices")),
        (["--topology=v5e:2x2", "--config.model.path=Qwen/Qwen3-8B", "--only=decod"], ("decod", "decode")),
    ],
)
def test_what_cannot_be_planned_is_told_in_one_line(arguments, words):
    code, out, err = plan("--config=configs/stage2.py", *arguments)
    assert code == 2 and out == ""
    (line,) = err.strip().splitlines()
    assert all(word in line for word in words)


PRODUCT = """
import os, sys
os.environ.update(JAX_PLATFORMS="cpu", TPU_SKIP_MDS_QUERY="1", ALLOW_MULTIPLE_LIBTPU_LOAD="1")
import jax, jax.numpy as jnp
from rcsd_jax.plan import chips, hlo, pricing, rates
chip, device = chips.chip_of(sys.argv[1]), chips.open_topology(sys.argv[1])[0]
place = jax.sharding.SingleDeviceSharding(device)
x = jax.ShapeDtypeStruct((4096, 4096), jnp.bfloat16, sharding=place)
text = jax.jit(lambda a, b: a @ b).lower(x, x).compile().as_text()
rates = rates.Rates(chip.clock, chip.hbm, 20 * chip.hbm, chip.bf16, lambda *_: 0.0)
found = pricing.cost_of(hlo.parse(text), rates)
print(found.flops, found.seconds / (found.flops / chip.bf16))
"""


@needs_compiler
@pytest.mark.parametrize(
    "topology, within",
    [
        ("v5e:2x2", 1.15),
        pytest.param("v5p:2x2x1", 1.15, marks=pytest.mark.slow),
        pytest.param("v6e:2x2", 1.3, marks=pytest.mark.slow),
        pytest.param("v4:2x2x1", 1.2, marks=pytest.mark.slow),
        pytest.param("tpu7x:2x2x1", 1.3, marks=pytest.mark.slow),
    ],
)
def test_modelled_time_of_a_large_product_is_close_to_its_time_at_peak(topology, within):
    # With the wait for an operand that is copied into vector memory first, which nothing hides here.
    command = [sys.executable, "-c", PRODUCT, topology]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-2000:]
    flops, ratio = map(float, result.stdout.split())
    assert flops == 2 * 4096**3
    assert 1.0 <= ratio <= within


KERNELS = """
import os
os.environ.update(JAX_PLATFORMS="cpu", TPU_SKIP_MDS_QUERY="1", ALLOW_MULTIPLE_LIBTPU_LOAD="1")
import jax, jax.numpy as jnp
from rcsd_jax.models.kernels import few_queries, splash
from rcsd_jax.plan import chips
mesh = jax.sharding.Mesh(chips.open_topology("v5e:2x2")[:1], ("one",))
jax.set_mesh(mesh)  # by which Pallas knows the chip
place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
array = lambda *shape, dtype=jnp.bfloat16: jax.ShapeDtypeStruct(shape, dtype, sharding=place)

def train(q, k, v, segment_ids, sliding):
    attend = lambda *x: splash.attend(*x, segment_ids, sliding, scale=0.1, window=512, interpret=False)
    return jax.grad(lambda *x: attend(*x).astype(jnp.float32).sum(), argnums=(0, 1, 2))(q, k, v)

heads = array(1, 1, 2048, 256)
jax.jit(train).lower(array(1, 2, 2048, 256), heads, heads, array(1, 2048, dtype=jnp.int32), array(dtype=jnp.bool_)).compile()
pool, one, number = array(1, 2, 4, 1024, 256), array(4, 4, 1, 256), array(dtype=jnp.int32)
decode = lambda *x: few_queries.attend(*x, scale=0.1)
jax.jit(decode).lower(one, pool, pool, array(4, dtype=jnp.int32), number, number).compile()
"""


@needs_compiler
@pytest.mark.slow
def test_the_compiler_takes_attention_with_gemmas_heads_and_windows():
    result = subprocess.run([sys.executable, "-c", KERNELS], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-2000:]


SHORT = ("sampling.max_new_tokens=32", "data.max_student_prompt=64", "data.max_teacher_prompt=96", "train.batch_size=8",
         "train.row_lengths=0", "model.remat=none", "lora.rank=8")  # fmt: skip


SMALL = dict(vocab_size=512, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, head_dim=16, max_position_embeddings=4096, tie_word_embeddings=True,
             model_type="qwen3")  # fmt: skip


@pytest.fixture(scope="module")
def small_plan(tmp_path_factory):
    directory = tmp_path_factory.mktemp("plan")
    (directory / "config.json").write_text(json.dumps(SMALL))  # nothing else of a model is read
    path = directory / "plan.json"
    code, out, err = plan(
        "--config=configs/stage2.py",
        "--topology=v5e:2x2",
        f"--config.model.path={directory}",
        f"--json={path}",
        *(f"--config.{setting}" for setting in SHORT),
    )
    assert code == 0, err[-3000:]
    return json.loads(path.read_text()), out


@needs_compiler
@pytest.mark.slow
def test_a_small_run_is_planned_end_to_end(small_plan):
    data, out = small_plan
    assert (
        data["fits"]
        and data["chips"] == 4
        and data["mesh"] == {"data": 1, "group": 1, "fsdp": 4, "expert": 1, "tensor": 1}
    )
    assert list(data["programs"]) == [
        "train step", "prefill", "decode", "teacher scoring", "student forward+backward", "update",
    ]  # fmt: skip
    for name, program in data["programs"].items():
        memory, seconds = program["hbm"], program["modelled_seconds"]
        assert 0 < memory["arguments"] < memory["needed"] < memory["capacity"], name
        assert seconds["total"] == pytest.approx(sum(v for k, v in seconds.items() if k != "total")), name
        # How many trips of packed rows a step makes follows from the lengths.
        assert name == "train step" or all(loop["known"] for loop in program["loops"]), name
    assert 0 < data["programs"]["teacher scoring"]["mfu"] < 1
    assert 0 < data["programs"]["decode"]["share_of_bandwidth_bound"] < 1
    loops = {(loop["trips"], loop["dynamic"]) for loop in data["programs"]["train step"]["loops"]}
    assert (32, True) in loops  # a completion of 32 tokens, unless all rows end before
    step = data["step"]
    assert step["hundred_steps_chip_hours"] == pytest.approx(100 * step["seconds"] * 4 / 3600)
    # The parts are compiled alone, without what XLA shares among them.
    assert step["seconds_from_parts"] == pytest.approx(step["seconds"], rel=0.4)
    for words in (
        "verdict: fits",
        "100 steps",
        "share of HBM-bandwidth bound",
        "all-gather",
        "Nothing was run on a TPU",
    ):
        assert words in out


@needs_compiler
@pytest.mark.slow
def test_counted_flops_are_those_of_the_mathematics(small_plan):
    # Attention is a kernel's, counted apart; RoPE's halves change places by a product. Nothing is computed anew here.
    program = small_plan[0]["programs"]["teacher scoring"]
    hidden, inner, width, kv, layers, length, rows = 64, 128, 64, 32, 2, 96 + 32, 8
    matrices = hidden * (width + 2 * kv) + width * hidden + 3 * hidden * inner
    rotation = 2 * (width + kv) * 16 * length  # heads of queries and keys, each times [16, 16]
    expected = rows * layers * (2 * matrices * length + rotation)
    assert program["flops"] * 4 == pytest.approx(expected, rel=1e-6)
    assert program["model_flops"] == rows * layers * (2 * matrices * length + 2 * length * length * width)


def test_quantized_weights_are_planned_as_such():
    import jax

    from configs import stage2
    from rcsd_jax.plan import programs

    held = {}
    forms = [{"model.quantization": form} for form in ("int8", "int4")]
    for changes in ({}, *forms, {"sampling.int8_weights": True}):
        config = stage2.get_config("qwen3_0.6b")
        config.mesh.fsdp = -1
        config.update_from_flattened_dict(changes)
        held[", ".join(map(str, changes.values()))] = programs.plan(settings_of(config), jax.devices()).weight_bytes
    assert 0.5 * held[""] < held["int8"] < 0.8 * held[""]
    assert held["True"] == held["int8"]  # of the copy
    matrices = 28 * (2 * 1024 * 2048 + 2 * 1024 * 1024 + 3 * 1024 * 3072)  # q and o, k and v, the MLP
    columns = 28 * 4 * (2048 + 2 * 1024 + 1024 + 2 * 3072 + 1024)  # their float32 scales
    assert held["int8"] - held["int4"] == matrices + columns - matrices * (0.5 + 2 / 32)
    config.sampling.merged_adapters = True
    merged = programs.plan(settings_of(config), jax.devices()).weight_bytes
    assert merged < held["True"]  # no adapters beside them


def test_more_than_a_chip_has_is_said_even_if_the_compiler_accepts_it():
    from rcsd_jax.plan import report

    program = {"fits": True, "hbm": {"needed": 17e9, "capacity": 16e9}, "windowed_products": [], "loops": []}
    step = {"seconds": None, "seconds_from_parts": None}
    lines = report._verdict({"programs": {"decode": program}, "fits": True, "chip": {"capacity": 16e9}, "step": step})
    assert "decode: the compiler accepts it" in lines[0] and "do not count on it" in lines[0]
    assert lines[1].startswith("verdict: may not fit, 15.83 of 14.90 GiB")


@needs_compiler
@pytest.mark.slow
def test_what_does_not_fit_is_said():
    code, out, err = plan(
        "--config=configs/stage2.py",
        "--topology=v5e:2x2",
        "--config.model.path=Qwen/Qwen3-0.6B",
        "--config.train.batch_size=2048",
        "--config.train.row_lengths=0",
        "--config.sampling.max_new_tokens=128",
        "--config.data.max_student_prompt=128",
        "--config.data.max_teacher_prompt=128",
        "--only=student forward+backward",
        "--json",
    )
    assert code == 0, err[-3000:]
    data = json.loads(out)
    program = data["programs"]["student forward+backward"]
    assert not data["fits"] and program["hbm"]["needed"] > program["hbm"]["capacity"] == 15.75 * 2**30
    assert data["step"]["seconds"] is None and program["mfu"] is None
