"""A real server, recorded frames, and clients that are wrong in one way each."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks.server_process import Server, server
from configs import models
from data.rows.contracts import contracts_of
from data.rows.mixtures import mixture
from data.rows.table import dataset
from data.sources import open_mixture
from data.stream.pipeline import Frame, recorded_frames
from eval.client.remote import RemotePolicy
from eval.client.transports import HttpTransport
from eval.robot.controller import HoldPose, RobotController
from eval.robot.guard import ActionGuard, GuardLimits
from eval.robot.realtime import STRATEGIES, ChunkStream, Timing
from scripts.evaluation.client_stages import compare_frame, recorded_observation
from scripts.random_weights import write_random_checkpoint
from tests.quick_compile import QUICK_COMPILE
from xvla_jax.config import XVLAConfig
from xvla_jax.contract import Contract
from xvla_jax.policy import Policy
from xvla_jax.processor import Processor

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
SIDE = 32
PROCESSOR = Processor(image_size=SIDE, text_length=12)
(CONTRACT,) = contracts_of([dataset("libero_demos")], num_actions=30)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with random weights, which says that it was trained on the demonstrations."""
    folder = tmp_path_factory.mktemp("compared") / "tiny"
    shape = dataclasses.replace(models.TINY, num_actions=30)
    config = XVLAConfig.from_dict(models.model_dict(shape, action_mode="ee6d"))
    write_random_checkpoint(
        folder, config, PROCESSOR, seed=0, dtype="float32", on_tensor=lambda *_: None
    )
    contract = Contract(action_space="ee6d", **CONTRACT)
    (folder / "action_contract.json").write_text(json.dumps([contract.to_dict()]))
    return folder


@pytest.fixture(scope="module")
def running(checkpoint: Path) -> Iterator[Server]:
    flags = ("--device=cpu", "--views=2", "--max_batch=1", "--inspect", "--any_domain")
    with server(checkpoint, flags, xla_flags=QUICK_COMPILE) as started:
        yield started


@pytest.fixture(scope="module")
def frame(demos: Path) -> Frame:
    (source,) = open_mixture(mixture("libero_demos"), demos)
    frames = list(
        recorded_frames(
            source, count=6, num_actions=30, num_views=3, image_size=SIDE,
            tokenize=lambda texts: PROCESSOR.tokenize(texts),
        )
    )  # fmt: skip
    assert len({one.name for one in frames}) == 6
    assert frames[0].images[0].shape[:2] != (SIDE, SIDE)
    return frames[0]  # open: an inverted gripper shows in a channel that the model does not see


def _images(change: Callable[[list[np.ndarray]], list[np.ndarray]]) -> Callable[[Any], Any]:
    return lambda seen: {**seen, "images": change(seen["images"])}


def _proprio(change: Callable[[np.ndarray], None]) -> Callable[[Any], Any]:
    def apply(seen: Any) -> Any:
        row = seen["proprio"].copy()
        change(row)
        return {**seen, "proprio": row}

    return apply


def _interleaved(row: np.ndarray) -> None:
    row[3:9] = row[[3, 6, 4, 7, 5, 8]]  # of contiguous; the made-up poses are no rotations


def _inverted(row: np.ndarray) -> None:
    row[9] = 1 - row[9]


def _bilinear(image: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BILINEAR))


FAULTS: dict[str, tuple[Callable[[Any], Any], str, str]] = {
    "bgr": (_images(lambda v: [i[..., ::-1] for i in v]), "pixels", "BGR"),
    "flip": (_images(lambda v: [v[0], v[1][::-1]]), "pixels", "view 1: flipped upside down"),
    "order": (_images(lambda v: v[::-1]), "pixels", "views in another order"),
    "filter": (_images(lambda v: [*map(_bilinear, v)]), "pixels", "another filter (bilinear)"),
    "layout": (_proprio(_interleaved), "proprio", "the other rotation layout"),
    "gripper": (_proprio(_inverted), "proprio", "gripper polarity"),
    "domain": (lambda seen: {**seen, "domain_id": 0}, "domain", "wrong domain"),
    "trim": (
        lambda seen: {**seen, "instruction": seen["instruction"] + " \n"}, "ids", "not trimmed"
    ),
}  # fmt: skip


def test_faults_are_named(running: Server, frame: Frame) -> None:
    transport = HttpTransport(f"http://127.0.0.1:{running.port}", token=None, timeout_s=60.0)
    right = compare_frame(transport, lambda seen: seen, frame, seed=3)
    assert [f.stage for f in right] == [
        "request", "domain", "views", "pixels", "ids", "proprio", "action"
    ]  # fmt: skip
    assert not [f for f in right if f.difference]
    for name, (fault, stage, words) in FAULTS.items():
        findings = [f for f in compare_frame(transport, fault, frame, seed=3) if f.difference]
        assert findings, name
        assert (findings[0].stage, words in findings[0].difference) == (stage, True), (
            name,
            findings,
        )
    refused = compare_frame(transport, lambda seen: {**seen, "instruction": ""}, frame, seed=3)
    assert [f.stage for f in refused] == ["request"]
    assert "language_instruction" in refused[0].difference


