"""Forms of a kernel beside the plain one, for the docstrings of ``xvla_jax/models/kernels.py``.

``python -m benchmarks.kernels [--topology=v5e:2x2]``
``python -m benchmarks.kernels --fused``

Prints the ratio of each form of the tables to the plain form, forward and with gradients, at shapes
of the released model: float32 seconds on the default device, calls in turns, the fastest of each.
With a topology: bfloat16 cycles as the TPU compiler estimates them, nothing is run.

``--fused`` times both rows of ``kernels.ATTENTION`` on this machine's TPU, in bfloat16 at shapes of
a train step of 16 samples, and compares their numbers.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks.timing import seconds_of
from xvla_jax.models import kernels
from xvla_jax.planning.chips import describe

_TOPOLOGY = flags.DEFINE_string("topology", "", "TPU slice to compile for, such as v5e:2x2.")
_IMAGES = flags.DEFINE_integer("images", 3, "Images of a call.", lower_bound=1)
_FUSED = flags.DEFINE_bool("fused", False, "Compare both rows of kernels.ATTENTION on a TPU.")
_CALLS = flags.DEFINE_integer("calls", 8, "Timed calls of each form.", lower_bound=1)

# q, k and v without the leading axis: tokens of the head, windows of stage 0.
_TOKENS: Final[Mapping[str, tuple[int, ...]]] = {
    "head": (326, 16, 64),
    "windows": (16, 144, 8, 32),
}
_MAPS: Final = {f"stage {i}": (56 >> i, 56 >> i, 256 << i) for i in range(4)}

# One call of a train step of 16 samples: windows or samples, tokens, heads, width of a head, keys
# that are zero, rate of dropout.
_CALLS_OF_A_STEP: Final[Mapping[str, tuple[int, int, int, int, int, float]]] = {
    "head": (16, 326, 16, 64, 0, 0.1),
    "text": (16, 100, 16, 64, 0, 0.1),
    "stage 0": (768, 144, 8, 32, 0, 0.0),
    "stage 0, edge": (192, 96, 8, 32, 48, 0.0),
    "stage 1": (192, 144, 16, 32, 0, 0.0),
    "stage 2": (48, 144, 32, 32, 0, 0.0),
    "stage 2, edge": (48, 24, 32, 32, 120, 0.0),
    "stage 3": (48, 49, 64, 32, 95, 0.0),
}

Call = Callable[..., Any]


def _cases() -> list[tuple[str, kernels.Form, Mapping[str, kernels.Form], list[tuple[int, ...]]]]:
    """Returns name, plain form, other forms and shapes of the operands."""
    options = {"kept": None, "scale": 0.1, "zero_keys": 0, "rate": 0.0}
    attention = {
        name: functools.partial(form, **options) for name, form in kernels.ATTENTION["xla"].items()
    }
    plain = functools.partial(kernels.plain_attention, **options)
    count = _IMAGES.value
    return [
        *((name, plain, attention, [(count, *shape)] * 3) for name, shape in _TOKENS.items()),
        *(
            (
                name,
                kernels.grouped_convolution,
                kernels.DEPTHWISE_CONV,
                [(count, *shape), (3, 3, 1, shape[-1]), shape[-1:]],
            )
            for name, shape in _MAPS.items()
        ),
    ]


def _gradients(form: kernels.Form) -> Call:
    return jax.grad(lambda *x: jnp.square(form(*x).astype(jnp.float32)).sum(), argnums=(0, 1, 2))


def _seconds(forms: list[Call], shapes: list[tuple[int, ...]]) -> list[float]:
    rng = np.random.default_rng(0)
    operands = [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]
    programs = [jax.jit(form) for form in forms]
    calls = [functools.partial(program, *operands) for program in programs]
    for call in calls:
        seconds_of(call)  # compiles
    turns = [[seconds_of(call) for call in calls] for _ in range(_CALLS.value)]
    return [min(times) for times in zip(*turns, strict=True)]


def _cycles(forms: list[Call], shapes: list[tuple[int, ...]]) -> list[float]:
    devices = describe(_TOPOLOGY.value).devices[:1]
    sharding = NamedSharding(Mesh(np.array(devices), ("one",)), P())
    operands = [jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=sharding) for shape in shapes]
    texts = [jax.jit(form).lower(*operands).compile().as_text() or "" for form in forms]
    return [sum(map(int, re.findall(r'"estimated_cycles":"(\d+)"', text))) for text in texts]


def _compare() -> None:
    """Prints milliseconds of both rows of ``kernels.ATTENTION``, and how far they are apart."""
    if jax.default_backend() != "tpu":
        raise app.UsageError(f"--fused needs a TPU; this machine has {jax.default_backend()}")
    for name, (count, tokens, heads, width, zero_keys, rate) in _CALLS_OF_A_STEP.items():
        keys = jax.random.split(jax.random.key(0), 4)
        shape = (count, tokens, heads, width)
        operands = [jax.random.normal(key, shape, jnp.bfloat16) for key in keys[:3]]
        kept = jax.random.bernoulli(keys[3], 1 - rate, (count, heads, tokens, tokens))
        options = {"scale": width**-0.5, "zero_keys": zero_keys, "rate": rate}
        for label, wrap in (("forward", lambda form: form), ("with gradients", _gradients)):
            calls = []
            for forms in kernels.ATTENTION:
                form = functools.partial(
                    kernels.attend, kept=kept if rate else None, forms=forms, **options
                )
                calls.append(functools.partial(jax.jit(wrap(form)), *operands))
            ours, theirs = (jax.tree.leaves(call()) for call in calls)  # compiles
            apart = max(
                float(jnp.abs(a - b).max() / jnp.abs(b).max())
                for a, b in zip(ours, theirs, strict=True)
            )
            turns = [[seconds_of(call) for call in calls] for _ in range(_CALLS.value)]
            times = [1e3 * min(column) for column in zip(*turns, strict=True)]
            listed = ", ".join(
                f"{forms} {time:.3f} ms"
                for forms, time in zip(kernels.ATTENTION, times, strict=True)
            )
            print(f"{name:14} {label:14} {listed}, apart by {apart:.1e} of the largest", flush=True)


def main(arguments: list[str]) -> None:
    """Prints a line for each form and shape."""
    del arguments
    if _FUSED.value:
        _compare()
        return
    measure, unit = (_cycles, "cycles") if _TOPOLOGY.value else (_seconds, "s")
    for name, plain, others, shapes in _cases():
        for label, wrap in (("forward", lambda form: form), ("with gradients", _gradients)):
            base, *values = measure([wrap(form) for form in (plain, *others.values())], shapes)
            for backend, value in zip(others, values, strict=True):
                ratio = f"{value / base:.3f} of {base:.3g} {unit}"
                print(f"{name:8} {label:14} form of {backend}: {ratio}", flush=True)


if __name__ == "__main__":
    app.run(main)
