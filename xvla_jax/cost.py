"""FLOPs of a compiled program, counted from its text: a loop's body times its trip count.

XLA's own ``cost_analysis`` counts a loop's body once, and does not say where the work is.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from xvla_jax.errors import ProgramError

_COMPUTATION: Final = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) .*\{$")
_INSTRUCTION: Final = re.compile(
    r"^\s+(?:ROOT )?%?(?P<name>[\w.\-]+) = (?P<shape>\(.*?\)|\S+) (?P<op>[\w\-]+)\((?P<rest>.*)$"
)
_CALLED: Final = re.compile(r"(?:calls|to_apply|body|condition)=%?([\w.\-]+)")
_BRANCHES: Final = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS: Final = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_SHAPE: Final = re.compile(r"^\w+\[([\d,]*)\]")
_OP_NAME: Final = re.compile(r'op_name="([^"]*)"')


@dataclasses.dataclass(frozen=True)
class Product:
    """One matrix product or convolution of a program.

    Attributes:
        op_name: where it comes from, JAX's path of modules and primitives. Where XLA has dropped
            it, that of the instruction scheduled before.
        flops: of one run, a multiplication and an addition counted apart.
        runs: how often the program runs it.
    """

    op_name: str
    flops: int
    runs: int


@dataclasses.dataclass(frozen=True)
class _Instruction:
    name: str
    shape: str
    op: str
    rest: str  # operands and attributes


def products(text: str | None) -> list[Product]:
    """All matrix products and convolutions of an HLO text, as ``compiled.as_text()`` gives it.

    Raises:
        ProgramError: a loop without a known trip count, or no entry computation.
    """
    computations, entry = _parse(text or "")
    found: list[Product] = []

    def visit(name: str, runs: int, where: str) -> None:
        shapes = {i.name: i.shape for i in computations[name]}
        for instruction in computations[name]:
            named = _OP_NAME.search(instruction.rest)
            where = named[1] if named else where
            count = _FLOPS.get(instruction.op)
            if count is not None:
                found.append(Product(where, count(instruction, shapes), runs))
            for called in _called(instruction):
                visit(called, runs * _trips(instruction), where)

    visit(entry, 1, "")
    return found


def flops_by_stage(text: str | None, stages: Mapping[str, str]) -> dict[str, int]:
    """FLOPs of a program by stage.

    Args:
        text: see `products`.
        stages: name -> regular expression over ``op_name``; the first that is found counts.

    Returns:
        All stages in their order, and ``other`` for what no expression finds.
    """
    total: collections.Counter[str] = collections.Counter(dict.fromkeys([*stages, "other"], 0))
    for product in products(text):
        stage = next((s for s, rule in stages.items() if re.search(rule, product.op_name)), "other")
        total[stage] += product.flops * product.runs
    return dict(total)


def _parse(text: str) -> tuple[dict[str, list[_Instruction]], str]:
    computations: dict[str, list[_Instruction]] = {}
    current: list[_Instruction] = []
    entry = ""
    for line in text.splitlines():
        if head := _COMPUTATION.match(line):
            current = computations.setdefault(head[1], [])
            entry = head[1] if line.startswith("ENTRY") else entry
        elif found := _INSTRUCTION.match(line):
            current.append(_Instruction(**found.groupdict()))
    if not entry:
        raise ProgramError("the text has no ENTRY computation; compiled.as_text() is expected")
    return computations, entry


def _called(instruction: _Instruction) -> Iterator[str]:
    yield from _CALLED.findall(instruction.rest)
    if branches := _BRANCHES.search(instruction.rest):
        yield from re.findall(r"[\w.\-]+", branches[1])


def _trips(instruction: _Instruction) -> int:
    if instruction.op != "while":
        return 1
    trips = _TRIPS.search(instruction.rest)
    if trips is None:
        raise ProgramError(
            f"loop {instruction.name} has no known trip count; count a program with static loops"
        )
    return int(trips[1])


def _dimensions(shape: str) -> Sequence[int]:
    found = _SHAPE.match(shape)
    return [int(n) for n in found[1].split(",") if n] if found else []


def _operand(instruction: _Instruction, index: int, shapes: Mapping[str, str]) -> Sequence[int]:
    operands = re.findall(r"%([\w.\-]+)", instruction.rest.split(")")[0])
    return _dimensions(shapes[operands[index]])


def _dot_flops(instruction: _Instruction, shapes: Mapping[str, str]) -> int:
    left = _operand(instruction, 0, shapes)
    axes = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.rest)
    contracted = [left[int(axis)] for axis in axes[1].split(",") if axis] if axes else []
    return 2 * math.prod(_dimensions(instruction.shape)) * math.prod(contracted)


def _convolution_flops(instruction: _Instruction, shapes: Mapping[str, str]) -> int:
    kernel = _operand(instruction, 1, shapes)
    labels = re.search(r"dim_labels=\w+_(\w+)->", instruction.rest)
    assert labels, instruction.rest
    outputs = kernel[labels[1].index("o")]
    return 2 * math.prod(_dimensions(instruction.shape)) * math.prod(kernel) // outputs


_FLOPS: Final = {"dot": _dot_flops, "convolution": _convolution_flops}
