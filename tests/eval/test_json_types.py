"""Every field of each JSON that eval/ reads, replaced by every type: read, or refused in a line."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval.files import FileError, write_json
from eval.recording import demonstrations
from eval.recording.libero_absolute import REPORT, Conversion, Demonstration
from eval.runs.golden_frame import (
    GoldenFrameError,
    check_simulator,
    first_frame,
    frame_name,
    save_frame,
)
from eval.runs.journal import JOURNAL, JournalError
from eval.runs.receipt import RESULTS
from tests.eval import fakes
from tests.eval.evaluations import NOISE, PLAN, TASK, contestant, evaluate
from tests.json_mutants import MODULE, SLOW_STEP, mutants

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = 97  # one mutant of so many by default
STEPS = [SAMPLE, pytest.param(SLOW_STEP, marks=pytest.mark.slow)]


def some(content: Any, every: int) -> Iterator[tuple[str, Any]]:
    for number, mutant in enumerate(mutants(content)):
        if number % every == 0:
            yield mutant


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of two evaluations: a and b, each with receipt, films, traces and journal."""
    folder = tmp_path_factory.mktemp("evaluated")
    for name in ("a", "b"):
        out = folder / name
        write_json(out / RESULTS, evaluate(out, contestant(name, NOISE), film=name))
    return folder


@pytest.mark.parametrize("every", STEPS)
@pytest.mark.parametrize(
    ("module", "arguments"),
    [("merge_results", ["a", "--out=merged"]), ("compare_results", ["a", "b"])],
)
def test_commands_read_a_receipt_or_refuse_it(
    evaluated: Path, module: str, arguments: list[str], every: int
) -> None:
    result = subprocess.run(
        [
            *(sys.executable, "-m", "tests.eval.command_sweep", f"scripts.{module}"),
            *(str(evaluated / "a" / RESULTS), str(every)),
            *(
                str(evaluated / a) if "=" not in a else f"--out={evaluated}/merged"
                for a in arguments
            ),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=3000,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    *wrong, tried = result.stdout.splitlines()
    assert wrong == []
    assert int(tried.split()[0]) > 10


def refused(read: Callable[[], object], *errors: type[Exception]) -> str:
    """Message of the error that `read` ends with, if it is one of these."""
    try:
        read()
    except errors as error:
        return str(error)
    return ""


@pytest.mark.parametrize("every", STEPS)
@pytest.mark.parametrize("number", [0, 1, -1], ids=["identity", "call", "episode"])
def test_a_journal_is_resumed_or_refused(number: int, every: int, tmp_path: Path) -> None:
    task = dataclasses.replace(TASK, plan=PLAN[:2])
    evaluate(tmp_path, contestant("a", NOISE), task=task)
    path = tmp_path / JOURNAL
    lines = path.read_text().splitlines()
    content = json.loads(lines[number])
    assert {0: "identity", 1: "call", -1: "episode"}[number] in content
    evaluate(tmp_path, contestant("a", NOISE), task=task)  # unchanged, it is resumed
    assert path.read_text().splitlines() == lines
    for name, mutant in some(content, every):
        changed = list(lines)
        changed[number] = json.dumps(mutant)
        path.write_text("\n".join(changed) + "\n")
        message = refused(
            lambda: evaluate(tmp_path, contestant("a", NOISE), task=task), JournalError
        )
        assert "\n" not in message, name
        assert not message or JOURNAL in message or "the journal" in message, name


@pytest.mark.parametrize("every", STEPS)
def test_a_golden_frame_is_compared_or_refused(every: int, tmp_path: Path) -> None:
    pool: Any = fakes.LocalPool(fakes.SPEC, 2)
    name = frame_name(fakes.SPEC)
    save_frame(tmp_path, name, first_frame(pool, fakes.SPEC)[1])
    path = tmp_path / f"{name}.json"
    content = json.loads(path.read_text())
    for mutated, mutant in some(content, every):
        path.write_text(json.dumps(mutant))
        message = refused(
            lambda: check_simulator(pool, fakes.SPEC, tmp_path, accept=False),
            FileError,
            GoldenFrameError,
        )
        assert "\n" not in message, mutated
    path.write_text(json.dumps(content))
    assert check_simulator(pool, fakes.SPEC, tmp_path, accept=False)[1].state == "identical"


def test_images_of_a_golden_frame_have_the_sizes_of_its_json(tmp_path: Path) -> None:
    pool: Any = fakes.LocalPool(fakes.SPEC, 2)
    name = frame_name(fakes.SPEC)
    save_frame(tmp_path, name, first_frame(pool, fakes.SPEC)[1])
    image = tmp_path / f"{name}.blocks.png"
    content = image.read_bytes()
    for damaged in (b"", content[:40], b"x" * 99, content[:16] + b"\xff" * 8 + content[24:]):
        image.write_bytes(damaged)
        with pytest.raises(FileError, match=r"blocks\.png"):
            check_simulator(pool, fakes.SPEC, tmp_path, accept=False)


def recording(folder: Path) -> demonstrations.Recording:
    return demonstrations.Recording(
        folder, fakes.SPEC, num_episodes=2, wander=0.0, rate_hz=10.0, seed=0
    )


def conversion(folder: Path) -> Conversion:
    demo = Demonstration("libero_goal", "task", 0, np.zeros(3), np.zeros((2, 7)))
    return Conversion(folder, [demo], {"no_motion": 1e-4})


@pytest.mark.parametrize("every", STEPS)
@pytest.mark.parametrize(
    ("make", "file", "content"),
    [
        (recording, demonstrations.LEDGER, {"failures": {"1": "the expert did not solve it"}}),
        (
            conversion,
            REPORT,
            {
                "demos": {
                    "libero_goal/task/demo_0": {
                        "outcome": "no",
                        "steps": 3,
                        "no_ops": 2,
                        "seconds": 1.0,
                    }
                }
            },
        ),
    ],
    ids=["recording", "conversion"],
)
def test_a_recording_is_resumed_or_refused(
    make: Any, file: str, content: dict[str, Any], every: int, tmp_path: Path
) -> None:
    report = make(tmp_path)
    stored = {**(report.ledger() if make is recording else report.report()), **content}
    write_json_any(tmp_path / file, stored)
    make(tmp_path).missing()  # unchanged, it is read
    for name, mutant in some(stored, every):
        write_json_any(tmp_path / file, mutant)
        message = refused(lambda: make(tmp_path).missing(), ValueError)
        assert "\n" not in message, name
        assert not message or str(tmp_path) in message, name
    assert MODULE not in sys.modules


def write_json_any(path: Path, value: Any) -> None:
    """Writes what `write_json` refuses too."""
    path.write_text(json.dumps(value))
