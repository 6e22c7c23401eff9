"""The place of a run in its data stream: a small JSON value for the checkpoint.

    step      batches taken
    stream    what has to be equal for two streams to be the same
    cursors   dataset -> for each lane [epoch, place, block, start, end] of the block in use
              (`Cursor` of stream.py), or null where another host reads the lane

The step alone decides the batches that follow. Cursors only save reading what came before: a lane
without one counts its samples from the start.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from data.stream.stream import BEGINNING, Cursor, StreamShape
from data.trajectory import Source

POSITION_VERSION = 2
# fields younger than saved positions -> the value with which a stream is what it was before them
_YOUNGER = {"shuffle_per": "source", "deal": "independent"}


def stream_identity(sources: Sequence[Source], shape: StreamShape) -> dict[str, Any]:
    """Values that are equal for two streams if these are the same; each row is a fingerprint."""
    values = dataclasses.asdict(shape)
    return {
        # raised when the same numbers would give another stream
        "version": POSITION_VERSION,
        **{key: value for key, value in values.items() if _YOUNGER.get(key) != value},
        "sources": [
            {
                "name": source.reader.spec.name,
                "row": source.reader.spec.fingerprint,
                "weight": source.weight,
                "parts": len(source.reader.episodes_per_part),
                "episodes": sum(source.reader.episodes_per_part),
            }
            for source in sources
        ],
    }


def position_of(
    identity: Mapping[str, Any], step: int, cursors: Iterable[tuple[str, int, Cursor]]
) -> dict[str, Any]:
    """Position behind batch `step` - 1, from the dataset, lane and cursor of each stream."""
    # null for the lanes of other hosts, until `merge_positions` fills them in
    by_name: dict[str, list[list[int] | None]] = {
        source["name"]: [None] * identity["lanes"] for source in identity["sources"]
    }
    for name, lane, cursor in cursors:
        by_name[name][lane] = list(cursor)
    return {"step": step, "stream": dict(identity), "cursors": by_name}


def merge_positions(positions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Joins the positions of all hosts of a run, which stand at the same step.

    Raises:
        ValueError: they are of different steps or streams.
    """
    first = positions[0]
    for other in positions[1:]:
        check_position(other, first["stream"])
        if other["step"] != first["step"]:
            raise ValueError(f"hosts stand at steps {first['step']} and {other['step']}")
    # each lane is read by one host, or by several that share its rows and so have equal cursors
    cursors = {
        name: [
            next((cursor for cursor in of_hosts if cursor is not None), None)
            for of_hosts in zip(*(one["cursors"][name] for one in positions), strict=True)
        ]
        for name in first["cursors"]
    }
    return {**first, "cursors": cursors}


def check_position(position: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    """Refuses a position of another stream; the ValueError names each difference."""
    saved, now = ({**_YOUNGER, **stream} for stream in (position["stream"], identity))
    # by the keys of now: a checkpoint may hold more
    differences = [
        text
        for key, value in now.items()
        if saved.get(key) != value
        for text in _differences(key, saved.get(key), value)
    ]
    if differences:
        raise ValueError(
            "the saved data position belongs to another stream; "
            + "; ".join(differences)
            + ". Resume with the config and the data of that run, or begin in another --workdir, "
            "where --config.init_from=FOLDER takes the weights of that run"
        )


def _differences(key: str, saved: Any, now: Any) -> list[str]:
    """Texts for a value that differs; of the sources, those that differ and how."""
    if key != "sources" or not isinstance(saved, list) or len(saved) != len(now):
        return [f"{key}: {saved} saved, {now} now"]
    return [
        f"sources: {before} saved, {after} now"
        for before, after in zip(saved, now, strict=True)
        if before != after
    ]


def cursors_of(position: Mapping[str, Any] | None, name: str, lanes: int) -> list[Cursor]:
    """Cursor at which each lane of a dataset starts to read."""
    # without a cursor a lane starts at its first block and counts up to the sample asked for
    saved = position["cursors"][name] if position else [None] * lanes
    return [BEGINNING if cursor is None else Cursor(*cursor) for cursor in saved]
