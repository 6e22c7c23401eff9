"""Replays transcripts of the authors' clients through ours: `compare.py --adapter`."""

from __future__ import annotations

import json
from typing import Any, Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from eval.client.transports import array_text
from eval.tasks.profiles import ClientProfile
from eval.tasks.table import TASKS, TaskSpec, task_spec

from .episode import EpisodeClient


def request_body(profile: ClientProfile, observation: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the body of `POST /act` for an `Observation`; see `profiles.Wire`."""
    wire = profile.wire
    proprio = np.asarray(observation["proprio"], wire.proprio_dtype)
    encode = {"json_numpy": array_text, "json_list": lambda values: json.dumps(values.tolist())}
    body = {
        "proprio": encode[wire.proprio_form](proprio),
        "language_instruction": observation["instruction"],
        "domain_id": observation["domain_id"],
    }
    for slot, image in enumerate(observation["images"]):
        body[f"image{slot}"] = array_text(image)
    if wire.denoising_steps is not None:
        body["steps"] = wire.denoising_steps
    return body


# Start of a client's family, a part of its script -> row of the task table; the first match counts.
_CLIENTS: tuple[tuple[str, str, str], ...] = (
    ("libero", "", "libero_spatial"),
    ("calvin", "", "calvin_abc_d"),
    ("widowx", "spoon", "widowx_spoon"),
    ("widowx", "carrot", "widowx_carrot"),
    ("widowx", "block", "widowx_blocks"),
    ("widowx", "cube", "widowx_blocks"),
    ("widowx", "stack", "widowx_blocks"),
    ("widowx", "eggplant", "widowx_eggplant"),
    *(
        (f"google_{setting}", script, f"google_{setting}_{task}")
        for setting in ("vm", "va")
        for script, task in (
            ("coke", "coke"),
            ("near", "near"),
            ("place", "place_in"),
            ("open", "open_close"),
            ("close", "open_close"),
            ("drawer", "open_close"),
        )
    ),
    ("robotwin", "", "robotwin_easy"),
    ("vlabench", "", "vlabench_track_1"),
    ("softfold", "", "softfold"),
)

Post = Callable[[Mapping[str, Any]], Mapping[str, Any]]


def row_of(client_name: str, info: Mapping[str, Any]) -> TaskSpec:
    """Returns the task row that a transcript was made under.

    Args:
        client_name: as the transcript has it, "google_VM/client_coke_can" say.
        info: the transcript's top level; which names LIBERO's suite.

    Raises:
        ValueError: no row is known for it.
    """
    family, _, script = client_name.lower().replace("-", "_").partition("/")
    for known, part, row in _CLIENTS:
        if family.startswith(known) and part in (script or family):
            suite = str(info.get("suite", row))
            return task_spec(suite if suite in TASKS else row)
    raise ValueError(
        f"no row for client {client_name!r}; eval/client/transcripts.py knows "
        + ", ".join(f"{known}/{part}" if part else known for known, part, _ in _CLIENTS)
    )


class TranscriptClient:
    """An `EpisodeClient` behind the interface that compare.py drives."""

    def __init__(self, spec: TaskSpec, post: Post) -> None:
        self.spec = spec
        self.client = EpisodeClient(spec.client)
        self._post = post

    def reset(self, obs: Mapping[str, Any], instruction: str) -> None:
        """Starts an episode; its first observation comes again with the first `act`."""
        del obs
        self.client.reset()
        self.client.instruct(instruction)

    def act(self, obs: Mapping[str, Any], instruction: str) -> NDArray[np.floating]:
        """One environment action; asks the server where nothing is queued."""
        self.client.instruct(instruction)
        if self.client.needs_chunk:
            request = self.client.request(obs)
            self.client.put(self._post(request_body(self.spec.client, request))["action"])
        return self.client.act()


def client(name: str, info: Mapping[str, Any], post: Post) -> TranscriptClient:
    """Factory for `compare.py --adapter eval.client.transcripts:client`."""
    return TranscriptClient(row_of(name, info), post)
