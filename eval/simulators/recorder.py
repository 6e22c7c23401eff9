"""Demonstrations as .npz files, one episode each, for the RLDS writer in another process.

A file has n frames at a fixed rate, and scalars of the episode. Frame i has the images before
control step i * control_hz / rate_hz, the command that was followed until then, the measured pose,
and the command given in that control step.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from eval.client.episode import row_to_action
from eval.rotations import matrix_to_rot6d_contiguous
from eval.tasks.spec import Episode, TaskSpec

from .expert import ScriptedExpert
from .plans import plan_for

# Control steps recorded after success, so that action windows that end there do not shrink.
TAIL_STEPS = 10

OPEN = -1.0  # LIBERO's gripper command


def frame_stride(spec: TaskSpec, rate_hz: float) -> int:
    """Returns the control steps between two frames.

    Raises:
        ValueError: frames at `rate_hz` do not fall on control steps.
    """
    stride = round(spec.control_hz / rate_hz) if rate_hz > 0 else 0
    if stride < 1 or abs(stride * rate_hz - spec.control_hz) > 1e-9:
        raise ValueError(
            f"rate_hz is {rate_hz}; it must be the control rate {spec.control_hz} over 1, 2, 3..."
        )
    return stride


def record_episode(
    env: Any, spec: TaskSpec, episode: Episode, *, wander: float, rate_hz: float
) -> dict[str, Any]:
    """Lets the scripted expert act in `env`; returns the arrays and scalars of one `.npz`.

    Args:
        env: simulator adapter, as `eval.simulators.libero.LiberoEnv`.
        spec: row of the task; its rotation layout must be the recording's, "contiguous".
        episode: initial state and seed; the seed also draws the expert's excursions.
        wander: see `ScriptedExpert`.
        rate_hz: frames in a second of simulation.
    """
    client = spec.client
    if client.rotation != "contiguous":
        raise ValueError(f"{spec.name} has {client.rotation} rotations; recordings are contiguous")
    stride = frame_stride(spec, rate_hz)
    agentview, wrist = client.views
    env.reset(episode.init_state, episode.seed)
    scene = env.scene()
    expert = ScriptedExpert(
        plan_for(spec.suite, episode.task_id),
        scene,
        wander=wander,
        rng=np.random.default_rng(episode.seed),
        rotation=client.rotation,
    )
    command_pose = np.append(pose_row(scene.position, scene.matrix), OPEN)
    rows: dict[str, list[Any]] = {
        name: [] for name in ("agentview", "wrist", "command_pose", "ee_pose", "action")
    }
    solved_at = None
    for step in range(spec.step_limit):
        row = expert.act(scene)
        command = row_to_action(client, row)
        if step % stride == 0:
            rows["agentview"].append(env.image(agentview))
            rows["wrist"].append(env.image(wrist))
            rows["command_pose"].append(command_pose.astype(np.float32))
            rows["ee_pose"].append(pose_row(scene.position, scene.matrix).astype(np.float32))
            rows["action"].append(command)
        if env.step(command) and solved_at is None:
            solved_at = step
        if solved_at is not None and step >= solved_at + TAIL_STEPS:
            break
        command_pose = np.append(row[:9], command[6])
        scene = env.scene()
    return {
        **{name: np.stack(values) for name, values in rows.items()},
        "instruction": env.instruction,
        "task": f"{spec.suite}/{episode.task_id}",
        "suite": spec.suite,
        "init_state": episode.init_state,
        "seed": episode.seed,
        "success": solved_at is not None,
        "rate_hz": float(rate_hz),
        "image_size": spec.image_size,
    }


def save_episode(path: str, recording: dict[str, Any]) -> None:
    """Writes one `.npz`, which appears under its name only when it is complete."""
    partial = f"{path}.{os.getpid()}.partial"
    try:
        with open(partial, "wb") as file:
            np.savez_compressed(file, **recording)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        if os.path.exists(partial):
            os.remove(partial)


def pose_row(position: ArrayLike, matrix: ArrayLike) -> NDArray[np.float64]:
    """Position [3] and contiguous 6-D rotation of a matrix [3, 3], as one row [9]."""
    return np.concatenate((np.asarray(position), matrix_to_rot6d_contiguous(matrix)))
