"""X-VLA's command line word by word."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from absl import flags
from ml_collections import config_flags

from configs import xvla_released
from scripts.training.xvla_flags import carried_over

_FILE = str(Path(xvla_released.__file__))
_README = (
    "--models 2toINF/X-VLA-Pt --train_metas_path /data/metas --output_dir runs/one "
    "--batch_size 32 --learning_rate 1e-4 --learning_coef 0.1 --weight_decay 0.01 "
    "--betas 0.8 0.9 --max_grad_norm 0.5 --iters 50000 --freeze_steps 500 --warmup_steps 700 "
    "--use_cosine_decay --min_lr_ratio 0.2 --save_interval 5000 --log_interval 10 --seed 7"
)


def _config(*arguments: str) -> tuple[Any, str | None]:
    values = flags.FlagValues()
    argv = carried_over(["train", *arguments])
    config_flags.DEFINE_config_file(
        "config", None, "", flag_values=values, lock_config=True, sys_argv=argv
    )
    flags.DEFINE_string("workdir", None, "", flag_values=values)
    values(argv)
    return values.config, values.workdir


def test_every_flag_of_the_original_reaches_its_field() -> None:
    config, workdir = _config(f"--config={_FILE}", *_README.split())
    assert workdir == "runs/one"
    assert config.init_from == "2toINF/X-VLA-Pt"
    assert config.data.train_metas_path == "/data/metas"
    assert (config.batch_size, config.batch_size_per, config.seed) == (32, "device", 7)
    assert (config.save_every, config.keep_every, config.log_every) == (5000, 5000, 10)
    optimizer = config.optimizer.to_dict()
    assert optimizer == optimizer | {
        "schedule": "xvla_flags",
        "learning_rate": 1e-4,
        "learning_coef": 0.1,
        "weight_decay": 0.01,
        "betas": (0.8, 0.9),
        "max_grad_norm": 0.5,
        "iters": 50_000,
        "freeze_steps": 500,
        "warmup_steps": 700,
        "use_cosine_decay": True,
        "min_lr_ratio": 0.2,
    }


def test_defaults_are_those_of_the_original() -> None:
    config, workdir = _config(f"--config={_FILE}")
    assert workdir is None
    optimizer = config.optimizer
    assert (optimizer.iters, optimizer.freeze_steps, optimizer.warmup_steps) == (10**6, 1000, 2000)
    assert (optimizer.learning_rate, optimizer.learning_coef) == (1e-4, 1.0)
    assert not optimizer.use_cosine_decay
    assert (config.batch_size, config.save_every, config.log_every) == (16, 50_000, 20)


def test_both_ways_of_writing_can_be_mixed() -> None:
    config, workdir = _config(
        f"--config={_FILE}", "--workdir=w", "--iters", "9", "--config.learning_rate=2e-4"
    )
    assert (config.optimizer.iters, config.optimizer.learning_rate, workdir) == (9, 2e-4, "w")


def test_other_configs_do_not_know_these_flags() -> None:
    arguments = ["train", "--config=configs/debug.py", "--iters", "9"]
    assert carried_over(arguments) == arguments


def test_a_wrong_name_stays_an_error() -> None:
    with pytest.raises(flags.UnrecognizedFlagError, match="learning_rat"):
        _config(f"--config={_FILE}", "--learning_rat=3")
