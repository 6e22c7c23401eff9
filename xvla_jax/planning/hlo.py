"""Compiled programs as text: instructions, what they call, how often they run, what chips send.

Reads ``compiled.as_text()`` of CPU and TPU.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

from xvla_jax.errors import ProgramError
from xvla_jax.models.packing import OVERFLOW_SCOPE

_COMPUTATION: Final = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) .*\{$")
_INSTRUCTION: Final = re.compile(
    r"^\s+(?:ROOT )?%?(?P<name>[\w.\-]+) = (?P<shape>\(.*?\)|\S+) (?P<op>[\w\-]+)\((?P<rest>.*)$"
)
_CALLED: Final = re.compile(
    r"(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)"
)
_BRANCHES: Final = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS: Final = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_OP_NAME: Final = re.compile(r'op_name="([^"]*)"')
_ARRAY: Final = re.compile(r"(\w+)\[([\d,]*)\](\{[^}]*\})?")
# Memory space of a layout: none or 0 is HBM, 5 is the host's memory, the others are the core's own.
_NEAR: Final = re.compile(r"S\([1-46-9]\)")
_BITS: Final = re.compile(r"^[a-z]+?(\d+)")  # of a type's name: bf16, f8e4m3fn, s32
# instructions that only run the computations that they name
_CONTROL: Final = ("while", "call", "conditional")
# Bytes that one chip of n sends when it puts in `size` bytes: rings, as TPUs run them.
SENT: Final[Mapping[str, Callable[[int, int], float]]] = {
    "all-gather": lambda n, size: (n - 1) * size,
    "all-reduce": lambda n, size: 2 * (n - 1) / n * size,
    "reduce-scatter": lambda n, size: (n - 1) / n * size,
    "all-to-all": lambda n, size: (n - 1) / n * size,
    "collective-permute": lambda n, size: size,  # noqa: ARG005
}


@dataclasses.dataclass(frozen=True)
class Array:
    """One array of a shape, on one device."""

    dtype: str
    dimensions: tuple[int, ...]
    layout: str

    @property
    def elements(self) -> int:
        """Number of elements, without the padding of tiles."""
        return functools.reduce(lambda a, b: a * b, self.dimensions, 1)

    @property
    def bytes(self) -> int:
        """Size without the padding of tiles."""
        bits = _BITS.match(self.dtype)
        return self.elements * (int(bits[1]) if bits else 8) // 8  # pred and tokens: one byte

    @property
    def on_chip(self) -> bool:
        """True if it stays beside the cores: scalars, and arrays that TPU text places there."""
        return not self.dimensions or _NEAR.search(self.layout) is not None


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str
    shape: str
    op: str
    rest: str  # operands and attributes

    @property
    def arrays(self) -> list[Array]:
        """Arrays that it yields; a tuple yields several."""
        return arrays(self.shape)

    @property
    def operands(self) -> list[str]:
        """Names of the instructions that it reads."""
        return re.findall(r"%([\w.\-]+)", self.rest.split(")")[0])

    @property
    def op_name(self) -> str:
        """JAX's path of modules and primitives; empty where the compiler dropped it."""
        match = _OP_NAME.search(self.rest)
        return match[1] if match else ""

    def attribute(self, name: str) -> str:
        """Returns the value of an attribute such as ``dim_labels``; empty if it is not given."""
        match = re.search(rf"\b{name}=([^\s,]+)", self.rest)
        return match[1] if match else ""


@dataclasses.dataclass(frozen=True)
class Visit:
    """An instruction where the program runs it.

    Attributes:
        instruction: the line.
        peers: all instructions of its computation, by name.
        runs: how often the program runs it.
        op_name: its own, or that of the instruction scheduled before.
        inside: the instruction that runs as one piece and holds it, such as a fusion; itself if
            there is none.
    """

    instruction: Instruction
    peers: Mapping[str, Instruction]
    runs: int
    op_name: str
    inside: Instruction

    @property
    def scheduled(self) -> bool:
        """True if it runs by itself, not as a part of a fusion."""
        return self.inside is self.instruction

    def operand(self, index: int) -> Array:
        """Returns the array that it reads as operand ``index``."""
        return self.peers[self.instruction.operands[index]].arrays[0]


Computations = Mapping[str, Mapping[str, Instruction]]  # instructions by name, by computation


@dataclasses.dataclass(frozen=True)
class Module:
    """A parsed program."""

    computations: Computations
    entry: str

    def visits(self) -> Iterator[Visit]:
        """Yields all instructions that run, in order; those of loops once, with their runs.

        All branches of a conditional count as run, but for the second pass of packed views, which
        most steps skip.

        Raises:
            ProgramError: a loop without a known trip count.
        """
        return self._visit(self.entry, 1, "", None)

    def _visit(
        self, computation: str, runs: int, where: str, inside: Instruction | None
    ) -> Iterator[Visit]:
        peers = self.computations[computation]
        for instruction in peers.values():
            where = instruction.op_name or where
            yield Visit(instruction, peers, runs, where, inside or instruction)
            deeper = inside or (None if instruction.op in _CONTROL else instruction)
            for called in _run_by(instruction):
                times = runs * self._trips(instruction)
                yield from self._visit(called, times, where, deeper)

    def _trips(self, instruction: Instruction) -> int:
        if instruction.op != "while":
            return 1
        trips = _TRIPS.search(instruction.rest)
        if trips:
            return int(trips[1])
        # TPU text has no trip count, but its loops count from 0 and end at a constant.
        condition = self.computations[instruction.attribute("condition").lstrip("%")]
        last = list(condition.values())[-1]
        bounds = [
            re.match(r"(\d+)\)", condition[name].rest)
            for name in last.operands
            if name in condition and condition[name].op == "constant"
        ]
        if last.op == "compare" and "direction=LT" in last.rest and bounds and bounds[0]:
            return int(bounds[0][1])
        raise ProgramError(
            f"loop {instruction.name} has no known trip count; count a program with static loops"
        )


