"""Pillow's bicubic resize of RGB images, to the same bits in a fifth of its time.

Pillow filters one axis, rounds to uint8, and filters the other. Each sum is of integers, pixels
times weights in units of 2**-22, so it has one result in any order, and the loops here may run as
vector units like: along rows of pixels, compiled by Numba.

Which axis Pillow takes first depends on the sizes and on its version. So the order for a size is
the one that gives Pillow's bits on noise; if none does, Pillow keeps the size. It also does the
first `WORTHWHILE` images of each size, for compiling takes as long, and all where Numba is absent.
"""

from __future__ import annotations

import collections
import functools
import importlib
import logging
import math
import operator
import threading
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

UInt8 = NDArray[np.uint8]
Int32 = NDArray[np.int32]
Resize = Callable[[UInt8], UInt8]  # [H, W, 3] -> [S, S, 3]

WORTHWHILE: Final = 2000  # images of one size; at most so many are resized the slow way
KEPT_SIZES: Final = 1024  # that are counted; when full, counting begins again
THREAD: Final = "compile resizing"
_BITS: Final = 22  # of a weight behind the point
_HALF: Final = 1 << (_BITS - 1)
_REACH: Final = 2.0  # pixels to each side that the cubic sees
_DECIDING: Final = 256  # pixels that are compared at least
_LINES: Final = 64  # rows that `_across` takes at a time; with them its block stays in the cache

_log = logging.getLogger(__name__)


class Taps(NamedTuple):
    """Filter of one axis: its m results as weighted sums of neighbouring pixels."""

    first: Int32  # [m] pixel with which the sum begins
    count: Int32  # [m] pixels in the sum
    weights: Int32  # [m, K] in units of 2**-22, zeros behind the last


def loops(height: int, width: int, side: int) -> Resize | None:
    """Returns the compiled resize of images [height, width, 3]; None where Pillow is to do it.

    Counts the call as an image: from a certain number on a thread compiles.
    """
    return _ways.of((height, width, side))


class Ways:
    """Way of each size, height, width and side: a compiled resize, or None for Pillow's."""

    def __init__(self) -> None:
        self.seen: collections.Counter[tuple[int, int, int]] = collections.Counter()
        self._chosen: dict[tuple[int, int, int], Resize | None] = {}
        self._lock = threading.Lock()
        self._compiling = threading.Lock()

    def of(self, size: tuple[int, int, int]) -> Resize | None:
        """Returns the way of a size, and counts the image."""
        if size in self._chosen:
            return self._chosen[size]
        with self._lock:
            if len(self.seen) == KEPT_SIZES and size not in self.seen:
                self.seen.clear()
            self.seen[size] += 1
            if self.seen[size] == WORTHWHILE:
                # not a daemon: the interpreter's end would cut it off inside the compiler
                threading.Thread(target=self._choose, args=(size,), name=THREAD).start()
        return None

    def _choose(self, size: tuple[int, int, int]) -> None:
        with self._compiling:
            self._chosen[size] = verified(*size)


