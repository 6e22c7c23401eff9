"""The task table is complete and says what the authors' client does."""

from __future__ import annotations

import pytest

from eval.tasks.profiles import GripperRule
from eval.tasks.table import (
    TASKS,
    TRAINING_STATES,
    TaskSpec,
    episodes,
    evaluation_states,
    task_spec,
)

ROWS = list(TASKS.values())
LIBERO = ["libero_spatial", "libero_object", "libero_goal", "libero_10", "libero_90"]


@pytest.mark.parametrize("spec", ROWS, ids=lambda spec: spec.name)
def test_rows_are_complete(spec: TaskSpec) -> None:
    assert TASKS[spec.name] is spec
    assert len(set(spec.task_ids)) == len(spec.task_ids)
    assert 1 <= len(spec.client.views) <= 3
    assert spec.client.rows_needed <= 30
    if spec.benchmark == "libero":
        assert spec.step_limit + spec.settle_steps <= 1000  # robosuite's horizon
    if spec.benchmark:
        assert spec.step_limit > 0


@pytest.mark.parametrize("name", LIBERO)
def test_faithful_libero_rows(name: str) -> None:
    spec = task_spec(name)
    client = spec.client
    assert client.domain_id == 3
    assert spec.step_limit == (900 if name == "libero_10" else 800)
    assert (client.executed, client.stride, client.feedback_channels) == (30, 1, 9)
    assert client.feedback == "chunk_end"
    assert (spec.settle_steps, spec.control_hz, spec.image_size) == (10, 20, 256)
    assert client.gripper == GripperRule(0.5, False, False, (1.0,), (-1.0,))
    assert [(v.flip_rows, v.flip_columns) for v in client.views] == [(True, True), (False, False)]


def test_an_unknown_task_lists_the_known() -> None:
    with pytest.raises(ValueError, match=r"libero_goal.*quickstart"):
        task_spec("libero_kitchen")


def test_training_and_evaluation_share_no_state() -> None:
    states = (*TRAINING_STATES, *evaluation_states(task_spec("quickstart")))
    assert sorted(states) == list(range(80))


def test_episode_seeds_follow_the_authors_client() -> None:
    made = episodes(task_spec("libero_spatial"), init_states=(0, 7), seed=42)
    assert len(made) == 20
    assert [(e.task_id, e.init_state, e.seed) for e in made[:3]] == [
        (0, 0, 142),
        (0, 7, 149),
        (1, 0, 142),
    ]


def test_a_state_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\[50\].*0\.\.49"):
        episodes(task_spec("libero_object"), init_states=(1, 50), seed=0)


@pytest.mark.parametrize("name", ["quickstart", "so101"])
def test_rows_with_demonstrations_of_ours_have_states_without_an_end(name: str) -> None:
    spec = task_spec(name)
    assert max(evaluation_states(spec)) == spec.num_init_states - 1  # what is evaluated by itself
    made = episodes(spec, init_states=range(30, 230), seed=0)
    assert len({(e.init_state, e.seed) for e in made}) == 200
