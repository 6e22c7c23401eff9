"""Metrics of a run: the sinks that they are written to, and the time that the run takes.

Goodput is the share of a run's wall-clock time that went into steps which count: not into starting,
compiling, waiting for data, saving, validating, nor into steps that were repeated after a kill.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import math
import pathlib
import secrets
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Final, Protocol

from xvla_jax.errors import ConfigError, needs

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
TENSORBOARD: Final = "tensorboard"  # folder of event files and traces
WANDB_ID_NAME: Final = "wandb_id"
KINDS: Final = ("data", "checkpoint", "validation")  # that a step may have to wait for
WANDB_MODES: Final = ("online", "offline")


class Sink(Protocol):
    """One place for scalars."""

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes one value per name."""
        ...

    def close(self) -> None:
        """Flushes."""
        ...


class JsonLines:
    """Appends to ``metrics.jsonl``; of a step's lines the newest counts, field by field."""

    def __init__(self, workdir: pathlib.Path) -> None:
        """Opens the file; a last line that a kill has cut off is ended first."""
        path = workdir / METRICS_NAME
        torn = path.is_file() and not path.read_bytes().endswith(b"\n") and path.stat().st_size
        # Buffered by line, so that a kill loses no line that was written before.
        self._lines = path.open("a", buffering=1)
        if torn:
            self._lines.write("\n")

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes one line."""
        self._lines.write(json.dumps({"step": step, **scalars}) + "\n")

    def close(self) -> None:
        """Closes the file."""
        self._lines.close()


class TensorBoard:
    """Writes event files into ``workdir/tensorboard``."""

    def __init__(self, workdir: pathlib.Path) -> None:
        """Opens a new event file."""
        self._events = EventFileWriter(str(workdir / TENSORBOARD))

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes one event."""
        values = [Summary.Value(tag=k, simple_value=v) for k, v in scalars.items()]
        self._events.add_event(Event(step=step, summary=Summary(value=values)))

    def close(self) -> None:
        """Flushes."""
        self._events.close()


class WeightsAndBiases:
    """Writes to a run of wandb; a resumed workdir continues the same run."""

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
        """Starts or resumes the run.

        Raises:
            ConfigError: an unknown mode, or wandb is not installed.
        """
        if mode not in WANDB_MODES:
            raise ConfigError(
                f"config.wandb.mode is {mode!r}; allowed are {', '.join(WANDB_MODES)}"
            )
        # Imported by name: wandb is no dependency, and most runs do without it.
        try:
            wandb: Any = importlib.import_module("wandb")
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"config.wandb.project is {project!r}, but wandb is not installed: pip install "
                "wandb, or set config.wandb.project to ''"
            ) from error
        # The id is chosen here and kept, because a resumed run must give the same one.
        path = workdir / WANDB_ID_NAME
        if not path.is_file():
            path.write_text(secrets.token_hex(8))
        self._newest = 0
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
        """Writes one row of the run's history; wandb drops steps that it already has.

        What comes late, such as rollouts, stands at the newest step, as wandb takes no earlier one.
        """
        self._newest = max(self._newest, step)
        self._run.log(dict(scalars), step=self._newest)

    def close(self) -> None:
        """Uploads what is left."""
        self._run.finish()


def open_sinks(workdir: pathlib.Path, config: Mapping[str, Any]) -> list[Sink]:
    """Opens the sinks of a run: wandb only if config.wandb.project is set."""
    sinks: list[Sink] = [JsonLines(workdir), TensorBoard(workdir)]
    if config["wandb"]["project"]:
        sinks.append(WeightsAndBiases(workdir, config, **config["wandb"]))
    return sinks


class MetricsWriter:
    """Writes the scalars of a step to every sink."""

    def __init__(self, *sinks: Sink) -> None:
        """Takes no sink on processes that do not write."""
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
    """Returns every line of a run in the order written; a line that was cut off is left out."""
    path = workdir / METRICS_NAME
    lines = []
    for line in path.read_text().splitlines() if path.is_file() else ():
        if not line:
            continue
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            continue  # cut off by a kill while it was written
    return lines


