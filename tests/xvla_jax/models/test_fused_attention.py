"""The kernel for TPU, here run as JAX operations, gives the plain form's numbers on any mesh."""

from __future__ import annotations

import dataclasses
import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.xvla_jax import tiny
from xvla_jax.errors import ConfigError
from xvla_jax.models import kernels
from xvla_jax.models.davit import _attend_by_window
from xvla_jax.models.fused_attention import fused_attention, fused_packed, serves, tiling
from xvla_jax.models.layers import split_qkv, stacked
from xvla_jax.models.soft_transformer import PolicyBlock

_interpreted = functools.partial(fused_attention, interpret=True)


@dataclasses.dataclass(frozen=True)
class _Case:
    """Sizes of a call: leading axes, queries, keys, heads and their width."""

    batch: tuple[int, ...]
    rows: int
    keys: int
    num_heads: int = 2
    width: int = 4
    zero_keys: int = 0
    rate: float = 0.0
    dtype: Any = jnp.float32

    @property
    def operands(self) -> list[jax.Array | None]:
        """Query, key, value and the mask of dropout."""
        tokens = (self.rows, self.keys, self.keys)
        shapes = [(*self.batch, n, self.num_heads, self.width) for n in tokens]
        keys = jax.random.split(jax.random.key(0), 4)
        arrays = [
            jax.random.normal(key, shape) for key, shape in zip(keys[:3], shapes, strict=True)
        ]
        kept = (*self.batch, self.num_heads, self.rows, self.keys)
        mask = jax.random.bernoulli(keys[3], 1 - self.rate, kept) if self.rate else None
        return [*(x.astype(self.dtype) for x in arrays), mask]

    @property
    def options(self) -> dict[str, Any]:
        """Static arguments of a form."""
        return {"scale": self.width**-0.5, "zero_keys": self.zero_keys, "rate": self.rate}


def _value_and_gradients(form: kernels.Form, case: _Case) -> list[np.ndarray]:
    def loss(*operands: Any) -> tuple[jax.Array, jax.Array]:
        out = form(*operands, **case.options)
        weights = jnp.arange(out.size, dtype=jnp.float32).reshape(out.shape) / out.size
        return (out.astype(jnp.float32) * weights).sum(), out

    run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))
    (_, out), gradients = run(*case.operands)
    return [np.asarray(x, np.float32) for x in (out, *gradients)]


def _check(case: _Case, tolerance: float) -> None:
    plain = _value_and_gradients(kernels.plain_attention, case)
    for ours, theirs in zip(_value_and_gradients(_interpreted, case), plain, strict=True):
        largest = max(float(np.abs(theirs).max()), 1e-12)
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * largest)


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(_Case((2, 3), 4, 6, zero_keys=5, rate=0.3), id="all of it, fewer queries"),
        pytest.param(_Case((3,), 4, 4, rate=1.0), id="all dropped"),
        pytest.param(_Case((2,), 13, 13, num_heads=4, width=64), id="two groups of heads"),
    ],
)
def test_the_kernel_gives_the_plain_forms_values_and_gradients(case: _Case) -> None:
    _check(case, 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "tolerance"),
    [
        pytest.param(_Case((2,), 326, 326, width=64, rate=0.1), 2e-6, id="head"),
        pytest.param(_Case((2, 2), 144, 144, 4, 32, zero_keys=1), 1e-6, id="window"),
        # Both forms round weights and results to bfloat16; XLA's also rounds two gradients between.
        pytest.param(_Case((2,), 50, 50, width=64, rate=0.1, dtype=jnp.bfloat16), 2e-2, id="bf16"),
    ],
)
def test_the_kernel_gives_the_plain_forms_numbers_at_other_sizes(
    case: _Case, tolerance: float
) -> None:
    _check(case, tolerance)


