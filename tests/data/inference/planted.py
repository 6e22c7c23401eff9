"""Robots in memory whose conventions are known: what `infer` says is held against `TRUTH`."""

import dataclasses
import functools

import numpy as np

from data.inference.recording import ACTION, STATE, Recording, Shots
from data.poses.rotations import about

EPISODES, FRAMES, RATE_HZ = 16, 150, 30.0
OPEN = ""
DEGREES = np.array([360 / np.pi] * 5 + [100.0])  # joints that turn by up to 140 degrees
LEAD = 3  # frames after which the arm is where its command says
LOOKED_AT, IMAGES, SIDE = 4, 24, 64
MAIN, WRIST = "observation.images.front", "observation.images.wrist"
NAMES = (
    *("shoulder_pan.pos", "shoulder_lift.pos", "elbow_flex.pos", "wrist_flex.pos"),
    *("wrist_roll.pos", "gripper.pos"),
)
POSE_NAMES = ("x", "y", "z", "qx", "qy", "qz", "qw", "gripper")
TEXT = "put the red cube on the plate"
# of the arm of joints, and of that of poses
TRUTH = {
    "state_key": STATE,
    "kind": "joints",
    "channels": "0-5",
    "grippers": "5",
    "gripper_closed": "low",
    "unit": "rad",
    "targets": "action",
    "views": f"{MAIN},{WRIST}",
    "channel_order": "rgb",
    "rate_hz": "30",
    "instruction": "recorded",
}
POSE_TRUTH = {
    **{k: v for k, v in TRUTH.items() if k not in ("channels", "unit", "targets")},
    "kind": "poses",
    "arms": "1",
    "grippers": "7",
    "position_unit": "m",
    "rotation": "quaternion xyzw",
}


def reaches(rng, width, size):
    """Smooth ways [FRAMES, width] between points within `size` of zero, with a stop at each."""
    here, rows = rng.uniform(-size, size, width), []
    while len(rows) < FRAMES:
        there = rng.uniform(-size, size, width)
        steps = int(rng.integers(15, 30))
        share = np.linspace(0, 1, steps)[:, None]
        rows += list(here + (there - here) * (10 * share**3 - 15 * share**4 + 6 * share**5))
        rows += [there] * int(rng.integers(1, 6))
        here = there
    return np.array(rows[:FRAMES])


def grips(rng):
    """Command and reading [FRAMES] of a gripper, 1 = open, that holds something in the middle."""
    first, last = FRAMES // 3 + rng.integers(-8, 8), 2 * FRAMES // 3 + rng.integers(-8, 8)
    time = np.arange(FRAMES)
    command = np.where((time >= first) & (time < last), 0.0, 1.0)
    held = rng.uniform(0.15, 0.45)  # of the way: what is held is as wide
    reading = np.empty(FRAMES)
    reading[0] = 1.0
    for t in range(1, FRAMES):
        aim = max(command[t - 1], held)
        reading[t] = reading[t - 1] + np.clip(aim - reading[t - 1], -0.2, 0.2)
    return command, reading


def late(rows, frames):
    """Rows `frames` later; the first one is repeated."""
    return np.concatenate([np.repeat(rows[:1], frames, axis=0), rows[: len(rows) - frames]])


