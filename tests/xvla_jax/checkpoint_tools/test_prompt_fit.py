"""The head that is fitted to a new robot's actions."""

from __future__ import annotations

import numpy as np
import pytest

from xvla_jax.checkpoint_tools.prompt_fit import HeadFit
from xvla_jax.errors import InputError


def _samples(seed: int, count: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Three inputs and a 1; of four outputs two are linear in them, one is noise, one is still."""
    rng = np.random.default_rng(seed)
    inputs = np.concatenate([rng.normal(size=(count, 3)), np.ones((count, 1))], axis=1)
    outputs = np.stack(
        [
            inputs @ [1.0, -2.0, 0.0, 5.0],
            inputs @ [0.0, 0.0, 0.1, -1.0],
            rng.normal(size=count),
            np.full(count, 7.0),
        ],
        axis=1,
    )
    return inputs, outputs


def test_the_share_is_zero_for_a_linear_output_and_one_for_noise() -> None:
    for columns, expected in (((0, 1), 0.0), ((2,), 1.0), ((0, 1, 2), 1 / 3), ((0, 3), 0.0)):
        fit = HeadFit(4, len(columns))
        for part in range(2):  # samples may come in parts
            inputs, outputs = _samples(part)
            fit.add(inputs, outputs[:, columns], held=False)
        inputs, outputs = _samples(9)
        fit.add(inputs, outputs[:, columns], held=True)
        np.testing.assert_allclose(fit.unexplained(), expected, atol=0.02)


def test_what_is_held_out_is_not_fitted() -> None:
    inputs, outputs = _samples(0)
    fit = HeadFit(4, 1)
    fit.add(inputs, outputs[:, :1], held=False)
    fit.add(inputs, -outputs[:, :1], held=True)
    assert fit.unexplained() > 1.0


def test_both_parts_and_a_channel_that_moves_are_needed() -> None:
    inputs, outputs = _samples(0)
    fit = HeadFit(4, 1)
    fit.add(inputs, outputs[:, :1], held=False)
    with pytest.raises(InputError, match="400 samples to fit and 0 held out"):
        fit.unexplained()
    still = HeadFit(4, 1)
    for held in (False, True):
        still.add(inputs, outputs[:, 3:], held=held)
    with pytest.raises(InputError, match="no channel of the held-out actions moves"):
        still.unexplained()
