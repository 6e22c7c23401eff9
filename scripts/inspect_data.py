"""The data doctor: reads a dataset or a mixture, says what would spoil training, writes a page.

python -m scripts.inspect_data --data=NAME_OR_MIXTURE --root=FOLDER --out=page.html

Exit status 1 when a finding is an error, or when the data cannot be opened at all.
"""

import argparse
import datetime
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from data.inspection.check import Finding
from data.inspection.checks import coverage, examine, verdict
from data.inspection.companion import open_companion
from data.inspection.scan import scan
from data.inspection.views import IMAGES
from data.rows.mixtures import mixture
from data.sources import open_mixture
from data.stalls import end_reads_after
from data.trajectory import Source
from eval.pages.html import write_page
from scripts.diagnostics.packages import installed_versions
from scripts.inspection.page import BAD, Inspection, as_number, render
from scripts.terminal import ends_clearly, episode_progress

STYLE = Path(__file__).parent / "inspection" / "page.css"
VERSIONS = ("numpy", "pillow", "tensorflow-cpu", "tensorflow-datasets", "h5py", "pyarrow", "av")
COLOURS = {"warning": "yellow", "error": "bold red"}


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    """The command line, read and checked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", required=True, help="dataset, mixture, or name:weight,...")
    parser.add_argument("--root", type=Path, required=True, help="data folder")
    parser.add_argument(
        "--outside_root", action="store_true", help="files that a dataset names may lie anywhere"
    )
    parser.add_argument("--out", type=Path, required=True, help="the page, an .html file")
    parser.add_argument(
        "--episodes", type=int, default=0, help="of each source, drawn at random; 0: all"
    )
    parser.add_argument(
        "--max_bad_episodes", type=int, default=0, help="of each source, without an error"
    )
    parser.add_argument(
        "--read_limit_s", type=float, default=1800.0, help="for one read, s; then it ends; 0: none"
    )
    parser.add_argument("--num_actions", type=int, default=30, help="in a sample of the model")
    parser.add_argument(
        "--images",
        type=int,
        default=IMAGES,
        help="of each view and episode that are decoded; 0: every one that training would take",
    )
    parser.add_argument("--seed", type=int, default=0, help="decides what is drawn and shown")
    args = parser.parse_args(argv)
    least_values = {
        "episodes": 0,
        "max_bad_episodes": 0,
        "images": 0,
        "num_actions": 1,
        "read_limit_s": 0,
    }
    for name, least in least_values.items():
        if getattr(args, name) < least:
            parser.error(f"--{name} is {getattr(args, name)}; it must be {least} or more")
    if not args.out.parent.is_dir():
        parser.error(f"--out is in {args.out.parent}, which is no folder")
    return args


def inspect(args: argparse.Namespace, sources: Sequence[Source], console: Console) -> Inspection:
    """Reads every source and judges it."""
    reports = []
    for source in sources:
        spec, found = source.reader.spec, sum(source.reader.episodes_per_part)
        total = min(args.episodes, found) if args.episodes else found
        with episode_progress(console, spec.name, total) as show:
            report = scan(
                source.reader,
                num_actions=args.num_actions,
                episodes=args.episodes,
                seed=args.seed,
                images=args.images,
                companion=open_companion(source.reader, args.root),
                on_progress=show,
            )
        reports.append(report)
    installed = installed_versions()
    return Inspection(
        title=f"Data doctor: {args.data}",
        command=shlex.join(["python", "-m", "scripts.inspect_data", *args.told]),
        date=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        versions={name: installed[name] for name in VERSIONS if name in installed},
        sampled=(
            f"{args.episodes} episodes of each source, drawn with seed {args.seed}."
            if args.episodes
            else "All episodes were looked at."
        ),
        sources=reports,
        weights=[source.weight for source in sources],
        findings=examine(reports, max_bad_episodes=args.max_bad_episodes),
        style=STYLE.read_text(encoding="utf-8"),
    )


def as_table(findings: Sequence[Finding]) -> Table:
    """Warnings and errors, for a terminal."""
    table = Table(title=f"data doctor: {verdict(findings)}", show_lines=True)
    for column in ("", "check", "found, and what to do"):
        table.add_column(column)
    for finding in sorted(findings, key=lambda finding: finding.severity):
        if finding.value is not None:
            table.add_row(
                f"[{COLOURS[finding.severity]}]{finding.severity}[/]",
                escape(
                    f"{finding.check.name}\n{finding.source}\n"
                    f"{as_number(finding.value)} {finding.check.unit}"
                ),
                f"{escape(finding.evidence)}\n[cyan]-> {escape(finding.remedy)}[/]",
            )
    return table


def main(argv: Sequence[str]) -> int:
    """Writes the page, prints the findings, and returns the exit status."""
    args = arguments(argv)
    args.told = list(argv)
    console = Console()
    end_reads_after(args.read_limit_s)
    try:
        sources = open_mixture(mixture(args.data), args.root, outside_root=args.outside_root)
    except (ValueError, OSError) as error:
        console.print(f"error: {error}", style="bold red", markup=False)
        return 1
    inspection = inspect(args, sources, console)
    write_page(args.out, render(inspection))
    bad = [finding for finding in inspection.findings if finding.severity in BAD]
    console.print(as_table(bad) if bad else "data doctor: ok")
    for report in inspection.sources:
        mine = [finding for finding in inspection.findings if finding.source == report.name]
        console.print(f"{report.name}: {coverage(mine)}", markup=False, highlight=False)
    console.print(str(args.out), markup=False)
    return 1 if any(finding.severity == "error" for finding in inspection.findings) else 0


if __name__ == "__main__":
    sys.exit(ends_clearly(main)(sys.argv[1:]))
