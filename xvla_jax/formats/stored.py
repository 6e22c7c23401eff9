"""Leaves that stay on disk until they are asked for, in place of arrays."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Final

import numpy as np

Progress = Callable[[int, int], None]  # takes (bytes done, bytes in all)

_FLOAT32: Final = np.dtype(np.float32)


@dataclasses.dataclass(frozen=True, eq=False)
class StoredLeaf:
    """A float32 parameter that is read anew each time it is used.

    It stands where numpy arrays stand: it has a shape, can be indexed by layer, and turns into an
    array.

    Attributes:
        shape: of the whole leaf.
        read: gives one layer (an index into the leading axis), or the whole leaf for None; the
            array may be a view, and is not to be written to.
    """

    shape: tuple[int, ...]
    read: Callable[[int | None], np.ndarray]

    @property
    def dtype(self) -> np.dtype:
        """Always float32."""
        return _FLOAT32

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes in memory, once read."""
        return self.size * _FLOAT32.itemsize

    def __getitem__(self, layer: int) -> np.ndarray:
        return self.read(layer)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.read(None), dtype=dtype, copy=copy)
