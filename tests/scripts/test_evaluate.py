"""Forms of `--policy`; conventions are compared before a simulator starts."""

from __future__ import annotations

import dataclasses
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.rows.contracts import contracts_of
from data.rows.table import dataset
from eval.tasks.table import TASKS, TaskSpec, task_contract, task_spec
from scripts.evaluation import entrants
from scripts.evaluation.entrants import (
    BlindPolicy,
    Entrant,
    check_length,
    check_names,
    common_tasks,
    load,
    parse_policy,
    parse_task_ids,
)
from scripts.evaluation.planned import PlannedPolicy
from tests.xvla_jax import tiny
from xvla_jax.contract import Contract, check_contract
from xvla_jax.errors import ContractError
from xvla_jax.plans import SamplerPlan, exact
from xvla_jax.pretrained import save_pretrained


@pytest.mark.parametrize(
    ("text", "entrant"),
    [
        ("mine=runs/hf", Entrant("mine", "checkpoint", "runs/hf")),
        ("mine=checkpoint:runs/hf", Entrant("mine", "checkpoint", "runs/hf")),
        ("mine=checkpoint:runs/lr=1:2", Entrant("mine", "checkpoint", "runs/lr=1:2")),
        ("base=untrained:runs/hf", Entrant("base", "untrained", "runs/hf")),
        ("dark=blind:runs/hf", Entrant("dark", "blind", "runs/hf")),
        ("script=expert:", Entrant("script", "expert", "")),
        ("runs/hf", Entrant("hf", "checkpoint", "runs/hf")),
        ("blind:runs/hf/", Entrant("hf", "blind", "runs/hf/")),
        ("expert:", Entrant("expert", "expert", "")),
        ("gs://lab/runs/hf", Entrant("hf", "checkpoint", "gs://lab/runs/hf")),
        ("a=blind:gs://lab/hf", Entrant("a", "blind", "gs://lab/hf")),
    ],
)
def test_policies(text: str, entrant: Entrant) -> None:
    assert parse_policy(text) == entrant


@pytest.mark.parametrize(
    "text",
    ["", "a=", "=runs", "a/b=runs", "a=magic:runs", "a=expert:runs", "a=blind:", "http://host"],
)
def test_other_forms_are_refused_with_the_form(text: str) -> None:
    with pytest.raises(
        ValueError, match="NAME=KIND:FOLDER is expected, with KIND one of checkpoint"
    ):
        parse_policy(text)


def test_names_are_checked_before_anything_runs() -> None:
    one, two = Entrant("a", "checkpoint", "x"), Entrant("b", "blind", "x")
    check_names([one, two], "b")
    check_names([one, two], "")
    with pytest.raises(ValueError, match="names a, a; each name may be given once"):
        check_names([one, one], "")
    with pytest.raises(ValueError, match="--film=c: the policies are a, b"):
        check_names([one, two], "c")


def test_beside_the_expert_all_try_what_it_has_a_plan_for() -> None:
    policy, expert = Entrant("a", "checkpoint", "x"), Entrant("b", "expert", "")
    spec = TASKS["libero_goal"]
    assert common_tasks(spec, [policy]) == spec
    shared = common_tasks(spec, [policy, expert])
    assert shared == dataclasses.replace(spec, task_ids=(1, 2, 4, 6, 8))
    with pytest.raises(ValueError, match="no scripted expert for libero_10"):
        common_tasks(TASKS["libero_10"], [expert])
    asked = common_tasks(task_spec("quickstart"), [policy, expert], (3, 1, 8))
    assert asked.task_ids == (3, 1, 8)
    assert common_tasks(TASKS["vlabench_track_1"], [policy], (4,)).task_ids == (4,)


@pytest.mark.parametrize("suite", ["task_names", "scenarios"])
def test_a_task_that_the_row_has_not_is_refused(suite: str) -> None:
    policy = Entrant("a", "checkpoint", "x")
    spec = next(spec for spec in TASKS.values() if getattr(spec, suite))
    last = len(getattr(spec, suite)) - 1
    assert common_tasks(spec, [policy], (last,)).task_ids == (last,)
    with pytest.raises(ValueError, match=rf"--task_ids={last + 1}; {spec.name} has 0 \.\. {last}"):
        common_tasks(spec, [policy], (0, last + 1))


def test_task_ids_are_integers_that_differ() -> None:
    assert parse_task_ids(None) is None
    assert parse_task_ids(["3", "1"]) == (3, 1)
    for texts in ([], [""], ["3", "3"], ["-1"], ["1.5"], ["one"]):
        with pytest.raises(ValueError, match="different integers from 0 on"):
            parse_task_ids(texts)


def _with_client(**change: Any) -> TaskSpec:
    spec = task_spec("quickstart")
    return dataclasses.replace(spec, client=dataclasses.replace(spec.client, **change))


