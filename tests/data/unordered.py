"""Stand-in for dlimp's `DLataset`, as careless of order as the real one can be under load."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from data.readers.dlataset import DLataset, Traj, TrajFn


@dataclass(frozen=True)
class UnorderedDLataset:
    """Delivers the last trajectory first, and numbers it so, unless options say otherwise.

    dlimp sets `deterministic = False`, so what a pipeline gives then is up to the threads; only
    options that are set afterwards, to True, bind it to the order of the files.
    """

    ordered: DLataset
    deterministic: bool = False

    @staticmethod
    def from_rlds(builder: Any, split: str = "train", shuffle: bool = True) -> UnorderedDLataset:
        return UnorderedDLataset(DLataset.from_rlds(builder, split=split, shuffle=shuffle))

    def traj_map(self, fn: TrajFn) -> UnorderedDLataset:
        return dataclasses.replace(self, ordered=self.ordered.traj_map(fn))

    def with_options(self, options: tf.data.Options) -> UnorderedDLataset:
        kept = self.deterministic if options.deterministic is None else options.deterministic
        return dataclasses.replace(self, deterministic=kept)

    def iterator(self, *, prefetch: int = tf.data.AUTOTUNE) -> Iterator[Traj]:
        if self.deterministic:
            return self.ordered.iterator(prefetch=prefetch)
        return (
            {**traj, "_traj_index": np.full_like(traj["_traj_index"], number)}
            for number, traj in enumerate(reversed(list(self.ordered.iterator())))
        )
