"""The planner's `--lengths`: histograms, the work of a step by its lengths, and the expected step, by hand and asked of the compiler."""

import itertools
import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import stage2
from rcsd_jax.host.errors import UserError
from rcsd_jax.methods import packing as methods_packing
from rcsd_jax.models.decoder import Decoder
from rcsd_jax.models.kernels import paged, splash
from rcsd_jax.plan import chips, expected, lengths, model_flops, packing, programs, windows
from rcsd_jax.plan import work as work_of
from rcsd_jax.plan.expected import Price
from rcsd_jax.plan.lengths import Drawn, Histogram, Lognormal
from rcsd_jax.plan.planned import Queue
from rcsd_jax.plan.work import How, Learning, Prompts, Run, Sampling, Work, queued, rollout, update
from rcsd_jax.sampling import SamplingConfig
from rcsd_jax.sampling.slots import generate_queue, usual_refill
from rcsd_jax.settings import sizes
from tests import eight_devices
from tests.plan.test_plan import SHORT, SMALL, needs_compiler, plan, shape_of
from tests.sampling.test_continuous_batching import CONFIG, heavy_tailed, small
from tests.settings_for_tests import settings_of


def drawn(student, teacher, completion):
    return Drawn(np.array(student), np.array(teacher), np.array(completion))


PROMPTS = Prompts(pad_to=10, student=(75, 100), teacher=(95, 200))
HOW = How(PROMPTS, Sampling(None, 50), Learning(50, microbatches=2))
BATCH = drawn([3, 12, 21, 4], [15, 16, 17, 18], [5, 50, 20, 25])


def learning(**changes):
    return HOW._replace(learning=HOW.learning._replace(**changes))


def test_the_work_of_a_padded_update_by_hand():
    work = update([BATCH], HOW)
    assert work.runs == {
        Run("prefill", 40): 1,  # 10 times a power of two that holds 21
        Run("decode"): 50,  # until the longest ends
        Run("student forward+backward", 40): 2,
        Run("teacher scoring", None, 20): 2,
        Run("update"): 1,
    }
    assert (work.decoded, work.places) == (100, 4 * 50)
    assert work.real == (40 + 100) + (66 + 100) and work.padded == 4 * (40 + 50) + 4 * (20 + 50)


def test_decoding_reads_the_blocks_of_the_cache_that_are_in_use():
    # Prompts of 128 and completions of 1,280: a cache of 11 pages, which are read one by one.
    batch = drawn([100, 120], [1, 1], [30, 10])
    work = rollout([batch], 128, Sampling(None, 1280))
    # 30 steps: the first row has 28 tokens up to place 128, then 2 in the second block; the other 8, then 22.
    assert work.read == (28 + 8) * 128 + (2 + 22) * 256 and work.cache == 60 * 1408
    queue = rollout([batch], 128, Sampling(Queue(slots=2, refill=1, shards=1, group=1), 1280))
    # The other ends after 10 steps; its slot reads one block for the other 20.
    assert queue.read == (28 + 8 + 20) * 128 + (2 + 2) * 256
    assert update([BATCH], HOW._replace(sampling=None)).read == 0


