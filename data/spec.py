"""DatasetSpec: everything that tells one recording from another, as one table row.

What identifies a robot has no default: its layout, rate and polarity are never guessed. The quirks
at the end of a row default to their absence.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Collection
from dataclasses import dataclass

from data.jitter import AUGMENTS
from data.poses import ACTION_WIDTH, POSE_ENCODINGS
from data.rotations import ROT6D_LAYOUTS

STORAGES = ("rlds", "hdf5", "lerobot", "scattered", "calvin", "bridge_raw")
NAMES_OWN_VIEWS = ("hdf5",)  # the meta file of the recording lists the views
CHANNEL_ORDERS = (
    "rgb",
    "bgr_swapped",
)  # bgr_swapped: red and blue exchanged
CLOSED = ("high", "low")
PROPRIO_SOURCES = ("measured", "commanded", "zero")
NO_ROTATION = "none"  # layout of a row whose channels are joints


@dataclass(frozen=True)
class Columns:
    """Columns first .. end - 1 of a recorded array; its axes after the first are flattened."""

    key: str
    first: int
    end: int


@dataclass(frozen=True, kw_only=True)
class Gripper:
    """Where the gripper reading is and what it means; see `data.poses.gripper_closed`."""

    key: str
    column: int
    closed: str
    threshold: float | None
    # readings are multiplied by it, in their own precision, before they are judged
    scale: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Arm:
    """Pose and gripper of one arm."""

    pose: tuple[Columns, ...]  # joined in this order
    pose_encoding: str
    gripper: Gripper
    clock_key: str | None = None  # [T] seconds; None: frame number / rate_hz


@dataclass(frozen=True, kw_only=True)
class LateInstruction:
    """A second instruction: at frame i of T, past `after_frame`, with probability i / T."""

    text: str
    after_frame: int | None  # None: T // 2


@dataclass(frozen=True, kw_only=True)
class EpisodeFolder:
    """An episode as a folder of loose files; templates of paths inside it.

    `{episode}` is the folder's own name, `{view}` the view, `{frame}` the number of the frame. A
    picture template without `{frame}` is one video per view.
    """

    state: str  # .h5 by dataset path, or .json: a list of frames under "data"
    pictures: str
    # where the first array is absent, column 0 of each of the others side by side
    substitutes: tuple[tuple[str, tuple[str, ...]], ...] = ()


@dataclass(frozen=True, kw_only=True)
class DatasetSpec:
    """One source of demonstrations.

    A sample starts at frame first_index, + index_step, ..., but never in the last `index_margin`
    frames; where less than `window_s` remains, the window shrinks to it (data.windows).
    """

    name: str
    storage: str  # or module:NAME of a reader outside this repository
    storage_name: str  # the folder under the data root, or the name in a meta file
    domain_id: int
    instruction_key: str | None  # None: the storage has its own place for it
    arms: tuple[Arm, ...]  # one arm fills numbers 0..9; two are left, right
    rotation_layout: str
    views: tuple[str, ...]  # keys of the pictures; view 0 is the main camera
    encoded_channel_order: str
    proprio: str  # what the poses are: measured, or commanded; zero where all of proprio is masked
    rate_hz: float
    window_s: float
    index_margin: int
    delta_idx: tuple[int, ...]  # channels of the actions made relative to the proprio
    mask_proprio_idx: tuple[int, ...]  # channels of the proprio set to zero afterwards
    static_epsilon: float  # samples that move less than this in their first step are left out
    augment: str  # of training pictures; data.jitter.AUGMENTS
    # actions of a joint space, as many channels as it has, behind which readers leave zeros; `arms`
    # then only judge whether a sample moves
    joints: tuple[Columns, ...] = ()
    first_index: int = 0
    index_step: int = 1
    first_always: bool = False  # frame 0 starts a sample however short the episode
    static_frames: bool = False  # the first step is one recorded frame, not 1/T of the window
    command_lag: int = 0  # row i is the recorded row i - lag; the first is repeated
    picture_offset: int = 0  # picture i + offset belongs to row i
    switch_frames: int = 0  # frames within this of a gripper switch are samples once more
    fixed_instruction: str | None = None
    instruction_end: str | None = None  # the instruction stops before this text
    late_instruction: LateInstruction | None = None
    original_text_share: float = 0.0  # how often an instruction that has paraphrases is kept
    main_view_share: float = 0.0  # how often a training sample shows the main camera only
    folder: EpisodeFolder | None = None  # for storage "scattered"

    def __post_init__(self) -> None:
        own_reader = ":" in self.storage
        self._check(
            "storage",
            own_reader or self.storage in STORAGES,
            repr(self.storage),
            f"one of {', '.join(STORAGES)}, or module:NAME",
        )
        layouts = ROT6D_LAYOUTS if not self.joints else (NO_ROTATION,)
        self._one_of("rotation_layout", self.rotation_layout, layouts)
        self._one_of("proprio", self.proprio, PROPRIO_SOURCES)
        self._one_of("encoded_channel_order", self.encoded_channel_order, CHANNEL_ORDERS)
        self._one_of("augment", self.augment, AUGMENTS)
        self._check_channels()
        self._check(
            "views",
            len(self.views) > 0 or own_reader or self.storage in NAMES_OWN_VIEWS,
            self.views,
            "at least one view",
        )
        self._check(
            "instruction_key",
            self.instruction_key is not None or self.storage != "rlds",
            None,
            "a feature for storage 'rlds'",
        )
        self._check(
            "folder",
            (self.folder is not None) == (self.storage == "scattered"),
            self.folder,
            "given for storage 'scattered' and for no other",
        )
        self._check("rate_hz", self.rate_hz > 0, self.rate_hz, "more than 0 Hz")
        self._check("window_s", self.window_s > 0, self.window_s, "more than 0 s")
        for field in ("index_margin", "index_step"):
            value = getattr(self, field)
            self._check(field, value >= 1, value, "1 or more")
        for field in (
            "domain_id",
            "static_epsilon",
            "first_index",
            "command_lag",
            "picture_offset",
            "switch_frames",
        ):
            value = getattr(self, field)
            self._check(field, value >= 0, value, "0 or more")
        self._check(
            "switch_frames",
            self.switch_frames == 0 or bool(self.arms),
            self.switch_frames,
            "0 without arms, whose grippers switch",
        )
        for field in ("original_text_share", "main_view_share"):
            value = getattr(self, field)
            self._check(field, 0 <= value <= 1, value, "0 to 1")

    @property
    def width(self) -> int:
        """Channels of proprio and actions that mean something: the joints, or two arms' poses."""
        joints = sum(columns.end - columns.first for columns in self.joints)
        return joints or ACTION_WIDTH

    @property
    def state_keys(self) -> tuple[str, ...]:
        """Every key of numbers that the row reads, without repeats."""
        keys = [columns.key for columns in self.joints]
        for arm in self.arms:
            keys += [columns.key for columns in arm.pose] + [arm.gripper.key]
            keys += [] if arm.clock_key is None else [arm.clock_key]
        return tuple(dict.fromkeys(keys))

    @property
    def keys(self) -> tuple[str, ...]:
        """Every key that the row reads, without repeats: views, instruction, numbers."""
        text = () if self.instruction_key is None else (self.instruction_key,)
        return tuple(dict.fromkeys([*self.views, *text, *self.state_keys]))

    @property
    def fingerprint(self) -> str:
        """Twelve hex digits that change with any field of the row."""
        text = json.dumps(dataclasses.asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def _check_channels(self) -> None:
        for arm in self.arms:
            self._one_of("pose_encoding", arm.pose_encoding, POSE_ENCODINGS)
            self._one_of("gripper.closed", arm.gripper.closed, CLOSED)
            found = sum(columns.end - columns.first for columns in arm.pose)
            width = POSE_ENCODINGS[arm.pose_encoding].width
            self._check("pose", found == width, f"{found} columns", f"{width} columns")
        clocks = {arm.clock_key is None for arm in self.arms}
        self._check("clock_key", len(clocks) < 2, "given for one arm", "given for all or none")
        joints = self.width if self.joints else 0
        self._check("joints", joints <= ACTION_WIDTH, joints, f"at most {ACTION_WIDTH} channels")
        arms = (0, 1, 2) if self.joints else (1, 2)
        self._check("arms", len(self.arms) in arms, len(self.arms), "1 or 2 arms")
        for field in ("delta_idx", "mask_proprio_idx"):
            channels = getattr(self, field)
            inside = all(0 <= c < ACTION_WIDTH for c in channels)
            self._check(field, inside, channels, f"channels 0..{ACTION_WIDTH - 1}")

    def _one_of(self, field: str, value: str, allowed: Collection[str]) -> None:
        self._check(field, value in allowed, repr(value), "one of " + ", ".join(allowed))

    def _check(self, field: str, good: bool, value: object, allowed: str) -> None:
        if not good:
            raise ValueError(
                f"dataset row {self.name!r}: {field} is {value}, allowed is {allowed} "
                "(data/datasets.py)"
            )
