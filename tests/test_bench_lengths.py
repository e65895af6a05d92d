"""The benchmark on real lengths: its workload, the tokens that are counted, and, slowly, all of it."""

import doctest
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.bench import lengths, setting, workload
from experiments.bench.lengths_steps import STEPS
from experiments.bench.workload import Workload
from rcsd_jax.models.decoder import Decoder
from rcsd_jax.plan.lengths import Drawn
from rcsd_jax.run.batch import padded_length
from rcsd_jax.sampling import SamplingConfig
from rcsd_jax.sampling.slots import generate_queue
from tests.sampling.test_continuous_batching import CONFIG, small


@pytest.mark.parametrize("module", [lengths, workload])
def test_examples_print_what_they_say(module):
    result = doctest.testmod(module)
    assert result.attempted and not result.failed


@pytest.mark.parametrize("shrink", (1, 16))
def test_the_workload_has_the_lengths_of_real_rows(shrink):
    work = Workload(shrink)
    student, teacher = work.rows()
    assert len(student) == len(teacher) == 399 and (teacher > student).all()
    np.testing.assert_allclose([student.mean() * shrink, teacher.mean() * shrink], [107.4, 446.1], rtol=0.002)
    np.testing.assert_allclose(np.median(student) * shrink, 90, atol=0.5 * shrink)
    np.testing.assert_allclose([student.max() * shrink, teacher.max() * shrink], [1275, 1616], atol=0.5 * shrink)
    completions = np.concatenate([x.completion for x in work.batches(32, 400)])
    np.testing.assert_allclose([np.median(completions) * shrink, completions.mean() * shrink], [800, 1065], rtol=0.03)
    assert completions.min() >= 1 and completions.max() == work.limit
    np.testing.assert_allclose((completions == work.limit).mean(), 0.02, atol=0.005)


def test_batches_take_every_row_once_before_any_again():
    work = Workload()
    batches = work.batches(21, 19)  # 399 rows
    assert sorted(np.concatenate([x.student for x in batches])) == sorted(work.rows()[0])
    pairs = set(zip(*(x.tolist() for x in work.rows()), strict=True))
    assert all((s, t) in pairs for x in batches for s, t in zip(x.student, x.teacher, strict=True))


def test_padding_and_idle_slots_of_the_padded_step():
    for work in (Workload(1), Workload()):
        batches = work.batches(32, 200)
        found = lengths.padded_over_real(STEPS["padded"], work, batches)
        np.testing.assert_allclose(
            [found[name] for name in ("student_prompts", "teacher_prompts", "learning")], [4.6, 2.5, 3.7], rtol=0.03
        )
        assert lengths.occupancy(batches, 32) == pytest.approx(0.30, abs=0.01)
        assert 0.7 < lengths.occupancy(batches, 8) < 0.8
        packed = lengths.padded_over_real(STEPS["packed"], work, batches)
        assert packed["learning"] < 1.15 and packed["student_prompts"] == 1.0
        assert lengths.occupancy(batches, 8, 4) > 0.9


def test_a_long_run_compiles_for_few_lengths():
    """What decides the shapes of a packed step: the padded length of its student's prompts. Its teacher's have one length."""
    work = Workload(1)
    student, _ = work.rows()
    longest = int(np.quantile(student, 0.98))  # as a run that has seen some of its rows
    found = {padded_length(x.student.tolist(), longest, 128, 2048) for x in work.batches(32, 400)}
    assert found <= {128, 256, 512, 1024, 2048, -(-longest // 128) * 128} and len(found) < 7


def test_tokens_are_counted_row_by_row():
    work = Workload()
    batch = Drawn(np.array([3, 17]), np.array([20, 33]), np.array([5, 100]))
    assert workload.real(batch) == (20, 53, 20 + 53 + 2 * 105)
    assert workload.padded_to_longest(work, batch) == (34, 66, 34 + 66 + 2 * 200)
    assert work.padded_prompts(batch) == (32, 64) and work.limit == 256
    assert workload.padded_to_limit(work, batch) == (64, 128, 64 + 128 + 2 * 512)


def test_prompts_have_their_lengths_and_the_teachers_begin_with_the_students():
    (batch,) = Workload().batches(6, 1)
    rows = workload.with_tokens(batch, 100)
    for i, (student, teacher) in enumerate(zip(rows.student, rows.teacher, strict=True)):
        assert (len(student), len(teacher)) == (batch.student[i], batch.teacher[i])
        np.testing.assert_array_equal(student, teacher[: len(student)])
        assert teacher.min() >= 8 and teacher.max() < 100


@pytest.mark.parametrize("slots", (1, 5, 24))
def test_decode_steps_are_those_of_the_queue(slots):
    variables, tokens, mask, keys = small()
    limits = np.random.default_rng(2).integers(1, 13, 24).astype(np.int32)
    sampling = SamplingConfig(max_new_tokens=12)  # without an end token the limits are the lengths
    queue = jax.jit(lambda *a: generate_queue(Decoder(CONFIG), *a[:4], sampling, slots=slots, refill=1, limits=a[4])[1])
    found = queue(variables, jnp.asarray(tokens), jnp.asarray(mask), keys[:24], limits)
    assert (found.live, found.steps) == (limits.sum(), workload.decode_steps(limits.tolist(), slots))


def test_flops_of_full_rows_are_those_of_the_training_part_and_of_sampling():
    config, sizes = setting.decoder_config(), setting.Sizes()
    full = (np.full(sizes.batch, n) for n in (sizes.prompt, sizes.teacher_prompt, sizes.completion))
    sampling = sizes.batch * setting.forward_flops(config, sizes.prompt + sizes.completion, sizes.completion)
    assert lengths.real_flops(config, Drawn(*full)) == pytest.approx(setting.train_flops(config, sizes) + sampling)
    assert setting.train_flops(config, sizes) == pytest.approx(125.9e9, rel=1e-3)


@pytest.mark.parametrize("flags", (["--batch=3"], ["--repeats=0"]))
def test_sizes_that_cannot_be_are_one_line(flags, capsys):
    with pytest.raises(SystemExit):
        lengths.main(flags)
    assert "must be at least" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.slow
def test_the_benchmark_on_real_lengths_prints_one_object(capsys, tmp_path):
    """Every step's loss is that of PyTorch on the same completions, or this raises."""
    lengths.main(["--quick", "--json", "--threads=1", f"--figure={tmp_path / 'growth.svg'}"])
    (line,) = capsys.readouterr().out.splitlines()
    found = json.loads(line)
    assert found["times_before"] > 0 and found["times_torch"] > 0 and found["bound_seconds"] > 0
    assert found["padded_over_real"] > 1 and 0 < found["occupancy"] < 1
    assert set(found["steps"]) == set(STEPS)
    assert all(np.isfinite(x["seconds"]) for x in found["steps"].values())
    assert 0 < found["steps"]["packed"]["learning_bytes"] and "by rows" in (tmp_path / "growth.svg").read_text()
    assert len(found["growth"]) == 3 and len(lengths.tables(found).splitlines()) > 13
