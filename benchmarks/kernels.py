"""Forms of a kernel beside the plain one, for the docstrings of ``xvla_jax/models/kernels.py``.

``python -m benchmarks.kernels [--topology=v5e:2x2]``

Prints the ratio of each form of the tables to the plain form, forward and with gradients, at shapes
of the released model: float32 seconds on the default device, calls in turns, the fastest of each.
With a topology: bfloat16 cycles as the TPU compiler estimates them, nothing is run.
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
_CALLS = flags.DEFINE_integer("calls", 8, "Timed calls of each form.", lower_bound=1)

# q, k and v without the leading axis: tokens of the head, windows of stage 0.
_TOKENS: Final[Mapping[str, tuple[int, ...]]] = {
    "head": (326, 16, 64),
    "windows": (16, 144, 8, 32),
}
_MAPS: Final = {f"stage {i}": (56 >> i, 56 >> i, 256 << i) for i in range(4)}

Call = Callable[..., Any]


def _cases() -> list[tuple[str, kernels.Form, Mapping[str, kernels.Form], list[tuple[int, ...]]]]:
    """Returns name, plain form, other forms and shapes of the operands."""
    options = {"kept": None, "scale": 0.1, "zero_keys": 0, "rate": 0.0}
    attention = {
        name: functools.partial(form, **options) for name, form in kernels.ATTENTION.items()
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


def main(arguments: list[str]) -> None:
    """Prints a line for each form and shape."""
    del arguments
    measure, unit = (_cycles, "cycles") if _TOPOLOGY.value else (_seconds, "s")
    for name, plain, others, shapes in _cases():
        for label, wrap in (("forward", lambda form: form), ("with gradients", _gradients)):
            base, *values = measure([wrap(form) for form in (plain, *others.values())], shapes)
            for backend, value in zip(others, values, strict=True):
                ratio = f"{value / base:.3f} of {base:.3g} {unit}"
                print(f"{name:8} {label:14} form of {backend}: {ratio}", flush=True)


if __name__ == "__main__":
    app.run(main)
