"""Merges the parts of an evaluation into one receipt and its page.

python -m scripts.merge_results FOLDER FOLDER ... --out=FOLDER

Each FOLDER is the --out of scripts.evaluate --shard=I/N, or the results.json in it; or all are of
evaluations that differ in --init_states alone. Films stay in those folders. Each may be
gs://BUCKET/FOLDER.
"""

from __future__ import annotations

import sys

from rich.console import Console

from eval.files import FileError, write_json
from eval.pages.evaluation import write_evaluation_page
from eval.runs.receipt import RESULTS
from eval.runs.shards import MergeError, merge_receipts
from scripts.choices import ARGUMENT
from scripts.evaluation import receipts
from scripts.evaluation.success_table import PAGE, print_tables
from scripts.places import files
from scripts.places.workdir import Workdir
from scripts.terminal import Command, UsageError

COMMAND = Command(__doc__, more=True, in_buckets=("out", ARGUMENT))
_OUT = COMMAND.DEFINE_string(
    "out", None, "Folder of the merged receipt and its page.", required=True
)


def main(arguments: list[str]) -> int:
    """Returns the exit status: 0, or 1 after an error."""
    if not arguments:
        raise UsageError("name the folders of the parts")
    console, out = Console(), files.place_of(_OUT.value, flag="--out")
    try:
        merged = merge_receipts([receipts.read(text) for text in arguments])
    except (FileError, MergeError) as error:
        console.print(f"error: {error}", style="bold red", markup=False)
        return 1
    with Workdir(out, needed=receipts.NEEDED) as folder:
        folder.local.mkdir(parents=True, exist_ok=True)
        write_json(folder.local / RESULTS, merged)
        write_evaluation_page(folder.local / PAGE, merged, folder.local)
        folder.save()
    print_tables(console, merged)
    console.print(f"receipt: {out / RESULTS}\npage: {out / PAGE}", markup=False)
    return 0


if __name__ == "__main__":
    sys.exit(COMMAND.run(main, sys.argv))
