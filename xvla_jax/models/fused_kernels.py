"""Bodies of the kernels of attention: what one program does with its blocks in VMEM.

A product of one head takes all lanes of both operands, of which one has zeros in the lanes of the
other heads: the matrix unit is as wide in any case. Shape comments: S queries, S' keys, L lanes.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Final

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

Array = jax.Array

_NONE: Final = -1e30  # score of a key that a query does not see


@dataclasses.dataclass(frozen=True)
class Options:
    """Static part of a call.

    Attributes:
        num_heads: K.
        scale: factor of the query.
        zero_keys: see `kernels.attend`.
        rate: of dropout.
        masked: there is a mask of dropout.
        biased: queries and values take a bias.
        cells: of a map, height, width and side of its windows; None where all attend to all.
        split: the devices of a mesh share the windows or samples.
        interpret: see `fused_attention.fused_attention`.
    """

    num_heads: int
    scale: float
    zero_keys: int
    rate: float
    masked: bool
    biased: bool
    cells: tuple[int, int, int] | None
    split: bool
    interpret: bool


class _Program:
    """Blocks that a program reads, and its heads.

    ``refs`` are query, key, value ``[n, S, L]``, then the result's gradient in the backward pass,
    the bias ``[2, L]``, the mask ``[n, heads, S, S']``, and three tables of a map's windows.
    """

    def __init__(
        self, refs: tuple[Any, ...], options: Options, heads: int, width: int, *, backward: bool
    ) -> None:
        rest = list(refs)
        self.query, self.key, self.value = (rest.pop(0) for _ in range(3))
        self.gradient = rest.pop(0) if backward else None
        self.bias = rest.pop(0) if options.biased else None
        self.mask = rest.pop(0) if options.masked else None
        self.tables = rest
        self.options, self.heads, self.width = options, heads, width

    def read(self, n: Any) -> tuple[Array, Array, Array]:
        """Returns scaled queries in float32, keys and values of a window."""
        query, key, value = self.query[n], self.key[n], self.value[n]
        if self.bias is not None:
            query, value = _plus(query, self.bias[0:1]), _plus(value, self.bias[1:2])
        return _scaled(query, self.options.scale), key, value

    def kept(self, n: Any, head: int) -> list[Array]:
        """Returns a head's mask of dropout, int8 ``[S, S']``, if there is one."""
        return [] if self.mask is None else [self.mask[n, head]]

    def attended(self, n: Any) -> Array:
        """Means of values of a window, float32 ``[S, L]``."""
        scaled, key, value = self.read(n)
        total = jnp.zeros(scaled.shape, jnp.float32)
        for head in range(self.heads):
            lanes = _lanes_of(head, self.heads, self.width)
            query = _only(lanes, scaled).astype(key.dtype)
            weights = _weights(query, key, self.options, self.tables)
            weights = _drop(weights, self.kept(n, head), self.options.rate)
            total = _put(lanes, _dot(weights.astype(value.dtype), value, 1, 0), total)
        return total

    def gradients(self, n: Any) -> tuple[Array, Array, Array]:
        """Gradients of queries, keys and values of a window, float32 ``[S, L]`` each."""
        assert self.gradient is not None
        scaled, key, value = self.read(n)
        gradient = self.gradient[n].astype(jnp.float32)
        dq = jnp.zeros(scaled.shape, jnp.float32)
        dk = dv = jnp.zeros(key.shape, jnp.float32)
        for head in range(self.heads):
            lanes = _lanes_of(head, self.heads, self.width)
            kept = self.kept(n, head)
            query = _only(lanes, scaled).astype(key.dtype)
            weights = _weights(query, key, self.options, self.tables)
            # [S, S'] each: gradients of the dropped weights, of the weights, of the scores
            dropped = _dot(_only(lanes, gradient).astype(value.dtype), value, 1, 1)
            dweights = _drop(dropped, kept, self.options.rate)
            mean = (dweights * weights).sum(axis=-1, keepdims=True)
            dscores = (weights * (dweights - mean)).astype(key.dtype)
            dq = _put(lanes, _dot(dscores, key, 1, 0), dq)
            dk = _put(lanes, _dot(dscores, scaled.astype(key.dtype), 0, 0), dk)
            used = _drop(weights, kept, self.options.rate).astype(value.dtype)
            dv = _put(lanes, _dot(used, self.gradient[n], 0, 0), dv)
        return dq * _rounded(self.options.scale, self.query.dtype), dk, dv


def forward(*refs: Any, options: Options, heads: int, width: int) -> None:
    """Writes the means of values; refs: see `_Program`, and the result."""
    *inputs, out = refs
    program = _Program(tuple(inputs), options, heads, width, backward=False)

    def window(n: Any, _: None) -> None:
        out[n] = program.attended(n).astype(out.dtype)

    jax.lax.fori_loop(0, out.shape[0], window, None)


def backward(*refs: Any, options: Options, heads: int, width: int) -> None:
    """Writes three gradients; refs: see `_Program`, and those three."""
    *inputs, dq, dk, dv = refs
    program = _Program(tuple(inputs), options, heads, width, backward=True)

    def window(n: Any, _: None) -> None:
        for out, gradient in zip((dq, dk, dv), program.gradients(n), strict=True):
            out[n] = gradient.astype(out.dtype)

    jax.lax.fori_loop(0, dq.shape[0], window, None)


def backward_packed(*refs: Any, options: Options, heads: int, width: int) -> None:
    """Writes three gradients in turn, as the last axis of the grid says.

    Refs: see `_Program`, the gradient's block ``[n, S, L]``, and a place for two of its size, in
    which those of keys and values wait for their turn.
    """
    *inputs, out, waiting = refs
    program = _Program(tuple(inputs), options, heads, width, backward=True)
    turn = pl.program_id(2)

    @pl.when(turn == 0)
    def _() -> None:
        def window(n: Any, _: None) -> None:
            dq, dk, dv = program.gradients(n)
            out[n] = dq.astype(out.dtype)
            waiting[0, n] = dk.astype(out.dtype)
            waiting[1, n] = dv.astype(out.dtype)

        jax.lax.fori_loop(0, out.shape[0], window, None)

    @pl.when(turn > 0)
    def _() -> None:
        out[...] = waiting[turn - 1]


def _plus(x: Array, bias: Array) -> Array:
    """Returns ``x + bias`` as rounded in the type of ``x``."""
    return (x.astype(jnp.float32) + bias.astype(jnp.float32)).astype(x.dtype)


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


def _weights(query: Array, key: Array, options: Options, tables: list[Any]) -> Array:
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
