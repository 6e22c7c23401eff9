"""Disturbed rows: their names, levels and control arms, and what an episode draws."""

from __future__ import annotations

import dataclasses

import pytest

from eval.disturbances.axes import AXES, draws
from eval.tasks.spec import row_values
from eval.tasks.table import TASKS, task_spec
from scripts import choices


@pytest.mark.parametrize("axis", AXES)
def test_a_row_takes_each_level_of_each_axis(axis: str) -> None:
    amounts = []
    for level in range(len(AXES[axis].amounts) + 1):
        row = task_spec(f"libero_goal:strict:{axis}{level}")
        assert row.disturbance is not None
        amounts.append(row.disturbance.amount)
        assert (row.control, row.reference) == ("libero_goal:strict", ())
        plain = dataclasses.replace(row, name=row.control, control="", disturbance=None)
        assert plain == TASKS["libero_goal:strict"]
    assert amounts[0] == 0
    assert amounts == sorted(set(amounts)), "a higher level changes more"


def test_published_results_are_of_rows_without_disturbance() -> None:
    assert TASKS["libero_goal"].reference
    assert task_spec("libero_goal:camera0").reference == ()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("quickstart:camera4", "camera has levels 0 to 3, not 4"),
        ("quickstart:sound1", "no axis 'sound' to disturb; the axes are camera, light"),
        ("so101:camera1", "so101 is of so101 and cannot be disturbed; rows of libero can"),
        ("softfold:delay1", "softfold is of a real robot and cannot be disturbed"),
        ("libero_kitchen:camera1", "no task 'libero_kitchen:camera1'"),
    ],
)
def test_other_names_are_refused(name: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        task_spec(name)
    (line,) = choices.problems("tasks", ["quickstart:text3", name])
    assert words.partition(";")[0] in line or "there is no 'libero_kitchen:camera1'" in line


def test_the_list_shows_the_axes() -> None:
    assert "ROW:delay1 .. 3" in choices.text("tasks")


def test_rows_without_variants_are_stored_as_ever() -> None:
    for spec in TASKS.values():
        stored = {
            k: v
            for k, v in dataclasses.asdict(spec).items()
            if k not in ("disturbance", "overrides")
        }
        assert row_values(spec) == stored
    assert row_values(task_spec("quickstart:delay2"))["disturbance"]["amount"] == 2


def test_draws_follow_axis_task_state_and_seed() -> None:
    first = draws("camera", 3, 30, 130).normal(size=4).tolist()
    assert draws("camera", 3, 30, 130).normal(size=4).tolist() == first
    for other in (("light", 3, 30, 130), ("camera", 4, 30, 130), ("camera", 3, 31, 130)):
        assert draws(*other).normal(size=4).tolist() != first
    assert draws("camera", 3, 30, 131).normal(size=4).tolist() != first
    draws("camera", 3, -1, 0)  # objects placed by the simulator
