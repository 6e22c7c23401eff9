"""The quickstart's stages: order, resumption, and what a failure leaves."""

from __future__ import annotations

import dataclasses
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from data.rows.table import dataset
from eval.files import FileError
from eval.tasks.table import task_spec
from scripts.demo.budget import CEILING, FLOOR, affordable_iters, fitting_iters
from scripts.demo.stages import (
    CERTIFY,
    RECORD,
    ROBOTS,
    SPEED,
    STAGES,
    STAGES_FILE,
    WRITE,
    Stage,
    filled,
    is_complete,
    read_ledger,
    run_stage,
)
from scripts.report import plan_section
from scripts.terminal import UsageError
from xvla_jax.checkpoint_tools.certificate import (
    SHARE,
    Certificate,
    Drift,
    Entry,
    Limits,
    certificate_path,
    sealed,
)
from xvla_jax.errors import CertificateError
from xvla_jax.plans import PLANS

_SETTINGS = {"workdir": "w", "demonstrations": 3, "iters": 4, "workers": 1, "seed": 7}
_SETTINGS = {**ROBOTS["libero"], **_SETTINGS}
_TABLE = [filled(stage, _SETTINGS) for stage in STAGES]


def _console() -> Console:
    return Console(file=io.StringIO())


def test_every_stage_is_a_command_of_its_own() -> None:
    names = [stage.arguments[0] for stage in _TABLE]
    assert names == [
        "scripts.record_demos",
        "scripts.build_rlds",
        "scripts.train",
        "scripts.train",
        "scripts.convert_checkpoint",
        "scripts.evaluate",
        "scripts.certify_sampler",
        "scripts.report",
    ]
    for name in names:
        assert Path(name.replace(".", "/") + ".py").is_file()


def test_the_seed_reaches_recording_training_and_evaluation() -> None:
    seeded = [s.arguments[0] for s in _TABLE if any(a.endswith("seed=7") for a in s.arguments)]
    assert seeded == [
        "scripts.record_demos",
        "scripts.train",
        "scripts.train",
        "scripts.evaluate",
        "scripts.certify_sampler",
    ]


@pytest.mark.parametrize("robot", sorted(ROBOTS))
def test_a_robot_has_a_row_of_each_kind(robot: str) -> None:
    row = ROBOTS[robot]
    stages = [filled(stage, {**_SETTINGS, **row}) for stage in STAGES]
    assert task_spec(row["task"]).control_hz % float(row["rate_hz"]) == 0
    assert dataset(row["dataset"]).rate_hz == float(row["rate_hz"])
    assert Path(row["config"]).is_file()
    assert stages[1].product == f"rlds/{row['dataset']}"
    assert f"--recorded_as={row['dataset']}" in stages[1].arguments


def _stage(code: str) -> Stage:
    """A stage that runs Python code: `timeit` executes its last argument as a statement, once."""
    return Stage("one", ("timeit", "-n1", "-r1", code), "product")


def test_a_stage_is_complete_with_its_command_and_product(tmp_path: Path) -> None:
    product = tmp_path / "product"
    stage = _stage(f"open({str(product)!r}, 'w')")
    assert not is_complete(stage, tmp_path)
    assert run_stage(stage, tmp_path, _console()) == 0
    assert is_complete(stage, tmp_path)
    assert not is_complete(_stage("pass"), tmp_path)  # another command
    product.unlink()
    assert not is_complete(stage, tmp_path)


def test_a_failed_stage_is_not_noted(tmp_path: Path) -> None:
    (tmp_path / "product").write_text("half")
    assert run_stage(_stage("import os; os._exit(3)"), tmp_path, _console()) == 3
    assert read_ledger(tmp_path) == {}
    assert not (tmp_path / STAGES_FILE).exists()


def test_a_plan_that_breaks_limits_is_a_result(tmp_path: Path) -> None:
    assert filled(CERTIFY, _SETTINGS).product == f"{certificate_path(Path('hf'), 'float32')}"
    stage = dataclasses.replace(_stage("import os; os._exit(2)"), ends=CERTIFY.ends)
    assert run_stage(stage, tmp_path, _console()) == 0
    assert "one" in read_ledger(tmp_path)
    failed = dataclasses.replace(_stage("import os; os._exit(1)"), ends=CERTIFY.ends)
    assert run_stage(failed, tmp_path, _console()) == 1


