"""The common part of the paper's fine-tunes; each benchmark has its ``finetune_*.py``."""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from configs import base, models


def get_config(mixture: str, *, batch_size: int, iters: int) -> ConfigDict:
    """Prompts and heads alone for 1,000 steps, then all, with a warm-up of 1,000."""
    config: Any = base.get_tpu_config(models.model_dict(models.RELEASED, action_mode="ee6d"))
    config.data.mixture = mixture
    config.data.lanes = 4  # a host of 4 chips each
    config.batch_size = batch_size
    config.optimizer.schedule = "xvla_paper"
    config.optimizer.iters = iters
    config.optimizer.warmup_steps = 1000
    config.optimizer.weight_decay = 0.01
    return config
