"""Simulates the data stream of a run on many hosts: ``python -m benchmarks.stream_at_scale``.

No sample is read or decoded: the run's own dealer deals the rows of every batch to sources and
lanes, and the run's own walk over parts says which files a host reads, from the sizes of the sets.
Sets are those of ``xvla_pretrain_oxe`` with the episodes of data/rows/oxe.csv, then generated ones;
frames, images and files have the sizes that the flags state. Hardware: CPU. Time: under a minute.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
import time
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from absl import app, flags
from rich import box
from rich.console import Console
from rich.table import Table

from data.rows.mixtures import mixture
from data.rows.oxe import LINES
from data.rows.table import DATASETS
from data.sampling import Int64, permutation, random_words
from data.stream.stream import BEGINNING, MIN_EPISODES, Counts, Cursor, SourceStream, StreamShape

_HOSTS = flags.DEFINE_list(
    "hosts", ["16", "512", "512:64"], "Hosts to simulate, and behind a colon config.data.lanes."
)
_SOURCES = flags.DEFINE_integer("sources", 60, "Sets of the mixture.")
_ROWS = flags.DEFINE_integer("rows", 8, "Rows of a batch for each host.")
_STEPS = flags.DEFINE_integer("at_step", 10_000, "Step of the run at which it resumes.")
_BUFFER = flags.DEFINE_integer("shuffle_buffer", 200_000, "config.data.shuffle_buffer, shared.")
_FRAMES = flags.DEFINE_integer("frames", 100, "Frames of an episode.")
_IMAGE_KB = flags.DEFINE_float("image_kb", 18.0, "kB of an image: 224 px, JPEG quality 95.")
_FILE_MB = flags.DEFINE_float("file_mb", 100.0, "MB of a file (shard) of a set.")
_JSON = flags.DEFINE_string("json", "outputs/stream_at_scale.json", "Where the figures go.")

_UNKNOWN_EPISODES: Final = 20_000  # of X-VLA's own sets, whose sizes the table does not have
_MARGIN: Final = 1  # frames of an episode that start no sample
_SEED: Final = 0


@dataclasses.dataclass(frozen=True)
class Set:
    """Sizes of a set.

    Attributes:
        name: of the set.
        weight: share of the samples.
        views: images of a sample.
        episodes_per_part: of each file.
    """

    name: str
    weight: float
    views: int
    episodes_per_part: tuple[int, ...]

    @property
    def sample_bytes(self) -> float:
        """Encoded images of a sample."""
        return self.views * 1e3 * _IMAGE_KB.value

    @functools.cached_property
    def part_samples(self) -> Int64:
        """Samples of each file."""
        return np.asarray(self.episodes_per_part) * (_FRAMES.value - _MARGIN)

    @functools.cached_property
    def part_bytes(self) -> Int64:
        """Bytes of each file."""
        per_episode = _FRAMES.value * self.sample_bytes
        return (np.asarray(self.episodes_per_part) * per_episode).astype(np.int64)


class Walk(SourceStream):
    """The blocks of one lane of a set, without their samples."""

    def __init__(self, chosen: Set, shape: StreamShape, lane: int, counts: Counts) -> None:
        # Not the constructor of the stream, which begins to read.
        self.lane, self._shape, self._counts, self._first = lane, shape, counts, 0
        self._min_samples = -(-shape.shuffle_buffer // shape.lanes)
        self._min_episodes = -(-MIN_EPISODES // shape.lanes)
        self._set = chosen

    def up_to(self, number: int) -> list[tuple[Cursor, tuple[int, ...]]]:
        """Returns the blocks of the first samples, and the next one, which is read ahead."""
        walked = []
        for block, parts in self._walk(BEGINNING):
            walked.append((block, parts))
            if block.start >= number:
                break
        return walked

    def _parts_of(self, epoch: int) -> Sequence[int]:
        order, turn = _order(self._set.name, len(self._set.episodes_per_part), epoch)
        lanes = self._shape.lanes
        return order[(self.lane - turn % lanes) % lanes :: lanes].tolist()


@functools.cache
def _order(name: str, parts: int, epoch: int) -> tuple[Int64, int]:
    """The order of a set's files in an epoch, and the lane that is dealt the first."""
    turn = int(random_words(1, _SEED, name, "deal", epoch)[0])
    return permutation(parts, _SEED, name, "parts", epoch), turn


def sets() -> list[Set]:
    """Returns the sets of the simulated mixture."""
    episodes = {name: line.cells["episodes"] for line in LINES for name in line.names}
    rows = [
        (name, weight, max(len(DATASETS[name].views), 1), episodes.get(name, ""))
        for name, weight in mixture("xvla_pretrain_oxe")
    ]
    rng = np.random.default_rng(_SEED)
    for number in range(_SOURCES.value - len(rows)):
        size = int(rng.lognormal(7, 1.5))
        rows.append((f"made_{number}", 0.005, int(rng.integers(1, 4)), str(size)))
    made = []
    for name, weight, views, text in rows[: _SOURCES.value]:
        count = int(text) if text.isdigit() else _UNKNOWN_EPISODES
        size = count * _FRAMES.value * views * _IMAGE_KB.value / 1e3
        parts = min(max(round(size / _FILE_MB.value), 1), count)
        per_part = tuple(len(part) for part in np.array_split(np.arange(count), parts))
        made.append(Set(name, weight, views, per_part))
    return made


