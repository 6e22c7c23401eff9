"""X-VLA's own `train.py`, flag by flag.

A command line written for it is carried over word by word, behind ``--config``:
``python -m scripts.train --config=configs/xvla_released.py --models CHECKPOINT --train_metas_path
METAS --output_dir W --batch_size 16 --learning_rate 1e-4 --learning_coef 0.1 --iters 50000
--freeze_steps 1000 --warmup_steps 2000 --betas 0.9 0.95 --use_cosine_decay``
or as ``--config.models=CHECKPOINT`` and so on. Defaults are X-VLA's. Two things differ: a run is
resumed where its output folder holds one, and every source is shuffled over 10,000 samples.
Hardware: as X-VLA's, ``batch_size`` is per device. Not run here at full size. Time: not known.
Result: the weights that X-VLA's trainer would give, up to the order of samples.
"""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from configs import base, models

# X-VLA's flag -> its default, the field of ours that it sets
FLAGS: dict[str, tuple[Any, str]] = {
    "models": ("", "init_from"),
    "train_metas_path": ("", "data.train_metas_path"),
    "learning_rate": (1e-4, "optimizer.learning_rate"),
    "learning_coef": (1.0, "optimizer.learning_coef"),
    "weight_decay": (0.0, "optimizer.weight_decay"),
    "betas": ((0.9, 0.95), "optimizer.betas"),
    "max_grad_norm": (1.0, "optimizer.max_grad_norm"),
    "iters": (1_000_000, "optimizer.iters"),
    "freeze_steps": (1000, "optimizer.freeze_steps"),
    "warmup_steps": (2000, "optimizer.warmup_steps"),
    "use_cosine_decay": (False, "optimizer.use_cosine_decay"),
    "min_lr_ratio": (0.1, "optimizer.min_lr_ratio"),
    "save_interval": (50_000, "save_every"),
    "log_interval": (20, "log_every"),
}
SAME_NAME: dict[str, Any] = {"batch_size": 16, "seed": 0}  # flags that are fields of ours


def get_config() -> ConfigDict:
    """The flags as fields of the same names; ours refer to them."""
    config: Any = base.get_config(models.model_dict(models.RELEASED, action_mode="ee6d"))
    config.dtype = "bfloat16"  # the README's command has accelerate's bf16 mixed precision
    config.batch_size_per = "device"  # one process of accelerate is one GPU
    config.optimizer.schedule = "xvla_flags"
    for flag, default in SAME_NAME.items():
        config[flag] = default
    for flag, (default, field) in FLAGS.items():
        config[flag] = default
        *path, name = field.split(".")
        owner = config
        for part in path:
            owner = owner[part]
        owner[name] = config.get_ref(flag)
    config.keep_every = config.get_ref("save_interval")  # X-VLA removes no checkpoint
    return config