@pytest.mark.parametrize("window", [1, 100, 128, 129, 300])
def test_decoding_with_windows_reads_the_blocks_that_are_seen(window):
    batch, completion = drawn([5, 120, 300], [1, 1, 1], [40, 7, 300]), 1280
    layers = (window, None, window)
    work = rollout([batch], 384, Sampling(Queue(slots=3, refill=1, shards=1, group=1), completion, layers))
    places = [range(p, p + n) for p, n in zip(batch.student, batch.completion, strict=True)]
    assert paged.block(384 + 1280) == 128
    seen = lambda place, near: {k // 128 for k in range(place + 1) if near is None or k > place - near}
    read = sum(128 * len(seen(place, near)) for row in places for place in row for near in layers) / 3
    assert work.read == pytest.approx(read + (work.places - 347) * 128)  # free slots read a block


def test_a_full_cache_is_read_up_to_the_window_of_each_layer():
    read = lambda size: windows.read_of_a_full_cache(shape_of(size), 6144)
    assert read("Qwen/Qwen3-8B") == 6144
    # Blocks of 1,024. Of those 1,024 tokens, 511 see 512 tokens in two blocks, 513 in one; four of 26 layers are global.
    assert read("google/gemma-3-1b-it") == pytest.approx((4 * 6144 + 22 * (1024 + 511)) / 26)


def test_the_longest_prompt_of_the_data_takes_no_more_than_it_needs():
    work = update([BATCH._replace(student=np.array([75, 1, 1, 1]))], HOW)
    assert work.runs[Run("prefill", 80)] == 1 and Run("prefill", 160) not in work.runs


def test_what_a_method_does_without_is_no_work():
    no_teacher = update([BATCH], learning(scores=False))
    assert {run.program for run in no_teacher.runs} == {"prefill", "decode", "student forward+backward", "update"}
    assert (no_teacher.real, no_teacher.padded) == (140, 360)
    references = update([BATCH], HOW._replace(sampling=None))
    assert {run.program for run in references.runs} == {"student forward+backward", "teacher scoring", "update"}
    assert (references.decoded, references.places, references.real) == (0, 0, 306)
    guided = update([BATCH], learning(guided=True))
    assert Run("teacher scoring", 40, 20) in guided.runs and guided.padded == 2 * 360 + 280


def test_the_work_of_a_queue_by_hand():
    # Two slots: 5, then 20 and 25 in the first, 50 in the second; one prompt is prefilled at a time.
    work = rollout([BATCH], 40, Sampling(Queue(slots=2, refill=1, shards=1, group=1), 50))
    assert work.runs == {
        Run("decode"): 50,
        Run("prefill", 16): 3,
        Run("prefill", 32): 1,
    }  # prompts of 3, 12 and 4, and of 21
    assert (work.decoded, work.places) == (100, 2 * 50)
    # Two shards with a slot each: 5 and 20, 50 and 25. Who waits for a prompt has one prefilled for both.
    assert queued([5, 50, 20, 25], Queue(slots=2, refill=2, shards=2, group=1)) == (75, 2)
    # Two completions of each prompt stay together: 5 and 50, 20 and 25.
    assert queued([5, 50, 20, 25], Queue(slots=2, refill=2, shards=2, group=2)) == (55, 1)


def test_the_updates_of_a_rollout_share_its_work():
    other = drawn([4, 4, 4, 4], [60, 16, 17, 18], [5, 5, 5, 5])
    queue = Queue(slots=4, refill=4, shards=1, group=1)
    work = update([BATCH, other], HOW._replace(sampling=Sampling(queue, 50), passes=3))
    # Prompts are as long as the rollout's longest. 50 in one slot, 5 + 20 + 5, 25 + 5 and 5 + 5 in others.
    assert work.runs == {
        Run("prefill", 32): pytest.approx(1 / 6),  # of the first batch, for its prompt of 21
        Run("prefill", 16): pytest.approx(1 / 6),
        Run("decode"): pytest.approx(50 / 6),
        Run("student forward+backward", 40): pytest.approx(2),
        Run("teacher scoring", None, 80): pytest.approx(2),
        Run("update"): pytest.approx(1),
    }
    assert (work.decoded, work.places) == (pytest.approx(120 / 6), pytest.approx(200 / 6))
    assert work.real == pytest.approx((140 + 166 + 36 + 131) / 2)


def test_the_work_of_a_packed_update_by_hand():
    # Two shards. Sequences of 7, 61, 40 and 28 tokens, with the teacher's 19, 65, 36 and 42. The first shard has 1 and 0, the second
    # 2 and 3. The student's rows have 48 or 90 tokens: 61 + 7 and 40 + 28 are one row each. The teacher's have 40 or 70: none holds
    # 65 + 19 or 42 + 36, so there is a second trip, for 19 and 36.
    student, teacher = Run("student forward+backward", rows=2), Run("teacher scoring", rows=2)
    work = update([BATCH], learning(shards=2, row_lengths=2))
    learnt = {run: count for run, count in work.runs.items() if run.row}
    assert learnt == {student._replace(row=90): 1, teacher._replace(row=70): 1, teacher._replace(row=40): 1}
    assert work.padded == 2 * (90 + 70 + 40) and work.real == 7 + 61 + 40 + 28 + 19 + 65 + 36 + 42
    # With two rows of a shard in a trip, 61 and 7, 40 and 28.
    wide = update([BATCH], learning(shards=2, row_lengths=2, microbatches=1))
    assert wide.runs[Run("teacher scoring", row=70, rows=4)] == 1 and wide.padded == 2 * 2 * (90 + 70)
    # With guidance the teacher's rows have 48 or 90 tokens: 65 + 19 and 61 + 7, 42 + 40 and 36 + 28.
    guided = update([BATCH], learning(shards=2, row_lengths=2, guided=True))
    assert guided.runs[teacher._replace(row=90)] == 2 and guided.real == work.real + 7 + 61 + 40 + 28
    no_teacher = update([BATCH], learning(shards=2, row_lengths=2, scores=False))
    assert no_teacher.real == 7 + 61 + 40 + 28 and no_teacher.padded == 2 * 90


def test_the_work_of_an_update_whose_rows_two_devices_share_by_hand():
    # The student's 136 tokens are one row of 144, of up to 184. The teacher's 162 are too many for one of 144: 65 + 19 and 42 + 36.
    work = update([BATCH], learning(shards=1, parts=2, row_lengths=2))
    learnt = {run: count for run, count in work.runs.items() if run.row}
    assert learnt == {
        Run("student forward+backward", row=144, rows=1): 1,
        Run("teacher scoring", row=112, rows=1): 2,
    }
    assert (work.real, work.padded) == (136 + 162, 144 + 2 * 112)


def test_attention_of_packed_rows_is_priced_by_the_blocks_that_it_computes():
    chip, run = chips.CHIPS["v5e"], Run("teacher scoring", row=4096, rows=2)
    half = Work({run: 2.0}, attended={run: 1.0})
    fetched = 0.5 * chip.bf16 / (chip.hbm * 1024)  # of a block of 1,024 that is left out
    seconds = expected._seconds(Price(10.0, 4.0, 0.0, True), run, None, chip, half)
    assert seconds == pytest.approx(10 - 4 * 0.5 * (1 - fetched)) and 0.05 < fetched < 0.2
    # Sequences of 2,048, 1,024 and 1,024 tokens: 3, 1 and 1 of the 10 pairs of blocks. The shard with most of them decides.
    assert work_of._attended([[2048, 1024, 1024], [1024]], 4096, rows=1) == pytest.approx(5 / 10)
    assert (
        work_of._attended([[2048, 1024, 1024], [1024]], 4096, rows=2) == 1.0
    )  # of several rows, the kernel leaves out nothing
    # But it leaves out what is beyond a window, of which one of these two layers has one: 1, 2, 2 and 2 of the 10.
    assert work_of._attended([[4000]] * 2, 4096, rows=2, windows=(1000, None)) == pytest.approx((0.7 + 1) / 2)
    assert work_of._attended([[4096]], 4096, rows=1, windows=(1000, None)) == pytest.approx((0.7 + 1) / 2)


@pytest.mark.parametrize("window", [1, 2, 128, 129, 130, 400])
def test_attention_computes_the_blocks_within_the_window(window):
    row, places = [300, 84, 500, 100], 1024
    ids = np.repeat([1, 2, 3, 4, 0], [*row, places - sum(row)])
    query, key = np.mgrid[:places, :places]
    pairs = (ids[:, None] == ids) & (key <= query) & (key > query - window)
    blocks = pairs.reshape(8, 128, 8, 128).any(axis=(1, 3)) | np.eye(8, dtype=bool)
    assert packing.blocks_computed(row, places, 128, window) == pytest.approx(blocks.sum() / 36)


@pytest.mark.parametrize("shards, rows, parts", [(1, 3, 1), (4, 1, 1), (4, 2, 1), (2, 1, 4)])
def test_a_batch_is_dealt_and_packed_as_the_step_does_it(shards, rows, parts):
    random = np.random.default_rng(shards)
    level = parts > 1
    _, longest = methods_packing.largest_trip(4096, 8 // shards, parts)
    lengths_of = methods_packing.row_lengths(longest, 4, parts)
    for _ in range(3):
        lengths = np.minimum(random.lognormal(6.5, 1, 16).astype(int) + 1, 4096)
        own = packing.deal(lengths, shards)
        if shards > 1:
            assert np.concatenate(own).tolist() == methods_packing.deal(jnp.asarray(lengths), shards).tolist()
        mine = [lengths[part].tolist() for part in own]
        places = methods_packing.place(jnp.asarray(mine), longest, rows, level=level)
        packed = packing.rows_of(mine, longest, rows, level=level)
        trips = packing.trips_of(packed, rows)
        found = [packing.length_of(trip, lengths_of) for trip in trips]
        assert [found.count(length) for length in lengths_of] == methods_packing.trips(
            places, rows, lengths_of
        ).tolist()
        if rows > 1:
            continue
        for number, (trip, length) in enumerate(zip(trips, found, strict=True)):
            placed = methods_packing.rows_of(places, jnp.int32(number), rows, length)
            for ids, row in zip(placed.segment[:, 0], trip, strict=True):
                blocks = np.asarray(splash.blocks_of_segments(ids, 128))
                causal = np.tril(np.ones_like(blocks))
                assert packing.blocks_computed(row, length, 128) == pytest.approx(blocks[causal].mean())


@pytest.mark.parametrize("order", [np.asarray, np.sort, lambda lengths: np.sort(lengths)[::-1]])
def test_twenty_batches_keep_the_slots_of_every_size_busy(order):
    entries = [
        entry for sizes_of in (sizes.LORA, sizes.FULL) for table in sizes_of.values() for entry in table.values()
    ]
    histogram = lengths.within(lengths.read("rar_science"), student=2048, teacher=4096)
    batches = lengths.draw(histogram, questions=20 * 32, group=1, longest=4096, seed=0)
    rollouts = [order(batch.completion) for batch in itertools.islice(batches, 20)]
    shards_of = {entry["mesh"]["data"] * entry["mesh"]["group"] for entry in entries}
    assert len(shards_of) > 2
    for shards in shards_of:
        queue = Queue(32, usual_refill(32, shards), shards, 1)
        steps = sum(queued(completions.tolist(), queue)[0] for completions in rollouts)
        assert sum(completions.sum() for completions in rollouts) / (32 * steps) >= 0.85


@pytest.mark.parametrize("slots, refill, samples", [(6, 2, 1), (5, 3, 3), (72, 24, 3), (1, 1, 1), (8, None, 2)])
def test_steps_and_prefills_are_those_of_the_queue_itself(slots, refill, samples):
    variables, tokens, mask, keys = small()
    limits = heavy_tailed(24 * samples, 14)
    sampling = SamplingConfig(max_new_tokens=14)  # without an end token the limits are the lengths
    settings = dict(slots=slots, refill=refill, samples_per_prompt=samples, pad_id=2)
    queue = jax.jit(lambda *a: generate_queue(Decoder(CONFIG), *a[:4], sampling, limits=a[4], **settings)[1])
    found = queue(variables, tokens, mask, keys[: len(limits)], limits)
    ours = queued(limits, Queue(slots, refill or usual_refill(slots, 1), 1, samples))
    assert ours == (found.steps, found.prefills) and found.live == limits.sum()


SHARDED = """
import json
import jax, numpy as np
from rcsd_jax.models import sharding
from rcsd_jax.plan.planned import Queue
from rcsd_jax.plan.work import queued
from rcsd_jax.sampling import SamplingConfig
from tests.sampling.test_continuous_batching import CONFIG, Decoder, generate_queue, heavy_tailed, small

variables, tokens, mask, keys = small()
limits = heavy_tailed(72, 14)
sampling, found = SamplingConfig(max_new_tokens=14), []
for shards, refill in ((2, 2), (4, 4)):
    mesh = sharding.make_mesh(data=shards, fsdp=1, devices=jax.devices()[:shards])
    with jax.set_mesh(mesh):
        queue = jax.jit(lambda *a: generate_queue(Decoder(CONFIG), *a[:4], sampling, limits=a[4], slots=8, refill=refill,
            samples_per_prompt=3, pad_id=2)[1])
        occupancy = queue(variables, tokens, mask, keys, limits)
    found.append([[int(occupancy.steps), int(occupancy.prefills)], queued(limits, Queue(8, refill, shards, 3))])
print(json.dumps(found))
"""


def test_steps_and_prefills_are_those_of_the_queue_on_a_mesh():
    for theirs, ours in eight_devices.run(SHARDED):
        assert ours == theirs


def written(tmp_path, **changes):
    fields = {"prompts": [[3, 20, 2], [9, 40, 1]], "completions": {"counts": [[5, 1], [60, 3]]}} | changes
    path = tmp_path / "lengths.json"
    path.write_text(json.dumps(fields))
    return str(path)


def test_a_file_is_read_and_drawn_from(tmp_path):
    histogram = lengths.read(written(tmp_path))
    batches = lambda seed: lengths.draw(histogram, questions=500, group=2, longest=50, seed=seed)
    batch = next(batches(0))
    assert set(zip(batch.student.tolist(), batch.teacher.tolist(), strict=True)) == {(3, 20), (9, 40)}  # jointly
    assert (batch.student[::2] == batch.student[1::2]).all()  # a group has one question
    assert set(batch.completion.tolist()) == {5, 50}  # cut
    assert np.mean(batch.student == 3) == pytest.approx(2 / 3, abs=0.07)
    assert np.mean(batch.completion == 5) == pytest.approx(1 / 4, abs=0.05)
    assert all(map(np.array_equal, batch, next(batches(0)))) and not all(map(np.array_equal, batch, next(batches(1))))


def test_rows_beyond_the_limits_are_left_out(tmp_path):
    histogram = lengths.read(written(tmp_path))
    assert lengths.within(histogram, student=8, teacher=40).student.tolist() == [3]
    with pytest.raises(UserError, match="no row has prompts within 2 and 40 tokens.*; raise data.max_student_prompt"):
        lengths.within(histogram, student=2, teacher=40)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"prompts": [[3, 20]]}, "'prompts'.*no table.*; write a list of .tokens of the student's prompt"),
        ({"prompts": []}, "'prompts'"),
        ({"prompts": [[3, 20, 0]]}, "'prompts'"),
        ({"prompts": [[3, 20.5, 1]]}, "'prompts'"),
        ({"completions": {"counts": [[0, 1]]}}, "'counts'"),
        ({"completions": {"lognormal": {"median": 800}}}, "'completions'.*no distribution"),
        ({"completions": {"lognormal": {"median": 0, "sigma": 1}}}, "'completions'"),
        ({"completions": {"lognormal": {"median": "800", "sigma": 1}}}, "'completions'"),
        ({"completions": {"gamma": {"median": 800, "sigma": 1}}}, "'completions'"),
        ({"completions": 800}, "'completions'"),
    ],
)
def test_a_bad_file_is_one_line(tmp_path, changes, words):
    with pytest.raises(UserError, match=words):
        lengths.read(written(tmp_path, **changes))


