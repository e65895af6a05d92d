"""Programs read from HLO text and priced: hand-written texts with known answers, and what XLA writes for a scanned MLP."""

import json
import math

import jax
import jax.numpy as jnp
import pytest

from rcsd_jax.plan import chips, hlo, largest, measure
from rcsd_jax.plan.collectives import replica_group
from rcsd_jax.plan.pricing import cost_of
from rcsd_jax.plan.product_flops import _convolution_flops
from rcsd_jax.plan.rates import Rates

RATES = Rates(clock=1e9, hbm=1e11, vmem=2e12, kernel_flops=1e12, collective=lambda kind, group, sent: sent / 1e10)

LOOP = """HloModule jit_f, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%fused_product (p0: bf16[64,32], p1: bf16[32,32]) -> bf16[64,32] {
  %p0 = bf16[64,32]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %p1 = bf16[32,32]{1,0:T(8,128)(2,1)} parameter(1)
  ROOT %conv = bf16[64,32]{1,0:T(8,128)(2,1)} convolution(%p0, %p1), dim_labels=bf_io->bf
}

%bound (p: s32[]) -> pred[] {
  %p = s32[] parameter(0)
  %limit = s32[] constant(INNER)
  ROOT %less = pred[] compare(%p, %limit), direction=LT
}

%inner_condition (s: (s32[], bf16[64,32], bf16[32,32])) -> pred[] {
  %s = (s32[], bf16[64,32], bf16[32,32]) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  ROOT %test = pred[] fusion(%i), kind=kLoop, calls=%bound
}

%inner_body (s: (s32[], bf16[64,32], bf16[32,32])) -> (s32[], bf16[64,32], bf16[32,32]) {
  %s = (s32[]{:T(128)}, bf16[64,32]{1,0:T(8,128)(2,1)S(1)}, /*index=2*/bf16[32,32]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %x = bf16[64,32]{1,0:T(8,128)(2,1)S(1)} get-tuple-element(%s), index=1
  %w = bf16[32,32]{1,0:T(8,128)(2,1)} get-tuple-element(%s), index=2
  %one = s32[] constant(1)
  %next = s32[] add(%i, %one)
  %y = bf16[64,32]{1,0:T(8,128)(2,1)S(1)} fusion(%x, %w), kind=kOutput, calls=%fused_product, frontend_attributes={note={
"a":"line break"
}}, metadata={op_name="jit(f)/dot"}, backend_config={"window_config":{"estimated_cycles":"1000"}}
  ROOT %t = (s32[], bf16[64,32], bf16[32,32]) tuple(%next, %y, %w)
}

%outer_condition (s: (s32[], pred[4], bf16[64,32], bf16[32,32], s32[])) -> pred[] {
  %s = (s32[], pred[4], bf16[64,32], bf16[32,32], s32[]) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %limit = s32[] get-tuple-element(%s), index=4
  %less = pred[] compare(%i, %limit), direction=LT
  %live = pred[4] get-tuple-element(%s), index=1
  %false = pred[] constant(false)
  %any = pred[] reduce(%live, %false), dimensions={0}, to_apply=%add
  ROOT %both = pred[] and(%less, %any)
}

%outer_body (s: (s32[], pred[4], bf16[64,32], bf16[32,32], s32[])) -> (s32[], pred[4], bf16[64,32], bf16[32,32], s32[]) {
  %s = (s32[], pred[4], bf16[64,32], bf16[32,32], s32[]) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %live = pred[4] get-tuple-element(%s), index=1
  %x = bf16[64,32]{1,0:S(1)} get-tuple-element(%s), index=2
  %w = bf16[32,32]{1,0} get-tuple-element(%s), index=3
  %n = s32[] get-tuple-element(%s), index=4
  %zero = u32[] constant(0)
  %start = s32[] bitcast(%zero)
  %state = (s32[], bf16[64,32], bf16[32,32]) tuple(%start, %x, %w)
  %loop = (s32[], bf16[64,32], bf16[32,32]) while(%state), condition=%inner_condition, body=%inner_body, metadata={op_name="inner"}
  %y = bf16[64,32]{1,0:S(1)} get-tuple-element(%loop), index=1
  %one = s32[] constant(1)
  %next = s32[] add(%i, %one)
  ROOT %t = (s32[], pred[4], bf16[64,32], bf16[32,32], s32[]) tuple(%next, %live, %y, %w, %n)
}

ENTRY %main (live: pred[4], x: bf16[64,32], w: bf16[32,32]) -> bf16[64,32] {
  %live = pred[4] parameter(0)
  %x = bf16[64,32]{1,0:S(1)} parameter(1)
  %w = bf16[32,32]{1,0} parameter(2)
  %from = s32[] constant(2)
  %limit = s32[] constant(9)
  %bound_copy = s32[] copy(%limit)
  %state = (s32[], pred[4], bf16[64,32], bf16[32,32], s32[]) tuple(%from, %live, %x, %w, %bound_copy)
  %outer = (s32[], pred[4], bf16[64,32], bf16[32,32], s32[]) while(%state), condition=%outer_condition, body=%outer_body, metadata={op_name="outer"}
  ROOT %y = bf16[64,32]{1,0} get-tuple-element(%outer), index=2
}
"""


