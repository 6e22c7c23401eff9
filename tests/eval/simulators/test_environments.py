"""The recipes of simulators' environments, and the workflow that runs two of them."""

from __future__ import annotations

import re
import runpy
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from eval.simulators import workers
from eval.tasks.table import TASKS
from tests.citations import ROOT

FOLDER = ROOT / "eval" / "environments"
RECIPES = sorted(path.parent for path in FOLDER.glob("*/install.sh"))
BENCHMARKS = {"calvin", "robotwin", "simpler", "vlabench"}
_WORKFLOW = yaml.safe_load((ROOT / ".github/workflows/simulators.yml").read_text(encoding="utf-8"))
_JOB: dict[str, Any] = _WORKFLOW["jobs"]["episode"]
MATRIX: list[dict[str, str]] = _JOB["strategy"]["matrix"]["include"]


def filled(text: str, row: dict[str, str]) -> str:
    """Returns a text of the workflow for one row of its matrix."""
    return re.sub(r"\$\{\{ matrix\.(\w+) \}\}", lambda match: row[match[1]], text)


def steps(row: dict[str, str]) -> list[str]:
    """Shell scripts of the workflow for one row of its matrix."""
    return [filled(step["run"], row) for step in _JOB["steps"] if "run" in step]


def test_every_simulator_with_a_python_of_its_own_has_a_recipe() -> None:
    assert {path.name for path in RECIPES} == BENCHMARKS
    assert {row.benchmark for row in TASKS.values() if row.benchmark} >= BENCHMARKS


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.name)
def test_sources_are_pinned_and_variables_are_read(recipe: Path) -> None:
    script = (recipe / "install.sh").read_text(encoding="utf-8")
    pins = re.findall(r"^clone (\S+)\s+(?:\\\n\s+)?(\S+) (\S+)$", script, re.MULTILINE)
    assert len(pins) == script.count("\nclone ") >= 1
    for url, commit, _ in pins:
        assert url.startswith("https://github.com/")
        assert re.fullmatch(r"[0-9a-f]{40}", commit)
        assert commit[:7] in (recipe / "README.md").read_text(encoding="utf-8"), "the page names it"
    names = set(re.findall(r"([A-Z_]+)=", script[script.index("\nvariables") :]))
    assert workers.python_variable(recipe.name) in names
    sources = "".join(path.read_text() for path in (ROOT / "eval/simulators").glob("*.py"))
    ours = names - {workers.python_variable(recipe.name), "PYTHONPATH"}
    assert [name for name in ours if f'"{name}"' not in sources] == []


SHELL_FILES = [*(recipe / "install.sh" for recipe in RECIPES), FOLDER / "functions.sh"]


@pytest.mark.parametrize("path", SHELL_FILES, ids=lambda path: str(path.relative_to(FOLDER)))
def test_the_scripts_are_shell(path: Path) -> None:
    done = subprocess.run(["bash", "-n", path], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_an_installation_is_a_checkout_with_a_python_and_its_variables(tmp_path: Path) -> None:
    def git(*words: str) -> str:
        command = ["git", "-c", "user.name=a", "-c", "user.email=a", *words]
        done = subprocess.run(command, cwd=tmp_path / "source", capture_output=True, text=True)
        return done.stdout.strip()

    (tmp_path / "source").mkdir()
    for number in (1, 2):
        (tmp_path / "source" / "file").write_text(str(number))
        git("init", "-q")
        git("add", "file")
        git("commit", "-qm", str(number))
    (tmp_path / "requirements.txt").touch()
    (tmp_path / "install.sh").write_text(
        f'set -euo pipefail\n. {FOLDER / "functions.sh"} python3 "$@"\n'
        f"clone file://{tmp_path / 'source'} {git('rev-parse', 'HEAD')} place\n"
        f'mkdir -p "$folder/python/bin" && ln -sf /bin/true "$folder/python/bin/pip"\n'
        f'install {tmp_path / "requirements.txt"}\nvariables A="$folder/a b" B=1\n'
    )
    command = ["bash", str(tmp_path / "install.sh")]
    for _ in range(2):  # a second time it does the same again
        subprocess.run([*command, str(tmp_path / "to")], check=True, capture_output=True)
    assert (tmp_path / "to" / "place" / "file").read_text() == "2"
    shown = subprocess.run(
        ["bash", "-c", f'source {tmp_path / "to" / "environment.sh"}; printf "%s" "$A|$B"'],
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stdout == f"{tmp_path / 'to'}/a b|1"
    refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (refused.returncode, "FOLDER" in refused.stderr) == (2, True)


def test_the_workflow_runs_calvin_and_widowx_without_a_push() -> None:
    assert sorted(row["row"] for row in MATRIX) == ["calvin_abc_d:strict", "widowx_spoon:strict"]
    for row in MATRIX:
        assert TASKS[row["row"]].benchmark == row["simulator"]
        script = (FOLDER / row["simulator"] / "install.sh").read_text(encoding="utf-8")
        assert f'functions.sh" python{row["python"]} ' in script
    triggers = _WORKFLOW[True]  # `on` is a Boolean of YAML 1.1
    assert set(triggers) == {"schedule", "workflow_dispatch"}
    assert [len(entry["cron"].split()) for entry in triggers["schedule"]] == [5]


@pytest.mark.parametrize("row", MATRIX, ids=lambda row: row["simulator"])
def test_every_command_of_the_workflow_is_there(row: dict[str, str]) -> None:
    for script in steps(row):
        checked = subprocess.run(["bash", "-n"], input=script, text=True, check=False)
        assert checked.returncode == 0
        assert "${{" not in script
    text = "\n".join(steps(row)).replace("\\\n", " ")
    called = re.findall(r"^bash (\S+)", text, re.MULTILINE)
    assert len(called) == 2
    assert [name for name in called if not (ROOT / name).is_file()] == []
    scripts = re.findall(r"^\.venv/bin/python -m (scripts\.\w+)(.*)$", text, re.MULTILINE)
    assert [name for name, _ in scripts] == [
        "scripts.make_random_checkpoint",
        "scripts.evaluate",
        "scripts.verify_receipt",
    ]
    for name, arguments in scripts:
        command = runpy.run_path(str(ROOT / f"{name.replace('.', '/')}.py"))["COMMAND"]
        command.parse([name, *shlex.split(arguments)])
