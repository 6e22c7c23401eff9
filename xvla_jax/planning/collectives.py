"""Bytes between chips, by kind of collective, counted from the compiled text."""

from __future__ import annotations

import enum
import math
import re
from collections.abc import Callable, Mapping
from typing import Final

from xvla_jax.errors import ProgramError
from xvla_jax.planning import hlo

# Bytes that one chip sends, of a group of n, when it puts in `size` bytes. Rings, as TPUs run them.
SENT: Final[Mapping[str, Callable[[int, int], float]]] = {
    "all-gather": lambda n, size: (n - 1) * size,
    "all-reduce": lambda n, size: 2 * (n - 1) / n * size,
    "reduce-scatter": lambda n, size: (n - 1) / n * size,
    "all-to-all": lambda n, size: (n - 1) / n * size,
    "collective-permute": lambda n, size: size,  # noqa: ARG005
}


def collective_kind(visit: hlo.Visit) -> str | None:
    """A key of `SENT`, or None for what is no collective or the end of one that was counted.

    TPU text writes a reduce-scatter as a fusion of an all-reduce with a slice, called so.
    """
    kind = visit.instruction.op.removesuffix("-start")
    if kind == "all-reduce" and "all-reduce-scatter" in "".join(hlo.called_by(visit.inside)):
        return "reduce-scatter"
    return kind if kind in SENT else None


class Part(enum.Enum):
    """What a fusion does of a collective that goes on beside other work.

    TPU text repeats the collective in every one of them. Channels do not tell that it is the same,
    as unrelated collectives share some.
    """

    START = enum.auto()  # reads what is sent, yields the buffers
    MEANWHILE = enum.auto()  # does other work, gets and hands on the buffers
    END = enum.auto()


def part_of_collective(line: hlo.Instruction, computations: hlo.Computations) -> Part | None:
    """Which part a fusion is; None for any other instruction."""
    if line.op != "fusion" or "output_to_operand_aliasing" not in line.rest:
        return None
    body = computations[hlo.called_by(line)[0]].values()
    if not any(inner.op in SENT for inner in body):
        return None
    targets = {inner.attribute("custom_call_target").strip('"') for inner in body}
    if "AsyncCollectiveStart" in targets:
        return Part.START
    return Part.END if "AsyncCollectiveDone" in targets else Part.MEANWHILE


def bytes_by_kind(module: hlo.Module, *, devices: int) -> dict[str, float]:
    """Bytes that one of ``devices`` chips sends in one run of the program, for every kind."""
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


def group_size(collective: hlo.Instruction, devices: int) -> int:
    """Chips that take part in one group of a collective.

    Raises:
        ProgramError: groups in a form that this reader does not know.
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