def test_loops_multiply_cycles_flops_and_bytes():
    module = hlo.parse(LOOP.replace("INNER", "5"))
    found = cost_of(module, RATES)
    assert {(loop.name, loop.trips, loop.dynamic, loop.known) for loop in found.loops} == {
        ("inner", 5, False, True),
        ("outer", 7, True, True),  # from 2 to 9, or until no row is live
    }
    assert found.flops == 7 * 5 * 2 * 64 * 32 * 32
    assert found.compute == pytest.approx(7 * 5 * 1000 / 1e9)
    # x and y lie in vector memory; w is read from HBM by every run. The rest is counters and the rows' flags.
    assert 7 * 5 * 2 * 32 * 32 <= found.hbm_bytes <= 7 * 5 * (2 * 32 * 32 + 40)
    assert cost_of(module, RATES, dynamic_trips=3).flops == 3 * 5 * 2 * 64 * 32 * 32


def test_a_loop_whose_bound_is_not_in_the_text_is_counted_once_and_named():
    text = LOOP.replace("%limit = s32[] constant(INNER)", "%limit = s32[] rng-get-and-update-state()")
    found = cost_of(hlo.parse(text), RATES)
    assert [(loop.name, loop.trips) for loop in found.loops if not loop.known] == [("inner", 1)]
    assert found.flops == 7 * 2 * 64 * 32 * 32


def test_a_loop_over_more_parts_of_experts_rows_usually_does_not_run():
    text = LOOP.replace("INNER", "5").replace('"outer"', '"jit(f)/more_expert_parts/while"')
    for trips in (None, 3):
        found = cost_of(hlo.parse(text), RATES, dynamic_trips=trips)
        assert found.flops == 0 and [loop.trips for loop in found.loops] == [5, 0]


