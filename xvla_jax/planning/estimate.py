"""Time of a step by roofline, and what else a run needs besides a chip's memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Final

from xvla_jax.planning import hlo
from xvla_jax.planning.chips import Slice
from xvla_jax.planning.collectives import bytes_by_kind
from xvla_jax.planning.traffic import pieces

ASSUMPTIONS: Final = (
    "each fusion takes the longer of its FLOPs over the chip's bfloat16 peak and its HBM bytes "
    "over the HBM bandwidth; fusions follow each other",
    "collectives are rings over one axis of the slice; fastest: all of their time is hidden "
    "behind the cores' work; slowest: none is",
    "nothing waits for data, and elementwise work costs its bytes alone (random bits for dropout "
    "do not)",
)


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Work and time of one run of a program on one chip of a slice.

    Attributes:
        flops: of matrix products, recomputed ones included.
        model_flops: without those.
        hbm_bytes: read and written.
        ici_bytes: sent, by kind of collective.
        core_seconds: fusion by fusion.
        ici_seconds: of all collectives.
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
        """Seconds when collectives are hidden."""
        return max(self.core_seconds, self.ici_seconds)

    @property
    def slowest(self) -> float:
        """Seconds when no collective is hidden."""
        return self.core_seconds + self.ici_seconds

    @property
    def mfu_bound(self) -> float:
        """Share of the peak that the model's own products can reach."""
        return self.model_flops / self.peak_flops / self.fastest

    @property
    def limited_by(self) -> str:
        """What the fastest time is made of."""
        if self.ici_seconds > self.core_seconds:
            return "links between chips"
        return "FLOPs" if self.flops / self.peak_flops > self.core_seconds / 2 else "HBM bandwidth"


def estimate(module: hlo.Module, target: Slice) -> Estimate:
    """The roofline of a program on a slice."""
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
    """Bytes on one host, by term.

    Args:
        state_bytes: of the whole train state; a host copies its part out to save it.
        target: its hosts share the state.
        pipeline: terms of the data pipeline on a host, see ``data.stream.memory``.
    """
    return {"checkpoint copy": state_bytes // target.hosts, **pipeline}
