"""Pretraining on Open X-Embodiment: the released size on every set whose arm pose is well known.

``python -m scripts.train --config=configs/pretrain_oxe.py --workdir=W --config.data.root=FOLDER
--config.init_from=CHECKPOINT``
docs/pretrain_oxe.md goes from the bucket to the checkpoint. CHECKPOINT holds Florence-2-large and a
new head, or X-VLA's weights, whose own domains stay. Random weights throughout must be asked for,
with ``--config.from_scratch=True`` in its place.
Hardware: a slice of 64 v5p chips (4x4x4) is what the layout is for; for its plan, or another slice,
run ``python -m scripts.plan --config=configs/pretrain_oxe.py --topology=v5p:4x4x4``. Not run here.
Time: not run. Result: a policy for the robots of the mixture, to be fine-tuned.
"""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from configs import pretrain


def get_config() -> ConfigDict:
    """The paper's pretraining on sets of one to three views, which share one shuffle buffer."""
    config: Any = pretrain.get_config()
    config.data.mixture = "oxe_all"  # with X-VLA's own sets: xvla_pretrain_oxe
    config.new_domains = "*=fresh"  # a soft prompt for each set that the weights do not know
    config.data.shuffle_buffer = 200_000
    config.data.shuffle_per = "mixture"
    config.data.deal = "even"  # each device gets nearly the same number of images
    config.packed_views = "auto"  # the vision tower runs these alone
    config.data.max_bad_episodes = 100  # of each set: recordings of many labs have faults
    return config
