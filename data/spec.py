"""DatasetSpec: everything that tells one recording from another, as one table row.

No field has a default: a robot, its layout and its polarity are never guessed.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from data.poses import ACTION_WIDTH, POSE_ENCODINGS
from data.rotations import ROT6D_LAYOUTS

STORAGES = ("rlds",)
CHANNEL_ORDERS = (
    "rgb",
    "bgr_swapped",
)  # bgr_swapped: red and blue exchanged
CLOSED = ("high", "low")
PROPRIO_SOURCES = ("measured", "commanded", "zero")


@dataclass(frozen=True, kw_only=True)
class Gripper:
    """Where the gripper reading is and what it means; see `data.poses.gripper_closed`."""

    key: str  # dotted feature key, [T] or [T, columns]
    column: int
    closed: str
    threshold: float | None


@dataclass(frozen=True, kw_only=True)
class Arm:
    """Pose and gripper of one arm."""

    pose_key: str  # dotted feature key, [T, columns]
    pose_columns: tuple[int, int]  # first column, one past the last
    pose_encoding: str
    gripper: Gripper


@dataclass(frozen=True, kw_only=True)
class DatasetSpec:
    """One source of demonstrations.

    `index_margin` frames at the end of an episode start no sample; where fewer than
    `window_s * rate_hz` frames remain, the window shrinks to them (data.windows).
    """

    name: str
    storage: str
    storage_name: str  # the folder under the data root
    domain_id: int
    instruction_key: str
    arms: tuple[Arm, ...]  # one arm fills numbers 0..9; two are left, right
    rotation_layout: str
    views: tuple[str, ...]  # dotted keys of the encoded images; view 0 is the main camera
    encoded_channel_order: str
    proprio: str  # what the poses are: measured, or commanded; zero where all of proprio is masked
    rate_hz: float
    window_s: float
    index_margin: int
    delta_idx: tuple[int, ...]  # channels of the actions made relative to the proprio
    mask_proprio_idx: tuple[int, ...]  # channels of the proprio set to zero afterwards
    static_epsilon: float  # samples that move less than this in their first step are left out

    def __post_init__(self) -> None:
        self._one_of("storage", self.storage, STORAGES)
        self._one_of("rotation_layout", self.rotation_layout, ROT6D_LAYOUTS)
        self._one_of("proprio", self.proprio, PROPRIO_SOURCES)
        self._one_of("encoded_channel_order", self.encoded_channel_order, CHANNEL_ORDERS)
        for arm in self.arms:
            self._one_of("pose_encoding", arm.pose_encoding, POSE_ENCODINGS)
            self._one_of("gripper.closed", arm.gripper.closed, CLOSED)
            first, end = arm.pose_columns
            width = POSE_ENCODINGS[arm.pose_encoding].width
            self._check("pose_columns", end - first == width, arm.pose_columns, f"{width} columns")
        self._check("arms", len(self.arms) in (1, 2), len(self.arms), "1 or 2 arms")
        self._check("views", len(self.views) > 0, self.views, "at least one view")
        self._check("domain_id", self.domain_id >= 0, self.domain_id, "0 or more")
        self._check("rate_hz", self.rate_hz > 0, self.rate_hz, "more than 0 Hz")
        self._check("window_s", self.window_s > 0, self.window_s, "more than 0 s")
        self._check("index_margin", self.index_margin >= 1, self.index_margin, "1 frame or more")
        self._check("static_epsilon", self.static_epsilon >= 0, self.static_epsilon, "0 or more")
        for field in ("delta_idx", "mask_proprio_idx"):
            channels = getattr(self, field)
            inside = all(0 <= c < ACTION_WIDTH for c in channels)
            self._check(field, inside, channels, f"channels 0..{ACTION_WIDTH - 1}")

    @property
    def keys(self) -> tuple[str, ...]:
        """Every dotted feature key that the row reads, without repeats."""
        arms = [key for arm in self.arms for key in (arm.pose_key, arm.gripper.key)]
        return tuple(dict.fromkeys([*self.views, self.instruction_key, *arms]))

    def _one_of(self, field: str, value: str, allowed: Collection[str]) -> None:
        self._check(field, value in allowed, repr(value), "one of " + ", ".join(allowed))

    def _check(self, field: str, good: bool, value: object, allowed: str) -> None:
        if not good:
            raise ValueError(
                f"dataset row {self.name!r}: {field} is {value}, allowed is {allowed} "
                "(data/datasets.py)"
            )
