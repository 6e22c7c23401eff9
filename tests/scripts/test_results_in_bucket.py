"""Evaluations and their receipts in a bucket: the bytes of a disk, resumed, held by one process."""

from __future__ import annotations

import functools
import json
import time
from pathlib import Path
from typing import Any

import pytest

from eval.files import write_json
from eval.runs.evaluation import Options
from eval.runs.journal import JOURNAL
from eval.runs.receipt import RESULTS, parse_receipt
from scripts import compare_results, evaluate, merge_results, report, run_summary, verify_receipt
from scripts.places import workdir
from scripts.terminal import STOPPED, Command
from tests.eval import evaluations, fakes
from tests.eval.runs.test_compare import A, B
from tests.fake_gcs import FakeStorage, Rule
from tests.scripts.test_results import save
from tests.scripts.test_run_summary import log
from xvla_jax import buckets
from xvla_jax.training.workdir_lock import LOCK_NAME, WorkdirLock

PLACE = "gs://lab/runs"
NO_WRITE = "^(POST|PUT)"


@pytest.fixture(autouse=True)
def _lines_that_hold_a_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "400")


def run(module: Any, *arguments: str, status: int = 0) -> None:
    command: Command = module.COMMAND
    line = [module.__name__.rpartition(".")[2], *arguments]
    try:
        assert command.run(module.main, line) == status
    finally:
        # as a process of its own would find them
        for flag in ("out", "export", "seal", "restart", "film"):
            if flag in command.flags:
                command.flags[flag].unparse()


def words(text: str) -> str:
    """A text without its line breaks."""
    return " ".join(text.split())


def stored(lab: FakeStorage, folder: str) -> dict[str, bytes]:
    head = f"runs/{folder}/"
    return {n.removeprefix(head): o.content for n, o in lab.objects.items() if n.startswith(head)}