def simulate(mixed: Sequence[Set], hosts: int, lanes: int) -> dict[str, Any]:
    """Returns what each host reads, keeps and reads again after a restart."""
    batch = hosts * _ROWS.value
    total = sum(chosen.weight for chosen in mixed)
    shape = StreamShape(
        seed=_SEED,
        batch_size=batch,
        num_actions=30,
        shuffle_buffer=_BUFFER.value,
        lanes=lanes,
        shuffle_per="mixture",
        deal="even",
    )
    mixer = shape.mixer([chosen.weight for chosen in mixed], [chosen.views for chosen in mixed])
    began = time.perf_counter()
    mixer.seek(_STEPS.value * batch)
    deal_s = time.perf_counter() - began
    dealt = mixer.dealt  # [sources, lanes]
    # of each lane: files read, bytes read, bytes in memory, files and bytes to read after a restart
    figures = {name: np.zeros(lanes) for name in ("files", "bytes", "memory", "again", "again_mb")}
    used = np.zeros(lanes)
    readers: list[set[tuple[str, int, int]]] = [set() for _ in range(lanes)]
    for source, chosen in enumerate(mixed):
        counts = Counts(len(chosen.episodes_per_part))
        for part, samples in enumerate(chosen.part_samples.tolist()):
            counts[part] = samples, chosen.episodes_per_part[part]
        own = shape.of_source(chosen.weight / total)
        used += dealt[source] * chosen.sample_bytes
        for lane in range(lanes):
            walked = Walk(chosen, own, lane, counts).up_to(int(dealt[source, lane]))
            parts = [part for _, block in walked for part in block]
            kept = [part for _, block in walked[-2:] for part in block]
            size = chosen.part_bytes
            figures["files"][lane] += len(parts)
            figures["bytes"][lane] += size[parts].sum()
            figures["memory"][lane] += size[kept].sum()
            figures["again"][lane] += len(kept)
            figures["again_mb"][lane] += size[kept].sum() / 1e6
            readers[lane] |= {(chosen.name, c.epoch, p) for c, block in walked for p in block}
    return {
        "hosts": hosts,
        "lanes": lanes,
        "batch": batch,
        "by_lane": {name: values.tolist() for name, values in figures.items()},
        "used": used.tolist(),
        "files_of_two": len([f for f in _all(readers) if f[1] > 1]),
        "deal_s": deal_s,
    }


def _all(readers: Sequence[set[tuple[str, int, int]]]) -> list[tuple[Any, int]]:
    counted: dict[tuple[str, int, int], int] = {}
    for files in readers:
        for file in files:
            counted[file] = counted.get(file, 0) + 1
    return list(counted.items())


def _table(mixed: Sequence[Set], runs: Sequence[dict[str, Any]]) -> Table:
    files = sum(len(chosen.episodes_per_part) for chosen in mixed)
    size = sum(int(chosen.part_bytes.sum()) for chosen in mixed)
    title = f"{len(mixed)} sets, {files:,} files, {size / 1e12:.1f} TB, {_STEPS.value} steps"
    table = Table(title=title, box=box.SIMPLE)
    table.add_column("")
    rows: dict[str, list[str]] = {}
    for run in runs:
        per_host = max(run["lanes"] / run["hosts"], 1)  # lanes
        readers = max(run["hosts"] / run["lanes"], 1)  # hosts that each read all of a lane
        table.add_column(f"{run['hosts']} hosts, {run['lanes']} lanes", justify="right")
        own = {name: np.asarray(v) * per_host for name, v in run["by_lane"].items()}
        for name, values, form in (
            ("files a host reads, mean", own["files"].mean(), "{:.0f}"),
            ("most over mean", own["files"].max() / own["files"].mean(), "{:.2f}"),
            ("GB a host reads, mean", own["bytes"].mean() / 1e9, "{:.1f}"),
            ("most over mean ", own["bytes"].max() / own["bytes"].mean(), "{:.2f}"),
            ("bytes read / bytes trained on", readers * sum(run["by_lane"]["bytes"])
             / sum(run["used"]), "{:.2f}"),
            ("GB of blocks in a host's memory, most", own["memory"].max() / 1e9, "{:.1f}"),
            ("files read again after a restart, most", own["again"].max(), "{:.0f}"),
            ("GB read again, most", own["again_mb"].max() / 1e3, "{:.1f}"),
            ("s to deal all rows before, on each host", run["deal_s"], "{:.1f}"),
            ("files that two lanes read in one epoch", run["files_of_two"], "{:.0f}"),
        ):  # fmt: skip
            rows.setdefault(name, []).append(form.format(values))
    for name, cells in rows.items():
        table.add_row(name.strip(), *cells)
    return table


def main(argv: list[str]) -> None:
    """Prints the table, and writes the figures of each lane as JSON."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    console, began, mixed = Console(width=140), time.perf_counter(), sets()
    chosen = [text.partition(":") for text in _HOSTS.value]
    runs = [simulate(mixed, int(hosts), int(lanes or hosts)) for hosts, _, lanes in chosen]
    console.print(_table(mixed, runs))
    path = pathlib.Path(_JSON.value)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"steps": _STEPS.value, "runs": runs}) + "\n")
    console.print(f"written to {path} after {time.perf_counter() - began:.0f} s", markup=False)


if __name__ == "__main__":
    app.run(main)
