"""`scripts.new_robot` on recordings of each format: the row, what stays open, and the samples."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.faults import MissingExtraError
from scripts.new_robot import COMMAND, OPEN, main

SETS = Path(__file__).resolve().parents[1] / "fixtures" / "lerobot_sets"
SO101 = Path(__file__).resolve().parents[1] / "fixtures" / "so101"
FRONT, WRIST = "observation.images.front", "observation.images.wrist"
# two episodes do not show these: too few switches, images of 64 px, a simulated room in blue
ANSWERS = {"gripper_closed": "low", "views": f"{FRONT},{WRIST}", "channel_order": "rgb"}


class Terminal(io.StringIO):
    """Lines that a user types."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO())


def run(*flags: str) -> int:
    return COMMAND.run(main, ["new_robot.py", *flags])


def answers(given: dict[str, str]) -> list[str]:
    return [f"--answer={name}={value}" for name, value in given.items()]


def test_what_two_episodes_do_not_show_stays_open(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "open_robot.py"
    assert run(str(SO101), f"--out={out}", "--check") == OPEN
    printed = capsys.readouterr().out
    assert "3 open, gripper_closed, views, channel_order; the row refuses to run" in printed
    assert "--answer=gripper_closed=VALUE: low, high" in printed
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=r"open_robot, line \d+: gripper_closed: low readings of"):
        __import__("open_robot")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_row_is_written_judged_and_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    out = tmp_path / "desk_robot.py"
    assert run(str(SO101), f"--out={out}", *answers(ANSWERS), "--check") == 0
    printed = capsys.readouterr().out
    (command,) = (line for line in printed.splitlines() if "scripts.train" in line)
    assert "--config=configs/own_robot.py:N-joints6 " in command
    assert " --config.data.mixture=desk_robot:ROW " in command
    assert "data doctor: ok" in printed
    shown = np.asarray(Image.open(out.with_suffix(".png")))
    images = shown[22:246, : 2 * 224 + 8]
    assert images.std() > 20  # two views of the first sample
    curves = shown[22:246, 680:1010].reshape(-1, 3)
    assert len(np.unique(curves, axis=0)) >= 6  # a colour for each joint
    assert out.with_suffix(".html").is_file()


def test_a_user_is_asked_on_a_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    typed = ["left", "low", f"{FRONT},{WRIST}", ""]
    monkeypatch.setattr(sys, "stdin", Terminal("\n".join(typed) + "\n"))
    out = tmp_path / "asked_robot.py"
    assert run(str(SO101), f"--out={out}") == OPEN
    printed = capsys.readouterr().out
    assert "At which end of its readings is each gripper closed?" in printed
    assert "gripper_closed is 'left', allowed is one of low, high" in printed
    assert "1 open, channel_order" in printed


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([str(SO101.parent)], "is no recording that is read: it has neither meta/info.json"),
        ([str(SO101 / "nowhere")], "is no recording that is read: it has neither meta/info.json"),
        ([str(SO101), "--answer=rgb"], "--answer is 'rgb'; it has the form NAME=VALUE"),
        ([str(SO101), "--answer=unit=turns"], "unit is 'turns', allowed is one of rad, deg"),
        ([str(SO101), "--answer=channels=0-9"], "channels is '0-9', allowed are columns 0..5"),
        ([str(SO101), "--answer=views=front"], "views is 'front', allowed are keys of"),
        ([], "--root must be given"),
    ],
)
def test_wrong_usage_ends_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    assert run(*flags, f"--out={tmp_path / 'robot.py'}") == 1
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 2
    assert not (tmp_path / "robot.py").exists()


def test_a_file_is_not_replaced_unasked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "robot.py"
    out.write_text("mine")
    assert run(str(SO101), f"--out={out}") == 1
    assert "which is there; give another name, or --force" in capsys.readouterr().err
    assert run(str(SO101), f"--out={out}", "--force") == OPEN
    assert "DatasetSpec" in out.read_text()
    assert run(str(SO101), f"--out={tmp_path / 'my-robot.py'}") == 1


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("joints_v21", ("joints", "0-5", "low", "rad", "action")),
        ("poses_v30", ("poses", "quaternion xyzw", "m", "low")),
    ],
)
def test_what_lerobot_wrote_needs_no_answer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, lines: tuple[str, ...]
) -> None:
    out = tmp_path / f"{name}_robot.py"
    assert run(str(SETS / name), f"--out={out}") == 0
    printed = capsys.readouterr().out
    values = [line.split(maxsplit=2)[2] for line in printed.splitlines() if len(line.split()) > 2]
    assert set(lines) <= set(values)
    assert f"--config.data.root={SETS / name}" in printed
    assert "fill_in(" not in out.read_text()


def test_without_the_viewer_it_is_named_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "rerun", None)
    out = tmp_path / "robot.py"
    # scripts/__init__.py prints it as one line
    with pytest.raises(MissingExtraError, match="rerun is not installed; it is in the extra 'rer"):
        run(str(SO101), f"--out={out}", "--rerun")
    assert not out.exists()
