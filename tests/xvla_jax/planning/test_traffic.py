"""HBM bytes and rooflines of programs small enough to count by hand."""

from __future__ import annotations

import pytest

from tests.xvla_jax.planning import overlapped
from xvla_jax.errors import ProgramError
from xvla_jax.planning import hlo
from xvla_jax.planning.chips import CHIPS, Slice
from xvla_jax.planning.flops import products
from xvla_jax.planning.traffic import by_stage, estimate, host_ram, pieces

# As TPU text has it: a loop without a trip count, a stacked weight of which a run reads one layer,
# a buffer on the chip, a matrix product as a convolution, a result written in place.
_TEXT = """
%pick (p0: bf16[6,8,8], p1: s32[], p2: bf16[4,8]) -> bf16[4,8] {
  %p0 = bf16[6,8,8]{2,1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  %layer = bf16[1,8,8]{2,1,0} dynamic-slice(%p0, %p1, %zero, %zero), dynamic_slice_sizes={1,8,8}
  %w = bf16[8,8]{1,0} bitcast(%layer)
  %p2 = bf16[4,8]{1,0:S(1)} parameter(2)
  ROOT %y = bf16[4,8]{1,0} convolution(%p2, %w), dim_labels=bf_io->bf, metadata={op_name="a/rematted_computation/dot"}
}

%store (q0: bf16[6,4,8], q1: bf16[4,8], q2: s32[]) -> bf16[6,4,8] {
  %q0 = bf16[6,4,8]{2,1,0} parameter(0)
  %q1 = bf16[4,8]{1,0} parameter(1)
  %row = bf16[1,4,8]{2,1,0} bitcast(%q1)
  %q2 = s32[] parameter(2)
  %none = s32[] constant(0)
  ROOT %u = bf16[6,4,8]{2,1,0} dynamic-update-slice(%q0, %row, %q2, %none, %none)
}

%body (s: (s32[], bf16[6,8,8], bf16[6,4,8], bf16[4,8])) -> (s32[], bf16[6,8,8], bf16[6,4,8], bf16[4,8]) {
  %s = (s32[], bf16[6,8,8]{2,1,0}, bf16[6,4,8]{2,1,0}, bf16[4,8]{1,0:S(1)}) parameter(0)
  %i = s32[]{:S(1)} get-tuple-element(%s), index=0
  %ws = bf16[6,8,8]{2,1,0} get-tuple-element(%s), index=1
  %ys = bf16[6,4,8]{2,1,0} get-tuple-element(%s), index=2
  %x = bf16[4,8]{1,0:S(1)} get-tuple-element(%s), index=3
  %z = bf16[4,8]{1,0} fusion(%ws, %i, %x), kind=kOutput, calls=%pick, metadata={op_name="a"}
  %kept = bf16[6,4,8]{2,1,0} fusion(%ys, %z, %i), kind=kLoop, calls=%store, metadata={op_name="b"}
  ROOT %t = (s32[], bf16[6,8,8]{2,1,0}, bf16[6,4,8]{2,1,0}, bf16[4,8]{1,0:S(1)}) tuple(%i, %ws, %kept, %x)
}

%condition (c: (s32[], bf16[6,8,8], bf16[6,4,8], bf16[4,8])) -> pred[] {
  %six = s32[] constant(6)
  %c = (s32[], bf16[6,8,8]{2,1,0}, bf16[6,4,8]{2,1,0}, bf16[4,8]{1,0:S(1)}) parameter(0)
  %n = s32[] get-tuple-element(%c), index=0
  ROOT %less = pred[] compare(%n, %six), direction=LT
}

ENTRY %main (a: (s32[], bf16[6,8,8], bf16[6,4,8], bf16[4,8])) -> (s32[], bf16[6,8,8], bf16[6,4,8], bf16[4,8]) {
  %a = (s32[], bf16[6,8,8]{2,1,0}, bf16[6,4,8]{2,1,0}, bf16[4,8]{1,0:S(1)}) parameter(0)
  ROOT %loop = (s32[], bf16[6,8,8]{2,1,0}, bf16[6,4,8]{2,1,0}, bf16[4,8]{1,0:S(1)}) while(%a), condition=%condition, body=%body
}
"""  # noqa: E501


def test_a_loop_that_reads_a_layer_a_run() -> None:
    product, store = pieces(hlo.parse(_TEXT))
    assert product.op_name == "a"
    assert product.flops == product.recomputed == 6 * 2 * 4 * 8 * 8
    # a layer in and the result out; x is on the chip
    assert product.bytes == 6 * (2 * 8 * 8 + 2 * 4 * 8)
    # the result in, the row in place of the old one: read and written
    assert store.bytes == 6 * (2 * 4 * 8 + 2 * 2 * 4 * 8)
    assert store.flops == 0


