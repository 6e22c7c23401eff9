"""The paper's pretraining: the released size on its mixture of seven robot setups.

``python -m scripts.train --config=configs/pretrain.py --workdir=W --config.data.root=FOLDER
--config.init_from=CHECKPOINT``
Hardware: 64 v5p chips (4x4x4), of whose 95.74 GiB each it needs 16.5; for another slice run
``python -m scripts.plan --config=configs/pretrain.py --topology=v5p:4x4x4``.
Not run here. Time: at least 7.8 hours there by that plan (docs/planner.md); the paper took about 4
days on 64 A100. Result: a policy for the domains of the mixture, to be fine-tuned.
The paper starts from Florence-2-large: CHECKPOINT holds its weights and a new head. Random weights
throughout must be asked for, with ``--config.from_scratch=True`` in its place.
"""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from configs import base, models


def get_config() -> ConfigDict:
    """Values that the paper states; otherwise constant rates, as in the authors' early code."""
    config: Any = base.get_tpu_config(models.model_dict(models.RELEASED, action_mode="ee6d"))
    config.remat = "named"  # v5p has room for the products of 16 samples
    config.data.mixture = "xvla_pretrain"
    config.data.lanes = 16  # a host of 4 chips each
    config.batch_size = 1024
    config.optimizer.schedule = "xvla_release"
    config.optimizer.iters = 200_000
    config.optimizer.freeze_steps = 0
    config.optimizer.weight_decay = 0.01
    config.save_every = 2000
    return config
