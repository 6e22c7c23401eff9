"""Checks every field of a request, and builds the observation for the policy.

`parse_request` first, then a function for each field; images, also as JPEG or PNG files, are last.
"""

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

from xvla_jax.contract import is_domain_name
from xvla_jax.errors import needs
from xvla_jax.inpainting import MODES
from xvla_jax.plans import DEFAULT, SamplerPlan, exact
from xvla_jax.serving.codecs import array_from_list
from xvla_jax.serving.fields import NAMES, Taken, take, view_warnings
from xvla_jax.serving.limits import Limits, RequestError, bad_field

with needs("serve"):
    import pybase64

Array = Callable[[str, Any], Any]  # converts a field's value to an array or a list

_MOST_ID: Final = 64  # characters
_MOST_SEED: Final = 2**32 - 1
_MOST_PROPRIO: Final = 1e6  # above what robots measure, in any unit; the model would overflow
_MOST_NUMBERS: Final = 1024  # in proprio
_AXES_OF_STACK: Final = 4
_STACK: Final = (
    "a list of images, an array uint8[views, H, W, 3], or a map by camera; and no image0 beside it"
)
_IMAGES_OF_LARGEST: Final = 2  # pixels of a request, counted in images of the largest size
FORMATS: Final = ("JPEG", "PNG")
_MODES: Final = ("RGB", "RGBA", "L", "P")
# Base64 of a file begins with the first bytes of its kind, or as a data: address.
_FILE_TEXT: Final = re.compile(r"(?:data:image/(?:png|jpeg|jpg);base64,|(?=iVBORw0KGgo|/9j/))")
_IMAGE: Final = (
    "uint8[H, W, 3] RGB, or a JPEG or PNG file: its bytes as uint8[n], base64, or a data: address"
)
# Pillow's errors for damaged files and for files that claim to be huge; its decoders raise almost
# any kind. MemoryError is none of them: the service answers it with 413.
IMAGE_ERRORS: Final = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    BufferError,
    EOFError,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
    LookupError,
    OSError,
    RuntimeError,
    SyntaxError,
    SystemError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)


@dataclasses.dataclass(frozen=True)
class Rules:
    """Values that the served model accepts.

    Attributes:
        num_views: image slots.
        views: largest number of images that a program was compiled for.
        widths: accepted widths of proprio; ``/info`` states the first.
        num_actions: rows T of a chunk.
        domains: valid ids.
        num_domains: domains of the model.
        limits: limits of the server.
        cameras: names of the views by domain, in the order of their slots, where they are known.
        names: ids of domains by name.
        lacking: by domain, the channels that its data do not record, in words.
        plans: sampler plans by name, the best first.
    """

    num_views: int
    views: int
    widths: tuple[int, ...]
    num_actions: int
    domains: Collection[int]
    num_domains: int
    limits: Limits
    cameras: Mapping[int, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    names: Mapping[str, int] = dataclasses.field(default_factory=dict)
    lacking: Mapping[int, str] = dataclasses.field(default_factory=dict)
    plans: Mapping[str, SamplerPlan] = dataclasses.field(
        default_factory=lambda: {DEFAULT.name: DEFAULT}
    )


@dataclasses.dataclass(frozen=True, eq=False)
class ActRequest:
    """A checked request.

    Attributes:
        observation: an ``xvla_jax.batch.Observation``.
        plans: sampler plans that it may get, the best first; one where it names a plan or steps.
        seed: seed of the noise; None lets the server choose.
        num_actions: rows to send back.
        deadline_ms: time from arrival.
        request_id: the client's name of the request, or empty.
        observation_time: the client's time, returned unchanged.
        warnings: lines for the reply.
    """

    observation: Any
    plans: tuple[SamplerPlan, ...]
    seed: int | None
    num_actions: int
    deadline_ms: int
    request_id: str
    observation_time: float | None
    warnings: tuple[str, ...]

    @property
    def steps(self) -> int:
        """Denoising steps of its best plan."""
        return self.plans[0].steps


def parse_request(fields: Mapping[Any, Any], rules: Rules, array: Array) -> ActRequest:
    """Checks every field.

    Args:
        fields: decoded fields by name.
        rules: rules of the model.
        array: converts a field's value to an array or a list.

    Raises:
        RequestError: names the field, its value and the allowed values.
    """
    domain = _domain(fields, rules, array)
    taken = take(fields, rules.cameras.get(domain, ()), rules.num_views)
    limits, warnings = rules.limits, taken.warnings
    if domain in rules.lacking:
        warnings.append(
            f"the data of this domain do not record {rules.lacking[domain]}: actions there hold "
            "what proprio says and mean nothing"
        )

    def integer(field: str, default: int, low: int, high: int) -> int:
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
        plans=_plans(taken, rules, array),
        seed=integer("seed", 0, 0, _MOST_SEED) if "seed" in taken.values else None,
        num_actions=integer("num_actions", rules.num_actions, 1, rules.num_actions),
        deadline_ms=integer("deadline_ms", limits.deadline_ms, 1, limits.deadline_ms),
        request_id=_identifier(taken.values.get("request_id", "")),
        observation_time=_time(taken.values.get("observation_time")),
        warnings=tuple(warnings),
    )