def test_a_name_that_does_not_ship_and_a_file_that_is_no_json_are_one_line(tmp_path):
    with pytest.raises(UserError, match="'--lengths' = 'rar_sience'.*rar_science"):
        lengths.read("rar_sience")
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(UserError, match="x.json: is not JSON"):
        lengths.read(str(tmp_path / "x.json"))


def test_the_shipped_histogram_gives_the_batches_that_it_stands_for():
    histogram = lengths.read("rar_science")
    assert histogram.rows.sum() == 400
    histogram = lengths.within(histogram, student=2048, teacher=4096)
    assert histogram.rows.sum() == 399
    assert np.average(histogram.student, weights=histogram.rows) == pytest.approx(107.4, abs=0.1)
    assert np.average(histogram.teacher, weights=histogram.rows) == pytest.approx(446.1, abs=0.1)
    batches = list(itertools.islice(lengths.draw(histogram, questions=32, group=1, longest=4096, seed=0), 512))
    completions = np.concatenate([batch.completion for batch in batches])
    assert np.median(completions) == pytest.approx(800, rel=0.02)
    assert completions.mean() == pytest.approx(1065, rel=0.02)
    assert (completions == 4096).mean() == pytest.approx(0.02, abs=0.003)
    how = How(Prompts(128, (1275, 2048), (1616, 4096)), Sampling(None, 4096), Learning(4096, 2))
    works = [update([batch], how) for batch in batches]
    assert sum(w.decoded for w in works) / sum(w.places for w in works) == pytest.approx(0.30, abs=0.01)
    assert sum(w.padded for w in works) / sum(w.real for w in works) == pytest.approx(3.6, abs=0.1)


