"""Reader for BridgeData V2 as it was collected: folders of JPEG files, numbers in pickles.

Any folder .../traj_group*/traj* below <root>/<storage_name> is an episode of n + 1 moments and n
actions: `images0/im_0.jpg` ..., `obs_dict.pkl` with `full_state` [n + 1, 7], `policy_out.pkl` with
the actions [n, 7], `lang.txt`. Episodes without lang.txt have no instruction and are not read,
unless the row states one. As in the RLDS release of the same data (row bridge_dataset), the last
moment is left out, and the pictures of images0 are the view image_0.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath
from numpy.typing import NDArray

from data.faults import BadEpisodeError, FaultError, attempt
from data.images import FilePictures
from data.readers.pickles import load_pickle
from data.spec import DatasetSpec
from data.trajectory import Trajectory, standard_trajectory

_log = logging.getLogger(__name__)

EPISODES = "traj_group*/traj*"
STATES, ACTIONS, TEXT = "obs_dict.pkl", "policy_out.pkl", "lang.txt"
# a line of lang.txt that is no instruction
_CONFIDENCE = "confidence"


class BridgeRawReader:
    """The episodes below a folder, opened for a dataset row; a part is one episode.

    Raises:
        FileNotFoundError: no episode with an instruction.
        ValueError: the first has not the row's arrays.
    """

    def __init__(self, spec: DatasetSpec, root: epath.PathLike) -> None:
        self.spec = spec
        top = Path(root) / spec.storage_name
        found = sorted(path for path in top.rglob(EPISODES) if path.is_dir())
        # a row that says what the text is needs none
        unread = spec.fixed_instruction is not None or spec.empty_text == "stated"
        self._folders = [path for path in found if unread or (path / TEXT).exists()]
        if not self._folders:
            raise FileNotFoundError(f"no {EPISODES}/{TEXT} below {top}, {len(found)} without it")
        if len(found) > len(self._folders):
            _log.info(
                "%s: %d of %d episodes have no instruction and are not read",
                spec.name,
                len(found) - len(self._folders),
                len(found),
            )
        self.episodes_per_part: tuple[int, ...] = (1,) * len(self._folders)
        try:
            self._read_state(self._folders[0])
        except LookupError as error:
            raise ValueError(f"dataset row {spec.name!r} {error} ({spec.written_in})") from error

    def read(self, part: int) -> Iterator[Trajectory | BadEpisodeError]:
        """The trajectory of episode number `part`; its pictures are read when drawn."""
        folder = self._folders[part]
        yield attempt(self.spec.name, str(folder), lambda: self._trajectory(folder))

    def _trajectory(self, folder: Path) -> Trajectory:
        raw = self._read_state(folder)
        return standard_trajectory(
            raw,
            self.spec,
            str(folder),
            instruction=_instruction(folder / TEXT),
            images=tuple(_pictures(folder, view) for view in self.spec.views),
        )

    def _read_state(self, folder: Path) -> dict[str, NDArray[Any]]:
        """Arrays by key, as long as there are actions; a LookupError tells what is missing."""
        observed = load_pickle(folder / STATES)
        actions = load_pickle(folder / ACTIONS)
        if not isinstance(observed, dict) or not isinstance(actions, list) or not actions:
            raise FaultError("malformed", f"{STATES} is no dictionary, or {ACTIONS} no list")
        if isinstance(actions[0], dict):
            actions = [step["actions"] for step in actions]
        recorded = {**observed, "actions": actions}
        missing = [key for key in self.spec.state_keys if key not in recorded]
        if missing:
            raise LookupError(
                f"reads {', '.join(missing)}, which {folder} does not have; it has "
                f"{', '.join(recorded)}"
            )
        arrays = {key: np.asarray(recorded[key], np.float64) for key in self.spec.state_keys}
        lengths = {key: len(rows) for key, rows in arrays.items()}
        if set(lengths.values()) - {len(actions), len(actions) + 1}:
            raise FaultError("unequal_lengths", f"arrays of unequal length: {lengths}")
        return {key: rows[: len(actions)] for key, rows in arrays.items()}


def _pictures(folder: Path, view: str) -> FilePictures:
    """All but the last picture of a view."""
    view = view.replace("image_", "images")
    count = sum(1 for _ in (folder / view).glob("im_*.jpg"))
    names = [f"{view}/im_{frame}.jpg" for frame in range(count - 1)]
    return FilePictures(folder, np.array(names, object))


def _instruction(path: Path) -> str:
    if not path.exists():
        return ""
    lines = path.read_text(encoding="utf-8").splitlines()
    return next((line for line in lines if line.strip() and _CONFIDENCE not in line), "").strip()
