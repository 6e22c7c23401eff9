"""A few of the kills that ``benchmarks.kills`` makes by the dozen."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from benchmarks.kills.killed_runs import SAVE_EVERY, measure

pytestmark = [pytest.mark.rlds, pytest.mark.slow]


def test_a_killed_run_comes_to_the_same_end(tmp_path: Path) -> None:
    outcomes = measure(tmp_path / "kills", kills=1, seed=0, report=logging.info)
    assert [outcome.name for outcome in outcomes] == ["SIGTERM", "SIGKILL"]
    for outcome in outcomes:
        assert len(outcome.lost) == 1
        assert outcome.failures == []
        assert outcome.differences == [], "from the run without a kill"
    terminated, killed = outcomes
    assert terminated.lost == [0]
    assert max(killed.lost) <= SAVE_EVERY
