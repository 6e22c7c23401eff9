"""Compares a client's inputs with those of training, stage by stage, and names a likely reason.

A reason is a named change that turns training's input into the one that the server got. Pixels are
in grey levels 0 .. 255.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from eval.extras import needed

Pixels = NDArray[np.uint8]
Row = NDArray[np.float64]

_ARM = 10  # numbers of an arm of EE6D: xyz, 6-D rotation, gripper
_NEAR = 1e-4  # proprio: metres, numbers of a 6-D rotation
_CLOSE_ACTIONS = 1e-4  # programs of other batch sizes round otherwise
_EXPLAINED = 0.35  # share of a difference that may remain after the change that explains it
_TO_INTERLEAVED = [0, 3, 1, 4, 2, 5]  # from contiguous; the inverse of the next
_TO_CONTIGUOUS = [0, 2, 4, 1, 3, 5]


@dataclass(frozen=True)
class Expected:
    """Training's inputs of a frame.

    Attributes:
        images: uint8[V, S, S, 3]; absent views are zeros.
        view_mask: bool[V].
        input_ids: int32[L].
        proprio: float32[D].
        domain_id: of the dataset.
        instruction: recorded text.
        recorded: the views in their recorded size, uint8[H, W, 3] RGB.
        own_proprio: float64[D] in the robot's own units, where they are others than training's.
    """

    images: Pixels
    view_mask: NDArray[np.bool_]
    input_ids: NDArray[np.int32]
    proprio: NDArray[np.float32]
    domain_id: int
    instruction: str
    recorded: Sequence[Pixels]
    own_proprio: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class Finding:
    """One stage of one frame; `difference` is empty where both are the same."""

    stage: str
    difference: str


def compare_inputs(seen: Mapping[str, Any], expected: Expected) -> list[Finding]:
    """Compares the stages before the model, in their order.

    Args:
        seen: the model's inputs at the server, from ``POST /inspect``.
        expected: of the same frame.
    """
    return [Finding(name, stage(seen, expected)) for name, stage in _STAGES.items()]


def compare_actions(client: NDArray[Any], training: NDArray[Any]) -> Finding:
    """Compares chunks [T, D] for the client's and for training's inputs, with one seed."""
    worst = float(np.abs(np.asarray(client, float) - training).max())
    text = f"chunks differ by up to {worst:.3g}" if worst > _CLOSE_ACTIONS else ""
    return Finding("action", text)


def _domain(seen: Mapping[str, Any], expected: Expected) -> str:
    domain = seen["domain_id"]
    if domain == expected.domain_id:
        return ""
    return f"wrong domain: the client sends {domain}, the dataset is {expected.domain_id}"


def _views(seen: Mapping[str, Any], expected: Expected) -> str:
    sent, trained = len(seen["pixels"]), int(expected.view_mask.sum())
    return "" if sent == trained else f"{sent} views are sent, training has {trained}"


def _pixels(seen: Mapping[str, Any], expected: Expected) -> str:
    sent: Pixels = seen["pixels"]
    trained = expected.images[: len(sent)]
    if sent.shape[1:] != trained.shape[1:]:
        return f"the model takes {sent.shape[1:]}, training made {trained.shape[1:]}"
    order = [_index_of(view, trained) for view in sent]
    if order != list(range(len(sent))) and sorted(order) == list(range(len(sent))):
        return f"views in another order: slots hold training's views {order}"
    changes = []
    for view, (image, right) in enumerate(zip(sent, trained)):
        if not np.array_equal(image, right):
            native = expected.recorded[view] if view < len(expected.recorded) else right
            changes.append(f"view {view}: {_image_change(image, right, native)}")
    return "; ".join(changes)


def _index_of(view: Pixels, trained: Pixels) -> int:
    """Index of the training view that equals an image exactly, or -1."""
    equal = [i for i, right in enumerate(trained) if np.array_equal(view, right)]
    return equal[0] if equal else -1


def _distance(one: Pixels, other: Pixels) -> float:
    return float(np.abs(one.astype(np.int16) - other).mean())


def _image_change(sent: Pixels, right: Pixels, native: Pixels) -> str:
    """Returns the change that explains most of the difference, or its size."""
    plain = _distance(sent, right)
    candidates = [(name, _distance(sent, make(right))) for name, make in _IMAGE_CHANGES]
    candidates += [
        (f"resized on the client {how}", _distance(sent, make(native, len(right))))
        for how, make in _RESIZES
    ]
    name, left = min(candidates, key=lambda candidate: candidate[1])
    if left <= _EXPLAINED * plain:
        return name
    worst = int(np.abs(sent.astype(np.int16) - right).max())
    return (
        f"differs by {plain:.2f} grey levels in the mean, {worst} at most: another image, crop, "
        "filter, or a lossy encoding"
    )


def _filtered(name: str) -> Callable[[Pixels, int], Pixels]:
    def resize(native: Pixels, side: int) -> Pixels:
        pillow = needed("PIL.Image")
        resized = pillow.fromarray(native).resize((side, side), pillow.Resampling[name])
        return np.asarray(resized)

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


_IMAGE_CHANGES: Sequence[tuple[str, Callable[[Pixels], Pixels]]] = (
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
    ids, trained = np.asarray(seen["input_ids"]), expected.input_ids
    if np.array_equal(ids, trained):
        return ""
    sent, text = seen["instruction"], expected.instruction
    for name, change in _TEXT_CHANGES:
        if sent != text and change(sent) == change(text):
            return f"{name}: {sent!r}, recorded {text!r}"
    if sent != text:
        return f"another instruction: {sent!r}, recorded {text!r}"
    first = int(np.argmax(ids != trained)) if ids.shape == trained.shape else 0
    return (
        f"the same text gives other ids from token {first} on ({ids.shape[0]} and "
        f"{trained.shape[0]} in all): another tokenizer or text length"
    )


_TEXT_CHANGES: Sequence[tuple[str, Callable[[str], str]]] = (
    ("the instruction is not trimmed", str.strip),
    ("other capitals in the instruction", str.lower),
    ("another full stop in the instruction", lambda text: text.strip().rstrip(".")),
    ("underscores for spaces in the instruction", lambda text: text.replace("_", " ")),
)


def _proprio(seen: Mapping[str, Any], expected: Expected) -> str:
    sent = np.asarray(seen["proprio"], np.float64)
    trained = np.zeros(sent.size)
    trained[: expected.proprio.size] = expected.proprio
    hidden = list(seen["hidden_channels"])
    shown = np.setdiff1d(np.arange(sent.size), hidden)
    if np.allclose(sent[shown], trained[shown], atol=_NEAR):
        return _hidden_grippers(sent[hidden], trained[hidden], hidden)
    own = expected.own_proprio
    if own is not None and np.allclose(sent[shown][shown < own.size], own[shown[shown < own.size]]):
        return "the robot's own units are sent; RemotePolicy converts them, or eval.client.units"
    for name, change in _PROPRIO_CHANGES:
        # [D] -> [arms, 10] for the change, and back
        if sent.size % _ARM == 0 and np.allclose(
            sent[shown], change(trained.reshape(-1, _ARM)).ravel()[shown], atol=_NEAR
        ):
            return name
    worst = int(shown[np.argmax(np.abs(sent - trained)[shown])])
    return f"channel {worst} is {sent[worst]:.4g}, in training {trained[worst]:.4g}"


def _hidden_grippers(sent: Row, trained: Row, channels: Sequence[int]) -> str:
    """Returns the first inverted gripper among channels that the model does not see.

    A client that sends a gripper inverted will read the actions inverted too. Clients that know
    that it is not seen send 0.
    """
    inverted = (np.abs(sent - (1 - trained)) < _NEAR) & (sent > 0.5)
    wrong = np.flatnonzero(inverted | (sent < -0.5))
    if not wrong.size:
        return ""
    first = int(wrong[0])
    return (
        f"gripper polarity: channel {channels[first]} is {sent[first]:.3g}, in training "
        f"{trained[first]:.3g}, where 1 is closed and 0 open"
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
