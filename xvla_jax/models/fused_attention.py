"""Attention in one kernel for TPU, whose scores stay in the core's own memory (VMEM).

XLA writes scores, weights and masks of attention to HBM and reads them again, also in the backward
pass. Here a program of the kernel holds complete rows of the scores of a few heads, from the
product with the keys to that with the values, and the backward pass makes them again from queries
and keys: nothing of the size of the scores is stored.

Operands are ``[N, S, K * E]``, as the projections yield them: heads lie side by side in the lanes,
and a program takes as many as fill 128. A product of one head takes all lanes of both operands, of
which one has zeros in the lanes of the other heads: the matrix unit is as wide in any case.

Letters: N windows or samples, S queries, S' keys, K heads, E head width, L lanes of a program.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec as P
from numpy.typing import NDArray

from xvla_jax.sharding import BATCH_SPEC, devices_of_batch

Array = jax.Array

# Names in compiled text.
FORWARD_KERNEL: Final = "forward_attention"
BACKWARD_KERNEL: Final = "backward_attention"  # which makes the scores again

_LANES: Final = 128  # of a vector register
_VMEM: Final = 12 * 2**20  # bytes of a program; the compiler's own limit is 16 MiB
_WINDOWS: Final = 16  # at most, in one program
_MAP: Final = 2 * _LANES  # tokens of a map whose windows are not cut out
_NONE: Final = -1e30  # score of a key that a query does not see


@dataclasses.dataclass(frozen=True)
class Tiling:
    """Share of one program of the kernel.

    Attributes:
        windows: of N.
        heads: of K.
        lanes: that they take.
    """

    windows: int
    heads: int
    lanes: int


@dataclasses.dataclass(frozen=True)
class _Options:
    """Static part of a call."""

    num_heads: int
    scale: float
    zero_keys: int
    rate: float
    masked: bool  # by dropout
    cells: tuple[int, int, int] | None  # of a map: height, width, side of its windows
    split: bool  # over the devices of a mesh
    interpret: bool


def tiling(
    count: int, rows: int, keys: int, num_heads: int, width: int, *, itemsize: int, masked: bool
) -> Tiling | None:
    """Returns the share of a program, or None where not even one window fits VMEM.

    Args:
        count: N.
        rows: S.
        keys: S'.
        num_heads: K.
        width: E.
        itemsize: bytes of a number of the operands.
        masked: there is a dropout mask.
    """
    heads = _heads_together(num_heads, width)
    lanes = heads * width
    side = _LANES * math.ceil(lanes / _LANES) * itemsize
    down, across = 32 * math.ceil(rows / 32), _LANES * math.ceil(keys / _LANES)
    # Blocks of the backward pass, two of each, as the next ones are fetched meanwhile:
    # q, dout, dq; k, v, dk, dv; the mask
    block = 2 * (3 * down * side + 4 * across * side + masked * heads * down * across)
    live = 6 * 4 * down * across  # float32 arrays of the size of the scores
    most = min(_WINDOWS, (_VMEM - live) // block)
    fitting = [n for n in range(1, most + 1) if count % n == 0]
    return Tiling(fitting[-1], heads, lanes) if fitting else None


def _heads_together(num_heads: int, width: int) -> int:
    """Returns the heads of a program: those that fill lanes, or all where none do."""
    heads = _LANES // math.gcd(width, _LANES)
    return heads if num_heads % heads == 0 else num_heads


def serves(query: tuple[int, ...], key: tuple[int, ...], *, itemsize: int, masked: bool) -> bool:
    """True where the kernel takes these shapes: `tiling` finds a share of a program.

    Args:
        query: ``[..., S, K, E]``.
        key: ``[..., S', K, E]``.
        itemsize: see `tiling`.
        masked: likewise.
    """
    *batch, rows, num_heads, width = query
    sizes = (math.prod(batch), rows, key[-3], num_heads, width)
    return tiling(*sizes, itemsize=itemsize, masked=masked) is not None


def fused_attention(
    query: Array,
    key: Array,
    value: Array,
    kept: Array | None,
    *,
    scale: float,
    zero_keys: int,
    rate: float,
    interpret: bool = False,
) -> Array:
    """Computes `kernels.plain_attention`, forward and backward in one kernel each.

    Under a mesh that ``jax.set_mesh`` has set, each device computes its part of the first axis; all
    compute everything where they do not divide it.

    Args:
        query: ``[..., S, K, E]``.
        key: ``[..., S', K, E]``.
        value: ``[..., S', K, E]``.
        kept: bool ``[..., K, S, S']`` or None.
        scale: see `kernels.attend`.
        zero_keys: likewise.
        rate: likewise.
        interpret: runs the kernel as JAX operations, on any platform.
    """
    *_, num_heads, width = query.shape
    split = _split(query.shape[0])
    options = _Options(num_heads, scale, zero_keys, rate, kept is not None, None, split, interpret)
    # [..., S, K, E] -> [N, S, K * E]
    flat = [x.reshape(-1, x.shape[-3], num_heads * width) for x in (query, key, value)]
    # [..., K, S, S'] -> [N, K, S, S']; the kernel takes bool as 32 bits
    mask = None if kept is None else kept.reshape(-1, *kept.shape[-3:]).astype(jnp.int8)
    return _attend(options, *flat, mask).reshape(query.shape)


def serves_map(shape: tuple[int, ...], *, itemsize: int) -> bool:
    """True where `fused_windows` takes maps ``[B, H, W, K, E]``: small ones.

    Their tokens take as many registers as those of one full window do.
    """
    batch, height, width, *heads = shape
    tokens = height * width
    flat = (batch, tokens, *heads)
    return tokens <= _MAP and serves(flat, flat, itemsize=itemsize, masked=False)


def fused_windows(
    query: Array, key: Array, value: Array, *, window: int, scale: float, interpret: bool = False
) -> Array:
    """Attends inside the windows of a map ``[B, H, W, K, E]``, which are not cut out of it.

    A program has all tokens of some images; scores between windows count as none. Windows at the
    right and bottom edge have zero keys and values in the cells that they lack.

    Args:
        query: ``[B, H, W, K, E]``.
        key: likewise.
        value: likewise.
        window: side of a window.
        scale: see `kernels.attend`.
        interpret: see `fused_attention`.
    """
    batch, height, width, num_heads, _ = query.shape
    cells = (height, width, window)
    options = _Options(num_heads, scale, 0, 0.0, False, cells, _split(batch), interpret)
    # [B, H, W, K, E] -> [B, H * W, K * E]
    flat = [x.reshape(batch, height * width, -1) for x in (query, key, value)]
    return _attend(options, *flat, None).reshape(query.shape)


def _split(count: int) -> bool:
    devices = devices_of_batch()
    return devices > 1 and count % devices == 0


@functools.cache
def _tables(height: int, width: int, window: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Returns each token's window, and the cells that its window lacks, int32 ``[S]``."""
    down, across = np.arange(height), np.arange(width)
    windows = (down // window)[:, None] * math.ceil(width / window) + (across // window)[None]
    rows = np.minimum(height - down // window * window, window)  # that a cell's window has
    columns = np.minimum(width - across // window * window, window)
    lacking = window**2 - rows[:, None] * columns[None]
    return windows.ravel().astype(np.int32), lacking.ravel().astype(np.int32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(options: _Options, query: Array, key: Array, value: Array, mask: Array | None) -> Array:
    """``[N, S, K * E]`` of each -> ``[N, S, K * E]``."""
    (out,) = _run(_forward, 2, options, (query,), (key, value), mask, [query])
    return out


def _save(options: _Options, *operands: Array | None) -> tuple[Array, tuple[Array | None, ...]]:
    # Neither the result nor the softmax's totals: the forward kernel need not run again for them.
    return _attend(options, *operands), operands


def _pull(
    options: _Options, operands: tuple[Array, Array, Array, Array | None], gradient: Array
) -> tuple[Array, Array, Array, None]:
    query, key, value, mask = operands
    gradients = _run(_backward, 5, options, (query, gradient), (key, value), mask, operands[:3])
    return *gradients, None


_attend.defvjp(_save, _pull)


def _run(
    kernel: Callable[..., None],
    products: int,
    options: _Options,
    of_rows: tuple[Array, ...],
    of_keys: tuple[Array, ...],
    mask: Array | None,
    results: Any,
) -> Any:
    """Runs a kernel on each device's part; results have the shapes of ``results``."""
    operands = [*of_rows, *of_keys, *([] if mask is None else [mask])]

    def on_device(*operands: Array) -> Any:
        return _call(kernel, products, options, operands, operands[len(of_rows)], results)

    devices = devices_of_batch()
    if devices == 1:
        return on_device(*operands)
    spec = BATCH_SPEC if options.split else P()
    # The compiler does not divide a kernel between devices by itself.
    return jax.shard_map(on_device, in_specs=spec, out_specs=spec, check_vma=False)(*operands)


def _call(
    kernel: Callable[..., None],
    products: int,
    options: _Options,
    operands: tuple[Array, ...],
    key: Array,
    results: Any,
) -> Any:
    """Runs a kernel on one device; its operands are tokens, then the mask if there is one."""
    count, rows, numbers = operands[0].shape
    keys, heads, masked = key.shape[1], options.num_heads, options.masked
    width, itemsize = numbers // heads, key.dtype.itemsize
    share = tiling(count, rows, keys, heads, width, itemsize=itemsize, masked=masked)
    assert share is not None

    def tokens(x: Any) -> pl.BlockSpec:
        # A program takes the same lanes of all: [windows, S, lanes]
        return pl.BlockSpec((share.windows, x.shape[1], share.lanes), lambda n, g: (n, 0, g))

    specs = [tokens(x) for x in operands[: len(operands) - masked]]
    if masked:
        block = (share.windows, share.heads, rows, keys)
        specs.append(pl.BlockSpec(block, lambda n, g: (n, g, 0, 0)))
    tables: list[Array] = []
    if options.cells:
        windows, lacking = (jnp.asarray(table) for table in _tables(*options.cells))
        tables = [windows[:, None], windows[None], lacking[:, None]]  # [S, 1], [1, S], [S, 1]
        specs += [pl.BlockSpec(table.shape, lambda *_: (0, 0)) for table in tables]
    scores = count * heads * rows * keys
    shapes = [jax.ShapeDtypeStruct((count, *x.shape[1:]), x.dtype) for x in results]
    return pl.pallas_call(
        functools.partial(kernel, options=options, heads=share.heads, width=width),
        shapes,
        grid=(count // share.windows, heads // share.heads),
        in_specs=specs,
        out_specs=[tokens(x) for x in shapes],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel")),
        cost_estimate=pl.CostEstimate(
            flops=products * 2 * scores * width,
            transcendentals=scores,
            bytes_accessed=sum(x.size * x.dtype.itemsize for x in (*operands, *shapes)),
        ),
        interpret=options.interpret,
        name=FORWARD_KERNEL if kernel is _forward else BACKWARD_KERNEL,
    )(*operands, *tables)


def _forward(*refs: Any, options: _Options, heads: int, width: int) -> None:
    """Writes the means of values; refs: q, k, v, the mask and tables if any, and the result."""
    query, key, value, *others, out = refs
    mask, tables = others[: options.masked], others[options.masked :]

    def window(n: Any, _: None) -> None:
        scaled, k, v = _scaled(query[n], options.scale), key[n], value[n]
        total = jnp.zeros(scaled.shape, jnp.float32)
        for head in range(heads):
            lanes = _lanes_of(head, heads, width)
            weights = _weights(_only(lanes, scaled).astype(k.dtype), k, options, tables)
            weights = _drop(weights, [ref[n, head] for ref in mask], options.rate)
            total = _put(lanes, _dot(weights.astype(v.dtype), v, 1, 0), total)
        out[n] = total.astype(out.dtype)

    jax.lax.fori_loop(0, query.shape[0], window, None)


def _backward(*refs: Any, options: _Options, heads: int, width: int) -> None:
    """Writes dq, dk, dv; refs: q, the result's gradient, k, v, mask and tables, and those three."""
    query, gradient, key, value, *others, dq_ref, dk_ref, dv_ref = refs
    mask, tables = others[: options.masked], others[options.masked :]

    def window(n: Any, _: None) -> None:
        scaled, k, v = _scaled(query[n], options.scale), key[n], value[n]
        back = gradient[n].astype(jnp.float32)
        dq = jnp.zeros(scaled.shape, jnp.float32)
        dk = dv = jnp.zeros(k.shape, jnp.float32)
        for head in range(heads):
            lanes = _lanes_of(head, heads, width)
            kept = [ref[n, head] for ref in mask]
            weights = _weights(_only(lanes, scaled).astype(k.dtype), k, options, tables)
            # [S, S'] each: gradients of the dropped weights, of the weights, of the scores
            dropped = _dot(_only(lanes, back).astype(v.dtype), v, 1, 1)
            dweights = _drop(dropped, kept, options.rate)
            mean = (dweights * weights).sum(axis=-1, keepdims=True)
            dscores = (weights * (dweights - mean)).astype(k.dtype)
            dq = _put(lanes, _dot(dscores, k, 1, 0), dq)
            dk = _put(lanes, _dot(dscores, scaled.astype(k.dtype), 0, 0), dk)
            used = _drop(weights, kept, options.rate).astype(v.dtype)
            dv = _put(lanes, _dot(used, gradient[n], 0, 0), dv)
        dq_ref[n] = (dq * _rounded(options.scale, query.dtype)).astype(dq_ref.dtype)
        dk_ref[n] = dk.astype(dk_ref.dtype)
        dv_ref[n] = dv.astype(dv_ref.dtype)

    jax.lax.fori_loop(0, query.shape[0], window, None)


def _scaled(query: Array, scale: float) -> Array:
    """Returns float32 numbers that are those of ``query * scale`` in the query's type."""
    return (
        (query.astype(jnp.float32) * _rounded(scale, query.dtype))
        .astype(query.dtype)
        .astype(jnp.float32)
    )


def _rounded(scale: float, dtype: Any) -> float:
    """Returns a number as JAX rounds it before it scales an array of a type."""
    return float(jnp.dtype(dtype).type(scale))


def _lanes_of(head: int, heads: int, width: int) -> Array | None:
    """Returns the lanes of a head, bool ``[1, L]``; None where there is no other head."""
    if heads == 1:
        return None
    lane = jax.lax.broadcasted_iota(jnp.int32, (1, heads * width), 1)
    return (lane >= head * width) & (lane < (head + 1) * width)


def _only(lanes: Array | None, x: Array) -> Array:
    return x if lanes is None else jnp.where(lanes, x, 0.0)


def _put(lanes: Array | None, x: Array, others: Array) -> Array:
    return x if lanes is None else jnp.where(lanes, x, others)


def _dot(left: Array, right: Array, of_left: int, of_right: int) -> Array:
    """Sums over an axis of each; float32."""
    axes = (((of_left,), (of_right,)), ((), ()))
    return jax.lax.dot_general(left, right, axes, preferred_element_type=jnp.float32)


def _weights(query: Array, key: Array, options: _Options, tables: list[Any]) -> Array:
    """Softmax of the scores ``[S, S']``, among further keys with a score of zero."""
    scores = _dot(query, key, 1, 1)
    zero_keys: Any = options.zero_keys
    if tables:
        of_query, of_key, lacking = (table[...] for table in tables)
        scores = jnp.where(of_query == of_key, scores, _NONE)
        zero_keys = lacking.astype(jnp.float32)  # [S, 1]
    any_zero = bool(tables) or options.zero_keys > 0
    top = scores.max(axis=-1, keepdims=True)  # [S, 1]
    top = jnp.maximum(top, 0.0) if any_zero else top
    exponentials = jnp.exp(scores - top)
    total = exponentials.sum(axis=-1, keepdims=True)
    if any_zero:
        total += zero_keys * jnp.exp(-top)
    return exponentials * (1.0 / total)


def _drop(x: Array, mask: list[Array], rate: float) -> Array:
    """Applies a dropout mask, if there is one."""
    if not mask:
        return x
    factor = 0.0 if rate == 1.0 else 1.0 / (1.0 - rate)
    return jnp.where(mask[0].astype(jnp.int32) != 0, x * factor, 0.0)