def _plans(taken: Taken, rules: Rules, array: Array) -> tuple[SamplerPlan, ...]:
    """Reads the plan, or the steps of X-VLA's own sampler; not both."""
    name, steps = taken.values.get("plan"), taken.values.get("steps")
    if name is None and steps is None:
        return tuple(rules.plans.values())
    if name is None:
        return (exact(_integer("steps", steps, 1, rules.limits.steps, array)),)
    allowed = f"plans of this server: {', '.join(rules.plans)}"
    if not isinstance(name, str) or name not in rules.plans:
        raise bad_field("plan", name, allowed)
    if steps is not None:
        raise bad_field("steps", steps, "a plan, or steps of the exact sampler, not both")
    return (rules.plans[name],)


def _domain(fields: Mapping[Any, Any], rules: Rules, array: Array) -> int:
    """Reads the domain first, because it decides the names of the cameras."""
    value = fields.get("domain_id")
    if value is None:
        others = {name: v for name, v in fields.items() if name != "images"}
        value = take(others, (), rules.num_views).required("domain_id")
    if isinstance(value, str) and rules.names and is_domain_name(value):
        if value not in rules.names:
            raise bad_field("domain_id", value, _listed(rules))
        value = rules.names[value]
    domain = _integer("domain_id", value, 0, rules.num_domains - 1, array)
    if domain not in rules.domains:
        raise bad_field("domain_id", domain, _listed(rules))
    return domain


def _listed(rules: Rules) -> str:
    """Ids of the domains, with their names where they have some."""
    names = {domain: name for name, domain in rules.names.items()}
    ids = (f"{i} ({names[i]})" if i in names else str(i) for i in sorted(rules.domains))
    return f"domains of this checkpoint: [{', '.join(ids)}]"


def _integer(field: str, value: Any, low: int, high: int, array: Array) -> int:
    """Reads an integer, also from a text or from an array of one in any form of arrays."""
    allowed = f"an integer {low} .. {high}"
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
    if value[:2] in ("b'", 'b"') and value[-1] == value[1]:
        warnings.append(f"{name} begins with b and a quote: is it bytes that str() was called on?")
    return value


def _images(
    taken: Taken, rules: Rules, array: Array, cameras: tuple[str, ...], warnings: list[str]
) -> list[np.ndarray]:
    """Reads images in their order; the order decides the slots, not the names, as released."""
    slots = (f"image{i}" for i in range(rules.num_views))
    sent = {field: taken.values[field] for field in slots if field in taken.values}
    shown = taken.names
    many = taken.values.get("images")
    if many is not None:
        many = many if isinstance(many, list) else _stacked(array("images", many))
        if sent:
            raise bad_field("images", f"images beside {', '.join(sent)}", _STACK)
        sent = {f"image{i}": value for i, value in enumerate(many[: rules.views + 1])}
        shown = {field: f"images[{i}]" for i, field in enumerate(sent)}
    if not 1 <= len(sent) <= rules.views:
        count = len(many) if many is not None else len(sent)
        raise RequestError(
            400,
            "no valid images found" if not count else "too many images",
            field="image0",
            value=count if count else taken.instead or 0,
            allowed=f"1 .. {rules.views} images: image0, image1, ..."
            + (f"; or by camera, {', '.join(cameras)}" if cameras else ""),
        )
    warnings += view_warnings(taken, list(sent), cameras)
    images, left = [], _IMAGES_OF_LARGEST * rules.limits.image_pixels
    for field, value in sent.items():
        # two files of few bytes may hold 8 million pixels: the second gets what the first has left
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
        file = _file_of_text(name, value)
        value = array(name, value) if file is None else file
    elif not isinstance(value, (np.ndarray, bytes)):  # as they are on the websocket
        value = array(name, value)
    return read_image(name, value, most_pixels=most_pixels)


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
    numbers = array(field, value)
    if isinstance(numbers, list):
        numbers = array_from_list(field, numbers, allowed, axes=1, most=_MOST_NUMBERS)
    known = numbers.dtype.kind in "iuf" and numbers.ndim == 1
    if not known or not 1 <= numbers.size <= _MOST_NUMBERS:
        raise bad_field(field, f"{numbers.dtype}{list(numbers.shape)}", allowed)
    _check_finite(field, numbers, allowed)
    return numbers