def test_the_expected_update_by_hand():
    shape, chip = shape_of("Qwen/Qwen3-0.6B"), chips.CHIPS["v5e"]
    longest = SimpleNamespace(student_prompt=78, completion=50)  # a cache of 128 places
    planned = SimpleNamespace(
        decoder=shape, teacher=shape, mesh=SimpleNamespace(size=4), lora_rank=0, lora_targets=(), lengths=longest
    )
    first, second = BATCH, BATCH._replace(student=np.array([3, 2, 1, 4]), completion=np.array([1, 2, 3, 4]))
    works = [update([batch], HOW) for batch in (first, second)]
    seconds = {"prefill": 1, "decode": 0.1, "student forward+backward": 8, "teacher scoring": 3, "update": 2}
    longer = lambda run: 2 if run.student_prompt == 40 else 1
    prices = {
        run: Price(longer(run) * seconds[run.program], 0.0, 1e15 * longer(run), True)
        for run in expected.mean_runs(works)
    }
    histogram = Histogram("mine", "made up", *np.zeros((3, 1)), Lognormal(1, 0))
    both = [first, second]
    e = expected.summary(planned, chip, histogram, both, works, prices)
    one, other = 2 + 50 * 0.1 + 2 * 16 + 2 * 3 + 2, 1 + 4 * 0.1 + 2 * 8 + 2 * 3 + 2
    assert e["seconds"] == pytest.approx((one + other) / 2) == pytest.approx(sum(e["parts"].values()))
    assert e["hundred_steps_chip_hours"] == pytest.approx(100 * 4 * (one + other) / 2 / 3600)
    assert e["decode_steps"] == 27 and e["occupancy"] == (100 + 10) / (4 * 54)
    assert e["padded_over_real"] == (640 + 520) / (306 + 96)
    peak = (32 + 16) * chip.bf16 * 4
    pairs = [*zip(first.student, first.completion, strict=True), *zip(second.student, second.completion, strict=True)]
    real = sum(model_flops.student(shape, 1, int(p), int(n), lora_rank=0) for p, n in pairs)
    assert e["student_mfu"]["real"] == pytest.approx(real / peak)
    assert e["student_mfu"]["padded"] == pytest.approx(6e15 / peak)
    # Decoding is priced with a cache of 128 places, of which each token reads 32.
    reads = [work._replace(read=32 * work.places) for work in works]
    prices[Run("decode")] = Price(0.1, 0.04, 0.0, True)
    e = expected.summary(planned, chip, histogram, both, reads, prices)
    assert e["parts"]["decode"] == pytest.approx((0.1 - 0.75 * 0.04) * 27)
    prices[Run("decode")] = Price(0.1, 0.04, 0.0, False)
    e = expected.summary(planned, chip, histogram, both, works, prices)
    assert e["does_not_fit"] == ["decode"] and e["seconds"] is e["student_mfu"] is e["hundred_steps_chip_hours"] is None


