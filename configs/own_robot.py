"""Fine-tunes a checkpoint to your own robot, from one row of yours, on one GPU or on two cores.

``python -m scripts.train --config=configs/own_robot.py:50 --workdir=W
--config.init_from=CHECKPOINT --config.new_domains='*=nearest' --config.data.mixture=my_robot:ROW
--config.data.root=FOLDER``

Behind the colon stand the number of demonstrations, which decides batch and steps (`sizes`), and
words joined by hyphens, such as ``50-joints6-full``:

| word | trains |
|---|---|
| lora (none needed) | an adapter of rank 8, prompts and projections: X-VLA's recipe |
| full | all weights |
| prompt | prompts and projections alone |
| gpu (none needed) | in bfloat16, activations computed again in the backward pass |
| cpu | in float32, which two cores compute faster; without a checkpoint the small model |
| jointsN | N joints (action space ``auto``) instead of poses |

Prompts and projections come first, then the rest (the paper's two steps). Some episodes are held
out; the curve of their l1 is ``val_l1`` in ``metrics.jsonl``, and ``scripts.run_summary`` names the
step where it was lowest. That checkpoint is kept beside the two newest; an adapter's are small, and
those of all measured steps are. With a simulator of the robot, ``--config.rollouts.task=ROW`` of
eval/tasks/ measures success at every fifth of these steps and chooses by it (docs/train.md).

Memory beforehand: ``python -m scripts.plan --config=configs/own_robot.py:50 --topology=gpu
--config.data.mixture=my_robot:ROW``.
Hardware: one GPU, of as many GB as that plan says (not planned at the released size yet), or two
cores for the small model. Time: not measured. Result: not known for the released weights.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from configs import base, models

DEMONSTRATIONS = 50  # where the number is left out


class Sizes(NamedTuple):
    """Numbers of a run that depend on the size of its data.

    Attributes:
        batch: samples of a step.
        steps: of the run.
        first: steps for which prompts and projections train alone, and over which the rest then
            warms up.
        measured: steps between two measurements on held-out episodes.
        held_out: episodes that are not trained on.
    """

    batch: int
    steps: int
    first: int
    measured: int
    held_out: int


# most demonstrations -> sizes: our choice, with so101's 1,200 steps of 32 from scratch and X-VLA's
# 60,000 of 128 for its benchmarks as the ends
_SIZES: Mapping[float, Sizes] = {
    20: Sizes(batch=16, steps=2_000, first=200, measured=100, held_out=2),
    100: Sizes(batch=32, steps=4_000, first=400, measured=200, held_out=5),
    500: Sizes(batch=32, steps=10_000, first=1_000, measured=500, held_out=10),
    float("inf"): Sizes(batch=64, steps=20_000, first=1_000, measured=1_000, held_out=20),
}
_TRAINED: Mapping[str, Mapping[str, Any]] = {
    "lora": {"lora.rank": 8},
    "full": {"keep_every": 0},
    "prompt": {"keep_every": 0, "optimizer.mode": "prompts_and_heads"},
}
_MACHINES: Mapping[str, Mapping[str, Any]] = {
    "gpu": {"dtype": "bfloat16", "remat": "full", "scan_vision": True},
    "cpu": {"processor.image_size": 64, "processor.text_length": 16},
}


def sizes(demonstrations: int) -> Sizes:
    """Returns batch and steps for a number of demonstrations.

    | demonstrations | batch | steps | first step of the two | measured every | held out |
    |---|---:|---:|---:|---:|---:|
    | to 20 | 16 | 2,000 | 200 | 100 | 2 |
    | to 100 | 32 | 4,000 | 400 | 200 | 5 |
    | to 500 | 32 | 10,000 | 1,000 | 500 | 10 |
    | more | 64 | 20,000 | 1,000 | 1,000 | 20 |

    Raises:
        ValueError: too few to hold some out.
    """
    if demonstrations < 4:
        raise ValueError(
            f"configs/own_robot.py:{demonstrations}: {demonstrations} demonstrations; 4 or more "
            "are needed, of which 2 are held out"
        )
    return next(row for most, row in _SIZES.items() if demonstrations <= most)


def get_config(words: str = "") -> ConfigDict:
    """The run for ``DEMONSTRATIONS-WORD-WORD``; see the module."""
    given = [word for word in words.split("-") if word]
    count = next((int(word) for word in given if word.isdigit()), DEMONSTRATIONS)
    joints = next((int(word[6:]) for word in given if re.fullmatch(r"joints[1-9]\d*", word)), 0)
    trained = next((word for word in given if word in _TRAINED), "lora")
    machine = next((word for word in given if word in _MACHINES), "gpu")
    known = {str(count), f"joints{joints or 'N'}", trained, machine}
    if set(given) - known or len(given) != len(set(given)):
        raise ValueError(
            f"configs/own_robot.py:{words}: allowed are a number of demonstrations, jointsN for N "
            f"joints, one of {', '.join(_TRAINED)} and one of {', '.join(_MACHINES)}, each once, "
            "joined by hyphens"
        )
    shape = {"gpu": models.RELEASED, "cpu": models.SMALL}[machine]
    config: Any = base.get_config(
        models.model_dict(shape, action_mode="auto" if joints else "ee6d")
    )
    config.action_mode = "auto" if joints else ""
    config.real_action_dim = joints
    size = sizes(count)
    config.batch_size = size.batch
    config.data.shuffle_buffer = 2_000
    config.data.cache_mb = 512.0
    config.optimizer.schedule = "xvla_paper"
    config.optimizer.iters = size.steps
    config.optimizer.freeze_steps = size.first
    config.optimizer.warmup_steps = size.first
    config.validation.every = size.measured
    config.validation.episodes = size.held_out
    config.save_every = 2 * size.measured  # saved twice as often: at every measurement
    config.keep_every = size.measured
    config.keep_best = True
    config.rollouts.every = 5 * size.measured
    config.update_from_flattened_dict(dict(_TRAINED[trained]) | dict(_MACHINES[machine]))
    return config