def test_the_quickstart_row_fits_its_dataset() -> None:
    """Door 1 and door 2 agree: what the demonstrations teach is what the task expects."""
    (taught,) = contracts_of([dataset("libero_demos")], num_actions=30)
    contracts = {3: Contract(action_space="ee6d", **taught)}
    contract = Contract(action_space="ee6d", **task_contract(task_spec("quickstart")))
    check_contract(contracts, contract, who="quickstart")
    for change, field in (
        ({"rotation": "interleaved"}, "rotation_layout"),
        ({"anchor_hz": 30.0}, "anchor_hz"),
        ({"proprio": "measured"}, "proprio"),
        ({"views": TASKS["quickstart"].client.views[::-1]}, "views"),
    ):
        other = _with_client(**change)
        with pytest.raises(ContractError, match=f"{field}: checkpoint .*, quickstart"):
            check_contract(
                contracts, Contract(action_space="ee6d", **task_contract(other)), who="quickstart"
            )
    elsewhere = _with_client(domain_id=5)
    with pytest.raises(ContractError, match="needs domain 5; the checkpoint was trained for"):
        check_contract(
            contracts, Contract(action_space="ee6d", **task_contract(elsewhere)), who="quickstart"
        )


def test_a_policy_of_joints_does_not_meet_a_task_of_poses(tmp_path: Path) -> None:
    config = dataclasses.replace(tiny.CONFIG, action_mode="auto", real_action_dim=7)
    joints = Contract(3, "auto", "none", 20.0, ("agentview", "wrist"), "commanded")
    save_pretrained(
        tmp_path / "joints",
        config,
        tiny.params(),
        processor=tiny.PROCESSOR,
        contracts={3: joints},
    )
    entrant = Entrant("a", "checkpoint", str(tmp_path / "joints"))
    message = "task 'quickstart' has poses with .* 'contiguous', but action space 'auto' takes"
    with pytest.raises(ContractError, match=message):
        load(entrant, [task_spec("quickstart")], lerobot_python="", until=ExitStack())


class _Echo:
    """Returns the brightest pixel of each observation."""

    def act(self, observations: list[dict], *, seed: list[int]) -> np.ndarray:
        return np.asarray([max(image.max() for image in o["images"]) for o in observations])


def test_the_blind_policy_shows_black() -> None:
    bright: Any = {
        "images": [np.full((2, 2, 3), 255, np.uint8)],
        "instruction": "x",
        "domain_id": 0,
    }
    observation = bright | {"proprio": np.zeros(20, np.float32)}
    assert BlindPolicy(_Echo()).act([observation], seed=[0]).tolist() == [0]
    assert observation["images"][0].max() == 255  # the caller's image is as it was


class _Steps:
    """Returns the denoising steps that it is called with."""

    def act(self, observations: list[dict], *, seed: list[int], plan: SamplerPlan) -> np.ndarray:
        return np.asarray([plan.steps for _ in observations])


def test_other_denoising_steps_reach_the_policy() -> None:
    policy: Any = _Steps()
    observation: Any = {"images": [np.zeros((2, 2, 3), np.uint8)]}
    stepped: Any = PlannedPolicy(policy, exact(3))
    assert stepped.act([observation] * 2, seed=[0, 1]).tolist() == [3, 3]
    assert BlindPolicy(stepped).act([observation], seed=[0]).tolist() == [3]


def test_other_denoising_steps_reach_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class Remote:
        policy_hash, contract, info = "ab12", {}, {"num_actions": 30}

        def __init__(self, url: str, *, expected: dict, steps: int | None) -> None:
            asked.append((url, expected["domain_id"], steps))

    monkeypatch.setattr(entrants, "RemotePolicy", Remote)
    served = Entrant("a", "server", "http://robot:8010")
    for steps in (None, 5):
        load(served, [task_spec("so101")], lerobot_python="", until=ExitStack(), steps=steps)
    assert asked == [("http://robot:8010", 0, None), ("http://robot:8010", 0, 5)]
    Remote.info = {"num_actions": 10}
    with pytest.raises(ValueError, match=r"so101' carries out 20 rows .* may be 1 to 10"):
        load(served, [task_spec("so101")], lerobot_python="", until=ExitStack())


def test_lerobot_takes_no_other_steps(tmp_path: Path) -> None:
    contract = Contract(action_space="ee6d", **task_contract(task_spec("quickstart")))
    save_pretrained(
        tmp_path / "a",
        dataclasses.replace(tiny.CONFIG, num_actions=30),
        tiny.params(),
        processor=tiny.PROCESSOR,
        contracts={3: contract},
    )
    entrant = Entrant("a", "lerobot", str(tmp_path / "a"))
    with pytest.raises(ValueError, match="--steps=5: a acts inside LeRobot with the steps of its"):
        load(entrant, [task_spec("quickstart")], lerobot_python="", until=ExitStack(), steps=5)


def test_a_row_that_needs_longer_chunks_is_refused_before_a_simulator_starts() -> None:
    for name in ("quickstart", "google_vm_coke"):
        check_length(task_spec(name), 30)
    with pytest.raises(ValueError, match=r"quickstart' carries out 30 .* may be 1 to 16"):
        check_length(task_spec("quickstart"), 16)
    with pytest.raises(ValueError, match=r"with stride 2; .* have 16 .* --executed may be 1 to 8"):
        check_length(task_spec("google_vm_coke"), 16)
