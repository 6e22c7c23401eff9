"""Planted robots in the layouts of ACT and ALOHA, of robomimic and of RLDS: in memory, as files."""

import dataclasses
import json

import h5py
import numpy as np
import tensorflow_datasets as tfds

from data.inference.recording import ACTION, BGR, BGR_PIXELS, RGB, STATE, Recording
from tests.data.inference.planted import MAIN, WRIST, joint_recording, pose_recording
from tests.data.readers.rlds_sets import TEXT, floats, write_set
from tests.data.small_sets import encoded

QPOS = "observations/qpos"
HIGH, HAND = "observations/images/cam_high", "observations/images/cam_wrist"
EEF, QUAT, FINGERS = "obs/robot0_eef_pos", "obs/robot0_eef_quat", "obs/robot0_gripper_qpos"
AGENT, EYE = "obs/agentview_image", "obs/robot0_eye_in_hand_image"
FULL_STATE = f"{EEF}+{QUAT}+{FINGERS}"
OPENING = 0.04  # m of a finger


def act(recording=None):
    """The planted arm of joints as ACT stores it: no names, no rate, no text, pixels."""
    recording = recording or joint_recording()
    return dataclasses.replace(
        recording,
        storage="hdf5",
        robot_type="",
        rate_hz=None,
        arrays={
            QPOS: recording.arrays[STATE],
            "observations/qvel": tuple(
                30 * np.diff(rows, axis=0, append=rows[-1:]) for rows in recording.arrays[STATE]
            ),
            ACTION: recording.arrays[ACTION],
        },
        names={},
        states=(QPOS,),
        clocks=(),
        shots={HIGH: recording.shots[MAIN], HAND: recording.shots[WRIST]},
        texts=("",) * len(recording.texts),
        rgb=False,
        channel_orders=(RGB, BGR_PIXELS),
    )


def robomimic(recording=None, names=("qx", "qy", "qz", "qw")):
    """The planted hand as robomimic stores it from robosuite: arrays of parts, steps as actions."""
    recording = recording or pose_recording()
    states = recording.arrays[STATE]
    steps = [np.diff(rows[:, :3], axis=0, append=rows[-1:, :3]) / 0.05 for rows in states]
    return dataclasses.replace(
        recording,
        storage="hdf5",
        rate_hz=20.0,
        rate_from="control_freq of env_args states",
        arrays={
            EEF: tuple(rows[:, :3] for rows in states),
            QUAT: tuple(rows[:, 3:7] for rows in states),
            FINGERS: tuple(OPENING * rows[:, 7:] * (1, -1) for rows in states),
            "obs/object": tuple(rows[:, :2] + 0.1 for rows in states),
            "actions": tuple(
                np.column_stack([step, 0 * step, 1 - 2 * rows[:, 7]])
                for step, rows in zip(steps, recording.arrays[ACTION], strict=True)
            ),
        },
        names={QUAT: names} if names else {},
        states=(FULL_STATE,),
        action="actions",
        clocks=(),
        shots={AGENT: recording.shots[MAIN], EYE: recording.shots[WRIST]},
        texts=("",) * len(recording.texts),
        rgb=True,
        channel_orders=(RGB, BGR_PIXELS),
    )


def rlds(recording=None):
    """The planted hand as an RLDS set has it: `observation.state` without names, a text a step."""
    recording = recording or pose_recording()
    return dataclasses.replace(
        recording,
        storage="rlds",
        rate_hz=None,
        names={},
        clocks=(),
        text_key="language_instruction",
        shots={
            "observation.image": recording.shots[MAIN],
            "observation.hand": recording.shots[WRIST],
        },
        channel_orders=(RGB, BGR),
    )


def short(recording: Recording, episodes=8, every=3, first=0, end=None):
    """The first episodes, and every third frame of them, of a stretch."""
    return dataclasses.replace(
        recording,
        rate_hz=recording.rate_hz and recording.rate_hz / every,
        arrays={
            k: tuple(r[first:end:every] for r in v[:episodes]) for k, v in recording.arrays.items()
        },
        texts=recording.texts[:episodes],
    )


