"""Values that flags may have: rows of tables, which ``--list`` prints, and local places."""

from __future__ import annotations

import ast
import difflib
import math
import pathlib
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from data.rows.mixtures import Mixture
    from data.spec import DatasetSpec

ARGUMENT = "argument"  # what stands for positional arguments among the flags
_MANY = 8  # entries, above which a cell counts them
_CONFIGS = pathlib.Path(__file__).parents[1] / "configs"
# A place in a store, as a complete value or behind NAME= or KIND: of one; URLs of servers are none.
_PLACE: Final = re.compile(r"(?:^|[=:,])(?!https?:|wss?:)(?P<scheme>[a-z][a-z0-9+.-]*)://")


class Table(NamedTuple):
    """Names to choose from.

    Attributes:
        columns: headings; the first column is the name.
        rows: reads the rows; nothing is imported before.
        names: splits a flag's value into the names in it; those that stand for code of the
            user's are left out.
        variant: returns what is wrong with a name that is made of a row's, "" where nothing is, and
            None for a name of another form.
    """

    columns: tuple[str, ...]
    rows: Callable[[], list[tuple[str, ...]]]
    names: Callable[[str], list[str]]
    variant: Callable[[str], str | None] = lambda name: None  # noqa: ARG005


def _tasks() -> list[tuple[str, ...]]:
    from eval.disturbances.axes import AXES, BENCHMARKS
    from eval.tasks.table import TASKS

    rows = [
        (name, row.benchmark or "real robot", row.suite, str(len(row.task_ids) or "?"))
        for name, row in sorted(TASKS.items())
    ]
    disturbed = ", ".join(BENCHMARKS)
    return rows + [
        (f"ROW:{axis}1 .. {len(one.amounts)}", disturbed, one.changes, "")
        for axis, one in AXES.items()
    ]


def _disturbed_task(name: str) -> str | None:
    from eval.disturbances.axes import split_name
    from eval.tasks.table import TASKS, task_spec

    parts = split_name(name)
    if parts is None or parts[0] not in TASKS:
        return None
    try:
        task_spec(name)
    except ValueError as error:
        return str(error)
    return ""


def _data() -> list[tuple[str, ...]]:
    from data.rows.mixtures import MIXTURES
    from data.rows.oxe import REFUSED
    from data.rows.table import DATASETS

    mixtures = [
        (name, "mixture", "", _weights(name, mixture))
        for name, mixture in MIXTURES.items()
        if name not in DATASETS
    ]
    rows = [
        (name, row.storage, _domain(row), _rate_and_views(row)) for name, row in DATASETS.items()
    ]
    refused = [(name, "refused", "", reason) for name, reason in REFUSED.items()]
    return [*mixtures, *rows, *refused]


def _weights(name: str, mixture: Mixture) -> str:
    """Weights of a mixture, or their number where they are many, and the sets left out."""
    from data.rows.oxe_mixtures import LEFT_OUT

    weights = [f"{row}:{weight:g}" for row, weight in mixture]
    if len(weights) > _MANY:
        weights = [f"{len(weights)} sets, weights by {mixture.per} (docs/oxe.md)"]
    left_out = LEFT_OUT.get(name, {})
    names = ", ".join(left_out) if len(left_out) <= _MANY else f"{len(left_out)} others"
    return ", ".join(weights) + (f"; without {names}" if left_out else "")


def _domain(row: DatasetSpec) -> str:
    """Name of the domain where it is not the row's, or its id."""
    domain = row.domain or str(row.domain_id)
    return "" if domain == row.name else domain


def _rate_and_views(row: DatasetSpec) -> str:
    views = ", ".join(key.removeprefix("observation.") for key in row.view_keys)
    rate = f"{row.rate_hz:g} Hz, {views}"
    return f"{rate}; confidence {row.confidence}" if row.confidence else rate


def _data_names(text: str) -> list[str]:
    """Names in ``NAME``, ``NAME:weight,...``; ``module:NAME`` is a row of the user's own."""
    from data.rows.table import DATASETS

    if ":" not in text:
        return [text]
    names = [item.strip().rpartition(":")[0] for item in text.split(",")]
    return [name for name in names if name in DATASETS]


