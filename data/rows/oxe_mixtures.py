"""Mixtures of Open X-Embodiment, as plain values: weighted lists, and what they leave out and why.

Octo and OpenVLA multiply the weights of their lists by the frames of a set, so those are weights
per frame. `oxe_all` is ours and per samples. A named mixture holds rows of high and medium
confidence; every other set of its list is in `LEFT_OUT`.
"""

from __future__ import annotations

from collections.abc import Iterable

from data.rows.oxe import LINES, Line

Pairs = tuple[tuple[str, float], ...]

# as Octo's oxe_dataset_mixes has it
_MAGIC_SOUP: Pairs = (
    ("fractal20220817_data_oxe", 0.54087122203),
    ("kuka", 0.8341046294),
    ("bridge_dataset_oxe", 1.0),
    ("taco_play", 2.0),
    ("jaco_play", 1.0),
    ("berkeley_cable_routing", 1.0),
    ("roboturk", 2.0),
    ("nyu_door_opening_surprising_effectiveness", 1.0),
    ("viola", 2.0),
    ("berkeley_autolab_ur5", 2.0),
    ("toto", 1.0),
    ("language_table", 0.1),
    ("stanford_hydra_dataset_converted_externally_to_rlds", 2.0),
    ("austin_buds_dataset_converted_externally_to_rlds", 1.0),
    ("nyu_franka_play_dataset_converted_externally_to_rlds", 3.0),
    ("furniture_bench_dataset_converted_externally_to_rlds", 0.1),
    ("ucsd_kitchen_dataset_converted_externally_to_rlds", 2.0),
    ("austin_sailor_dataset_converted_externally_to_rlds", 1.0),
    ("austin_sirius_dataset_converted_externally_to_rlds", 1.0),
    ("bc_z", 0.2),
    ("dlr_edan_shared_control_converted_externally_to_rlds", 1.0),
    ("iamlab_cmu_pickup_insert_converted_externally_to_rlds", 1.0),
    ("utaustin_mutex", 1.0),
    ("berkeley_fanuc_manipulation", 2.0),
    ("cmu_stretch", 1.0),
)
_WRIST_ONLY = "nyu_door_opening_surprising_effectiveness"  # OpenVLA's list is without it
# as OpenVLA's mixtures have it
_MAGIC_SOUP_PLUS: Pairs = (
    *((name, weight) for name, weight in _MAGIC_SOUP if name != _WRIST_ONLY),
    ("fmb", 1.0),
    ("dobbe", 0.2),
    ("droid_oxe", 0.06),
)
# the sets of RT-1-X, in Octo's weights
_RTX: Pairs = (
    ("fractal20220817_data_oxe", 0.54087122203),
    ("kuka", 0.8341046294),
    ("bridge_dataset_oxe", 1.0),
    ("taco_play", 2.0),
    ("jaco_play", 2.0),
    ("berkeley_cable_routing", 3.0),
    ("roboturk", 1.0),
    ("nyu_door_opening_surprising_effectiveness", 5.0),
    ("viola", 2.0),
    ("berkeley_autolab_ur5", 1.0),
    ("toto", 1.0),
)
_PUBLISHED = {
    "oxe_magic_soup": _MAGIC_SOUP,
    "oxe_magic_soup_plus": _MAGIC_SOUP_PLUS,
    "rtx": _RTX,
}

_LOW = "confidence low: name it to read it"
_NO_SHARE = "its line states no share of the samples"
# rows that no mixture of all sets should hold: name of a line -> reason
_NOT_IN_ALL = {
    "bridge_oxe": "an outdated copy of bridge_dataset",
    "rh20t": "not published as RLDS",
    "tdroid": "not published",
    "libero_no_noops": "recorded for LIBERO's own benchmark, not for Open X-Embodiment",
}
_LINE_OF = {name: line for line in LINES for name in line.names}
_XVLA_HAS = "droid_oxe"  # as Droid-Left and Droid-Right
_SHARE_OF_OXE = 0.5


def _unfit(line: Line) -> str | None:
    """Returns why the sets of a line are in no named mixture, or None."""
    if line.refused:
        return line.cells["remarks"]
    return _LOW if line.cells["confidence"] == "low" else None


def _fit(pairs: Pairs) -> Pairs:
    return tuple((name, weight) for name, weight in pairs if _unfit(_LINE_OF[name]) is None)


def _all(confidences: Iterable[str]) -> Pairs:
    """Rows of these confidences with their shares of samples."""
    kept = set(confidences)
    return tuple(
        (name, line.share)
        for line in LINES
        for name in line.names
        if not line.refused
        and line.share is not None
        and line.cells["confidence"] in kept
        and line.domain not in _NOT_IN_ALL
    )


def left_out_of_all(lines: Iterable[Line], pairs: Pairs) -> dict[str, str]:
    """Returns the sets that a mixture of all does not hold, each with the reason."""
    names = {name for name, _ in pairs}
    return {
        name: _unfit(line) or _NOT_IN_ALL.get(line.domain, _NO_SHARE)
        for line in lines
        for name in line.names
        if name not in names
    }


PER_FRAMES: dict[str, Pairs] = {name: _fit(pairs) for name, pairs in _PUBLISHED.items()}
PER_SAMPLES: dict[str, Pairs] = {
    "oxe_all": _all(("high", "medium")),
    "oxe_all_low": _all(("high", "medium", "low")),
}
# mixture -> set -> reason
LEFT_OUT: dict[str, dict[str, str]] = {
    **{
        mixture: {name: reason for name, _ in pairs if (reason := _unfit(_LINE_OF[name]))}
        for mixture, pairs in _PUBLISHED.items()
    },
    **{mixture: left_out_of_all(LINES, pairs) for mixture, pairs in PER_SAMPLES.items()},
}
# of X-VLA's pretraining `extended`
LEFT_OUT["xvla_pretrain_oxe"] = LEFT_OUT["oxe_all"] | {
    _XVLA_HAS: "X-VLA's list has it as Droid-Left and Droid-Right"
}


def extended(mixture: Iterable[tuple[str, float]]) -> Pairs:
    """Returns a mixture per samples, half of it `mixture` and half `oxe_all` without DROID.

    Args:
        mixture: X-VLA's pretraining, which has DROID from its own files.
    """
    more = tuple(pair for pair in PER_SAMPLES["oxe_all"] if pair[0] != _XVLA_HAS)
    return _scaled(tuple(mixture), 1 - _SHARE_OF_OXE) + _scaled(more, _SHARE_OF_OXE)


def _scaled(pairs: Pairs, total: float) -> Pairs:
    weights = sum(weight for _, weight in pairs)
    return tuple((name, total * weight / weights) for name, weight in pairs)
