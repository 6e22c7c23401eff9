"""Where a run's numbers go: ``metrics.jsonl``, TensorBoard, Weights & Biases if asked for."""

from __future__ import annotations

import importlib
import json
import pathlib
import secrets
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Final, Protocol

from xvla_jax.errors import ConfigError
from xvla_jax.extras import needs

# Generated protobuf modules: their classes appear at import, where no checker sees them.
with needs("data"):
    from tensorboard.compat.proto.event_pb2 import (
        Event,  # pyright: ignore[reportAttributeAccessIssue]
    )
    from tensorboard.compat.proto.summary_pb2 import (
        Summary,  # pyright: ignore[reportAttributeAccessIssue]
    )
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

METRICS_NAME: Final = "metrics.jsonl"
WANDB_ID_NAME: Final = "wandb_id"
WANDB_MODES: Final = ("online", "offline")


class Sink(Protocol):
    """One place for scalars."""

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Takes one value per name."""
        ...

    def close(self) -> None:
        """Flushes."""
        ...


class JsonLines:
    """``metrics.jsonl``, for anything that plots; the newest line of a step counts."""

    def __init__(self, workdir: pathlib.Path) -> None:
        """Appends to what is there, on a line of its own where a kill has torn the last one."""
        path = workdir / METRICS_NAME
        torn = path.is_file() and not path.read_bytes().endswith(b"\n") and path.stat().st_size
        self._lines = path.open("a", buffering=1)
        if torn:
            self._lines.write("\n")

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """One line."""
        self._lines.write(json.dumps({"step": step, **scalars}) + "\n")

    def close(self) -> None:
        """Closes the file."""
        self._lines.close()


class TensorBoard:
    """Event files in ``workdir/tensorboard``."""

    def __init__(self, workdir: pathlib.Path) -> None:
        """A file of its own for each process."""
        self._events = EventFileWriter(str(workdir / "tensorboard"))

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """One event."""
        values = [Summary.Value(tag=k, simple_value=v) for k, v in scalars.items()]
        self._events.add_event(Event(step=step, summary=Summary(value=values)))

    def close(self) -> None:
        """Flushes."""
        self._events.close()


class WeightsAndBiases:
    """A run of wandb; a resumed workdir goes on in the same one."""

    def __init__(
        self,
        workdir: pathlib.Path,
        config: Mapping[str, Any],
        *,
        project: str,
        entity: str,
        name: str,
        mode: str,
    ) -> None:
        """Begins or resumes the run.

        Raises:
            ConfigError: an unknown mode, or wandb is not installed.
        """
        if mode not in WANDB_MODES:
            raise ConfigError(
                f"config.wandb.mode is {mode!r}; allowed are {', '.join(WANDB_MODES)}"
            )
        try:
            wandb: Any = importlib.import_module("wandb")
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"config.wandb.project is {project!r}, but wandb is not installed: pip install "
                "wandb, or set config.wandb.project to ''"
            ) from error
        path = workdir / WANDB_ID_NAME
        if not path.is_file():
            path.write_text(secrets.token_hex(8))
        self._run = wandb.init(
            project=project,
            entity=entity or None,
            name=name or workdir.name,
            id=path.read_text(),
            resume="allow",
            mode=mode,
            dir=str(workdir),
            config=dict(config),
        )

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """One row of the run's history; wandb drops steps that it has already."""
        self._run.log(dict(scalars), step=step)

    def close(self) -> None:
        """Uploads what is left."""
        self._run.finish()


def open_sinks(workdir: pathlib.Path, config: Mapping[str, Any]) -> list[Sink]:
    """The sinks of a run's config: wandb only where config.wandb.project is set."""
    sinks: list[Sink] = [JsonLines(workdir), TensorBoard(workdir)]
    if config["wandb"]["project"]:
        sinks.append(WeightsAndBiases(workdir, config, **config["wandb"]))
    return sinks


class MetricsWriter:
    """Writes the scalars of a step to every sink."""

    def __init__(self, *sinks: Sink) -> None:
        """No sink at all where this process is not the one that writes."""
        self._sinks = sinks

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes one value per name."""
        for sink in self._sinks:
            sink.write(step, scalars)

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
        for sink in self._sinks:
            sink.close()


def all_lines(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """Every line of a run in the order written; a torn last line is left out."""
    path = workdir / METRICS_NAME
    found = []
    for line in path.read_text().splitlines() if path.is_file() else ():
        if not line:
            continue
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue  # cut off by a kill while it was written
    return found


def read_metrics(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """The lines of a run by rising step, the newest of each step."""
    by_step = {record["step"]: record for record in all_lines(workdir)}
    return [by_step[step] for step in sorted(by_step)]
