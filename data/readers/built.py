"""Reader for datasets of `python -m scripts.build_rlds`: standard trajectories in RLDS.

It serves the same dataset row as the recording that they were made of. The fields `STORED` of the
row are applied when a dataset is built, so they must not change afterwards; the fields
`APPLIED_LATER` act on every sample drawn and may change.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import re
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Annotated, Any, NotRequired

import pydantic
from etils import epath
from pydantic import Field
from typing_extensions import TypedDict

from data.counting.records import some_features
from data.faults import BadEpisodeError, FaultError, attempt, needs
from data.parts import View, plain_views
from data.poses.rotations import ACTION_WIDTH
from data.poses.words import row_words
from data.readers.rlds import IS_FIRST, MANIFEST_NAME, SPLIT, index_files
from data.readers.tfds_folders import open_builder
from data.spec import DatasetSpec, default_values
from data.stalls import read_of
from data.standard import StandardForm
from data.trajectory import Trajectory
from data.untrusted import STRICT, read_json, typed

_log = logging.getLogger(__name__)
with needs("data"):
    import tensorflow as tf
    import tensorflow_datasets as tfds

SCHEMA_NAME = "standard-trajectories"
SCHEMA = f"{SCHEMA_NAME}-1"
VERSION = "1.0.0"
STORED = (
    "name",
    "storage",
    "storage_name",
    "instruction_keys",
    "arms",
    "rotation_layout",
    "views",
    "encoded_channel_order",
    "rate_hz",
    "joints",
    "actions",
    "units",
    "before_lag",
    "skip_placeholders",
    "picture_offset",
    "keep_episodes",
    "storage_versions",
    "splits",
    "instruction_choice",
    "text_form",
    "fixed_instruction",
    "empty_text",
    "stated_text",
    "instruction_end",
    "folder",
)
# fields in the words of 0.2.0, which a manifest has where they can say the row
STORED_AS = ("instruction_key", "command_lag")
APPLIED_LATER = (
    "domain",
    "domain_id",
    "proprio",
    "window_s",
    "window_frames",
    "index_margin",
    "delta_idx",
    "mask_proprio_idx",
    "static_epsilon",
    "augment",
    "first_index",
    "index_step",
    "first_always",
    "static_frames",
    "switch_frames",
    "late_instruction",
    "original_text_share",
    "main_view_share",
    "robot",  # these five say what the recording is
    "frame",
    "confidence",
    "source",
    "channels",
    "widths",  # judged the recording when it was read
)
NAMED_BY_STORAGE = ("views", "instruction_keys", "encoded_channel_order")


@pydantic.with_config(STRICT)
class _Origin(TypedDict):
    row: dict[str, Any]
    image_size: int


@pydantic.with_config(STRICT)
class _Form(TypedDict):
    views: list[str]
    clocks: Annotated[int, Field(ge=0, le=2)]
    still_columns: Annotated[int, Field(ge=0, le=ACTION_WIDTH)]
    more_pictures: bool
    step_texts: NotRequired[bool]  # absent in what was built before texts were by step
    absent_views: NotRequired[bool]  # or before cameras could be absent
    targets: NotRequired[bool]  # or before targets could be another array than proprio


@pydantic.with_config(STRICT)
class _Manifest(TypedDict):
    schema: str
    made_of: _Origin
    form: _Form
    views: dict[str, str]
    instruction_key: str | None
    encoded_channel_order: str


_MANIFEST = pydantic.TypeAdapter(_Manifest)


class BuiltReader:
    """A built dataset, opened for the row that it was made with; a part is a shard file.

    Its `spec` has the views that the original storage named, and the channel order of the images
    as they are stored.

    Raises:
        ValueError: the row has changed since, or the dataset was made by other software.
    """

    frames_key = ()  # its frames are those of all episodes

    def __init__(self, spec: DatasetSpec, folder: epath.Path) -> None:
        path = folder / MANIFEST_NAME
        manifest = typed(_MANIFEST, read_json(path), path)
        if manifest["schema"] != SCHEMA:
            raise ValueError(f"{folder} has schema {manifest['schema']}, read is {SCHEMA}")
        _check_row(spec, manifest["made_of"]["row"], folder)
        self.folder = folder
        self.index_files = index_files(folder)
        self._form = StandardForm.of_json(manifest["form"])
        if not self._form.step_texts:
            _log.warning(
                "%s was built when only the first text of an episode was kept; where texts change "
                "within episodes, build it again (python -m scripts.build_rlds)",
                folder,
            )
        self.spec = dataclasses.replace(
            spec,
            views=_views(manifest, spec),
            instruction_keys=_instruction_keys(manifest, spec),
            encoded_channel_order=manifest["encoded_channel_order"],
        )
        split = open_builder(folder).info.splits[SPLIT]
        self.episodes_per_part = tuple(split.shard_lengths)
        self._files = [epath.Path(path).name for path in split.filenames]
        decoders: dict[str, Any] = {"steps": tfds.decode.SkipDecoding()}
        if self._form.more_pictures:
            more = dict.fromkeys(self._form.views, tfds.decode.SkipDecoding())
            decoders["episode_metadata"] = {"more_pictures": more}
        features = self._form.features()
        self._parse = tf.function(
            lambda record: features.deserialize_example(record, decoders=decoders),
            input_signature=[tf.TensorSpec((), tf.string)],
        )

    def read(self, part: int) -> Iterator[Trajectory | BadEpisodeError]:
        """Trajectories of shard file number `part`, one at a time, images encoded."""
        path = str(self.folder / self._files[part])
        records = tf.data.TFRecordDataset([path]).map(self._parse).as_numpy_iterator()
        lost: FaultError | None = None
        for number in range(self.episodes_per_part[part]):
            # nothing behind a damaged record of a TFRecord file can be read
            name = f"{self._files[part]}#{number}"
            with read_of(f"dataset {self.spec.name!r}, episode {name}"):
                raw = lost or _next_record(records)
            lost = raw if isinstance(raw, FaultError) else None
            yield attempt(self.spec.name, name, partial(self._trajectory, raw, name))

    def count_frames(self, part: int) -> int:
        """Number of frames of a part; the bytes of images are stepped over."""
        name = f"steps/{IS_FIRST}"
        episodes = some_features(self.folder / self._files[part], (name,))
        return sum(len(episode[name]) for episode in episodes)

    def _trajectory(self, raw: dict[str, Any] | FaultError, place: str) -> Trajectory:
        if isinstance(raw, FaultError):
            raise raw
        return self._form.trajectory(raw, self.spec.name, place)


def find_built(spec: DatasetSpec, root: epath.PathLike) -> epath.Path | None:
    """Folder of the dataset built with `spec` under `root`, or None."""
    parent = epath.Path(root) / built_name(spec)
    if not parent.is_dir():
        return None
    folders = [
        child
        for child in parent.iterdir()
        if tfds.core.Version.is_valid(child.name) and _is_built(child, spec)
    ]
    return max(folders, key=lambda child: tfds.core.Version(child.name), default=None)


def built_name(spec: DatasetSpec) -> str:
    """Name of a row's built dataset, in the letters that tfds.load accepts.

    It comes from the name of the row, not of its storage: two rows of one storage differ in poses.
    Droid-Left and droid_left give the same name and cannot be built into the same data folder.
    """
    name = re.sub(r"\W", "_", spec.name).lower()
    return name if re.match("[a-z]", name) else f"set_{name}"


def stored_row(spec: DatasetSpec) -> dict[str, Any]:
    """Fields `STORED` of a row, as plain JSON values in the words of `data.poses.words`."""
    said = row_words(spec, default_values())
    fields = {name: said[name] for name in (*STORED, *STORED_AS) if name in said}
    return json.loads(json.dumps(fields))


def fingerprint(row: Mapping[str, Any]) -> str:
    """SHA-256 of the fields of `stored_row`."""
    return hashlib.sha256(json.dumps(row, sort_keys=True).encode()).hexdigest()


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Keys of either under which the two have different values."""
    keys = dict.fromkeys([*one, *other])
    return [key for key in keys if one.get(key) != other.get(key)]


