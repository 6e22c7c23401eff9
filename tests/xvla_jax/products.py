"""Products of a traced program, at any depth."""

from __future__ import annotations

from typing import Any

import jax


def shapes(jaxpr: Any) -> set[tuple[int, ...]]:
    """Shapes of the results of all matrix products and convolutions."""
    results: set[tuple[int, ...]] = set()
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("dot_general", "conv_general_dilated"):
            results.add(equation.outvars[0].aval.shape)
        for inner in jax.tree.leaves(equation.params, is_leaf=lambda v: hasattr(v, "eqns")):
            closed = getattr(inner, "jaxpr", inner)
            if hasattr(closed, "eqns"):
                results |= shapes(closed)
    return results
