"""Finished shards -> a dataset: metadata for tfds, a manifest, and the rename to its place."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from etils import epath

from data.building.origin import Request
from data.extras import needs
from data.faults import LEFT_OUT
from data.readers import built
from data.readers.rlds import SPLIT
from data.writing.publish import dataset_info, publish
from data.writing.shards import DATASET, Job, ShardRecord

with needs("data"):
    from tensorflow_datasets.core import naming, splits

DESCRIPTION = "Standard trajectories of xvla_jax; manifest.json tells of what and how."
CHANNEL_RULE = (
    "All pictures are in encoded_channel_order, whoever encoded them: rgb where image_size is not "
    "0, else the order of the recording. bgr_swapped: exchange red and blue after decoding."
)


def finish(
    request: Request,
    job: Job,
    records: Sequence[ShardRecord],
    origin: dict[str, Any],
    made_by: dict[str, Any],
    place: Path,
) -> dict[str, Any]:
    """Turn the building folder's shards into the dataset at `place`; gives its manifest.

    Raises:
        ValueError: no good episode.
    """
    episodes = sum(record.episodes for record in records)
    if not episodes:
        raise ValueError(f"dataset {job.spec.name!r} has no good episode; nothing is written")
    made = job.folder / DATASET
    _write_metadata(job, records)
    manifest = _manifest(request, job, records, origin) | made_by
    return publish(made, place, manifest, {record.file: record.sha256 for record in records})


def _write_metadata(job: Job, records: Sequence[ShardRecord]) -> None:
    folder = job.folder / DATASET
    info = dataset_info(job.name, built.VERSION, folder, DESCRIPTION, job.form.features())
    split = splits.SplitInfo(
        name=SPLIT,
        shard_lengths=[record.episodes for record in records],
        num_bytes=sum(record.bytes for record in records),
        filename_template=naming.ShardedFileTemplate(
            data_dir=epath.Path(folder),
            dataset_name=job.name,
            split=SPLIT,
            filetype_suffix="tfrecord",
        ),
    )
    info.set_splits(splits.SplitDict([split]))
    info.write_to_directory(folder)


def _manifest(
    request: Request, job: Job, records: Sequence[ShardRecord], origin: dict[str, Any]
) -> dict[str, Any]:
    frames = sum(record.frames for record in records)
    named = origin["named_by_storage"]
    not_written = _not_written(records)
    return {
        "schema": built.SCHEMA,
        "name": job.name,
        "version": built.VERSION,
        "row": job.spec.name,
        "fingerprint": built.fingerprint(origin["row"]),
        "episodes": sum(record.episodes for record in records),
        "frames": frames,
        "hours": frames / job.spec.rate_hz / 3600,
        "rate_hz": job.spec.rate_hz,
        "views": dict(zip(job.form.views, named["views"], strict=True)),
        "instruction_key": named["instruction_key"],
        "encoded_channel_order": job.channel_order,
        "channel_rule": CHANNEL_RULE,
        "form": dataclasses.asdict(job.form),
        "bad_episodes": {k: v for k, v in not_written.items() if k not in LEFT_OUT},
        "left_out": {k: v for k, v in not_written.items() if k in LEFT_OUT},
        "max_bad_episodes": request.max_bad_episodes,
        "made_of": origin,
    }


def _not_written(records: Sequence[ShardRecord]) -> dict[str, list[str]]:
    """Kind of fault, or reason of the row -> the episodes that are not in the dataset."""
    found: dict[str, list[str]] = defaultdict(list)
    for record in records:
        for kind, episodes in record.bad_episodes.items():
            found[kind] += episodes
    return dict(sorted(found.items()))
