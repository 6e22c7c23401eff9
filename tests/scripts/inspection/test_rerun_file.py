"""The file for the Rerun viewer, read back by Rerun's own command."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.inspection.rerun_file import write_episode
from tests.citations import ROOT

SO101 = ROOT / "tests" / "fixtures" / "so101"


def printed(file: Path, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "rerun", "rrd", *words, str(file)],
        env={**os.environ, "RERUN_ANALYTICS_ENABLED": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.mark.slow
def test_an_episode_is_written_for_the_viewer(tmp_path: Path) -> None:
    pytest.importorskip("rerun", reason="needs rerun-sdk (extra rerun)")
    file = tmp_path / "so101.rrd"
    frames = write_episode("so101", SO101, file)
    assert frames == 77
    printed(file, "verify")
    shown = printed(file, "print", "-v")
    for entity in ("/state/gripper.pos", "/images/observation.images.wrist", "/instruction"):
        assert entity in shown
    assert f"with {frames} rows" in shown
