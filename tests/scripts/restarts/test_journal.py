"""Attempts of a supervised run are kept, and the time between them counts."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scripts.restarts import journal
from scripts.restarts.journal import Attempt, over_restarts, stopped_status
from tests.citations import ROOT


def _line(session: float, start: int, step: int, seconds: float, useful: float) -> dict[str, float]:
    return {
        "session": session,
        "session_start": start,
        "step": step,
        "session_s_total": seconds,
        "useful_s_total": useful,
    }


def test_without_a_supervisor_nothing_is_kept_and_a_stop_is_no_failure(tmp_path: Path) -> None:
    journal.begin(tmp_path, processes=1, devices=1, environ={})
    assert list(tmp_path.iterdir()) == []
    assert stopped_status({}) == 0
    assert stopped_status({journal.TOKEN: "a.1"}) == journal.RESUME


def test_an_attempt_is_begun_by_the_run_and_completed_by_its_supervisor(tmp_path: Path) -> None:
    for number in (1, 2):
        environ = {journal.TOKEN: f"a.{number}"}
        journal.begin(tmp_path, processes=4, devices=2, environ=environ)
    done = journal.finish(tmp_path, "a.2", ended=9.0, status=-6, cause="no answer", saved=40)
    assert done is not None
    assert (done.processes, done.devices, done.saved, done.launch) == (4, 2, 40, "a")
    assert journal.finish(tmp_path, "b.1", ended=9.0) is None, "its process 0 ran elsewhere"
    (tmp_path / journal.FOLDER / "attempt_0003.json").write_text("{")
    assert [attempt.token for attempt in journal.attempts(tmp_path)] == ["a.1", "a.2"]
    assert journal.attempts(tmp_path)[1] == done
    assert journal.attempts(tmp_path / "nowhere") == []


_CHILD = """
import pathlib, signal, sys, time
from scripts.restarts import journal
folder = pathlib.Path(sys.argv[1])
signal.signal(signal.SIGTERM, lambda *_: ((folder / "stopped").touch(), sys.exit()))
journal.follow_supervisor()
(folder / "ready").touch()
time.sleep(20)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a call of Linux")
def test_a_run_is_stopped_where_its_supervisor_is_killed(tmp_path: Path) -> None:
    start = "import subprocess, sys; subprocess.run([sys.executable, '-c', *sys.argv[1:]])"
    environ = os.environ | {journal.TOKEN: "a.1"}
    command = [sys.executable, "-c", start, _CHILD, str(tmp_path)]
    supervisor = subprocess.Popen(command, env=environ, cwd=ROOT)
    try:
        for name in ("ready", "stopped"):
            until = time.monotonic() + 20
            while not (tmp_path / name).exists():
                assert time.monotonic() < until, name
                time.sleep(0.02)
            supervisor.kill()
    finally:
        supervisor.kill()
        supervisor.wait()


def test_goodput_counts_the_time_between_attempts_and_no_step_twice() -> None:
    tried = [
        Attempt("a.1", 4, 1, began=100.0, ended=160.0),
        Attempt("a.2", 2, 1, began=180.0, ended=240.0),
    ]
    # 20 steps of 2 s, of which those behind step 10 were not saved; then 10 more of 4 s
    lines = [
        _line(100.0, 0, 10, 30.0, 20.0),
        _line(100.0, 0, 20, 55.0, 40.0),
        _line(180.0, 10, 20, 55.0, 40.0),
    ]
    run = over_restarts(tried, lines)
    assert run == {
        "attempts": 2,
        "seconds": 140.0,
        "idle_s": 20.0,
        "useful_s": 60.0,
        "goodput": pytest.approx(60 / 140),
    }


def test_a_launch_of_another_day_adds_its_own_time_alone() -> None:
    tried = [Attempt("a.1", 1, 1, 0.0, 50.0), Attempt("b.1", 1, 1, 90_000.0, 90_050.0)]
    assert over_restarts(tried, [])["seconds"] == 100.0
    assert over_restarts([], [])["goodput"] == 0.0


def test_an_attempt_whose_end_nobody_saw_lasts_until_its_last_line() -> None:
    lines = [_line(100.0, 0, 10, 30.0, 20.0)]
    run = over_restarts([Attempt("a.1", 1, 1, 100.0)], lines)
    assert run["seconds"] == 30.0
    assert run["goodput"] == pytest.approx(20 / 30)


def test_a_table_has_rows_for_a_supervised_run_alone(tmp_path: Path) -> None:
    assert journal.restart_rows(tmp_path, []) == {}
    for number, cause in enumerate(("no answer from process 3", ""), 1):
        journal.begin(tmp_path, processes=4, devices=1, environ={journal.TOKEN: f"a.{number}"})
        times = {"began": 100.0 * number, "ended": 100.0 * number + 75}
        journal.finish(tmp_path, f"a.{number}", cause=cause, status=len(cause), **times)
    lines = [_line(100.0, 0, 10, 70.0, 50.0), _line(200.0, 10, 20, 70.0, 55.0)]
    assert journal.restart_rows(tmp_path, lines) == {
        "restarts": "1",
        "time between attempts": "25 s",
        "goodput over restarts": "60.0%",  # 105 of 175 s
        "ended by: no answer from process 3": "1",
    }
