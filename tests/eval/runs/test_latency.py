"""The price of latency on a world with a known answer: only inpainting overcomes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval.robot.realtime import STRATEGIES, ChunkStream, Timing
from eval.runs.latency import Drive, curve, draw_curve, drive, summary
from tests.eval.point_world import PointWorld, TwoWays

TIMING = Timing(
    horizon=8, stride=1, feedback_channels=9, rotation_layout="contiguous", arms=(0,)
)  # fmt: skip
EPISODES, LIMIT = 12, 60


def cell(strategy: str, latency: int, limit: int = LIMIT) -> dict[str, Any]:
    drives = [
        drive(
            PointWorld(),
            TwoWays(),
            ChunkStream(STRATEGIES[strategy], TIMING, relative_channels=()),
            None,
            latency=latency,
            step_limit=limit,
            seed_of=lambda query, n=n: 1000 * n + query,
        )
        for n in range(EPISODES)
    ]
    return summary(drives)


LATENCIES = (0, 2, 4, 7)
DOCUMENTED = {  # in docs/control.md: successes of 12
    "blocking": [12, 12, 12, 0],  # 40 steps of motion, and 5 queries of 7 steps are too many
    "switch": [12, 7, 7, 7],  # the robot jumps where the policy changes its mind
    "ensemble": [9, 7, 4, 4],  # the mean of two ways is the post
    "inpaint": [12, 12, 12, 12],
}


@pytest.mark.parametrize("strategy", DOCUMENTED)
def test_the_table_of_the_docs(strategy: str) -> None:
    cells = [cell(strategy, latency) for latency in LATENCIES]
    assert [one["successes"] for one in cells] == DOCUMENTED[strategy]
    if strategy == "inpaint":
        assert max(one["largest_step_m"] for one in cells) < 0.06
        # it holds before the first answer only
        assert [one["mean_held"] for one in cells] == list(LATENCIES)
    if strategy == "switch":
        assert cells[-1]["largest_step_m"] > cells[0]["largest_step_m"] + 0.2


def test_waiting_is_safe_and_slow() -> None:
    patient = cell("blocking", 7, limit=120)
    assert patient["rate"] == 1.0
    assert patient["mean_held"] == 7 * patient["mean_queries"]


def test_a_table_does_not_depend_on_how_many_worlds_there_are() -> None:
    cells: list[tuple[str, int]] = []

    def table(worlds: int) -> Any:
        return curve(
            [PointWorld() for _ in range(worlds)],
            TwoWays(),
            {
                name: lambda name=name: ChunkStream(STRATEGIES[name], TIMING, relative_channels=())
                for name in ("switch", "inpaint")
            },
            range(6),
            latencies=(0, 4),
            step_limit=LIMIT,
            seed_of=lambda episode, query: 1000 * episode + query,
            on_cell=lambda name, latency, cell: cells.append((name, latency)),
        )

    one = table(1)
    assert one == table(3)
    assert cells[:4] == [("switch", 0), ("switch", 4), ("inpaint", 0), ("inpaint", 4)]
    assert one["inpaint"][4]["rate"] == 1.0


def test_numbers_of_a_cell() -> None:
    cell = summary([Drive(True, 10, 2, 1, 0.1), Drive(False, 20, 4, 3, 0.3)])
    assert (cell["rate"], cell["mean_steps"], cell["mean_held"]) == (0.5, 15.0, 2.0)
    assert (cell["mean_queries"], cell["largest_step_m"]) == (3.0, 0.3)
    assert 0.0 < cell["low"] < 0.5 < cell["high"] < 1.0


def test_the_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    row = {latency: summary([Drive(latency < 4, 1, 1, 0, 0.0)]) for latency in (0, 4)}
    draw_curve({"blocking": row}, tmp_path / "curve.png", title="x")
    data = (tmp_path / "curve.png").read_bytes()
    assert data.startswith(b"\x89PNG")
    assert len(data) > 5000
    assert np.frombuffer(data, np.uint8).std() > 10
