"""Steps without an update because the loss or a gradient was not finite: told, counted, bounded."""

from __future__ import annotations

import json
import logging
import math
import pathlib
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Final

from xvla_jax.errors import ConfigError, TrainingError

SKIPPED_NAME: Final = "skipped.jsonl"
_LAG: Final = 4  # steps: a flag is read this late, so that reading does not hold up the device

_log = logging.getLogger(__name__)


class SkipWatch:
    """Reads the flag ``finite`` of each step a little later; a skipped step goes into a file."""

    def __init__(self, workdir: pathlib.Path, *, limit: int, process: int = 0) -> None:
        """So many steps of a run may be skipped; one more is an error.

        Each process has a file of its own, for the samples of its part of the batch.
        """
        if limit < 0:
            raise ConfigError(f"config.max_skipped_steps is {limit}; it must be 0 or more")
        name = pathlib.Path(SKIPPED_NAME)
        self.path = workdir / (f"{name.stem}_{process}{name.suffix}" if process else name)
        self.count = 0
        self._limit = limit
        self._waiting: deque[tuple[int, Mapping[str, Any], Sequence[str]]] = deque()

    def add(self, step: int, metrics: Mapping[str, Any], samples: Sequence[str]) -> None:
        """Takes a step with what it was made of, and looks at one of a few steps before."""
        self._waiting.append((step, metrics, samples))
        while len(self._waiting) > _LAG:
            self._look(*self._waiting.popleft())

    def flush(self) -> None:
        """Looks at all that wait.

        Raises:
            TrainingError: more steps than allowed were skipped.
        """
        while self._waiting:
            self._look(*self._waiting.popleft())

    def _look(self, step: int, metrics: Mapping[str, Any], samples: Sequence[str]) -> None:
        if bool(metrics["finite"]):
            return
        self.count += 1
        told = {name: float(metrics[name]) for name in ("loss", "grad_norm")}
        # JSON has no NaN
        record = {k: v if math.isfinite(v) else str(v) for k, v in told.items()}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **record, "samples": list(samples)}) + "\n")
        _log.warning(
            "step %d is skipped: loss %g, gradient norm %g", step, told["loss"], told["grad_norm"]
        )
        if self.count > self._limit:
            raise TrainingError(
                f"{self.count} steps of this run were skipped because loss or gradient was not "
                f"finite, {self._limit} are allowed (config.max_skipped_steps); the last is step "
                f"{step}, with loss {told['loss']} and gradient norm {told['grad_norm']}. Their "
                f"samples are in {self.path}; look at them, or lower "
                "config.optimizer.learning_rate"
            )
