"""Initial model of a run: its weights, its action space, and data that fit it."""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from configs import debug, finetune_libero
from scripts.training.initial_model import initial_headers, planned_config
from scripts.training.run import TrainingRun
from tests.data.storages import small, write_hdf5
from tests.scripts import robots
from tests.xvla_jax import tiny
from xvla_jax import pretrained
from xvla_jax.config import XVLAConfig
from xvla_jax.contract import Contract
from xvla_jax.errors import ConfigError, ContractError
from xvla_jax.models.xvla import abstract_params

pytestmark = pytest.mark.rlds

Base = Callable[..., Path]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    """Tiny checkpoints, by action space and channels of a robot's action."""
    made: dict[Any, Path] = {}

    def make(mode: str, real: int = 20) -> Path:
        if (mode, real) not in made:
            folder = tmp_path_factory.mktemp("base") / f"{mode}{real}"
            config = dataclasses.replace(tiny.CONFIG, action_mode=mode, real_action_dim=real)
            layout = "interleaved" if mode.endswith("ee6d") else "none"
            contracts = {
                i: Contract(i, mode, layout, 30.0, ("front", "wrist"), "measured") for i in (0, 3)
            }
            pretrained.save_pretrained(
                folder, config, _params(config), processor=tiny.PROCESSOR, contracts=contracts
            )
            made[mode, real] = folder
        return made[mode, real]

    return make


def _params(config: XVLAConfig) -> Any:
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: (rng.standard_normal(leaf.shape) * 0.05).astype(np.float32),
        abstract_params(config),
    )


def _config(*rows: str, **changes: Any) -> Any:
    config: Any = debug.get_config()
    names = [f"tests.scripts.robots:{row}" for row in rows]
    config.data.mixture = names[0] if len(names) == 1 else ",".join(f"{n}:1" for n in names)
    config.update_from_flattened_dict(
        {k: str(v) if k == "init_from" else v for k, v in changes.items()}
    )
    return config


@pytest.mark.parametrize(
    ("mode", "real", "row", "actions", "remedy"),
    [
        ("ee6d", 20, "JOINTS6", "6 channels of joints", "mode=auto and config.real_action_dim=6"),
        ("agibot_ee6d", 20, "JOINTS14", "14 channels of joints", "config.real_action_dim=14"),
        ("auto", 6, "POSES", "10 channels of poses", "config.action_mode=ee6d"),
        ("franka_joint7", 20, "POSES", "10 channels of poses", "config.action_mode=ee6d"),
        ("joint", 20, "POSES", "10 channels of poses", "a checkpoint whose head is for ee6d"),
        ("joint", 20, "JOINTS6", "takes 14 channels", "mode=auto and config.real_action_dim=6"),
        ("auto", 7, "JOINTS14", "takes 7 channels", "config.real_action_dim=14"),
        ("franka_joint7", 20, "JOINTS6", "takes 7 channels", "config.real_action_dim=6"),
    ],
)  # fmt: skip
def test_data_of_another_action_space_are_refused(
    base: Base, mode: str, real: int, row: str, actions: str, remedy: str
) -> None:
    config = _config(row, init_from=base(mode, real))
    with pytest.raises(ContractError) as caught:
        TrainingRun.open(config)
    text = str(caught.value)
    assert "\n" not in text
    for part in (f"dataset {row.lower()!r}", actions, f"action space {mode!r}", remedy):
        assert part in text, text


@pytest.mark.parametrize(
    ("mode", "real", "row", "width"),
    [
        ("ee6d", 20, "POSES", 20),
        ("agibot_ee6d", 20, "POSES", 20),
        ("auto", 6, "JOINTS6", 20),
        ("joint", 20, "JOINTS14", 14),
    ],
)
def test_data_that_fit_come_as_wide_as_the_head(
    base: Base, mode: str, real: int, row: str, width: int
) -> None:
    run = TrainingRun.open(_config(row, init_from=base(mode, real)))
    with run.batches(None) as stream:
        batch = next(iter(stream))
    assert batch["actions"].shape == (8, 6, width)
    assert batch["proprio"].shape == (8, width)
    kept = pretrained.load_checkpoint(base(mode, real)).contracts[0]
    contracts = run.model_item["contracts"]
    assert contracts[0] == kept.to_dict()
    assert contracts[1]["action_space"] == mode
    assert contracts[1]["anchor_hz"] == pytest.approx(30)


def test_a_mixture_of_which_one_does_not_fit_names_both(base: Base) -> None:
    config = _config("POSES", "JOINTS6", init_from=base("ee6d"))
    with pytest.raises(ContractError, match=r"dataset 'joints6' .*'poses' fits: a run has one"):
        TrainingRun.open(config)


def test_the_door_of_meta_files_and_held_out_episodes_are_compared_too(
    base: Base, tmp_path: Path
) -> None:
    write_hdf5(tmp_path, small("Calvin"))
    config = _config("POSES", init_from=base("auto", 7))
    config.data.mixture, config.data.train_metas_path = "", str(tmp_path / "meta.json")
    with pytest.raises(ContractError, match="dataset 'Calvin' has 10 channels of poses"):
        TrainingRun.open(config)
    config = _config("JOINTS6", init_from=base("ee6d"))
    config.validation.every, config.validation.episodes = 1, 1
    with pytest.raises(ContractError, match="dataset 'joints6'"):
        TrainingRun.open(config)
    config.action_mode, config.real_action_dim = "auto", 6
    assert TrainingRun.open(config).held_out


