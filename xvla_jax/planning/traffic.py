"""Bytes between a chip's HBM and its cores, and the roofline of a program by its pieces of work."""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Mapping
from typing import Final

from xvla_jax.planning import hlo
from xvla_jax.planning.chips import Slice
from xvla_jax.planning.flops import product_flops
from xvla_jax.planning.hlo import Part, bytes_by_kind, part_of_collective

ASSUMPTIONS: Final = (
    "each fusion takes the longer of its FLOPs over the chip's bfloat16 peak and its HBM bytes "
    "over the HBM bandwidth; fusions follow each other",
    "collectives are rings over one axis of the slice; fastest: all of their time is hidden "
    "behind the cores' work; slowest: none is",
    "nothing waits for data, and elementwise work costs its bytes alone (random bits for dropout "
    "do not)",
)
# instructions that move nothing: they name, pack or wait for the results of others
_FREE: Final = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "iota", "after-all"),
    *("while", "call", "conditional", "partition-id", "replica-id", "optimization-barrier"),
}
_ALIASED: Final = re.compile(
    r"\{(\d+)\}: \((\d+), \{\}\)"
)  # a result, and the operand whose place it takes
_RELABEL: Final = {"bitcast", "reshape", "convert", "copy"}


@dataclasses.dataclass(frozen=True)
class Work:
    """One scheduled piece of a program, such as a fusion, over all of its runs."""

    op_name: str
    flops: int  # of matrix products
    recomputed: int  # the part of them that rematerialisation repeats
    bytes: int  # read from and written to HBM


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Work and time of one run of a program on one chip of a slice.

    Attributes:
        flops: of matrix products, recomputed ones included.
        model_flops: without recomputed ones.
        hbm_bytes: read and written.
        ici_bytes: sent, by kind of collective.
        core_seconds: sum over fusions.
        ici_seconds: sum over collectives.
        peak_flops: of the chip.
    """

    flops: int
    model_flops: int
    hbm_bytes: int
    ici_bytes: Mapping[str, float]
    core_seconds: float
    ici_seconds: float
    peak_flops: float

    @property
    def fastest(self) -> float:
        """Seconds if all collectives are hidden."""
        return max(self.core_seconds, self.ici_seconds)

    @property
    def slowest(self) -> float:
        """Seconds if no collective is hidden."""
        return self.core_seconds + self.ici_seconds

    @property
    def mfu_bound(self) -> float:
        """Share of the peak that the model's own products can reach."""
        return self.model_flops / self.peak_flops / self.fastest

    @property
    def limited_by(self) -> str:
        """Name of the resource that bounds the fastest time."""
        if self.ici_seconds > self.core_seconds:
            return "links between chips"
        return "FLOPs" if self.flops / self.peak_flops > self.core_seconds / 2 else "HBM bandwidth"


def estimate(module: hlo.Module, target: Slice) -> Estimate:
    """Computes the roofline of a program on a slice."""
    chip = target.chip
    work = pieces(module)
    flops = sum(piece.flops for piece in work)
    sent = bytes_by_kind(module, devices=len(target.devices))
    return Estimate(
        flops=flops,
        model_flops=flops - sum(piece.recomputed for piece in work),
        hbm_bytes=sum(piece.bytes for piece in work),
        ici_bytes=sent,
        core_seconds=sum(
            max(piece.flops / chip.peak_flops, piece.bytes / chip.hbm_bandwidth) for piece in work
        ),
        ici_seconds=sum(sent.values()) / target.ici_bandwidth,
        peak_flops=chip.peak_flops,
    )


