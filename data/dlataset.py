"""The few methods of dlimp's `DLataset` that data/rlds.py needs, with the same meaning.

dlimp has no licence and is on no package index, so it is optional; this class stands in for it.
The contract tests (tests/data/test_dlataset.py) run against both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

import tensorflow as tf
import tensorflow_datasets as tfds

Traj = dict[str, Any]


class DLataset:
    """A dataset of trajectories: nested dictionaries of tensors that share their first axis.

    Images stay encoded strings. Every trajectory carries `_len`, `_traj_index`, `_frame_index`
    and the episode's metadata as `traj_metadata`, all repeated along the first axis.
    """

    def __init__(self, dataset: tf.data.Dataset) -> None:
        self._dataset = dataset

    @staticmethod
    def from_rlds(
        builder: Any,
        split: str = "train",
        shuffle: bool = True,
        num_parallel_reads: int = tf.data.AUTOTUNE,
    ) -> DLataset:
        """Trajectories of a tfds builder's RLDS dataset; `split` for example "train[10:20]"."""
        dataset = builder.as_dataset(
            split=split,
            shuffle_files=shuffle,
            decoders={"steps": tfds.decode.SkipDecoding()},
            read_config=tfds.ReadConfig(
                skip_prefetch=True,
                num_parallel_calls_for_interleave_files=num_parallel_reads,
                interleave_cycle_length=num_parallel_reads,
            ),
        )
        numbered = dataset.enumerate()
        return DLataset(numbered.map(_steps_on_top, num_parallel_calls=tf.data.AUTOTUNE))

    def traj_map(
        self, fn: Callable[[Traj], Traj], num_parallel_calls: int = tf.data.AUTOTUNE
    ) -> DLataset:
        """Apply `fn`, trajectory in, trajectory out."""
        return DLataset(self._dataset.map(fn, num_parallel_calls=num_parallel_calls))

    def iterator(self, *, prefetch: int = tf.data.AUTOTUNE) -> Iterator[Traj]:
        """The trajectories as numpy arrays; strings are object arrays of bytes."""
        dataset = self._dataset.prefetch(prefetch) if prefetch else self._dataset
        return cast(Iterator[Traj], dataset.as_numpy_iterator())


def _steps_on_top(index: tf.Tensor, episode: Traj) -> Traj:
    steps = episode.pop("steps")
    length = tf.shape(tf.nest.flatten(steps)[0])[0]
    return {
        **steps,
        "traj_metadata": tf.nest.map_structure(lambda value: tf.repeat(value, length), episode),
        "_len": tf.repeat(length, length),
        "_traj_index": tf.repeat(index, length),
        "_frame_index": tf.range(length),
    }
