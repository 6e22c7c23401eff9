"""The paper's fine-tune on Soft-Fold, cloth folding with two arms, from a pretrained checkpoint.

``python -m scripts.train --config=configs/finetune_softfold.py --workdir=W
--config.init_from=CHECKPOINT --config.data.root=FOLDER``
Hardware: laid out for 16 v5e chips (4x4); for another slice run
``python -m scripts.plan --config=configs/finetune_softfold.py --topology=v5e:4x4``.
Not run here. Time: not known. Result: the paper reports nearly every cloth folded, 33 an hour, on a
real robot, for the authors' run.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import paper_finetune


def get_config() -> ConfigDict:
    """The paper's batch size and number of steps."""
    return paper_finetune.get_config("xvla_softfold", batch_size=256, iters=400_000)
