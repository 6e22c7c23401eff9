"""Columns that a command changes are another protocol, and recorded as one."""

from __future__ import annotations

import pytest

from eval.tasks.spec import Override, row_values
from eval.tasks.table import TASKS
from eval.tasks.variants import OVERRIDES, overridden

ROW = TASKS["libero_goal"]


def test_other_values_replace_the_rows_own_and_are_recorded() -> None:
    made = overridden(ROW, {"executed": 10, "step_limit": 300, "steps": 5})
    assert (made.client.executed, made.step_limit, made.client.wire.denoising_steps) == (10, 300, 5)
    assert made.overrides == (
        Override("executed", 30, 10),
        Override("step_limit", 800, 300),
        Override("steps", 10, 5),
    )
    assert (made.name, made.reference) == ("libero_goal", ())
    assert row_values(made)["overrides"][0] == {"column": "executed", "own": 30, "used": 10}


def test_no_value_and_the_rows_own_value_change_nothing() -> None:
    assert overridden(ROW, dict.fromkeys(OVERRIDES)) is ROW
    assert overridden(ROW, {"executed": 30, "step_limit": 800, "steps": 10}) is ROW
    left_open = TASKS["robotwin_easy"]
    assert left_open.client.wire.denoising_steps is None
    assert overridden(left_open, {"steps": 10}).overrides == (Override("steps", None, 10),)


@pytest.mark.parametrize("column", OVERRIDES)
def test_a_value_below_one_is_refused(column: str) -> None:
    with pytest.raises(ValueError, match=f"--{column}=0; 1 or more"):
        overridden(ROW, {column: 0})
