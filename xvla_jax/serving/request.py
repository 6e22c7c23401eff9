"""From the fields of a request to what the policy takes; nothing unchecked goes on."""

from __future__ import annotations

import dataclasses
import io
import re
import struct
import zlib
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final

import numpy as np
from PIL import Image

from xvla_jax.errors import needs
from xvla_jax.serving.codecs import array_from_list
from xvla_jax.serving.fields import NAMES, Taken, take, view_warnings
from xvla_jax.serving.limits import Limits, RequestError, bad_field

with needs("serve"):
    import pybase64

_FORMATS: Final = ("JPEG", "PNG")
_MODES: Final = ("RGB", "RGBA", "L", "P")
# How base64 of a file begins: with its kind's first bytes, or as the address that holds it.
_FILE_TEXT: Final = re.compile(r"(?:data:image/(?:png|jpeg|jpg);base64,|(?=iVBORw0KGgo|/9j/))")
_ALLOWED: Final = (
    "uint8[H, W, 3] RGB, or a JPEG or PNG file: its bytes as uint8[n], base64, or a data: address"
)


def file_of_text(field: str, text: str) -> bytes | None:
    """The JPEG or PNG file that a text holds as base64; None for a text that holds JSON.

    Raises:
        RequestError: neither; nothing that a text names is ever opened.
    """
    found = _FILE_TEXT.match(text)
    if found is None:
        if text.lstrip()[:1] in ("{", "["):
            return None
        raise bad_field(field, text, _ALLOWED)
    try:
        return pybase64.b64decode("".join(text[found.end() :].split()), validate=True)
    except ValueError as error:
        raise bad_field(field, f"base64: {error}", _ALLOWED) from error


def picture(field: str, value: Any, *, most_pixels: int) -> np.ndarray:
    """An image as ``uint8[H, W, 3]`` RGB.

    Args:
        field: for messages.
        value: array, nested lists of 0 .. 255, or bytes of a file.
        most_pixels: of one image; of a file it is checked before the file is decoded.

    Raises:
        RequestError: anything else.
    """
    if isinstance(value, list):
        value = _from_lists(field, value, most_pixels)
    if isinstance(value, bytes):
        value = np.frombuffer(value, np.uint8) if value else np.zeros(0, np.uint8)
    if not isinstance(value, np.ndarray):
        raise bad_field(field, value, _ALLOWED)
    if value.dtype == np.uint8 and value.ndim == 1:
        return _decoded(field, value.tobytes(), most_pixels)
    found = f"{value.dtype}{list(value.shape)}"
    if value.dtype != np.uint8 or value.ndim != 3 or value.shape[2] != 3 or not value.size:
        raise bad_field(field, found, _ALLOWED)
    _check_size(field, value.shape[1], value.shape[0], most_pixels)
    return value


def _check_size(field: str, width: int, height: int, most_pixels: int) -> None:
    if width * height > most_pixels:
        raise bad_field(field, f"{width} x {height} pixels", f"at most {most_pixels} pixels")


def _from_lists(field: str, value: list[Any], most_pixels: int) -> np.ndarray:
    array = array_from_list(field, value, _ALLOWED, axes=3, most=3 * most_pixels)
    if array.dtype.kind not in "iu" or not array.size or array.min() < 0 or array.max() > 255:
        raise bad_field(field, f"a list of {array.dtype}", "whole numbers 0 .. 255; " + _ALLOWED)
    return array.astype(np.uint8)


def _decoded(field: str, data: bytes, most_pixels: int) -> np.ndarray:
    try:
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
        _check_size(field, *image.size, most_pixels)
        if image.mode not in _MODES:
            raise bad_field(field, f"mode {image.mode}", f"modes {', '.join(_MODES)}")
        if image.mode != "RGB":
            image = image.convert("RGB")  # the other pixels are freed before the array is made
        return np.asarray(image)
    except (
        OSError,  # not a picture, or cut short
        EOFError,
        SyntaxError,  # what Pillow calls a broken PNG
        ValueError,
        struct.error,
        zlib.error,
        Image.DecompressionBombError,
    ) as error:
        raise bad_field(field, f"{len(data)} bytes: {error}"[:80], _ALLOWED) from error


Array = Callable[[str, Any], Any]  # a codec's way from a field's value to an array or a list

_MOST_ID: Final = 64  # characters
_MOST_SEED: Final = 2**32 - 1
_MOST_PROPRIO: Final = 1e6  # nothing that a robot measures, in any unit; the model would overflow
_MOST_NUMBERS: Final = 1024  # of proprio
_DEFAULT_STEPS: Final = 10  # denoising steps, as released
_AXES_OF_STACK: Final = 4
_STACK: Final = (
    "a list of images, an array uint8[views, H, W, 3], or a map by camera; and no image0 beside it"
)
_IMAGES_OF_LARGEST: Final = 2  # pixels of a request, in images of the largest size


