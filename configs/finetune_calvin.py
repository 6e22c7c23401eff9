"""The paper's fine-tune on CALVIN ABC->D, from a pretrained checkpoint.

``python -m scripts.train --config=configs/finetune_calvin.py --workdir=W
--config.init_from=CHECKPOINT --config.data.root=FOLDER``
Hardware: laid out for 16 v5e chips (4x4); for another slice run
``python -m scripts.plan --config=configs/finetune_calvin.py --topology=v5e:4x4``.
Not run here. Time: not known. Result: the paper reports 4.43 tasks in a row of 5, for the authors'
run.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import paper_finetune


def get_config() -> ConfigDict:
    """The paper's batch size and number of steps."""
    return paper_finetune.get_config("xvla_calvin", batch_size=128, iters=60_000)