def on_disk(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.fixture
def shards(tmp_path: Path, lab: FakeStorage) -> list[str]:
    """Folders of two shards, in the bucket too."""
    for index, share in ((1, slice(0, 6)), (2, slice(6, 12))):
        part = json.loads(json.dumps(A))
        part["config"]["shard"] = [index, 2]
        entry = part["tasks"]["quickstart"]["policies"]["a"]
        entry["episodes"] = entry["episodes"][share]
        save(tmp_path / str(index), part)
    lab.add_folder(tmp_path, "runs/")
    return [str(tmp_path / "1"), str(tmp_path / "2")]


def test_shards_are_merged_to_the_bytes_of_a_disk(
    shards: list[str], tmp_path: Path, lab: FakeStorage
) -> None:
    run(merge_results, *shards, f"--out={tmp_path / 'all'}")
    run(merge_results, f"{PLACE}/1", f"{PLACE}/2/{RESULTS}", f"--out={PLACE}/all")
    assert stored(lab, "all") == on_disk(tmp_path / "all")
    run(merge_results, f"{PLACE}/1", f"--out={PLACE}/half", status=1)
    assert not stored(lab, "half")
    # a page without its receipt is the most that a merge leaves which cannot write
    lab.rules = [Rule(NO_WRITE, 403, times=9, skip=1)]
    run(merge_results, f"{PLACE}/1", f"{PLACE}/2", f"--out={PLACE}/other", status=1)
    assert list(stored(lab, "other")) == ["report.html"]


def test_receipts_are_compared_and_exported(
    tmp_path: Path, lab: FakeStorage, capsys: pytest.CaptureFixture[str]
) -> None:
    sides = [save(tmp_path / name, receipt) for name, receipt in (("a", A), ("b", B))]
    lab.add_folder(tmp_path, "runs/")
    run(compare_results, *sides, f"--export={tmp_path / 'episodes.jsonl'}")
    local = words(capsys.readouterr().out.replace(str(tmp_path), PLACE))
    places = [f"{PLACE}/a@a", f"{PLACE}/b"]
    run(compare_results, *places, f"--export={PLACE}/episodes.jsonl")
    assert words(capsys.readouterr().out) == local
    export = lab.objects["runs/episodes.jsonl"].content
    assert export == (tmp_path / "episodes.jsonl").read_bytes()
    run(compare_results, *places, f"{PLACE}/none", status=1)
    said = words(capsys.readouterr().out)
    assert f"{PLACE}/none/{RESULTS} cannot be read as a receipt: there is no such object" in said


def test_a_receipt_is_verified_and_a_quickstart_reported(
    tmp_path: Path, lab: FakeStorage, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "one/evaluation"
    out.parent.mkdir()
    receipt = evaluations.evaluate(out, evaluations.contestant("a", evaluations.NOISE))
    write_json(out / RESULTS, receipt)
    for name, content in (
        ("export.json", {"parameters": 1, "parameters_equal": True, "chunks_compared": 2,
                         "largest_action_difference": 0.0}),
        ("demonstrations/recording.json", {"recorded": 1, "failed": 0, "tried": 1}),
    ):  # fmt: skip
        path = out.parent / name
        path.parent.mkdir(exist_ok=True)
        write_json(path, content)
    (out.parent / "train").mkdir()
    lab.add_folder(tmp_path, "runs/")
    before = dict(lab.objects)

    run(verify_receipt, str(out), f"--seal={receipt['seal']}")
    local = capsys.readouterr().out.replace(str(tmp_path), PLACE)
    run(verify_receipt, f"{PLACE}/one/evaluation", f"--seal={receipt['seal']}")
    assert capsys.readouterr().out == local
    assert lab.objects == before, "it only reads"
    run(report, f"--workdir={out.parent}")
    run(report, f"--workdir={PLACE}/one")
    assert capsys.readouterr().out.split()[-1] == f"{PLACE}/one/report.html"
    assert stored(lab, "one") == on_disk(out.parent)

    lab.put(f"runs/one/evaluation/{RESULTS}", b"{", {})
    run(verify_receipt, f"{PLACE}/one/evaluation/{RESULTS}", status=1)
    run(report, f"--workdir={PLACE}/one", status=1)
    assert capsys.readouterr().out.count(f"{PLACE}/one/evaluation/{RESULTS}: no JSON") == 2


class Simulator(fakes.FakeEnv):
    """The fake simulator, which calls `on_reset` with each initial state."""

    on_reset: Any = staticmethod(lambda state: None)

    def reset(self, init_state: int, seed: int) -> str:
        self.on_reset(init_state)
        return super().reset(init_state, seed)


@pytest.fixture
def states(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """`scripts.evaluate` on the fake simulator; the states that it was reset to."""
    reset: list[int] = []

    def open_pool(spec: Any, workers: int) -> Any:
        return fakes.LocalPool(spec, workers, Simulator)

    golden = tmp_path / "golden"
    monkeypatch.setattr(evaluate, "Options", functools.partial(Options, golden_frames=golden))
    monkeypatch.setattr(evaluate, "pools_in", lambda *_: open_pool)
    monkeypatch.setattr(evaluate, "_tasks", lambda _: [evaluations.TASK])
    monkeypatch.setattr(Simulator, "on_reset", reset.append)
    return reset


FLAGS = ("--tasks=quickstart", "--policy=script=expert:", "--workers=2")


def _without_times(content: bytes) -> Any:
    """The parts of a receipt that another run of the same episodes has too."""
    receipt = parse_receipt(content, RESULTS)
    del receipt["config"]["seconds"], receipt["config"]["command"], receipt["seal"]
    for task in receipt["tasks"].values():
        task["films"] = [film["success"] for film in task["films"]]  # of which success, may differ
        for entry in task["policies"].values():
            del entry["chain"]
            for episode in entry["episodes"]:
                del episode["seconds"]
    return receipt


def test_an_evaluation_resumes_in_a_bucket_and_ends_as_on_a_disk(
    states: list[int],
    tmp_path: Path,
    lab: FakeStorage,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    run(evaluate, *FLAGS, f"--out={tmp_path / 'one'}")
    expected, planned = on_disk(tmp_path / "one"), set(states)
    states.clear()

    def until_the_bucket_has_some_and_takes_no_more(state: int) -> None:
        states.append(state)
        if len(states) == 6:
            until = time.monotonic() + 10
            while b'"episode"' not in stored(lab, "one").get(JOURNAL, b""):
                assert time.monotonic() < until
                time.sleep(0.01)
            lab.rules = [Rule(NO_WRITE, 503, times=1000)]
        if len(states) == 9:
            raise KeyboardInterrupt

    monkeypatch.setattr(buckets, "LIMIT_S", 0.1)
    monkeypatch.setattr(workdir, "Workdir", functools.partial(workdir.Workdir, every_s=0.02))
    hook = staticmethod(until_the_bucket_has_some_and_takes_no_more)
    monkeypatch.setattr(Simulator, "on_reset", hook)
    run(evaluate, *FLAGS, f"--out={PLACE}/one", status=STOPPED)
    assert "the same command resumes" in capfd.readouterr().out
    assert "files of the run stay in" in caplog.text
    noted = [json.loads(line).get("episode") for line in stored(lab, "one")[JOURNAL].splitlines()]
    done = {episode["init_state"] for episode in noted if episode}
    assert 0 < len(done) < 9
    assert RESULTS not in stored(lab, "one")

    lab.rules, states[:] = [], []
    monkeypatch.setattr(Simulator, "on_reset", states.append)
    run(evaluate, *FLAGS, f"--out={PLACE}/one")
    assert f"receipt: {PLACE}/one/{RESULTS}" in words(capfd.readouterr().out)
    assert planned - done <= set(states)
    ours = stored(lab, "one")
    assert ours.keys() == expected.keys()
    assert LOCK_NAME not in ours
    assert _without_times(ours[RESULTS]) == _without_times(expected[RESULTS])
    run(verify_receipt, f"{PLACE}/one")
    lab.put(next(f"runs/one/{name}" for name in ours if name.startswith("films/")), b"x", {})
    run(verify_receipt, f"{PLACE}/one", status=1)
    assert "changed after the evaluation" in capfd.readouterr().out


def test_an_evaluation_in_a_bucket_is_of_one_process_and_starts_again(
    states: list[int], lab: FakeStorage, capfd: pytest.CaptureFixture[str]
) -> None:
    with WorkdirLock(f"{PLACE}/one"):
        run(evaluate, *FLAGS, f"--out={PLACE}/one", status=1)
    said = words(capfd.readouterr().out)
    assert "gs://lab/runs/one is in use by process" in said
    assert "Use another --out, or end that run" in said
    assert (states, stored(lab, "one")) == ([], {})
    run(evaluate, *FLAGS, f"--out={PLACE}/one")
    first = stored(lab, "one")
    run(evaluate, *FLAGS, f"--out={PLACE}/one", "--policy=other=expert:", status=1)
    assert f"{PLACE}/one/{JOURNAL} is of another evaluation" in words(capfd.readouterr().out)
    run(evaluate, *FLAGS, f"--out={PLACE}/one", "--restart", "--film=")
    again = stored(lab, "one")
    assert {name.partition("/")[0] for name in first.keys() - again.keys()} == {"films"}
    lab.rules = [Rule("^(POST|PUT|DELETE)", 403, times=1000)]
    run(evaluate, *FLAGS, f"--out={PLACE}/two", status=1)
    assert "the account of this machine may not do this" in " ".join(capfd.readouterr())


def test_a_run_is_summarised(
    tmp_path: Path,
    lab: FakeStorage,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(run_summary, "draw_curves", lambda _, path: path.write_bytes(b"curves"))
    log(tmp_path / "one", 0, 100, 1.0)
    lab.add_folder(tmp_path, "runs/")
    run(run_summary, str(tmp_path / "one"))
    local = words(capsys.readouterr().out.replace(str(tmp_path), PLACE))
    run(run_summary, f"{PLACE}/one")
    assert words(capsys.readouterr().out) == local
    assert stored(lab, "one") == on_disk(tmp_path / "one")
    run(run_summary, f"{PLACE}/one", f"--out={PLACE}/two.png")
    assert lab.objects["runs/two.png"].content == (tmp_path / "one/curves.png").read_bytes()
    run(run_summary, f"{PLACE}/none", status=1)
    run(run_summary, "gs://lab", status=1)
    said = capsys.readouterr().err
    assert f"{PLACE}/none/metrics.jsonl is not there or empty: no run so far" in said
    assert "allowed are a path of this machine and gs://BUCKET/FOLDER" in said
