"""Cores, memory and network that a slice's hosts need: ``python -m benchmarks.host_needs``.

Arithmetic for ``configs/pretrain_oxe.py``, nothing is run: the slice trains as fast as ``--mfu`` of
its peak allows, each host makes its share of the samples, and what a sample costs was measured on
two CPU cores (docs/pretrain_oxe.md). docs/scale.md has the table and its reading.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Final

from absl import app, flags
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.stream_at_scale import Set, sets
from configs import pretrain_oxe
from data.stream.memory import SourceSize, host_bytes
from data.stream.stream import StreamShape
from xvla_jax.planning.chips import CHIPS

_MFU = flags.DEFINE_float("mfu", 0.5, "Share of the peak that the slice reaches, at most 1.")
_VIEWS = flags.DEFINE_float("views", 2.05, "Views of a sample on average, of 3; oxe_all has 2.05.")

_SAMPLE_FLOPS: Final = 27.5e12 / 16  # docs/planner.md: pretrain.py on v5p:4x4x4, 16 samples a chip
_CPU_S: Final = 0.00052  # of a sample with one view of 224 px, docs/pretrain_oxe.md
_RESIZE_S: Final = 0.0019  # more where an image has its recorded size, docs/performance.md
_CHECKPOINT: Final = 10.6e9  # bytes, docs/performance.md


@dataclasses.dataclass(frozen=True)
class Hosts:
    """The hosts of a slice, by the pages of Cloud TPU.

    Attributes:
        chip: row of `CHIPS`.
        chips: of the slice.
        hosts: of the slice.
        cores: virtual cores of a host.
        memory: bytes of a host.
        network: bits/s of a host.
    """

    chip: str
    chips: int
    hosts: int
    cores: int
    memory: float
    network: float


SLICES: Final = {
    "v5e-16": Hosts("v5e", 16, 4, 112, 192e9, 100e9),
    "v5p-64": Hosts("v5p", 32, 8, 208, 448e9, 200e9),
    "v5p-512": Hosts("v5p", 256, 64, 208, 448e9, 200e9),
}


def needs(hosts: Hosts, config: Any, mixed: list[Set], *, mfu: float, views: float) -> list[str]:
    """Returns the cells of a slice's column.

    Args:
        hosts: the slice.
        config: of the run.
        mixed: its sets.
        mfu: share of the peak.
        views: of a sample.
    """
    rate = hosts.chips * CHIPS[hosts.chip].peak_flops * mfu / _SAMPLE_FLOPS
    own = rate / hosts.hosts
    step_s = config.batch_size / rate
    image_bytes = mixed[0].sample_bytes / mixed[0].views
    read = own * views * image_bytes
    memory = sum(_memory(hosts, config, mixed).values())
    save_s = config.save_every / 2 * step_s
    written = _CHECKPOINT / hosts.hosts / save_s
    used = 8 * (read + written) / hosts.network
    return [
        f"{hosts.hosts} of {hosts.cores} cores, {hosts.memory / 1e9:.0f} GB",
        f"{rate:,.0f}",
        f"{step_s * 1e3:,.0f}",
        f"{own:.0f}",
        f"{own * views * _CPU_S:.2f}",
        f"{own * views * (_CPU_S + _RESIZE_S):.1f}",
        f"{memory / 1e9:.0f}",
        f"{read / 1e6:.0f}",
        f"{written / 1e6:.0f}",
        f"{used:.1%}",
        f"{save_s:,.0f}",
        f"{_CHECKPOINT / hosts.hosts / 1e9:.2f}",
    ]


_ROWS: Final = (
    "hosts",
    "samples/s of the slice",
    "ms of a step",
    "samples/s of a host",
    "cores of a host, images of 224 px",
    "cores of a host, images as recorded",
    "GB of a host's memory for the stream",
    "MB/s read by a host",
    "MB/s written by a host, on average",
    "share of a host's network",
    "s between two saves",
    "GB of a save that a host writes",
)


def _memory(hosts: Hosts, config: Any, mixed: list[Set]) -> dict[str, int]:
    total = sum(chosen.weight for chosen in mixed)
    sizes = [
        SourceSize(
            part_samples=int(chosen.part_samples.max()),
            episode_samples=int(chosen.part_samples[0] // chosen.episodes_per_part[0]),
            image_bytes=chosen.sample_bytes,
            num_views=chosen.views,
            share=chosen.weight / total,
        )
        for chosen in mixed
    ]
    shape = StreamShape(
        seed=0,
        batch_size=config.batch_size,
        num_actions=config.model.num_actions,
        shuffle_buffer=config.data.shuffle_buffer,
        lanes=hosts.hosts,
        shuffle_per=config.data.shuffle_per,
        deal=config.data.deal,
    )
    picture = config.processor
    return host_bytes(
        sizes,
        shape,
        hosts=hosts.hosts,
        num_views=picture.num_views,
        image_size=picture.image_size,
        text_length=picture.text_length,
    )


def main(argv: list[str]) -> None:
    """Prints the table."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    config: Any = pretrain_oxe.get_config()
    mixed = sets()
    options = {"mfu": _MFU.value, "views": _VIEWS.value}
    columns = [needs(hosts, config, mixed, **options) for hosts in SLICES.values()]
    title = f"pretrain_oxe.py, {len(mixed)} sets, batch {config.batch_size}, MFU {_MFU.value:.0%}"
    table = Table(title=title, box=box.SIMPLE)
    table.add_column("")
    for name in SLICES:
        table.add_column(name, justify="right")
    for name, cells in zip(_ROWS, zip(*columns, strict=True), strict=True):
        table.add_row(name, *cells)
    Console(width=120).print(table)


if __name__ == "__main__":
    app.run(main)
