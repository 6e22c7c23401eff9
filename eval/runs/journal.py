"""The journal of an evaluation: episodes and calls noted as they finish, so that it can resume.

One JSON object a line, only ever appended. The first line says what is evaluated; a file with
another first line is refused. Each line has a link, the SHA-256 of the link before it and of the
line, so a line that was changed, dropped, added or moved is refused. A last line that a crash cut
off is dropped.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Mapping

from eval.files import OBJECT, TEXT, FileError, check, differences, fields, parse_json, read_bytes

from .receipt import EPISODE_FORM
from .seal import digest
from .traces import CallLog

JOURNAL = "episodes.jsonl"

# a call is [observations, milliseconds, first of its batch size], see `CallLog.add`
_CALL = {
    "type": "array",
    "prefixItems": [
        {"type": "integer", "minimum": 1, "maximum": 65_536},
        {"type": "number", "minimum": 0, "maximum": 1e12},
        {"type": "boolean"},
    ],
    "minItems": 3,
    "maxItems": 3,
}
# field that only one kind of line has -> form of the line
_LINES = {
    "identity": fields(identity=OBJECT),
    "call": fields(policy=TEXT, task=TEXT, call=_CALL),
    "episode": fields(policy=TEXT, task=TEXT, episode=EPISODE_FORM),
}
_LINK = "link"
_RESTART = "--restart starts a new one"


class JournalError(RuntimeError):
    """A journal of another evaluation, or one that is damaged; the message says what differs."""


class Journal:
    """The journal of one evaluation, open for appending; a context manager.

    Args:
        path: the file, created where it is missing.
        identity: plain values that decide outcomes: policies, rows, versions, seeds.

    Attributes:
        is_new: True where the file was missing or empty.
        episodes: (policy, task) -> records of finished episodes.
        calls: (policy, task) -> calls.

    Raises:
        JournalError: the file belongs to another evaluation, or another process writes it.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        identity = json.loads(json.dumps(identity))  # tuples become lists, as in the file
        self.episodes: dict[tuple[str, str], list[dict[str, Any]]] = {}
        self.calls: dict[tuple[str, str], CallLog] = {}
        with contextlib.ExitStack() as undo:
            self._file = undo.enter_context(path.open("ab"))
            _lock(self._file, path)
            lines, length, self._link = _complete_lines(path)
            if lines:
                _check_identity(path, lines[0]["identity"], identity)
            for line in lines[1:]:
                self._take(line)
            undo.pop_all()
        # What a crash left of a last line would run into the next one.
        self._file.truncate(length)
        self.is_new = not lines
        if self.is_new:
            self._append({"identity": identity})

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def add_episode(self, policy: str, task: str, record: dict[str, Any]) -> None:
        """Notes a finished episode; it is on the disk when this returns."""
        self._write({"policy": policy, "task": task, "episode": record})
        os.fsync(self._file.fileno())

    def add_call(
        self, policy: str, task: str, batch: int, milliseconds: float, first: bool
    ) -> None:
        """Notes a call of a policy, see `CallLog`."""
        call = [batch, round(milliseconds, 1), first]
        self._write({"policy": policy, "task": task, "call": call})

    def _write(self, line: dict[str, Any]) -> None:
        self._append(line)
        self._take(line)

    def _append(self, line: dict[str, Any]) -> None:
        self._link = digest([self._link, line])
        text = json.dumps({**line, _LINK: self._link}, allow_nan=False)
        self._file.write(text.encode() + b"\n")
        self._file.flush()

    def _take(self, line: dict[str, Any]) -> None:
        key = line["policy"], line["task"]
        if "call" in line:
            self.calls.setdefault(key, CallLog()).add(*line["call"])
        else:
            self.episodes.setdefault(key, []).append(line["episode"])


def finished_episodes(path: Path) -> tuple[int, int]:
    """Returns episodes and successes in a journal that another process may be writing."""
    if not path.is_file():
        return 0, 0
    lines = path.read_bytes().split(b"\n")[:-1]  # behind the last line break a line may be cut
    records = [json.loads(line).get("episode") for line in lines]
    outcomes = [record["success"] for record in records if record]
    return len(outcomes), sum(outcomes)


def _lock(file: IO[bytes], path: Path) -> None:
    """Holds the file until it is closed or the process ends, whatever ends it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise JournalError(
            f"{path} is being written by another process; wait, or stop it"
        ) from None


def read_journal(path: Path) -> list[dict[str, Any]]:
    """Returns the complete lines of a journal, without their links.

    Raises:
        JournalError: a line does not fit its form, or its link.
    """
    return _complete_lines(path)[0]


def _complete_lines(path: Path) -> tuple[list[dict[str, Any]], int, str]:
    """Returns the lines that end in a line break, their length in bytes, and the last link."""
    content = read_bytes(path)
    length = content.rfind(b"\n") + 1
    lines: list[dict[str, Any]] = []
    last = ""
    for number, text in enumerate(content[:length].splitlines(), 1):
        where = f"{path}, line {number}"
        try:
            line = parse_json(text, OBJECT, where)
            kinds = ["call", "episode"] if lines else ["identity"]
            form = next((_LINES[kind] for kind in kinds if kind in line), _LINES[kinds[-1]])
            check(line, form, where)
        except FileError as error:
            raise JournalError(f"{error}; {_RESTART}") from None
        link = line.pop(_LINK, None)
        last = digest([last, line])
        if link != last:
            raise JournalError(
                f"{where}: {_LINK} is {link!r:.80}; allowed is {last}: the line, or one before it, "
                f"was changed; {_RESTART}"
            )
        lines.append(line)
    return lines, length, last


def _check_identity(path: Path, stored: Mapping[str, Any], requested: Mapping[str, Any]) -> None:
    different = differences(stored, requested)
    if different:
        raise JournalError(
            f"{path} is of another evaluation: {'; '.join(different)}. Take another --out, or "
            "--restart to forget its episodes"
        )
