"""Writes a set with LeRobot's own dataset API; runs in its Python, see lerobot_sets.py."""

import inspect
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np


def main(numbers: str, out: str) -> None:
    """Writes the folder `out`, which must not exist."""
    dataset_class: Any = import_module("lerobot.datasets.lerobot_dataset").LeRobotDataset
    given: dict[str, Any] = dict(np.load(numbers))
    names, cameras = given["names"].tolist(), [k for k in given if k.startswith("image/")]
    vector = {"dtype": "float32", "shape": (len(names),), "names": names}
    features: dict[str, Any] = {"observation.state": vector, "action": vector}
    for key in cameras:
        shape = given[key].shape[1:]
        features[key.removeprefix("image/")] = {
            "dtype": "video",
            "shape": shape,
            "names": ["height", "width", "channels"],
        }
    dataset = dataset_class.create(
        repo_id=Path(out).name, fps=int(given["fps"]), features=features, root=out
    )
    # 0.3 takes the task beside the frame, 0.4 within it
    beside = "task" in inspect.signature(dataset.add_frame).parameters
    task, episodes = str(given["task"]), given["episode"]
    for i in range(len(episodes)):
        frame = {"observation.state": given["state"][i], "action": given["action"][i]}
        frame |= {key.removeprefix("image/"): given[key][i] for key in cameras}
        if beside:
            dataset.add_frame(frame, task=task)
        else:
            dataset.add_frame({**frame, "task": task})
        if i + 1 == len(episodes) or episodes[i + 1] != episodes[i]:
            dataset.save_episode()
    if hasattr(dataset, "finalize"):
        dataset.finalize()


if __name__ == "__main__":
    main(*sys.argv[1:])
