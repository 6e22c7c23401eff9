"""The receipt holds every episode, says what made it, and is complete or absent."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from eval.files import FileError, write_json
from eval.pages.evaluation import sampler_text, score_text
from eval.runs.binomial import success_interval
from eval.runs.golden_frame import Verdict
from eval.runs.receipt import (
    SCHEMA,
    TaskRun,
    episode_key,
    episode_record,
    plan_key,
    read_receipt,
    receipt,
    summary,
    task_summaries,
)
from eval.runs.rollout import EpisodeResult
from eval.runs.seal import sealed
from eval.runs.statistics import mean_interval
from eval.runs.traces import CallLog
from eval.simulators.preflight import versions
from eval.tasks.spec import CHAIN_LENGTH, PROGRESS, SUCCESS
from eval.tasks.table import TASKS, Episode, Reference
from tests.eval.evaluations import resealed

SCHEMA_FILE = Path(__file__).parents[3] / "eval" / "runs" / "receipt.schema.json"
SPEC = dataclasses.replace(TASKS["quickstart"], reference=(Reference(90.0, SUCCESS, "somebody"),))


def results(successes: Sequence[bool]) -> list[EpisodeResult]:
    return [
        EpisodeResult(
            episode=Episode(3, 30 + k, 172 + k),
            instruction="pick up",
            success=success,
            success_at_end=success,
            steps=60 + k if success else 200,
            queries=3,
            seconds=1.234567,
            state_hash=f"{k:016x}",
            rows=np.zeros((60, 20), np.float32),
            chunks=(),
            score=None,
            error=None,
        )
        for k, success in enumerate(successes)
    ]


def records(successes: Sequence[bool]) -> list[dict[str, Any]]:
    return [episode_record(result, "libero_object") for result in results(successes)]


def task_run(**policies: Sequence[bool]) -> TaskRun:
    longest = max(policies.values(), key=len)
    return TaskRun(
        spec=SPEC,
        plan=[result.episode for result in results(longest)],
        golden_frame=Verdict("identical", mean=0.0, worst=0.0, pixels=0.0).to_dict(),
        episodes={name: records(successes) for name, successes in policies.items()},
        calls={
            name: CallLog([2, 1], [10.0, 20.0], [True, False])
            for name in policies
            if name != "expert"
        },
    )


def made(**policies: Sequence[bool]) -> dict[str, Any]:
    return receipt(
        [task_run(**policies)],
        policies={
            name: {"kind": "checkpoint", "source": "runs/hf", "hash": "ab12", "contracts": {}}
            for name in policies
        },
        config={
            "seed": 42,
            "command": [],
            "num_workers": 2,
            "shard": [1, 1],
            "accept_renderer": False,
            "seconds": 12.3,
        },
        versions={"simulator": {"mujoco": "3.17.0"}, "policy": {"jax": "0.10.2"}},
        renderer="llvmpipe",
        git={"revision": "abc", "changed": False},
    )


def test_summary() -> None:
    total = summary(records([True, False, True, False]))
    assert (total["successes"], total["episodes"], total["rate"]) == (2, 4, 0.5)
    assert total["mean_steps_to_success"] == 61.0
    assert total["interval95"] == list(success_interval(2, 4))
    assert total["successes_at_end"] == 2
    assert total["simulator_errors"] == 0


@pytest.mark.parametrize("seal", [None, "cd" * 32])
def test_a_policy_has_the_plan_of_its_sampler(seal: str | None, tmp_path: Path) -> None:
    value = made(exact=[True], cheap=[True])
    sampler = {"plan": "frozen3", "steps": 3, "refresh": [0], "tolerance": 0.0, "certificate": seal}
    value["policies"]["cheap"]["sampler"] = sampler
    write_json(tmp_path / "results.json", resealed(value))
    policies = read_receipt(tmp_path)["policies"]
    assert policies["cheap"]["sampler"] == sampler
    ending = "certificate cdcdcdcdcdcdcdcd" if seal else "no certificate"
    assert sampler_text(policies["cheap"]) == f", plan frozen3, {ending}"
    assert sampler_text(policies["exact"]) == ""
    value["policies"]["cheap"]["sampler"] = {**sampler, "steps": 0}
    write_json(tmp_path / "results.json", resealed(value))
    with pytest.raises(FileError, match=r"policies\.cheap\.sampler\.steps is 0; allowed is"):
        read_receipt(tmp_path)


def test_summary_of_failures_and_of_nothing() -> None:
    assert summary(records([False]))["mean_steps_to_success"] is None
    assert summary([])["rate"] is None


def test_success_at_the_end_counts_apart() -> None:
    episodes = records([True, True])
    episodes[0]["success_at_end"] = False
    assert summary(episodes)["successes"] == 2
    assert summary(episodes)["successes_at_end"] == 1
    crashed = {**episodes[0], "success": False, "success_at_end": None, "error": "died"}
    assert summary([crashed])["successes_at_end"] is None
    assert summary([crashed])["simulator_errors"] == 1


def test_scores_have_a_mean_and_an_interval_and_chains_their_shares() -> None:
    assert summary(records([True]))["score"] is None
    chains = [5.0, 4.0, 0.0, 5.0, 1.0, 5.0, 3.0, 5.0]
    episodes = [
        {**record, "score": chain}
        for record, chain in zip(records([chain == 5 for chain in chains]), chains, strict=True)
    ]
    entry: dict[str, Any] = {**task_summaries(episodes, None), "episodes": episodes}
    score = entry["summary"]["score"]
    assert score["mean"] == 3.5
    assert score["bootstrap95"] == list(mean_interval(chains))
    assert score_text({"score": CHAIN_LENGTH}, entry) == (
        "mean 3.50 subtasks in a row (95 % 2.12 to 4.75); "
        "at least 1 to 5: 87.5 75.0 75.0 62.5 50.0 %"
    )
    assert score_text({"score": PROGRESS}, entry).startswith("mean 3.50 % progress (95 % ")
    assert score_text({"score": ""}, {"summary": summary(records([True]))}) == ""


def test_tasks_have_their_own_rates_and_the_reference_its_distance() -> None:
    episodes = records([True] * 4 + [False] * 4)
    for episode in episodes[:2]:
        episode["task_id"] = 12
    parts = task_summaries(episodes, {"rate": 0.6})
    assert {k: (v["successes"], v["episodes"]) for k, v in parts["by_task"].items()} == {
        "3": (2, 6),
        "12": (2, 2),
    }
    assert list(parts["by_task"]) == ["3", "12"]
    assert parts["by_task"]["3"]["task"] == "pick up"
    assert parts["episodes_to_separate"] == 388  # 0.5 and 0.6, see test_statistics
    assert task_summaries(episodes, {"rate": 0.5})["episodes_to_separate"] is None
    other_score = task_summaries(episodes, {"rate": None})
    assert other_score["episodes_to_separate"] is None
    assert task_summaries(episodes, None)["episodes_to_separate"] is None


def test_a_published_score_that_is_no_rate_is_not_read_as_one() -> None:
    assert [r.rate for r in TASKS["calvin_abc_d"].reference] == [None, None]
    assert [r.rate for r in TASKS["vlabench_track_1"].reference] == [None]
    assert [r.rate for r in TASKS["libero_spatial"].reference] == [0.982]
    with pytest.raises(ValueError, match=r"unit 'percent'.*one of % success, % progress"):
        Reference(90.0, "percent", "somebody")


def test_the_receipt_survives_json(tmp_path: Path) -> None:
    value = made(trained=[True, False], expert=[True])
    path = tmp_path / "results.json"
    write_json(path, value)
    read = read_receipt(path)
    assert read == value
    task = read["tasks"]["quickstart"]
    assert list(task["policies"]) == ["trained", "expert"]
    assert task["policies"]["trained"]["episodes"][0] == {
        "suite": "libero_object",
        "task_id": 3,
        "task": "pick up",
        "init_state": 30,
        "seed": 172,
        "state_hash": "0000000000000000",
        "success": True,
        "success_at_end": True,
        "score": None,
        "steps": 60,
        "queries": 3,
        "seconds": 1.23,
        "error": None,
    }
    assert task["plan"] == ["3:30:172", "3:31:173"]
    assert task["row"]["step_limit"] == 150
    assert task["reference"] == {
        "value": 90.0,
        "unit": "% success",
        "source": "somebody",
        "rate": 0.9,
    }
    assert task["policies"]["trained"]["calls"]["batch_fill"] == 0.75
    assert task["policies"]["expert"]["calls"]["calls"] == 0


def test_keys_of_records_and_of_plans_are_the_same() -> None:
    (result,) = results([True])
    assert episode_key(episode_record(result, "s")) == plan_key(result.episode) == "3:30:172"


def test_a_receipt_has_the_published_form() -> None:
    form = json.loads(SCHEMA_FILE.read_text())
    value = made(trained=[True, False], expert=[True])
    jsonschema.validate(value, form)
    assert form["properties"]["schema"]["const"] == SCHEMA
    for spoil in (
        lambda v: v.update(schema=1),
        lambda v: v.pop("renderer"),
        lambda v: v["policies"]["trained"].pop("hash"),
        lambda v: v["tasks"]["quickstart"].pop("golden_frame"),
        lambda v: v["tasks"]["quickstart"]["policies"]["trained"]["episodes"][0].pop("seed"),
        lambda v: v["tasks"]["quickstart"]["policies"]["trained"]["episodes"][0].update(success=1),
        lambda v: v["tasks"]["quickstart"]["policies"]["trained"]["summary"].pop("interval95"),
    ):
        broken = json.loads(json.dumps(value))
        spoil(broken)
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(broken, form)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"schema": 1, "task": "quickstart"}', "receipt schema 1; this version reads 5"),
        ("[]", r"the content is \[\]; allowed is object"),
        ('{"schema": 5}', "config is missing"),
        ("{", "no JSON"),
    ],
)
def test_other_files_are_refused_by_version(tmp_path: Path, content: str, words: str) -> None:
    path = tmp_path / "results.json"
    path.write_text(content)
    with pytest.raises(FileError, match=words):
        read_receipt(path)
    with pytest.raises(FileError, match="cannot be read"):
        read_receipt(tmp_path / "nowhere.json")


def _film(name: str) -> dict[str, Any]:
    hashes = {"film_sha256": "0" * 64, "trace_sha256": "0" * 64}
    return {
        "policy": "a", "episode": "3:30:172", "success": True, "film": name, "trace": "", **hashes
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda v, _: v["config"].update(shard=[1, 10**9]), r"config\.shard\.1 is 1000000000"),
        (lambda _, t: t["films"].append(_film("../secret")), r"films\.0\.film is \.\./secret"),
        (lambda _, t: t["films"].append(_film("films/../s.mp4")), r"film is films/\.\./s\.mp4"),
        (lambda _, t: t["policies"].pop("a"), r"tasks\.quickstart\.policies has .*those of .*, a"),
        (lambda _, t: t["policies"]["a"]["calls"]["first"].pop(), "lists of different lengths"),
        (lambda _, t: t["policies"]["a"]["episodes"][0].pop("seed"), r"episodes\.0\.seed is miss"),
    ],
)
def test_a_receipt_that_does_not_fit_is_refused_by_field(
    change: Any, words: str, tmp_path: Path
) -> None:
    value = json.loads(json.dumps(made(a=[True])))
    change(value, value["tasks"]["quickstart"])
    write_json(tmp_path / "results.json", sealed(value))
    with pytest.raises(FileError, match=rf"results\.json: .*{words}"):
        read_receipt(tmp_path)


def test_summaries_are_those_of_the_episodes(tmp_path: Path) -> None:
    value = made(a=[True, False])
    stored = json.loads(json.dumps(value))
    stored["tasks"]["quickstart"]["policies"]["a"]["summary"].update(rate=None, successes=7)
    write_json(tmp_path / "results.json", sealed(stored))
    assert read_receipt(tmp_path)["tasks"] == value["tasks"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda _, e: e["episodes"][1].update(success=True),
            r"a\.episodes\.1 does not fit",
        ),
        (lambda _, e: e["episodes"].reverse(), r"a\.episodes\.0 does not fit"),
        (lambda _, e: e["episodes"].pop(), r"a\.episodes\.2 does not fit"),
        (lambda _, e: e["chain"].pop(), r"a\.episodes\.3 does not fit"),
        (lambda v, _: v["policies"]["a"].update(hash="ff"), r"a\.episodes\.0 does not fit"),
        (lambda _, e: e["summary"].update(successes=3), "seal is .*; allowed is .*was changed"),
        (lambda v, _: v.update(renderer="GPU"), "seal is"),
        (lambda v, _: v.update(seal="0" * 64), "seal is 0000"),
    ],
)
def test_a_changed_receipt_is_refused(change: Any, words: str, tmp_path: Path) -> None:
    value = json.loads(json.dumps(made(a=[True, False, True])))
    change(value, value["tasks"]["quickstart"]["policies"]["a"])
    write_json(tmp_path / "results.json", value)
    with pytest.raises(FileError, match=words):
        read_receipt(tmp_path)


def test_versions_name_only_what_is_installed() -> None:
    by_name = versions(("numpy", "no-such-simulator"))
    assert by_name["numpy"] == np.__version__
    assert set(by_name) == {"python", "numpy"}


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"a": float("nan")})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]


def test_a_trace_has_what_a_film_needs() -> None:
    (result,) = results([True])
    chunk = np.ones((30, 20), np.float32)
    trace = dataclasses.replace(result, chunks=[(0, chunk), (30, chunk)]).trace()
    assert trace.chunks.shape == (2, 30, 20)
    assert trace.asked_at.tolist() == [0, 30]
    assert result.trace().chunks.shape == (0, 0, 0)
