"""X-VLA's LoRA recipe, here on LIBERO: a small adapter, prompts and projections, 13 M numbers.

``python -m scripts.train --config=configs/lora.py --workdir=W --config.init_from=CHECKPOINT
--config.data.root=FOLDER``
At the end W/peft is a folder that PEFT loads onto the original model. The steps of W hold the
adapter alone; what reads a checkpoint merges it into CHECKPOINT, which must stay where it is, or
``python -m scripts.convert_checkpoint W DST --layout=hf`` does so for good.
Hardware: 4 v5e chips (2x2), each with all weights; ``python -m scripts.plan
--config=configs/lora.py --topology=v5e:2x2 --views=2`` predicts memory and time, also of other
slices. Not run here.
Time: at least 3.5 hours there by that plan, of 7.5 of 15.75 GiB a chip (docs/planner.md).
Result: the authors' released adapters reach 96.2 / 96.0 / 94.4 / 83.2 % on LIBERO's four suites.
"""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from configs import base, models


def get_config() -> ConfigDict:
    """Rank 8 and alpha 16 on all linear layers; for 1,000 steps prompts and projections alone."""
    config: Any = base.get_tpu_config(models.model_dict(models.RELEASED, action_mode="ee6d"))
    config.data.mixture = "xvla_libero"
    config.data.lanes = 4  # a host of 4 chips
    config.batch_size = 128
    config.optimizer.schedule = "xvla_release"
    config.optimizer.iters = 40_000
    config.lora.rank = 8
    # Nothing of a matrix's size is trained, so each chip can hold all weights and none is sent; in
    # parts of 8 samples a chip, most of what a layer works on stays beside the cores.
    config.mesh.fsdp = 1
    config.accumulate = 4
    return config
