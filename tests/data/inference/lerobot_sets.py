"""Planted robots that LeRobot itself has written: tests/fixtures/lerobot_sets, and how they came.

python -m tests.data.inference.lerobot_sets EXE_0_4 EXE_0_3

EXE_0_4 and EXE_0_3 are Pythons of environments that have lerobot 0.4.4 (format v3.0) and 0.3.3
(v2.1). Each runs write_with_lerobot.py, beside this file, on the numbers that this program plants.
"""

import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from data.inference.recording import ACTION, STATE
from tests.data.inference.layouts import images_of, short
from tests.data.inference.planted import NAMES, POSE_NAMES, joint_recording, pose_recording

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures" / "lerobot_sets"
WRITER = Path(__file__).with_name("write_with_lerobot.py")
# folder -> the planted robot, the names of its columns
SETS = {
    "poses_v30": (pose_recording, POSE_NAMES),
    "joints_v21": (joint_recording, NAMES),
}
RATE_HZ = 10
# of 150 frames of an episode, 30 with both switches of the gripper
EPISODES, EVERY, FIRST, END = 8, 3, 30, 120


def planted(name):
    """Recording that was given to LeRobot: the first episodes of a planted robot."""
    make, _ = SETS[name]
    return short(make(), EPISODES, EVERY, FIRST, END)


def halved(images):
    """Images of half the side and somewhat darker, so that the fixtures stay small."""
    n, height, width, _ = images.shape
    blocks = images.reshape(n, height // 2, 2, width // 2, 2, 3)
    return (0.6 * blocks.mean(axis=(2, 4))).round().astype(np.uint8)


def arrays_of(name):
    """Arrays of all frames of a set, as the writer takes them."""
    recording = planted(name)
    frames = [len(rows) for rows in recording.arrays[STATE]]
    images = {
        f"image/{camera}": np.concatenate(
            [halved(images_of(recording, camera, i, count)) for i, count in enumerate(frames)]
        )
        for camera in recording.shots
    }
    return {
        "state": np.concatenate(recording.arrays[STATE]).astype(np.float32),
        "action": np.concatenate(recording.arrays[ACTION]).astype(np.float32),
        "episode": np.repeat(np.arange(len(frames)), frames),
        "names": np.array(SETS[name][1]),
        "task": np.array(recording.texts[0]),
        "fps": np.array(RATE_HZ),
        **images,
    }


def main(words: list[str]) -> None:
    """Writes both folders."""
    for (name, _), executable in zip(SETS.items(), words, strict=True):
        with tempfile.TemporaryDirectory() as folder:
            numbers = Path(folder) / "numbers.npz"
            np.savez(numbers, **arrays_of(name))
            subprocess.run(
                [*shlex.split(executable), str(WRITER), str(numbers), str(FIXTURES / name)],
                check=True,
            )


if __name__ == "__main__":
    main(sys.argv[1:])
