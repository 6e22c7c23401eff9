"""``info.json``: where X-VLA's evaluation clients look for the server."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import pathlib
from collections.abc import Iterator

from xvla_jax.serving.slurm import SlurmTask

_LOG = logging.getLogger(__name__)


def info_files(task: SlurmTask | None) -> list[str]:
    """Names of the files that a task writes: ``info.json`` is the first task's."""
    if task is None:
        return ["info.json"]
    return [*(["info.json"] if task.index == 0 else []), f"info.{task.index}.json"]


@contextlib.contextmanager
def announced(
    folder: str | os.PathLike[str], host: str, port: int, task: SlurmTask | None
) -> Iterator[None]:
    """The files are there inside, whole, and gone behind; enter when the socket answers.

    A file that somebody left is replaced. One that another server wrote meanwhile stays.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(
        {
            "host": host,
            "port": port,
            "job_id": task.job_id if task else "none",
            "node_list": task.node_list if task else "none",
        }
    )
    paths = [folder / name for name in info_files(task)]
    for path in paths:
        if path.exists():
            _LOG.warning("%s was left by another server; it is replaced", path)
        scratch = path.with_name(f".{path.name}.{os.getpid()}")
        scratch.write_text(text)
        scratch.replace(path)
    try:
        yield
    finally:
        for path in paths:
            with contextlib.suppress(FileNotFoundError):
                if path.read_text() == text:
                    path.unlink()
