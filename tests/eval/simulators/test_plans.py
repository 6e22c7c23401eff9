"""The expert's table of plans, and the stages that a plan makes; the simulator in a slow test."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import numpy as np
import pytest

from eval.recording.demonstrations import Recording, plan
from eval.simulators.expert import Scene, ScriptedExpert
from eval.simulators.host import SimulatorHost
from eval.simulators.plans import PLANS, PickAndPlace, plan_for, planned_tasks
from eval.simulators.workers import WorkerPool, run_jobs
from eval.tasks.table import TASKS, Episode
from tests.eval import fakes

DOWN = fakes.POINTING_DOWN
PLAN = PickAndPlace(
    item="cup",
    goal="shelf",
    grasp=(0.0, 0.05, 0.02),
    hover=0.1,
    carry_height=0.4,
    release=(0.03, 0.05),
    lower=0.15,
    speed=0.05,
    grip_steps=3,
    patience=0,
)


def stages(plan: PickAndPlace, wander: float = 0.0) -> dict[str, list[float]]:
    """Returns stage -> its last command, with a hand that follows commands at once."""
    hand = np.array([0.0, 0.0, 0.5])
    objects = {"cup": np.array([0.2, 0.1, 0.05]), "shelf": np.array([-0.2, 0.3, 0.1])}
    scene = Scene(hand, DOWN, objects)
    rng = np.random.default_rng(0)
    expert = ScriptedExpert(plan, scene, wander=wander, rng=rng, rotation="contiguous")
    reached: dict[str, list[float]] = {}
    for _ in range(150):
        row = expert.act(scene)
        scene = Scene(row[:3].astype(np.float64), DOWN, objects)
        reached[expert.stage] = [round(float(x), 4) for x in (*row[:3], row[9])]
    return reached


def test_stages_go_where_the_plan_says() -> None:
    assert stages(PLAN) == {
        "hover": [0.2, 0.15, 0.17, 0.0],
        "descend": [0.2, 0.15, 0.07, 0.0],
        "grip": [0.2, 0.15, 0.07, 1.0],
        "lift": [0.2, 0.15, 0.4, 1.0],
        "carry": [-0.17, 0.35, 0.4, 1.0],
        "lower": [-0.17, 0.35, 0.25, 1.0],
        "release": [-0.17, 0.35, 0.25, 0.0],
    }


def test_a_plan_that_drops_has_no_lowering_and_wandering_comes_first() -> None:
    dropping = stages(dataclasses.replace(PLAN, lower=0.0), wander=0.02)
    assert list(dropping) == ["wander", "hover", "descend", "grip", "lift", "carry", "release"]
    assert dropping["release"] == [-0.17, 0.35, 0.4, 0.0]


@pytest.mark.parametrize(("patience", "steps"), [(0, 6), (20, 26)])
def test_patience_is_how_long_a_hand_that_does_not_arrive_is_waited_for(
    patience: int, steps: int
) -> None:
    stuck = Scene(np.zeros(3), DOWN, {"cup": np.zeros(3), "shelf": np.zeros(3)})
    plan = dataclasses.replace(PLAN, patience=patience, hover=10.0, speed=100.0)
    expert = ScriptedExpert(
        plan, stuck, wander=0.0, rng=np.random.default_rng(0), rotation="contiguous"
    )
    seen = []
    for _ in range(steps + 1):
        expert.act(stuck)
        seen.append(expert.stage)
    assert seen == ["hover"] * steps + ["descend"]


def test_every_plan_is_of_a_task_in_the_table() -> None:
    for suite, task_id in PLANS:
        assert task_id in TASKS[suite].task_ids


def test_a_task_without_a_plan_names_those_that_have_one() -> None:
    with pytest.raises(ValueError, match=r"libero_goal task 0; .*libero_goal 1, libero_goal 2"):
        plan_for("libero_goal", 0)
    with pytest.raises(ValueError, match="no scripted expert for libero_10 task 0"):
        planned_tasks("libero_10", range(10))


def test_a_recording_takes_the_tasks_that_have_a_plan(tmp_path: Path) -> None:
    spec = TASKS["libero_goal"]
    ids = [episode.task_id for episode in plan(spec, num_episodes=7, seed=0)]
    assert ids == [1, 2, 4, 6, 8, 1, 2]
    made = Recording(tmp_path, spec, num_episodes=7, wander=0.0, rate_hz=10.0, seed=0)
    assert made.ledger()["settings"]["task_ids"] == [1, 2, 4, 6, 8]


@pytest.mark.sim
@pytest.mark.slow
@pytest.mark.parametrize(
    ("suite", "task_id"), [("libero_object", 4), ("libero_spatial", 2), ("libero_goal", 6)]
)
def test_the_expert_solves_a_task_of_each_suite(suite: str, task_id: int) -> None:
    spec = dataclasses.replace(TASKS[suite], step_limit=200)
    with WorkerPool(functools.partial(SimulatorHost, spec), 1) as pool:
        job = ("attempt_by_expert", (Episode(task_id, 0, 100),))
        ((_, attempt),) = run_jobs(pool, [job])
    assert attempt.success