def images_of(recording, camera, episode, count):
    """An image for each of `count` frames: of the shots, the nearest in time."""
    shots = recording.shots[camera][episode % len(recording.shots[camera])].images
    return shots[np.linspace(0, len(shots) - 1, count).round().astype(int)]


def write_act(folder, recording, *, compressed=False, attributes=None):
    """An episode a file, as ALOHA's record script writes them; returns the folder."""
    folder.mkdir(parents=True)
    count = len(recording.arrays[ACTION])
    for episode in range(count):
        frames = len(recording.arrays[ACTION][episode])
        with h5py.File(folder / f"episode_{episode}.hdf5", "w") as file:
            file.attrs["sim"] = False
            for name, value in (attributes or {}).items():
                file.attrs[name] = value
            for key, parts in recording.arrays.items():
                file[key] = parts[episode].astype(np.float32)
            for camera in recording.shots:
                images = images_of(recording, camera, episode, frames)
                file[camera] = padded(images) if compressed else images
            if compressed:
                file.attrs["compress"] = True
                file["compress_len"] = np.zeros((len(recording.shots), frames), np.float32)
    return folder


def padded(images):
    """Rows of JPEG files with zeros behind. cv2.imencode takes an RGB array for BGR."""
    known = {image.tobytes(): b"" for image in images}
    files = []
    for image in images:
        key = image.tobytes()
        known[key] = known[key] or encoded(np.ascontiguousarray(image[..., ::-1]), "JPEG")
        files.append(known[key])
    rows = np.zeros((len(files), max(map(len, files))), np.uint8)
    for row, data in zip(rows, files, strict=True):
        row[: len(data)] = np.frombuffer(data, np.uint8)
    return rows


def write_robomimic(path, recording, *, environment=None):
    """All episodes in one file, as robomimic's conversion of robosuite writes them."""
    about = {"env_name": "Lift", "type": 1, "env_kwargs": {"control_freq": 20, "robots": ["Panda"]}}
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = json.dumps(environment or about)
        for episode in range(len(recording.arrays["actions"])):
            demo = data.create_group(f"demo_{episode}")
            frames = len(recording.arrays["actions"][episode])
            demo.attrs["num_samples"] = frames
            for key, parts in recording.arrays.items():
                demo[key] = parts[episode].astype(np.float64)
                if key.startswith("obs/"):
                    demo[f"next_{key}"] = parts[episode].astype(np.float64)
            for name, width in (("states", 45), ("rewards", 1), ("dones", 1)):
                demo[name] = np.zeros((frames, width))
            for camera in recording.shots:
                demo[camera] = images_of(recording, camera, episode, frames)
        masks = file.create_group("mask")
        masks["train"] = np.array([b"demo_0"])
    return path


def write_rlds(root, name, recording):
    """The set as tfds writes it; returns its folder."""
    image = tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg")
    observation = {key.partition(".")[2]: image for key in recording.shots}
    observation |= {
        key.partition(".")[2]: floats(recording.width(key))
        for key in recording.arrays
        if key.startswith("observation.")
    }
    steps = {
        "observation": observation,
        "language_instruction": TEXT,
        "language_embedding": floats(512),
        "reward": np.float32,
        "is_first": np.bool_,
        **{k: floats(recording.width(k)) for k in recording.arrays if "." not in k},
    }
    episodes = []
    for episode in range(len(recording.texts)):
        frames = len(recording.episodes(recording.states[0])[episode])
        pictures = {c: images_of(recording, c, episode, frames) for c in recording.shots}
        episodes.append({"steps": [_step(recording, pictures, episode, i) for i in range(frames)]})
    return write_set(root, name, {"steps": steps}, {"train": episodes}).parent


def _step(recording, pictures, episode, frame):
    step = {
        "observation": {},
        "language_instruction": recording.texts[episode],
        "language_embedding": np.zeros(512, np.float32),
        "reward": 0.0,
        "is_first": frame == 0,
    }
    values = {k: v[episode][frame].astype(np.float32) for k, v in recording.arrays.items()}
    for key, value in {**values, **{c: p[frame] for c, p in pictures.items()}}.items():
        folder, _, name = key.partition(".")
        if name:
            step[folder][name] = value
        else:
            step[key] = value
    return step
