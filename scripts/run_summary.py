"""Shows training runs, also running ones, as a table and a plot.

python -m scripts.run_summary WORKDIR ... [--out=FILE.png]

scripts.train does the same for its own run at the end. Each may be gs://BUCKET/FOLDER.
"""

from __future__ import annotations

import contextlib
import pathlib
import statistics
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from scripts.choices import ARGUMENT
from scripts.places import files
from scripts.places.workdir import Workdir
from scripts.terminal import Command, UsageError, message

if TYPE_CHECKING:
    from xvla_jax.buckets import Place

COMMAND = Command(__doc__, more=True, in_buckets=("out", ARGUMENT))
_OUT = COMMAND.DEFINE_string("out", None, "PNG file; curves.png in the first workdir if not given.")

CURVES = "curves.png"
_OF_DOMAIN = "loss/"  # and the name of a domain
_NEEDED = ("restarts/*",)  # of a workdir in a bucket, beside its own files
_LAST = 5  # lines over which a final value is the mean

# row of the table -> field of a line, format; the mean over the newest lines
_MEANS: dict[str, tuple[str, str]] = {
    "loss": ("loss", "{:.4g}"),
    "gradient norm": ("grad_norm", "{:.3g}"),
    "samples/s": ("samples_per_s", "{:.3g}"),
    "step, s": ("step_s", "{:.3g}"),
    "TFLOP/s": ("tflops_per_s", "{:.3g}"),
    "MFU": ("mfu", "{:.1%}"),
    "waiting for data": ("data_wait_share", "{:.1%}"),
    "waiting for checkpoints": ("checkpoint_wait_share", "{:.1%}"),
}
# the same, of the last line that has the field
_LATEST: dict[str, tuple[str, str]] = {
    "validation l1": ("val_l1", "{:.4g}"),
    "skipped steps": ("skipped_steps", "{:.0f}"),
}
# panel -> (prefix of the fields that it draws, logarithmic)
_PANELS: dict[str, tuple[str, bool]] = {
    "loss": ("loss", True),
    "gradient norm": ("grad_norm", True),
    "learning rate": ("learning_rate", False),
    "validation l1": ("val_l1", False),
    "samples/s": ("samples_per_s", False),
    "goodput": ("goodput", False),
}
# and where rollouts measure it
_SUCCESS, _CONFIRMED = "rollouts/success", "rollouts/confirmed"


def summary(workdir: pathlib.Path) -> dict[str, str]:
    """Returns the rows of a run's column, without those that the run has not measured.

    Raises:
        FileNotFoundError: no run has logged anything in the folder.
    """
    from scripts.restarts.journal import restart_rows
    from scripts.training.rollout_results import read_results, result_rows
    from xvla_jax.planning.roofline import read_work, roofline_rows
    from xvla_jax.training.telemetry import METRICS_NAME, all_lines, duration, goodput, read_metrics

    lines = read_metrics(workdir)
    if not lines:
        raise FileNotFoundError(
            f"{workdir / METRICS_NAME} is not there or empty: no run so far, or none that has come "
            "to its first line, after config.log_every steps"
        )
    rows = {"steps": f"{lines[-1]['step']:.0f}"}
    for title, (name, form) in _MEANS.items():
        values = [line[name] for line in lines if name in line][-_LAST:]
        if values:
            rows[title] = form.format(statistics.fmean(values))
    work, seconds = read_work(workdir), [line["step_s"] for line in lines if "step_s" in line]
    if work is not None and any(seconds[-_LAST:]):
        rows |= roofline_rows(work, statistics.fmean(seconds[-_LAST:]))
    for name in sorted({k for line in lines for k in line if k.startswith(_OF_DOMAIN)}):
        # a domain is in few batches of a large mixture: the newest lines that have it
        values = [line[name] for line in lines if name in line][-_LAST:]
        rows[f"loss of {name.removeprefix(_OF_DOMAIN)}"] = f"{statistics.fmean(values):.4g}"
    for title, (name, form) in _LATEST.items():
        values = [line[name] for line in lines if name in line]
        if values:
            rows[title] = form.format(values[-1])
    measured = [(line["val_l1"], line["step"]) for line in lines if "val_l1" in line]
    if measured:
        least, step = min(measured)
        rows["lowest validation l1"] = f"{least:.4g} at step {step:.0f}"
    rows |= result_rows(workdir, read_results(workdir), lines)
    bad = {k: v for k, v in lines[-1].items() if k.startswith("bad_episodes/")}
    if bad:
        rows["bad episodes"] = f"{sum(bad.values()):.0f}"
    left_out = {k: v for k, v in lines[-1].items() if k.startswith("left_out/")}
    for name, count in left_out.items():
        rows[f"left out: {name.removeprefix('left_out/')}"] = f"{count:.0f}"
    written = all_lines(workdir)
    run = goodput(written)
    if run["sessions"]:
        rows["time of all processes"] = duration(run["seconds"])
        rows["processes"] = f"{run['sessions']:.0f}"
        rows["steps done again"] = f"{run['steps_repeated']:.0f}"
        rows["goodput"] = f"{run['goodput']:.1%}"
    return rows | restart_rows(workdir, written)


