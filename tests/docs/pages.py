"""Reads the project's pages: their code blocks and the commands in them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from tests.citations import PAGES, ROOT

NOT_RUN = re.compile(r"^# not run: \S", re.MULTILINE)
SHELL = ("", "bash", "sh")  # languages of blocks that hold commands

_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^ *```", re.DOTALL | re.MULTILINE)
_COMMENT = re.compile(r"(^|\s+)#.*$")


class Block(NamedTuple):
    """A fenced block of a page."""

    place: str  # file:line
    language: str
    text: str

    @property
    def commands(self) -> list[str]:
        """Commands of a shell block, one for each line, continued lines joined."""
        lines = self.text.replace("\\\n", " ").splitlines()
        bare = (" ".join(_COMMENT.sub("", line).split()) for line in lines)
        return [line for line in bare if line]


def blocks() -> Iterator[Block]:
    """Yields the fenced blocks of all pages."""
    for page in sorted({path for pattern in PAGES for path in ROOT.glob(pattern)}):
        text = page.read_text(encoding="utf-8")
        for match in _FENCE.finditer(text):
            line = text.count("\n", 0, match.start()) + 1
            yield Block(f"{page.relative_to(ROOT)}:{line}", match[2], match[3])


def commands() -> Iterator[tuple[str, str]]:
    """Yields (place, command) of every command that is not marked "not run".

    Those are the lines of shell blocks, and the column "command" of README's table of tasks.
    """
    for block in blocks():
        if block.language in SHELL and not NOT_RUN.search(block.text):
            yield from ((block.place, command) for command in block.commands)
    scripts = {path.stem for path in (ROOT / "scripts").glob("*.py")}
    for row in re.findall(r"^\|(.*)\|$", (ROOT / "README.md").read_text(), re.MULTILINE):
        for span in re.findall(r"`([^`]+)`", row):
            if span.split()[0] in scripts:
                yield "README.md", f"python -m scripts.{span}"
