"""The work of a run's train step, kept beside its metrics, and how near to a peak it ran.

Bytes are counted in the compiled program as the planner counts them (``traffic``); FLOPs are those
of the model, as in MFU. Where no peak is known, as for CPUs, nothing is counted.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import pathlib
from collections.abc import Callable
from typing import Final

import pydantic

from xvla_jax.errors import ProgramError
from xvla_jax.planning import hlo
from xvla_jax.planning.flops import peak_of
from xvla_jax.planning.traffic import pieces
from xvla_jax.untrusted import read_json, typed

PROGRAM_NAME: Final = "program.json"
# What a text raises that is none of the CPU's or of a TPU's, for which `hlo` is written.
_UNREADABLE: Final = (ArithmeticError, LookupError, TypeError, ValueError)

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class StepWork:
    """Work of one train step.

    Attributes:
        device_kind: as JAX names it.
        devices: of the run.
        flops: of the model, over all devices, without recomputed ones.
        hbm_bytes: that one device reads and writes; None where they were not counted.
    """

    device_kind: str
    devices: int
    flops: int
    hbm_bytes: int | None


_WORK: Final = pydantic.TypeAdapter(StepWork)


def step_work(
    device_kind: str, devices: int, flops: int, text: Callable[[], str | None]
) -> StepWork:
    """Returns the work of a step; ``text`` gives the compiled program, where its bytes count."""
    moved = None
    if peak_of(device_kind) is not None:
        try:
            moved = sum(piece.bytes for piece in pieces(hlo.parse(text())))
        except (ProgramError, *_UNREADABLE) as error:
            _log.warning("the bytes of the train step are not counted: %r", error)
    return StepWork(device_kind, devices, flops, moved)


def write_work(workdir: pathlib.Path, work: StepWork) -> None:
    """Writes the work of a run's step into its workdir; the file appears only when complete."""
    path = workdir / PROGRAM_NAME
    scratch = path.with_name(f"{path.name}.partial")
    try:
        scratch.write_text(json.dumps(dataclasses.asdict(work), indent=1) + "\n")
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def read_work(workdir: pathlib.Path) -> StepWork | None:
    """Returns the work of a run's step; None without a file, and with a line for a damaged one."""
    path = workdir / PROGRAM_NAME
    if not path.is_file():
        return None
    try:
        return typed(_WORK, read_json(path, error=ProgramError), path, error=ProgramError)
    except ProgramError as error:
        _log.warning("%s; the table has no roofline", error)
        return None


def roofline_rows(work: StepWork, step_s: float) -> dict[str, str]:
    """Returns rows of a table: rates of a device and their shares of its peaks.

    Args:
        work: of a step.
        step_s: seconds that a step took.
    """
    peak = peak_of(work.device_kind)
    rows = {"devices": f"{work.devices} x {work.device_kind}"}
    if peak is None:
        return rows | {"roofline": f"no peak known for {work.device_kind}"}
    flops = work.flops / work.devices
    rows["FLOP/s of a device"] = _share(flops / step_s, peak.flops, "T", 1e12)
    bounds = {"FLOPs": flops / peak.flops}
    if work.hbm_bytes is not None:
        rows["HBM bytes/s of a device"] = _share(
            work.hbm_bytes / step_s, peak.hbm_bandwidth, "G", 1e9
        )
        bounds["HBM"] = work.hbm_bytes / peak.hbm_bandwidth
    limit, least = max(bounds.items(), key=lambda bound: bound[1])
    rows["roofline"] = f"{least:.3g} s by {limit}, {least / step_s:.0%} reached"
    return rows


def _share(rate: float, peak: float, unit: str, scale: float) -> str:
    return f"{rate / scale:.3g} of {peak / scale:.3g} {unit}, {rate / peak:.1%}"