def table(runs: Mapping[str, Mapping[str, str]]) -> Table:
    """Returns a table with a column for each run."""
    shown = Table()
    shown.add_column("run")
    for name in runs:
        shown.add_column(name, justify="right")
    for title in dict.fromkeys(title for rows in runs.values() for title in rows):
        shown.add_row(title, *(rows.get(title, "") for rows in runs.values()))
    return shown


def draw_curves(workdirs: Sequence[pathlib.Path], path: pathlib.Path) -> None:
    """Writes a PNG with a panel for each quantity, a line for each run and name."""
    from xvla_jax.errors import needs
    from xvla_jax.training.telemetry import read_metrics

    with needs("data"):
        from matplotlib.figure import Figure

    runs = {workdir: read_metrics(workdir) for workdir in workdirs}
    in_simulator = any(_SUCCESS in line for lines in runs.values() for line in lines)
    columns = 4 if in_simulator else 3
    figure = Figure(figsize=(5 * columns, 8), layout="constrained")
    for place, (title, (prefix, log)) in enumerate(_PANELS.items()):
        # row by row, three of them in each
        axes: Any = figure.add_subplot(2, columns, place // 3 * columns + place % 3 + 1)
        for workdir, lines in runs.items():
            names = sorted({k for line in lines for k in line if _belongs(k, prefix)})
            for name in names:
                points = [(line["step"], line[name]) for line in lines if name in line]
                label = " ".join((*([workdir.name] if len(runs) > 1 else []), name))
                axes.plot(*zip(*points, strict=True), label=label, linewidth=1.2)
        if log:
            axes.set_yscale("log")
        _finish_panel(axes, title)
    if in_simulator:
        axes = figure.add_subplot(2, columns, columns)
        for workdir, lines in runs.items():
            _draw_success(axes, lines, f"{workdir.name} " if len(runs) > 1 else "")
        axes.set_ylim(-0.02, 1.02)
        _finish_panel(axes, "success with 95 % interval")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def _draw_success(axes: Any, lines: Sequence[Mapping[str, Any]], run: str) -> None:
    """Draws success on the half of the states to choose on, and on that to confirm on."""
    # the second is hollow and larger, because it stands at a step of the first
    hollow = {"markerfacecolor": "none", "markersize": 11}
    for name, style in ((_SUCCESS, {"fmt": "o-"}), (_CONFIRMED, {"fmt": "D", **hollow})):
        measured = [line for line in lines if name in line]
        if not measured:
            continue
        steps, rates = ([line[field] for line in measured] for field in ("step", name))
        below, above = (
            [abs(line[f"{name}/{end}"] - line[name]) for line in measured]
            for end in ("low", "high")
        )
        label = f"{run}{name.removeprefix('rollouts/')}"
        axes.errorbar(steps, rates, yerr=(below, above), label=label, capsize=3, **style)


def _finish_panel(axes: Any, title: str) -> None:
    axes.set_title(title)
    axes.set_xlabel("step")
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend(fontsize=7, frameon=False)
    else:
        axes.text(0.5, 0.5, "not measured", ha="center", transform=axes.transAxes)


def report(
    workdirs: Sequence[pathlib.Path], path: pathlib.Path, console: Console, *, place: object = None
) -> None:
    """Prints the table, draws the curves into `path`, and writes pages of rollouts.

    Args:
        workdirs: of the runs.
        path: PNG file.
        console: to print to.
        place: folder that a caller copies the file to; None where it stays.
    """
    from scripts.training.rollout_results import write_page

    console.print(table({workdir.name: summary(workdir) for workdir in workdirs}))
    draw_curves(workdirs, path)
    shown = f"{place}/{path.name}" if place else path
    console.print(f"curves are in {shown}", highlight=False, soft_wrap=True)
    for workdir in workdirs:
        page = write_page(workdir)
        if page is not None:
            console.print(f"rollouts are in {page}", highlight=False, soft_wrap=True)


def _belongs(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(f"{prefix}/")


def _report(places: Sequence[Place]) -> None:
    """Prints and draws runs; of one in a bucket, the small files are copied.

    Raises:
        OSError: there is no run, or the bucket cannot be read or written.
    """
    from xvla_jax import buckets

    with contextlib.ExitStack() as stack:
        runs = [
            stack.enter_context(Workdir(buckets.absolute(place), needed=_NEEDED))
            for place in places
        ]
        folders = [run.local for run in runs]
        if not _OUT.value:
            report(folders, folders[0] / CURVES, Console(), place=runs[0].place)
            runs[0].save()
            return
        target = files.place_of(_OUT.value, flag="--out")
        if isinstance(target, pathlib.Path):
            report(folders, target, Console())
            return
        drawn = stack.enter_context(buckets.Scratch()) / target.name
        report(folders, drawn, Console(), place=target.parent)
        files.write(target, drawn.read_bytes())


def main(arguments: list[str]) -> int:
    """Returns the exit status: 0, or 1 where a run or a package is missing."""
    from xvla_jax.errors import XVLAError

    if not arguments:
        raise UsageError("name one workdir or more")
    try:
        _report([files.place_of(text) for text in arguments])
    except (XVLAError, OSError) as error:
        print(f"error: {message(error)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(COMMAND.run(main, sys.argv))
