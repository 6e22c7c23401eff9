"""Writes recorded LIBERO episodes as an RLDS dataset with a manifest.

python -m scripts.write_rlds --episodes FOLDER --root FOLDER --licence TEXT

Reads every .npz file of the episodes folder and makes ROOT/libero_demos/1.0.0, without the failed
demonstrations. Run a second time on the same files, it only says that the dataset is complete.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from data.writer import write_dataset


def main(argv: Sequence[str]) -> int:
    """Writes the dataset and returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--episodes", type=Path, required=True, help="folder of .npz episodes")
    parser.add_argument("--root", type=Path, required=True, help="folder of RLDS datasets")
    parser.add_argument("--licence", required=True, help="terms of use, for the manifest")
    args = parser.parse_args(argv)
    console = Console()
    inputs = sorted(args.episodes.glob("*.npz"))
    if not inputs:
        console.print(f"no .npz episode in {args.episodes}; record some first", style="bold red")
        return 1
    command = shlex.join(["python", "-m", "scripts.write_rlds", *argv])
    with Progress(console=console) as progress:
        bar = progress.add_task("writing episodes", total=len(inputs))
        try:
            written = write_dataset(
                inputs,
                args.root,
                licence=args.licence,
                command=command,
                on_episode=lambda _: progress.advance(bar),
            )
        except ValueError as error:
            console.print(str(error), style="bold red", markup=False)
            return 1
    manifest = written.manifest
    console.print(
        f"{written.folder} {'written' if written.new else 'is complete, nothing to do'}: "
        f"{manifest['episodes']} episodes, {manifest['frames']} frames, {manifest['rate_hz']} Hz, "
        f"{manifest['failures_left_out']} failed demonstrations left out",
        markup=False,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
