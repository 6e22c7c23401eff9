"""Where a run's numbers go: TensorBoard, and ``metrics.jsonl`` for anything that plots."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from types import TracebackType
from typing import Final

# Generated protobuf modules: their classes appear at import, where no checker sees them.
from tensorboard.compat.proto.event_pb2 import (
    Event,  # pyright: ignore[reportAttributeAccessIssue]
)
from tensorboard.compat.proto.summary_pb2 import (
    Summary,  # pyright: ignore[reportAttributeAccessIssue]
)
from tensorboard.summary.writer.event_file_writer import EventFileWriter

METRICS_NAME: Final = "metrics.jsonl"


class MetricsWriter:
    """Appends scalars of a step. After a resume the newer line of a step counts."""

    def __init__(self, workdir: pathlib.Path) -> None:
        """Opens the files inside ``workdir``."""
        self._events = EventFileWriter(str(workdir / "tensorboard"))
        self._lines = (workdir / METRICS_NAME).open("a", buffering=1)

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes one value per name."""
        values = [Summary.Value(tag=k, simple_value=v) for k, v in scalars.items()]
        self._events.add_event(Event(step=step, summary=Summary(value=values)))
        self._lines.write(json.dumps({"step": step, **scalars}) + "\n")

    def __enter__(self) -> MetricsWriter:
        """For ``with``."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Flushes and closes."""
        self._events.close()
        self._lines.close()


def read_metrics(workdir: pathlib.Path) -> list[dict[str, float]]:
    """The lines of a run by rising step, the newest of each step; a torn last line is left out."""
    path = workdir / METRICS_NAME
    by_step = {}
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue  # cut off by a kill while it was written
        by_step[record["step"]] = record
    return [by_step[step] for step in sorted(by_step)]
