"""Time that a resume of the data pipeline takes, and growth of its memory."""

from __future__ import annotations

import dataclasses
import pathlib
import resource
import time
from typing import Any, Final

import numpy as np

from benchmarks.data.recordings import Recording, hdf5_set, image_bytes, rlds_set
from benchmarks.data.speed import NUM_ACTIONS, SLOTS, TEXT_LENGTH, tokenize
from data.sources import open_reader
from data.stream.memory import SourceSize, host_bytes
from data.stream.pipeline import Batches, batches
from data.stream.stream import StreamShape
from data.trajectory import Source

# small images, so that as many steps as a training run has take minutes
_SIZES: Final = {
    "hdf5": Recording(episodes=40, frames=60, views=2, size=64),
    "rlds": Recording(episodes=40, frames=60, views=3, size=64),
}
_WRITE: Final = {"hdf5": hdf5_set, "rlds": rlds_set}
_WEIGHTS: Final = {"hdf5": 1.0, "rlds": 2.0}
_SHAPE: Final = StreamShape(
    seed=0, batch_size=4, num_actions=NUM_ACTIONS, shuffle_buffer=500, lanes=1
)
_SIDE: Final = 64  # of the images in the batches, as recorded: no resize
_WARM_UP: Final = 4_000  # steps: some epochs, until the allocators of all threads have their share
_POINTS: Final = 40  # of the curve of memory
_STATM: Final = pathlib.Path("/proc/self/statm")


def resume(workdir: pathlib.Path, *, steps: int) -> dict[str, Any]:
    """Measures the seconds to the first batch after `steps` steps, and those of the steps."""
    figures: dict[str, Any] = {"steps": steps, "batch_size": _SHAPE.batch_size}
    start = time.perf_counter()
    with _stream(workdir) as stream:
        for _ in range(steps):
            next(stream)
        figures["seconds"] = time.perf_counter() - start
        position = stream.position
        expected = next(stream)
    places: dict[str, dict[str, Any]] = {
        "position": {"position": position},
        "start_step": {"start_step": steps},
    }
    for name, place in places.items():
        start = time.perf_counter()
        with _stream(workdir, **place) as stream:
            batch = next(stream)
            figures[name] = time.perf_counter() - start
        if not all(np.array_equal(batch[key], expected[key]) for key in expected):
            raise RuntimeError(f"a resume by {name} after {steps} steps yields another batch")
    return figures


def memory(workdir: pathlib.Path, *, steps: int) -> dict[str, Any]:
    """Measures resident memory over `steps` steps that follow a warm-up."""
    start = time.perf_counter()
    with _stream(workdir) as stream:
        before = resident_bytes()
        for _ in range(_WARM_UP):
            next(stream)
        curve = [resident_bytes()]
        for step in range(steps):
            next(stream)
            if (step + 1) % (steps // _POINTS) == 0:
                curve.append(resident_bytes())
    return {
        "steps": steps,
        "warm_up": _WARM_UP,
        "seconds": time.perf_counter() - start,
        "before": before,
        "curve": curve,
        "formula": host_bytes(
            [_source_size(workdir, kind) for kind in _SIZES],
            _SHAPE,
            hosts=1,
            num_views=SLOTS,
            image_size=_SIDE,
            text_length=TEXT_LENGTH,
        ),
    }


def resident_bytes() -> int:
    """Returns the memory of this process that is in RAM."""
    return int(_STATM.read_text().split()[1]) * resource.getpagesize()


def _stream(workdir: pathlib.Path, **place: Any) -> Batches:
    return batches(
        _sources(workdir),
        **dataclasses.asdict(_SHAPE),
        num_views=SLOTS,
        image_size=_SIDE,
        tokenize=tokenize,
        **place,
    )


def _sources(workdir: pathlib.Path) -> list[Source]:
    sources = []
    for kind, size in _SIZES.items():
        folder = _folder(workdir, kind)
        row = dataclasses.replace(_WRITE[kind](folder, size), augment="none")
        sources.append(Source(open_reader(row, folder), _WEIGHTS[kind]))
    return sources


def _folder(workdir: pathlib.Path, kind: str) -> pathlib.Path:
    return workdir / f"{kind}_{_SIZES[kind].name}"


def _source_size(workdir: pathlib.Path, kind: str) -> SourceSize:
    size, folder = _SIZES[kind], _folder(workdir, kind)
    reader = next(s.reader for s in _sources(workdir) if s.reader.spec.storage == kind)
    samples = size.frames - reader.spec.index_margin
    return SourceSize(
        part_samples=samples * max(reader.episodes_per_part),
        episode_samples=samples,
        image_bytes=image_bytes(folder, size) * size.views,
        num_views=size.views,
    )
