"""The commands around receipts: merge, compare; and one real evaluation of the script."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import util
from pathlib import Path

import pytest

from eval.files import write_json
from eval.runs.receipt import RESULTS, read_receipt
from tests.eval.runs.test_compare import A, B, changed

ROOT = Path(__file__).resolve().parents[2]


def run(module: str, *arguments: str, status: int = 0, timeout: int = 60) -> str:
    """Output of a command without its line breaks."""
    made = subprocess.run(
        [sys.executable, "-m", f"scripts.{module}", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert made.returncode == status, made.stdout + made.stderr
    return " ".join(made.stdout.split())


def save(folder: Path, receipt: object) -> str:
    folder.mkdir()
    write_json(folder / RESULTS, receipt)
    return str(folder)


def test_two_runs_are_compared(tmp_path: Path) -> None:
    first, second = save(tmp_path / "a", A), save(tmp_path / "b", B)
    said = run("compare_results", first, f"{second}@b")
    for part in ("a against b", "0.219", "+33.3"):
        assert part in said
    other = save(tmp_path / "other", changed(B, 0, seed=5))
    assert "of one side only" in run("compare_results", first, other, status=1)


def test_shards_are_merged_into_a_receipt_and_a_page(tmp_path: Path) -> None:
    half = json.loads(json.dumps(A))
    half["config"]["shard"] = [1, 2]
    rest = json.loads(json.dumps(half))
    rest["config"]["shard"] = [2, 2]
    for part, share in ((half, slice(0, 6)), (rest, slice(6, 12))):
        entry = part["tasks"]["quickstart"]["policies"]["a"]
        entry["episodes"] = entry["episodes"][share]
    folders = [save(tmp_path / "1", half), save(tmp_path / "2", rest)]
    out = tmp_path / "all"
    assert "9 of 12" in run("merge_results", *folders, f"--out={out}")
    merged = read_receipt(out / RESULTS)
    assert (
        merged["tasks"]["quickstart"]["policies"]["a"]["episodes"]
        == (A["tasks"]["quickstart"]["policies"]["a"]["episodes"])
    )
    assert (out / "report.html").read_text().endswith("</html>\n")
    refused = run("merge_results", folders[0], f"--out={tmp_path / 'half'}", status=1)
    assert "shards 2/2 are missing" in refused
    assert not (tmp_path / "half").exists()


def test_names_from_a_receipt_are_no_markup(tmp_path: Path) -> None:
    text = json.dumps(A).replace('"a"', '"[/b]"').replace('"quickstart"', '"[/c]"')
    folder = save(tmp_path / "a", json.loads(text))
    assert "[/b]" in run("merge_results", folder, f"--out={tmp_path / 'all'}")
    assert "[/c]" in run("compare_results", folder, folder)


@pytest.mark.slow
@pytest.mark.sim
def test_the_script_is_evaluated_in_libero(tmp_path: Path) -> None:
    if util.find_spec("libero") is None:
        pytest.skip("LIBERO is not installed (extra sim)")
    arguments = ("--tasks=quickstart", "--episodes=1", "--policy=expert:", f"--out={tmp_path}")
    said = run("evaluate", *arguments, "--accept_renderer", "--workers=1", timeout=500)
    assert "1 of 1" in said
    (task,) = read_receipt(tmp_path / RESULTS)["tasks"].values()
    assert task["golden_frame"]["state"] in ("identical", "within tolerance", "changed")
    assert [film["success"] for film in task["films"]] == [True]
    assert "data:video/mp4" in (tmp_path / "report.html").read_text()
    journal = (tmp_path / "episodes.jsonl").read_bytes()
    run("evaluate", *arguments, "--accept_renderer", "--workers=1", timeout=500)
    assert (tmp_path / "episodes.jsonl").read_bytes() == journal
    refused = run(
        "evaluate", *arguments[:1], "--episodes=2", *arguments[2:], "--accept_renderer",
        status=1, timeout=500,
    )  # fmt: skip
    assert "tasks.quickstart.episodes: 1 against 2" in refused
