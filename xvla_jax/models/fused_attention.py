"""Attention in one kernel for TPU, whose scores stay in the core's own memory (VMEM).

XLA writes scores, weights and masks of attention to HBM and reads them again, also in the backward
pass. Here a program of the kernel holds complete rows of the scores of a few heads, from the
product with the keys to that with the values, and the backward pass makes them again from queries
and keys: nothing of the size of the scores is stored.

Operands are ``[N, S, K * E]``, as the projections yield them: heads lie side by side in the lanes,
and a program takes as many as fill 128 (``fused_kernels``).

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

from xvla_jax.models.fused_kernels import Options, backward, backward_packed, forward
from xvla_jax.sharding import BATCH_SPEC, devices_of_batch

Array = jax.Array

# Names in compiled text.
FORWARD_KERNEL: Final = "forward_attention"
BACKWARD_KERNEL: Final = "backward_attention"  # which makes the scores again

_LANES: Final = 128  # of a vector register
_VMEM: Final = 12 * 2**20  # bytes of a program; the compiler's own limit is 16 MiB
_WINDOWS: Final = 16  # at most, in one program
_MAP: Final = 2 * _LANES  # tokens of a map whose windows are not cut out


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
    options = Options(
        num_heads, scale, zero_keys, rate, kept is not None, False, None, split, interpret
    )
    # [..., S, K, E] -> [N, S, K * E]
    flat = [x.reshape(-1, x.shape[-3], num_heads * width) for x in (query, key, value)]
    # [..., K, S, S'] -> [N, K, S, S']; the kernel takes bool as 32 bits
    mask = None if kept is None else kept.reshape(-1, *kept.shape[-3:]).astype(jnp.int8)
    out = jnp.asarray(_attend(options, *flat, mask))
    return out.reshape(query.shape)


def serves_packed(
    shape: tuple[int, ...], num_heads: int, *, window: int, itemsize: int, masked: bool
) -> bool:
    """True where `fused_packed` takes products ``[B, ..., 3 * K * E]`` of these tokens.

    Maps whose windows it does not cut out are small ones: their tokens take as many registers as
    those of one full window do.
    """
    tokens = math.prod(shape[1:-1])
    flat = (shape[0], tokens, num_heads, shape[-1] // (3 * num_heads))
    fills = num_heads % _heads_together(num_heads, flat[-1]) == 0 and shape[-1] % (3 * _LANES) == 0
    small = not window or tokens <= _MAP
    return fills and small and serves(flat, flat, itemsize=itemsize, masked=masked)


def fused_packed(
    packed: Array,
    bias: Array,
    kept: Array | None,
    *,
    num_heads: int,
    scale: float,
    rate: float = 0.0,
    window: int = 0,
    interpret: bool = False,
) -> Array:
    """Attends among the tokens of one product that yields queries, keys and values.

    The kernel reads its parts where they lie and writes one gradient, so nothing is split or joined
    in HBM. With ``window`` the tokens are a map, and attend inside its windows: a program has all
    tokens of some images, and scores between windows count as none. Windows at the right and bottom
    edge have zero keys and values in the cells that they lack.

    Args:
        packed: ``[B, S, 3 * K * E]``, or with windows ``[B, H, W, 3 * K * E]``.
        bias: of queries and of values, ``[2, K * E]``.
        kept: bool ``[B, K, S, S]`` or None.
        num_heads: K.
        scale: see `kernels.attend`.
        rate: likewise.
        window: side of a window; 0 for none.
        interpret: see `fused_attention`.

    Returns:
        ``[B, ..., K * E]``.
    """
    batch, *tokens, numbers = packed.shape
    cells = (tokens[0], tokens[1], window) if window else None
    masked, split = kept is not None, _split(batch)
    options = Options(num_heads, scale, 0, rate, masked, True, cells, split, interpret)
    mask = None if kept is None else kept.astype(jnp.int8)
    tokens_of_all = packed.reshape(batch, -1, numbers)
    out = jnp.asarray(_attend_packed(options, tokens_of_all, bias, mask))
    return out.reshape(*packed.shape[:-1], numbers // 3)


def _split(count: int) -> bool:
    devices = devices_of_batch()
    return devices > 1 and count % devices == 0


@functools.cache
def _tables(height: int, width: int, window: int) -> list[NDArray[Any]]:
    """Returns the window of queries and of keys, and the cells that a query's window lacks.

    int32 ``[S, 1]``, ``[1, S]``, ``[S, 1]``.
    """
    down, across = np.arange(height), np.arange(width)
    windows = (down // window)[:, None] * math.ceil(width / window) + (across // window)[None]
    rows = np.minimum(height - down // window * window, window)  # that a cell's window has
    columns = np.minimum(width - across // window * window, window)
    lacking = window**2 - rows[:, None] * columns[None]
    of_token, missing = (table.ravel().astype(np.int32) for table in (windows, lacking))
    return [of_token[:, None], of_token[None], missing[:, None]]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(options: Options, query: Array, key: Array, value: Array, mask: Array | None) -> Array:
    """``[N, S, K * E]`` of each -> ``[N, S, K * E]``."""
    return _run(_Call(options, parts=(0, 0, 0)), [query, key, value], [mask])[0]


def _save(options: Options, *operands: Array | None) -> tuple[Array, tuple[Array | None, ...]]:
    # Neither the result nor the softmax's totals: the forward kernel need not run again for them.
    return _attend(options, *operands), operands


def _pull(
    options: Options, operands: tuple[Array, Array, Array, Array | None], gradient: Array
) -> tuple[Array, Array, Array, None]:
    *tokens, mask = operands
    call = _Call(options, parts=(0, 0, 0, 0), backward=True)
    return *_run(call, [*tokens, gradient], [mask]), None


_attend.defvjp(_save, _pull)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend_packed(options: Options, packed: Array, bias: Array, mask: Array | None) -> Array:
    """``[N, S, 3 * K * E]``, ``[2, K * E]`` -> ``[N, S, K * E]``."""
    return _run(_Call(options, parts=(0, 1, 2)), [packed] * 3, [bias, mask])[0]


def _save_packed(
    options: Options, *operands: Array | None
) -> tuple[Array, tuple[Array | None, ...]]:
    return _attend_packed(options, *operands), operands


def _pull_packed(
    options: Options, operands: tuple[Array, Array, Array | None], gradient: Array
) -> tuple[Array, Array, None]:
    packed, bias, mask = operands
    call = _Call(options, parts=(0, 1, 2, 0), backward=True)
    (gradients,) = _run(call, [packed, packed, packed, gradient], [bias, mask])
    of_query, _, of_value = jnp.split(gradients, 3, axis=-1)
    of_bias = [x.sum(axis=(0, 1), dtype=jnp.float32) for x in (of_query, of_value)]
    return gradients, jnp.stack(of_bias).astype(bias.dtype), None


_attend_packed.defvjp(_save_packed, _pull_packed)


def _run(call: _Call, tokens: list[Array], others: list[Array | None]) -> Any:
    """Runs a kernel on each device's part; the others are bias, if any, and mask or None."""
    *bias, mask = others
    masks = [] if mask is None else [mask]
    operands = [*tokens, *bias, *masks]
    devices = devices_of_batch()
    if devices == 1:
        return call(*operands)
    spec = BATCH_SPEC if call.options.split else P()
    specs = (*[spec for _ in tokens], *[P() for _ in bias], *[spec for _ in masks])
    # The compiler does not divide a kernel between devices by itself.
    return jax.shard_map(call, in_specs=specs, out_specs=spec, check_vma=False)(*operands)