def read_metrics(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """Returns a line for each step of a run by rising step, with the newest value of each field."""
    # A resumed run repeats steps, and what is measured beside the training comes in later lines.
    by_step: dict[int, dict[str, Any]] = {}
    for record in all_lines(workdir):
        by_step.setdefault(record["step"], {}).update(record)
    return [by_step[step] for step in sorted(by_step)]


@dataclasses.dataclass
class _Seconds:
    """Sums over an interval: two counts, and seconds."""

    steps: int = 0
    samples: int = 0
    elapsed: float = 0.0
    waits: dict[str, float] = dataclasses.field(default_factory=lambda: dict.fromkeys(KINDS, 0.0))

    @property
    def useful(self) -> float:
        """Seconds that are left for the steps themselves."""
        return max(self.elapsed - sum(self.waits.values()), 0.0)


class Watch:
    """Timekeeper of one process; the loop reports every step to it."""

    def __init__(
        self,
        first: int,
        last: int,
        *,
        began: float,
        flops: float = 0.0,
        peak: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Starts at step ``first`` of ``last``.

        Args:
            first: steps taken before.
            last: steps of the run.
            began: of this process, by ``clock``.
            flops: of one step, over all devices.
            peak: FLOP/s of all devices together; None if unknown.
            clock: seconds.
        """
        self._first, self._last = first, last
        self._began, self._clock = began, clock
        self._flops, self._peak = flops, peak
        self._session = time.time() - (clock() - began)  # names this process in the log
        self._at: float | None = None  # time of the last step; None before the first
        self._now = _Seconds()
        self._useful = 0.0

    def step(self, *, waited_s: float, samples: int) -> None:
        """Counts a step that has started, and the time that it waited for its data."""
        # From the start of a step to the start of the next: dispatch returns at once, and only the
        # sum over an interval is close to the time of the device.
        now = self._clock()
        if self._at is not None:
            self._now.elapsed += now - self._at
            self._now.waits["data"] += waited_s
            self._now.steps += 1
            self._now.samples += samples
        else:  # the first step compiles, and is in no rate; what came before it is no wait
            self._now.waits = dict.fromkeys(KINDS, 0.0)
        self._at = now

    @contextlib.contextmanager
    def waiting(self, kind: str) -> Iterator[None]:
        """Counts the time inside as waiting for a checkpoint or a validation."""
        began = self._clock()
        yield
        self._now.waits[kind] += self._clock() - began

    def read(self) -> dict[str, float]:
        """Returns rates since the last reading, and sums over the process (``_total``, goodput).

        ``session`` and ``session_start`` name the process and the step that it began with.
        """
        now = self._clock()
        if self._at is not None:  # the device has caught up by the time that metrics are read
            self._now.elapsed += now - self._at
            self._at = now
        # Each reading starts a new interval; only the sums with ``_total`` go back to the start.
        seen, self._now = self._now, _Seconds()
        self._useful += seen.useful
        elapsed = max(seen.elapsed, 1e-9)
        rates = {
            "samples_per_s": seen.samples / elapsed,
            "step_s": (seen.useful + seen.waits["data"]) / seen.steps if seen.steps else math.nan,
            **{f"{kind}_wait_share": min(seen.waits[kind] / elapsed, 1.0) for kind in KINDS},
            "tflops_per_s": 1e-12 * self._flops * seen.steps / elapsed,
            "session": self._session,
            "session_start": self._first,
            "session_s_total": now - self._began,
            "useful_s_total": self._useful,
            "goodput": self._useful / max(now - self._began, 1e-9),
        }
        if self._peak:
            rates["mfu"] = self._flops * seen.steps / elapsed / self._peak
        return {name: value for name, value in rates.items() if not math.isnan(value)}

    def line(self, step: int, scalars: Mapping[str, float]) -> str:
        """Returns the line for the console; ``scalars`` include those of `read`."""
        # "loss" is shorter than the names of its terms
        losses = sorted((k for k in scalars if k.endswith("loss")), key=len)
        terms = [f"{name} {scalars[name]:.4g}" for name in losses]
        parts = [f"step {step}/{self._last}", *terms, f"grad_norm {scalars['grad_norm']:.3g}"]
        if "step_s" in scalars:
            to_go = scalars["step_s"] * (self._last - step)
            parts += [
                f"{scalars['samples_per_s']:.3g} samples/s",
                f"data wait {scalars['data_wait_share']:.0%}",
                f"ETA {duration(to_go)}",
            ]
        return "  ".join(parts)


def duration(seconds: float) -> str:
    """Returns seconds as ``1 h 02 min``, ``3 min 04 s`` or ``5 s``."""
    rounded = round(seconds)
    hours, minutes, rest = rounded // 3600, rounded // 60 % 60, rounded % 60
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def goodput(lines: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Returns the goodput of a run over all its sessions.

    Args:
        lines: every line of the log, in the order written.

    Returns:
        ``seconds`` of all sessions, ``useful_s`` of steps that count, ``goodput``, ``sessions``,
        and ``steps_repeated`` because a kill came before they were saved. Time of a session after
        its last line is in none of them.
    """
    # One list for each process that wrote to this log, in order: a resume begins a new one.
    sessions: dict[float, list[Mapping[str, Any]]] = {}
    for line in lines:
        if "session" in line:
            sessions.setdefault(line["session"], []).append(line)
    in_order = list(sessions.values())
    useful, repeated = 0.0, 0
    for number, own in enumerate(in_order):
        # Steps behind the start of the next session were not saved, so they do not count.
        last = number + 1 == len(in_order)
        end = math.inf if last else in_order[number + 1][0]["session_start"]
        kept = [line["useful_s_total"] for line in own if line["step"] <= end]
        useful += kept[-1] if kept else 0.0
        repeated += max(int(own[-1]["step"] - end), 0) if end < math.inf else 0
    seconds = sum(own[-1]["session_s_total"] for own in in_order)
    return {
        "seconds": seconds,
        "useful_s": useful,
        "goodput": useful / seconds if seconds else 0.0,
        "sessions": len(in_order),
        "steps_repeated": repeated,
    }


class StepMeans:
    """Means over the steps since the last reading of what one step says little about."""

    NAMES: Final = ("packed_unused", "packed_overflow")

    def __init__(self) -> None:
        """Begins without a step."""
        self._values: dict[str, list[Any]] = {}

    def add(self, metrics: Mapping[str, Any]) -> None:
        """Keeps the values of a step, without waiting for the device."""
        for name in self.NAMES:
            if name in metrics:
                self._values.setdefault(name, []).append(metrics[name])

    def read(self) -> dict[str, float]:
        """Returns the means, and begins again."""
        means = {
            name: statistics.fmean(map(float, values)) for name, values in self._values.items()
        }
        self._values.clear()
        return means