def scene(rng, side):
    """A textured table in warm colours: uint8[side, side, 3]."""
    blocks = rng.uniform(40, 200, (side // 4, side // 4))
    grey = np.kron(blocks, np.ones((4, 4)))
    return np.stack([grey, 0.7 * grey, 0.4 * grey], axis=-1).astype(np.uint8)


def static_view(rng, where):
    """Images of a camera that stands: a small hand moves over the table. `where` [n, 2] in 0..1."""
    images = np.repeat(scene(rng, SIDE)[None], len(where), axis=0)
    for image, (row, column) in zip(images, (where * (SIDE - 12)).astype(int), strict=True):
        image[row : row + 12, column : column + 12] = (230, 120, 40)
    return images


def carried_view(rng, where):
    """Images of a camera at the hand: the table passes below it."""
    table = scene(rng, 4 * SIDE)
    places = (where * 3 * SIDE).astype(int)
    return np.stack([table[r : r + SIDE, c : c + SIDE] for r, c in places])


def shots_of(rng, parts, view):
    """Shots of a camera in the first episodes; the first two columns of `parts` move the hand."""
    every = np.concatenate(parts)[:, :2]
    low, high = every.min(axis=0), every.max(axis=0)
    shots = []
    for rows in parts[:LOOKED_AT]:
        frames = np.linspace(0, FRAMES - 1, IMAGES).round().astype(int)
        shots.append(Shots(view(rng, (rows[frames, :2] - low) / (high - low)), frames))
    return tuple(shots)


@functools.cache
def joint_recording(seed=0):
    """An SO-101 in radians as LeRobot records it: commands lead the state, gripper 1 = open."""
    rng = np.random.default_rng(seed)
    states, actions = [], []
    for _ in range(EPISODES):
        way = reaches(rng, 5, 1.2)
        command, reading = grips(rng)
        actions.append(np.column_stack([way, command]))
        measured = late(way, LEAD) + rng.normal(0, 1e-3, way.shape) + 0.01
        states.append(np.column_stack([measured, reading]))
    return Recording(
        name="desk",
        storage="lerobot",
        robot_type="so101_follower",
        rate_hz=RATE_HZ,
        arrays={STATE: tuple(states), ACTION: tuple(actions)},
        names={STATE: NAMES, ACTION: NAMES},
        clocks=tuple(np.arange(FRAMES) / RATE_HZ for _ in range(EPISODES)),
        shots={
            MAIN: shots_of(rng, states, static_view),
            WRIST: shots_of(rng, states, carried_view),
        },
        texts=(TEXT,) * EPISODES,
        rgb=True,
    )


def hands(rng, tilt=0.25):
    """Positions [FRAMES, 3] (m) and rotations [FRAMES, 3, 3] of a hand that points down."""
    way = reaches(rng, 4, 1.0)
    position = np.array([0.45, 0.0, 0.2]) + way[:, :3] * np.array([0.15, 0.25, 0.1])
    lean = reaches(rng, 2, tilt / 4)
    turns = about("z", 1.2 * way[:, 3]) @ about("x", np.pi + lean[:, 0]) @ about("y", lean[:, 1])
    return position, turns


def quaternions(turns):
    """Quaternions [T, 4], xyzw, without jumps of sign."""
    traces = turns[:, 0, 0] + turns[:, 1, 1] + turns[:, 2, 2]
    four = np.stack(
        [
            1 + 2 * turns[:, 0, 0] - traces,
            1 + 2 * turns[:, 1, 1] - traces,
            1 + 2 * turns[:, 2, 2] - traces,
            1 + traces,
        ],
        axis=1,
    )
    rows = []
    for turn, squares in zip(turns, four, strict=True):
        w, (x, y, z) = (
            squares[3],
            (turn[2, 1] - turn[1, 2], turn[0, 2] - turn[2, 0], turn[1, 0] - turn[0, 1]),
        )
        if w > 0.1:
            q = np.array([x, y, z, w])
        else:
            i = int(np.argmax(squares[:3]))
            q = (turn[i] + turn[:, i]) * 1.0
            q[i] = squares[i]
            q = np.append(q, (x, y, z)[i])
        q = q / np.linalg.norm(q)
        rows.append(q if not rows or q @ rows[-1] >= 0 else -q)
    return np.array(rows)


@functools.cache
def pose_recording(seed=0):
    """A hand over a table, as x, y, z (m), quaternion and gripper, measured and commanded."""
    rng = np.random.default_rng(seed)
    base = joint_recording(seed)
    states, actions = [], []
    for _ in range(EPISODES):
        position, turns = hands(rng)
        command, reading = grips(rng)
        pose = np.column_stack([position, quaternions(turns)])
        states.append(np.column_stack([pose, reading]))
        actions.append(np.column_stack([pose, command]))
    return dataclasses.replace(
        base,
        robot_type="",
        arrays={STATE: tuple(states), ACTION: tuple(actions)},
        names={STATE: POSE_NAMES, ACTION: POSE_NAMES},
        shots={
            MAIN: shots_of(rng, states, static_view),
            WRIST: shots_of(rng, states, carried_view),
        },
    )


def changed(recording, **arrays):
    """The recording with functions applied to its arrays, `state=` and `action=`."""
    keys = {"state": STATE, "action": ACTION}
    new = {
        keys[name]: tuple(function(rows.copy()) for rows in recording.arrays[keys[name]])
        for name, function in arrays.items()
    }
    return dataclasses.replace(recording, arrays={**recording.arrays, **new})


def reversed_last(rows):
    rows[:, -1] = 1 - rows[:, -1]
    return rows


def in_blue(recording):
    """The recording with red and blue exchanged."""
    shots = {
        key: tuple(Shots(one.images[..., ::-1], one.frames) for one in parts)
        for key, parts in recording.shots.items()
    }
    return dataclasses.replace(recording, shots=shots)


def with_action(recording, function):
    """The recording with an action that is a function of the state."""
    actions = tuple(function(rows) for rows in recording.arrays[STATE])
    return dataclasses.replace(recording, arrays={**recording.arrays, ACTION: actions})


def beside(one, other):
    """Arrays of two recordings with their columns side by side."""
    return {
        key: tuple(
            np.column_stack(pair) for pair in zip(one.arrays[key], other.arrays[key], strict=True)
        )
        for key in one.arrays
    }


def both(recording, function):
    """The recording with a function applied to the state and to the action."""
    return changed(recording, state=function, action=function)


def renamed(recording, names):
    """The recording with other names of its columns; none: without."""
    return dataclasses.replace(recording, names={STATE: names, ACTION: names} if names else {})