def host_ram(*, state_bytes: int, target: Slice, pipeline: Mapping[str, int]) -> dict[str, int]:
    """Returns the bytes on one host, by term.

    Args:
        state_bytes: of the complete train state; a host copies its part to save it.
        target: its hosts share the state.
        pipeline: terms of the data pipeline on a host, see ``data.stream.memory``.
    """
    return {"checkpoint copy": state_bytes // target.hosts, **pipeline}


def pieces(module: hlo.Module) -> list[Work]:
    """Returns the scheduled pieces of a program, each with the work inside it."""
    flops: collections.Counter[str] = collections.Counter()
    again: collections.Counter[str] = collections.Counter()
    moved: dict[str, tuple[str, int]] = {}
    for visit in module.visits():
        name = visit.inside.name
        count = product_flops(visit)
        if count is not None:
            flops[name] += count * visit.runs
            again[name] += count * visit.runs * ("rematted_computation" in visit.op_name)
        if visit.scheduled and visit.instruction.op not in _FREE:
            before = moved.get(name, ("", 0))[1]
            size = _moved(visit.instruction, visit.peers, module.computations)
            moved[name] = (visit.op_name, before + size * visit.runs)
    return [
        Work(op_name, flops[name], again[name], size)
        for name, (op_name, size) in moved.items()
        if flops[name] or size
    ]


def _moved(
    line: hlo.Instruction, peers: Mapping[str, hlo.Instruction], computations: hlo.Computations
) -> int:
    if line.op.endswith("-done"):
        return 0
    outputs, inputs = _passed_buffers(line, computations)
    results = [] if _is_update(line, computations) else _results(line)
    written = sum(
        array.bytes
        for place, array in enumerate(results)
        if place not in outputs and not array.on_chip
    )
    for place, name in enumerate(line.operands):
        source = peers[name].arrays
        if source and place not in inputs and not source[0].on_chip:
            full = sum(array.bytes for array in source)
            written += min(full, _touched(line, place, full, computations))
    return written


def _results(line: hlo.Instruction) -> list[hlo.Array]:
    """Returns the arrays that a line writes, without the contexts of an asynchronous start."""
    if line.op == "copy-start":  # destination, source, context
        return line.arrays[:1]
    if line.op.endswith("-start"):  # operands, results, contexts; of a sum only the results
        count = len(line.operands)
        return line.arrays[count : 2 * count] or line.arrays
    return line.arrays


def _passed_buffers(
    line: hlo.Instruction, computations: hlo.Computations
) -> tuple[set[int], set[int]]:
    """Returns places of a fusion's results and operands that are buffers of a running collective.

    They are not moved again: the fusion that starts it reads what is sent and writes what arrives.
    """
    part = part_of_collective(line, computations)
    if part is None:
        return set(), set()
    if part is Part.END:
        return set(range(len(line.arrays))), set(range(len(line.operands)))
    pairs = [(int(out), int(place)) for out, place in _ALIASED.findall(line.rest)]
    inputs = {place for _, place in pairs} if part is Part.MEANWHILE else set()
    return {out for out, _ in pairs}, inputs


def _touched(line: hlo.Instruction, place: int, full: int, computations: hlo.Computations) -> int:
    """Returns the bytes of an operand that are read, or changed if it is updated in place."""
    if line.op.removesuffix("-start") in ("dynamic-slice", "gather", "slice") and place == 0:
        return sum(array.bytes for array in _results(line))
    if line.op != "fusion":
        return full
    body = computations[hlo.called_by(line)[0]]
    inner = [i for i in body.values() if i.op == "parameter" and i.rest.startswith(f"{place})")]
    return sum(_used(i, body, full, computations) for i in inner)


def _used(
    value: hlo.Instruction,
    body: Mapping[str, hlo.Instruction],
    full: int,
    computations: hlo.Computations,
) -> int:
    total = 0
    for user in body.values():
        for place, name in enumerate(user.operands if user.op != "parameter" else []):
            if name != value.name:
                continue
            if user.op in _RELABEL:
                total += _used(user, body, full, computations)
            elif user.op == "dynamic-update-slice" and place == 0:
                total += 2 * body[user.operands[1]].arrays[0].bytes
            else:
                total += _touched(user, place, full, computations)
    return min(total, full)


def _is_update(line: hlo.Instruction, computations: hlo.Computations) -> bool:
    """True if the result is an operand updated in place; `_used` counts the changed bytes."""
    if line.op != "fusion":
        return False
    last = list(computations[hlo.called_by(line)[0]].values())[-1]
    return last.op == "dynamic-update-slice"
