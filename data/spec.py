"""DatasetSpec: everything in which one dataset differs from another, as one table row.

The fields that identify a robot have no default: its layout, rate and polarity are never guessed.
The quirks at the end of a row default to their absence. A row, or a reader, of your own stays
outside the repository and is named module:NAME.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import inspect
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from data.jitter import AUGMENTS
from data.poses import ACTION_WIDTH, POSE_ENCODINGS, ROT6D_LAYOUTS

STORAGES = ("rlds", "hdf5", "lerobot", "scattered", "calvin", "bridge_raw")
NAMES_OWN_VIEWS = ("hdf5",)  # the meta file of the recording lists the views
CHANNEL_ORDERS = ("rgb", "bgr_swapped")  # bgr_swapped: red and blue exchanged
CLOSED = ("high", "low")
PROPRIO_SOURCES = ("measured", "commanded", "zero")
NO_ROTATION = "none"  # layout of a row whose channels are joints
# a frame without a text makes its episode bad; or starts no sample (and an episode without any text
# is left out, which is no fault); or has the row's `stated_text`
EMPTY_TEXT = ("fault", "leave_out", "stated")
TEXT_KEYS = ("rlds", "hdf5", "lerobot")  # storages in which instruction_key names the text
# fields younger than positions saved in checkpoints: at their default the fingerprint omits them
_YOUNGER = ("empty_text", "stated_text")
_CHECKOUT = Path(__file__).resolve().parents[1]
_MAKERS = (__name__, "dataclasses", "copy")  # code that runs while a row is made
_SEPARATOR = ":"


def is_named(text: str) -> bool:
    """True for text of the form module:NAME."""
    module, separator, name = text.partition(_SEPARATOR)
    return bool(separator) and name.isidentifier() and all(map(str.isidentifier, module.split(".")))


def load_named(text: str) -> object:
    """Imports the module of `module:NAME`; returns what NAME is there.

    Raises:
        ValueError: no such module, or no such name in it.
    """
    module_name, _, name = text.partition(_SEPARATOR)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{text}: {error}; the folder of your module must be on PYTHONPATH"
        ) from error
    if not hasattr(module, name):
        names = ", ".join(public for public in vars(module) if not public.startswith("_"))
        raise ValueError(f"{text}: {module_name} has no {name}; it has {names}")
    return getattr(module, name)


@dataclass(frozen=True)
class Columns:
    """Columns first .. end - 1 of a recorded array; its axes after the first are flattened.

    `widths` of the row says how many columns the array has in all.
    """

    key: str
    first: int
    end: int


@dataclass(frozen=True)
class Channel:
    """Name, unit and polarity of one joint; a checkpoint and its server pass them on.

    `low` and `high` say what a gripper's low and high values mean; empty: as `arms` say, or the
    robot's own.
    """

    name: str
    unit: str = "unknown"
    low: str = ""
    high: str = ""


@dataclass(frozen=True, kw_only=True)
class Gripper:
    """Column and meaning of a gripper reading; see `data.poses.gripper_closed`.

    A negative column counts from the end of the array, whose width `DatasetSpec.width_of` gives.
    """

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
    """An episode that is a folder of loose files, as templates of paths inside it.

    `{episode}` is the folder's own name, `{view}` the view, `{frame}` the number of the frame. A
    template of images without `{frame}` is one video per view.
    """

    state: str  # .h5 by dataset path, or .json: a list of frames under "data"
    pictures: str
    # where the first array is absent, column 0 of each of the others side by side
    substitutes: tuple[tuple[str, tuple[str, ...]], ...] = ()


@dataclass(frozen=True, kw_only=True)
class DatasetSpec:
    """One source of demonstrations.

    A sample starts at frame first_index, + index_step, ..., but never in the last `index_margin`
    frames; where less than `window_s` remains, the window shrinks to it (data.stream.windows).
    """

    name: str
    storage: str  # or module:NAME of a reader outside this repository
    storage_name: str  # the folder under the data root, or the name in a meta file
    domain_id: int
    instruction_key: str | None  # None: the storage has its own place for it
    arms: tuple[Arm, ...]  # one arm fills numbers 0..9; two are left, right
    rotation_layout: str
    views: tuple[str, ...]  # keys of the images; view 0 is the main camera
    encoded_channel_order: str
    proprio: str  # what the poses are: measured, or commanded; zero where all of proprio is masked
    rate_hz: float
    window_s: float
    index_margin: int
    delta_idx: tuple[int, ...]  # channels of the actions made relative to the proprio
    mask_proprio_idx: tuple[int, ...]  # channels of the proprio set to zero afterwards
    static_epsilon: float  # samples that move less than this in their first step are left out
    augment: str  # of training images; data.jitter.AUGMENTS
    # actions of a joint space, as many channels as it has, behind which readers leave zeros; `arms`
    # then only judge whether a sample moves
    joints: tuple[Columns, ...] = ()
    channels: tuple[Channel, ...] = ()  # of the joints, in order; else as LeRobot's info.json says
    first_index: int = 0
    index_step: int = 1
    first_always: bool = False  # frame 0 starts a sample however short the episode
    static_frames: bool = False  # the first step is one recorded frame, not 1/T of the window
    command_lag: int = 0  # row i is the recorded row i - lag; the first is repeated
    picture_offset: int = 0  # image i + offset belongs to row i
    switch_frames: int = 0  # frames within this of a gripper switch are samples once more
    fixed_instruction: str | None = None  # of every episode; what was recorded is not read
    empty_text: str = "fault"
    stated_text: str | None = None  # for empty_text "stated"
    instruction_end: str | None = None  # the instruction stops before this text
    late_instruction: LateInstruction | None = None
    original_text_share: float = 0.0  # how often an instruction that has paraphrases is kept
    main_view_share: float = 0.0  # how often a training sample shows the main camera only
    folder: EpisodeFolder | None = None  # for storage "scattered"
    # columns of each recorded array, axes after the first flattened; a recording of another width
    # is refused. Needed to count a gripper from the end of an array that holds more than a pose
    widths: Mapping[str, int] = dataclasses.field(default_factory=dict, hash=False)
    # file of the checkout, or module elsewhere, that holds the row: messages send the reader there
    written_in: str = dataclasses.field(default="", compare=False, repr=False)

    def __post_init__(self) -> None:
        module, place = _caller()
        if not self.written_in or _holds_rows(module):
            object.__setattr__(self, "written_in", place)
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
            "folder",
            (self.folder is not None) == (self.storage == "scattered"),
            self.folder,
            "given for storage 'scattered' and for no other",
        )
        self._check_text(own_reader)
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
        """Keys of all numbers that the row reads, without repeats."""
        keys = [columns.key for columns in self.joints]
        for arm in self.arms:
            keys += [columns.key for columns in arm.pose] + [arm.gripper.key]
            keys += [] if arm.clock_key is None else [arm.clock_key]
        return tuple(dict.fromkeys(keys))

    def width_of(self, key: str) -> int | None:
        """Columns of the recorded array `key`, or None where the row does not say.

        It says so in `widths`; or else a clock is one column, and an array that holds poses and,
        counted from its end, grippers ends with them.
        """
        if key in self.widths:
            return self.widths[key]
        if any(arm.clock_key == key for arm in self.arms):
            return 1
        poses = (*self.joints, *(columns for arm in self.arms for columns in arm.pose))
        ends = [columns.end for columns in poses if columns.key == key]
        grippers = [arm.gripper.column for arm in self.arms if arm.gripper.key == key]
        if not ends or min(grippers, default=0) >= 0:
            return None
        return max(ends) - min(grippers)

    @property
    def keys(self) -> tuple[str, ...]:
        """Keys of all that the row reads, without repeats: views, instruction, numbers."""
        return tuple(dict.fromkeys([*self.views, *self.text_keys, *self.state_keys]))

    @property
    def text_keys(self) -> tuple[str, ...]:
        """Key of the instruction, where one is read."""
        if self.instruction_key is None or self.fixed_instruction is not None:
            return ()
        return (self.instruction_key,)

    @property
    def fingerprint(self) -> str:
        """Twelve hex digits that change with any field of the row that changes its samples."""
        defaults = default_values()
        values = dataclasses.asdict(self)
        left_out = {name for name in _YOUNGER if values[name] == defaults[name]}
        # they name and judge what is read, or say where the row is, and change no sample
        left_out |= {"channels", "widths", "written_in"}
        text = json.dumps({n: v for n, v in values.items() if n not in left_out}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def _check_text(self, own_reader: bool) -> None:
        fixed, key = self.fixed_instruction, self.instruction_key
        self._check(
            "instruction_key",
            key is not None or fixed is not None or self.storage != "rlds",
            None,
            "a feature for storage 'rlds'",
        )
        named = own_reader or self.storage in TEXT_KEYS
        self._check(
            "instruction_key",
            key is None or named,
            repr(key),
            f"None for storage {self.storage!r}, which has its own place for the text",
        )
        self._one_of("empty_text", self.empty_text, EMPTY_TEXT)
        stated = self.stated_text
        good = bool(stated and stated.strip()) if self.empty_text == "stated" else stated is None
        self._check("stated_text", good, repr(stated), "a text for empty_text 'stated', else None")
        fixed_good = fixed is None or bool(fixed.strip())
        self._check("fixed_instruction", fixed_good, repr(fixed), "a text, or None")

    def _check_channels(self) -> None:
        for arm in self.arms:
            self._one_of("pose_encoding", arm.pose_encoding, POSE_ENCODINGS)
            self._one_of("gripper.closed", arm.gripper.closed, CLOSED)
            stated = sum(columns.end - columns.first for columns in arm.pose)
            width = POSE_ENCODINGS[arm.pose_encoding].width
            self._check("pose", stated == width, f"{stated} columns", f"{width} columns")
        clocks = {arm.clock_key is None for arm in self.arms}
        self._check("clock_key", len(clocks) < 2, "given for one arm", "given for all or none")
        joints = self.width if self.joints else 0
        self._check("joints", joints <= ACTION_WIDTH, joints, f"at most {ACTION_WIDTH} channels")
        named = len(self.channels)
        self._check("channels", named in (0, joints), named, f"none, or one for each of {joints}")
        arms = (0, 1, 2) if self.joints else (1, 2)
        self._check("arms", len(self.arms) in arms, len(self.arms), "1 or 2 arms")
        self._check_columns()
        for field in ("delta_idx", "mask_proprio_idx"):
            channels = getattr(self, field)
            inside = all(0 <= c < ACTION_WIDTH for c in channels)
            self._check(field, inside, channels, f"channels 0..{ACTION_WIDTH - 1}")

    def _check_columns(self) -> None:
        for key, width in self.widths.items():
            good = isinstance(width, int) and width >= 1
            self._check("widths", good, f"{width!r} for {key}", "1 or more columns")
        for columns in (*self.joints, *(c for arm in self.arms for c in arm.pose)):
            place = f"{columns.first}..{columns.end - 1} of {columns.key}"
            width = self.width_of(columns.key) or columns.end
            inside = 0 <= columns.first < columns.end <= width
            self._check("columns", inside, place, f"0..{width - 1}, first before end (widths)")
        for gripper in (arm.gripper for arm in self.arms):
            width = self.width_of(gripper.key)
            inside = width is None or -width <= gripper.column < width
            place = f"{gripper.column} of {gripper.key}"
            self._check("gripper.column", inside, place, f"{-(width or 0)}..{(width or 0) - 1}")

    def _one_of(self, field: str, value: str, allowed: Collection[str]) -> None:
        self._check(field, value in allowed, repr(value), "one of " + ", ".join(allowed))

    def _check(self, field: str, good: bool, value: object, allowed: str) -> None:
        if not good:
            raise ValueError(
                f"dataset row {self.name!r}: {field} is {value}, allowed is {allowed} "
                f"({self.written_in})"
            )


def default_values() -> dict[str, object]:
    """Defaults by field, of the fields of a row that have one."""
    fields = dataclasses.fields(DatasetSpec)
    return {f.name: f.default for f in fields if f.default is not dataclasses.MISSING}


def _caller() -> tuple[str, str]:
    """Module that makes a row, and its file from the root of the checkout, or its name."""
    frame = inspect.currentframe()
    while frame is not None and frame.f_globals.get("__name__") in _MAKERS:
        frame = frame.f_back
    if frame is None:
        return "", "its row"
    module, file = str(frame.f_globals.get("__name__")), Path(frame.f_code.co_filename)
    inside = file.is_relative_to(_CHECKOUT)
    return module, file.relative_to(_CHECKOUT).as_posix() if inside else module


def _holds_rows(module: str) -> bool:
    """True for modules in which rows are written; others in data/ only make variants of them."""
    package, _, name = module.partition(".")
    return package != "data" or name.startswith("rows")
