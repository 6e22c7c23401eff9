"""The price of latency on a world with a known answer: only inpainting overcomes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval.robot.realtime import STRATEGIES, ChunkStream, Timing
from eval.runs.latency import (
    INSIDE,
    POSITION,
    VELOCITY,
    Drive,
    Seam,
    curve,
    draw_curve,
    drive,
    paired,
    summary,
)
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
    seams = Seam(0.004, 0.002), Seam(0.002, 0.004)
    cell = summary(
        [Drive(True, 10, 2, 1, 0.1, seams, (0.001,)), Drive(False, 20, 4, 3, 0.3, seams[:1])]
    )
    assert (cell["seams"], cell["outcomes"]) == (3, [True, False])
    assert cell[POSITION]["mean"] == pytest.approx(10 / 3)
    assert cell[VELOCITY]["worst"] == pytest.approx(4)
    assert cell[INSIDE]["p95"] == pytest.approx(1)
    assert (cell["rate"], cell["mean_steps"], cell["mean_held"]) == (0.5, 15.0, 2.0)
    assert (cell["mean_queries"], cell["largest_step_m"]) == (3.0, 0.3)
    assert 0.0 < cell["low"] < 0.5 < cell["high"] < 1.0


class _Straight:
    """A world in which each episode runs to its end."""

    def reset(self, episode: Any) -> np.ndarray:
        return np.zeros(20, np.float32)

    def observe(self) -> dict[str, Any]:
        return {"proprio": np.zeros(20, np.float32)}

    def step(self, row: np.ndarray) -> bool:
        return False


class _Ramps:
    """Chunks of 8 rows along x from 10 mm on, 10 mm a row; each further one lies 3 mm in y."""

    def __init__(self) -> None:
        self.calls = 0

    def act(self, observations: Any, *, seed: Any) -> np.ndarray:
        rows = np.zeros((1, 8, 20), np.float32)
        first = self.calls * TIMING.horizon
        rows[0, :, 0] = 0.01 * (first + 1 + np.arange(8))
        rows[0, :, 1] = 0.003 * self.calls
        self.calls += 1
        return rows


def test_a_seam_is_what_a_new_chunk_changes() -> None:
    # 8 rows, all carried out: the second chunk begins where the first has ended, 3 mm aside
    outcome = drive(
        _Straight(),
        _Ramps(),
        ChunkStream(STRATEGIES["switch"], TIMING, relative_channels=()),
        None,
        latency=0,
        step_limit=12,
        seed_of=lambda query: query,
    )
    (seam,) = outcome.seams
    assert seam.position == pytest.approx(np.hypot(0.01, 0.003))  # else it would hold its pose
    assert seam.velocity == pytest.approx(0.003)
    # 12 steps: the first has no velocity before it, the seam is not inside
    assert len(outcome.inside) == 10
    assert max(outcome.inside) == pytest.approx(0.003)  # leaving the seam


def test_a_seam_compares_with_the_chunk_that_still_runs() -> None:
    timing = Timing(
        horizon=4, stride=1, feedback_channels=9, rotation_layout="contiguous", arms=(0,)
    )  # fmt: skip

    class Apart(_Ramps):
        def act(self, observations: Any, *, seed: Any) -> np.ndarray:
            rows = super().act(observations, seed=seed)
            rows[0, :, 0] = 0.01 * (4 * (self.calls - 1) + 1 + np.arange(8))
            return rows

    def seams(strategy: str, latency: int) -> list[tuple[float, float]]:
        stream = ChunkStream(STRATEGIES[strategy], timing, relative_channels=())
        outcome = drive(
            _Straight(), Apart(), stream, None,
            latency=latency, step_limit=7 + latency, seed_of=lambda query: query,
        )  # fmt: skip
        return [(round(1000 * s.position, 3), round(1000 * s.velocity, 3)) for s in outcome.seams]

    # both chunks are on one line in x at the same steps: what is left is the 3 mm in y
    assert seams("switch", 0) == [(3.0, 3.0)]
    assert seams("switch", 2) == [(3.0, 3.0)]
    # the pose was held, so all of the way to the first row is new
    assert seams("blocking", 2) == [(10.44, 10.44)]


def test_pairs_of_two_cells() -> None:
    one, other = (
        summary([Drive(won, 1, 1, 0, 0.0) for won in wins])
        for wins in ([True, True, False], [True, False, False])
    )
    counts = paired(one, other)
    assert (counts.both, counts.only_first, counts.only_second, counts.neither) == (1, 1, 0, 1)
    assert one[POSITION] is None  # one chunk has no seam


def test_the_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    row = {latency: summary([Drive(latency < 4, 1, 1, 0, 0.0)]) for latency in (0, 4)}
    draw_curve({"blocking:30": row, "switch:10, frozen3": row}, tmp_path / "curve.png", title="x")
    data = (tmp_path / "curve.png").read_bytes()
    assert data.startswith(b"\x89PNG")
    assert len(data) > 5000
    assert np.frombuffer(data, np.uint8).std() > 10