def test_three_lengths_of_a_program_are_compiled_and_the_others_lie_between():
    row = lambda n: Run("teacher scoring", row=n)
    runs = {row(1): 1, row(2): 1, row(3): 1, row(4): 20, row(9): 1, Run("decode"): 5, Run("update"): 1}
    assert expected.to_compile(runs) == {row(1), row(4), row(9), Run("decode"), Run("update")}
    found = {
        row(1): Price(10.0, 0.0, 1e3, True),
        row(4): Price(40.0, 0.0, 4e3, True),
        row(9): Price(140.0, 0.0, 9e3, False),
        Run("decode"): Price(1.0, 0.5, 0.0, True),
        Run("update"): Price(2.0, 0.0, 0.0, True),
    }
    prices = expected.interpolated(found, runs | {row(6): 1})
    assert prices[row(2)] == pytest.approx((20.0, 0.0, 2e3, True))
    assert prices[row(6)] == pytest.approx((80.0, 0.0, 6e3, False))  # the longer one does not fit
    assert {run: prices[run] for run in found} == found
    # Guided scoring depends on two lengths: there is no line between.
    guided = {Run("teacher scoring", student, 64): 1 for student in (1, 2, 3, 4)}
    assert expected.to_compile(guided) == set(guided)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"teacher": {"reason_tokens": 64}}, "'teacher.reason_tokens' = 64"),
        ({"teacher": {"guidance": 0.5, "guidance_by": "criteria"}}, "'teacher.guidance_by' = 'criteria'"),
        ({"sampling": {"source": "teacher"}}, "'sampling.source' = 'teacher'"),
        ({"data": {"max_student_prompt": 8}}, "no row has prompts within 8 and 4096"),
    ],
)
def test_what_a_histogram_says_nothing_of_is_refused(changes, words):
    config, histogram = stage2.get_config("ground_truth"), lengths.read("rar_science")
    expected.check(settings_of(config), histogram)
    config.update(changes)
    with pytest.raises(UserError, match=words):
        expected.check(settings_of(config), histogram)


