"""Single images of video files, by seeking: a sample never decodes a complete episode.

Each thread keeps a few files open. An image costs the decoding from the key frame before it, so
recordings with frequent key frames are cheap; an image soon after the last one is reached from it.
"""

from __future__ import annotations

import functools
import threading
from collections import OrderedDict
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.faults import needs

UInt8 = NDArray[np.uint8]
OPEN_FILES_PER_THREAD = 8
KEPT_INDEXES = 4096  # of time stamps: 8 bytes for each frame of a file
NEAR_S = 0.5  # an image up to this far ahead is reached without a seek

_local = threading.local()


class VideoImages:
    """Images of one video by number, or by time where several episodes share the file."""

    def __init__(
        self, path: Path, *, times: NDArray[np.float64] | None = None, rate_hz: float | None = None
    ) -> None:
        """Takes all images of the file, or those at `times` (s from its start).

        With times, an image must lie within half a frame of `rate_hz`.
        """
        self._path = path
        self._times = times
        self._tolerance_s = 0.5 / rate_hz if rate_hz else 0.0
        self._places: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        if self._places is not None:
            return len(self._places)
        if self._times is not None:
            return len(self._times)
        return _open(self._path).num_frames or len(_pts(self._path))

    def __getitem__(self, index: int) -> UInt8:
        """Image uint8[H, W, 3] RGB; a ValueError names the file."""
        place = int(index if self._places is None else self._places[index])
        try:
            video = _open(self._path)
            if self._times is None:
                return video.frame(int(_pts(self._path)[place]), tolerance_s=0.0)
            return video.frame(video.pts_at(float(self._times[place])), self._tolerance_s)
        except (OSError, EOFError, IndexError, ValueError) as error:
            raise ValueError(f"{self._path}, image {place}: {error}") from error

    def take(self, indices: NDArray[np.int64]) -> VideoImages:
        """Images at `indices`, decoded when asked for."""
        taken = VideoImages(self._path, times=self._times)
        taken._tolerance_s = self._tolerance_s
        taken._places = indices if self._places is None else self._places[indices]
        return taken


class OpenVideo:
    """A video file with its decoder, for one thread."""

    def __init__(self, path: Path) -> None:
        with needs("data"):
            import av  # here: sets without videos need no PyAV

        self._container = av.open(str(path))
        self._stream = self._container.streams.video[0]
        self._stream.codec_context.thread_count = 1  # samples are decoded in parallel already
        self._time_base = Fraction(self._stream.time_base or 1)
        self._frames: Any = None
        self._last_pts: int | None = None

    @property
    def num_frames(self) -> int:
        """Number of frames by the file's header; 0 where it has none."""
        return self._stream.frames

    def read_pts(self) -> NDArray[np.int64]:
        """Time stamps of all frames, in the order shown; nothing is decoded."""
        self._rewind(self._stream.start_time or 0)
        stamps = [packet.pts for packet in self._container.demux(self._stream)]
        self._last_pts = None
        return np.sort(np.array([stamp for stamp in stamps if stamp is not None], np.int64))

    def pts_at(self, time_s: float) -> int:
        """Time stamp of the moment `time_s` after the start."""
        return round(time_s / self._time_base) + (self._stream.start_time or 0)

    def frame(self, pts: int, tolerance_s: float) -> UInt8:
        """Frame shown at `pts`, within the tolerance; an EOFError where there is none."""
        tolerance = int(tolerance_s / self._time_base)
        near = NEAR_S / self._time_base
        if self._last_pts is None or not 0 < pts - tolerance - self._last_pts <= near:
            self._rewind(pts)
        for frame in self._frames:
            self._last_pts = frame.pts
            if frame.pts >= pts - tolerance:
                if frame.pts > pts + tolerance:
                    break
                return frame.to_ndarray(format="rgb24")
        raise EOFError(f"no frame at {float(pts * self._time_base):.4f} s")

    def close(self) -> None:
        """Closes the file."""
        self._container.close()

    def _rewind(self, pts: int) -> None:
        self._container.seek(pts, stream=self._stream, backward=True)
        self._frames = self._container.decode(self._stream)
        self._last_pts = None


@functools.lru_cache(maxsize=KEPT_INDEXES)
def _pts(path: Path) -> NDArray[np.int64]:
    return _open(path).read_pts()


def _open(path: Path) -> OpenVideo:
    """Opens the file in this thread; beyond the limit the one unused for longest is closed."""
    if not hasattr(_local, "videos"):
        _local.videos = OrderedDict()
    videos: OrderedDict[Path, OpenVideo] = _local.videos
    if path not in videos:
        videos[path] = OpenVideo(path)
        if len(videos) > OPEN_FILES_PER_THREAD:
            videos.popitem(last=False)[1].close()
    videos.move_to_end(path)
    return videos[path]
