"""Messages that the page on troubleshooting quotes are in the code."""

from __future__ import annotations

import re

import pytest

from tests.citations import ROOT, texts

PAGE = ROOT / "docs" / "troubleshooting.md"


def quoted() -> list[str]:
    """Returns the messages: the first cell of each table that is headed "message"."""
    tables = re.findall(r"^\| message .*\n\|---.*\n((?:\|.*\n)+)", PAGE.read_text(), re.MULTILINE)
    rows = "".join(tables).splitlines()
    return [m[1] for row in rows if (m := re.match(r"\| `([^`]+)` \|", row))]


@pytest.fixture(scope="module")
def corpus() -> list[str]:
    """All strings of the product, values as holes, and the shell script of the set-up."""
    strings = [text.text for text in texts() if text.file.endswith(".py")]
    return [*strings, (ROOT / "scripts" / "setup.sh").read_text()]


def test_quoted_messages_are_in_the_code(corpus: list[str]) -> None:
    patterns = {m: ".*?".join(map(re.escape, m.split("..."))) for m in quoted()}
    assert len(patterns) > 30
    gone = [m for m, p in patterns.items() if not any(re.search(p, text) for text in corpus)]
    assert gone == []


def test_a_message_that_is_gone_is_seen(corpus: list[str]) -> None:
    assert not any("this text is nobody's message" in text for text in corpus)