def _check_finite(field: str, numbers: np.ndarray, allowed: str) -> None:
    if not (np.isfinite(numbers) & (np.abs(numbers.astype(np.float64)) <= _MOST_PROPRIO)).all():
        raise bad_field(field, "numbers that are not finite, or huge", allowed)


def _prefix(taken: Taken, rules: Rules, array: Array) -> dict[str, Any]:
    """Reads the rows that the chunk begins with; the policy checks them against the contract."""
    values = taken.values
    mode = {"prefix_mode": _prefix_mode(values["prefix_mode"])} if "prefix_mode" in values else {}
    if "prefix" not in values:
        if "prefix_committed" in values:
            raise bad_field("prefix_committed", values["prefix_committed"], "beside a prefix only")
        return mode
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
    return {"prefix": rows.astype(np.float32), "prefix_committed": committed, **mode}


def _prefix_mode(value: Any) -> str:
    if not isinstance(value, str) or value not in MODES:
        raise bad_field("prefix_mode", value, ", ".join(MODES))
    return value


def _identifier(value: Any) -> str:
    if not isinstance(value, str) or len(value) > _MOST_ID or not value.isprintable():
        raise bad_field("request_id", value, f"a text of up to {_MOST_ID} printable characters")
    return value


def _time(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e18:
        raise bad_field("observation_time", value, "a number; it is returned unchanged")
    return float(value)


# --- images


def _file_of_text(field: str, text: str) -> bytes | None:
    """Returns the JPEG or PNG file that a text holds as base64; None for a text that holds JSON.

    Raises:
        RequestError: neither; nothing that a text names is ever opened.
    """
    start = _FILE_TEXT.match(text)
    if start is None:
        if text.lstrip()[:1] in ("{", "["):
            return None
        raise bad_field(field, text, _IMAGE)
    try:
        return pybase64.b64decode("".join(text[start.end() :].split()), validate=True)
    except ValueError as error:
        raise bad_field(field, f"base64: {error}", _IMAGE) from error


def read_image(field: str, value: Any, *, most_pixels: int) -> np.ndarray:
    """Returns an image as ``uint8[H, W, 3]`` RGB.

    Args:
        field: name for messages.
        value: array, nested lists of 0 .. 255, or bytes of a file.
        most_pixels: limit of one image; for a file it is checked before the file is decoded.

    Raises:
        RequestError: anything else.
    """
    if isinstance(value, list):
        value = _from_lists(field, value, most_pixels)
    if isinstance(value, bytes):
        value = np.frombuffer(value, np.uint8) if value else np.zeros(0, np.uint8)
    if not isinstance(value, np.ndarray):
        raise bad_field(field, value, _IMAGE)
    if value.dtype == np.uint8 and value.ndim == 1:
        return _decoded(field, value.tobytes(), most_pixels)
    if value.dtype != np.uint8 or value.ndim != 3 or value.shape[2] != 3 or not value.size:
        raise bad_field(field, f"{value.dtype}{list(value.shape)}", _IMAGE)
    _check_size(field, value.shape[1], value.shape[0], most_pixels)
    return value


def _check_size(field: str, width: int, height: int, most_pixels: int) -> None:
    if width * height > most_pixels:
        raise bad_field(field, f"{width} x {height} pixels", f"at most {most_pixels} pixels")


def _from_lists(field: str, value: list[Any], most_pixels: int) -> np.ndarray:
    array = array_from_list(field, value, _IMAGE, axes=3, most=3 * most_pixels)
    if array.dtype.kind not in "iu" or not array.size or array.min() < 0 or array.max() > 255:
        raise bad_field(field, f"a list of {array.dtype}", "integers 0 .. 255; " + _IMAGE)
    return array.astype(np.uint8)


def _decoded(field: str, data: bytes, most_pixels: int) -> np.ndarray:
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        _check_size(field, *image.size, most_pixels)
        if image.mode not in _MODES:
            raise bad_field(field, f"mode {image.mode}", f"modes {', '.join(_MODES)}")
        image.load()  # np.asarray would take an AttributeError of a decoder for "no array"
        if image.mode != "RGB":
            image = image.convert("RGB")  # the other pixels are freed before the array is made
        return np.asarray(image)
    except IMAGE_ERRORS as error:
        raise bad_field(field, f"{len(data)} bytes: {error}"[:80], _IMAGE) from error
