"""Writes datasets as RLDS with a manifest, so that training reads them fast and anywhere.

python -m scripts.build_rlds --data=NAME --root=SRC --out=DST --licence=TEXT [--workers=2]
python -m scripts.build_rlds --recorded=FOLDER --out=DST --licence=TEXT

NAME is a dataset, a mixture (each of its datasets is built) or a row of your own, module:ROW; what
is built is read by the same name with DST as data folder. A run that was stopped goes on where it
was. The second form takes the .npz episodes of scripts.record_demos.
"""

from __future__ import annotations

import shlex
import sys
import time
from pathlib import Path

from absl import app, flags
from rich.console import Console
from rich.table import Table

from data.rows.mixtures import mixture
from data.rows.table import dataset
from data.writing.build import WorkerLostError, build
from data.writing.plan import ImageRule
from data.writing.publish import Written, read_json
from data.writing.recorded import RECORDED, write_dataset
from data.writing.shards import Request
from eval.recording.demonstrations import LEDGER
from scripts.terminal import count_progress, ends_clearly, episode_progress, quiet_libraries

_DATA = flags.DEFINE_string("data", "", "Dataset, mixture or module:ROW to build.")
_ROOT = flags.DEFINE_string("root", "", "Data folder of the source.")
_RECORDED = flags.DEFINE_string("recorded", "", "Folder of recorded .npz episodes, or a pattern.")
_RECORDED_AS = flags.DEFINE_enum(
    "recorded_as", "libero_demos", sorted(RECORDED), "Name of the dataset of recorded episodes."
)
_OUTSIDE = flags.DEFINE_bool("outside_root", False, "Files that a dataset names lie anywhere.")
_READ_LIMIT = flags.DEFINE_float("read_limit_s", 1800, "For one read; then it ends; 0: none.")
_OUT = flags.DEFINE_string("out", None, "Data folder of what is built.", required=True)
_LICENCE = flags.DEFINE_string("licence", None, "Terms of use, for the manifest.", required=True)
_WORKERS = flags.DEFINE_integer("workers", 2, "Processes that read and write.", lower_bound=1)
_SHARD_MB = flags.DEFINE_float("shard_mb", 256, "About the size of a shard file, MiB.")
_IMAGE_SIZE = flags.DEFINE_integer("image_size", 0, "Side of stored images; 0: as they are.")
_QUALITY = flags.DEFINE_integer("quality", 0, "JPEG quality of what is encoded; 0: PNG, exact.")
_MAX_BAD = flags.DEFINE_integer("max_bad_episodes", 0, "To leave out, at most, of a dataset.")

Row = tuple[str, Written, float]


def _build_sources(console: Console, command: str) -> list[Row]:
    rule = ImageRule(_IMAGE_SIZE.value, _QUALITY.value)
    rows: list[Row] = []
    for name, _ in mixture(_DATA.value):
        began = time.monotonic()
        request = Request(
            spec=dataset(name),
            root=_ROOT.value,
            outside_root=_OUTSIDE.value,
            read_limit_s=_READ_LIMIT.value,
            out=Path(_OUT.value),
            rule=rule,
            shard_mb=_SHARD_MB.value,
            max_bad_episodes=_MAX_BAD.value,
            workers=_WORKERS.value,
            licence=_LICENCE.value,
            command=command,
        )
        with episode_progress(console, name, 0) as show:
            rows.append((name, build(request, show), time.monotonic() - began))
    return rows


def _build_recorded(console: Console, command: str) -> list[Row]:
    given = Path(_RECORDED.value)
    folder, pattern = (given, "*.npz") if given.is_dir() else (given.parent, given.name)
    paths = sorted(folder.glob(pattern))
    if not paths:
        raise ValueError(f"no .npz episode in {given}; record some first (scripts.record_demos)")
    began, done = time.monotonic(), 0
    with count_progress(console, "recorded episodes") as show:

        def on_episode(_: Path) -> None:
            nonlocal done
            done += 1
            show(done, len(paths))

        written = write_dataset(
            paths,
            Path(_OUT.value),
            name=_RECORDED_AS.value,
            licence=_LICENCE.value,
            command=command,
            receipt=read_json(folder / LEDGER),
            on_episode=on_episode,
        )
    return [(str(given), written, time.monotonic() - began)]


def results(rows: list[Row]) -> Table:
    """What was built: a line for each source."""
    table = Table()
    for heading in ("source", ""):
        table.add_column(heading, overflow="fold")
    for heading in ("episodes", "left out", "frames", "hours", "GiB", "s"):
        table.add_column(heading, justify="right")
    for source, written, seconds in rows:
        manifest = written.manifest
        kinds = manifest.get("bad_episodes", {}) | manifest.get("left_out", {})
        left_out = sum(map(len, kinds.values()))
        size = sum(path.stat().st_size for path in written.folder.iterdir())
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


def main(argv: list[str]) -> int:
    """Returns the exit status: 0, 1 after an error, 130 after Ctrl-C."""
    quiet_libraries()
    console = Console()
    if len(argv) > 1 or bool(_RECORDED.value) == bool(_DATA.value and _ROOT.value):
        raise app.UsageError("give either --data and --root, or --recorded, and nothing else")
    command = shlex.join(["python", "-m", "scripts.build_rlds", *sys.argv[1:]])
    try:
        rows = (_build_recorded if _RECORDED.value else _build_sources)(console, command)
    except KeyboardInterrupt:
        console.print("stopped; the same command goes on from here")
        return 130
    except (ValueError, OSError, WorkerLostError) as error:
        console.print(str(error), style="bold red", markup=False)
        return 1
    console.print(results(rows))
    for _, written, _ in rows:
        console.print(f"{written.folder}", markup=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(app.run(ends_clearly(main)))
