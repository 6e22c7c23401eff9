"""The paper's fine-tune on Fractal, for SimplerEnv's Google robot, from a pretrained checkpoint.

``python -m scripts.train --config=configs/finetune_google.py --workdir=W
--config.init_from=CHECKPOINT --config.data.root=FOLDER``
Hardware: laid out for 16 v5e chips (4x4); for another slice run
``python -m scripts.plan --config=configs/finetune_google.py --topology=v5e:4x4``.
The paper also crops images at random; its numbers for that are not known, so it is left out.
RLDS instead of X-VLA's files: ``--config.data.mixture=fractal``.
Not run here. Time: not known. Result: the paper reports 80.4 % success in visual matching and 75.7
% in variant aggregation, for the authors' run.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import paper_finetune


def get_config() -> ConfigDict:
    """The paper's batch size and number of steps."""
    return paper_finetune.get_config("xvla_fractal", batch_size=256, iters=50_000)