class Part(enum.Enum):
    """Part of a fusion in a collective that runs beside other work.

    TPU text repeats the collective in each of these fusions. Channels do not identify it, as
    unrelated collectives share some.
    """

    START = enum.auto()  # reads the operands, yields the buffers
    MEANWHILE = enum.auto()  # does other work, passes the buffers through
    END = enum.auto()


def parse(text: str | None) -> Module:
    """Parses the text of a program, as ``compiled.as_text()`` returns it.

    Raises:
        ProgramError: there is no entry computation.
    """
    computations: dict[str, dict[str, Instruction]] = {}
    current: dict[str, Instruction] = {}
    entry = ""
    for line in (text or "").splitlines():
        if head := _COMPUTATION.match(line):
            current = computations.setdefault(head[1], {})
            entry = head[1] if line.startswith("ENTRY") else entry
        elif match := _INSTRUCTION.match(line):
            current[match["name"]] = Instruction(**match.groupdict())
    if not entry:
        raise ProgramError("the text has no ENTRY computation; compiled.as_text() is expected")
    return Module(computations, entry)


def arrays(shape: str) -> list[Array]:
    """Returns the arrays of a shape or tuple of shapes."""
    return [
        Array(dtype, tuple(int(n) for n in dimensions.split(",") if n), layout or "")
        for dtype, dimensions, layout in _ARRAY.findall(shape)
    ]


def called_by(instruction: Instruction) -> Sequence[str]:
    """Returns the names of the computations that an instruction runs."""
    branches = _BRANCHES.search(instruction.rest)
    return _CALLED.findall(instruction.rest) + (
        re.findall(r"[\w.\-]+", branches[1]) if branches else []
    )


def _run_by(instruction: Instruction) -> Sequence[str]:
    """Returns the names of the computations that an instruction runs in most steps."""
    called = called_by(instruction)
    if instruction.op != "conditional" or OVERFLOW_SCOPE not in instruction.op_name:
        return called
    skipped = instruction.attribute("false_computation").lstrip("%")
    return [skipped or called[0]]  # a list of branches begins with the one of False


def bytes_by_kind(module: Module, *, devices: int) -> dict[str, float]:
    """Returns the bytes that one of ``devices`` chips sends in one run of the program, by kind."""
    total = dict.fromkeys(SENT, 0.0)
    for visit in module.visits():
        kind = collective_kind(visit)
        if kind is None:
            continue
        if part_of_collective(visit.inside, module.computations) in (None, Part.START):
            size = sum(
                array.bytes
                for name in visit.instruction.operands
                for array in visit.peers[name].arrays
            )
            total[kind] += visit.runs * SENT[kind](group_size(visit.instruction, devices), size)
    return total


def collective_kind(visit: Visit) -> str | None:
    """Returns a key of `SENT`; None if it is no collective, or the end of one that was counted.

    TPU text writes a reduce-scatter as a fusion of an all-reduce with a slice, named accordingly.
    """
    kind = visit.instruction.op.removesuffix("-start")
    if kind == "all-reduce" and "all-reduce-scatter" in "".join(called_by(visit.inside)):
        return "reduce-scatter"
    return kind if kind in SENT else None


def part_of_collective(line: Instruction, computations: Computations) -> Part | None:
    """Returns the part of a fusion; None for any other instruction."""
    if line.op != "fusion" or "output_to_operand_aliasing" not in line.rest:
        return None
    body = computations[called_by(line)[0]].values()
    if not any(inner.op in SENT for inner in body):
        return None
    targets = {inner.attribute("custom_call_target").strip('"') for inner in body}
    if "AsyncCollectiveStart" in targets:
        return Part.START
    return Part.END if "AsyncCollectiveDone" in targets else Part.MEANWHILE


def group_size(collective: Instruction, devices: int) -> int:
    """Returns the number of chips in one group of a collective.

    Raises:
        ProgramError: the groups have an unknown form.
    """
    groups = collective.rest.partition("replica_groups=")[2]
    if not groups or groups.startswith("{}"):
        return devices
    if listed := re.match(r"\{\{([\d,]*)\}", groups):
        return len(listed[1].split(","))
    if counted := re.match(r"\[\d+,(\d+)\]<=", groups):
        return int(counted[1])
    if named := re.match(r"mesh\[([^\]]*)\](?:, device_ids=\([^{]*\))? \{([^}]*)\}", groups):
        sizes = dict(axis.split("=") for axis in named[1].split(","))
        return math.prod(int(sizes[axis.strip()]) for axis in named[2].split(","))
    raise ProgramError(f"{collective.name} has groups of an unknown form: {groups[:60]!r}")
