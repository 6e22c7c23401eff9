"""The table and the plot at the end of a run."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.console import Console

from scripts.run_summary import CURVES, report, summary
from xvla_jax.planning.roofline import StepWork, write_work
from xvla_jax.training.telemetry import JsonLines


def log(workdir: Path, first: int, last: int, session: float) -> None:
    workdir.mkdir(exist_ok=True)
    lines = JsonLines(workdir)
    for step in range(first + 10, last + 1, 10):
        values: dict[str, Any] = {
            "loss": 1000.0 / step,
            "loss/libero": 900.0 / step,
            "grad_norm": 2.0,
            "learning_rate/vlm": 1e-5,
            "samples_per_s": 40.0,
            "step_s": 0.2,
            "data_wait_share": 0.05,
            "skipped_steps": 1.0,
            "bad_episodes/a/clock": 2.0,
            "bad_episodes/b/malformed": 1.0,
            "left_out/a/empty_text": 40.0,
            "session": session,
            "session_start": first,
            "session_s_total": 10.0 + 0.2 * (step - first),
            "useful_s_total": 0.2 * (step - first),
        }
        lines.write(step, values | ({"val_l1": 0.04, "val_l1/a": 0.04} if step % 50 == 0 else {}))
    lines.close()


@pytest.fixture
def workdir(tmp_path: Path) -> Path:
    """A run that was killed at 70 and resumed from 50."""
    log(tmp_path / "run", 0, 70, 1.0)
    log(tmp_path / "run", 50, 100, 2.0)
    return tmp_path / "run"


def test_rows_cover_all_processes_of_a_run(workdir: Path) -> None:
    rows = summary(workdir)
    assert rows == {
        "steps": "100",
        "loss": "12.91",  # mean of 1000 / 60 .. 1000 / 100
        "gradient norm": "2",
        "samples/s": "40",
        "step, s": "0.2",
        "waiting for data": "5.0%",
        "loss of libero": "11.62",  # likewise
        "lowest validation l1": "0.04 at step 50",
        "validation l1": "0.04",
        "skipped steps": "1",
        "bad episodes": "3",
        "left out: a/empty_text": "40",
        "time of all processes": "44 s",  # 24 + 20
        "processes": "2",
        "steps done again": "20",
        "goodput": "45.5%",  # (10 + 10) / 44
    }


def test_runs_stand_side_by_side_and_are_drawn(workdir: Path) -> None:
    other = workdir.parent / "other"
    log(other, 0, 40, 3.0)
    output = io.StringIO()
    report([workdir, other], workdir / CURVES, Console(file=output, width=100))
    line = next(line for line in output.getvalue().splitlines() if "steps done again" in line)
    assert [cell.strip() for cell in line.split("│")[2:4]] == ["20", "0"]
    with Image.open(workdir / CURVES) as picture:
        assert picture.size == (1500, 800)
        assert len(picture.convert("RGB").getcolors(2**20) or ()) > 50, "something is drawn"


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"metrics\.jsonl is not there or empty"):
        summary(tmp_path)


def test_the_roofline_is_shown_where_the_run_has_written_its_work(workdir: Path) -> None:
    write_work(workdir, StepWork("TPU v5 lite", 1, int(19.7e12), None))  # of 0.2 s steps
    assert summary(workdir)["roofline"] == "0.1 s by FLOPs, 50% reached"
    write_work(workdir, StepWork("cpu", 1, 1, None))
    assert summary(workdir)["roofline"] == "no peak known for cpu"
