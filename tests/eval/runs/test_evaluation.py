"""Complete evaluations on the fake simulator: resumption, early stop, films, the page."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any, cast

import jsonschema
import numpy as np
import pytest

from eval.disturbances.axes import disturbance
from eval.files import write_json
from eval.pages.evaluation import protocol_notes, write_evaluation_page
from eval.runs.evaluation import Evaluation, Task
from eval.runs.golden_frame import (
    GoldenFrameError,
    first_frame,
    frame_name,
    frame_of,
    save_frame,
)
from eval.runs.journal import JOURNAL, JournalError
from eval.runs.receipt import RESULTS, episode_key, read_receipt
from eval.runs.shards import MergeError, Shard, merge_receipts
from eval.simulators.host import SimulatorHost
from eval.simulators.preflight import SimulatorSetupError
from eval.simulators.workers import WorkerPool
from eval.tasks.table import TASKS, Episode, TaskSpec
from eval.tasks.variants import overridden
from tests.eval import fakes
from tests.eval.evaluations import (
    EXPERT,
    NOISE,
    PLAN,
    contestant,
    episodes,
    evaluate,
    options,
    resealed,
    silence,
)
from tests.eval.pages.test_quickstart import Tags
from tests.eval.runs.test_receipt import SCHEMA_FILE


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """Folder and receipt of a policy that fails now and then, a steady one, and the script."""
    out = tmp_path_factory.mktemp("whole")
    return out, evaluate(out, contestant("a", NOISE), contestant("b", 0.0), EXPERT, film="a")


def test_the_receipt_has_all_episodes_in_order(evaluated: tuple[Path, Any]) -> None:
    _, receipt = evaluated
    jsonschema.validate(receipt, json.loads(SCHEMA_FILE.read_text()))
    for policy in "a", "b", "script":
        assert [e["init_state"] for e in episodes(receipt, policy)] == list(range(30, 42))
    summaries = {
        name: entry["summary"]["successes"]
        for name, entry in receipt["tasks"]["quickstart"]["policies"].items()
    }
    assert 0 < summaries["a"] < 12
    assert (summaries["b"], summaries["script"]) == (12, 12)
    calls = receipt["tasks"]["quickstart"]["policies"]["b"]["calls"]
    assert calls["batches"] == [2] * 12  # 12 episodes of 2 chunks each, 2 simulators
    assert calls["batch_fill"] == 1.0
    assert receipt["renderer"] == "fake renderer"
    assert receipt["versions"]["simulator"]["numpy"] == np.__version__


class Interrupted(fakes.SightPolicy):
    """Stops in its fifth call, as Ctrl-C does."""

    def act(self, observations: Any, *, seed: Any) -> np.ndarray:
        if len(self.batches) == 4:
            raise KeyboardInterrupt
        return super().act(observations, seed=seed)


def test_an_interrupted_evaluation_resumes_and_ends_the_same(
    evaluated: tuple[Path, Any], tmp_path: Path
) -> None:
    broken = dataclasses.replace(contestant("a", NOISE), policy=Interrupted(NOISE))
    with pytest.raises(KeyboardInterrupt):
        evaluate(tmp_path, broken)
    done = len((tmp_path / JOURNAL).read_text().split('"episode":')) - 1
    assert 0 < done < 12
    second = contestant("a", NOISE)
    receipt = evaluate(tmp_path, second)
    assert episodes(receipt, "a") == episodes(evaluated[1], "a")
    untouched = contestant("a", NOISE)
    again = evaluate(tmp_path, untouched)
    assert isinstance(untouched.policy, fakes.SightPolicy)
    assert untouched.policy.batches == []
    assert episodes(again, "a") == episodes(evaluated[1], "a")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sha": "cd34"}, r"policies\.a\.hash: ab12 against cd34"),
        ({"step_limit": 90}, r"tasks\.quickstart\.row\.step_limit: 150 against 90"),
        ({"versions": {"jax": "1"}}, r"versions\.policy\.jax: 0 against 1"),
        ({"plan": PLAN[:3]}, r"tasks\.quickstart\.episodes: 2 against 3"),
    ],
)
def test_another_evaluation_does_not_resume_in_the_folder(
    tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    task = Task(fakes.SPEC, PLAN[:2])
    evaluate(tmp_path, contestant("a", 0.0), task=task)
    limit = change.get("step_limit", fakes.SPEC.step_limit)
    other = Task(dataclasses.replace(fakes.SPEC, step_limit=limit), change.get("plan", PLAN[:2]))
    policy = contestant("a", 0.0, change.get("sha", "ab12"))
    versions = change.get("versions", {"jax": "0"})
    with pytest.raises(JournalError, match=words):
        evaluate(tmp_path, policy, task=other, versions=versions)
    receipt = evaluate(tmp_path, policy, task=other, versions=versions, restart=True)
    assert len(episodes(receipt, "a")) == len(other.plan)


def test_a_clear_difference_stops_a_comparison(tmp_path: Path) -> None:
    plan = [Episode(3, index, 42 + index) for index in range(40)]
    blind = dataclasses.replace(contestant("blind", 0.0), policy=fakes.SightPolicy(1.0))
    receipt = evaluate(
        tmp_path, contestant("a", 0.0), blind, task=Task(fakes.SPEC, plan), alpha=0.05
    )
    jsonschema.validate(receipt, json.loads(SCHEMA_FILE.read_text()))
    stopping = receipt["tasks"]["quickstart"]["stopping"]
    assert stopping["decided"]
    assert 8 <= stopping["pairs"] < 20
    assert stopping["p_value"] < 0.05
    assert stopping["planned"] == 40
    first, second = episodes(receipt, "a"), episodes(receipt, "blind")
    assert [e["seed"] for e in first] == [e["seed"] for e in second]
    assert len(first) == stopping["pairs"]
    tried = [e["init_state"] for e in first]
    assert tried == sorted(tried)
    assert tried != list(range(len(tried))), "the order of the pairs is shuffled"
    assert any("stopped after" in note for note in protocol_notes(receipt))


def test_policies_that_fail_alike_stop_when_nothing_can_be_decided_any_more(tmp_path: Path) -> None:
    receipt = evaluate(tmp_path, contestant("a", 0.0), contestant("b", 0.0), alpha=0.05)
    stopping = receipt["tasks"]["quickstart"]["stopping"]
    assert not stopping["decided"]
    assert stopping["p_value"] == 1.0
    assert stopping["pairs"] == 8  # 4 left, which could not decide; 8 could have


def test_an_early_stop_needs_two_policies_and_all_episodes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="compares two policies, not 1"):
        evaluate(tmp_path, contestant("a", 0.0), alpha=0.05)
    with pytest.raises(ValueError, match="cannot run on a --shard"):
        options(tmp_path, alpha=0.05, shard=Shard(1, 2))


def test_a_changed_simulator_is_refused_before_the_first_episode(tmp_path: Path) -> None:
    host = SimulatorHost(fakes.SPEC, fakes.FakeEnv)
    images = (host.start(Episode(3, 0, 100)).observation or {})["images"]
    stored = frame_of(images, renderer="fake renderer", versions={"mujoco": "0.1"})
    save_frame(tmp_path / "golden", frame_name(fakes.SPEC), stored)
    policy = contestant("a", 0.0)
    with pytest.raises(GoldenFrameError, match=r"mujoco .*stored with 0\.1.*--accept_renderer"):
        evaluate(tmp_path, policy)
    assert isinstance(policy.policy, fakes.SightPolicy)
    assert policy.policy.batches == []
    receipt = evaluate(tmp_path, policy, accept_renderer=True)
    assert receipt["config"]["accept_renderer"] is True
    frame = receipt["tasks"]["quickstart"]["golden_frame"]
    assert frame["state"] == "changed"
    assert "stored with 0.1" in frame["differences"][0]
    assert any("accepted" in note for note in protocol_notes(receipt))


def test_the_page_shows_films_paths_calls_and_pairs(
    evaluated: tuple[Path, Any], tmp_path: Path
) -> None:
    out, receipt = evaluated
    films = receipt["tasks"]["quickstart"]["films"]
    assert [(film["policy"], film["success"]) for film in films] == [("a", True), ("a", False)]
    write_evaluation_page(tmp_path / "report.html", receipt, out)
    page = (tmp_path / "report.html").read_text()
    tags = Tags()
    tags.feed(page)
    tags.close()
    assert tags.open == []
    sources = [value for name, value in tags.attributes if name in ("src", "href")]
    assert len(sources) == 2
    assert all(source.startswith("data:video/mp4;base64,") for source in sources)
    text = " ".join(tags.text)
    for part in (
        "Evaluation on quickstart",
        "published 90 % success (somebody)",
        "12 episodes; the row has 50",
        "golden frame none stored",
        "a / script",
        "McNemar p",
        "milliseconds of a call",
        "Batch fill 100 %",
        "y, m",
        "z, m",
        "measured path",
        "left hand from above",
        "Without 1 first calls of a batch size",
        "a on quickstart: a failure",
        "hash ab12",
        "fake renderer",
        "python -m scripts.evaluate --seed=0",
    ):
        assert part in text, part
    paths = [value for name, value in tags.attributes if name == "class" and "line0" in value]
    assert len(paths) == 8, "a line and a dot in each of two planes of two episodes, one hand"


def test_a_page_without_films_says_the_rest(evaluated: tuple[Path, Any], tmp_path: Path) -> None:
    write_evaluation_page(tmp_path / "report.html", evaluated[1], tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "<video" not in page
    assert "By task" in page


def test_a_strict_row_says_how_it_differs_from_the_authors_client(
    evaluated: tuple[Path, Any],
) -> None:
    receipt = json.loads(json.dumps(evaluated[1]))
    row = dataclasses.asdict(TASKS["libero_spatial:strict"])
    receipt["tasks"]["quickstart"]["row"] = json.loads(json.dumps(row))
    notes = " ".join(protocol_notes(receipt))
    assert "unlike the authors' client: client.feedback: executed against chunk_end" in notes
    assert "unlike the authors' client: step_limit: 280 against 800" in notes
    assert "unlike" not in " ".join(protocol_notes(evaluated[1]))


@pytest.mark.parametrize(("doomed", "refused"), [((30, 31), True), ((30,), False)])
def test_a_task_that_never_starts_has_no_score(
    tmp_path: Path, doomed: tuple[int, ...], refused: bool
) -> None:
    """The golden frame's episode starts, those of the plan do not."""
    (tmp_path / "out").mkdir()
    opened = functools.partial(fakes.open_refusing, doomed)

    def open_pool(spec: TaskSpec, num_workers: int) -> WorkerPool:
        return WorkerPool(functools.partial(SimulatorHost, spec, opened), num_workers)

    task = Task(fakes.SPEC, PLAN[:2])
    for _ in range(2):  # the journal remembers the episodes, and is no way to a score either
        evaluation = Evaluation(
            [contestant("a", 0.0)],
            options(tmp_path, num_workers=1),
            tmp_path / "out",
            silence,
            open_pool,
        )
        if refused:
            words = r"no episode of task 3 of quickstart .*2 were tried(?s:.*)no state 31"
            with pytest.raises(SimulatorSetupError, match=words):
                evaluation.run([task])
        else:
            records = episodes(evaluation.run([task]), "a")
            assert [record["success"] for record in records] == [False, True]


