"""The end of a run is what happened, whatever its summary needs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scripts import run_summary
from scripts.places.workdir import Workdir
from scripts.training.session import stopped_line, summarise
from xvla_jax.training.telemetry import METRICS_NAME


def test_a_run_that_has_logged_nothing_has_no_summary(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summarise(Workdir(tmp_path))
    assert capsys.readouterr().out == ""
    assert list(tmp_path.iterdir()) == []


def test_a_summary_that_cannot_be_written_is_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / METRICS_NAME).write_text(json.dumps({"step": 3, "loss": 0.5}) + "\n")
    curves = tmp_path / run_summary.CURVES
    curves.mkdir()
    summarise(Workdir(tmp_path))
    assert caplog.messages == [f"the summary is not written: {curves}: Is a directory"]
    curves.rmdir()
    summarise(Workdir(tmp_path))
    assert len(caplog.messages) == 1
    assert curves.read_bytes().startswith(b"\x89PNG")
    assert "curves are in" in capsys.readouterr().out


def test_a_stop_says_what_is_saved() -> None:
    assert stopped_line(7) == "stopped at step 7; the same command resumes from there"
    assert "before step 1, so nothing is saved" in stopped_line(0)
