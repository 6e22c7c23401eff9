"""Properties that a good train step has, read off its compiled text."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Final

from xvla_jax.lora import MERGE_SCOPE
from xvla_jax.planning import flops, hlo
from xvla_jax.planning.collectives import collective_kind

_HOST_OPS: Final = {"infeed", "outfeed", "send", "recv"}
_GATHERS: Final = {"all-gather", "all-to-all", "collective-permute"}
_OPTIMIZER_STATE: Final = re.compile(r"^state\.opt_state\b")
_LARGE: Final = 2**14  # elements; smaller leaves are not sharded


def host_calls(module: hlo.Module) -> list[str]:
    """Instructions that stop for the host: callbacks, feeds, transfers."""
    return [
        visit.instruction.name
        for visit in module.visits()
        if visit.instruction.op in _HOST_OPS
        or "callback" in visit.instruction.attribute("custom_call_target")
        or "is_host_transfer=true" in visit.instruction.rest
    ]


def wide_products(module: hlo.Module) -> list[str]:
    """``op_name`` of every product of two float32 operands.

    Those of one float32 and one bfloat16 operand are none: the gradient of attention scores, which
    are float32, meets bfloat16 queries and keys, and the matrix unit takes it as bfloat16. Those
    that merge an adapter are left out: exact on purpose, and little work.
    """
    return [
        visit.op_name
        for visit in module.visits()
        if flops.product_flops(visit) is not None
        and MERGE_SCOPE not in visit.op_name
        and visit.operand(0).dtype == visit.operand(1).dtype == "f32"
    ]


def gathers_of_optimizer_state(module: hlo.Module) -> list[str]:
    """Collectives that collect what is computed from the optimizer's state.

    The state is read and written where it lives, and so are the parameters, so there is no need
    for any; sums of scalars, such as a norm of the update, are allowed.
    """
    body = module.computations[module.entry]
    derived: set[str] = set()
    found = []
    for visit in module.visits():
        line = visit.instruction
        if body.get(line.name) is not line:
            continue
        if line.op == "parameter":
            if _OPTIMIZER_STATE.match(line.op_name):
                derived.add(line.name)
        elif derived.intersection(line.operands):
            derived.add(line.name)
            elements = sum(array.elements for array in line.arrays)
            if collective_kind(visit) in _GATHERS and elements >= _LARGE:
                found.append(line.name)
    return found


GUARDS: Final[Mapping[str, Callable[[hlo.Module], list[str]]]] = {
    "host calls": host_calls,
    "products of two float32 operands": wide_products,
    "gathers of optimizer state": gathers_of_optimizer_state,
}