COLLECTIVES = """HloModule jit_f, is_scheduled=true

%add (a: bf16[], b: bf16[]) -> bf16[] {
  %a = bf16[] parameter(0)
  %b = bf16[] parameter(1)
  ROOT %sum = bf16[] add(%a, %b)
}

%started (p: bf16[256,1024]) -> (bf16[256,1024], bf16[1024,1024]) {
  %p = bf16[256,1024]{1,0} parameter(0)
  %gather = bf16[1024,1024]{1,0} all-gather(%p), channel_id=3, replica_groups=mesh['a'=1,'b'=4] {'b'}, dimensions={0}
  ROOT %go = (bf16[256,1024]{1,0}, bf16[1024,1024]{1,0}) custom-call(%gather), custom_call_target="AsyncCollectiveStart"
}

%async_collective_fusion.1 (p: bf16[256,1024], x: bf16[8,1024], w: bf16[1024,64]) -> bf16[8,64] {
  %p = bf16[256,1024]{1,0} parameter(0)
  %x = bf16[8,1024]{1,0} parameter(1)
  %w = bf16[1024,64]{1,0} parameter(2)
  %gather.1 = bf16[1024,1024]{1,0} all-gather(%p), channel_id=3, replica_groups=mesh['a'=1,'b'=4] {'b'}, dimensions={0}
  ROOT %y = bf16[8,64]{1,0} dot(%x, %w), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%finished (p: bf16[256,1024]) -> bf16[1024,1024] {
  %p = bf16[256,1024]{1,0} parameter(0)
  %gather.2 = bf16[1024,1024]{1,0} all-gather(%p), channel_id=3, replica_groups=mesh['a'=1,'b'=4] {'b'}, dimensions={0}
  ROOT %end = bf16[1024,1024]{1,0} custom-call(%gather.2), custom_call_target="AsyncCollectiveDone"
}

%scattered (p: bf16[1024,64]) -> bf16[256,64] {
  %p = bf16[1024,64]{1,0} parameter(0)
  %all = bf16[1024,64]{1,0} all-reduce(%p), channel_id=7, replica_groups={{0,1,2,3}}, to_apply=%add
  %zero = s32[] constant(0)
  ROOT %mine = bf16[256,64]{1,0} dynamic-slice(%all, %zero, %zero), dynamic_slice_sizes={256,64}
}

ENTRY %main (shard: bf16[256,1024], x: bf16[8,1024], w: bf16[1024,64], g: bf16[1024,64]) -> bf16[1024,64] {
  %shard = bf16[256,1024]{1,0:S(1)} parameter(0)
  %x = bf16[8,1024]{1,0:S(1)} parameter(1)
  %w = bf16[1024,64]{1,0:S(1)} parameter(2)
  %g = bf16[1024,64]{1,0:S(1)} parameter(3)
  %start = (bf16[256,1024]{1,0:S(1)}, bf16[1024,1024]{1,0:S(1)}) fusion(%shard), kind=kCustom, calls=%started
  %y = bf16[8,64]{1,0:S(1)} fusion(%shard, %x, %w), kind=kOutput, calls=%async_collective_fusion.1, backend_config={"estimated_cycles":"CYCLES"}
  %whole = bf16[1024,1024]{1,0:S(1)} fusion(%start), kind=kCustom, calls=%finished
  %scatter = bf16[256,64]{1,0:S(1)} fusion(%g), kind=kCustom, calls=%scattered
  %plain = bf16[1024,64]{1,0:S(1)} all-reduce(%g), replica_groups=[2,4]<=[8], to_apply=%add
  %sent-start = (bf16[1024,64]{1,0:S(1)}, bf16[1024,64]{1,0:S(1)}) collective-permute-start(%plain), source_target_pairs={{0,1},{1,2},{2,3},{3,0}}
  %sent-done = bf16[1024,64]{1,0:S(1)} collective-permute-done(%sent-start)
  ROOT %swap = bf16[1024,64]{1,0:S(1)} all-to-all(%sent-done), replica_groups={{0,1},{2,3}}, dimensions={0}
}
"""


def test_collectives_are_counted_once_with_the_bytes_that_a_chip_sends():
    found = cost_of(hlo.parse(COLLECTIVES.replace("CYCLES", "10")), RATES)
    sent = {kind: (t.runs, t.bytes) for kind, t in found.collectives.items()}
    size = 1024 * 64 * 2
    assert sent == {
        "all-gather": (1, 1024 * 1024 * 2 * 3 / 4),
        "reduce-scatter": (1, size * 3 / 4),
        "all-reduce": (1, 2 * size * 3 / 4),
        "collective-permute": (1, size),
        "all-to-all": (1, size / 2),
    }
    assert found.flops == 2 * 8 * 1024 * 64


