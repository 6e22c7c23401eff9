"""Counts the frames of a mixture's datasets, once, and prints shares with weights per frames.

python -m scripts.count_frames --data=MIXTURE --root=FOLDER [--workdir=W]

The counts are kept beside the data (frame_counts.json), where training finds them, or in the
run's --workdir where the data folder is read-only. Images are skipped, not read.
"""

from __future__ import annotations

import logging
import sys

from rich.console import Console

from data.rows.mixtures import FRAMES, mixture
from scripts.terminal import Command, message, quiet_libraries

COMMAND = Command(__doc__, rows={"data": "data"}, in_buckets=("root", "workdir"))
_DATA = COMMAND.DEFINE_string(
    "data", None, "Dataset, mixture, NAME:WEIGHT,... or module:ROW.", required=True
)
_ROOT = COMMAND.DEFINE_string("root", None, "Data folder.", required=True)
_WORKDIR = COMMAND.DEFINE_string(
    "workdir", None, "Folder of the run, which keeps the counts where the data folder is read-only."
)


def main(_: list[str]) -> int:
    """Counts, prints the table, and returns the exit status."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
    quiet_libraries()
    from data.sources import open_mixture
    from scripts.training.mixture_table import mixture_table

    try:
        chosen = mixture(_DATA.value, FRAMES)
        sources = open_mixture(chosen, _ROOT.value, spare=_WORKDIR.value)
    except (OSError, ValueError) as error:
        print(f"error: {message(error)}", file=sys.stderr)
        return 1
    Console().print(mixture_table(sources))
    return 0


if __name__ == "__main__":
    sys.exit(COMMAND.run(main, sys.argv))
