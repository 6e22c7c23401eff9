"""Bytes of collectives against counts by hand, on eight simulated devices."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from tests.xvla_jax import tiny
from tests.xvla_jax.planning import overlapped
from xvla_jax.errors import ProgramError
from xvla_jax.planning import hlo
from xvla_jax.planning.hlo import SENT, bytes_by_kind, group_size

# A shard is float32[4, 8] = 128 bytes on each of 2 x 4 devices.
_SHARD = 128


def _bytes(program: Callable[[jax.Array], jax.Array]) -> dict[str, float]:
    mesh = tiny.mesh(2, 4)
    mapped = jax.shard_map(
        program, mesh=mesh, in_specs=P(("data", "fsdp")), out_specs=P(("data", "fsdp"))
    )
    text = jax.jit(mapped).lower(jnp.ones((32, 8))).compile().as_text()
    sent = bytes_by_kind(hlo.parse(text), devices=8)
    assert set(sent) == set(SENT)
    return {kind: size for kind, size in sent.items() if size}


def _shift(x: jax.Array) -> jax.Array:
    return jax.lax.ppermute(x, "fsdp", [(i, (i + 1) % 4) for i in range(4)])


def _repeated(x: jax.Array) -> jax.Array:
    return jax.lax.scan(lambda y, _: (jnp.sin(_shift(y)), None), x, length=5)[0]


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        # each of 4 sends its shard 3 times round the ring
        (
            lambda x: jax.lax.all_gather(x, "fsdp").sum(0),
            {"all-gather": 3 * _SHARD},
        ),
        # rings of 2: once to add up, once to hand out, half of the array each time
        (
            lambda x: jax.lax.pcast(jax.lax.psum(x, "data"), "data", to="varying"),
            {"all-reduce": 2 * _SHARD / 2},
        ),
        (
            lambda x: jnp.tile(jax.lax.psum_scatter(x, "fsdp"), (4, 1)),
            {"reduce-scatter": 3 / 4 * _SHARD},
        ),
        (
            lambda x: jax.lax.all_to_all(x, "fsdp", 0, 0),
            {"all-to-all": 3 / 4 * _SHARD},
        ),
        (_shift, {"collective-permute": _SHARD}),
        (_repeated, {"collective-permute": 5 * _SHARD}),
    ],
    ids=["gather", "sum", "scatter", "transpose", "shift", "shift in a loop"],
)
def test_bytes_by_hand(
    program: Callable[[jax.Array], jax.Array], expected: dict[str, float]
) -> None:
    assert _bytes(program) == expected


def test_a_sharded_product_gathers_its_weights() -> None:
    mesh = tiny.mesh(2, 4)
    split = jax.NamedSharding(mesh, P(("data", "fsdp")))
    x = jax.ShapeDtypeStruct((64, 16), jnp.float32, sharding=split)
    w = jax.ShapeDtypeStruct((16, 32), jnp.float32, sharding=jax.NamedSharding(mesh, P("fsdp")))
    text = jax.jit(jnp.matmul, out_shardings=split).lower(x, w).compile().as_text()
    # a quarter of 16 x 32 floats is passed on by each chip 3 times
    assert bytes_by_kind(hlo.parse(text), devices=8)["all-gather"] == 3 * 16 * 32 * 4 / 4


@pytest.mark.parametrize(
    ("groups", "size"),
    [
        ("{}", 16),
        ("{{0,1,2},{3,4,5}}, dimensions={0}", 3),
        ("[4,2]<=[8], dimensions={0}", 2),
        ("[2,4]<=[4,2]T(1,0), use_global_device_ids=true", 4),
        ("mesh['axis_0'=1,'axis_1'=4] {'axis_1'}, channel_id=3", 4),
        ("mesh['a'=2,'b'=3,'c'=5] {'a','c'}", 10),
        ("mesh['a'=2,'b'=1,'c'=2], device_ids=([2,2]T(1,0)) {'a'}, dimensions={0}", 2),
    ],
)
def test_groups_in_every_notation(groups: str, size: int) -> None:
    line = hlo.Instruction("x", "f32[2]", "all-gather", f"%a), replica_groups={groups}")
    assert group_size(line, 16) == size


def test_groups_in_an_unknown_notation_are_refused() -> None:
    line = hlo.Instruction("x", "f32[2]", "all-gather", "%a), replica_groups=V2{0}")
    with pytest.raises(ProgramError, match="groups of an unknown form: 'V2"):
        group_size(line, 16)


def test_a_fused_reduce_scatter_is_no_sum() -> None:
    text = """
%all-reduce-scatter.1 (p: f32[8]) -> f32[2] {
  %p = f32[8]{0} parameter(0)
  %sum = f32[8]{0} all-reduce(%p), replica_groups={{0,1,2,3}}, to_apply=%add
  ROOT %part = f32[2]{0} slice(%sum), slice={[0:2]}
}

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %c = f32[] add(%a, %b)
}

ENTRY %main (x: f32[8]) -> f32[2] {
  %x = f32[8]{0} parameter(0)
  ROOT %f = f32[2]{0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.1
}
"""
    sent = bytes_by_kind(hlo.parse(text), devices=4)
    assert sent["reduce-scatter"] == 3 / 4 * 32
    assert sent["all-reduce"] == 0


def test_a_gather_that_goes_on_beside_work_is_counted_once() -> None:
    sent = bytes_by_kind(hlo.parse(overlapped.TEXT), devices=4)
    assert {kind: size for kind, size in sent.items() if size} == {"all-gather": 3 * 64}


def test_collectives_of_one_channel_are_distinguished() -> None:
    text = """
ENTRY %main (x: f32[8]) -> f32[128] {
  %x = f32[8]{0} parameter(0)
  %once = f32[32]{0} all-gather(%x), channel_id=1, replica_groups={{0,1,2,3}}, dimensions={0}
  ROOT %more = f32[128]{0} all-gather(%once), channel_id=1, replica_groups={{0,1,2,3}}, dimensions={0}
}
"""  # noqa: E501
    assert bytes_by_kind(hlo.parse(text), devices=4)["all-gather"] == 3 * (32 + 128)
