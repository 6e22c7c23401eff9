"""The progress bar that the scripts share: done of total, successes, rate, time to go."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)


@contextlib.contextmanager
def episode_progress(
    console: Console, description: str, total: int
) -> Iterator[Callable[[int, int, int], None]]:
    """A bar; what it yields takes (episodes done, episodes in all, successes so far)."""
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    ) as progress:
        bar = progress.add_task(description, total=total, rate="")

        def show(done: int, total: int, successes: int) -> None:
            speed = progress.tasks[bar].speed
            rate = "" if speed is None else f"{60 * speed:.0f}/min"
            text = f"{done - successes} failed  {rate}"
            progress.update(bar, completed=done, total=total, rate=text)

        yield show


@contextlib.contextmanager
def _bar(
    console: Console, description: str, *counts: ProgressColumn
) -> Iterator[Callable[[int, int], None]]:
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        *counts,
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    ) as progress:
        bar = progress.add_task(description, total=None)

        def show(done: int, total: int) -> None:
            progress.update(bar, completed=done, total=total)

        yield show


def count_progress(
    console: Console, description: str
) -> contextlib.AbstractContextManager[Callable[[int, int], None]]:
    """A bar that counts; what it yields takes (done, in all)."""
    return _bar(console, description, MofNCompleteColumn())


def bytes_progress(
    console: Console, description: str
) -> contextlib.AbstractContextManager[Callable[[int, int], None]]:
    """A bar that counts bytes; what it yields takes (done, in all)."""
    return _bar(console, description, DownloadColumn(), TransferSpeedColumn())