def test_what_work_hides_of_a_collective_costs_nothing():
    wire = 1024 * 1024 * 2 * 3 / 4 / 1e10
    rest = sum(1024 * 64 * 2 * share / 1e10 for share in (3 / 4, 6 / 4, 1, 1 / 2))
    for cycles in (10, 100_000, 1_000_000):  # 10 ns, 100 us and 1 ms beside a gather of 157 us
        found = cost_of(hlo.parse(COLLECTIVES.replace("CYCLES", str(cycles))), RATES)
        assert found.collective == pytest.approx(max(wire - cycles / 1e9, 0) + rest, rel=1e-3)
        assert found.seconds == pytest.approx(found.compute + found.collective, rel=1e-2)


COPIES = """HloModule jit_f, is_scheduled=true

ENTRY %main (w: bf16[1000,1000]) -> bf16[1000,1000] {
  %w = bf16[1000,1000]{1,0} parameter(0)
  %s = (bf16[1000,1000]{1,0:S(1)}, bf16[1000,1000]{1,0}, u32[]{:S(2)}) copy-start(%w)
  %x = bf16[8,8]{1,0:S(1)} rng(), backend_config={"estimated_cycles":"CYCLES"}
  ROOT %v = bf16[1000,1000]{1,0:S(1)} copy-done(%s)
}
"""


@pytest.mark.parametrize("cycles, waited", [(0, 20e-6), (5000, 15e-6), (50000, 0.0)])
def test_a_copy_that_runs_ahead_is_waited_for_only_as_long_as_it_takes(cycles, waited):
    found = cost_of(hlo.parse(COPIES.replace("CYCLES", str(cycles))), RATES)
    assert found.hbm_wait == pytest.approx(waited, abs=1e-9)  # 2 MB at 1e11 bytes/s
    assert found.hbm_bytes == 2e6  # read once; what it fills is vector memory


def test_the_largest_number_is_no_estimate():
    found = cost_of(hlo.parse(COPIES.replace("CYCLES", str(2**63 - 1))), RATES)
    assert found.compute == 0 and found.seconds < 1


SPARSECORE = """HloModule jit_f, is_scheduled=true

%gathered (p: bf16[256,1024], t: token[]) -> bf16[1024,1024] {
  %t = token[] parameter(1)
  %p = bf16[256,1024]{1,0} parameter(0)
  ROOT %gather = bf16[1024,1024]{1,0} all-gather(%p), channel_id=3, replica_groups=mesh['a'=1,'b'=4] {'b'}, dimensions={0}
}, execution_thread="sparsecore"

%moved (p: bf16[1000,1000]) -> bf16[1000,1000] {
  %p = bf16[1000,1000]{1,0} parameter(0)
  ROOT %turned = bf16[1000,1000]{0,1} copy(%p)
}, execution_thread="sparsecore"

%outer (p: bf16[1000,1000], t: token[]) -> bf16[1000,1000] {
  %p = bf16[1000,1000]{1,0} parameter(0)
  %t = token[] parameter(1)
  %start = ((bf16[1000,1000]{1,0}), bf16[1000,1000]{0,1}, u32[]{:S(8)}) call-start(%p), async_execution_thread="sparsecore", to_apply=%moved
  ROOT %done = bf16[1000,1000]{0,1} call-done(%start)
}, execution_thread="sparsecore"

ENTRY %main (shard: bf16[256,1024], w: bf16[1000,1000]) -> bf16[1024,1024] {
  %shard = bf16[256,1024]{1,0} parameter(0)
  %w = bf16[1000,1000]{1,0} parameter(1)
  %id = s32[]{:S(2)} custom-call(), custom_call_target="PrepareAsyncCallStart"
  %ready = token[] custom-call(%id), custom_call_target="PrepareAsyncCallDone"
  %call-start = ((bf16[256,1024]{1,0}, token[]), bf16[1024,1024]{1,0}) call-start(%shard, %ready), async_execution_thread="sparsecore", to_apply=%gathered
  %copy-of-w = ((bf16[1000,1000]{1,0}, token[]), bf16[1000,1000]{0,1}) call-start(%w, %ready), async_execution_thread="sparsecore", to_apply=%outer
  %x = bf16[8,8]{1,0:S(1)} rng(), backend_config={"estimated_cycles":"CYCLES"}
  %v = bf16[1000,1000]{0,1} call-done(%copy-of-w)
  ROOT %whole = bf16[1024,1024]{1,0} call-done(%call-start)
}
"""