def test_the_page_shows_the_certificate(tmp_path: Path) -> None:
    assert plan_section(tmp_path) == ""
    (tmp_path / "hf").mkdir()
    near = {
        "left position": Drift("mm", mean=0.52, p99=2.0, worst=3.0, own_error=8.0),
        "left gripper": Drift(SHARE, mean=0.002, p99=0.0, worst=1.0, own_error=0.016),
    }
    far = near | {"left gripper": Drift(SHARE, mean=0.02, p99=1.0, worst=1.0, own_error=0.016)}
    limits = Limits(0.25, 0.01)
    certificate = Certificate(
        schema=1,
        model_sha256="ab" * 32,
        dtype="float32",
        device="cpu cpu",
        frames={"libero_demos": 64},
        seed=0,
        limits=limits,
        plans={
            name: Entry(PLANS[name].to_dict(), {"franka": drift}, {}, ()).checked(limits)
            for name, drift in (("frozen3", near), ("exact1", far))
        },
        made_by={},
    )
    content = sealed(certificate)
    path = certificate_path(tmp_path / "hf", "float32")
    path.write_text(json.dumps(content))
    section = plan_section(tmp_path)
    for cell in ("exact10, own error", "8", "1.6%", "0.52 (3)", "0.2%", "certified", "2.0%"):
        assert f"<td>{cell}</td>" in section, cell
    assert "left gripper of domain franka differs in 2.00% of rows; at most 1.00%" in section
    assert f"Certificate {content['seal'][:16]}" in section
    assert "--plans=exact10,frozen3</pre>" in section  # what the server takes without more
    (link,) = re.findall('href="(.*?)#certificates"', section)
    assert "## Certificates" in (tmp_path / link).read_text()
    path.write_text(json.dumps({**content, "seed": 1}))
    with pytest.raises(CertificateError, match="changed after it was written"):
        plan_section(tmp_path)


def test_the_ledger_has_command_and_seconds(tmp_path: Path) -> None:
    stage = _stage(f"open({str(tmp_path / 'product')!r}, 'w')")
    run_stage(stage, tmp_path, _console())
    entry = json.loads((tmp_path / STAGES_FILE).read_text())["one"]
    assert entry["arguments"] == list(stage.arguments)
    assert 0 < entry["seconds"] < 60


def _fitting(workdir: Path, seconds: dict[str, float], minutes: float) -> int:
    return fitting_iters(workdir, seconds, minutes=minutes, demonstrations=64)


@pytest.mark.parametrize(
    ("step_s", "minutes", "iters"),
    [(0.5, 15, 750), (0.5, 1, FLOOR), (0.01, 15, CEILING), (2.0, 15, FLOOR), (0.4, 14, 800)],
)
def test_training_fills_the_minutes(
    tmp_path: Path, step_s: float, minutes: float, iters: int
) -> None:
    times = [40.0, step_s, step_s, step_s, 9 * step_s]
    lines = [{"step": step, "step_s": time} for step, time in enumerate(times)]
    (tmp_path / "speed").mkdir()
    (tmp_path / SPEED.product).write_text("".join(json.dumps(line) + "\n" for line in lines))
    # of 900 s, 185 s are spent, 234 s are for later stages, 49 s for the start and 35 s for the
    # certificate: 397 s are left
    seconds = {RECORD.name: 100.0, WRITE.name: 15.0, SPEED.name: 70.0, "train": 1e6}
    fitting = _fitting(tmp_path, seconds, minutes)
    assert affordable_iters(fitting) == iters


_SECONDS = {RECORD.name: 1.0, WRITE.name: 1.0, SPEED.name: 1.0}


def test_a_timed_run_that_was_stopped_is_read_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "speed").mkdir()
    lines = ['{"step": 20, "step_s": 40.0}', '{"step": 40, "ste', '{"step": 59, "step_s": 0.5}']
    lines += ['{"step": 60}']  # by a process that only took this step
    (tmp_path / SPEED.product).write_text("\n".join(lines) + "\n")
    assert _fitting(tmp_path, _SECONDS, 8.0) == 900, "473 s of 0.5 s"
    assert _fitting(tmp_path, _SECONDS, 0.0) == 0
    (tmp_path / SPEED.product).write_text(lines[0])
    assert _fitting(tmp_path, _SECONDS, 60.0) == 50, "the only time that there is"
    (tmp_path / SPEED.product).write_text('{"step": 60}')
    with pytest.raises(UsageError, match=r"speed has no time of a training step; remove it"):
        _fitting(tmp_path, _SECONDS, 60.0)


def test_a_damaged_ledger_is_refused_in_a_line(tmp_path: Path) -> None:
    for content in ('{"train": {"argu', '{"train": {"seconds": 3}}', "[]"):
        (tmp_path / STAGES_FILE).write_text(content)
        with pytest.raises(FileError, match=rf"^{tmp_path / STAGES_FILE}: .*$"):
            read_ledger(tmp_path)


_CHILD = """
import pathlib
import sys
from rich.console import Console
from scripts.demo.stages import Stage, run_stage

code = f"print('begun', flush=True); import time; time.sleep(60); open({sys.argv[1]!r}, 'w')"
run_stage(Stage("one", ("timeit", "-n1", "-r1", code), "x"), pathlib.Path(sys.argv[1]), Console())
"""


def test_sigterm_ends_the_stage_too(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _CHILD, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        while process.stdout.readline() != "begun\n":
            assert process.poll() is None
        process.terminate()
        # the stage holds the pipe open as long as it lives
        process.communicate(timeout=30)
    assert process.returncode == 143
