"""Describes your robot: reads a recording, writes a dataset row with the evidence for each choice.

python -m scripts.new_robot FOLDER --out=my_robot.py --check

FOLDER is a LeRobot dataset (v2.0, v2.1, v3), an RLDS set, or HDF5 episodes: a folder or file in the
layout of ACT and ALOHA, or of robomimic. What the numbers do not decide is asked on a
terminal, taken from --answer=NAME=VALUE, or left as a line that refuses to run until you fill it
in; exit status 2 while something is open. A complete row ends with the command that trains on it.
--rerun writes my_robot.rrd for the Rerun viewer, and needs rerun-sdk.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from scripts.terminal import Command, UsageError

if TYPE_CHECKING:
    from data.inference.choices import Choice, Question

OPEN = 2  # exit status
SAMPLES = 3  # that --check draws

COMMAND = Command(__doc__, positional=("root",))
_ROOT = COMMAND.DEFINE_string("root", None, "Folder or HDF5 file of the recording.", required=True)
_OUT = COMMAND.DEFINE_string("out", "my_robot.py", "The module to write.")
_ANSWERS = COMMAND.DEFINE_multi_string("answer", [], "NAME=VALUE, once for each question.")
_FORCE = COMMAND.DEFINE_bool("force", False, "Replace the file if it is there.")
_CHECK = COMMAND.DEFINE_bool(
    "check", False, "Run the data doctor on the row and draw three samples beside it."
)
_RERUN = COMMAND.DEFINE_bool(
    "rerun", False, "Write an episode beside the row for the Rerun viewer (extra rerun)."
)


def _given(texts: list[str]) -> dict[str, str]:
    answers = {}
    for text in texts:
        name, separator, value = text.partition("=")
        if not separator:
            raise UsageError(f"--answer is {text!r}; it has the form NAME=VALUE")
        answers[name] = value
    return answers


def _ask(question: Question, choice: Choice) -> str:
    """Asks on the terminal until an answer fits; an empty line leaves the choice open."""
    from data.inference.choices import answered

    print(f"\n{question.asks}\n  {choice.evidence}\n  allowed: {', '.join(choice.allowed)}")
    while True:
        answer = input(f"  {question.name} (empty: later): ").strip()
        if not answer:
            return ""
        try:
            answered(choice, question.name, answer)
        except ValueError as error:
            print(f"  {error}")
        else:
            return answer


def _report(choices: Mapping[str, Choice]) -> None:
    for name, choice in choices.items():
        print(f"{name:<16} {choice.certainty:<9} {choice.value or '-'}")
        if choice.is_open:
            print(f"    {choice.evidence}\n    --answer={name}=VALUE: {', '.join(choice.allowed)}")


def _training(row: str, root: Path, joints: int) -> str:
    """Returns the command that trains on the row; 0 joints: on poses."""
    words = f"N-joints{joints}" if joints else "N"
    command = ["python", "-m", "scripts.train", f"--config=configs/own_robot.py:{words}"]
    command += ["--workdir=W", "--config.init_from=CKPT", "--config.new_domains=*=nearest"]
    command += [f"--config.data.mixture={row}", f"--config.data.root={root}"]
    return shlex.join(command)


def _rerun(out: Path, row: str, root: Path) -> None:
    """Writes an episode for the Rerun viewer."""
    from scripts.inspection.rerun_file import write_episode

    file = out.with_suffix(".rrd")
    frames = write_episode(row, root, file)
    print(f"{file}: {frames} frames; rerun {file} shows them")


def _check(out: Path, row: str, root: Path) -> int:
    """Runs the doctor on the written row and draws samples; returns the doctor's exit status."""
    from scripts import inspect_data
    from scripts.inspection.samples import draw_samples

    drawing = out.with_suffix(".png")
    draw_samples(row, root, drawing, count=SAMPLES)
    print(f"{drawing}: {SAMPLES} samples as training takes them")
    page = out.with_suffix(".html")
    flags = [f"--data={row}", f"--root={root}", f"--out={page}"]
    return inspect_data.COMMAND.run(inspect_data.main, ["inspect_data.py", *flags])


def main(_: list[str]) -> int:
    """Writes the row and returns the exit status."""
    from data.inference.columns import JOINTS, joint_columns
    from data.inference.formats import read_recording
    from data.inference.questions import infer
    from data.inference.row_text import row_source

    folder, out = Path(_ROOT.value).resolve(), Path(_OUT.value)
    if out.suffix != ".py" or not out.stem.isidentifier():
        raise UsageError(f"--out is {out}; a module has a name such as my_robot.py")
    if out.exists() and not _FORCE.value:
        raise UsageError(f"--out is {out}, which is there; give another name, or --force")
    if _RERUN.value:
        from scripts.inspection.rerun_file import viewer

        viewer()  # named before any work, where it is not installed
    answers = _given(_ANSWERS.value)
    try:
        recording = read_recording(folder)
        choices = infer(recording, answers, _ask if sys.stdin.isatty() else None)
        text = row_source(recording, choices, command=COMMAND.line, domain=out.stem)
    except ValueError as error:
        raise UsageError(str(error)) from error
    out.write_text(text, encoding="utf-8")
    _report(choices)
    left = [name for name, choice in choices.items() if choice.is_open]
    if left:
        print(f"{out}: {len(left)} open, {', '.join(left)}; the row refuses to run until then")
        return OPEN
    root = recording.root or folder
    row = f"{out.stem}:ROW"
    joints = len(joint_columns(recording, choices)) if choices["kind"].value == JOINTS else 0
    print(f"{out}: complete. With N demonstrations, and its folder on PYTHONPATH, train by")
    print(_training(row, root, joints))
    sys.path.insert(0, str(out.parent.resolve()))
    if _RERUN.value:
        _rerun(out, row, root)
    return _check(out, row, root) if _CHECK.value else 0


if __name__ == "__main__":
    sys.exit(COMMAND.run(main, sys.argv))
