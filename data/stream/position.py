"""The place of a run in its data stream: a small JSON value for the checkpoint.

    step      batches taken
    stream    what has to be equal for two streams to be the same
    cursors   dataset -> for each lane [epoch, place, block, start, end] of the block in use
              (data/stream/stream.py), or null where another host reads the lane

The step alone decides the batches that follow. Cursors only spare reading what came before: a lane
without one counts its samples from the start.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from data.stream.stream import BEGINNING, Cursor, StreamShape
from data.trajectory import Reader

POSITION_VERSION = 2


def stream_identity(sources: Sequence[tuple[Reader, float]], shape: StreamShape) -> dict[str, Any]:
    """What has to be equal for two streams to be the same; a fingerprint stands for each row."""
    return {
        "version": POSITION_VERSION,
        **dataclasses.asdict(shape),
        "sources": [
            {
                "name": reader.spec.name,
                "row": reader.spec.fingerprint,
                "weight": weight,
                "parts": len(reader.episodes_per_part),
                "episodes": sum(reader.episodes_per_part),
            }
            for reader, weight in sources
        ],
    }


def position_of(
    identity: Mapping[str, Any], step: int, cursors: Iterable[tuple[str, int, Cursor]]
) -> dict[str, Any]:
    """The position behind batch `step` - 1, from the dataset, lane and cursor of each stream."""
    by_name: dict[str, list[list[int] | None]] = {
        source["name"]: [None] * identity["lanes"] for source in identity["sources"]
    }
    for name, lane, cursor in cursors:
        by_name[name][lane] = list(cursor)
    return {"step": step, "stream": dict(identity), "cursors": by_name}


def merge_positions(positions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The position of a run from those of all its hosts, which stand at the same step.

    Raises:
        ValueError: they are of different steps or streams.
    """
    first = positions[0]
    for other in positions[1:]:
        check_position(other, first["stream"])
        if other["step"] != first["step"]:
            raise ValueError(f"hosts stand at steps {first['step']} and {other['step']}")
    cursors = {
        name: [
            next((cursor for cursor in found if cursor is not None), None)
            for found in zip(*(position["cursors"][name] for position in positions), strict=True)
        ]
        for name in first["cursors"]
    }
    return {**first, "cursors": cursors}


def check_position(position: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    """A ValueError says in what the stream of a saved position differs."""
    saved = position["stream"]
    different = [
        f"{key}: {saved.get(key)} saved, {value} now"
        for key, value in identity.items()
        if saved.get(key) != value
    ]
    if different:
        raise ValueError(
            "the saved data position belongs to another stream; "
            + "; ".join(different)
            + ". Resume with the config and the data of that run, or begin in another --workdir, "
            "where --config.init_from=FOLDER takes the weights of that run"
        )


def cursors_of(position: Mapping[str, Any] | None, name: str, lanes: int) -> list[Cursor]:
    """Where to begin to read a dataset, for each lane."""
    saved = position["cursors"][name] if position else [None] * lanes
    return [BEGINNING if cursor is None else Cursor(*cursor) for cursor in saved]
