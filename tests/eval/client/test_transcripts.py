"""Our client sends what the authors' clients sent and acts as they did, step by step."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval.client.transcripts import TranscriptClient, client, row_of

FOLDER = Path(__file__).resolve().parents[2] / "fixtures" / "golden_eval"
NAMES = ("libero", "calvin", "widowx_spoon", "google_vm_coke")

# The README of the transcripts: metres, radians (modulo a turn), and quaternions up to their sign.
ACTION_ATOL = {"libero": 2e-5, "calvin": 5e-6, "widowx_spoon": 2e-5, "google_vm_coke": 2e-5}
PROPRIO_ATOL = 2e-6


def decoded(text: str) -> np.ndarray:
    value = json.loads(text)
    if isinstance(value, list):
        return np.asarray(value)
    raw = base64.b64decode(value["__numpy__"])
    return np.frombuffer(raw, np.dtype(value["dtype"])).reshape(value["shape"])


class Server:
    """Answers with the recorded chunks and remembers what it was asked."""

    def __init__(self) -> None:
        self.step = 0
        self.asked: list[tuple[int, Mapping[str, Any]]] = []
        self.chunks: list[np.ndarray] = []

    def __call__(self, body: Mapping[str, Any]) -> dict[str, Any]:
        self.asked.append((self.step, body))
        return {"action": self.chunks.pop(0).tolist()}


def same_requests(server: Server, meta: dict[str, Any], proprio: np.ndarray) -> None:
    assert [step for step, _ in server.asked] == [query["step"] for query in meta["queries"]]
    for (_, body), query, state in zip(server.asked, meta["queries"], proprio, strict=True):
        assert set(body) == set(query["keys"])
        for key in ("language_instruction", "domain_id", "steps"):
            assert body.get(key) == query.get(key)
        sent = decoded(body["proprio"])
        assert query["proprio"]["encoding"] == (
            "json_numpy" if "__numpy__" in body["proprio"] else "json_list"
        )
        np.testing.assert_allclose(sent, state, rtol=0, atol=PROPRIO_ATOL)
        for key, want in query["images"].items():
            image = decoded(body[key])
            assert [list(image.shape), image.dtype.str] == [want["shape"], want["dtype"]]
            assert hashlib.sha256(image.tobytes()).hexdigest() == want["sha256"]


def same_action(name: str, made: np.ndarray, want: np.ndarray) -> None:
    assert made.dtype == want.dtype
    difference = np.abs(made - want)
    if name == "calvin":
        turned = np.abs(made[3:7] + want[3:7])
        difference[3:7] = min(difference[3:7], turned, key=np.max)
    elif name != "libero":
        difference[3:6] = np.abs((difference[3:6] + np.pi) % (2 * np.pi) - np.pi)
    assert difference[:3].max() <= 2e-6
    assert difference.max() <= ACTION_ATOL[name]
    assert difference[-1] <= 1e-7


def same_state(ours: TranscriptClient, arrays: Any, prefix: str, step: int) -> None:
    assert ours.client.queued == arrays[prefix + "queue_len"][step]
    proprio = ours.client.proprio
    assert proprio is not None
    held = arrays[prefix + "feedback_proprio"][step]
    np.testing.assert_allclose(proprio, held, rtol=0, atol=PROPRIO_ATOL)
    if prefix + "feedback_xyz" in arrays:
        base = ours.client.xyz_base
        assert base is not None
        np.testing.assert_allclose(base, arrays[prefix + "feedback_xyz"][step], atol=2e-6)


@pytest.mark.parametrize("name", NAMES)
def test_the_public_transcripts(name: str) -> None:
    info = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    with np.load(FOLDER / f"{name}.npz") as packed:
        arrays = dict(packed)
    server = Server()
    ours = client(info["client"], {k: v for k, v in info.items() if k != "episodes"}, server)
    for meta in info["episodes"]:
        prefix = f"ep{meta['index']}_"
        server.asked, server.chunks = [], list(arrays[prefix + "chunk"])
        raw = {
            key[len(prefix) + 4 :]: arrays[key] for key in arrays if key.startswith(prefix + "obs_")
        }
        actions = arrays[prefix + "action"]
        for server.step in range(meta["n_steps"]):
            seen = {key: value[server.step].copy() for key, value in raw.items()}
            instruction = [text for first, text in meta["instructions"] if first <= server.step][-1]
            if server.step == 0:
                ours.reset(seen, instruction)
            same_action(name, ours.act(seen, instruction), actions[server.step])
            same_state(ours, arrays, prefix, server.step)
        same_requests(server, meta, arrays[prefix + "request_proprio"])


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("libero", "libero_10"),
        ("calvin", "calvin_abc_d"),
        ("widowx/client_spoon", "widowx_spoon"),
        ("widowx/client_carrot", "widowx_carrot"),
        ("widowx/client_blocks", "widowx_blocks"),
        ("widowx/client_eggplant", "widowx_eggplant"),
        ("google_VM/client_coke_can", "google_vm_coke"),
        ("google_VM/client_near", "google_vm_near"),
        ("google_VA/client_open_close", "google_va_open_close"),
        ("google-VA/client_drawer", "google_va_open_close"),
        ("google_VM/client_place_in", "google_vm_place_in"),
        ("robotwin", "robotwin_easy"),
        ("vlabench", "vlabench_track_1"),
        ("softfold", "softfold"),
    ],
)
def test_clients_have_rows(name: str, row: str) -> None:
    assert row_of(name, {"suite": "libero_10"} if name == "libero" else {}).name == row


def test_an_unknown_client_lists_the_known() -> None:
    with pytest.raises(ValueError, match=r"client 'widowx/client_tea'.*widowx/carrot"):
        row_of("widowx/client_tea", {})