@pytest.mark.parametrize("cycles", [0, 30_000, 100_000, 1_000_000])
def test_what_a_sparsecore_does_costs_only_what_the_device_waits_for(cycles):
    found = cost_of(hlo.parse(SPARSECORE.replace("CYCLES", str(cycles))), RATES)
    wire = 1024 * 1024 * 2 * 3 / 4
    assert {kind: (t.runs, t.bytes) for kind, t in found.collectives.items()} == {"all-gather": (1, wire)}
    copied, work = 4e6 / 1e11, cycles / 1e9  # 2 MB are read and written
    assert found.hbm_wait == pytest.approx(max(copied - work, 0), abs=1e-8)
    assert found.collective == pytest.approx(max(wire / 1e10 - max(work, copied), 0), abs=1e-8)
    assert found.hbm_bytes == 4e6 and found.kernel < 1e-9


def test_a_windowed_product_is_named():
    text = LOOP.replace("INNER", "5").replace(
        "  ROOT %t = (s32[], bf16[64,32], bf16[32,32]) tuple(%next, %y, %w)",
        "  %sent = bf16[32,32]{1,0} collective-permute(%w), source_target_pairs={{0,1},{1,0}}\n"
        "  ROOT %t = (s32[], bf16[64,32], bf16[32,32]) tuple(%next, %y, %sent)",
    )
    found = cost_of(hlo.parse(text), RATES)
    assert found.windowed == ["inner"] and found.collectives["collective-permute"].runs == 35
    assert cost_of(hlo.parse(LOOP.replace("INNER", "5")), RATES).windowed == []


KERNEL = """HloModule jit_f

ENTRY %main (q: bf16[2,8,1024,128], k: bf16[2,8,1024,128]) -> bf16[2,8,1024,128] {
  %q = bf16[2,8,1024,128]{3,2,1,0} parameter(0)
  %k = bf16[2,8,1024,128]{3,2,1,0} parameter(1)
  ROOT %splash_mha_NAME.1 = OUT custom-call(%q, %k, %k), custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
"xprof_metadata":"BLOCKS"
}}, backend_config={EXTRA}
}
"""


@pytest.mark.parametrize(
    "name, outputs, products, blocks, computed",
    [
        # Of 2 x 2 blocks, the one above the diagonal is left out.
        ("fwd_residuals", 1, 2, {"block_q": 512, "block_kv": 512, "block_kv_dkv": 1024}, 3 / 4),
        ("dq_no_residuals", 1, 3, {"block_q_dq": 512, "block_kv_dq": 512}, 3 / 4),
        ("dkv_no_residuals", 2, 4, {"block_q_dkv": 512, "block_kv_dkv": 512}, 3 / 4),
        # The fused backward pass writes dq, dk and dv. Half of a block of keys is after half of the queries.
        ("dkv_no_residuals", 3, 5, {"block_q_dkv": 256, "block_kv_dkv": 512, "block_kv_dkv_compute": 256}, 3 / 4),
        ("dkv_no_residuals", 3, 5, {"block_q_dkv": 256, "block_kv_dkv": 1024, "block_kv_dkv_compute": 256}, 1),
        ("dkv_no_residuals", 3, 5, {"block_q_dkv": 256, "block_kv_dkv": 256}, 5 / 8),
        ("fwd_residuals", 1, 2, {}, 1),
    ],
)
def test_attention_kernels_have_the_flops_of_what_they_compute(name, outputs, products, blocks, computed):
    array = "bf16[2,8,1024,128]{3,2,1,0}"
    out = array if outputs == 1 else "(" + ", ".join([array] * outputs) + ")"
    blocks = json.dumps(json.dumps(blocks))[1:-1]
    text = KERNEL.replace("NAME", name).replace("OUT", out).replace("EXTRA", "").replace("BLOCKS", blocks)
    found = cost_of(hlo.parse(text), RATES)
    (kernel,) = found.kernels.values()
    assert kernel.flops == products * 2 * 2 * 8 * 1024 * 1024 * 128 * computed
    assert kernel.seconds == pytest.approx(kernel.flops / RATES.kernel_flops) and found.kernel == kernel.seconds


