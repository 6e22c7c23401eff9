"""The conversion of a folder of LIBERO recordings: what is done, what failed, and why.

It can be left off and taken up again. `conversion.json` in its folder is the report.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Callable, Mapping, Sequence

from .files import write_json
from .recording.demonstrations import OnProgress
from .recording.libero_absolute import CONVERTED, NO_MOTION, REPLAY_SEED, Demonstration
from .simulators.workers import WorkerCrashError, WorkerPool, run_jobs
from .tasks.table import TaskSpec
from .versions import SIMULATORS, versions

REPORT = "conversion.json"


def conversion_settings(
    sources: Mapping[str, str], specs: Mapping[str, TaskSpec]
) -> dict[str, Any]:
    """What decides the outcome: SHA-256 of each source file by name, and the columns that count."""
    columns = ("image_size", "msaa_samples", "settle_steps", "control_hz", "step_limit")
    return {
        "sources": dict(sources),
        "suites": {
            suite: {column: getattr(spec, column) for column in columns}
            for suite, spec in specs.items()
        },
        "no_motion": NO_MOTION,
        "replay_seed": REPLAY_SEED,
    }


class Conversion:
    """The recordings of one conversion, done or still missing.

    Args:
        folder: made if missing; has the report and a .npz for each converted recording.
        demos: what to convert.
        settings: of `conversion_settings`; another conversion's folder is refused.

    Raises:
        ValueError: the folder has a conversion with other settings.
    """

    def __init__(
        self, folder: Path, demos: Sequence[Demonstration], settings: dict[str, Any]
    ) -> None:
        self._folder = folder
        self._demos = {demo.name: demo for demo in demos}
        self._settings = settings
        self._outcomes = _known_outcomes(folder, settings)
        folder.mkdir(parents=True, exist_ok=True)

    def file(self, name: str) -> Path:
        """Where the recording of that name is, once it is converted."""
        return self._folder / (name.replace("/", "__") + ".npz")

    def files(self) -> list[Path]:
        """The converted recordings, in the order of the sources."""
        return [self.file(name) for name in self._demos if self._converted(name)]

    def missing(self) -> list[str]:
        """Names of what is not converted and not known to fail."""
        return [
            name
            for name in self._demos
            if name not in self._outcomes
            or (self._converted(name) and not self.file(name).exists())
        ]

    def report(self) -> dict[str, Any]:
        """Settings, counts by suite, the outcome of each recording, and versions."""
        outcomes = {name: self._outcomes[name] for name in self._demos if name in self._outcomes}
        suites = sorted({demo.suite for demo in self._demos.values()})
        return {
            "settings": self._settings,
            "suites": {suite: self._counts(suite) for suite in suites},
            "demos": outcomes,
            "versions": versions(SIMULATORS),
        }

    def run(self, open_pool: Callable[[], WorkerPool], on_progress: OnProgress) -> dict[str, Any]:
        """Converts what is missing and returns the report.

        Args:
            open_pool: starts the simulators; not called when nothing is missing.
            on_progress: called with (tried, in all, converted), first for what is there already.
        """
        for leftover in self._folder.glob("*.partial"):
            leftover.unlink()
        self._note(on_progress)
        missing = self.missing()
        if missing:
            jobs = [("convert", (self._demos[n], str(self.file(n)))) for n in missing]
            with open_pool() as pool:
                for job, outcome in run_jobs(pool, jobs):
                    if isinstance(outcome, WorkerCrashError):
                        outcome = {"outcome": f"the simulator crashed twice: {outcome}"}
                    self._outcomes[missing[job]] = outcome
                    self._note(on_progress)
        return self.report()

    def _converted(self, name: str) -> bool:
        return self._outcomes.get(name, {}).get("outcome") == CONVERTED

    def _counts(self, suite: str) -> dict[str, int]:
        names = [name for name, demo in self._demos.items() if demo.suite == suite]
        tried = [name for name in names if name in self._outcomes]
        converted = sum(self._converted(name) for name in tried)
        return {
            "recordings": len(names),
            "tried": len(tried),
            "converted": converted,
            "dropped": len(tried) - converted,
            "no_ops": sum(self._outcomes[name].get("no_ops", 0) for name in tried),
        }

    def _note(self, on_progress: OnProgress) -> None:
        now = self.report()
        write_json(self._folder / REPORT, now)
        converted = sum(counts["converted"] for counts in now["suites"].values())
        on_progress(len(now["demos"]), len(self._demos), converted)


def _known_outcomes(folder: Path, settings: dict[str, Any]) -> dict[str, dict[str, Any]]:
    path = folder / REPORT
    if not path.exists():
        return {}
    before = json.loads(path.read_text(encoding="utf-8"))
    differ = [name for name in settings if before["settings"].get(name) != settings[name]]
    if differ:
        raise ValueError(
            f"{folder} has a conversion with other {', '.join(differ)}; choose another folder or "
            "delete this one"
        )
    return before["demos"]