def variants(out: Path, **changes: Any) -> Any:
    """Evaluates a disturbed row beside its control arm, both with another step limit."""
    plain = overridden(fakes.SPEC, {"step_limit": 120})
    camera = dataclasses.replace(
        plain, name="quickstart:camera2", control="quickstart", disturbance=disturbance("camera", 2)
    )
    made = Evaluation(
        [contestant("a", NOISE)],
        options(out, **changes),
        out,
        silence,
        open_pool=cast(Any, fakes.LocalPool),
    )
    return made.run([Task(camera, PLAN), Task(plain, PLAN)])


def test_disturbed_and_overridden_rows_say_so_everywhere(tmp_path: Path) -> None:
    receipt = variants(tmp_path)
    jsonschema.validate(receipt, json.loads(SCHEMA_FILE.read_text()))
    row = receipt["tasks"]["quickstart:camera2"]["row"]
    assert row["disturbance"] == {
        "axis": "camera",
        "level": 2,
        "amount": 10.0,
        "unit": "degrees",
        "same_state": True,
    }
    assert row["overrides"] == [{"column": "step_limit", "own": 150, "used": 120}]
    journal = (tmp_path / JOURNAL).read_text().splitlines()[0]
    assert json.loads(journal)["identity"]["tasks"]["quickstart:camera2"]["row"] == row
    write_json(tmp_path / RESULTS, receipt)
    assert read_receipt(tmp_path) == receipt

    write_evaluation_page(tmp_path / "page.html", receipt, tmp_path)
    page = (tmp_path / "page.html").read_text()
    for text in (
        "quickstart:camera2 with step_limit 120",
        "--step_limit: 120 in place of 150.",
        "disturbed: camera, level 2 (10 degrees)",
        "<td>+0 (-",
    ):
        assert text in page
    # the fake has no camera, so the policy meets what its control arm does
    ours, theirs = (
        receipt["tasks"][n]["policies"]["a"] for n in ("quickstart:camera2", "quickstart")
    )
    for one, other in zip(ours["episodes"], theirs["episodes"], strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}

    # the same command resumes; one without the override is another evaluation
    assert variants(tmp_path)["tasks"] == receipt["tasks"]
    with pytest.raises(JournalError, match=r"step_limit: 120 against 150|camera2"):
        evaluate(tmp_path, contestant("a", NOISE), task=Task(fakes.SPEC, PLAN))


