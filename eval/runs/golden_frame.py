"""Whether a simulator still shows what it showed: its first frame against a stored one.

Scores move by several points with MuJoCo's version alone, and darker floors or another
anti-aliasing change what a policy sees. What is stored of a frame is small: means over blocks,
which rounding leaves alone and light does not, and a crop in full resolution, where edges show.
"""

from __future__ import annotations

import io
import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from eval.files import write_bytes, write_json
from eval.pictures import needed
from eval.simulators.host import Description
from eval.simulators.preflight import SIMULATORS
from eval.simulators.workers import WorkerCrashError, WorkerPool, run_jobs
from eval.tasks.table import TaskSpec, episodes

_LOG = logging.getLogger(__name__)

FOLDER = Path(__file__).resolve().parents[1] / "golden"

_BLOCKS = 32  # of each view, across and down
# Grey levels of 255. Software renderers of other versions differ by rounding; 3 % less light is 3.6
# levels in the mean, other anti-aliasing 12 in the worst block and 3 % of the pixels.
MEAN_TOLERANCE = 1.5
WORST_TOLERANCE = 8.0
PIXEL_TOLERANCE = 16
PIXEL_SHARE = 0.01

_TURNS: Mapping[str, Callable[[NDArray[Any]], NDArray[Any]]] = {
    "upside down": lambda image: image[::-1],
    "mirrored": lambda image: image[:, ::-1],
    "turned by 180 degrees": lambda image: image[::-1, ::-1],
    "with red and blue swapped": lambda image: image[..., ::-1],
}


class GoldenFrameError(RuntimeError):
    """The simulator or its renderer is not the one whose frame is stored; names what differs."""


@dataclass(frozen=True)
class Frame:
    """What is kept of the first frame of a fixed state.

    Attributes:
        sizes: (height, width) of each view.
        blocks: means over blocks, uint8[32, 32 * V, 3], all views side by side.
        detail: middle of the first view in full resolution, uint8[h, w, 3].
        renderer: OpenGL renderer.
        versions: of the simulator's distributions.
    """

    sizes: tuple[tuple[int, int], ...]
    blocks: NDArray[np.uint8]
    detail: NDArray[np.uint8]
    renderer: str
    versions: Mapping[str, str]


@dataclass(frozen=True)
class Verdict:
    """Outcome of a comparison, as the receipt keeps it.

    Attributes:
        state: "identical", "within tolerance", "changed" or "none stored".
        differences: what differs and makes it "changed", in words.
        notes: what differs and does no harm.
        mean, worst: difference of the blocks in grey levels; None where sizes differ.
        pixels: share of the crop's pixels that differ by more than 16 grey levels.
    """

    state: str
    differences: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    mean: float | None = None
    worst: float | None = None
    pixels: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


def frame_name(spec: TaskSpec) -> str:
    """Rows that render the same first frame share a stored one."""
    return f"{spec.suite}-{spec.task_ids[0]}-{spec.image_size}px-{spec.msaa_samples}x"


def frame_of(
    images: Sequence[NDArray[np.uint8]], *, renderer: str, versions: Mapping[str, str]
) -> Frame:
    """Reduces the views uint8[H, W, 3] of a first observation."""
    height, width = images[0].shape[:2]
    top, left = height // 4, width // 4
    return Frame(
        sizes=tuple((image.shape[0], image.shape[1]) for image in images),
        blocks=np.concatenate([_block_means(image) for image in images], axis=1),
        detail=images[0][top : height - top, left : width - left],
        renderer=renderer,
        versions=dict(versions),
    )


def compare_frames(stored: Frame | None, found: Frame) -> Verdict:
    """Compares the frame of this machine with the stored one, if there is one."""
    if stored is None:
        return Verdict("none stored")
    differences = [
        f"{name} {found.versions.get(name, 'missing')}, stored with {version}"
        for name, version in stored.versions.items()
        if found.versions.get(name) != version
    ]
    notes = []
    if found.renderer != stored.renderer:
        notes.append(f"renderer {found.renderer!r}, stored with {stored.renderer!r}")
    if found.sizes != stored.sizes:
        sizes = f"images {_sizes(found)}, stored {_sizes(stored)}"
        return Verdict("changed", (*differences, *notes, sizes))
    apart = np.abs(found.blocks.astype(np.float64) - stored.blocks)
    mean, worst = float(apart.mean()), float(apart.max())
    far = np.abs(found.detail.astype(np.int16) - stored.detail).max(-1) > PIXEL_TOLERANCE
    pixels = float(far.mean())
    problem = _image_problem(stored, found, mean, worst, pixels)
    if problem:
        differences = [*differences, *notes, problem]
    same = mean == 0 and bool((found.detail == stored.detail).all())
    state = "changed" if differences else "identical" if same else "within tolerance"
    return Verdict(state, tuple(differences), tuple(notes), mean, worst, pixels)