def test_a_plan_with_slots_decodes_the_slots_and_prefills_as_the_queue_does():
    config = stage2.get_config("qwen3_0.6b")
    config.mesh.fsdp = -1
    whole = programs.plan(settings_of(config), jax.devices()[:1])
    config.sampling.slots, config.sampling.group = 16, 2
    planned = programs.plan(settings_of(config), jax.devices()[:1])
    assert planned.queue == Queue(slots=16, refill=2, shards=1, group=2)
    decode, prefill = planned.programs["decode"], planned.programs["prefill"]
    assert (decode.rows, decode.runs) == (16, 2 * 4096) and (prefill.rows, prefill.runs) == (2, 8)
    assert planned.cache_bytes == whole.cache_bytes / 2


def test_a_rollout_of_several_batches_is_planned_as_two_programs(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(SMALL))
    config = stage2.get_config("ground_truth")
    config.update(
        model=dict(path=str(tmp_path), kernels="xla"),
        data=dict(max_student_prompt=16, max_teacher_prompt=24),
        sampling=dict(max_new_tokens=8),
        train=dict(batch_size=4, batches_per_rollout=3, passes_per_rollout=2, steps=12),
    )
    planned = programs.plan(settings_of(config), jax.devices()[:1])
    assert planned.queue == Queue(slots=4, refill=1, shards=1, group=1) and planned.packed
    runs = {name: (program.runs, program.rows) for name, program in planned.programs.items()}
    assert runs == {
        "rollout": (pytest.approx(1 / 6), 12),
        "learning": (1, 4),
        "prefill": (4 / 2, 1),
        "decode": (8 / 2, 4),
        "teacher scoring": (1, 4),
        "student forward+backward": (1, 4),
        "update": (1, 4),
    }
    drawn = planned.programs["rollout"].lower().out_info[0]
    assert drawn.samples.tokens.shape == (12, 8)
    state = planned.programs["learning"].lower().out_info[0]
    assert jax.tree.structure(state.trained) == jax.tree.structure(
        planned.programs["student forward+backward"].lower().out_info[1]
    )


