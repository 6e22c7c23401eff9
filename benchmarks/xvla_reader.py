"""X-VLA's way of reading HDF5 episodes, as a reference speed: its order of work, in our own code.

``PYTHON -m benchmarks.xvla_reader META.json [--decode=open|late]``; that Python needs torch. Each
line ``warm seconds`` on its input is answered by a line of JSON: the samples made, the seconds that
they took and those of the CPU, after `warm` batches that are not counted.

Per worker: episodes in random order, one open at a time, its images decoded on opening (or, with
`late`, for each sample); its samples in random order, each with linear interpolation, then for each
view Pillow's bicubic resize and colour jitter, float32 in channels-first order, normalised, and
zeros for absent views. PyTorch's DataLoader collates.
"""

from __future__ import annotations

import argparse
import importlib
import io
import json
import multiprocessing
import os
import pathlib
import random
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

import h5py
import numpy as np
from PIL import Image, ImageEnhance

torch: Any = importlib.import_module("torch")
importlib.import_module("torch.utils.data")

NUM_ACTIONS: Final = 30
RATE_HZ, WINDOW_S, MARGIN = 30.0, 1.0, 20  # as in its Calvin handler
STATIC: Final = 1e-5
SLOTS: Final = 3
SIZE: Final = 224
STRENGTH: Final = 0.2
MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
ENHANCERS = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)


def decoder() -> tuple[str, Callable[[np.ndarray], np.ndarray]]:
    """Returns OpenCV's name and decoder, which X-VLA uses, if installed; else Pillow's."""
    try:
        cv2: Any = importlib.import_module("cv2")
    except ImportError:
        return "Pillow", lambda data: np.asarray(Image.open(io.BytesIO(data.tobytes())))
    return "OpenCV", lambda data: cv2.imdecode(data, cv2.IMREAD_COLOR)


def transformed(pixels: np.ndarray) -> Any:
    """Resizes, jitters and normalises: uint8[H, W, 3] -> float32[3, S, S]."""
    image = Image.fromarray(pixels).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    for which in random.sample(range(len(ENHANCERS)), len(ENHANCERS)):
        factor = random.uniform(1 - STRENGTH, 1 + STRENGTH)
        image = ENHANCERS[which](image).enhance(factor)
    chw = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
    return chw.to(torch.float32).div(255).sub_(MEAN).div_(STD)


class Samples(torch.utils.data.IterableDataset):
    """Endless samples of the episodes of one meta file."""

    def __init__(self, meta: pathlib.Path, decode_on_opening: bool) -> None:
        content = json.loads(meta.read_text())
        self._paths = [meta.parent / name for name in content["datalist"]]
        self._views = content["observation_key"]
        self._text = content["language_instruction_key"]
        self._on_opening = decode_on_opening
        self._decode = decoder()[1]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        while True:
            for path in random.sample(self._paths, len(self._paths)):
                yield from self._episode(path)

    def _episode(self, path: pathlib.Path) -> Iterator[dict[str, Any]]:
        with h5py.File(path) as file:
            recorded: Any = file["proprio"]
            proprio = recorded[()]
            stored: list[Any] = [file[key] for key in self._views]
            views = [view[()] for view in stored]
            text: Any = file[self._text]
            instruction = text[()].decode()
        if self._on_opening:
            views = [[self._decode(image) for image in view] for view in views]
        rows = _rows(proprio)
        times = np.arange(len(rows)) / RATE_HZ
        for start in random.sample(range(len(rows) - MARGIN), len(rows) - MARGIN):
            window = min(times[start] + WINDOW_S, times[-1]) - times[start]
            sampled_times = times[start] + np.arange(NUM_ACTIONS + 1) / NUM_ACTIONS * window
            points = _interpolated(times, rows, sampled_times)
            if np.abs(points[1] - points[0]).max() < STATIC:
                continue
            frames = [view[start] for view in views]
            if not self._on_opening:
                frames = [self._decode(image) for image in frames]
            images = [transformed(pixels) for pixels in frames]
            mask = torch.arange(SLOTS) < len(images)
            images += [torch.zeros_like(images[0])] * (SLOTS - len(images))
            both = torch.from_numpy(np.pad(points, ((0, 0), (0, 10))).astype(np.float32))
            yield {
                "domain_id": torch.tensor(2),
                "language_instruction": instruction,
                "image_input": torch.stack(images),
                "image_mask": mask,
                "proprio": both[0],
                "action": both[1:].clone(),
            }


def _rows(proprio: np.ndarray) -> np.ndarray:
    """Converts xyz, roll-pitch-yaw, gripper to xyz, 6-D rotation, closed: [T, 10]."""
    (a, b, c), xyz = proprio[:, 3:6].T.astype(np.float64), proprio[:, :3]
    ca, sa, cb, sb, cc, sc = (f(x) for x in (a, b, c) for f in (np.cos, np.sin))
    first = (cc * cb, sc * cb, -sb)
    second = (cc * sb * sa - sc * ca, sc * sb * sa + cc * ca, cb * sa)
    rotation = np.stack([x for pair in zip(first, second, strict=True) for x in pair], axis=1)
    return np.concatenate((xyz, rotation, proprio[:, -1:] < 0), axis=1)


def _interpolated(times: np.ndarray, rows: np.ndarray, sampled_times: np.ndarray) -> np.ndarray:
    after = np.clip(np.searchsorted(times, sampled_times), 1, len(times) - 1)
    share = ((sampled_times - times[after - 1]) / (times[after] - times[after - 1]))[:, None]
    return rows[after - 1] + share * (rows[after] - rows[after - 1])


def _cpu_seconds() -> float:
    """Returns the CPU time of this process and its workers so far, from Linux's /proc."""
    ticks = 0
    for worker in multiprocessing.active_children():
        # behind the name, which may hold spaces: the fields from the third on
        fields = pathlib.Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])  # in user mode, in the kernel
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


def _seed(worker: int) -> None:
    random.seed(torch.initial_seed() + worker)


def main() -> None:
    """Answers until its input ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("meta", type=pathlib.Path)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--decode", choices=("open", "late"), default="open")
    options = parser.parse_args()
    loader = torch.utils.data.DataLoader(
        Samples(options.meta, options.decode == "open"),
        batch_size=options.batch_size,
        num_workers=options.workers,
        worker_init_fn=_seed,
        persistent_workers=True,
    )
    batches = iter(loader)
    next(batches)
    about = {"torch": torch.__version__, "decoder": decoder()[0], "workers": options.workers}
    print(json.dumps(about), flush=True)
    for line in sys.stdin:
        warm, seconds = line.split()
        for _ in range(int(warm)):
            next(batches)
        start, cpu, count = time.perf_counter(), _cpu_seconds(), 0
        while time.perf_counter() - start < float(seconds):
            next(batches)
            count += options.batch_size
        took = {"seconds": time.perf_counter() - start, "cpu": _cpu_seconds() - cpu}
        print(json.dumps({"samples": count, **took}), flush=True)


if __name__ == "__main__":
    main()