def first_frame(pool: WorkerPool, spec: TaskSpec) -> tuple[Description, Frame]:
    """What the simulators of a row are, and their first frame of the fixed state."""
    (first, *_) = episodes(spec, init_states=[0], seed=0)
    found = dict(run_jobs(pool, [("describe", (first.task_id,)), ("start", (first,))]))
    for value in found.values():
        if isinstance(value, WorkerCrashError):
            raise value
    described: Description = found[0]
    simulators = {k: v for k, v in described.versions.items() if k in SIMULATORS}
    images = found[1].observation["images"]
    return described, frame_of(images, renderer=described.renderer, versions=simulators)


def check_simulator(
    pool: WorkerPool, spec: TaskSpec, folder: Path, accept: bool
) -> tuple[Description, Verdict]:
    """Compares the first frame with the stored one before the first episode.

    Raises:
        GoldenFrameError: it is not the same and `accept` is false.
    """
    described, found = first_frame(pool, spec)
    verdict = compare_frames(load_frame(folder, frame_name(spec)), found)
    if verdict.state == "none stored":
        _LOG.warning(
            "%s has no golden frame; python -m scripts.golden_frame --task=%s stores one",
            spec.name,
            spec.name,
        )
    refuse_changed(verdict, task=spec.name, accept=accept)
    return described, verdict


def refuse_changed(verdict: Verdict, *, task: str, accept: bool) -> None:
    """Stops before the first episode at a simulator that is not the stored one.

    Raises:
        GoldenFrameError: names all that differs and what to do.
    """
    if verdict.state == "changed" and not accept:
        raise GoldenFrameError(
            f"{task} does not look as it did when its golden frame was stored: "
            f"{'; '.join(verdict.differences)}. Success rates need not be comparable. "
            "--accept_renderer goes on and notes it in the receipt; "
            f"python -m scripts.golden_frame --task={task} stores a new frame"
        )


def save_frame(folder: Path, name: str, frame: Frame) -> None:
    """Writes NAME.json and two PNG files; the JSON comes last."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, image in (("blocks", frame.blocks), ("detail", frame.detail)):
        write_bytes(folder / f"{name}.{part}.png", _png(image))
    record = {"sizes": frame.sizes, "renderer": frame.renderer, "versions": frame.versions}
    write_json(folder / f"{name}.json", record)


def load_frame(folder: Path, name: str) -> Frame | None:
    """The stored frame, or None where there is none."""
    imageio = needed("imageio.v3", "sim")

    path = folder / f"{name}.json"
    if not path.is_file():
        return None
    record = json.loads(path.read_text(encoding="utf-8"))
    blocks, detail = (
        np.asarray(imageio.imread(folder / f"{name}.{part}.png")) for part in ("blocks", "detail")
    )
    sizes = tuple((height, width) for height, width in record["sizes"])
    return Frame(sizes, blocks, detail, record["renderer"], record["versions"])


def _image_problem(stored: Frame, found: Frame, mean: float, worst: float, pixels: float) -> str:
    """Why the images count as different, or nothing."""
    if mean <= MEAN_TOLERANCE and worst <= WORST_TOLERANCE and pixels <= PIXEL_SHARE:
        return ""
    shift = float(found.blocks.astype(np.float64).mean() - stored.blocks.mean())
    text = (
        f"image off by {mean:.1f} grey levels in the mean ({shift:+.1f}), {worst:.0f} in the worst "
        f"of its blocks, {100 * pixels:.1f} % of pixels beyond {PIXEL_TOLERANCE} (allowed "
        f"{MEAN_TOLERANCE:g}, {WORST_TOLERANCE:g}, {100 * PIXEL_SHARE:g} %)"
    )
    first = slice(0, _BLOCKS)
    for turned, turn in _TURNS.items():
        apart = np.abs(turn(found.blocks[:, first]).astype(np.float64) - stored.blocks[:, first])
        if mean > MEAN_TOLERANCE and apart.mean() <= MEAN_TOLERANCE:
            text += f"; the first view is {turned}"
    return text


def _block_means(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    means = image.astype(np.float64)
    for axis in (0, 1):
        edges = np.arange(_BLOCKS + 1) * means.shape[axis] // _BLOCKS
        # A view smaller than the blocks repeats its pixels.
        counts = np.maximum(np.diff(edges), 1)
        starts = np.minimum(edges[:-1], means.shape[axis] - 1)
        sums = np.add.reduceat(means, starts, axis=axis)
        means = sums / counts.reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
    return np.rint(means).astype(np.uint8)


def _sizes(frame: Frame) -> str:
    return ", ".join(f"{height} x {width}" for height, width in frame.sizes)


def _png(image: NDArray[np.uint8]) -> bytes:
    imageio = needed("imageio.v3", "sim")

    file = io.BytesIO()
    imageio.imwrite(file, image, extension=".png", optimize=True)
    return file.getvalue()
