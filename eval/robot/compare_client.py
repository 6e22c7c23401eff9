"""What a client sends against what training saw, stage by stage, with a guess at the reason.

A guess is a named change that turns what training saw into what the server got. Pixels are in grey
levels 0 .. 255.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from eval.pictures import needed

Pixels = NDArray[np.uint8]
Row = NDArray[np.float64]

_ARM = 10  # numbers of an arm of EE6D: xyz, 6-D rotation, gripper
_NEAR = 1e-4  # proprio: metres, numbers of a 6-D rotation
_CLOSE_ACTIONS = 1e-4  # programs of other batch sizes round otherwise
_EXPLAINED = 0.35  # of the difference may be left for a guess to be made
_TO_INTERLEAVED = [0, 3, 1, 4, 2, 5]  # from contiguous; the inverse of the next
_TO_CONTIGUOUS = [0, 2, 4, 1, 3, 5]


@dataclass(frozen=True)
class Expected:
    """What training has of a frame.

    Attributes:
        images: uint8[V, S, S, 3]; absent views are zeros.
        view_mask: bool[V].
        input_ids: int32[L].
        proprio: float32[D].
        domain_id: of the dataset.
        instruction: as recorded.
        recorded: the views in their own size, uint8[H, W, 3] RGB.
    """

    images: Pixels
    view_mask: NDArray[np.bool_]
    input_ids: NDArray[np.int32]
    proprio: NDArray[np.float32]
    domain_id: int
    instruction: str
    recorded: Sequence[Pixels]


@dataclass(frozen=True)
class Finding:
    """One stage of one frame; `difference` is empty where both are the same."""

    stage: str
    difference: str


def compare_inputs(seen: Mapping[str, Any], expected: Expected) -> list[Finding]:
    """The stages before the model, in their order.

    Args:
        seen: what the server says that the model would get, as ``POST /inspect`` answers.
        expected: of the same frame.
    """
    return [Finding(name, stage(seen, expected)) for name, stage in _STAGES.items()]


def compare_actions(found: NDArray[Any], wanted: NDArray[Any]) -> Finding:
    """Chunks [T, D] for the client's request and for training's own inputs, with one seed."""
    worst = float(np.abs(np.asarray(found, float) - wanted).max())
    text = f"chunks differ by up to {worst:.3g}" if worst > _CLOSE_ACTIONS else ""
    return Finding("action", text)


def _domain(seen: Mapping[str, Any], expected: Expected) -> str:
    found = seen["domain_id"]
    if found == expected.domain_id:
        return ""
    return f"wrong domain: the client says {found}, the dataset is {expected.domain_id}"


def _views(seen: Mapping[str, Any], expected: Expected) -> str:
    found, wanted = len(seen["pixels"]), int(expected.view_mask.sum())
    return "" if found == wanted else f"{found} views are sent, training has {wanted}"


def _pixels(seen: Mapping[str, Any], expected: Expected) -> str:
    found: Pixels = seen["pixels"]
    wanted = expected.images[: len(found)]
    if found.shape[1:] != wanted.shape[1:]:
        return f"the model takes {found.shape[1:]}, training made {wanted.shape[1:]}"
    order = [_nearest(view, wanted) for view in found]
    if order != list(range(len(found))) and sorted(order) == list(range(len(found))):
        return f"views in another order: slots hold training's views {order}"
    told = []
    for view, (got, right) in enumerate(zip(found, wanted)):
        if not np.array_equal(got, right):
            native = expected.recorded[view] if view < len(expected.recorded) else right
            told.append(f"view {view}: {_picture_change(got, right, native)}")
    return "; ".join(told)


def _nearest(view: Pixels, wanted: Pixels) -> int:
    """The training view that a picture is, if it is one of them exactly; else -1."""
    equal = [i for i, right in enumerate(wanted) if np.array_equal(view, right)]
    return equal[0] if equal else -1


def _distance(one: Pixels, other: Pixels) -> float:
    return float(np.abs(one.astype(np.int16) - other).mean())


def _picture_change(found: Pixels, right: Pixels, native: Pixels) -> str:
    plain = _distance(found, right)
    candidates = [(name, _distance(found, make(right))) for name, make in _PICTURE_CHANGES]
    candidates += [
        (f"resized on the client {how}", _distance(found, make(native, len(right))))
        for how, make in _RESIZES
    ]
    name, left = min(candidates, key=lambda candidate: candidate[1])
    if left <= _EXPLAINED * plain:
        return name
    worst = int(np.abs(found.astype(np.int16) - right).max())
    return (
        f"differs by {plain:.2f} grey levels in the mean, {worst} at most: another picture, crop, "
        "filter, or a lossy encoding"
    )


def _filtered(name: str) -> Callable[[Pixels, int], Pixels]:
    def resize(native: Pixels, side: int) -> Pixels:
        pillow = needed("PIL.Image")
        picture = pillow.fromarray(native).resize((side, side), pillow.Resampling[name])
        return np.asarray(picture)

    return resize


def _cropped(native: Pixels, side: int) -> Pixels:
    height, width, _ = native.shape
    short = min(height, width)
    top, left = (height - short) // 2, (width - short) // 2
    return _filtered("BICUBIC")(native[top : top + short, left : left + short], side)


def _padded(native: Pixels, side: int) -> Pixels:
    height, width, _ = native.shape
    long = max(height, width)
    square = np.zeros((long, long, 3), np.uint8)
    top, left = (long - height) // 2, (long - width) // 2
    square[top : top + height, left : left + width] = native
    return _filtered("BICUBIC")(square, side)


_PICTURE_CHANGES: Sequence[tuple[str, Callable[[Pixels], Pixels]]] = (
    ("blue and red are swapped (BGR)", lambda p: p[..., ::-1]),
    ("flipped upside down", lambda p: p[::-1]),
    ("flipped left to right", lambda p: p[:, ::-1]),
    ("turned by 180 degrees", lambda p: p[::-1, ::-1]),
    ("turned by 90 degrees", lambda p: np.rot90(p)),
    ("turned by 270 degrees", lambda p: np.rot90(p, 3)),
    ("black", np.zeros_like),
)
_RESIZES: Sequence[tuple[str, Callable[[Pixels, int], Pixels]]] = (
    ("with another filter (nearest)", _filtered("NEAREST")),
    ("with another filter (box)", _filtered("BOX")),
    ("with another filter (bilinear)", _filtered("BILINEAR")),
    ("with another filter (hamming)", _filtered("HAMMING")),
    ("with another filter (lanczos)", _filtered("LANCZOS")),
    ("after a crop to a square", _cropped),
    ("with black bars to keep the ratio", _padded),
)


def _ids(seen: Mapping[str, Any], expected: Expected) -> str:
    found, wanted = np.asarray(seen["input_ids"]), expected.input_ids
    if np.array_equal(found, wanted):
        return ""
    sent, text = seen["instruction"], expected.instruction
    for name, change in _TEXT_CHANGES:
        if sent != text and change(sent) == change(text):
            return f"{name}: {sent!r}, recorded {text!r}"
    if sent != text:
        return f"another instruction: {sent!r}, recorded {text!r}"
    first = int(np.argmax(found != wanted)) if found.shape == wanted.shape else 0
    return (
        f"the same text gives other ids from token {first} on ({found.shape[0]} and "
        f"{wanted.shape[0]} in all): another tokenizer or text length"
    )


_TEXT_CHANGES: Sequence[tuple[str, Callable[[str], str]]] = (
    ("the instruction is not trimmed", str.strip),
    ("other capitals in the instruction", str.lower),
    ("another full stop in the instruction", lambda text: text.strip().rstrip(".")),
    ("underscores for spaces in the instruction", lambda text: text.replace("_", " ")),
)


def _proprio(seen: Mapping[str, Any], expected: Expected) -> str:
    found = np.asarray(seen["proprio"], np.float64)
    wanted = np.zeros(found.size)
    wanted[: expected.proprio.size] = expected.proprio
    hidden = list(seen["hidden_channels"])
    shown = np.setdiff1d(np.arange(found.size), hidden)
    if np.allclose(found[shown], wanted[shown], atol=_NEAR):
        return _hidden_grippers(found[hidden], wanted[hidden], hidden)
    for name, change in _PROPRIO_CHANGES:
        if found.size % _ARM == 0 and np.allclose(
            found[shown], change(wanted.reshape(-1, _ARM)).ravel()[shown], atol=_NEAR
        ):
            return name
    worst = int(shown[np.argmax(np.abs(found - wanted)[shown])])
    return f"channel {worst} is {found[worst]:.4g}, in training {wanted[worst]:.4g}"


def _hidden_grippers(found: Row, wanted: Row, channels: Sequence[int]) -> str:
    """Not seen by the model, but who sends them inverted will read the actions so too.

    0 is what clients send who know that it is not seen.
    """
    inverted = (np.abs(found - (1 - wanted)) < _NEAR) & (found > 0.5)
    wrong = np.flatnonzero(inverted | (found < -0.5))
    if not wrong.size:
        return ""
    first = int(wrong[0])
    return (
        f"gripper polarity: channel {channels[first]} is {found[first]:.3g}, in training "
        f"{wanted[first]:.3g}, where 1 is closed and 0 open"
    )


def _changed(columns: slice, change: Callable[[Row], Row]) -> Callable[[Row], Row]:
    def apply(arms: Row) -> Row:
        result = arms.copy()
        result[:, columns] = change(arms[:, columns])
        return result

    return apply


_XYZ, _TURN, _GRIPPER = slice(0, 3), slice(3, 9), slice(9, 10)
_PROPRIO_CHANGES: Sequence[tuple[str, Callable[[Row], Row]]] = (
    ("zeros are sent", np.zeros_like),
    (
        "the other rotation layout: interleaved where training has contiguous",
        _changed(_TURN, lambda r: r[:, _TO_INTERLEAVED]),
    ),
    (
        "the other rotation layout: contiguous where training has interleaved",
        _changed(_TURN, lambda r: r[:, _TO_CONTIGUOUS]),
    ),
    ("gripper polarity: 1 - x where training has x", _changed(_GRIPPER, lambda g: 1 - g)),
    ("gripper range: -1 .. 1 where training has 0 .. 1", _changed(_GRIPPER, lambda g: 2 * g - 1)),
    ("positions in millimetres, training has metres", _changed(_XYZ, lambda p: 1000 * p)),
    ("left and right arm are exchanged", lambda arms: arms[::-1]),
)

_STAGES: Mapping[str, Callable[[Mapping[str, Any], Expected], str]] = {
    "domain": _domain,
    "views": _views,
    "pixels": _pixels,
    "ids": _ids,
    "proprio": _proprio,
}
