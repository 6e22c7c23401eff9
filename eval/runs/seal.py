"""Hashes that tie a receipt together: a link for each episode, and a seal over everything.

A link is the SHA-256 of the link before it and of the episode's record; the first one continues
the hash of what was evaluated. So no episode can be changed, dropped, added or moved without all
links from there on being other ones, and the first that does not fit names the place.

The seal is the SHA-256 of all else in the receipt. Whoever can write the file can seal it again:
the seal shows damage and careless edits, and a forgery only to those who know the old seal. Publish
it with the score.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Iterable, Mapping, Sequence

SEAL = "seal"
_START = "evaluation"  # before the first link


def digest(value: Any) -> str:
    """Returns the SHA-256 of plain values, whatever the order of their keys, as 64 hex digits."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def file_digest(path: Path) -> str:
    """Returns the SHA-256 of a file as 64 hex digits."""
    value = hashlib.sha256()
    with path.open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            value.update(block)
    return value.hexdigest()


def links(evaluated: Mapping[str, Any], episodes: Iterable[Mapping[str, Any]]) -> list[str]:
    """Returns the link of each episode.

    Args:
        evaluated: what was evaluated: policy and row.
        episodes: records, in their order.
    """
    made, last = [], digest([_START, evaluated])
    for episode in episodes:
        last = digest([last, episode])
        made.append(last)
    return made


def broken_link(
    evaluated: Mapping[str, Any], episodes: Sequence[Mapping[str, Any]], stored: Sequence[str]
) -> int | None:
    """Returns the place of the first episode whose link does not fit, None where all do.

    It is the number of episodes where there are more links than those.
    """
    expected = links(evaluated, episodes)
    if expected == list(stored):
        return None
    pairs = zip(expected, stored)
    return next((k for k, (one, other) in enumerate(pairs) if one != other), len(episodes))


def sealed(receipt: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the receipt with its seal."""
    return {**receipt, SEAL: seal_of(receipt)}


def seal_of(receipt: Mapping[str, Any]) -> str:
    """Returns the seal that fits a receipt, whatever seal it has."""
    return digest({key: value for key, value in receipt.items() if key != SEAL})
