"""Samples per second of the data pipeline, in turn with X-VLA's reader."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import pathlib
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.data.recordings import Recording, hdf5_set, image_bytes, rlds_set
from data.faults import BadEpisodeError
from data.pixels import bicubic
from data.sources import open_reader
from data.spec import DatasetSpec
from data.stream.pipeline import Batches, batches
from data.trajectory import Source

BATCH_SIZE: Final = 16  # X-VLA's
NUM_ACTIONS: Final = 30
TEXT_LENGTH: Final = 50
IMAGE_SIZE: Final = 224
SLOTS: Final = 3
SHUFFLE_BUFFER: Final = 1000
_ROOT: Final = pathlib.Path(__file__).resolve().parents[2]
# batches that may have been prefetched while another contestant was timed: two a worker
WARM: Final = 6


def tokenize(texts: list[str]) -> NDArray[np.int32]:
    """Returns fixed tokens; the pipeline caches a tokenizer's answers, so its time is none."""
    return np.full((len(texts), TEXT_LENGTH), 1, np.int32)


@dataclasses.dataclass(frozen=True)
class Taken:
    """Samples made, and the seconds that they took, by the clock and of the CPU."""

    samples: int
    seconds: float
    cpu: float

    @property
    def rate(self) -> float:
        """Samples per second."""
        return self.samples / self.seconds


class Contestant(Protocol):
    """A source of samples that is timed."""

    def take(self, seconds: float) -> Taken:
        """Makes samples for about so many seconds, after some that are not counted."""
        ...


class Ours:
    """The pipeline over one source."""

    def __init__(self, stream: Batches) -> None:
        self._stream = stream

    def take(self, seconds: float) -> Taken:
        """See Contestant."""
        self.skip(WARM)
        start, cpu, count = time.perf_counter(), time.process_time(), 0
        while time.perf_counter() - start < seconds:
            next(self._stream)
            count += BATCH_SIZE
        return Taken(count, time.perf_counter() - start, time.process_time() - cpu)

    def skip(self, count: int) -> None:
        """Makes batches that are not timed."""
        for _ in range(count):
            next(self._stream)