def test_a_program_takes_the_heads_that_fill_128_lanes_and_the_windows_that_fit() -> None:
    def of(*sizes: int) -> tuple[int, ...] | None:
        count, rows, keys, num_heads, width = sizes
        share = tiling(count, rows, keys, num_heads, width, itemsize=2, masked=False)
        return share and (share.windows, share.heads, share.lanes)

    assert of(768, 144, 144, 8, 32) == (12, 4, 128)
    assert of(17, 144, 144, 8, 32) == (1, 4, 128)  # 17 is prime
    assert of(6, 5, 5, 3, 64) == (6, 3, 192)  # no two of three heads
    shape = (1, 4096, 2, 64)  # 64 MiB of scores a head
    assert of(1, 4096, 4096, 2, 64) is None
    assert not serves(shape, shape, itemsize=2, masked=False)


def _fused_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has programs for CPU hold the kernel where programs for TPU do."""
    monkeypatch.setitem(kernels.ATTENTION, "fused", {"cpu": _interpreted})  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(("data", "fsdp", "size"), [(2, 4, 8), (8, 1, 3)])
def test_each_device_attends_to_its_part_of_a_batch(data: int, fsdp: int, size: int) -> None:
    """And to everything where the devices do not divide it, as with one observation."""
    case = _Case((size, 2), 4, 4, zero_keys=5)
    alone = jax.jit(functools.partial(kernels.plain_attention, **case.options))(*case.operands)
    with jax.set_mesh(tiny.mesh(data, fsdp)):
        compiled = jax.jit(functools.partial(_interpreted, **case.options)).lower(*case.operands)
        out = compiled.compile()(*case.operands)
    np.testing.assert_allclose(out, alone, rtol=2e-6, atol=2e-6)
    # Queries as the kernel reads them on a device: all windows of one sample, or those of all.
    windows = 2 * (1 if size == 8 else size)
    assert f"tensor<{windows}x4x8xf32>" in compiled.as_text()


def test_a_program_for_tpu_alone_holds_the_kernel_and_only_if_asked_for() -> None:
    query, key, value, _ = _Case((2,), 4, 4).operands

    def text(platform: str, **forms: str) -> str:
        attend = jax.jit(functools.partial(kernels.attend, scale=1.0, **forms))
        traced = attend.trace(query, key, value)
        return traced.lower(lowering_platforms=(platform,)).as_text()

    assert text("tpu") == text("tpu", forms="xla")
    held = [text(name, forms="fused").count("@tpu_custom_call") for name in ("tpu", "cpu", "cuda")]
    assert held == [1, 0, 0]
    assert "@tpu_custom_call" not in text("tpu")


# Without a policy the backward kernel alone follows the forward one; "full" attends again.
@pytest.mark.parametrize(("policy", "forward"), [("none", 1), ("named", 1), ("full", 2)])
def test_named_values_save_a_second_forward_kernel(policy: str, forward: int) -> None:
    stack = stacked(PolicyBlock, 2, remat=policy)(128, 2, 128, 0, "fused", dtype=jnp.bfloat16)
    x = jax.ShapeDtypeStruct((2, 8, 128), jnp.bfloat16)
    params = jax.eval_shape(lambda x: stack.init(jax.random.key(0), x, False)["params"], x)

    def loss(params: Any, x: jax.Array) -> jax.Array:
        rngs = {"dropout": jax.random.key(1)}
        out = stack.apply({"params": params}, x, True, rngs=rngs)
        return jnp.asarray(out[0], jnp.float32).sum()  # pyright: ignore[reportIndexIssue]

    text = jax.jit(jax.grad(loss)).trace(params, x).lower(lowering_platforms=("tpu",)).as_text()
    names = re.findall(r'kernel_name = "(\w+)"', text)
    assert sorted(names) == ["backward_attention", *["forward_attention"] * forward]


def test_an_unknown_row_and_other_devices_are_named() -> None:
    with pytest.raises(ConfigError, match=r"config\.attention is 'flash'; allowed are xla, fused"):
        kernels.check_attention("flash", "tpu")
    with pytest.raises(
        ConfigError, match=r"config\.attention is 'fused', a form for tpu, and .*cpu"
    ):
        kernels.check_attention("fused", "cpu")
    kernels.check_attention("fused", "tpu")
    kernels.check_attention("xla", "cpu")


def _gradients(attend: Any, *operands: jax.Array) -> list[np.ndarray]:
    """Gradients of a weighted sum of ``attend(packed, bias)``."""

    def loss(packed: jax.Array, bias: jax.Array) -> jax.Array:
        out = attend(packed, bias)
        return (out * jnp.arange(out.size, dtype=jnp.float32).reshape(out.shape)).mean()

    return [np.asarray(x) for x in jax.jit(jax.grad(loss, (0, 1)))(*operands)]


def _products(*shape: int, num_heads: int, width: int) -> tuple[jax.Array, jax.Array]:
    """Queries, keys and values as one product, and the bias of queries and values."""
    keys = jax.random.split(jax.random.key(0), 2)
    numbers = num_heads * width
    packed = jax.random.normal(keys[0], (*shape, 3 * numbers))
    return packed, jax.random.normal(keys[1], (2, numbers))


def _close(ours: list[np.ndarray], theirs: list[np.ndarray]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6 * float(abs(b).max()))


def test_one_product_is_attended_as_its_three_parts_are() -> None:
    packed, bias = _products(2, 10, num_heads=4, width=64)  # two groups of heads
    kept = jax.random.bernoulli(jax.random.key(1), 0.7, (2, 4, 10, 10))
    options: dict[str, Any] = {"scale": 0.125, "rate": 0.3}

    def apart(packed: jax.Array, bias: jax.Array) -> jax.Array:
        all_three = jnp.concatenate([bias[0], jnp.zeros_like(bias[0]), bias[1]])
        query, key, value, value_bias = split_qkv(packed, all_three, 4)
        attend = functools.partial(kernels.plain_attention, zero_keys=0, **options)
        return attend(query, key, value + value_bias, kept).reshape(2, 10, -1)

    together = functools.partial(fused_packed, kept=kept, num_heads=4, interpret=True, **options)
    _close(_gradients(together, packed, bias), _gradients(apart, packed, bias))


def test_windows_that_are_not_cut_out_give_the_numbers_of_those_that_are() -> None:
    """A map of 5 x 7 cells in windows of 3 x 3: six, of which four are incomplete; on a mesh."""
    packed, bias = _products(8, 5, 7, num_heads=2, width=4)
    bias = bias.at[1].set(0.0)  # as a window's absent cells have no values

    def cut(packed: jax.Array, bias: jax.Array) -> jax.Array:
        all_three = jnp.concatenate([bias[0], jnp.zeros_like(bias[0]), bias[1]])
        query, key, value, value_bias = split_qkv(packed, all_three, 2)
        attend = functools.partial(_attend_by_window, 3, "xla")
        return attend(query, key, value + value_bias).reshape(*packed.shape[:-1], -1)

    options: dict[str, Any] = {"num_heads": 2, "scale": 0.5, "window": 3}
    uncut = functools.partial(fused_packed, kept=None, interpret=True, **options)
    with jax.set_mesh(tiny.mesh(2, 4)):
        ours = _gradients(uncut, packed, bias)
    # The values' bias counts in cut windows where no cell is, so its gradient is another.
    theirs = _gradients(cut, packed, bias)
    _close([ours[0], ours[1][:1]], [theirs[0], theirs[1][:1]])


def test_maps_of_small_stages_and_the_heads_blocks_are_taken_as_one_product() -> None:
    takes = functools.partial(kernels.takes_packed, dtype=jnp.bfloat16)
    window = {"window": 12, "masked": False}
    sides = {56: (256, 8), 28: (512, 16), 14: (1024, 32), 7: (2048, 64)}
    taken = [
        side
        for side, (m, k) in sides.items()
        if takes("fused", (48, side, side, 3 * m), num_heads=k, **window)
    ]
    assert taken == [14, 7]
    head: dict[str, Any] = {"shape": (16, 326, 3072), "num_heads": 16, "window": 0, "masked": True}
    assert takes("fused", **head)
    assert not takes("xla", **head)
