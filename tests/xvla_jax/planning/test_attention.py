"""The calls of attention by shapes, and what is said of those that the kernel does not serve."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from configs import models
from xvla_jax.config import XVLAConfig
from xvla_jax.models.xvla import XVLA
from xvla_jax.planning.attention import calls, summary
from xvla_jax.processor import Processor

_CONFIG = XVLAConfig.from_dict(models.model_dict(models.RELEASED, action_mode="ee6d"))
_FUSED = XVLA(_CONFIG, dtype=jnp.bfloat16, attention="fused")


def test_the_calls_of_the_released_model() -> None:
    tokens = {}
    for call in calls(_FUSED, Processor()):
        tokens.setdefault(call.part, []).append(call.rows)
    assert tokens == {
        "windows of stage 0": [64, 96, 144],  # 56 cells: four windows of 12, and 8
        "windows of stage 1": [16, 48, 144],
        "windows of stage 2": [196],  # the map is not cut
        "windows of stage 3": [49],
        "text encoder": [100],  # 50 of the first view, 50 of the text
        "head": [30 + 100 + 2 * 50 + _CONFIG.len_soft_prompts],
    }
    cut = [call.rows for call in calls(_FUSED.clone(attention="xla"), Processor())]
    assert cut[6:10] == [4, 24, 144, 49]


def test_what_does_not_fit_is_named() -> None:
    assert summary(_FUSED.clone(attention="xla"), Processor()) == "xla"
    assert summary(_FUSED, Processor()) == "fused, in all attention but that of channels"
    long = dataclasses.replace(Processor(), text_length=1500)
    assert summary(_FUSED, long) == (
        "fused, but xla for text encoder (1550 x 1550 tokens), head (1712 x 1712 tokens): too "
        "large for the core's memory"
    )