def test_shards_keep_variants(tmp_path: Path) -> None:
    parts = []
    for index in (1, 2):
        (tmp_path / str(index)).mkdir()
        parts.append(variants(tmp_path / str(index), shard=Shard(index, 2)))
    merged = merge_receipts(parts)
    alone = variants(tmp_path)
    for name, task in alone["tasks"].items():
        assert merged["tasks"][name]["row"] == task["row"]
        keys = [
            [(episode_key(e), e["success"], e["steps"]) for e in made["policies"]["a"]["episodes"]]
            for made in (merged["tasks"][name], task)
        ]
        assert keys[0] == keys[1]
    plain = json.loads(json.dumps(parts[1]))
    del plain["tasks"]["quickstart"]["row"]["overrides"]
    with pytest.raises(MergeError, match=r"tasks\.quickstart\.row\.overrides: .* against nothing"):
        merge_receipts([parts[0], resealed(plain)])


def test_the_golden_frame_of_a_disturbed_row_is_that_of_its_control_arm(tmp_path: Path) -> None:
    class Disturbable(fakes.FakeEnv):
        def __init__(self, spec: TaskSpec, task_id: int) -> None:
            super().__init__(spec, task_id)
            self.shift = 0.0 if spec.disturbance is None else 0.2

        def reset(self, init_state: int, seed: int) -> str:
            state = super().reset(init_state, seed)
            self._item = self._item + self.shift
            return state

    camera = dataclasses.replace(fakes.SPEC, disturbance=disturbance("camera", 2))
    frames = [
        first_frame(cast(Any, fakes.LocalPool(spec, 1, Disturbable)), spec)[1]
        for spec in (fakes.SPEC, camera)
    ]
    np.testing.assert_array_equal(frames[0].detail, frames[1].detail)
    np.testing.assert_array_equal(frames[0].blocks, frames[1].blocks)
    # the row itself is disturbed again afterwards
    host = SimulatorHost(camera, Disturbable)
    plain = SimulatorHost(fakes.SPEC, Disturbable).start(PLAN[0]).observation
    assert plain is not None
    for start, same in ((host.start_undisturbed, True), (host.start, False)):
        seen = start(PLAN[0]).observation
        assert seen is not None
        assert np.array_equal(seen["images"][0], plain["images"][0]) == same