PAGED = """HloModule jit_f

ENTRY %main (n: s32[16], t: s32[768], q: f32[16,4,1,128], k: bf16[1,27648,128,128]) -> f32[16,4,1,128] {
  %n = s32[16]{0} parameter(0)
  %t = s32[768]{0} parameter(1)
  %q = f32[16,4,1,128]{3,2,1,0} parameter(2)
  %k = bf16[1,27648,128,128]{3,2,1,0} parameter(3)
  %v = bf16[1,27648,128,128]{3,2,1,0} parameter(4)
  ROOT %paged_attention.1 = f32[16,4,1,128]{3,2,1,0} custom-call(%n, %t, %q, %k, %v), custom_call_target="tpu_custom_call"
}
"""


@pytest.mark.parametrize("dtype, itemsize", [("bf16", 2), ("s8", 1)])
def test_paged_attention_reads_the_pages_of_its_table_and_not_the_pool(dtype, itemsize):
    spent = cost_of(hlo.parse(PAGED.replace("bf16[1,27648", f"{dtype}[1,27648")), RATES)
    assert spent.hbm_bytes == 2 * 768 * 128 * 128 * itemsize
    assert spent.kernel == pytest.approx(spent.hbm_bytes / RATES.hbm)


WRITE = """HloModule jit_f

ENTRY %main (l: s32[1], i: s32[64], n: bf16[1,64,1,128], p: bf16[1,64,64,6144,128]) -> bf16[1,64,64,6144,128] {
  %l = s32[1]{0} parameter(0)
  %i = s32[64]{0} parameter(1)
  %n = bf16[1,64,1,128]{3,2,1,0} parameter(2)
  %p = bf16[1,64,64,6144,128]{4,3,2,1,0} parameter(3)
  ROOT %write_places.1 = bf16[1,64,64,6144,128]{4,3,2,1,0} custom-call(%l, %i, %n, %p), custom_call_target="tpu_custom_call", output_to_operand_aliasing={{}: (3, {})}, backend_config={"custom_call_config":{"cost_estimate":{"flops":"0","bytes_accessed":"524288"}}}
}
"""


@pytest.mark.parametrize("kernel", ["write_places", "attend_few_queries"])
def test_kernels_of_single_places_do_not_pay_for_the_pool(kernel):
    spent = cost_of(hlo.parse(WRITE.replace("write_places", kernel)), RATES)
    assert spent.hbm_bytes == 524288 and spent.kernel == pytest.approx(524288 / RATES.hbm)


def test_a_kernels_own_estimate_comes_first():
    extra = '"custom_call_config":{"cost_estimate":{"flops":"4096","bytes_accessed":"7"}}'
    text = KERNEL.replace("NAME", "fwd").replace("OUT", "bf16[2,8,1024,128]{3,2,1,0}").replace("EXTRA", extra)
    (kernel,) = cost_of(hlo.parse(text), RATES).kernels.values()
    assert kernel.flops == 4096


