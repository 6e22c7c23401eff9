"""Where the samples of a run come from: what a checkpoint's provenance says of each source.

Hashes are of a dataset's index files (meta file, info.json, dataset_info.json, manifest), which
list its episodes or the hashes of its files; terabytes of recordings are not read for it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

from etils import epath

from data.stream.pipeline import Source
from data.untrusted import read_json

NOT_STATED = "not stated"
_LICENCE_KEYS = ("licence", "license")
_TERMS = "redistributionInfo"  # where dataset_info.json of tfds has them


def origin(source: Source, *, held_out: int = 0) -> dict[str, Any]:
    """What there is to say of an opened source, as plain JSON values.

    Args:
        source: as it is trained on.
        held_out: how many of its episodes are kept out of training.
    """
    reader = source.reader
    files = [epath.Path(path) for path in getattr(reader, "index_files", ())]
    return {
        "name": reader.spec.name,
        "domain_id": reader.spec.domain_id,
        "storage": reader.spec.storage,
        "row": reader.spec.fingerprint,
        "weight": source.weight,
        "episodes": sum(reader.episodes_per_part),
        "held_out_episodes": held_out,
        "index_files": {str(path): _sha256(path) for path in files},
        "licence": _licence(files),
    }


def _sha256(path: epath.Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _licence(files: Iterable[epath.Path]) -> str:
    """The first that a JSON among the files states."""
    for path in files:
        if path.suffix != ".json":
            continue
        content = read_json(path)
        if not isinstance(content, dict):
            continue
        terms = content.get(_TERMS)
        for place in (content, terms if isinstance(terms, dict) else {}):
            stated = next((place[key] for key in _LICENCE_KEYS if place.get(key)), None)
            if stated:
                return str(stated)
    return NOT_STATED
