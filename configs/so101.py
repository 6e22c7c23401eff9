"""The small X-VLA on joints: an SO-101 arm in MuJoCo, from 50 demonstrations in a LeRobot dataset.

``python -m scripts.train --config=configs/so101.py --workdir=outputs/so101/train
--config.data.root=outputs/so101``
Hardware: two CPU cores. Time: 18 minutes for 1,200 steps of 32, 0.83 s a step beside other work on
the cores. Result: 48 of 50 held-out states (96 %; 87 to 99), none of 50 with black images; the
scripted expert has 50 of 50. Every 300 steps a process beside the training drives the arm in its
simulator (docs/train.md); without the simulator it says so and has no score.
"""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from configs import quickstart


def get_config() -> ConfigDict:
    """The quickstart's training on six joints, with more steps."""
    config: Any = quickstart.small_config(action_mode="auto", mixture="so101", iters=1200)
    config.real_action_dim = 6
    config.rollouts.task = "so101"
    config.rollouts.every = 300
    return config
