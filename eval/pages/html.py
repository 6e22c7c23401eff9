"""Pieces of a self-contained HTML page: its frame, tables, inlined pictures, writing it whole."""

from __future__ import annotations

import base64
import html
from pathlib import Path
from typing import Sequence

from eval.files import write_bytes

_STYLE = (Path(__file__).parent / "report.css").read_text(encoding="utf-8")


def html_page(
    title: str, lead: str, sections: Sequence[tuple[str, str]], *, style: str = ""
) -> str:
    """A page with nothing to load from anywhere else.

    Args:
        title: heading, plain text.
        lead: HTML below it.
        sections: (heading, HTML); those without content are left out.
        style: CSS beside that of every page.
    """
    body = "".join(
        f"<section><h2>{html.escape(heading)}</h2>{content}</section>"
        for heading, content in sections
        if content
    )
    escaped = html.escape(title)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escaped}</title><style>{_STYLE}{style}</style></head>"
        f"<body><main><h1>{escaped}</h1>{lead}{body}</main></body></html>\n"
    )


def write_page(path: Path, page: str) -> None:
    """Writes the page; it appears under `path` only when it is complete."""
    write_bytes(path, page.encode("utf-8"))


def data_uri(media_type: str, content: bytes) -> str:
    """`content` as an address that holds it, such as data:video/mp4;base64,..."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode('ascii')}"


def plain_table(rows: Sequence[Sequence[str]], head: Sequence[str] | None = None) -> str:
    """A table of plain text; nothing where there are no rows."""
    if not rows:
        return ""
    top = "".join(f"<th>{html.escape(cell)}</th>" for cell in head or ())
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f'<table class="plain"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>'


def bullet_list(lines: Sequence[str]) -> str:
    """Plain text, one bullet a line; nothing where there are no lines."""
    items = "".join(f"<li>{html.escape(line)}</li>" for line in lines)
    return f"<ul>{items}</ul>" if lines else ""


def figure_grid(figures: Sequence[tuple[str, str, str]]) -> str:
    """(title, HTML, caption) in two columns; nothing where there are no figures."""
    cells = []
    for title, content, caption in figures:
        below = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
        cells.append(f"<figure><h3>{html.escape(title)}</h3>{content}{below}</figure>")
    return f'<div class="grid-of-two">{"".join(cells)}</div>' if cells else ""


def video(mp4: bytes) -> str:
    """A film inside the page."""
    source = data_uri("video/mp4", mp4)
    return f'<video controls loop muted playsinline preload="auto" src="{source}"></video>'
