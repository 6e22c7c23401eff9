"""The prefix of a request: what comes out of its forms, and what is refused by name."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from eval.client.remote import TRAINED
from eval.robot.realtime import STRATEGIES
from tests.xvla_jax.serving.fakes import ROWS, WIDTH, FakeEngine, dumps, request
from xvla_jax.inpainting import MODES
from xvla_jax.serving.codecs import decode_array, decode_object
from xvla_jax.serving.limits import RequestError
from xvla_jax.serving.request import parse_request


def parsed(**changes: Any) -> Any:
    fields = decode_object(json.dumps(request(**changes)).encode())
    return parse_request(fields, FakeEngine().rules, decode_array).observation


@pytest.mark.parametrize("form", [dumps, json.dumps, lambda rows: rows])
def test_its_forms(form: Any) -> None:
    rows = [[0.25] * WIDTH, [0.5] * WIDTH]
    prefix = parsed(prefix=form(rows), prefix_committed=1)
    assert prefix["prefix"].dtype == np.float32
    assert prefix["prefix"].tolist() == rows
    assert prefix["prefix_committed"] == 1
    assert parsed(prefix=form(rows))["prefix_committed"] == 2


def test_its_mode() -> None:
    rows = [[0.25] * WIDTH]
    assert parsed(prefix=rows, prefix_mode="trained")["prefix_mode"] == "trained"
    assert parsed(prefix_mode="inpaint")["prefix_mode"] == "inpaint"
    assert "prefix_mode" not in parsed(prefix=rows)


def test_robots_ask_for_the_modes_that_there_are() -> None:
    assert {strategy.prefix for strategy in STRATEGIES.values()} - {""} == set(MODES)
    assert [name for name, mode in MODES.items() if mode.trained] == [TRAINED]


def test_none_and_an_empty_one() -> None:
    assert "prefix" not in parsed()
    for empty in ([], dumps(np.zeros((0, WIDTH), np.float32))):
        prefix = parsed(prefix=empty)
        assert (prefix["prefix"].shape, prefix["prefix_committed"]) == ((0, WIDTH), 0)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"prefix": "/etc/passwd"}, "prefix"),
        ({"prefix": 3}, "prefix"),
        ({"prefix": [[0.0] * WIDTH, [0.0]]}, "prefix"),
        ({"prefix": [["a"] * WIDTH]}, "prefix"),
        ({"prefix": [[1e39] * WIDTH]}, "prefix"),
        ({"prefix": [[10**30] * WIDTH]}, "prefix"),
        ({"prefix": dumps(np.full((1, WIDTH), np.nan))}, "prefix"),
        ({"prefix": dumps(np.zeros((ROWS + 1, WIDTH)))}, "prefix"),
        ({"prefix": dumps(np.zeros((2, WIDTH - 1)))}, "prefix"),
        ({"prefix": dumps(np.zeros(WIDTH))}, "prefix"),
        ({"prefix": dumps(np.zeros((1, 1, WIDTH)))}, "prefix"),
        ({"prefix": dumps(np.zeros((1, WIDTH), bool))}, "prefix"),
        ({"prefix": dumps(np.zeros((2, WIDTH))), "prefix_committed": 3}, "prefix_committed"),
        ({"prefix": dumps(np.zeros((2, WIDTH))), "prefix_committed": -1}, "prefix_committed"),
        ({"prefix_committed": 0}, "prefix_committed"),
        ({"prefix_mode": "guess"}, "prefix_mode"),
        ({"prefix_mode": 1}, "prefix_mode"),
    ],
)
def test_what_is_none_is_refused(change: dict[str, Any], field: str) -> None:
    with pytest.raises(RequestError) as refusal:
        parsed(**change)
    assert (refusal.value.status, refusal.value.field) == (400, field)
    assert refusal.value.allowed