# As TPU text has the two kernels of attention, without their code: 2 windows of 4 tokens and 8
# numbers, the forward one run again, a mask of one byte a score.
_KERNEL = """
ENTRY %main (q: bf16[2,4,8], m: s8[2,1,4,4]) -> bf16[2,4,8] {
  %q = bf16[2,4,8]{2,1,0:T(8,128)(2,1)} parameter(0)
  %m = s8[2,1,4,4]{3,2,1,0} parameter(1)
  %again = bf16[2,4,8]{2,1,0} custom-call(%q, %q, %q, %m), custom_call_target="tpu_custom_call", metadata={op_name="a/rematted_computation/forward_attention/pallas_call"}, backend_config={"custom_call_config":{"body":"TUz/==","cost_estimate":{"flops":"1024","transcendentals":"32","bytes_accessed":"544"}}}
  %other = bf16[2,4,8]{2,1,0} custom-call(%again), custom_call_target="AllocateBuffer"
  %back = (bf16[2,4,8]{2,1,0}, bf16[2,4,8]{2,1,0}, bf16[2,4,8]{2,1,0:T(8,128)(2,1)S(1)}) custom-call(%q, %again, %q, %q, %m), custom_call_target="tpu_custom_call", metadata={op_name="transpose(b)/backward_attention/pallas_call"}, backend_config={"custom_call_config":{"cost_estimate":{"flops":"2560","transcendentals":"32"}}}
  ROOT %dq = bf16[2,4,8]{2,1,0} get-tuple-element(%back), index=0
}
"""  # noqa: E501


def test_a_kernel_states_its_products_and_moves_operands_and_results() -> None:
    again, other, back = pieces(hlo.parse(_KERNEL))
    array, mask = 2 * 2 * 4 * 8, 2 * 4 * 4
    assert (again.kind, again.flops, again.recomputed) == ("product", 1024, 1024)
    assert again.bytes == 2 * array + mask  # each part of q once
    assert (other.kind, other.flops) == ("elementwise", 0)
    # scores made again are one of five products; one of the results stays on the chip
    assert (back.kind, back.flops, back.recomputed) == ("product", 2560, 512)
    assert back.bytes == 4 * array + mask


def test_a_gather_beside_work_moves_its_buffers_once() -> None:
    measured = {piece.op_name: piece.bytes for piece in pieces(hlo.parse(overlapped.TEXT))}
    # the shard in and all of it out; the work's own vector in and out; nothing where it ends
    assert {name: measured.get(name, 0) for name in ("start", "meanwhile", "done")} == {
        "start": 64 + 256,
        "meanwhile": 2 * 64,
        "done": 0,
    }


def test_a_slice_fetched_onto_the_chip_is_read_alone() -> None:
    measured = {piece.op_name: piece.bytes for piece in pieces(hlo.parse(overlapped.TEXT))}
    assert measured["slice"] == 64


def test_the_roofline_by_hand() -> None:
    target = Slice("v5e:1x2", CHIPS["v5e"], (1, 2), (0, 1))
    measured = estimate(hlo.parse(_TEXT), target)
    assert measured.model_flops == 0
    assert measured.hbm_bytes == 6 * (192 + 192)
    # so small a product waits for memory
    assert measured.core_seconds == pytest.approx(6 * 384 / 819e9)
    assert measured.fastest == measured.slowest == measured.core_seconds
    assert measured.limited_by == "HBM bandwidth"


# A product whose result a scan also writes to its row of a stack, in one fusion; the stack is not
# filled before.
_KEEP = """
%keep (k0: bf16[6,4,8], k1: bf16[4,8], k2: bf16[8,8], k3: s32[]) -> (bf16[6,4,8], bf16[4,8]) {
  %k0 = bf16[6,4,8]{2,1,0} parameter(0)
  %k1 = bf16[4,8]{1,0} parameter(1)
  %k2 = bf16[8,8]{1,0} parameter(2)
  %y = bf16[4,8]{1,0} convolution(%k1, %k2), dim_labels=bf_io->bf
  %row = bf16[1,4,8]{2,1,0} bitcast(%y)
  %k3 = s32[] parameter(3)
  %none = s32[] constant(0)
  %u = bf16[6,4,8]{2,1,0} dynamic-update-slice(%k0, %row, %k3, %none, %none)
  %v = bf16[6,4,8]{2,1,0} bitcast(%u)
  ROOT %t = (bf16[6,4,8]{2,1,0}, bf16[4,8]{1,0}) tuple(%v, %y)
}

ENTRY %main (a: bf16[6,4,8], b: bf16[4,8], c: bf16[8,8], d: s32[]) -> (bf16[6,4,8], bf16[4,8]) {
  %a = bf16[6,4,8]{2,1,0} custom-call(), custom_call_target="AllocateBuffer"
  %b = bf16[4,8]{1,0} parameter(1)
  %c = bf16[8,8]{1,0} parameter(2)
  %d = s32[] parameter(3)
  ROOT %f = (bf16[6,4,8]{2,1,0}, bf16[4,8]{1,0}) fusion(%a, %b, %c, %d), kind=kOutput, calls=%keep
}
"""


