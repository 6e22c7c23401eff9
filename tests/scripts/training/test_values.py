"""Numbers of a config that no run can have are refused by field, whatever the field."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import math
from typing import Any

import pytest

from configs import debug
from scripts.training.values import (
    CHECKED_ELSEWHERE,
    LIMITS,
    check_values,
    fields_of,
    idle_groups,
    limit_of,
)
from tests.scripts.test_configs import EXPERIMENTS
from tests.xvla_jax import tiny
from xvla_jax.errors import ConfigError
from xvla_jax.training.optimizer import GroupRow

_DEBUG = debug.get_config().to_dict()
_FIELDS = fields_of(_DEBUG)
_NUMBERS = {
    field: value
    for field, value in _FIELDS.items()
    if isinstance(value, int | float) and not isinstance(value, bool)
} | {"optimizer.betas": _FIELDS["optimizer.betas"]}


def _checked(field: str, value: Any) -> None:
    config = copy.deepcopy(_DEBUG)
    section, (*path, name) = config, field.split(".")
    for part in path:
        section = section[part]
    section[name] = value
    check_values(config)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_values_of_every_experiment_are_allowed(name: str) -> None:
    check_values(importlib.import_module(f"configs.{name}").get_config().to_dict())


def test_every_number_of_a_config_has_a_row_and_every_row_a_number() -> None:
    assert [field for field in _NUMBERS if limit_of(field) is None] == []
    tuples = {field for field, value in _FIELDS.items() if isinstance(value, tuple)}
    assert tuples == {"optimizer.betas", "lora.modules_to_save"}, "a row of LENGTHS, or words"
    assert {"mesh.fsdp", "log_every"} <= _NUMBERS.keys()
    used = {limit_of(field) for field in _NUMBERS}
    assert {allowed for _, allowed in LIMITS} <= used
    assert not any(field.startswith(CHECKED_ELSEWHERE) for field in _NUMBERS)


@pytest.mark.parametrize("field", _NUMBERS)
def test_what_is_no_number_or_too_large_is_refused_everywhere(field: str) -> None:
    for value in (math.nan, math.inf, -math.inf, -1e19, 2**64, None):
        if value == 2**64 and isinstance(_NUMBERS[field], float):
            continue  # seconds, megabytes: unwise, but a number
        with pytest.raises(ConfigError, match=rf"^config\.{field} is .*; allowed is "):
            _checked(field, (value, 0.9) if field == "optimizer.betas" else value)


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("log_every", 0, ">= 1"),
        ("optimizer.iters", 0, ">= 1 and <= 1000000000"),
        ("optimizer.max_grad_norm", -1.0, ">= 0"),
        ("optimizer.eps", 1e-40, ">= 1e-30"),
        ("optimizer.betas", (0.9, 1.0), ">= 0 and < 1"),
        ("optimizer.betas", ("a", 0.9), ">= 0 and < 1"),
        ("batch_size", 2_000_000, ">= 1 and <= 1000000"),
        ("validation.stride", 0, ">= 1"),
        ("mesh.fsdp", 0, ">= -1 and != 0"),
    ],
)
def test_the_line_has_value_and_what_is_allowed(field: str, value: Any, allowed: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        _checked(field, value)
    assert str(refusal.value) == f"config.{field} is {value!r}; allowed is {allowed}"


@pytest.mark.parametrize("betas", [(), (0.9,), (0.9, 0.95, 0.99)])
def test_two_betas_are_needed(betas: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match=rf"betas has {len(betas)} numbers; 2 are needed$"):
        _checked("optimizer.betas", betas)


def test_all_wrong_fields_are_named_at_once() -> None:
    config: Any = debug.get_config()
    config.batch_size, config.data.lanes = 0, -3
    with pytest.raises(ConfigError, match=r"^config.batch_size is 0; .*; config.data.lanes is -3"):
        check_values(config.to_dict())


def test_groups_that_stay_as_they_are_get_a_line() -> None:
    rows = [GroupRow("vlm", 9, 0.0, 1000), GroupRow("action_heads", 9, 1e-4, 0)]
    rows += [GroupRow("transformer_core", 0, 0.0, 1000), GroupRow("base", 9, 0.0, None)]
    short = dataclasses.replace(tiny.RECIPE.config, iters=500, freeze_steps=1000)
    assert idle_groups(rows, short) == (
        "vlm will not change: the learning rate is 0 in all 500 steps "
        "(config.optimizer.freeze_steps is 1000, learning_coef 1)"
    )
    assert idle_groups(rows[1:], short) == "", "frozen by mode, or without a parameter"