def verified(height: int, width: int, side: int) -> Resize | None:
    """Compiles the resize of a size; None where it is not to the bits of the installed Pillow."""
    passes = _compiled()
    if passes is None:
        return None
    rng = np.random.default_rng(0)
    # the orders differ in about a third of the values: a few hundred decide
    noise = rng.integers(0, 256, (1 + _DECIDING // side**2, height, width, 3), np.uint8)
    expected = [_by_pillow(image, side) for image in noise]
    columns, rows = taps(width, side), taps(height, side)
    for resize in (_across_then_down, _down_then_across):
        chosen = functools.partial(resize, passes=passes, columns=columns, rows=rows)
        if np.array_equal([chosen(image) for image in noise], expected):
            return chosen
    _log.warning(
        "images of %d x %d px are resized by Pillow %s alone: the loops of %s give other bits",
        *(height, width, importlib.import_module("PIL").__version__, __name__),
    )
    return None


def taps(length: int, side: int) -> Taps:
    """Returns the cubic filter from an axis of `length` pixels to one of `side`."""
    scale = length / side
    stretch = max(scale, 1.0)  # the cubic widens where the axis shrinks: that is the antialiasing
    reach = _REACH * stretch
    first, count = np.zeros(side, np.int32), np.zeros(side, np.int32)
    weights = np.zeros((side, 2 * math.ceil(reach) + 1), np.int32)
    for result in range(side):
        # in float64 and in Pillow's order: a weight rounded the other way would change pixels
        center = (result + 0.5) * scale
        begin = max(int(center - reach + 0.5), 0)
        end = min(int(center + reach + 0.5), length)
        shares = [_cubic((x - center + 0.5) * (1.0 / stretch)) for x in range(begin, end)]
        total = functools.reduce(operator.add, shares)  # `sum` would add more exactly than Pillow
        first[result], count[result] = begin, end - begin
        for place, share in enumerate(shares):
            weight = share / total * (1 << _BITS)
            weights[result, place] = int(weight + math.copysign(0.5, weight))
    return Taps(first, count, weights)


def _cubic(x: float) -> float:
    """Returns Keys' cubic with a = -1/2 at a distance of x pixels."""
    x = abs(x)
    if x < 1.0:
        return (1.5 * x - 2.5) * x * x + 1
    return (((x - 5) * x + 8) * x - 4) * -0.5 if x < _REACH else 0.0


class _Passes(NamedTuple):
    across: Callable[[UInt8, Int32, Int32, Int32, UInt8], None]
    down: Callable[[UInt8, Int32, Int32, Int32, UInt8], None]


@functools.cache
def _compiled() -> _Passes | None:
    """Returns the passes, compiled; None without Numba."""
    try:
        numba: Any = importlib.import_module("numba")
    except ImportError as error:
        _log.info("images are resized by Pillow, which takes five times as long: %s", error)
        return None
    # decoded pixels are read-only
    source = functools.partial(numba.types.Array, numba.uint8, layout="C", readonly=True)
    filters = (numba.int32[::1], numba.int32[::1], numba.int32[:, ::1])
    # without Python's lock, so that the threads that decode work side by side
    across = numba.njit((source(ndim=3), *filters, numba.uint8[:, :, ::1]), nogil=True)
    down = numba.njit((source(ndim=2), *filters, numba.uint8[:, ::1]), nogil=True)
    return _Passes(across(_across), down(_down))


def _across_then_down(pixels: UInt8, *, passes: _Passes, columns: Taps, rows: Taps) -> UInt8:
    return _filtered_down(_filtered_across(pixels, passes, columns), passes, rows)


def _down_then_across(pixels: UInt8, *, passes: _Passes, columns: Taps, rows: Taps) -> UInt8:
    return _filtered_across(_filtered_down(pixels, passes, rows), passes, columns)


def _filtered_across(pixels: UInt8, passes: _Passes, columns: Taps) -> UInt8:
    side = len(columns.first)
    if pixels.shape[1] == side:
        return pixels
    out = np.empty((len(pixels), side, 3), np.uint8)
    passes.across(pixels, *columns, out)
    return out


def _filtered_down(pixels: UInt8, passes: _Passes, rows: Taps) -> UInt8:
    side, width = len(rows.first), pixels.shape[1]
    if len(pixels) == side:
        return pixels
    out = np.empty((side, width * 3), np.uint8)
    passes.down(pixels.reshape(-1, width * 3), *rows, out)
    return out.reshape(side, width, 3)


# The two passes are compiled by Numba, which takes loops and no numpy functions of its own here.


def _across(source: UInt8, first: Int32, count: Int32, weights: Int32, out: UInt8) -> None:
    """Filters along the rows: [H, W, 3] -> [H, S, 3]."""
    height, width, _ = source.shape
    block = np.empty((width, 3 * _LINES), np.uint8)  # column by column, the rows side by side
    sums = np.empty(3 * _LINES, np.int32)
    pixels = np.empty(3 * _LINES, np.uint8)  # apart from `out`, so that clipping is a vector's work
    for top in range(0, height, _LINES):
        lines = min(_LINES, height - top)
        for line in range(lines):
            for x in range(width):
                for channel in range(3):
                    block[x, 3 * line + channel] = source[top + line, x, channel]
        for result in range(len(first)):
            sums[:] = _HALF
            for place in range(count[result]):
                weight = weights[result, place]
                column = block[first[result] + place]
                for i in range(3 * _LINES):
                    sums[i] += weight * np.int32(column[i])
            for i in range(3 * _LINES):
                pixels[i] = np.uint8(min(max(sums[i] >> _BITS, 0), 255))
            for line in range(lines):
                for channel in range(3):
                    out[top + line, result, channel] = pixels[3 * line + channel]


def _down(source: UInt8, first: Int32, count: Int32, weights: Int32, out: UInt8) -> None:
    """Filters along the columns: [H, N] -> [S, N]."""
    width = source.shape[1]
    sums = np.empty(width, np.int32)
    for result in range(len(first)):
        sums[:] = _HALF
        for place in range(count[result]):
            weight = weights[result, place]
            row = source[first[result] + place]
            for i in range(width):
                sums[i] += weight * np.int32(row[i])
        for i in range(width):
            out[result, i] = np.uint8(min(max(sums[i] >> _BITS, 0), 255))


def _by_pillow(pixels: UInt8, side: int) -> UInt8:
    resized = Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC)
    return np.asarray(resized)


_ways = Ways()