@dataclasses.dataclass(frozen=True)
class Rules:
    """What the served model takes.

    Attributes:
        num_views: image slots.
        views: most images that it was compiled for.
        widths: of proprio; the first is announced.
        num_actions: rows T of a chunk.
        domains: valid ids.
        num_domains: of the model.
        limits: of the server.
        cameras: names of the views by domain, in the order of their slots, where they are known.
    """

    num_views: int
    views: int
    widths: tuple[int, ...]
    num_actions: int
    domains: Collection[int]
    num_domains: int
    limits: Limits
    cameras: Mapping[int, tuple[str, ...]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, eq=False)
class ActRequest:
    """A checked request.

    Attributes:
        observation: as ``xvla_jax.batch.Observation``.
        steps: denoising steps.
        seed: of the noise; None for one of the server's choice.
        num_actions: rows to send back.
        deadline_ms: from arrival.
        request_id: the client's, or empty.
        observation_time: the client's, sent back as it came.
        warnings: for the reply.
    """

    observation: Any
    steps: int
    seed: int | None
    num_actions: int
    deadline_ms: int
    request_id: str
    observation_time: float | None
    warnings: tuple[str, ...]


def parse_request(fields: Mapping[Any, Any], rules: Rules, array: Array) -> ActRequest:
    """Checks every field.

    Args:
        fields: by name, as the codec found them.
        rules: of the model.
        array: the codec's way from a field's value to an array or a list.

    Raises:
        RequestError: names the field, what it was and what is allowed.
    """
    domain = _domain(fields, rules, array)
    taken = take(fields, rules.cameras.get(domain, ()), rules.num_views)
    limits, warnings = rules.limits, taken.warnings

    def whole(field: str, default: int, low: int, high: int) -> int:
        return _integer(field, taken.values.get(field, default), low, high, array)

    observation = {
        "proprio": _proprio(taken, rules, array, warnings),
        "images": _images(taken, rules, array, rules.cameras.get(domain, ()), warnings),
        "instruction": _instruction(taken.required("instruction"), limits, warnings),
        "domain_id": domain,
        **_prefix(taken, rules, array),
    }
    return ActRequest(
        observation=observation,
        steps=whole("steps", _DEFAULT_STEPS, 1, limits.steps),
        seed=whole("seed", 0, 0, _MOST_SEED) if "seed" in taken.values else None,
        num_actions=whole("num_actions", rules.num_actions, 1, rules.num_actions),
        deadline_ms=whole("deadline_ms", limits.deadline_ms, 1, limits.deadline_ms),
        request_id=_identifier(taken.values.get("request_id", "")),
        observation_time=_time(taken.values.get("observation_time")),
        warnings=tuple(warnings),
    )


def _domain(fields: Mapping[Any, Any], rules: Rules, array: Array) -> int:
    """Before all others, for it decides what the cameras are called."""
    value = fields.get("domain_id")
    if value is None:
        others = {name: v for name, v in fields.items() if name != "images"}
        value = take(others, (), rules.num_views).required("domain_id")
    domain = _integer("domain_id", value, 0, rules.num_domains - 1, array)
    if domain not in rules.domains:
        raise bad_field("domain_id", domain, f"domains of this checkpoint: {sorted(rules.domains)}")
    return domain


def _integer(field: str, value: Any, low: int, high: int, array: Array) -> int:
    """A whole number, also as a text, or as an array of one in any form that arrays have."""
    allowed = f"a whole number {low} .. {high}"
    number = value
    if isinstance(number, (dict, list)) or (isinstance(number, str) and number[:1] == "{"):
        number = array(field, number)
    if isinstance(number, list):
        number = array_from_list(field, number, allowed, axes=1, most=1)
    if isinstance(number, np.ndarray) and number.size == 1:
        number = number.item()
    if isinstance(number, str) and number.isascii() and number.isdigit() and len(number) < 20:
        number = int(number)
    if isinstance(number, float) and number.is_integer():
        number = int(number)
    if type(number) is not int or not low <= number <= high:
        raise bad_field(field, value, allowed)
    return number


def _instruction(value: Any, limits: Limits, warnings: list[str]) -> str:
    allowed = f"a text of 1 .. {limits.text_characters} characters"
    name = NAMES["instruction"][0]
    if not isinstance(value, str) or not value.strip():
        raise bad_field(name, value, allowed)
    if len(value) > limits.text_characters:
        raise bad_field(name, f"{len(value)} characters", allowed)
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise bad_field(name, value, "a text without halves of surrogate pairs")
    if value[:2] in ("b'", 'b"') and value[-1] == value[1]:
        warnings.append(f"{name} begins with b and a quote: is it bytes that str() was called on?")
    return value


