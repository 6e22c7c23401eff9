"""Kernels: operations of which a backend may need another form of the same numbers.

Each kernel has a plain form, which serves TPU and GPU, and a table of the other forms by backend;
attention has two such tables, of which ``config.attention`` names one. A form equals the plain one
up to float32 rounding, in values and gradients:
``tests/xvla_jax/models/test_kernels.py`` compares every row.

The form is chosen by ``jax.lax.platform_dependent``, so for the platform that a program is lowered
for. An option, or ``jax.default_backend()``, would be fixed when the model is traced, and would be
wrong where ``scripts.plan`` lowers for TPU on a machine without one. All forms are traced, but a
program lowered for one platform holds one of them: no conditional is compiled, and nothing of the
other forms is kept for the backward pass (a test reads the compiled program).

Measured with ``python -m benchmarks.kernels`` and JAX 0.10.2: float32 on 2 CPU cores; with
``--topology=v5e:2x2 --images=8``, bfloat16 by the cycles that the TPU compiler (libtpu 0.0.42.1)
estimates. On GPU: not run.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, Final

import jax
import jax.numpy as jnp

from xvla_jax.errors import ConfigError

Array = jax.Array
Form = Callable[..., Array]

# Orders a step's work for memory. XLA's default on CPU makes early whatever waits for nothing, such
# as the zeros that gradients are added to, and keeps it through the step: 6.4 GB of temporaries of
# a training step at the released size, 4.8 GB with this option. Other backends ignore it.
COMPILER_OPTIONS: Final = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}


def attend(
    query: Array,
    key: Array,
    value: Array,
    *,
    scale: float,
    zero_keys: int = 0,
    kept: Array | None = None,
    rate: float = 0.0,
    forms: str = "xla",
) -> Array:
    """Full softmax attention without a mask: ``[..., S, K, E]`` -> ``[..., S, K, E]``.

    Scores and softmax are float32 whatever the inputs are.

    Args:
        query: ``[..., S, K, E]``.
        key: ``[..., S', K, E]``.
        value: ``[..., S', K, E]``.
        scale: factor of the query.
        zero_keys: number of further keys that are zero and have zero values.
        kept: bool ``[..., K, S, S']``, the weights that dropout keeps; None keeps all.
        rate: of that dropout.
        forms: a row of `ATTENTION`.

    Raises:
        ConfigError: there is no row of that name.
    """
    options = {"scale": scale, "zero_keys": zero_keys, "rate": rate}
    forms_by_backend = attention_forms(forms)
    return _choose(plain_attention, forms_by_backend, query, key, value, kept, **options)


def plain_attention(
    query: Array,
    key: Array,
    value: Array,
    kept: Array | None,
    *,
    scale: float,
    zero_keys: int,
    rate: float,
) -> Array:
    """Softmax, dropout, weighted sum."""
    scores = _scores(query, key, scale)
    weights = jax.nn.softmax(scores, axis=-1)
    if zero_keys:  # their scores are 0, so their sum of exponentials is their number
        total = jax.nn.logsumexp(scores, axis=-1, keepdims=True)  # [..., K, S, 1]
        weights *= jax.nn.sigmoid(total - math.log(zero_keys))
    weights = drop(weights, kept, rate).astype(value.dtype)
    return jnp.einsum("...kqs,...ske->...qke", weights, value)  # [..., S, K, E]


def late_division(
    query: Array,
    key: Array,
    value: Array,
    kept: Array | None,
    *,
    scale: float,
    zero_keys: int,
    rate: float,
) -> Array:
    """Divides the weighted sum, which is narrower than the weights, by the softmax's total.

    Ratio to the plain form, forward and with gradients. CPU time: windows of 144 tokens 0.3 and
    0.9, 326 tokens of the head 0.7 and, on a busy machine, 0.9 to 1.1. TPU cycles, 8 images: head
    3.4 and 3.3, windows 1.6 and 1.1, so the plain form stays there.
    """
    scores = _scores(query, key, scale)
    # No gradient: the result does not depend on what is subtracted.
    top = jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True))
    top = jnp.maximum(top, 0.0) if zero_keys else top  # a zero key's score is 0
    weights = jnp.exp(scores - top)
    total = weights.sum(axis=-1, keepdims=True) + zero_keys * jnp.exp(-top)
    # [..., K, S, E]: heads outside, as the product yields them
    out = jnp.einsum(
        "...kqs,...ske->...kqe",
        drop(weights, kept, rate).astype(value.dtype),
        value,
        preferred_element_type=jnp.float32,
    )
    return (out / total).swapaxes(-3, -2).astype(value.dtype)  # [..., S, K, E]


def _scores(query: Array, key: Array, scale: float) -> Array:
    """Products of queries and keys, float32 ``[..., K, S, S']``."""
    return jnp.einsum(
        "...qke,...ske->...kqs", query * scale, key, preferred_element_type=jnp.float32
    )


def fused_or_plain(
    query: Array,
    key: Array,
    value: Array,
    kept: Array | None,
    *,
    scale: float,
    zero_keys: int,
    rate: float,
) -> Array:
    """Runs the kernel of `fused_attention` where it `fused_attention.serves`; else the plain form.

    The kernel was compiled for v5e, v5p and v6e (``python -m benchmarks.blocks``), and run in
    interpret mode on CPU; it was not timed on a TPU.
    """
    # Imported where it is used: Pallas is a tenth of the time that importing the model takes.
    from xvla_jax.models.fused_attention import fused_attention, serves

    form = plain_attention
    if serves(query.shape, key.shape, itemsize=query.dtype.itemsize, masked=kept is not None):
        form = fused_attention
    return form(query, key, value, kept, scale=scale, zero_keys=zero_keys, rate=rate)


# Value of config.attention -> forms by backend.
ATTENTION: Final[Mapping[str, Mapping[str, Form]]] = {
    "xla": {"cpu": late_division},
    "fused": {"cpu": late_division, "tpu": fused_or_plain},
}


def attend_packed(
    apart: Form,
    packed: Array,
    bias: Array,
    kept: Array | None,
    *,
    num_heads: int,
    scale: float,
    rate: float = 0.0,
    window: int = 0,
    forms: str = "xla",
) -> Array:
    """Attention among tokens whose queries, keys and values are one product.

    Args:
        apart: the plain form, of the three arrays; it splits the product and calls `attend`.
        packed: see `fused_attention.fused_packed`, and the following.
        bias: of queries and of values.
        kept: the weights that dropout keeps, or None.
        num_heads: K.
        scale: factor of the query.
        rate: of dropout.
        window: side of a map's windows; 0 for none.
        forms: a row of `ATTENTION`, for which `takes_packed` is True.
    """
    options = {"num_heads": num_heads, "scale": scale, "rate": rate, "window": window}
    others = {
        backend: functools.partial(form, **options) for backend, form in PACKED[forms].items()
    }
    return jax.lax.platform_dependent(packed, bias, kept, default=apart, **others)


def takes_packed(
    forms: str, shape: tuple[int, ...], dtype: Any, num_heads: int, *, window: int, masked: bool
) -> bool:
    """True where a row of `ATTENTION` has a form for a product ``[B, ..., 3 * K * E]``."""
    if forms not in PACKED:
        return False
    from xvla_jax.models.fused_attention import serves_packed

    itemsize = jnp.dtype(dtype).itemsize
    return serves_packed(shape, num_heads, window=window, itemsize=itemsize, masked=masked)


def _fused_packed(*operands: Any, **options: Any) -> Array:
    from xvla_jax.models.fused_attention import fused_packed

    return fused_packed(*operands, **options)


# As `ATTENTION`, for products that yield queries, keys and values together.
PACKED: Final[Mapping[str, Mapping[str, Form]]] = {"fused": {"tpu": _fused_packed}}


def attention_forms(name: str) -> Mapping[str, Form]:
    """Returns a row of `ATTENTION`.

    Raises:
        ConfigError: there is no row of that name.
    """
    if name not in ATTENTION:
        raise ConfigError(f"config.attention is {name!r}; allowed are {', '.join(ATTENTION)}")
    return ATTENTION[name]


def check_attention(name: str, platform: str) -> None:
    """Checks that a row of `ATTENTION` is meant for the devices of a run.

    Raises:
        ConfigError: there is no row of that name, or its own forms are for other platforms.
    """
    standard = ATTENTION["xla"]
    own = [b for b, form in attention_forms(name).items() if standard.get(b) is not form]
    if own and platform not in own:
        raise ConfigError(
            f"config.attention is {name!r}, a form for {', '.join(own)}, and the devices of this "
            f"run are {platform}; config.attention=xla runs on all"
        )


def drop(x: Array, kept: Array | None, rate: float) -> Array:
    """Applies a dropout mask: zeros where it is False, ``x / (1 - rate)`` elsewhere."""
    if kept is None:
        return x
    if rate == 1.0:  # the gradient of what is dropped would be 0 / 0
        return jnp.zeros_like(x)
    return jax.lax.select(kept, x / (1.0 - rate), jnp.zeros_like(x))


def depthwise_conv3x3(x: Array, kernel: Array, bias: Array) -> Array:
    """Depthwise convolution, stride 1, zero padding 1: ``[B, H, W, C] -> [B, H, W, C]``.

    Args:
        x: ``[B, H, W, C]``.
        kernel: ``[3, 3, 1, C]``.
        bias: ``[C]``.
    """
    return _choose(grouped_convolution, DEPTHWISE_CONV, x, kernel, bias)


def grouped_convolution(x: Array, kernel: Array, bias: Array) -> Array:
    """XLA's convolution with a group for each channel."""
    return bias + jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(1, 1),
        padding="SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


@jax.checkpoint  # the backward pass shifts the map again, instead of keeping nine copies
def shifted_products(x: Array, kernel: Array, bias: Array) -> Array:
    """Sums nine shifted maps times their rows of the kernel.

    Ratio to the plain form at stages 0 to 3 of the released tower. CPU time, 3 images: 0.03, 0.02,
    0.02, 0.06 forward; 0.26, 0.25, 0.02, 0.01 with gradients. TPU cycles, 8 images: 1.7 to 2.7
    forward and 3.6 to 4.4 with gradients, so the plain form stays there.
    """
    height, width = x.shape[1:3]
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))  # [B, H + 2, W + 2, C]
    taps = (
        padded[:, dy : dy + height, dx : dx + width] * kernel[dy, dx, 0]  # [B, H, W, C]
        for dy in range(3)
        for dx in range(3)
    )
    return sum(taps, start=bias)


DEPTHWISE_CONV: Final[Mapping[str, Form]] = {"cpu": shifted_products}


def _choose(plain: Form, forms: Mapping[str, Form], *operands: Array | None, **options: Any) -> Any:
    """Calls the form of the platform that the surrounding program is lowered for."""
    bound = {backend: functools.partial(form, **options) for backend, form in forms.items()}
    return jax.lax.platform_dependent(
        *operands, default=functools.partial(plain, **options), **bound
    )
