"""FLOPs of a step from its jaxpr, and the peak rate of a device: what MFU is made of.

Counted before compilation, so the same on every backend, and without what a remat policy computes
twice: these are the model's FLOPs. `xvla_jax/planning/flops.py` counts a compiled program.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, Final

import jax

from xvla_jax.planning.chips import CHIPS
from xvla_jax.processor import Processor
from xvla_jax.training.state import Recipe
from xvla_jax.training.step import make_train_step

# Beginning of `device_kind` -> bfloat16 FLOP/s, dense; the first that fits counts. GPUs: NVIDIA's
# data sheets of A100, H100 SXM and H200 SXM.
PEAKS: Final[Mapping[str, float]] = {
    "TPU v5 lite": CHIPS["v5e"].peak_flops,
    "TPU v5": CHIPS["v5p"].peak_flops,
    "TPU v6 lite": CHIPS["v6e"].peak_flops,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
}


def peak_flops(device_kind: str) -> float | None:
    """bfloat16 FLOP/s of a device; None where no row is known, CPUs for one."""
    return next((peak for kind, peak in PEAKS.items() if device_kind.startswith(kind)), None)


def step_flops(recipe: Recipe, processor: Processor, state: Any, batch: Any) -> int:
    """FLOPs of matrix products and convolutions of one train step, over all devices.

    Args:
        recipe: what is trained.
        processor: of the pictures.
        state: anything with the shapes of the state.
        batch: anything with the shapes of a batch on the device.
    """
    plain = dataclasses.replace(recipe, model=recipe.model.clone(remat="none"))
    # traced as it is: a step has options for its compiler, which no inner function may have
    step: Any = make_train_step(plain, processor, seed=0)
    return _total(step.trace(*_shapes((state, batch))).jaxpr.jaxpr)


def traced_flops(function: Callable[..., Any], *arguments: Any) -> int:
    """FLOPs of matrix products and convolutions of a function; arguments may be abstract.

    A scan counts as often as it runs, a ``while`` of unknown length once, a ``cond`` as its largest
    branch.
    """
    return _total(jax.make_jaxpr(function)(*_shapes(arguments)).jaxpr)


def _shapes(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), arguments)


def _total(jaxpr: Any) -> int:
    return sum(_equation(equation) for equation in jaxpr.eqns)


def _equation(equation: Any) -> int:
    name = equation.primitive.name
    if name in _COUNTS:
        return _COUNTS[name](equation)
    inner = [_total(found) for value in equation.params.values() for found in _jaxprs(value)]
    if name == "cond":
        return max(inner)
    return equation.params.get("length", 1) * sum(inner) if name == "scan" else sum(inner)


def _jaxprs(value: Any) -> list[Any]:
    """The jaxprs in a parameter of an equation."""
    if isinstance(value, tuple | list):
        return [found for item in value for found in _jaxprs(item)]
    if hasattr(value, "eqns"):
        return [value]
    return [value.jaxpr] if hasattr(value, "jaxpr") and hasattr(value.jaxpr, "eqns") else []


def _dot(equation: Any) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left, out = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
    return 2 * math.prod(out) * math.prod(left[axis] for axis in contracted)


def _convolution(equation: Any) -> int:
    """Counts places outside the picture too, where the kernel meets padding."""
    kernel, out = equation.invars[1].aval.shape, equation.outvars[0].aval.shape
    numbers = equation.params["dimension_numbers"].rhs_spec  # (out, in, *space)
    return 2 * math.prod(out) * math.prod(kernel[axis] for axis in numbers[1:])


_COUNTS: Final = {"dot_general": _dot, "conv_general_dilated": _convolution}