def _images(
    taken: Taken, rules: Rules, array: Array, cameras: tuple[str, ...], warnings: list[str]
) -> list[np.ndarray]:
    """Images in their order; as released, places in that order decide the slots, not the names."""
    slots = (f"image{i}" for i in range(rules.num_views))
    found = {field: taken.values[field] for field in slots if field in taken.values}
    shown = taken.names
    many = taken.values.get("images")
    if many is not None:
        many = many if isinstance(many, list) else _stacked(array("images", many))
        if found:
            raise bad_field("images", f"images beside {', '.join(found)}", _STACK)
        found = {f"image{i}": value for i, value in enumerate(many[: rules.views + 1])}
        shown = {field: f"images[{i}]" for i, field in enumerate(found)}
    if not 1 <= len(found) <= rules.views:
        count = len(many) if many is not None else len(found)
        raise RequestError(
            400,
            "no valid images found" if not count else "too many images",
            field="image0",
            value=count if count else taken.instead or 0,
            allowed=f"1 .. {rules.views} images: image0, image1, ..."
            + (f"; or by camera, {', '.join(cameras)}" if cameras else ""),
        )
    warnings += view_warnings(taken, list(found), cameras)
    images, left = [], _IMAGES_OF_LARGEST * rules.limits.image_pixels
    for field, value in found.items():
        most = min(left, rules.limits.image_pixels)
        images.append(_image(shown[field], value, array, most))
        left -= images[-1].shape[0] * images[-1].shape[1]
    return images


def _stacked(value: Any) -> list[Any]:
    if isinstance(value, np.ndarray) and value.ndim != _AXES_OF_STACK:
        raise bad_field("images", f"{value.dtype}{list(value.shape)}", _STACK)
    return list(value)


def _image(name: str, value: Any, array: Array, most_pixels: int) -> np.ndarray:
    if isinstance(value, str):
        file = file_of_text(name, value)
        value = array(name, value) if file is None else file
    elif not isinstance(value, (np.ndarray, bytes)):  # as they are on the websocket
        value = array(name, value)
    return picture(name, value, most_pixels=most_pixels)


def _proprio(taken: Taken, rules: Rules, array: Array, warnings: list[str]) -> np.ndarray:
    allowed = f"{' or '.join(map(str, rules.widths))} finite numbers"
    sent = taken.parts.get("proprio") or [("proprio", taken.required("proprio"))]
    state = np.concatenate([_numbers(name, value, array, allowed) for name, value in sent])
    name = " and ".join(name for name, _ in sent)
    shape = f"{state.dtype}[{state.size}]"
    if state.size in rules.widths:
        return state.astype(np.float32)
    if state.any():
        raise bad_field(name, shape, allowed)
    warnings.append(
        f"{name} has {state.size} zeros where {rules.widths[0]} numbers are expected; it was read "
        "as no state"
    )
    return np.zeros(rules.widths[0], np.float32)


def _numbers(field: str, value: Any, array: Array, allowed: str) -> np.ndarray:
    found = array(field, value)
    if isinstance(found, list):
        found = array_from_list(field, found, allowed, axes=1, most=_MOST_NUMBERS)
    if found.dtype.kind not in "iuf" or found.ndim != 1 or not 1 <= found.size <= _MOST_NUMBERS:
        raise bad_field(field, f"{found.dtype}{list(found.shape)}", allowed)
    _check_finite(field, found, allowed)
    return found


def _check_finite(field: str, found: np.ndarray, allowed: str) -> None:
    if not (np.isfinite(found) & (np.abs(found.astype(np.float64)) <= _MOST_PROPRIO)).all():
        raise bad_field(field, "numbers that are not finite, or huge", allowed)


def _prefix(taken: Taken, rules: Rules, array: Array) -> dict[str, Any]:
    """Rows that the chunk begins with; what they may hold beyond numbers, the policy knows."""
    values = taken.values
    if "prefix" not in values:
        if "prefix_committed" in values:
            raise bad_field("prefix_committed", values["prefix_committed"], "beside a prefix only")
        return {}
    allowed = f"up to {rules.num_actions} rows of {rules.widths[-1]} finite numbers"
    rows = array("prefix", values["prefix"])
    if isinstance(rows, list):
        most = rules.num_actions * max(rules.widths)
        rows = array_from_list("prefix", rows, allowed, axes=2, most=most)
    if rows.ndim and len(rows) == 0:
        rows = np.zeros((0, rules.widths[-1]), np.float32)
    if (
        rows.dtype.kind not in "iuf"
        or rows.ndim != 2
        or len(rows) > rules.num_actions
        or rows.shape[1] not in rules.widths
    ):
        raise bad_field("prefix", f"{rows.dtype}{list(rows.shape)}", allowed)
    _check_finite("prefix", rows, allowed)
    committed = values.get("prefix_committed", len(rows))
    committed = _integer("prefix_committed", committed, 0, len(rows), array)
    return {"prefix": rows.astype(np.float32), "prefix_committed": committed}


def _identifier(value: Any) -> str:
    if not isinstance(value, str) or len(value) > _MOST_ID or not value.isprintable():
        raise bad_field("request_id", value, f"a text of up to {_MOST_ID} printable characters")
    return value


def _time(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e18:
        raise bad_field("observation_time", value, "a number; it is sent back as it came")
    return float(value)
