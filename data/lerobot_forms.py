"""Types of the fields that are read of a LeRobot dataset's index, by version.

Tasks are not among them: data/readers/lerobot_tasks.py reads them, and counts others as a bad episode.
"""

from __future__ import annotations

from typing import Annotated, Any

import pydantic
from pydantic import Field
from typing_extensions import TypedDict

from data.untrusted import STRICT

_Number = Annotated[int, Field(ge=0, lt=1 << 31)]


@pydantic.with_config(STRICT)
class _Feature(TypedDict, total=False):
    """What is read of a feature, beside its names (`channel_names` of data/readers/lerobot_index.py)."""

    dtype: str | None
    info: dict[str, Any] | None
    video_info: dict[str, Any] | None


@pydantic.with_config(STRICT)
class _Info(TypedDict, total=False):
    """What any version has of these fields; data/texts.py reads the paraphrases."""

    codebase_version: str
    fps: float
    root_path: str | None
    video_path: str | None
    robot_type: str | None
    features: dict[str, _Feature] | None


@pydantic.with_config(STRICT)
class _Info2(TypedDict):
    data_path: str
    chunks_size: Annotated[int, Field(ge=1)]


@pydantic.with_config(STRICT)
class _Info3(TypedDict):
    data_path: str


@pydantic.with_config(STRICT)
class _Row2(TypedDict):
    episode_index: _Number


@pydantic.with_config(STRICT)
class _Action(TypedDict):
    start_frame: int
    end_frame: int


@pydantic.with_config(STRICT)
class _Agibot(TypedDict):
    top_path: str
    episode_index: _Number
    action_config: list[_Action]


@pydantic.with_config(STRICT)
class _Video3(TypedDict):
    chunk_index: _Number
    file_index: _Number
    from_timestamp: Annotated[float, Field(ge=0)]


_Row3 = pydantic.with_config(STRICT)(
    TypedDict(
        "_Row3",
        {"episode_index": _Number, "data/chunk_index": _Number, "data/file_index": _Number},
    )
)

INFO_FORM = pydantic.TypeAdapter(_Info)
INFO_2 = pydantic.TypeAdapter(_Info2)
INFO_3 = pydantic.TypeAdapter(_Info3)
ROW_2 = pydantic.TypeAdapter(_Row2)
ROW_3 = pydantic.TypeAdapter(_Row3)
VIDEO_ROW_3 = pydantic.TypeAdapter(_Video3)
AGIBOT_ENTRY = pydantic.TypeAdapter(_Agibot)
