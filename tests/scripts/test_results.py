"""The commands around receipts: merge, compare; and one real evaluation of the script."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import util
from pathlib import Path

import pytest

from eval.files import write_json
from eval.runs.compare import compare_runs
from eval.runs.evaluation import Task
from eval.runs.receipt import RESULTS, read_receipt
from tests.eval.evaluations import NOISE, PLAN, SPEC, contestant, evaluate, resealed
from tests.eval.runs.test_compare import A, B, changed, disturbed, overriding
from tests.eval.runs.test_receipt import made

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
    write_json(folder / RESULTS, resealed(receipt))
    return str(folder)


def test_two_runs_are_compared(tmp_path: Path) -> None:
    first, second = save(tmp_path / "a", A), save(tmp_path / "b", B)
    said = run("compare_results", first, f"{second}@b")
    for part in ("a against b", "0.219", "+33.3"):
        assert part in said
    other = save(tmp_path / "other", changed(B, 0, seed=5))
    assert "of one side only" in run("compare_results", first, other, status=1)


def test_one_run_is_compared_with_its_control_arm_and_overrides_are_not_mixed(
    tmp_path: Path,
) -> None:
    alone = save(tmp_path / "alone", A)
    assert "no row has its control arm beside it" in run("compare_results", alone, status=1)
    both = json.loads(json.dumps(A))
    disturbed(both, "quickstart:camera2", [True] * 2 + [False] * 10, same_state=True)
    both["tasks"]["quickstart:camera2"]["row"]["disturbance"] |= {
        "axis": "camera", "level": 2, "amount": 10.0, "unit": "degrees",
    }  # fmt: skip
    said = run("compare_results", save(tmp_path / "both", both))
    for part in ("a, against the control arm quickstart", "2 of 12 9 -58 (", "0.016, 0.016"):
        assert part in said
    other = save(tmp_path / "other", overriding(B, "executed", 20))
    assert "--across=executed compares" in run("compare_results", alone, other, status=1)
    said = run("compare_results", alone, other, "--across=executed")
    assert "quickstart.overrides" in said


def test_several_runs_are_compared_and_exported(tmp_path: Path) -> None:
    good, bad = made(good=[True] * 12), made(bad=[True] * 3 + [False] * 9)
    folders = [save(tmp_path / name, run) for name, run in (("1", good), ("2", A), ("3", bad))]
    export = tmp_path / "episodes.jsonl"
    said = run("compare_results", *folders, f"--export={export}")
    for part in ("3 comparisons", "36 episodes", "than: good, a"):
        assert part in said
    rows = [json.loads(line) for line in export.read_text().splitlines()]
    assert [row["policy"] for row in rows] == ["good"] * 12 + ["a"] * 12 + ["bad"] * 12
    assert rows[12]["scenario"] == "quickstart:3:30:172"
    assert [row["success"] for row in rows[24:]] == [True] * 3 + [False] * 9
    assert "--export" in run("compare_results", "--help")
    refused = run("compare_results", *folders, f"--export={tmp_path}/none/file", status=1)
    assert "No such file or directory" in refused


def test_robostats_agrees_where_it_computes_the_same(tmp_path: Path) -> None:
    robostats = pytest.importorskip("robostats", reason="robostats is not installed (extra dev)")
    folders = [save(tmp_path / "a", A), save(tmp_path / "b", B)]
    export = tmp_path / "episodes.jsonl"
    run("compare_results", *folders, f"--export={export}")
    protocol = robostats.Protocol(max_steps=150)
    read = robostats.load_jsonl(
        export,
        protocol=protocol,
        success_field="success",
        policy_id_field="policy",
        task_id_field="row",
        scenario_fields=["scenario"],
        seed_field="seed",
    )
    pairs = robostats.pair(read.filter(policy_id="a"), read.filter(policy_id="b"))
    assert robostats.mcnemar(pairs).p_value == pytest.approx(
        compare_runs(A, "a", B, "b")["quickstart"].p_value
    )


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
    assert "shards 2/2 are missing; 2 is made by python -m scripts.evaluate" in refused
    assert "--shard=2/2 --out=SHARD_2" in refused
    assert not (tmp_path / "half").exists()
    again = tmp_path / "again"
    run("merge_results", *folders, folders[0], f"--out={again}")
    assert (again / RESULTS).read_bytes() == (out / RESULTS).read_bytes()


def test_evaluations_of_other_initial_states_are_merged_and_verified(tmp_path: Path) -> None:
    folders = []
    for name, plan in (("late", PLAN[6:]), ("early", PLAN[:6])):
        receipt = evaluate(tmp_path / name, contestant("a", NOISE), task=Task(SPEC, plan), film="a")
        write_json(tmp_path / name / RESULTS, receipt)
        folders.append(str(tmp_path / name))
    out = tmp_path / "all"
    assert " of 12" in run("merge_results", *folders, f"--out={out}")
    assert "a: 12 of 12 planned" in run("verify_receipt", str(out))


def test_a_receipt_is_verified_with_the_files_beside_it(tmp_path: Path) -> None:
    out = tmp_path / "run"
    receipt = evaluate(out, contestant("a", NOISE), film="a")
    write_json(out / RESULTS, receipt)
    said = run("verify_receipt", str(out), f"--seal={receipt['seal']}")
    assert "FAILS" not in said
    for part in (receipt["seal"], "the same 12 episodes", "a: 12 of 12", "films/", "traces/"):
        assert part in said
    assert "another one: 00" in run("verify_receipt", str(out), "--seal=00", status=1)

    # a change of any file is found, and named
    for path, change, words in (
        (next((out / "films").iterdir()), lambda text: text[:-1], "changed after the evaluation"),
        (next((out / "traces").iterdir()), lambda _: b"", "changed after the evaluation"),
        (out / "episodes.jsonl", lambda t: t.replace(b"true", b"null", 1), "episodes.jsonl"),
        (out / RESULTS, lambda t: t.replace(b"llvm", b"GPU ").replace(b"fake", b"FAKE"), "seal is"),
    ):
        kept = path.read_bytes()
        path.write_bytes(change(kept))
        assert path.read_bytes() != kept
        said = run("verify_receipt", str(out), status=1)
        assert words in said
        assert "FAILS" in said
        path.write_bytes(kept)
    assert "FAILS" not in run("verify_receipt", str(out))

    # a forger who seals again is found by the journal, or by the seal that was published
    forged = json.loads(json.dumps(receipt))
    episode = forged["tasks"]["quickstart"]["policies"]["a"]["episodes"][5]
    episode["success"] = not episode["success"]
    write_json(out / RESULTS, resealed(forged))
    assert "1 other episodes, such as 3:35:77 of a" in run("verify_receipt", str(out), status=1)
    (out / "episodes.jsonl").unlink()
    assert "FAILS" not in run("verify_receipt", str(out))
    run("verify_receipt", str(out), f"--seal={receipt['seal']}", status=1)


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