def _check_row(spec: DatasetSpec, built: Mapping[str, Any], folder: epath.Path) -> None:
    # a field added to rows since the dataset was built had its default
    defaults = json.loads(json.dumps({name: default_values().get(name) for name in STORED}))
    built, row = defaults | dict(built), defaults | stored_row(spec)
    fields = differing(built, row)
    if fields:
        values = "; ".join(f"{f} was {built.get(f)!r}, is {row.get(f)!r}" for f in fields)
        raise ValueError(
            f"{folder} was built with another dataset row {spec.name!r}: {values}. Build it again "
            f"(python -m scripts.build_rlds), or take the row back ({spec.written_in})"
        )


def _views(manifest: _Manifest, spec: DatasetSpec) -> tuple[View, ...]:
    """Views of the row, or those that the storage named."""
    plain = plain_views(*manifest["views"].values())
    # images of another size were encoded again, turned and in RGB; else their files are unchanged
    encoded_again = manifest["made_of"]["image_size"] > 0
    return plain if encoded_again or not spec.views else spec.views


def _instruction_keys(manifest: _Manifest, spec: DatasetSpec) -> tuple[str, ...]:
    """Keys of the row, or the one that the storage named."""
    key = manifest["instruction_key"]
    return spec.instruction_keys or (() if key is None else (key,))


def _is_built(folder: epath.Path, spec: DatasetSpec) -> bool:
    path = folder / MANIFEST_NAME
    if not path.exists():
        return False
    manifest = read_json(path)
    if not isinstance(manifest, dict):
        return False
    ours = str(manifest.get("schema")).startswith(SCHEMA_NAME)
    return ours and manifest.get("row") == spec.name


def _next_record(records: Iterator[Any]) -> dict[str, Any] | FaultError:
    try:
        raw = next(records, None)
    except tf.errors.OpError as error:
        return FaultError("unreadable", error.message)
    return FaultError("unreadable", "the file ends before it") if raw is None else raw
