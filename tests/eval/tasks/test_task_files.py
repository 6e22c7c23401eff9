"""LIBERO-PRO's rows, and the instructions of task files: sent, noted, or refused by name."""

from __future__ import annotations

import dataclasses
import hashlib
from importlib import util
from pathlib import Path

import pytest

from eval.simulators.plans import plan_for, planned_tasks
from eval.tasks.libero_pro import CHANGED_SUITES, CHANGES
from eval.tasks.spec import FILE_NAME, TASK_FILE
from eval.tasks.table import TASKS
from eval.tasks.task_files import TaskFileError, text_of

FILE = "open_the_drawer.bddl"
GOAL = "(:goal\n (And (Open drawer_1_region) (On bowl_1 plate_1))\n)"


def write(folder: Path, suite: str, text: str, goal: str = GOAL) -> Path:
    path = folder / suite / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"(define (problem P)\n  (:language {text})\n {goal}\n)")
    return path


def test_every_change_of_four_suites_has_a_row_and_a_control_arm() -> None:
    suites = ("libero_spatial", "libero_object", "libero_goal", "libero_10")
    changed = [f"{suite}_{change}" for suite in suites for change in CHANGES]
    assert set(changed) == set(CHANGED_SUITES)
    for name in changed:
        row, (base, change) = TASKS[name], CHANGED_SUITES[name]
        control = TASKS[row.control]
        assert (row.suite, control.suite, row.text_source) == (f"{base}_{change}", base, TASK_FILE)
        # nothing but the suite differs
        assert (
            dataclasses.replace(row, name=control.name, suite=control.suite, control="") == control
        )
        assert row.reference == ()
    assert TASKS["libero_object"].text_source == FILE_NAME, "as published results were measured"
    assert TASKS["quickstart_swap"].held_out == TASKS["quickstart"].held_out


def test_the_text_is_that_of_the_task_file(tmp_path: Path) -> None:
    path = write(tmp_path, "libero_goal", "Open the  middle\n layer of the drawer")
    source = text_of(TASKS["libero_goal:task_file"], tmp_path, FILE, "open the drawer")
    assert source == {
        "text": "Open the middle layer of the drawer",
        "source": "task file",
        "file": f"libero_goal/{FILE}",
        "file_text": "Open the middle layer of the drawer",
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    published = text_of(TASKS["libero_goal"], tmp_path, FILE, "open the drawer")
    assert (published["text"], published["source"]) == ("open the drawer", "file name")
    assert published["file_text"] == source["text"]


@pytest.mark.parametrize(
    ("change", "text", "words"),
    [
        ("lan", "open the drawer", r"libero_goal_lan.*are equal, which a suite 'lan' must not"),
        ("task", "Open the Drawer", "are equal, which a suite 'task' must not"),
        (
            "swap",
            "close the drawer",
            "'close the drawer', that of libero_goal is 'open the drawer'",
        ),
        ("object", "close it", "they differ, which a suite 'object' must not"),
    ],
)
def test_a_suite_with_the_wrong_text_is_refused(
    change: str, text: str, words: str, tmp_path: Path
) -> None:
    write(tmp_path, "libero_goal", "open the drawer")
    write(tmp_path, f"libero_goal_{change}", text)
    with pytest.raises(TaskFileError, match=words):
        text_of(TASKS[f"libero_goal_{change}"], tmp_path, FILE, "open the drawer")


@pytest.mark.parametrize(
    ("text", "goal", "words"),
    [
        ("", GOAL, r"has no \(:language"),
        ("open it", "", r"has no \(:goal"),
        ("open it", "(:goal (And ))", r"has no \(:goal"),
        ("open it", "(:goal (And (Open drawer_1)", r"has no \(:goal"),
    ],
)
def test_a_task_file_without_text_or_goal_is_refused(
    text: str, goal: str, words: str, tmp_path: Path
) -> None:
    write(tmp_path, "libero_goal", text, goal)
    with pytest.raises(TaskFileError, match=words):
        text_of(TASKS["libero_goal"], tmp_path, FILE, "open it")
    with pytest.raises(TaskFileError, match="cannot be read"):
        text_of(TASKS["libero_goal"], tmp_path, "other.bddl", "open it")


def test_the_expert_knows_moved_and_renamed_objects() -> None:
    plain, moved = plan_for("libero_object", 3), plan_for("libero_object_swap", 3)
    renamed = plan_for("libero_object_object", 3)
    assert moved == plain
    assert (renamed.item, renamed.goal) == ("green_bbq_sauce_1", "red_basket_1")
    assert renamed.grasp == plain.grasp
    assert len(planned_tasks("libero_spatial_object", range(10))) == 9
    with pytest.raises(ValueError, match="no scripted expert for libero_object_task task 3"):
        plan_for("libero_object_task", 3)


@pytest.mark.sim
def test_all_texts_of_the_installed_suites_are_those_of_their_files() -> None:
    if util.find_spec("libero") is None:
        pytest.skip("LIBERO is not installed (extra sim)")
    from eval.simulators.libero import text_source

    rows = [spec for spec in TASKS.values() if spec.text_source == TASK_FILE]
    sources = [text_source(spec, task_id) for spec in rows for task_id in spec.task_ids]
    assert len(rows) == 2 * 4 * 5 + 5
    assert len(sources) == 2 * 4 * 5 * 10 + 5
    assert all(source["text"] == source["file_text"] for source in sources)
    # the file's name says another thing where the task was changed
    wrong = text_source(TASKS["libero_object_task"], 3)
    assert (
        wrong["file"] == "libero_object_task/pick_up_the_bbq_sauce_and_place_it_in_the_basket.bddl"
    )
    assert wrong["text"] == "Pick the ketchup and place it in the basket"
