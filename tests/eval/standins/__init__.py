"""Simulators that cannot be installed here, by the shapes and calls of their APIs; no physics."""

from __future__ import annotations

import dataclasses
import sys
from types import ModuleType
from typing import Any

import pytest

from eval.tasks.profiles import View
from eval.tasks.spec import TaskSpec
from eval.tasks.table import TASKS

Log = list[tuple[str, Any]]


def spec(*views: View, **changes: Any) -> TaskSpec:
    """A row with nothing of LIBERO that an adapter here would read."""
    row = TASKS["libero_spatial"]
    client = dataclasses.replace(row.client, views=views or row.client.views)
    return dataclasses.replace(row, **{"client": client, "fresh_env": False, **changes})


def install(monkeypatch: pytest.MonkeyPatch, modules: dict[str, ModuleType]) -> None:
    """Lets `modules` be imported until the test ends."""
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)


def calls(log: Log, name: str) -> list[Any]:
    """Arguments of each call of `name`."""
    return [value for called, value in log if called == name]
