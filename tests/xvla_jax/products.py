"""Products of a traced program, at any depth."""

from __future__ import annotations

import math
from typing import Any

import jax


def shapes(jaxpr: Any, *, longer: int) -> set[tuple[int, ...]]:
    """Sorted shapes of the results of products that sum over more than ``longer`` numbers.

    Sorted, as a gradient may come transposed.
    """
    results: set[tuple[int, ...]] = set()
    for equation in jaxpr.eqns:
        result = tuple(sorted(equation.outvars[0].aval.shape)) if equation.outvars else ()
        if equation.primitive.name == "dot_general":
            (axes, _), _ = equation.params["dimension_numbers"]
            terms = math.prod(equation.invars[0].aval.shape[axis] for axis in axes)
            results |= {result} if terms > longer else set()
        if equation.primitive.name == "conv_general_dilated":
            results.add(result)
        for inner in jax.tree.leaves(equation.params, is_leaf=lambda v: hasattr(v, "eqns")):
            closed = getattr(inner, "jaxpr", inner)
            if hasattr(closed, "eqns"):
                results |= shapes(closed, longer=longer)
    return results