@pytest.mark.parametrize(
    "attributes, group",
    [
        ("replica_groups={{0,2},{1,3}}", (0, 2)),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", (0, 4)),
        ("replica_groups=[2,4]<=[8]", (0, 1, 2, 3)),
        ("replica_groups=mesh['a'=2,'b'=3,'c'=2] {'a','c'}", (0, 1, 6, 7)),
        ("source_target_pairs={{0,0},{1,5},{5,1}}", (1, 5)),
        ("replica_groups={}", ()),
    ],
)
def test_replica_groups_in_all_their_spellings(attributes, group):
    line = f"ENTRY %m (x: f32[2]) -> f32[2] {{\n  %x = f32[2] parameter(0)\n  ROOT %r = f32[2] all-reduce(%x), {attributes}\n}}\n"
    assert set(replica_group(hlo.parse(line).entry.root)) == set(group)


# --- real text: XLA on this machine -----------------------------------------------------------------------------------


def flops_of(function, *arguments):
    return cost_of(hlo.parse(jax.jit(function).lower(*arguments).compile().as_text()), RATES)


def scanned_mlp(weights, x):
    def layer(x, w):
        return jnp.tanh(x @ w["in"]) @ w["out"], None

    return jax.lax.scan(layer, x, weights)[0]


def test_flops_of_a_scanned_mlp_and_its_gradient():
    layers, width, hidden, rows = 6, 64, 256, 128
    weights = {"in": jnp.ones((layers, width, hidden)), "out": jnp.ones((layers, hidden, width))}
    x = jnp.ones((rows, width))
    forward = layers * 2 * (2 * rows * width * hidden)
    assert flops_of(scanned_mlp, weights, x).flops == forward
    gradient = flops_of(jax.grad(lambda w, x: scanned_mlp(w, x).sum(), (0, 1)), weights, x)
    # The last layer's output is summed, so its activations' gradient is still a product: three of each product in all.
    assert gradient.flops == 3 * forward
    assert {loop.trips for loop in gradient.loops} == {layers} and all(loop.known for loop in gradient.loops)


def test_flops_of_batched_products_and_nested_loops():
    def f(q, k):
        def outer(c, _):
            return jax.lax.fori_loop(0, 3, lambda i, c: c + jnp.einsum("bthd,bshd->bhts", q, k).sum(), c), None

        return jax.lax.scan(outer, 0.0, None, length=4)[0]

    q, k = jnp.ones((2, 40, 3, 16)), jnp.ones((2, 24, 3, 16))
    text = jax.jit(f).lower(q, k).compile().as_text()
    module = hlo.parse(text)
    found = cost_of(module, RATES)
    once = 2 * 2 * 3 * 40 * 24 * 16
    assert found.flops in (once, 12 * once)  # XLA may hoist what does not change


def test_a_loop_that_may_end_early_is_counted_to_its_bound_or_as_told():
    def f(x, w):
        def body(carry):
            t, x = carry
            return t + 1, x @ w

        return jax.lax.while_loop(lambda c: (c[0] < 11) & (c[1] > -1).any(), body, (0, x))[1]

    module = hlo.parse(jax.jit(f).lower(jnp.ones((8, 32)), jnp.ones((32, 32))).compile().as_text())
    assert cost_of(module, RATES).flops == 11 * 2 * 8 * 32 * 32
    assert cost_of(module, RATES, dynamic_trips=4).flops == 4 * 2 * 8 * 32 * 32


# --- around it --------------------------------------------------------------------------------------------------------