@dataclasses.dataclass(frozen=True)
class _Call:
    """A kernel on one device.

    Attributes:
        options: of the kernel.
        parts: for each operand of tokens, its place among those that share an array.
        backward: it yields gradients.
    """

    options: Options
    parts: tuple[int, ...]
    backward: bool = False

    @property
    def packed(self) -> bool:
        """True where queries, keys and values are parts of one array."""
        return max(self.parts) > 0

    def __call__(self, *operands: Array) -> Any:
        """Takes tokens ``[N, S, ...]``, bias and mask."""
        options, dtype = self.options, operands[0].dtype
        (count, rows, numbers), keys = operands[0].shape, operands[1].shape[1]
        heads = options.num_heads
        width = numbers // heads // (3 if self.packed else 1)
        sizes = (count, rows, keys, heads, width)
        share = tiling(*sizes, itemsize=dtype.itemsize, masked=options.masked)
        assert share is not None
        groups = heads // share.heads
        lengths = [x.shape[1] for x in operands[: len(self.parts)]]
        specs = [
            _tokens(share, length, part * groups)
            for length, part in zip(lengths, self.parts, strict=True)
        ]
        if options.biased:
            specs.append(pl.BlockSpec((2, share.lanes), lambda n, g, *_: (0, g)))  # noqa: ARG005
        if options.masked:
            block = (share.windows, share.heads, rows, keys)
            specs.append(pl.BlockSpec(block, lambda n, g, *_: (n, g, 0, 0)))
        tables = _tables(*options.cells) if options.cells else []
        specs += [pl.BlockSpec(table.shape, lambda *_: (0, 0)) for table in tables]
        kernel, shapes, places, scratch = self._results(share, sizes, dtype)
        turns = (3,) if scratch else ()
        semantics: Any = ("parallel", "parallel", *("arbitrary" for _ in turns))
        scores = count * heads * rows * keys
        return pl.pallas_call(
            functools.partial(kernel, options=options, heads=share.heads, width=width),
            [jax.ShapeDtypeStruct(shape, dtype) for shape in shapes],
            grid=(count // share.windows, groups, *turns),
            in_specs=specs,
            out_specs=places,
            scratch_shapes=scratch,
            compiler_params=pltpu.CompilerParams(dimension_semantics=semantics),
            cost_estimate=pl.CostEstimate(
                flops=(5 if self.backward else 2) * 2 * scores * width,
                transcendentals=scores,
                bytes_accessed=scores * options.masked
                + sum(x.size * dtype.itemsize for x in operands[: len(self.parts)])
                // (3 if self.packed else 1)
                + sum(math.prod(shape) * dtype.itemsize for shape in shapes),
            ),
            interpret=options.interpret,
            name=BACKWARD_KERNEL if self.backward else FORWARD_KERNEL,
        )(*operands, *[jnp.asarray(table) for table in tables])

    def _results(
        self, share: Tiling, sizes: tuple[int, int, int, int, int], dtype: Any
    ) -> tuple[Callable[..., None], list[tuple[int, ...]], list[pl.BlockSpec], list[Any]]:
        """Returns the kernel, shapes and places of its results, and what it keeps between turns."""
        count, rows, keys, heads, width = sizes
        own, other = ((count, length, heads * width) for length in (rows, keys))
        if not self.backward:
            return forward, [own], [_tokens(share, rows)], []
        if not self.packed:
            places = [_tokens(share, length) for length in (rows, keys, keys)]
            return backward, [own, other, other], places, []
        groups = heads // share.heads
        block = (share.windows, rows, share.lanes)
        # The gradients lie side by side: one in each turn.
        place = pl.BlockSpec(block, lambda n, g, turn: (n, 0, turn * groups + g))
        waiting = pltpu.VMEM((2, *block), dtype)
        return backward_packed, [(count, rows, 3 * heads * width)], [place], [waiting]


def _tokens(share: Tiling, length: int, first: int = 0) -> pl.BlockSpec:
    """Place of a program in tokens ``[N, S, ...]``, from a group of lanes on: the same in all."""
    block = (share.windows, length, share.lanes)
    return pl.BlockSpec(block, lambda n, g, *_: (n, 0, first + g))
