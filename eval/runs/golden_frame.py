"""Golden frames: the first image of a simulator against a stored one, before any episode.

Scores move by several points with MuJoCo's version alone, and darker floors or another
anti-aliasing change what a policy sees. A stored frame is small: means over blocks, which change
with light but hardly with rounding, and a crop in full resolution, which shows the edges.
"""

from __future__ import annotations

import io
import logging
import struct
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from eval.extras import needed
from eval.files import (
    TEXT,
    FileError,
    fields,
    integer,
    listing,
    mapping,
    read_bytes,
    read_json,
    write_bytes,
    write_json,
)
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

_SIDE = integer(1, 16_384)  # pixels
_FORM = fields(sizes=listing(listing(_SIDE, length=2)), renderer=TEXT, versions=mapping(TEXT))

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
    """The stored part of the first frame of a fixed state.

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
        differences: in words; any makes the state "changed".
        notes: differences in words that do no harm.
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
    """Name of the stored frame of a row; rows that render the same first frame share one."""
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


def compare_frames(stored: Frame | None, rendered: Frame) -> Verdict:
    """Compares the frame of this machine with the stored one, if there is one."""
    if stored is None:
        return Verdict("none stored")
    differences = [
        f"{name} {rendered.versions.get(name, 'missing')}, stored with {version}"
        for name, version in stored.versions.items()
        if rendered.versions.get(name) != version
    ]
    notes = []
    if rendered.renderer != stored.renderer:
        notes.append(f"renderer {rendered.renderer!r}, stored with {stored.renderer!r}")
    if rendered.sizes != stored.sizes:
        sizes = f"images {_sizes(rendered)}, stored {_sizes(stored)}"
        return Verdict("changed", (*differences, *notes, sizes))
    # float64 and int16, because differences of uint8 would wrap
    apart = np.abs(rendered.blocks.astype(np.float64) - stored.blocks)
    mean, worst = float(apart.mean()), float(apart.max())
    far = np.abs(rendered.detail.astype(np.int16) - stored.detail).max(-1) > PIXEL_TOLERANCE
    pixels = float(far.mean())
    problem = _image_problem(stored, rendered, mean, worst, pixels)
    if problem:
        differences = [*differences, *notes, problem]
    same = mean == 0 and bool((rendered.detail == stored.detail).all())
    state = "changed" if differences else "identical" if same else "within tolerance"
    return Verdict(state, tuple(differences), tuple(notes), mean, worst, pixels)


def first_frame(pool: WorkerPool, spec: TaskSpec) -> tuple[Description, Frame]:
    """Describes the simulators of a row and renders their first frame of the fixed state.

    The frame is one without the row's disturbance, so it is that of the control arm.
    """
    (first, *_) = episodes(spec, init_states=[0], seed=0)
    start = "start" if spec.disturbance is None else "start_undisturbed"
    answers = dict(run_jobs(pool, [("describe", (first.task_id,)), (start, (first,))]))
    for answer in answers.values():
        if isinstance(answer, WorkerCrashError):
            raise answer
    described: Description = answers[0]
    simulators = {k: v for k, v in described.versions.items() if k in SIMULATORS}
    images = answers[1].observation["images"]
    return described, frame_of(images, renderer=described.renderer, versions=simulators)


def check_simulator(
    pool: WorkerPool, spec: TaskSpec, folder: Path, accept: bool
) -> tuple[Description, Verdict]:
    """Compares the first frame with the stored one before the first episode.

    Raises:
        GoldenFrameError: the frames differ and `accept` is false.
        FileError: the stored frame cannot be read.
    """
    described, rendered = first_frame(pool, spec)
    verdict = compare_frames(load_frame(folder, frame_name(spec)), rendered)
    if verdict.state == "none stored":
        _LOG.warning(
            "%s has no golden frame; python -m scripts.golden_frame --task=%s stores one",
            spec.name,
            spec.name,
        )
    refuse_changed(verdict, task=spec.name, accept=accept)
    return described, verdict


def refuse_changed(verdict: Verdict, *, task: str, accept: bool) -> None:
    """Refuses a simulator whose first frame is not the stored one.

    Raises:
        GoldenFrameError: names all differences and what to do.
    """
    if verdict.state == "changed" and not accept:
        raise GoldenFrameError(
            f"{task} does not look as it did when its golden frame was stored: "
            f"{'; '.join(verdict.differences)}. Success rates need not be comparable. "
            "--accept_renderer evaluates nevertheless and notes it in the receipt; "
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
    """Returns the stored frame, or None where there is none.

    Raises:
        FileError: its JSON has other fields, or its images are not of the sizes there.
    """
    path = folder / f"{name}.json"
    if not path.is_file():
        return None
    record = read_json(path, _FORM)
    sizes = tuple((height, width) for height, width in record["sizes"])
    if not sizes:
        raise FileError(f"{path}: sizes is empty; allowed is a size for each view")
    top, left = sizes[0][0] // 4, sizes[0][1] // 4
    return Frame(
        sizes=sizes,
        blocks=_read_png(folder / f"{name}.blocks.png", (_BLOCKS, _BLOCKS * len(sizes))),
        detail=_read_png(
            folder / f"{name}.detail.png", (sizes[0][0] - 2 * top, sizes[0][1] - 2 * left)
        ),
        renderer=record["renderer"],
        versions=record["versions"],
    )


def _read_png(path: Path, size: tuple[int, int]) -> NDArray[np.uint8]:
    content = read_bytes(path)
    # A PNG begins with its width and height: a wrong size is refused before it is allocated.
    height, width = size
    if content[16:24] != struct.pack(">II", width, height):
        raise FileError(f"{path} is no PNG of {height} x {width} pixels, the size in its JSON")
    try:
        image = np.asarray(needed("imageio.v3", "sim").imread(content, extension=".png"))
    except (OSError, ValueError, SyntaxError) as error:
        raise FileError(f"{path}: no PNG ({error})") from None
    if image.dtype != np.uint8 or image.shape != (*size, 3):
        raise FileError(f"{path} is {image.dtype}{list(image.shape)}; allowed is uint8[H, W, 3]")
    return image


def _image_problem(stored: Frame, rendered: Frame, mean: float, worst: float, pixels: float) -> str:
    """Returns how the images differ, or "" where they are within tolerance."""
    if mean <= MEAN_TOLERANCE and worst <= WORST_TOLERANCE and pixels <= PIXEL_SHARE:
        return ""
    shift = float(rendered.blocks.astype(np.float64).mean() - stored.blocks.mean())
    text = (
        f"image off by {mean:.1f} grey levels in the mean ({shift:+.1f}), {worst:.0f} in the worst "
        f"of its blocks, {100 * pixels:.1f} % of pixels beyond {PIXEL_TOLERANCE} (allowed "
        f"{MEAN_TOLERANCE:g}, {WORST_TOLERANCE:g}, {100 * PIXEL_SHARE:g} %)"
    )
    first = slice(0, _BLOCKS)
    for turned, turn in _TURNS.items():
        apart = np.abs(turn(rendered.blocks[:, first]).astype(np.float64) - stored.blocks[:, first])
        if mean > MEAN_TOLERANCE and apart.mean() <= MEAN_TOLERANCE:
            text += f"; the first view is {turned}"
    return text


def _block_means(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Means of an image [H, W, 3] over a grid of blocks, uint8[32, 32, 3]."""
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
    file = io.BytesIO()
    needed("imageio.v3", "sim").imwrite(file, image, extension=".png", optimize=True)
    return file.getvalue()
