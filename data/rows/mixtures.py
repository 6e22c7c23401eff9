"""Mixtures: named lists of (dataset, weight). A weight is a share of samples; any sum will do."""

from __future__ import annotations

import math

from data.rows.table import DATASETS, dataset
from data.spec import is_named

Mixture = tuple[tuple[str, float], ...]

# X-VLA's pretraining: weights of samples, over 288,000 trajectories
_XVLA_PRETRAIN: Mixture = (
    ("AGIBOT", 0.4),
    ("Droid-Left", 0.15),
    ("Droid-Right", 0.15),
    ("robomind-franka", 0.1),
    ("robomind-ur", 0.1),
    ("robomind-agilex", 0.07),
    ("robomind-franka-dual", 0.03),
)

MIXTURES: dict[str, Mixture] = {
    "xvla_pretrain": _XVLA_PRETRAIN,
    # one for each fine-tune of the paper
    "xvla_calvin": (("Calvin", 1.0),),
    "xvla_libero": (("libero", 1.0),),
    "xvla_robotwin": (("robotwin2_abs_ee", 1.0),),
    "xvla_vlabench": (("VLABench", 1.0),),
    "xvla_bridge": (("Bridge", 1.0),),
    "xvla_fractal": (("RT1", 1.0),),
    "xvla_softfold": (("AIR-AGILEX-HQ", 1.0),),
    # the same from RLDS
    "bridge": (("bridge_dataset", 1.0),),
    "fractal": (("fractal20220817_data", 1.0),),
    "droid": (("droid_left", 0.5), ("droid_right", 0.5)),
    "libero_demos": (("libero_demos", 1.0),),
}


def mixture(text: str) -> Mixture:
    """Reads a mixture: its name, one dataset by name, or name:weight,name:weight.

    Raises:
        ValueError: an unknown name, or a weight that is none.
    """
    if text in MIXTURES:
        return check_mixture(MIXTURES[text])
    first, _, _ = text.partition(":")
    if text in DATASETS or (is_named(text) and first not in DATASETS):
        return check_mixture(((text, 1.0),))
    if ":" not in text:
        raise ValueError(
            f"unknown mixture {text!r}; data/rows/mixtures.py has {', '.join(MIXTURES)}; one "
            "of your own is written name:weight,name:weight"
        )
    return check_mixture(tuple(_weighted(item.strip()) for item in text.split(",")))


def check_mixture(pairs: Mixture) -> Mixture:
    """Returns `pairs` where every dataset is known and named once and every weight is positive."""
    names = [name for name, _ in pairs]
    for name, weight in pairs:
        dataset(name)
        if not 0 < weight < math.inf:
            raise ValueError(f"the weight of {name!r} is {weight}; it must be a positive number")
    if not names or len(set(names)) != len(names):
        raise ValueError(f"a mixture names each dataset once and at least one, got {names}")
    return pairs


def _weighted(item: str) -> tuple[str, float]:
    """Splits at the last colon, because a name may hold one itself, as module:NAME."""
    name, _, weight = item.rpartition(":")
    try:
        return name, float(weight)
    except ValueError as error:
        raise ValueError(f"{item!r} in a mixture is not of the form name:weight") from error
