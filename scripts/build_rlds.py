"""Writes datasets as RLDS with a manifest, so that training reads them fast and from anywhere.

python -m scripts.build_rlds --data=NAME --root=SRC --out=DST --licence=TEXT [--workers=2]
python -m scripts.build_rlds --data=NAME --root=SRC --out=DST --licence=TEXT --runner=RUNNER -- ...
python -m scripts.build_rlds --recorded=FOLDER --out=DST --licence=TEXT

NAME is a dataset, a mixture (each of its datasets is built) or a row of your own, module:ROW; the
result is read by the same name with DST as data folder, which may be gs://BUCKET/FOLDER. A run that
was stopped continues where it was. The second form runs on Apache Beam and writes the same bytes;
behind -- stand options of the runner, each --name=value, and docs/data.md says what it needs. The
third form takes the .npz episodes of scripts.record_demos, and begins again after a stop.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from data.rows.mixtures import mixture
from data.rows.table import dataset
from eval.recording.demonstrations import LEDGER
from scripts.terminal import (
    STOPPED,
    Command,
    UsageError,
    count_progress,
    episode_progress,
    quiet_libraries,
)

if TYPE_CHECKING:
    from data.writing.publish import Written
    from data.writing.shards import Crew

COMMAND = Command(__doc__, rows={"data": "data"}, more=True, in_buckets=("root", "out"))
_DATA = COMMAND.DEFINE_string("data", "", "Dataset, mixture or module:ROW to build.")
_ROOT = COMMAND.DEFINE_string("root", "", "Data folder of the source.")
_RECORDED = COMMAND.DEFINE_string("recorded", "", "Folder of recorded .npz episodes, or a pattern.")
_RECORDED_AS = COMMAND.DEFINE_enum(
    "recorded_as",
    "libero_demos",
    ["libero", "libero_demos", "so101_demos"],
    "Dataset of the recorded episodes.",
)
_OUT = COMMAND.DEFINE_string("out", None, "Data folder to write to.", required=True)
_LICENCE = COMMAND.DEFINE_string("licence", None, "Terms of use, for the manifest.", required=True)
_OUTSIDE = COMMAND.DEFINE_bool(
    "outside_root", False, "Allow files that a dataset names outside of --root."
)
_READ_LIMIT = COMMAND.DEFINE_float(
    "read_limit_s", 1800, "Seconds after which a read ends the command; 0: none."
)
_WORKERS = COMMAND.DEFINE_integer(
    "workers", 2, "Processes of --runner=local that read and write.", lower_bound=1
)
_LOCAL = "local"
_RUNNER = COMMAND.DEFINE_enum(
    "runner",
    _LOCAL,
    [_LOCAL, "direct", "dataflow", "flink", "spark", "portable"],
    "Who runs the workers: this command itself, or a runner of Apache Beam.",
)
_SHARD_MB = COMMAND.DEFINE_float("shard_mb", 256, "About the size of a shard file, MiB.")
_IMAGE_SIZE = COMMAND.DEFINE_integer(
    "image_size", 0, "Side of stored images in px; 0: as in the source."
)
_QUALITY = COMMAND.DEFINE_integer(
    "quality", 0, "JPEG quality of images that are encoded; 0: PNG, exact."
)
_MAX_BAD = COMMAND.DEFINE_integer(
    "max_bad_episodes", 0, "Bad episodes of a dataset that may be left out."
)

Row = tuple[str, "Written", float]


def _crew(options: list[str]) -> Crew | None:
    """Crew of a runner of Beam; None for the processes that a request asks for."""
    if _RUNNER.value == _LOCAL:
        return None
    from data.writing.beam import Beam

    return Beam(_RUNNER.value, tuple(options))


def _build_sources(console: Console, command: str, crew: Crew | None) -> list[Row]:
    from data.writing.build import build
    from data.writing.plan import ImageRule
    from data.writing.shards import Request
    from data.writing.storage import folder_at

    rule = ImageRule(_IMAGE_SIZE.value, _QUALITY.value)
    rows: list[Row] = []
    for name, _ in mixture(_DATA.value):
        began = time.monotonic()
        request = Request(
            spec=dataset(name),
            root=_ROOT.value,
            outside_root=_OUTSIDE.value,
            read_limit_s=_READ_LIMIT.value,
            out=folder_at(_OUT.value),
            rule=rule,
            shard_mb=_SHARD_MB.value,
            max_bad_episodes=_MAX_BAD.value,
            workers=_WORKERS.value,
            licence=_LICENCE.value,
            command=command,
        )
        with episode_progress(console, name, 0) as show:
            rows.append((name, build(request, show, crew), time.monotonic() - began))
    return rows


def _build_recorded(console: Console, command: str) -> list[Row]:
    from data.writing.publish import read_json
    from data.writing.recorded import write_dataset
    from data.writing.storage import folder_at, in_bucket

    given = Path(_RECORDED.value)
    folder, pattern = (given, "*.npz") if given.is_dir() else (given.parent, given.name)
    paths = sorted(folder.glob(pattern))
    if not paths:
        raise ValueError(f"no .npz episode in {given}; record some first (scripts.record_demos)")
    began, done, out = time.monotonic(), 0, folder_at(_OUT.value)
    what = "recorded episodes, files copied" if in_bucket(out) else "recorded episodes"
    with count_progress(console, what) as show:

        def on_episode(_: Path) -> None:
            nonlocal done
            done += 1
            show(done, len(paths))

        written = write_dataset(
            paths,
            out,
            name=_RECORDED_AS.value,
            licence=_LICENCE.value,
            command=command,
            receipt=read_json(folder / LEDGER),
            on_episode=on_episode,
            on_copied=lambda copied, files: show(done + copied, len(paths) + files),
        )
    return [(str(given), written, time.monotonic() - began)]


def results(rows: list[Row]) -> Table:
    """Returns a table with a line for each source."""
    from data.writing.storage import size_of

    table = Table()
    for heading in ("source", ""):
        table.add_column(heading, overflow="fold")
    for heading in ("episodes", "left out", "frames", "hours", "GiB", "s"):
        table.add_column(heading, justify="right")
    for source, written, seconds in rows:
        manifest = written.manifest
        kinds = manifest.get("bad_episodes", {}) | manifest.get("left_out", {})
        left_out = sum(map(len, kinds.values()))
        size = sum(map(size_of, written.folder.iterdir()))
        table.add_row(
            source,
            "written" if written.new else "was complete",
            f"{manifest['episodes']}",
            f"{manifest.get('failures_left_out', left_out)}",
            f"{manifest['frames']}",
            f"{manifest['frames'] / manifest['rate_hz'] / 3600:.2f}",
            f"{size / 2**30:.3f}",
            f"{seconds:.0f}",
        )
    return table


def _check_usage(options: list[str]) -> None:
    if bool(_RECORDED.value) == bool(_DATA.value and _ROOT.value):
        raise UsageError("give either --data and --root, or --recorded")
    if _RECORDED.value and _RUNNER.value != _LOCAL:
        raise UsageError(f"--runner={_RUNNER.value} takes --data, not --recorded")
    if options and _RUNNER.value == _LOCAL:
        raise UsageError(f"unexpected arguments: {' '.join(options)}")
    if COMMAND.flags["workers"].present and _RUNNER.value != _LOCAL:
        raise UsageError(
            f"--workers is of --runner={_LOCAL}; {_RUNNER.value} has options of its own for that, "
            "given behind --"
        )


def main(options: list[str]) -> int:
    """Returns the exit status: 0, 1 after an error, 130 after Ctrl-C."""
    _check_usage(options)
    from data.writing.crew import WorkerLostError

    quiet_libraries()
    console = Console()
    try:
        if _RECORDED.value:
            rows = _build_recorded(console, COMMAND.line)
        else:
            rows = _build_sources(console, COMMAND.line, _crew(options))
    except KeyboardInterrupt:
        again = "begins again" if _RECORDED.value else "continues from here"
        console.print(f"stopped; the same command {again}")
        return STOPPED
    except (ValueError, OSError, WorkerLostError) as error:
        console.print(str(error), style="bold red", markup=False)
        return 1
    console.print(results(rows))
    for row in rows:
        console.print(f"{row[1].folder}", markup=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(COMMAND.run(main, sys.argv))