def test_convolutions_count_products_of_real_elements_only():
    # A product of batches as the TPU compiler writes it: batches are space, and most of the window is padding.
    left, right, out = hlo.Shape("bf16", (4, 8, 16)), hlo.Shape("bf16", (4, 16, 32)), hlo.Shape("bf16", (4, 8, 32))
    attributes = ", window={size=4 stride=3 lhs_dilate=4}, dim_labels=0bf_0io->0bf"
    assert _convolution_flops(left, right, out, attributes) == 2 * 4 * 8 * 16 * 32
    # A plain one of width 3 with padding: 10 places of which the first and last miss one element.
    left, right, out = hlo.Shape("f32", (1, 10, 2)), hlo.Shape("f32", (3, 2, 5)), hlo.Shape("f32", (1, 10, 5))
    attributes = ", window={size=3 pad=1_1}, dim_labels=b0f_0io->b0f"
    assert _convolution_flops(left, right, out, attributes) == 2 * 2 * 5 * (3 * 10 - 2)


class Device:
    def __init__(self, *coords):
        self.coords = coords


def test_collectives_use_the_links_that_their_group_spans():
    chip = chips.CHIPS["v5e"]
    square = chips.Interconnect(chip, [Device(x, y, 0) for x in range(4) for y in range(4)])
    one_axis, both = square.seconds("all-gather", range(4), 1e9), square.seconds("all-gather", (), 1e9)
    assert one_axis == pytest.approx(1e9 / chip.link, rel=1e-3)  # a line: its ends have one link
    assert both == pytest.approx(one_axis / 2, rel=1e-3)
    ring = chips.Interconnect(chip, [Device(x, 0, 0) for x in range(16)])
    assert ring.seconds("all-gather", (), 1e9) == pytest.approx(1e9 / chip.link / 2, rel=1e-3)
    assert square.seconds("all-reduce", (), 0.0) == pytest.approx(6e-6)  # latency alone: 3 hops on each axis


def test_the_compilers_refusals_name_what_is_needed():
    said = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.50G of 15.75G hbm."
    assert measure.needed_bytes(said) == 20.5 * 2**30
    said = "Ran out of memory on HBM, the total memory required for HLO temporaries (1.00T) exceeds available HBM (15.75G)."
    assert measure.needed_bytes(said) == 2**40
    assert measure.needed_bytes("something else") is None


@pytest.mark.parametrize(
    "capacity, start, expected",
    [(100.0, 8, 96), (10.5, 8, 8), (9.0, 64, 4), (3.0, 64, None), (1e6, 8, 128), (29.5, 16, 24), (503.0, 64, 500)],
)
@pytest.mark.parametrize("told", [True, False])
def test_the_search_finds_the_largest_that_fits(capacity, start, expected, told):
    tried = []

    def needed(value):
        tried.append(value)
        amount = 2 + value + 0.3 * (value % 8 == 0)
        return amount if told or amount <= capacity else math.inf

    found = largest.largest(needed, start, needed(start), capacity, unit=4)
    assert len(tried) == len(set(tried)) <= largest.TRIES and all(v % 4 == 0 for v in tried)
    if told:
        assert found == expected
    else:  # of what does not fit, nobody says how much more it needs
        assert (found is None) == (expected is None) or start > 8 * expected
        assert found is None or expected / 1.5 <= found <= expected


@pytest.mark.parametrize(
    "needed, capacity, start, unit, least, most",
    [
        (lambda v: max(90 + v / 40, 60 + v / 2), 100.0, 8, 4, 60, 80),  # flat, then steep
        (lambda v: max(13 + v / 40000, 10 + v / 1500), 15.75, 2048, 128, 6400, 8576),
        (lambda v: min(2 + v, 90 + v / 100), 80.0, 256, 4, 56, 78),  # steep, then flat
    ],
)
def test_memory_that_is_no_line_is_searched_all_the_same(needed, capacity, start, unit, least, most):
    assert least <= largest.largest(needed, start, needed(start), capacity, unit=unit) <= most


def test_the_search_stops_at_the_models_positions():
    assert largest.largest(lambda v: 1.0 * v, 1024, 1024.0, 1e9, unit=128, limit=5000) == 5000


def test_what_the_compiler_takes_and_the_chip_has_not_does_not_fit():
    assert largest.largest(lambda v: 10.0 * v, 8, 80.0, 75.0, unit=1) == 7
