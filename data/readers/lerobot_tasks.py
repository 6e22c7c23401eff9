"""The texts of a LeRobot episode: `task_index` of each frame, looked up in the list of tasks.

The list is meta/tasks.jsonl (v2) or meta/tasks.parquet (v3). An episode also lists its own tasks,
as texts or as places in that list; what its frames say must be among them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.faults import FaultError, needs
from data.texts import plain_text, type_name
from data.untrusted import read_lines

with needs("data"):
    import pyarrow.parquet as pq

TASK_INDEX = "task_index"
LINES, TABLE = "tasks.jsonl", "tasks.parquet"
# pandas writes the texts as the index of the table, with or without a name
_TEXT_COLUMNS = ("task", "__index_level_0__")

Tasks = Mapping[int, Any]


def read_tasks(meta: Path) -> Tasks | None:
    """Reads number -> task as recorded, of the folder `meta`; None where it has no list of tasks.

    Raises:
        ValueError: the list is of another form; the message names file and line.
    """
    lines, table = meta / LINES, meta / TABLE
    if lines.is_file():
        return _numbered([row for _, row in read_lines(lines)], lines)
    if not table.is_file():
        return None
    content = pq.read_table(table)
    names = [name for name in _TEXT_COLUMNS if name in content.column_names]
    if TASK_INDEX not in content.column_names or not names:
        raise ValueError(
            f"{table} has columns {', '.join(content.column_names)}; needed are {TASK_INDEX} and "
            "task"
        )
    return _numbered(
        [
            {TASK_INDEX: row[TASK_INDEX], "task": row[names[0]]}
            for row in content.select([TASK_INDEX, names[0]]).to_pylist()
        ],
        table,
    )


def episode_text(listed: Any, tasks: Tasks | None, numbers: NDArray[Any] | None) -> Any:
    """The text of an episode as recorded: one, or one for each frame.

    Args:
        listed: the tasks of the episode: a text, or a list of texts or of places in `tasks`;
            None: it lists none.
        tasks: the list of tasks; None: there is none.
        numbers: [T] task_index of the frames; None: the table has no such column, and all frames
            have the first task, as in X-VLA's own reader.

    Raises:
        FaultError: the frames, the list of tasks and the episode do not agree.
    """
    texts = _listed(listed, tasks)
    if numbers is None or tasks is None:
        return _text_of_episode(texts, numbers)
    if numbers.dtype.kind not in "iu":
        raise FaultError("malformed", f"{TASK_INDEX} is {type_name(numbers)}, allowed are integers")
    chosen, places = np.unique(numbers.reshape(-1), return_inverse=True)
    texts_by_task = [_task(int(number), tasks, TASK_INDEX) for number in chosen]
    if texts:
        among = {plain_text(text, "tasks of the episode") for text in texts}
        others = [text for text in texts_by_task if plain_text(text, "task") not in among]
        if others:
            raise FaultError(
                "malformed",
                f"its frames have the task {others[0]!r}, the episode lists {sorted(among)}",
            )
    return (
        [texts_by_task[place] for place in places] if len(texts_by_task) > 1 else texts_by_task[0]
    )


def _text_of_episode(texts: Sequence[Any] | None, numbers: NDArray[Any] | None) -> Any:
    if texts is None:
        raise FaultError(
            "missing_key",
            f"the episode lists no tasks, and there is no {LINES} or {TABLE} with a column "
            f"{TASK_INDEX} of its frames; fixed_instruction of the row can take their place",
        )
    different = 1 if numbers is None else len(np.unique(numbers))
    if different > 1 or (numbers is not None and len(texts) > 1):
        raise FaultError(
            "malformed",
            f"the episode has {len(texts)} tasks, its frames {different} values of {TASK_INDEX}; "
            f"{LINES} or {TABLE}, which says what these are, is missing",
        )
    return texts[0] if texts else None


def _listed(listed: Any, tasks: Tasks | None) -> list[Any] | None:
    """Tasks that an episode lists, places replaced by the tasks there."""
    if listed is None:
        return None
    if isinstance(listed, str | bytes):
        listed = [listed]
    if not isinstance(listed, list):
        raise FaultError(
            "malformed", f"tasks is {type_name(listed)}, allowed is a text or a list of texts"
        )
    return [_task(item, tasks, "tasks") if type(item) is int else item for item in listed]


def _task(number: int, tasks: Tasks | None, where: str) -> Any:
    if tasks is None:
        raise FaultError("malformed", f"{where} has {number}, but there is no {LINES} or {TABLE}")
    if number not in tasks:
        known = ", ".join(map(str, sorted(tasks)[:10]))
        raise FaultError("malformed", f"{where} has {number}, the list of tasks has {known}")
    return tasks[number]


def _numbered(rows: Sequence[Any], path: Path) -> Tasks:
    made: dict[int, Any] = {}
    for number, row in enumerate(rows, start=1):
        good = isinstance(row, dict) and type(row.get(TASK_INDEX)) is int and "task" in row
        if not good or row[TASK_INDEX] in made:
            raise ValueError(
                f"{path}, entry {number}: {str(row)[:80]}; needed are {TASK_INDEX}, a number of "
                "its own, and task"
            )
        made[row[TASK_INDEX]] = row["task"]
    return made
