"""FLOPs of matrix products and convolutions, of compiled programs and of traced functions.

XLA's own ``cost_analysis`` counts the body of a loop once, and does not show where the work is.
Here a loop's body counts as often as it runs, and each product keeps its place in the model.
Compiled text shows what runs on the device, rematerialised products included; a traced step shows
the work of the model alone. A kernel (``xvla_jax/models/fused_attention.py``) states its own FLOPs.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

import jax
import numpy as np

from xvla_jax.models.packing import OVERFLOW_SCOPE
from xvla_jax.planning import hlo
from xvla_jax.planning.chips import CHIPS
from xvla_jax.processor import Processor
from xvla_jax.training.state import Recipe
from xvla_jax.training.step import make_train_step


class Peak(NamedTuple):
    """Highest rates of a device: dense bfloat16 FLOP/s, and bytes/s of its memory."""

    flops: float
    hbm_bandwidth: float

    @classmethod
    def of_chip(cls, name: str) -> Peak:
        """Returns the rates of a row of `CHIPS`."""
        return cls(CHIPS[name].peak_flops, CHIPS[name].hbm_bandwidth)


# Start of `device_kind` -> its peak; the first match counts. GPUs: NVIDIA's data sheets of A100 SXM
# (80 and 40 GB), H100 SXM and H200 SXM.
PEAKS: Final[Mapping[str, Peak]] = {
    "TPU v5 lite": Peak.of_chip("v5e"),
    "TPU v5": Peak.of_chip("v5p"),
    "TPU v6 lite": Peak.of_chip("v6e"),
    "NVIDIA A100-SXM4-40GB": Peak(312e12, 1555e9),
    "NVIDIA A100": Peak(312e12, 2039e9),
    "NVIDIA H100": Peak(989e12, 3350e9),
    "NVIDIA H200": Peak(989e12, 4800e9),
}


@dataclasses.dataclass(frozen=True)
class Product:
    """One matrix product or convolution of a program.

    Attributes:
        op_name: JAX's path of modules and primitives; where XLA has dropped it, that of the
            instruction scheduled before.
        flops: of one run; a multiplication and an addition count as two.
        runs: how often the program runs it.
        dtypes: of both operands.
    """

    op_name: str
    flops: int
    runs: int
    dtypes: tuple[str, str]


def peak_of(device_kind: str) -> Peak | None:
    """Returns the peak of a device; None if `PEAKS` has no row, as for CPUs."""
    return next((peak for kind, peak in PEAKS.items() if device_kind.startswith(kind)), None)


def products(text: str | None) -> list[Product]:
    """Lists all matrix products and convolutions of a program's text.

    Raises:
        ProgramError: a loop without a known trip count, or no entry computation.
    """
    counted = []
    for visit in hlo.parse(text).visits():
        flops = product_flops(visit)
        if flops is not None:
            dtypes = (visit.operand(0).dtype, visit.operand(1).dtype)
            counted.append(Product(visit.op_name, flops, visit.runs, dtypes))
    return counted


def product_flops(visit: hlo.Visit) -> int | None:
    """Returns the FLOPs of one run; None if it is no matrix product or convolution."""
    count = _FLOPS.get(visit.instruction.op)
    return None if count is None else count(visit)


def recomputed_flops(visit: hlo.Visit, flops: int) -> int:
    """Returns the part of the FLOPs of a product that rematerialisation repeats."""
    from xvla_jax.models.fused_attention import BACKWARD_KERNEL

    if "rematted_computation" in visit.op_name:
        return flops
    return flops // 5 if BACKWARD_KERNEL in visit.op_name else 0  # the scores, one of five products


def flops_by_stage(text: str | None, stages: Mapping[str, str]) -> dict[str, int]:
    """Counts the FLOPs of a program by stage.

    Args:
        text: see `products`.
        stages: name -> regular expression over ``op_name``; the first match counts.

    Returns:
        All stages in their order, and ``other`` for products that match no expression.
    """
    total: collections.Counter[str] = collections.Counter(dict.fromkeys([*stages, "other"], 0))
    for product in products(text):
        stage = next((s for s, rule in stages.items() if re.search(rule, product.op_name)), "other")
        total[stage] += product.flops * product.runs
    return dict(total)


def step_flops(recipe: Recipe, processor: Processor, state: Any, batch: Any) -> int:
    """Counts FLOPs of one train step, over all devices, without rematerialised ones.

    Args:
        recipe: the model and how it is trained.
        processor: of the images.
        state: tree with the shapes of the state.
        batch: tree with the shapes of a batch on the device.
    """
    plain = dataclasses.replace(recipe, model=recipe.model.clone(remat="none", attention="xla"))
    # traced directly: a step has compiler options, which no inner function may have
    step: Any = make_train_step(plain, processor, seed=0)
    return flops_of(step.trace(*_shapes((state, batch))))


def flops_of(traced: jax.stages.Traced) -> int:
    """Counts FLOPs of a traced function of one device, as `traced_flops` does."""
    return _total(traced.jaxpr.jaxpr)


def traced_flops(function: Callable[..., Any], *arguments: Any) -> int:
    """Counts FLOPs of a function; arguments may be abstract.

    A scan counts as often as it runs, a ``while`` of unknown length once, a ``cond`` as its largest
    branch, but for the second pass of packed views, which most steps skip.
    """
    return _total(jax.make_jaxpr(function)(*_shapes(arguments)).jaxpr)


def _dot_flops(visit: hlo.Visit) -> int:
    left = visit.operand(0).dimensions
    axes = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", visit.instruction.rest)
    contracted = [left[int(axis)] for axis in axes[1].split(",") if axis] if axes else []
    return 2 * visit.instruction.arrays[0].elements * math.prod(contracted)


def _convolution_flops(visit: hlo.Visit) -> int:
    """Counts products with real places of the image: TPU text writes every product as convolution.

    A batch axis of a product becomes a window over an image dilated by holes, of which one place in
    each position is real; counting all places of the window would count the batch twice.
    """
    line = visit.instruction
    left, right, out = re.split("_|->", line.attribute("dim_labels"))
    image, kernel = visit.operand(0).dimensions, visit.operand(1).dimensions
    result = line.arrays[0].dimensions
    rank = len([label for label in right if label.isdigit()])
    window = _window(line.rest, rank)
    touched = math.prod(
        _touched(
            image[left.index(str(i))], kernel[right.index(str(i))], result[out.index(str(i))], *row
        )
        for i, row in enumerate(window)
    )
    groups = int(line.attribute("batch_group_count") or 1)
    batch, features = image[left.index("b")] // groups, result[out.index("f")]
    return 2 * touched * batch * features * kernel[right.index("i")]


def _window(rest: str, rank: int) -> list[tuple[int, int, int, int]]:
    """Returns (stride, padding before, holes in the image, holes in the kernel) by axis."""
    match = re.search(r"window=\{([^}]*)\}", rest)
    fields = dict(item.split("=") for item in match[1].split()) if match else {}

    def numbers(name: str, default: str) -> list[int]:
        values = fields.get(name, "x".join([default] * rank)).split("x")
        return [int(value.split("_")[0]) for value in values] if rank else []

    return list(
        zip(
            numbers("stride", "1"),
            numbers("pad", "0_0"),
            numbers("lhs_dilate", "1"),
            numbers("rhs_dilate", "1"),
            strict=True,
        )
    )


@functools.cache
def _touched(
    image: int, kernel: int, result: int, stride: int, pad: int, image_holes: int, kernel_holes: int
) -> int:
    """Counts pairs of a kernel place and a result place that meet a real place of the image."""
    # place of the dilated image, [result, kernel]
    places = np.arange(result)[:, None] * stride - pad + np.arange(kernel)[None, :] * kernel_holes
    real = (places >= 0) & (places <= (image - 1) * image_holes) & (places % image_holes == 0)
    return int(real.sum())


def _kernel_flops(visit: hlo.Visit) -> int | None:
    """Reads the FLOPs that a kernel states; None for other calls."""
    stated = _STATED.search(visit.instruction.rest)
    return int(stated[1]) if stated and "tpu_custom_call" in visit.instruction.rest else None


_STATED: Final = re.compile(r'"cost_estimate":\{[^}]*"flops":"?(\d+)')
_FLOPS: Final = {
    "dot": _dot_flops,
    "convolution": _convolution_flops,
    "custom-call": _kernel_flops,
}


def _shapes(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), arguments)


def _total(jaxpr: Any) -> int:
    return sum(_equation(equation) for equation in jaxpr.eqns)


def _equation(equation: Any) -> int:
    name = equation.primitive.name
    if name in _COUNTS:
        return _COUNTS[name](equation)
    inner = [_total(jaxpr) for value in equation.params.values() for jaxpr in _jaxprs(value)]
    if name == "cond":
        skipped = OVERFLOW_SCOPE in str(equation.source_info.name_stack)
        return min(inner) if skipped else max(inner)
    return equation.params.get("length", 1) * sum(inner) if name == "scan" else sum(inner)


def _jaxprs(value: Any) -> list[Any]:
    """Returns the jaxprs in a parameter of an equation."""
    if isinstance(value, tuple | list):
        return [jaxpr for item in value for jaxpr in _jaxprs(item)]
    if hasattr(value, "eqns"):
        return [value]
    return [value.jaxpr] if hasattr(value, "jaxpr") and hasattr(value.jaxpr, "eqns") else []


def _dot(equation: Any) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left, out = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
    return 2 * math.prod(out) * math.prod(left[axis] for axis in contracted)


def _convolution(equation: Any) -> int:
    """Counts places outside the image too, where the kernel meets padding."""
    kernel, out = equation.invars[1].aval.shape, equation.outvars[0].aval.shape
    numbers = equation.params["dimension_numbers"].rhs_spec  # (out, in, *space)
    return 2 * math.prod(out) * math.prod(kernel[axis] for axis in numbers[1:])


_COUNTS: Final = {"dot_general": _dot, "conv_general_dilated": _convolution}
