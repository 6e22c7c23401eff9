"""Every command on a page is run by a test, or its block says that it is not run."""

from __future__ import annotations

import contextlib
import re
import runpy
import shlex
import sys

import pytest

from scripts.terminal import UsageError
from scripts.training.xvla_flags import carried_over
from tests.citations import ROOT, dotted_exists
from tests.docs.commands import RUN_BY, VALUES
from tests.docs.pages import SHELL, blocks, commands

# a block is shell, a drawing or listing (text), or in a language that is named
LANGUAGES = {*SHELL, "text", "python", "yaml", "nginx"}
_MODULE = re.compile(r"^(?:\S*/)?python -m ")


def spelled(command: str) -> str:
    """Returns the command with the virtual environment's Python named like any other."""
    return _MODULE.sub("python -m ", command)


def runnable(command: str) -> list[str]:
    """Returns the words of a command, with values in the place of a page's words."""
    for word, value in VALUES.items():
        command = re.sub(word, value, command)
    words = shlex.split(re.sub(r"[\[\]]", " ", command))
    return [word for word in words if word != "--config.a.b=v"]


def test_every_command_is_run_or_marked() -> None:
    unknown = [
        f"{place}: {command}"
        for place, command in commands()
        if not spelled(command).startswith(tuple(RUN_BY))
    ]
    assert unknown == []


def test_what_runs_a_command_is_there() -> None:
    shown = [spelled(command) for _, command in commands()]
    assert [row for row in RUN_BY if not any(c.startswith(row) for c in shown)] == []
    assert [file for file in RUN_BY.values() if not (ROOT / file).is_file()] == []


def test_every_block_names_its_language() -> None:
    assert [b.place for b in blocks() if b.language not in LANGUAGES] == []


def test_python_blocks_compile_and_import_names_that_exist() -> None:
    missing = []
    for block in blocks():
        if block.language != "python":
            continue
        compile(block.text, block.place, "exec")
        for module, names in re.findall(r"^from (\S+) import (.+)$", block.text, re.MULTILINE):
            if module.partition(".")[0] in ("xvla_jax", "data", "eval"):
                cited = [f"{module}.{name.strip()}" for name in names.split(",")]
                missing += [f"{block.place}: {name}" for name in cited if not dotted_exists(name)]
    assert missing == []


SCRIPTS = sorted({tuple(runnable(c)) for _, c in commands() if "python -m scripts." in c})


@pytest.mark.parametrize("words", SCRIPTS, ids=lambda words: " ".join(words[2:])[:70])
def test_a_command_takes_the_flags_and_values_that_a_page_shows(
    words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, _, module, *arguments = words
    argv = carried_over([f"{module}.py", *(word for word in arguments if word != "...")])
    monkeypatch.setattr(sys, "argv", argv)  # where config flags look for what they override
    # a Command of its own: the flags that config fields become are defined once in each
    command = runpy.run_path(str(ROOT / f"{module.replace('.', '/')}.py"))["COMMAND"]
    needed = "..." in words and "scripts.train" in words  # a page may leave out the workdir
    with pytest.raises(UsageError, match="must be given") if needed else contextlib.nullcontext():
        command.parse(argv)
