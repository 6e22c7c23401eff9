"""Trains the tiny model for seconds, for tests.

``python -m scripts.train --config=configs/debug.py --workdir=outputs/debug
--config.data.root=... --config.from_scratch=True``, or ``--config.init_from=CHECKPOINT``.
Hardware: any. Time: a minute, most of it compiling. Result: none, the model is too small to act.
"""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from configs import base, models


def get_config() -> ConfigDict:
    """The tiny model, four steps."""
    config: Any = base.get_config(models.model_dict(models.TINY, action_mode="ee6d"))
    config.processor.image_size = 32
    config.processor.text_length = 12
    config.data.mixture = "libero_demos"
    config.data.shuffle_buffer = 64
    config.batch_size = 8
    config.optimizer.schedule = "warmup_cosine"
    config.optimizer.iters = 4
    config.optimizer.freeze_steps = 0
    config.optimizer.warmup_steps = 2
    config.log_every = 1
    config.save_every = 4
    return config
