"""A recording as the questions see it: numbers, clocks, texts and small images of episodes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.images import load_image
from data.trajectory import Images

Float64 = NDArray[np.float64]
UInt8 = NDArray[np.uint8]
Int64 = NDArray[np.int64]

STATE, ACTION = "observation.state", "action"  # LeRobot's keys, and those of our tests
JOIN = "+"  # between arrays that lie side by side as one state
EPISODES = 40  # of which numbers are read, evenly spaced
LOOKED_AT = 4  # of which images are
IMAGES = 24  # of a camera in an episode
SIDE = 64
RGB, BGR, BGR_PIXELS = "rgb", "bgr_swapped", "bgr_pixels"  # data.parts.CHANNEL_ORDERS


@dataclass(frozen=True)
class Shots:
    """Small images of one camera in one episode, and the frames that they show.

    Attributes:
        images: uint8[n, S, S, 3] as decoded, whatever the order of its channels.
        frames: [n].
    """

    images: UInt8
    frames: Int64


@dataclass(frozen=True, kw_only=True)
class Recording:
    """Some episodes of a dataset.

    Attributes:
        name: of the folder.
        storage: of the row, as "lerobot".
        root: data folder below which the row finds the dataset by `name`.
        robot_type: as the files state it; empty: they do not.
        rate_hz: as the files state it; None: they do not.
        rate_from: what states the rate.
        arrays: [T, columns] of each episode, by key.
        names: of the columns, by key, where the files have them.
        states: keys of what may be the state, several arrays joined by `JOIN`.
        action: key of the commands; empty: none were recorded.
        clocks: recorded seconds [T] of each episode; none: not recorded.
        shots: of each episode that was looked at, by camera.
        texts: of the episodes; empty where an episode has none.
        text_key: under which they are; empty: the storage's own place.
        rgb: the files state that images are RGB.
        channel_orders: those that the stored images may have, RGB first.
        splits: of an RLDS set.
    """

    name: str
    storage: str
    root: Path | None = None
    robot_type: str = ""
    rate_hz: float | None
    rate_from: str = "the files state"
    arrays: Mapping[str, tuple[Float64, ...]]
    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    states: tuple[str, ...] = (STATE,)
    action: str = ACTION
    clocks: tuple[Float64, ...] = ()
    shots: Mapping[str, tuple[Shots, ...]] = field(default_factory=dict)
    texts: tuple[str, ...] = ()
    text_key: str = ""
    rgb: bool = False
    channel_orders: tuple[str, ...] = (RGB, BGR)
    splits: tuple[str, ...] = ()

    @property
    def cameras(self) -> tuple[str, ...]:
        """Keys of the cameras, as the files list them."""
        return tuple(self.shots)

    def keys(self, key: str) -> tuple[str, ...]:
        """Arrays of a key, which may join several."""
        return (key,) if key in self.arrays else tuple(key.split(JOIN))

    def has(self, key: str) -> bool:
        """True where all arrays of a key were recorded."""
        return all(part in self.arrays for part in self.keys(key))

    def episodes(self, key: str) -> tuple[Float64, ...]:
        """Rows [T, columns] of each episode."""
        parts = [self.arrays[part] for part in self.keys(key)]
        if len(parts) == 1:
            return parts[0]
        return tuple(np.concatenate(rows, axis=1) for rows in zip(*parts, strict=True))

    def rows(self, key: str) -> Float64:
        """All rows, episode after episode: [sum of T, columns]."""
        return np.concatenate(self.episodes(key))

    def width(self, key: str) -> int:
        """Columns in all."""
        return sum(self.arrays[part][0].shape[1] for part in self.keys(key))

    def places(self, key: str) -> tuple[tuple[str, int], ...]:
        """Array, and column in it, of each column."""
        return tuple((part, c) for part in self.keys(key) for c in range(self.width(part)))

    def column_names(self, key: str) -> tuple[str, ...]:
        """Names of the columns: the files' own, or of joined arrays by what they are named.

        None where any column would have none.
        """
        parts = self.keys(key)
        if len(parts) == 1:
            return self.names.get(key, ())
        roles = [role_of(part, self.width(part)) for part in parts]
        beside_gripper = any(GRIPPER_ARRAY.search(last(part)) for part in parts)
        named: list[str] = []
        for part, role in zip(parts, roles, strict=True):
            own = self.names.get(part, ())
            if not own and not role and JOINT_ARRAY.search(last(part)) and beside_gripper:
                own = tuple(f"{prefix_of(part)}joint_{i}" for i in range(self.width(part)))
            own = own or role
            if not own:
                return ()
            named += own
        # two hands whose arrays have no side: by number, as robot0 and robot1
        return tuple(named) if len(set(named)) == len(named) else ()


JOINT_ARRAY = re.compile(
    r"(?:^|_)(?:q_?pos|q|joints?|joint_?(?:pos|positions?|angles?|states?))$", re.I
)
GRIPPER_ARRAY = re.compile(r"gripper|finger|jaw", re.I)
_POSITION_ARRAY = re.compile(r"(?:eef?|tcp|hand|effector|cartesian)_?(?:pos|position)$", re.I)
_QUATERNION_ARRAY = re.compile(r"quat(?:ernion)?$", re.I)
_SIDE = re.compile(r"(?:^|[./_])(left|right)(?=[./_]|$)", re.I)


def last(key: str) -> str:
    """The name of an array or camera itself, behind its folders."""
    return re.split(r"[./]", key)[-1]


def prefix_of(key: str) -> str:
    """``left_`` or ``right_``, where a key names an arm; else empty."""
    match = _SIDE.search(last(key))
    return f"{match[1].lower()}_" if match else ""


def role_of(key: str, width: int) -> tuple[str, ...]:
    """Names of the columns of an array that is a position, a quaternion or a gripper by its name.

    The order of a quaternion is not known by it.
    """
    name, prefix = last(key), prefix_of(key)
    if GRIPPER_ARRAY.search(name):
        return tuple(f"{prefix}gripper_{i}" for i in range(width))
    if _POSITION_ARRAY.search(name) and width == 3:
        return tuple(f"{prefix}{axis}" for axis in "xyz")
    if _QUATERNION_ARRAY.search(name) and width == 4:
        return tuple(f"{prefix}quat_{i}" for i in range(width))
    return ()


def joined_states(recording_widths: Mapping[str, int]) -> tuple[str, ...]:
    """Candidates of the state among arrays that lie side by side: joints, and poses of the hand.

    Args:
        recording_widths: columns by array.
    """
    keys = tuple(recording_widths)
    grippers = [k for k in keys if GRIPPER_ARRAY.search(last(k)) and "vel" not in last(k).lower()]
    joints = [
        k
        for k in keys
        if JOINT_ARRAY.search(last(k)) and k not in grippers and recording_widths[k] > 1
    ]
    positions = [
        k for k in keys if _POSITION_ARRAY.search(last(k)) and recording_widths[k] in (3, 6, 7)
    ]
    candidates = []
    for parts in ([k for k in joints if k not in positions], positions):
        if not parts:
            continue
        taken: list[str] = []
        for part in parts:
            taken.append(part)
            if recording_widths[part] == 3:
                stem = re.sub(r"_?pos(?:ition)?$", "", part, flags=re.I)
                taken += [k for k in keys if k.startswith(stem) and _QUATERNION_ARRAY.search(k)][:1]
            taken += [g for g in grippers if _same_robot(part, g)][:1]
        candidates.append(JOIN.join(taken))
    return tuple(candidates)


def _same_robot(one: str, other: str) -> bool:
    """True for arrays of one folder whose names begin alike: robot0_eef_pos, robot0_gripper."""
    heads = [re.match(r"(?:robot\d+_)?(?:left_|right_)?", last(key)) for key in (one, other)]
    folders = [key[: len(key) - len(last(key))] for key in (one, other)]
    return folders[0] == folders[1] and len({head[0] for head in heads if head}) == 1


def channel_orders(encoded: Iterable[bool]) -> tuple[str, ...]:
    """Orders that the images of cameras may have; `encoded` says which cameras keep files.

    A row has one order for all views: of files and pixels beside each other, only RGB.
    """
    forms = set(encoded)
    return {frozenset((True,)): (RGB, BGR), frozenset((False,)): (RGB, BGR_PIXELS)}.get(
        frozenset(forms), (RGB,)
    )


def evenly(count: int, most: int) -> list[int]:
    """At most `most` of the numbers 0 .. count - 1, evenly spaced, both ends included."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int)).tolist()


def looked_at_first(count: int) -> tuple[list[int], int]:
    """Order of `count` episodes in which those whose images are read come first, and their number.

    So `shots[i]` and `arrays[i]` of a recording are of one episode.
    """
    shown = set(evenly(count, LOOKED_AT))
    return sorted(range(count), key=lambda place: place not in shown), len(shown)


def shots_of(images: Images) -> Shots:
    """Small images of one camera, evenly spaced over its episode.

    Raises:
        ValueError: one of them cannot be decoded.
    """
    frames: Int64 = np.array(evenly(len(images), IMAGES))
    taken = images.take(frames)
    pixels = [load_image(taken[i], size=SIDE, channel_order=RGB) for i in range(len(frames))]
    return Shots(np.stack(pixels), frames)