def test_a_relabelled_head_keeps_its_weights_and_no_contract_of_the_old_actions(
    base: Base, caplog: pytest.LogCaptureFixture
) -> None:
    config = _config("JOINTS6", init_from=base("ee6d"), action_mode="auto", real_action_dim=6)
    with caplog.at_level(logging.INFO):
        run = TrainingRun.open(config)
    assert "'auto' with 6 of 20 channels, was action space 'ee6d' with 20 of 20" in caplog.text
    assert "dropped the action contracts of domains [0, 3]" in caplog.text
    assert run.loaded
    assert tiny.equal(run.loaded.params, pretrained.load_checkpoint(base("ee6d")).params)
    item = run.model_item
    assert (item["config"]["action_mode"], item["config"]["real_action_dim"]) == ("auto", 6)
    contract = Contract(3, "auto", "none", 30.0, ("front", "wrist"), "measured")
    assert [Contract.from_dict(raw) for raw in item["contracts"]] == [contract]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, r"config.init_from is '' and config.from_scratch False"),
        ({"init_from": "BASE", "from_scratch": True}, r"config.from_scratch True; .* either"),
        ({"init_from": "BASE", "model.depth": 12}, r"config.model.depth is 12, .* has 2"),
        (
            {"init_from": "BASE", "model.florence_config.text_config.dropout": 0.5},
            r"text_config.dropout is 0.5, the checkpoint has 0.1",
        ),
        (
            {"init_from": "BASE", "model.action_mode": "joint"},
            r"is 'joint', the checkpoint has 'ee6d' \(config.action_mode changes it\)",
        ),
        ({"init_from": "BASE", "action_mode": "joint"}, r"'joint', whose head has 14 .* has 20"),
        ({"init_from": "BASE", "action_mode": "auto"}, r"config.real_action_dim is 0 .* 1 to 20"),
        (
            {"init_from": "BASE", "action_mode": "auto", "real_action_dim": 21},
            r"config.real_action_dim is 21 .* 1 to 20",
        ),
        ({"init_from": "BASE", "real_action_dim": 7}, r"'ee6d' always has 20 channels"),
        ({"init_from": "BASE", "action_mode": "ee7d"}, r"'ee7d' is unknown; known are agibot"),
        (
            {"init_from": "BASE", "context_attends_to": "none"},
            r"config.context_attends_to is 'none'; allowed are all, context, and ''",
        ),
        (
            {"init_from": "BASE", "context_attends_to": "context", "lora.rank": 4},
            r"'context' with config.lora.rank 4, and the base has 'all'",
        ),
        ({"from_scratch": True, "distill.steps": 1}, r"steps is 1 and config.from_scratch True"),
        (
            {"init_from": "BASE", "distill.steps": 1, "packed_views": "auto"},
            r"config.packed_views 'auto': the student runs as it acts",
        ),
        (
            {"init_from": "BASE", "distill.steps": 1, "rtc.max_delay": 2},
            r"trained for delays of 2 actions: .* set config.rtc.max_delay=0",
        ),
        ({"init_from": "BASE", "distill.steps": 10}, r"distill.steps is 10; 0 .* or 1 to 9"),
    ],
)
def test_what_contradicts_the_checkpoint_is_refused(
    base: Base, changes: dict[str, Any], message: str
) -> None:
    named = {k: base("ee6d") if v == "BASE" else v for k, v in changes.items()}
    with pytest.raises(ConfigError) as caught:
        TrainingRun.open(_config("POSES", **named))
    assert re.search(message, str(caught.value)), str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_of_another_size_decides_unless_the_user_asks(base: Base) -> None:
    config: Any = finetune_libero.get_config()
    config.init_from = str(base("ee6d"))
    assert initial_headers(config)[0].depth == 2
    with pytest.raises(ConfigError, match=r"config\.model\.depth is 24, the checkpoint has 2"):
        initial_headers(config, asked=["model.depth"])  # the file's own value, said aloud
    assert initial_headers(config, asked=["optimizer.iters"])[0].depth == 2
    with pytest.raises(ConfigError, match=r"config\.processor\.image_size is 224, .* has 32"):
        initial_headers(config, asked=["processor.image_size"])


def test_advice_is_given_only_where_it_would_help(
    base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = dataclasses.replace(robots.JOINTS6, delta_idx=(0, 6))
    monkeypatch.setattr(robots, "JOINTS6", row)
    with pytest.raises(
        ContractError, match=r"relative channels \[6\], .* channels 0 to 5"
    ) as caught:
        TrainingRun.open(_config("JOINTS6", init_from=base("auto", 6)))
    assert "config.action_mode" not in str(caught.value)
    assert "correct the actions of its row" in str(caught.value)


def test_random_weights_take_any_action_space() -> None:
    config = _config("JOINTS14", from_scratch=True, action_mode="joint")
    run = TrainingRun.open(config)
    assert run.loaded is None
    assert run.model_item["config"]["action_mode"] == "joint"
    assert planned_config(config).action_mode == "joint"
    with pytest.raises(ContractError, match=r"config.real_action_dim=6"):
        TrainingRun.open(_config("JOINTS6", from_scratch=True, action_mode="joint"))


def test_a_student_may_have_another_attention_than_its_teacher(base: Base) -> None:
    changes = {"distill.steps": 2, "context_attends_to": "context"}
    run = TrainingRun.open(_config("POSES", init_from=base("ee6d"), **changes))
    assert run.model_config.context_attends_to == "context"
    assert run.model_item["config"]["context_attends_to"] == "context"
    assert run.recipe.distill
    teacher = run.recipe.distill.teacher
    assert teacher.config == pretrained.load_checkpoint(base("ee6d"), stored=True).config
    assert teacher.unroll
    assert (run.recipe.distill.plan.name, run.recipe.distill.steps) == ("exact10", 2)
    assert TrainingRun.open(_config("POSES", init_from=base("ee6d"))).recipe.distill is None