def test_of_a_stack_updated_beside_another_result_one_row_moves() -> None:
    [piece] = pieces(hlo.parse(_KEEP))
    # both operands in, the product out, the row in place of the old one: read and written
    assert piece.bytes == 2 * (4 * 8 + 8 * 8) + 2 * 4 * 8 + 2 * 2 * 4 * 8
    assert (piece.kind, piece.flops) == ("product", 2 * 4 * 8 * 8)


def test_work_is_listed_by_stage_pass_and_kind() -> None:
    names = {
        '"a/rematted_computation/dot"': '"jvp(XVLA)/transformer/dot"',
        '"a"}': '"transpose(jvp(XVLA))/transformer/rematted_computation/dot"}',
        '"b"}': '"jvp(XVLA)/vlm/vision_tower/dynamic_update_slice"}',
    }
    text = _TEXT
    for old, new in names.items():
        text = text.replace(old, new)
    target = Slice("v5e:1x2", CHIPS["v5e"], (1, 2), (0, 1))
    module = hlo.parse(text)
    stored, product = by_stage(module, target)
    assert (stored.stage, stored.of_pass, stored.kind) == (
        "vision tower",
        "forward",
        "slice update",
    )
    assert (product.stage, product.of_pass, product.kind) == ("head", "forward again", "product")
    total = estimate(module, target)
    assert stored.bytes + product.bytes == total.hbm_bytes
    assert product.flops == total.flops
    assert stored.seconds + product.seconds == pytest.approx(total.core_seconds)


def test_what_is_not_differentiated_is_the_optimizer() -> None:
    target = Slice("v5e:1x2", CHIPS["v5e"], (1, 2), (0, 1))
    shares = by_stage(hlo.parse(overlapped.TEXT), target)
    assert {share.stage for share in shares} == {"optimizer"}
    # the fusions that start the gather and run beside it; the slice that is fetched
    assert [(share.kind, share.bytes) for share in shares] == [
        ("collective", 64 + 256 + 2 * 64),
        ("elementwise", 64),
    ]


def test_a_condition_that_is_no_count_is_refused() -> None:
    with pytest.raises(ProgramError, match="loop loop has no known trip count"):
        pieces(hlo.parse(_TEXT.replace("direction=LT", "direction=GT")))


@pytest.mark.parametrize(
    ("left", "right", "out", "attributes", "flops"),
    [
        # 8 products [9, 4] x [4, 5], the batch as an axis of windows over a dilated image
        (
            "f32[8,9,4]",
            "f32[8,5,4]",
            "f32[8,9,5]",
            "window={size=8 stride=7 lhs_dilate=8}, dim_labels=0bf_0oi->0bf",
            8 * 2 * 9 * 4 * 5,
        ),
        # one product over two contracted axes, of which one is written as a window
        (
            "f32[6,4,3]",
            "f32[4,3,5]",
            "f32[6,1,5]",
            "window={size=4}, dim_labels=b0f_0io->b0f",
            2 * 6 * 5 * 4 * 3,
        ),
        # a border of zeros: of 3 x 4 places of window and result, 10 lie inside
        (
            "f32[1,4,2]",
            "f32[3,2,5]",
            "f32[1,4,5]",
            "window={size=3 pad=1_1}, dim_labels=b0f_0io->b0f",
            2 * 10 * 2 * 5,
        ),
        (
            "f32[1,4,6]",
            "f32[1,1,6]",
            "f32[1,4,6]",
            "feature_group_count=6, window={size=1}, dim_labels=b0f_0io->b0f",
            2 * 4 * 6,
        ),
    ],
    ids=["batch", "contraction", "border", "groups"],
)
def test_convolutions_count_what_they_touch(
    left: str, right: str, out: str, attributes: str, flops: int
) -> None:
    text = f"""
ENTRY %main (l: {left}, r: {right}) -> {out} {{
  %l = {left} parameter(0)
  %r = {right} parameter(1)
  ROOT %y = {out} convolution(%l, %r), {attributes}
}}
"""
    assert [p.flops for p in products(text)] == [flops]


def test_links_count_twice_where_the_ends_meet() -> None:
    v5e, v5p = CHIPS["v5e"], CHIPS["v5p"]
    assert Slice("", v5e, (4, 4), range(16)).ici_bandwidth == 50e9
    assert Slice("", v5e, (16, 16), range(256)).ici_bandwidth == 100e9
    assert Slice("", v5p, (2, 2, 4), range(16)).ici_bandwidth == 200e9


def test_host_ram_shares_the_state() -> None:
    target = Slice("", CHIPS["v5p"], (2, 2, 4), range(16))
    assert host_ram(state_bytes=400, target=target, pipeline={"blocks": 7}) == {
        "checkpoint copy": 100,
        "blocks": 7,
    }
