"""The row that scripts.new_robot writes is trained on: a step of the tiny model for each format."""

from __future__ import annotations

import dataclasses
import functools
import io
import itertools
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from configs import models
from data.rows.mixtures import mixture
from data.sources import open_mixture
from data.stream.pipeline import one_pass
from scripts.new_robot import COMMAND, main
from tests.data.inference.layouts import (
    act,
    rlds,
    robomimic,
    short,
    write_act,
    write_rlds,
    write_robomimic,
)
from tests.xvla_jax import tiny
from xvla_jax import sharding
from xvla_jax.actions import action_space
from xvla_jax.config import XVLAConfig
from xvla_jax.models.xvla import XVLA
from xvla_jax.training.step import make_train_step

pytestmark = [pytest.mark.slow, pytest.mark.rlds]

SETS = Path(__file__).resolve().parents[1] / "fixtures" / "lerobot_sets"
BATCH = 8
Answers = Mapping[str, str]


def few(recording: Any) -> Any:
    """Three episodes of 30 frames: too few for the gripper, which is answered."""
    return short(recording, episodes=3, every=5)


# format -> folder of its recording, and what its files do not say
FORMATS: dict[str, tuple[Callable[[Path], Path], Answers]] = {
    "lerobot v3": (lambda _: SETS / "poses_v30", {}),
    "robomimic": (
        lambda folder: write_robomimic(folder / "lift.hdf5", few(robomimic())),
        {"gripper_closed": "low", "instruction": "lift the cube"},
    ),
    "rlds": (
        lambda folder: write_rlds(folder, "desk", few(rlds())),
        {
            "grippers": "7",
            "gripper_closed": "low",
            "rotation": "quaternion xyzw",
            "rate_hz": "6",
        },
    ),
    "act, compressed": (
        lambda folder: write_act(folder / "desk", few(act()), compressed=True),
        {
            "grippers": "5",
            "gripper_closed": "low",
            "channel_order": "bgr_swapped",
            "rate_hz": "10",
            "instruction": "sweep",
        },
    ),
    "lerobot v2.1": (lambda _: SETS / "joints_v21", {}),
}


@functools.cache
def of_joints(width: int) -> tuple[XVLAConfig, Any]:
    """The tiny model for so many joints, of the same parameters, and its train step."""
    fields = models.model_dict(models.TINY, action_mode="auto") | {"real_action_dim": width}
    config = XVLAConfig.from_dict(fields)
    recipe = dataclasses.replace(tiny.RECIPE, model=XVLA(config))
    return config, make_train_step(recipe, tiny.PROCESSOR, seed=0)


def loss_of_one_step(step: Any, batch: Mapping[str, np.ndarray]) -> float:
    mesh = tiny.mesh(1, 1)
    with jax.set_mesh(mesh):
        after, metrics = step(tiny.state(), sharding.global_batch(dict(batch), mesh))
    assert int(after.step) == 1
    assert float(metrics["grad_norm"]) > 0
    return float(metrics["loss"])


@pytest.mark.parametrize("name", FORMATS)
def test_a_step_is_made_from_the_written_row(
    name: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    make, answers = FORMATS[name]
    out = tmp_path / f"robot_{list(FORMATS).index(name)}.py"
    given = [f"--answer={key}={value}" for key, value in answers.items()]
    status = COMMAND.run(main, ["new_robot.py", str(make(tmp_path)), f"--out={out}", *given])
    printed = capsys.readouterr().out
    assert status == 0, printed
    # the flags that the command printed
    (line,) = [line for line in printed.splitlines() if "--config.data.mixture=" in line]
    row, root = (word.partition("=")[2] for word in line.split()[-2:])
    sources = open_mixture(mixture(row), root)
    spec = sources[0].reader.spec
    config, step = of_joints(spec.width) if spec.joints else (tiny.CONFIG, tiny.train_step())
    batches = one_pass(
        sources,
        batch_size=BATCH,
        num_actions=config.num_actions,
        action_width=action_space(config).width,
        num_views=2,
        image_size=32,
        tokenize=tiny.PROCESSOR.tokenize,
    )
    (batch,) = itertools.islice(batches, 1)
    assert batch["view_mask"].all(), "both cameras of every robot are there"
    assert np.isfinite(loss_of_one_step(step, batch))
