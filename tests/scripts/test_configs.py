"""Every experiment: its fields fit together, its docstring says what it must."""

from __future__ import annotations

import importlib
import pathlib
import re

import pytest

from configs import base
from data.rows.mixtures import mixture
from tests.xvla_jax import slices
from xvla_jax.config import XVLAConfig
from xvla_jax.errors import ConfigError
from xvla_jax.models.layers import REMAT
from xvla_jax.models.xvla import XVLA
from xvla_jax.sharding import global_batch_size, make_mesh
from xvla_jax.training.optimizer import OptimizerConfig, learning_rates
from xvla_jax.training.state import Recipe

_FOLDER = pathlib.Path(base.__file__).parent
_SHARED = {"__init__", "base", "models", "paper_finetune"}
EXPERIMENTS = sorted({path.stem for path in _FOLDER.glob("*.py")} - _SHARED)


def test_the_experiments_are_there() -> None:
    finetunes = {"libero", "widowx", "google", "calvin", "robotwin", "vlabench", "softfold"}
    others = {"pretrain", "debug", "quickstart", "xvla_released"}
    assert {f"finetune_{name}" for name in finetunes} | others <= set(EXPERIMENTS)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_fits_together(name: str) -> None:
    module = importlib.import_module(f"configs.{name}")
    config = module.get_config()
    model = XVLAConfig.from_dict(config.model.to_dict())
    assert config.remat in REMAT
    optimizer = OptimizerConfig(**config.optimizer.to_dict())
    recipe = Recipe(XVLA(model), optimizer, config.accumulate, config.ema_decay)
    assert all(rate >= 0 for rate in learning_rates(0, optimizer, recipe.groups).values())
    size = global_batch_size(config.batch_size, per=config.batch_size_per, devices=16)
    assert size % (16 * config.accumulate) == 0 or name == "debug"
    if config.data.mixture:
        assert mixture(config.data.mixture)
    known = base.get_config({})
    assert {field for field in config if field not in known} <= set(getattr(module, "FLAGS", ()))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_has_a_mesh_on_every_slice_or_is_refused_with_the_nearest(name: str) -> None:
    mesh = importlib.import_module(f"configs.{name}").get_config().mesh
    grids = [(kind, grid) for kind, names in slices.GRIDS.items() for grid in names]
    refused = 0
    for chips in (slices.devices(kind, grid) for kind, grid in grids):
        if len(chips) % mesh.fsdp:
            refused += 1
            with pytest.raises(ConfigError, match="the nearest fsdp is"):
                make_mesh(mesh.data, mesh.fsdp, chips)
        else:
            assert make_mesh(mesh.data, mesh.fsdp, chips).size == len(chips)
    assert refused <= 2  # slices of one chip, which four shares do not fit


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_docstring_says_how_where_how_long_and_what_comes_out(name: str) -> None:
    text = str(importlib.import_module(f"configs.{name}").__doc__)
    assert re.search(rf"python -m scripts\.train --config=configs/{name}\.py", text)
    for word in ("Hardware:", "Time:", "Result:"):
        assert word in text, f"configs/{name}.py does not say its {word}"
