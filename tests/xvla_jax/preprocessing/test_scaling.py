"""Units of a network against hand-made numbers."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from tests.xvla_jax.checkpoints import lerobot_exports as exports
from xvla_jax.errors import CheckpointError, InputError
from xvla_jax.policy import Policy
from xvla_jax.preprocessing.scaling import Scaling
from xvla_jax.processor import Processor

_MEAN = Scaling("MEAN_STD", (1.0, 10.0), (2.0, 5.0), 1e-8)
_RANGE = Scaling("QUANTILES", (-1.0, 3.0), (1.0, 3.0), 1e-8)


def _array(values: Any) -> np.ndarray:
    return np.array(values, np.float32)


def test_by_hand() -> None:
    np.testing.assert_allclose(
        _MEAN.scale(_array([5, 0, 7]), what="proprio"), [2, -2, 7], rtol=1e-6
    )
    np.testing.assert_allclose(_MEAN.unscale(_array([2, -2])), [5, 0])
    np.testing.assert_allclose(_RANGE.scale(_array([0.5, 3]), what="proprio"), [0.5, -1])
    np.testing.assert_allclose(_RANGE.unscale(_array([[0.5, -1]])), [[0.5, 3]])


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(InputError, match="proprio has 1 channels; this checkpoint normalises 2"):
        _MEAN.scale(np.zeros(1, np.float32), what="proprio")
    with pytest.raises(CheckpointError, match=r"'ZSCORE'.*MEAN_STD, MIN_MAX"):
        Scaling("ZSCORE", (0.0,), (1.0,), 0.0)
    with pytest.raises(CheckpointError, match="1 and 2 numbers"):
        Scaling("MIN_MAX", (0.0,), (1.0, 2.0), 0.0)
    with pytest.raises(CheckpointError, match="finite"):
        Scaling("MIN_MAX", (float("nan"),), (1.0,), 0.0)


def test_items_keep_them() -> None:
    processor = Processor(state=_MEAN, action=_RANGE)
    assert Processor.from_dict(processor.to_dict()) == processor


def test_a_policy_takes_and_gives_the_robots_units() -> None:
    """A robot's numbers scaled by hand give the chunk of the bare network, unscaled by hand."""
    bare = exports.checkpoint("auto", resize="pad")
    low, high = tuple(range(7)), tuple(range(2, 9))
    units = Scaling("MEAN_STD", tuple(map(float, low)), tuple(map(float, high)), 0.0)
    assert bare.processor
    processor = dataclasses.replace(bare.processor, state=units, action=units)
    inner = Policy(bare.config, bare.params, bare.processor, {})
    policy = Policy(bare.config, bare.params, processor, {})
    rng = np.random.default_rng(1)
    observation = {
        "images": [rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)],
        "instruction": "open the drawer",
        "proprio": rng.normal(size=7).astype(np.float32),
        "domain_id": 0,
    }
    prefix = rng.normal(size=(2, 7)).astype(np.float32)
    actual = policy.act([{**observation, "prefix": prefix * high + low}])  # type: ignore[arg-type]
    scaled = {**observation, "proprio": (observation["proprio"] - low) / high, "prefix": prefix}
    expected = inner.act([scaled])  # type: ignore[arg-type]
    np.testing.assert_allclose(actual, expected * high + low, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(actual[0, :2], prefix * high + low, rtol=1e-5)


def test_statistics_of_another_width_are_refused() -> None:
    made = exports.checkpoint("auto", resize="pad", action=_MEAN)
    assert made.processor
    with pytest.raises(CheckpointError, match="2 of actions; action space 'auto' has up to 20 and"):
        Policy(made.config, made.params, made.processor, {})
