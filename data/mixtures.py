"""Mixtures: named lists of (dataset, weight). A weight is a share of samples; any sum will do."""

from __future__ import annotations

from data.datasets import dataset

Mixture = tuple[tuple[str, float], ...]

MIXTURES: dict[str, Mixture] = {
    "bridge": (("bridge_dataset", 1.0),),
    "fractal": (("fractal20220817_data", 1.0),),
    "droid": (("droid_left", 0.5), ("droid_right", 0.5)),
    "libero_demos": (("libero_demos", 1.0),),
}


def mixture(name: str) -> Mixture:
    """The mixture called `name`; a ValueError lists the mixtures there are."""
    if name not in MIXTURES:
        raise ValueError(f"unknown mixture {name!r}; data/mixtures.py has {', '.join(MIXTURES)}")
    return check_mixture(MIXTURES[name])


def check_mixture(pairs: Mixture) -> Mixture:
    """`pairs` when every dataset is known and named once and every weight is positive."""
    names = [name for name, _ in pairs]
    for name, weight in pairs:
        dataset(name)
        if not 0 < weight < float("inf"):
            raise ValueError(f"the weight of {name!r} is {weight}; it must be a positive number")
    if not names or len(set(names)) != len(names):
        raise ValueError(f"a mixture names each dataset once and at least one, got {names}")
    return pairs
