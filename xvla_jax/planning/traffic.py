"""Bytes between a chip's HBM and its cores, and the roofline of a program by its pieces of work."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import re
from collections.abc import Mapping
from typing import Final

from xvla_jax.planning import hlo
from xvla_jax.planning.chips import Chip, Slice
from xvla_jax.planning.flops import product_flops, recomputed_flops
from xvla_jax.planning.hlo import Part, bytes_by_kind, collective_kind, part_of_collective

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
_KINDS: Final = ("product", "collective", "slice update", "copy", "elementwise")
_RELABEL: Final = {"bitcast", "reshape", "convert", "copy"}


# Stage of a piece -> regular expression over its `op_name`; the first match counts.
STAGES: Final[Mapping[str, str]] = {
    "vision tower": r"/vision_tower/",
    "image tokens": r"/image_projector/",
    "text encoder": r"/text_encoder/",
    "head": r"/transformer/",
    "loss, inputs": r"jvp\(",
    "optimizer": r"",  # what is not differentiated: norms, moments, updates
}
# Pass over the model that a piece belongs to, likewise.
PASSES: Final[Mapping[str, str]] = {
    "forward again": r"rematted_computation",
    "backward": r"transpose\(",
    "forward": r"",
}


@dataclasses.dataclass(frozen=True)
class Work:
    """One scheduled piece of a program, such as a fusion, over all of its runs."""

    op_name: str
    flops: int  # of matrix products
    recomputed: int  # the part of them that rematerialisation repeats
    bytes: int  # read from and written to HBM
    kind: str  # the first of `_KINDS` that it holds

    def seconds(self, chip: Chip) -> float:
        """Time on a chip: the longer of its FLOPs and its bytes."""
        return max(self.flops / chip.peak_flops, self.bytes / chip.hbm_bandwidth)


@dataclasses.dataclass(frozen=True)
class Share:
    """Work of one kind in one pass over one stage of the model.

    Attributes:
        stage: a key of `STAGES`.
        of_pass: a key of `PASSES`.
        kind: see `Work`.
        flops: of matrix products.
        bytes: read from and written to HBM.
        seconds: sum over its pieces, see `ASSUMPTIONS`.
    """

    stage: str
    of_pass: str
    kind: str
    flops: int
    bytes: int
    seconds: float


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
        core_seconds=sum(piece.seconds(chip) for piece in work),
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
    kinds: dict[str, set[str]] = collections.defaultdict(set)
    for visit in module.visits():
        name = visit.inside.name
        count = product_flops(visit)
        if count is not None:
            flops[name] += count * visit.runs
            again[name] += recomputed_flops(visit, count) * visit.runs
        kinds[name].add(_kind(visit, count is not None))
        if visit.scheduled and visit.instruction.op not in _FREE:
            before = moved.get(name, ("", 0))[1]
            size = _moved(visit.instruction, visit.peers, module.computations)
            moved[name] = (visit.op_name, before + size * visit.runs)
    return [
        Work(op_name, flops[name], again[name], size, next(k for k in _KINDS if k in kinds[name]))
        for name, (op_name, size) in moved.items()
        if flops[name] or size
    ]


def by_stage(module: hlo.Module, target: Slice) -> list[Share]:
    """Groups a program's pieces by stage, pass and kind, in the order of `STAGES`."""
    total: dict[tuple[str, str, str], list[Work]] = collections.defaultdict(list)
    for piece in pieces(module):
        total[_first(STAGES, piece), _first(PASSES, piece), piece.kind].append(piece)
    orders = (list(STAGES), list(PASSES), list(_KINDS))
    return [
        Share(
            *key,
            sum(piece.flops for piece in total[key]),
            sum(piece.bytes for piece in total[key]),
            sum(piece.seconds(target.chip) for piece in total[key]),
        )
        for key in itertools.product(*orders)
        if key in total
    ]


def _first(rows: Mapping[str, str], piece: Work) -> str:
    return next(name for name, rule in rows.items() if re.search(rule, piece.op_name))


def _kind(visit: hlo.Visit, is_product: bool) -> str:
    """Returns a key of `_KINDS` for one instruction; that of a piece is the first of all of its."""
    if collective_kind(visit) is not None:
        return "collective"
    if is_product:
        return "product"
    if visit.instruction.op == "dynamic-update-slice":
        return "slice update"
    moves = visit.scheduled and visit.instruction.op.partition("-")[0] in ("copy", "transpose")
    return "copy" if moves else "elementwise"


def _moved(
    line: hlo.Instruction, peers: Mapping[str, hlo.Instruction], computations: hlo.Computations
) -> int:
    if line.op.endswith("-done"):
        return 0
    outputs, inputs = _passed_buffers(line, computations)
    outputs |= _updated(line, computations)
    written = sum(
        array.bytes
        for place, array in enumerate(_results(line))
        if place not in outputs and not array.on_chip
    )
    for place, name in enumerate(line.operands):
        source = peers[name].arrays
        # A kernel that takes an array several times reads another part of it each time.
        again = line.op == "custom-call" and name in line.operands[:place]
        if source and place not in inputs and not again and not source[0].on_chip:
            full = sum(array.bytes for array in source)
            written += min(full, _touched(line, place, full, computations))
    return written


def _results(line: hlo.Instruction) -> list[hlo.Array]:
    """Returns the arrays that a line writes, without the contexts of an asynchronous start."""
    if "AllocateBuffer" in line.attribute("custom_call_target"):  # of a scan's stacks: not filled
        return []
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


def _updated(line: hlo.Instruction, computations: hlo.Computations) -> set[int]:
    """Returns places of a fusion's results that are operands updated in place.

    `_used` counts their changed bytes. A fusion of a scan may yield a layer's value and, beside it,
    the stack of all layers with that value written.
    """
    if line.op != "fusion":
        return set()
    body = computations[hlo.called_by(line)[0]]
    last = list(body.values())[-1]
    names = last.operands if last.op == "tuple" else [last.name]
    return {
        place for place, name in enumerate(names) if _origin(name, body) == "dynamic-update-slice"
    }


def _origin(name: str, body: Mapping[str, hlo.Instruction]) -> str:
    """Returns the operation that a value comes from, behind changes of its shape alone."""
    line = body[name]
    return _origin(line.operands[0], body) if line.op == "bitcast" else line.op
