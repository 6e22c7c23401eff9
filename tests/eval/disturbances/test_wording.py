"""Other words for the same task: no object and no place is lost."""

from __future__ import annotations

from importlib import util
from pathlib import Path

import pytest

from eval.disturbances.wording import reworded
from eval.tasks.table import TASKS, task_spec
from eval.tasks.task_files import TaskFileError, text_of

MUG = "put the yellow and white mug in the microwave and close it"


def test_each_level_has_other_words() -> None:
    text = "pick up the bbq sauce and place it in the basket"
    assert [reworded(text, level) for level in range(4)] == [
        text,
        "grab the bbq sauce and set it in the basket",
        "could you grab the bbq sauce and set it in the basket, please",
        "there is one more thing to do before we can leave, and that is to grab the bbq sauce and "
        "set it in the basket, so go ahead",
    ]
    assert reworded(MUG, 1) == "set the yellow and white mug in the microwave and shut it"
    assert reworded("Pick the ketchup", 1) == "grab the ketchup"
    assert reworded("turn on the stove and put the pan on it", 1) == (
        "switch on the stove and set the pan on it"
    )


def test_a_text_without_a_known_verb_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'wipe the table' has none of the verbs pick up, pick"):
        reworded("wipe the table", 1)
    folder = tmp_path / "libero_goal"
    folder.mkdir()
    (folder / "a.bddl").write_text("(:language wipe the table) (:goal (And (On a b)))")
    with pytest.raises(TaskFileError, match=r"a\.bddl: the instruction 'wipe the table' has none"):
        text_of(task_spec("libero_goal:text1"), tmp_path, "a.bddl", "wipe the table")
    kept = text_of(task_spec("libero_goal:camera1"), tmp_path, "a.bddl", "wipe the table")
    assert kept == text_of(TASKS["libero_goal"], tmp_path, "a.bddl", "wipe the table")


@pytest.mark.sim
def test_every_task_of_libero_has_three_other_texts() -> None:
    if util.find_spec("libero") is None:
        pytest.skip("LIBERO is not installed (extra sim)")
    from eval.simulators.libero import text_source

    verbs = {"pick", "up", "put", "place", "open", "close", "push", "stack", "turn", "on", "off"}
    count = 0
    for name in ("libero_spatial", "libero_object", "libero_goal", "libero_10", "libero_90"):
        for task_id in TASKS[name].task_ids:
            plain = text_source(TASKS[name], task_id)["text"]
            sources = [text_source(task_spec(f"{name}:text{k}"), task_id) for k in (1, 2, 3)]
            assert {source["reworded_from"] for source in sources} == {plain}
            texts = [plain, *(source["text"].replace(",", "") for source in sources)]
            assert len(set(texts)) == 4
            assert all(set(plain.split()) - set(t.split()) <= verbs for t in texts), texts
            count += 1
    assert count == 130
