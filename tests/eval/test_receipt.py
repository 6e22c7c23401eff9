"""The receipt holds every episode, and JSON files are never half written."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from eval.receipt import receipt, summary, versions, write_json
from eval.rollout import EpisodeResult
from eval.tasks import TASKS, Episode


def results(successes: Sequence[bool]) -> list[EpisodeResult]:
    return [
        EpisodeResult(
            episode=Episode(3, 30 + k, 172 + k),
            success=success,
            steps=60 + k if success else 200,
            queries=3,
            seconds=1.234567,
            state_hash=f"{k:016x}",
            rows=np.zeros((60, 20), np.float32),
            error=None,
        )
        for k, success in enumerate(successes)
    ]


def test_summary() -> None:
    made = summary(results([True, False, True, False]))
    assert (made["successes"], made["episodes"], made["rate"]) == (2, 4, 0.5)
    assert made["mean_steps_to_success"] == 61.0
    assert made["wilson95"] == pytest.approx([0.1500, 0.8500], abs=5e-5)
    assert made["simulator_errors"] == 0


def test_summary_of_failures_and_of_nothing() -> None:
    assert summary(results([False]))["mean_steps_to_success"] is None
    assert summary([])["rate"] is None


def test_the_receipt_survives_json(tmp_path: Path) -> None:
    made = receipt(
        TASKS["quickstart"],
        {"trained": results([True, False]), "expert": results([True])},
        instruction="pick up",
        renderer="llvmpipe",
        num_workers=2,
        seed=42,
    )
    path = tmp_path / "results.json"
    write_json(path, made)
    read = json.loads(path.read_text())
    assert read == made
    assert list(read["policies"]) == ["trained", "expert"]
    assert read["policies"]["trained"]["episodes"][0] == {
        "task_id": 3,
        "init_state": 30,
        "seed": 172,
        "state_hash": "0000000000000000",
        "success": True,
        "steps": 60,
        "queries": 3,
        "seconds": 1.23,
        "error": None,
    }
    assert read["protocol"]["step_limit"] == 150
    assert read["versions"]["numpy"] == np.__version__


def test_versions_name_only_what_is_installed() -> None:
    assert "no-such-simulator" not in versions()
    assert all(versions().values())


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"a": float("nan")})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]