class XvlaReader:
    """``benchmarks.xvla_reader`` in a process of its own.

    Raises:
        RuntimeError: it does not start, most likely because torch is missing.
    """

    def __init__(self, python: str, meta: pathlib.Path, decode: str) -> None:
        options = (f"--decode={decode}", f"--batch_size={BATCH_SIZE}")
        self._process = subprocess.Popen(
            [python, "-m", "benchmarks.xvla_reader", str(meta), *options],
            cwd=_ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.about: dict[str, Any] = self._answer()

    def take(self, seconds: float) -> Taken:
        """See Contestant."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{WARM} {seconds}\n")
        self._process.stdin.flush()
        return Taken(**self._answer())

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            last_lines = self._process.communicate()[1].strip().splitlines()
            raise RuntimeError(last_lines[-1] if last_lines else "it ended without output")
        return json.loads(line)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.communicate()


def hdf5(workdir: pathlib.Path, python: str, *, quick: bool) -> dict[str, Any]:
    """Measures HDF5 with 256 px JPEG, 2 views: X-VLA's reader and ours, in turn."""
    size = _hdf5_size(quick)
    folder = workdir / f"hdf5_{size.name}"
    row = hdf5_set(folder, size)
    about: dict[str, Any] = {"files": _files(folder, size)}
    with contextlib.ExitStack() as stack:
        contestants: dict[str, Contestant] = {}
        try:
            for decode in ("open", "late"):
                reader = XvlaReader(python, folder / "meta.json", decode)
                contestants[f"X-VLA, decode {decode}"] = stack.enter_context(reader)
                about["xvla"] = reader.about
        except (RuntimeError, OSError) as error:
            about["not_run"] = f"X-VLA's reader does not run with {python}: {error}"
        contestants["ours, first pass"] = stack.enter_context(_ours(row, folder, cache_mb=0))
        cached = stack.enter_context(_ours(row, folder, cache_mb=4096))
        cached.skip(size.episodes * size.frames // BATCH_SIZE)
        contestants["ours, later passes"] = cached
        return about | _in_turn(contestants, quick=quick)


def _hdf5_size(quick: bool) -> Recording:
    return Recording(episodes=24 if quick else 48, frames=90, views=2, size=256)


def rlds(workdir: pathlib.Path, *, quick: bool) -> dict[str, Any]:
    """Measures RLDS, 3 views of 224 px."""
    size = Recording(episodes=24 if quick else 48, frames=60, views=3, size=224)
    folder = workdir / f"rlds_{size.name}"
    row = rlds_set(folder, size)
    with _ours(row, folder, cache_mb=0) as ours:
        return {"files": _files(folder, size)} | _in_turn({"ours": ours}, quick=quick)


@contextlib.contextmanager
def _ours(
    row: DatasetSpec, folder: pathlib.Path, *, cache_mb: float, image_size: int = IMAGE_SIZE
) -> Iterator[Ours]:
    row = dataclasses.replace(row, augment="none")
    with batches(
        [Source(open_reader(row, folder), 1.0)],
        batch_size=BATCH_SIZE,
        num_actions=NUM_ACTIONS,
        num_views=SLOTS,
        image_size=image_size,
        tokenize=tokenize,
        seed=0,
        shuffle_buffer=SHUFFLE_BUFFER,
        cache_mb=cache_mb,
    ) as stream:
        yield Ours(stream)


def _in_turn(contestants: Mapping[str, Contestant], *, quick: bool) -> dict[str, Any]:
    """Returns rates, and CPU seconds of a sample, of rounds with a turn of every contestant."""
    rounds: dict[str, list[float]] = {name: [] for name in contestants}
    cpu: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(4 if quick else 8):
        for name, contestant in contestants.items():
            taken = contestant.take(3.0 if quick else 6.0)
            if number:  # the first round warms up
                rounds[name].append(taken.rate)
                cpu[name].append(taken.cpu / taken.samples)
    medians = {name: float(np.median(rates)) for name, rates in rounds.items()}
    ratios = {
        f"{mine} / {theirs}": _median_ratio(rounds[mine], rounds[theirs])
        for theirs in contestants
        for mine in contestants
        if theirs.startswith("X-VLA") and mine.startswith("ours")
    }
    cpu_medians = {name: float(np.median(seconds)) for name, seconds in cpu.items()}
    return {
        "samples_per_s": medians,
        "cpu_s_per_sample": cpu_medians,
        "ratios": ratios,
        "rounds": rounds,
    }


def _median_ratio(mine: Sequence[float], theirs: Sequence[float]) -> float:
    return float(np.median(np.array(mine) / np.array(theirs)))


def _files(folder: pathlib.Path, size: Recording) -> dict[str, Any]:
    return dataclasses.asdict(size) | {
        "image_bytes": image_bytes(folder, size),
        "threads": os.cpu_count(),
        "batch_size": BATCH_SIZE,
    }


def stages(workdir: pathlib.Path, *, quick: bool) -> dict[str, Any]:
    """Measures the CPU time of a sample by stage, in us, and what Python's global lock bounds.

    Reading and bookkeeping are measured with tiny cached images. They hold the lock, as Pillow's
    parsing of headers and packing of pixels do; decoding and resizing do not.
    """
    size = _hdf5_size(quick)
    folder = workdir / f"hdf5_{size.name}"
    row = hdf5_set(folder, size)
    with _ours(row, folder, cache_mb=1024, image_size=8) as ours:
        ours.skip(size.episodes * size.frames // BATCH_SIZE)
        start = time.process_time()
        ours.skip(400)
        glue = 1e6 * (time.process_time() - start) / (400 * BATCH_SIZE)
    trajectory = next(iter(open_reader(row, folder).read(0)))
    if isinstance(trajectory, BadEpisodeError):
        raise trajectory
    encoded = [trajectory.images[0][frame] for frame in range(size.frames)]
    image = _image_stages(encoded, size.size)
    held = glue + size.views * (image["header"] + image["packing"])
    return {
        "views": size.views,
        "glue_us": glue,
        "image_us": image,
        "held_us": held,
        "ceiling": 1e6 / held,
    }


def _image_stages(encoded: Sequence[bytes], side: int) -> dict[str, float]:
    """Returns the us of each stage of an image; "compiled" is None where Pillow does the work."""
    first = Image.open(io.BytesIO(encoded[0])).convert("RGB")
    pixels = np.asarray(first)
    calls: dict[str, Callable[[bytes], object]] = {
        "header": lambda content: Image.open(io.BytesIO(content)),
        "decoded": lambda content: Image.open(io.BytesIO(content)).load(),
        "packing": lambda _: first.tobytes("raw", "BGR"),
        "Pillow": lambda _: first.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC),
    }
    compiled = bicubic.verified(side, side, IMAGE_SIZE)
    if compiled is not None:
        calls["compiled"] = lambda _: compiled(pixels)
    times = {
        name: 1e6 * min(_cpu_seconds(call, encoded) for _ in range(5))
        for name, call in calls.items()
    }
    times["decoding"] = times.pop("decoded") - times["header"]
    return times


def _cpu_seconds(call: Callable[[bytes], object], items: Sequence[bytes]) -> float:
    """Returns the mean time of a call in this thread."""
    start = time.thread_time()
    for item in items:
        call(item)
    return (time.thread_time() - start) / len(items)