def test_a_plan_with_drafts_decodes_them_in_a_queue_of_the_whole_batch():
    config = stage2.get_config("qwen3_0.6b")
    config.mesh.fsdp, config.model.kernels = -1, "xla"
    whole = programs.plan(settings_of(config), jax.devices()[:1])
    config.sampling.draft_tokens = 3
    planned = programs.plan(settings_of(config), jax.devices()[:1])
    assert (whole.queue, planned.queue) == (None, Queue(slots=32, refill=4, shards=1, group=1))
    assert planned.cache_bytes == pytest.approx(whole.cache_bytes * (6144 + 3) / 6144)
    tokens, log_probs, count, _ = planned.programs["decode"].lower().out_info
    assert (tokens.shape, log_probs.shape, count.shape) == ((32, 4), (32, 4), (32,))


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("slots, row_lengths, batches", [(0, 0, 1), (4, 1, 2)])
def test_a_small_run_is_planned_with_lengths(tmp_path, slots, row_lengths, batches):
    """The second time only the parts: the whole programs take longest to compile."""
    parts = ("prefill", "decode", "teacher scoring", "student forward+backward", "update")
    (tmp_path / "config.json").write_text(json.dumps(SMALL))
    histogram = written(tmp_path, prompts=[[10, 30, 5], [60, 90, 1]], completions={"counts": [[4, 3], [32, 1]]})
    code, out, err = plan(
        "--config=configs/stage2.py:ground_truth",
        "--topology=v5e:2x2",
        f"--config.model.path={tmp_path}",
        f"--json={tmp_path / 'plan.json'}",
        f"--lengths={histogram}",
        *(f"--config.{setting}" for setting in (*SHORT, "data.pad_to=32")),
        f"--config.sampling.slots={slots}",
        f"--config.train.row_lengths={row_lengths}",
        f"--config.train.batches_per_rollout={batches}",
        *([f"--only={','.join(parts)}"] if batches > 1 else []),
    )
    assert code == 0, err[-3000:]
    data = json.loads((tmp_path / "plan.json").read_text())
    assert data["lengths"]["student_prompt"] == 64 and data["fits"]  # of the worst case
    e, worst = data["expected"], data["step"]
    # A queue prefills prompts of 10 at 16 tokens.
    prefilled = {("prefill", 16 if slots else 32, None), ("prefill", 64, None)}
    sampled = prefilled | {("decode", None, None), ("update", None, None)}
    padded = {
        ("student forward+backward", 32, None), ("student forward+backward", 64, None),
        ("teacher scoring", None, 32), ("teacher scoring", None, 96),
    }  # fmt: skip
    packed = {("student forward+backward", None, None), ("teacher scoring", None, None)}
    programs_run = {(run["program"], run["student_prompt"], run["teacher_prompt"]) for run in e["runs"]}
    assert programs_run == sampled | (packed if row_lengths else padded)
    # Prompts of 32 or 64 tokens and completions of 32 in one length.
    rows = {run["row"] for run in e["runs"] if run["program"] == "student forward+backward"}
    assert rows <= {64, 96} if row_lengths else rows == {None}
    assert set(e["parts"]) == set(worst["parts"]) and e["batches_per_rollout"] == batches
    assert set(data["programs"]) - set(e["parts"]) == ({"train step"} if batches == 1 else set())
    assert ("verdict: fits" if batches == 1 else "verdict: these programs fit") in out and (
        f"of a rollout of {batches} batches" in out
    ) == (batches > 1)
    assert 0 < e["seconds"] < worst["seconds_from_parts"]
    assert e["seconds"] == pytest.approx(sum(e["parts"].values()))
    assert e["seconds_5_95"][0] <= e["seconds"] <= e["seconds_5_95"][1]
    assert 0.3 < e["occupancy"] < 1 and e["padded_over_real"] > 1
    assert 0 < e["student_mfu"]["real"] < e["student_mfu"]["padded"] < 1
    assert f"with the lengths of {histogram}" in out.replace("\n", "") and "of the slots busy" in out
    if slots:
        assert worst["seconds"] == worst["seconds_from_parts"] and worst["completion_tokens"] == 8 * 32
