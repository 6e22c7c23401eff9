"""Verifies receipts: content, chain and seal, and the files beside them.

python -m scripts.verify_receipt FOLDER ... [--seal=HEX]

FOLDER is the --out of scripts.evaluate or scripts.merge_results, or the results.json in it. A line
for each check says what was found; the status is 0 only where all hold. --seal is the one that was
published with the score: without it a file that was edited and sealed again passes. FOLDER may be
gs://BUCKET/FOLDER.
docs/receipts.md says what each check shows.
"""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.text import Text

from eval.files import FileError
from eval.runs.journal import JOURNAL, JournalError, read_journal
from eval.runs.receipt import episode_key, read_receipt
from eval.runs.seal import SEAL, file_digest
from scripts.choices import ARGUMENT
from scripts.evaluation import receipts
from scripts.places.workdir import Workdir
from scripts.terminal import Command, UsageError

COMMAND = Command(__doc__, more=True, in_buckets=(ARGUMENT,))
_SEAL = COMMAND.DEFINE_string(
    "seal", None, "The seal that was published with the score; of one receipt."
)

# (what was checked, the finding, True where it holds)
Check = tuple[str, str, bool]


def verify(path: pathlib.Path, published: str | None) -> Iterator[Check]:
    """Yields the checks of a receipt; nothing after its content, if that is refused.

    Args:
        path: a receipt, or the folder that holds one.
        published: the seal that it should have, None for whatever it has.
    """
    folder = path if path.is_dir() else path.parent
    try:
        receipt = read_receipt(path)
    except FileError as error:
        yield "content, chain and seal", str(error), False
        return
    yield "content, chain and seal", f"{_count(receipt)} episodes", True
    yield SEAL, receipt[SEAL], True
    if published is not None:
        same = receipt[SEAL] == published.strip().lower()
        yield "published seal", "the same" if same else f"another one: {published}", same
    yield from _plans(receipt)
    if (folder / JOURNAL).is_file():
        yield _journal(receipt, folder / JOURNAL)
    for task in receipt["tasks"].values():
        for film in task["films"]:
            yield from (_file(folder, film, kind) for kind in ("film", "trace"))


def _plans(receipt: Mapping[str, Any]) -> Iterator[Check]:
    """Yields for each row whether the episodes are those that were planned."""
    index, count = receipt["config"]["shard"]
    for name, task in receipt["tasks"].items():
        planned, what = set(task["plan"]), f"plan of {name}"
        for policy, entry in task["policies"].items():
            keys = [episode_key(record) for record in entry["episodes"]]
            missing = len(planned.difference(keys))
            strange = len(keys) - len(planned.intersection(keys))
            finding = f"{policy}: {len(keys)} of {len(planned)} planned episodes"
            if strange:
                yield what, f"{finding}, {strange} not planned or there twice", False
            elif missing and task["stopping"] is not None:
                yield what, f"{finding}, stopped early by its rule", True
            elif missing and count > 1:
                yield what, f"{finding}, shard {index}/{count}", True
            else:
                yield what, finding, not missing


def _journal(receipt: Mapping[str, Any], path: pathlib.Path) -> Check:
    """Compares the journal's episodes with those of the receipt."""
    try:
        lines = read_journal(path)
    except JournalError as error:
        return "journal", str(error), False
    noted = {
        (line["policy"], line["task"], episode_key(line["episode"])): line["episode"]
        for line in lines
        if "episode" in line
    }
    stored = {
        (policy, name, episode_key(record)): record
        for name, task in receipt["tasks"].items()
        for policy, entry in task["policies"].items()
        for record in entry["episodes"]
    }
    other = [key for key in {**noted, **stored} if noted.get(key) != stored.get(key)]
    if other:
        policy, name, key = other[0]
        finding = f"{len(other)} other episodes, such as {key} of {policy} on {name}"
        return "journal", finding, False
    return "journal", f"the same {len(noted)} episodes", True


def _file(folder: pathlib.Path, film: Mapping[str, Any], kind: str) -> Check:
    """Compares a film or a trace with its hash."""
    path = folder / film[kind]
    if not path.is_file():
        return film[kind], "not there", False
    same = file_digest(path) == film[f"{kind}_sha256"]
    return film[kind], "as hashed" if same else "changed after the evaluation", same


def _count(receipt: Mapping[str, Any]) -> int:
    policies = (entry for t in receipt["tasks"].values() for entry in t["policies"].values())
    return sum(len(entry["episodes"]) for entry in policies)


def _checks(argument: str) -> Iterator[Check]:
    """Yields the checks of a receipt that a user names; one in a bucket is copied with its files.

    Raises:
        OSError: the bucket cannot be read.
    """
    file = receipts.file_of(argument)
    with Workdir(file.parent, needed=receipts.NEEDED) as folder:
        for what, finding, good in verify(folder.local / file.name, _SEAL.value):
            yield what, folder.named(finding), good


def main(arguments: list[str]) -> int:
    """Returns the exit status: 0 where all checks hold, 1 otherwise."""
    if not arguments:
        raise UsageError("name receipts or their folders")
    if _SEAL.value and len(arguments) > 1:
        raise UsageError("--seal is of one receipt; name that one alone")
    console, holds = Console(), True
    for argument in arguments:
        console.print(argument, markup=False, soft_wrap=True)
        for what, finding, good in _checks(argument):
            holds &= good
            verdict = Text("  holds  ") if good else Text("  FAILS  ", style="bold red")
            console.print(verdict + Text(f"{what}: {finding}"), soft_wrap=True)
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(COMMAND.run(main, sys.argv))