def _configs() -> list[tuple[str, ...]]:
    """Experiments: the configs whose docstring says how they are trained."""
    docs = {path: docstring(path) for path in sorted(_CONFIGS.glob("*.py"))}
    return [
        (f"configs/{path.name}", doc.splitlines()[0])
        for path, doc in docs.items()
        if "python -m scripts.train" in doc
    ]


def _plans() -> list[tuple[str, ...]]:
    from xvla_jax.plans import PLANS

    return [
        (
            name,
            str(row.steps),
            "each step" if row.refresh is None else ", ".join(map(str, row.refresh)),
            f"{row.tolerance:g}" if row.tolerance else "",
        )
        for name, row in PLANS.items()
    ]


def docstring(path: pathlib.Path) -> str:
    """Returns the docstring of a module without importing it."""
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""


TABLES = {
    "tasks": Table(
        ("task", "benchmark", "suite", "tasks"), _tasks, lambda text: [text], _disturbed_task
    ),
    "data": Table(("data", "storage", "domain", "rate and views, or weights"), _data, _data_names),
    "plans": Table(
        ("plan", "steps", "context computed in step", "stops below"),
        _plans,
        lambda text: [text.rpartition("=")[2].partition(":")[0]],  # [POLICY=]PLAN[:SHARE]
    ),
    "configs": Table(("config", "what it trains"), _configs, lambda text: []),  # noqa: ARG005
}


def text(table: str) -> str:
    """Returns a table with aligned columns."""
    columns, read_rows, *_ = TABLES[table]
    rows = [columns, *read_rows()]
    widths = [max(len(row[i]) for row in rows) for i in range(len(columns))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def problems(table: str, value: Any) -> Iterator[str]:
    """Yields a line for each unknown name in a flag's value, with the names closest to it."""
    values = value if isinstance(value, list) else [value] if isinstance(value, str) else []
    names = [name for item in values if item for name in TABLES[table].names(item)]
    if not names:
        return
    known = [row[0] for row in TABLES[table].rows()]
    for name in names:
        refusal = None if name in known else TABLES[table].variant(name)
        if refusal:
            yield refusal
        elif name not in known and refusal is None:
            close = difflib.get_close_matches(name, known, n=3)
            hint = f"; close to it: {', '.join(close)}" if close else ""
            yield f"there is no {name!r}{hint}"


def number_problems(values: Mapping[str, Any]) -> Iterator[str]:
    """Yields a line for each flag, of flag -> value, whose number is not finite.

    A bound of a flag lets NaN pass, as every comparison with it is false.
    """
    for flag, value in values.items():
        if isinstance(value, float) and not math.isfinite(value):
            yield f"{flag}={value}: a finite number is needed"


def bucket_problems(values: Mapping[str, Any], allowed: Collection[str]) -> Iterator[str]:
    """Yields a line for each value that lies in a bucket; a local folder would get its name.

    Args:
        values: by flag; lists and configs are searched.
        allowed: flags, and fields of a config, that may lie in a bucket of Google Cloud Storage.
    """
    flags = " and ".join("arguments" if name == ARGUMENT else f"--{name}" for name in allowed)
    for flag, value in values.items():
        for field, text in _texts(flag, value):
            place = _PLACE.search(text)
            if place and not (place["scheme"] == "gs" and field.removeprefix("--") in allowed):
                also = f" (gs:// is taken by {flags} only)" if flags else ""
                yield (
                    f"{field} is {text}, in a bucket; a local path is needed, or that of a mount "
                    f"of the bucket{also}"
                )


def _texts(name: str, value: Any) -> Iterator[tuple[str, str]]:
    """Texts in a value, with the name of the flag or of the field of its config."""
    if isinstance(value, str):
        yield name, value
    elif isinstance(value, list | tuple):
        for element in value:
            yield from _texts(name, element)
    elif hasattr(value, "items"):
        for key, element in value.items():
            yield from _texts(f"{name}.{key}", element)
