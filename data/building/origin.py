"""What a dataset is made of: the source, its row and the options that decide the bytes of shards.

It is kept with what is half built and in the manifest of what is complete, so that another source,
row or option is never mixed in.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data.building.pictures import PictureRule
from data.readers import built
from data.spec import DatasetSpec
from data.trajectory import Reader


@dataclasses.dataclass(frozen=True)
class Request:
    """What to build, and how.

    Attributes:
        spec: the dataset row.
        root: data folder of the source.
        outside_root: the files that it names may lie anywhere.
        read_limit_s: a read that takes longer ends its process; 0 for none.
        out: data folder of what is built.
        rule: how pictures are stored.
        shard_mb: about how large a shard file is, in MiB.
        max_bad_episodes: so many are left out; one more is an error.
        workers: processes that read and write.
        licence: terms of use, for the manifest.
        command: the command line, for the manifest.
    """

    spec: DatasetSpec
    root: str
    out: Path
    rule: PictureRule
    shard_mb: float
    max_bad_episodes: int
    workers: int
    licence: str
    command: str
    outside_root: bool = False
    read_limit_s: float = 0

    def __post_init__(self) -> None:
        if self.shard_mb <= 0 or self.workers < 1:
            raise ValueError(
                f"shard_mb is {self.shard_mb}, allowed is more than 0; workers is "
                f"{self.workers}, allowed is 1 or more"
            )


def origin_of(request: Request, reader: Reader) -> dict[str, Any]:
    """What decides the bytes of the shards, as plain JSON values.

    Raises:
        ValueError: the reader has changed its row beyond what a storage may name.
    """
    names = [field.name for field in dataclasses.fields(request.spec)]
    changed = [n for n in names if getattr(request.spec, n) != getattr(reader.spec, n)]
    others = [name for name in changed if name not in built.NAMED_BY_STORAGE]
    if others:
        raise ValueError(
            f"the reader of {request.spec.name!r} changes {', '.join(others)} of its row; a reader "
            f"may change {', '.join(built.NAMED_BY_STORAGE)}"
        )
    origin = {
        "root": request.root,
        "parts": len(reader.episodes_per_part),
        "episodes": sum(reader.episodes_per_part),
        "named_by_storage": {name: getattr(reader.spec, name) for name in built.NAMED_BY_STORAGE},
        "image_size": request.rule.image_size,
        "quality": request.rule.quality,
        "shard_mb": request.shard_mb,
        "row": built.stored_row(request.spec),
    }
    return json.loads(json.dumps(origin))


def check_origin(found: Mapping[str, Any], wanted: Mapping[str, Any], what: str) -> None:
    """A ValueError that begins with `what` and names all in which the two differ."""
    keys = [key for key in built.differing(found, wanted) if key != "row"]
    fields = built.differing(found.get("row", {}), wanted["row"])
    differences = [*keys, *(f"{field} of the dataset row" for field in fields)]
    if differences:
        raise ValueError(
            f"{what}, made with another {', '.join(differences)}; remove it, or build elsewhere"
        )
