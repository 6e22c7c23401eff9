"""Table of what trains, for every mode and for adapters."""

from __future__ import annotations

import dataclasses
import io
import math
from typing import Any

import jax
import pytest
from rich.console import Console

from configs import adapt_new_robot, lora
from scripts.training.group_table import group_table
from scripts.training.run import recipe_of
from tests.xvla_jax import tiny
from xvla_jax.errors import ConfigError
from xvla_jax.lora import LoraConfig
from xvla_jax.models.xvla import abstract_params
from xvla_jax.training.groups import MODES
from xvla_jax.training.optimizer import GroupRow, OptimizerConfig, group_rows

_PARAMS = abstract_params(tiny.CONFIG)
_SIZE = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(_PARAMS))


def _text(rows: list[GroupRow]) -> list[list[str]]:
    console = Console(width=100, file=io.StringIO(), record=True)
    console.print(group_table(rows))
    lines = console.export_text().splitlines()
    cells = [[cell.strip() for cell in line.strip("│┃┏┡├└").split("│")] for line in lines]
    return [line for line in cells if len(line) > 1]


def _rows(**changes: Any) -> dict[str, GroupRow]:
    config = OptimizerConfig(schedule="xvla_release", iters=20, freeze_steps=5, last_layers=1)
    config = dataclasses.replace(config, **changes)
    rows = group_rows(_PARAMS, config, config.groups(tiny.CONFIG))
    return {row.name: row for row in rows}


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_has_a_row_for_each_of_its_groups(mode: str) -> None:
    rows = _rows(mode=mode, learning_coef=0.1)
    assert sum(row.parameters for row in rows.values()) == _SIZE
    assert rows["soft_prompts"].parameters == 30 * 4 * 32
    assert rows["soft_prompts"].learning_rate == pytest.approx(1e-5)
    assert rows["soft_prompts"].frozen_until == 0
    waiting = {"vlm", "transformer_core", "last_layers"} & rows.keys()
    assert all(rows[name].frozen_until == 5 for name in waiting)
    assert ("rest" in rows) == (not {"vlm"} & rows.keys())
    if "rest" in rows:
        assert (rows["rest"].frozen_until, rows["rest"].learning_rate) == (None, 0.0)


def test_the_table_shows_the_schedule_as_it_is() -> None:
    assert _rows(schedule="constant")["vlm"].frozen_until == 0, "there nobody waits"
    # 20 steps: a ramp of 100 steps begins after the freeze and gets to 14 / 100
    ramp = _rows(schedule="xvla_paper", warmup_steps=100)["transformer_core"]
    assert ramp.learning_rate == pytest.approx(0.14e-4)
    # a run that a user will stop: its steps would take 8 GB
    endless = {"iters": 10**9, "freeze_steps": 10**6, "warmup_steps": 1000}
    core = _rows(schedule="xvla_cosine", **endless)["transformer_core"]
    assert core.learning_rate == pytest.approx(1e-4), "its peak lies between the steps looked at"
    rows = [
        GroupRow("vlm", 1_000_000, 1e-5, 1000),
        GroupRow("heads", 23, 1e-4, 0),
        GroupRow("base", 7, 0.0, None),
    ]
    assert _text(rows) == [
        ["vlm", "1,000,000", "1e-05", "1000"],
        ["heads", "23", "0.0001", "-"],
        ["base", "7", "0", "always"],
        ["trained", "1,000,023", "", ""],
    ]


def test_the_config_lora_is_xvlas_recipe() -> None:
    recipe = recipe_of(lora.get_config(), tiny.CONFIG)
    assert recipe.lora == LoraConfig()
    rows = {row.name: row for row in recipe.group_rows()}
    assert rows["base"] == GroupRow("base", _SIZE, 0.0, None)
    assert {name: row.frozen_until for name, row in rows.items() if name != "base"} == {
        "vlm": 1000,
        "soft_prompts": 0,
        "action_heads": 0,
        "transformer_core": 1000,
    }
    assert rows["vlm"].learning_rate == pytest.approx(1e-5)
    # 2 blocks of four pairs and two projections, at rank 8
    assert rows["transformer_core"].parameters == 8 * (2 * (128 + 64 + 160 + 160) + 2 * 48)


def test_the_config_for_a_new_robot_has_two_steps_and_leaves_the_data_open() -> None:
    config: Any = adapt_new_robot.get_config()
    assert config.data.mixture == config.init_from == ""
    rows = {row.name: row for row in recipe_of(config, tiny.CONFIG).group_rows()}
    until = {name: row.frozen_until for name, row in rows.items()}
    assert until == {"vlm": 1000, "soft_prompts": 0, "action_heads": 0, "transformer_core": 1000}
    config.lora.rank = 4
    config.lora.dropout = 0.1
    with pytest.raises(ConfigError, match=r"config\.lora\.dropout is 0\.1"):
        recipe_of(config, tiny.CONFIG)
