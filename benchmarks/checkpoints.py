"""Checkpoints of the released size for benchmarks: the user's, or one with random weights."""

from __future__ import annotations

import pathlib

from rich.console import Console

from scripts.random_weights import read_config, write_random_checkpoint
from scripts.terminal import count_progress
from xvla_jax.checkpoints.safetensors_files import WEIGHTS_NAME
from xvla_jax.processor import Processor


def released_checkpoint(given: str, out: pathlib.Path, console: Console) -> pathlib.Path:
    """Returns the folder of a checkpoint; writes random weights beside ``out`` if none is given."""
    if given:
        return pathlib.Path(given)
    folder = out.parent / "random_checkpoint"
    if not (folder / WEIGHTS_NAME).is_file():
        with count_progress(console, "random weights of the released size") as show:
            write_random_checkpoint(
                folder, read_config(""), Processor(), seed=0, dtype="float32", on_tensor=show
            )
    return folder
