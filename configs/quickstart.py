"""The small X-VLA that ``make demo`` trains on its own LIBERO demonstrations.

``python -m scripts.train --config=configs/quickstart.py --workdir=outputs/quickstart/train
--config.data.root=outputs/quickstart/rlds``
Hardware: two CPU cores. Time: 6 to 7 minutes for 1,500 steps of 32. Result: 138 of 150
held-out episodes over three seeds; 500 steps reach half to three quarters of them.
"""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from configs import base, models


def get_config() -> ConfigDict:
    """Poses of LIBERO's arm."""
    return small_config(action_mode="ee6d", mixture="libero_demos", iters=1500)


def small_config(*, action_mode: str, mixture: str, iters: int) -> ConfigDict:
    """The small model from scratch, so every group trains at the full rate from the first step."""
    config: Any = base.get_config(models.model_dict(models.SMALL, action_mode=action_mode))
    config.from_scratch = True
    config.processor.image_size = 64
    config.processor.text_length = 16
    config.data.mixture = mixture
    config.data.shuffle_buffer = 2000
    config.data.cache_mb = 512.0
    config.batch_size = 32
    config.optimizer.schedule = "warmup_cosine"
    config.optimizer.iters = iters
    config.optimizer.learning_rate = 1e-3
    config.optimizer.learning_coef = 1.0
    config.optimizer.freeze_steps = 0
    config.optimizer.warmup_steps = 50
    config.optimizer.min_lr_ratio = 0.05
    config.log_every = 10
    config.save_every = 200
    return config