def _compare(
    running: Server, demos: Path, path: Path, *more: str
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "scripts.compare_client", "--dataset=libero_demos"]
    command += [f"--root={demos}", f"--server=http://127.0.0.1:{running.port}", "--frames=2"]
    environ = {**os.environ, "COLUMNS": "160", "PYTHONPATH": str(path)}
    return subprocess.run(
        [*command, *more],
        cwd=ROOT, env=environ, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def test_the_command(running: Server, demos: Path, tmp_path: Path) -> None:
    right = _compare(running, demos, tmp_path)
    assert right.returncode == 0, right.stdout + right.stderr
    assert "contract" in right.stdout
    (tmp_path / "robot.py").write_text(
        "def sent(seen):\n    return {**seen, 'images': [i[..., ::-1] for i in seen['images']]}\n"
    )
    wrong = _compare(running, demos, tmp_path, "--client=robot:sent")
    assert wrong.returncode == 1, wrong.stdout + wrong.stderr
    assert "pixels  <- first difference" in wrong.stdout
    assert "blue and red are swapped (BGR)" in wrong.stdout


@pytest.mark.parametrize("scheme", ["http", "ws"])
def test_the_remote_policy_is_the_policy(
    running: Server, checkpoint: Path, frame: Frame, scheme: str
) -> None:
    remote = RemotePolicy(
        f"{scheme}://127.0.0.1:{running.port}", expected=CONTRACT, timeout_s=60.0, steps=3
    )
    local = Policy.from_pretrained(checkpoint)
    seen: Any = recorded_observation(frame)
    remote_chunk = remote.act([seen], seed=[5])
    np.testing.assert_allclose(remote_chunk, local.act([seen], seed=5, steps=3), atol=1e-5)
    rows = remote_chunk[0, 4:12]
    asked: Any = {**seen, "prefix": rows, "prefix_committed": 3}
    again = remote.act([asked], seed=[6])
    np.testing.assert_array_equal(again[0, :3], rows[:3])
    np.testing.assert_allclose(again, local.act([asked], seed=6, steps=3), atol=1e-5)
    small = RemotePolicy(
        f"{scheme}://127.0.0.1:{running.port}", expected=CONTRACT, timeout_s=60.0, steps=3,
        resize=True, encoding="png",
    )  # fmt: skip
    np.testing.assert_array_equal(small.act([seen], seed=[5]), remote_chunk)
    for one in (remote, small):
        one.close()


def test_a_robot_is_driven_through_the_server(running: Server, frame: Frame) -> None:
    """In real time at 50 Hz: it holds until the first answer, then moves within its limits."""
    limits = GuardLimits(
        rotation_layout="contiguous", arms=(0,), control_hz=50.0,
        workspace_low=(-1.0, -1.0, -1.0), workspace_high=(1.0, 1.0, 1.0),
        speed=0.5, turn_rate=2.0, jerk=1e6, gripper=(0.0, 1.0), observation_age=5.0,
    )  # fmt: skip
    timing = Timing(
        horizon=5, stride=1, feedback_channels=9, rotation_layout="contiguous", arms=(0,)
    )  # fmt: skip
    seen = recorded_observation(frame)
    pose = np.zeros(20, np.float32)
    pose[3:9] = 1, 0, 0, 0, 1, 0
    guard, asked = ActionGuard(limits), []
    policy = RemotePolicy(
        f"ws://127.0.0.1:{running.port}", expected=CONTRACT, timeout_s=60.0, steps=2
    )

    def observe() -> dict[str, Any]:
        asked.append(time.monotonic())
        return seen

    stream = ChunkStream(STRATEGIES["inpaint"], timing, relative_channels=())
    hold = HoldPose(longest_steps=3000)
    with RobotController(policy, stream, guard, hold, seed_of=lambda query: query) as robot:
        robot.reset(proprio=pose, pose=pose)
        rows = [pose]
        while len(asked) < 4 and len(rows) < 3000:
            rows.append(robot.step(observe))
            time.sleep(0.02)
    assert len(asked) == 4
    ways = np.linalg.norm(np.diff([row[:3] for row in rows], axis=0), axis=1)
    assert ways.max() > 0
    assert ways.max() <= 0.5 / 50 + 1e-6
    np.testing.assert_array_equal(rows[1], pose)
