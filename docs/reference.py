"""Adds the API reference to the site: a page for each room, read from its docstrings.

A hook of mkdocs, and an extension of griffe, which reads the sources. The pages follow the folders,
so a new room appears without an edit.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
PEERS = ("xvla_jax", "data", "eval", "scripts", "configs")


def rooms() -> list[str]:
    """Dotted names of all packages of the product, a peer before its rooms."""
    folders = {path.parent for peer in PEERS for path in (ROOT / peer).rglob("__init__.py")}
    names = sorted(".".join(folder.relative_to(ROOT).parts) for folder in folders)
    return sorted(names, key=lambda name: PEERS.index(name.partition(".")[0]))


def page_of(room: str) -> str:
    """Markdown of a room's page: the room itself, then each of its modules."""
    folder = ROOT / room.replace(".", "/")
    modules = sorted(path.stem for path in folder.glob("*.py") if not path.stem.startswith("_"))
    parts = [f"# {room}\n\n::: {room}\n    options: {{members: false, show_root_heading: false}}\n"]
    parts += [f"::: {room}.{module}\n" for module in modules]
    return "\n".join(parts)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Puts the reference into the navigation, before the last section."""
    pages: dict[str, list[dict[str, str]]] = {peer: [] for peer in PEERS}
    for room in rooms():
        pages[room.partition(".")[0]].append({room: f"api/{room}.md"})
    assert config.nav is not None
    config.nav.insert(-1, {"API reference": [{peer: pages[peer]} for peer in PEERS]})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages themselves."""
    for room in rooms():
        files.append(File.generated(config, f"api/{room}.md", content=page_of(room)))
    return files


# a command and the lines that continue it: indented, or after a backslash
_USAGE = re.compile(r"^python -m .*(?:(?<=\\)\n.*|\n +\S.*|\npython -m .*)*", re.MULTILINE)
_BRACKETS = re.compile(r"\]( ?)\[")  # of options, "[--a] [--b]", which Markdown reads as a link


class UsageBlocks(griffe.Extension):
    """Shows the commands of a docstring as code, and brackets as they are."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrites the docstring of an object before it is parsed."""
        if obj.docstring is None:
            return
        text = _USAGE.sub(lambda usage: f"```\n{usage[0]}\n```", obj.docstring.value)
        parts = re.split(r"(```.*?```|`[^`]*`)", text, flags=re.DOTALL)
        parts[::2] = [_BRACKETS.sub(r"]\1\[", part) for part in parts[::2]]
        obj.docstring.value = "".join(parts)
