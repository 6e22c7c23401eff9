"""The arithmetic and the simulation of large runs, on sets small enough to count by hand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from absl import flags

from benchmarks import host_needs, stream_at_scale
from benchmarks.stream_at_scale import Set, simulate
from configs import pretrain_oxe

# a lane of four is dealt two files in an epoch, and each is a block: 20 episodes over 4 lanes
_MADE = Set("made", 1.0, 1, (5,) * 8)


@pytest.fixture(autouse=True)
def parsed() -> Iterator[None]:
    """The flags of the benchmarks, as if none was given."""
    saved = {name: flags.FLAGS[name].value for name in ("at_step", "rows", "shuffle_buffer")}
    flags.FLAGS.mark_as_parsed()
    flags.FLAGS.at_step, flags.FLAGS.rows, flags.FLAGS.shuffle_buffer = 4, 2, 100
    yield
    for name, value in saved.items():
        setattr(flags.FLAGS, name, value)


def test_a_host_reads_the_files_of_its_lane_and_no_other() -> None:
    run = simulate([_MADE], hosts=4, lanes=4)
    # 4 steps of 2 rows are in the first block; the next one is read ahead
    assert run["by_lane"]["files"] == [2.0] * 4
    assert run["by_lane"]["again"] == [2.0] * 4
    assert run["by_lane"]["bytes"] == [2 * 5 * 100 * 18e3] * 4
    assert run["used"] == [8 * 18e3] * 4
    assert run["files_of_two"] == 0


def test_a_longer_run_reads_each_file_once_an_epoch() -> None:
    flags.FLAGS.at_step = 8 * 5 * 99 // 8  # an epoch in steps of 8 samples
    run = simulate([_MADE], hosts=4, lanes=4)
    assert run["by_lane"]["files"] == [3.0] * 4, "two of this epoch and one of the next"


def test_hosts_that_share_a_lane_each_read_all_of_it() -> None:
    run = simulate([_MADE], hosts=4, lanes=2)
    assert len(run["by_lane"]["files"]) == 2
    table = stream_at_scale._table([_MADE], [run])
    names, cells = (list(column.cells) for column in table.columns)
    read = cells[names.index("files a host reads, mean")]
    assert read == "4", "a block of two lanes has ten episodes"
    # two hosts each read 4 files of 5 episodes for a lane that trains on 4 x 4 samples
    ratio = cells[names.index("bytes read / bytes trained on")]
    assert ratio == f"{2 * 4 * 5 * 100 / 16:.2f}"


def test_the_sets_are_those_of_the_mixture_and_generated_ones() -> None:
    made = stream_at_scale.sets()
    assert len(made) == 60
    assert len({chosen.name for chosen in made}) == 60
    by_name = {chosen.name: chosen for chosen in made}
    assert sum(by_name["bc_z"].episodes_per_part) == 39350, "as data/rows/oxe.csv has it"


def test_a_host_makes_its_share_of_what_the_slice_trains() -> None:
    config: Any = pretrain_oxe.get_config()
    slice_ = host_needs.Hosts("v5p", 32, 8, 208, 448e9, 200e9)
    mixed = stream_at_scale.sets()
    cells = dict(
        zip(
            host_needs._ROWS,
            host_needs.needs(slice_, config, mixed, mfu=0.5, views=2.0),
            strict=True,
        )
    )
    # 32 x 459e12 x 0.5 / (27.5e12 / 16)
    assert cells["samples/s of the slice"] == "4,273"
    assert cells["samples/s of a host"] == "534"
    assert cells["cores of a host, images of 224 px"] == "0.56"  # 534 x 2 x 0.00052
    assert cells["MB/s read by a host"] == "19"  # 534 x 2 x 18 kB
