"""From the fields of a request to what the policy takes; nothing unchecked goes on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final

import numpy as np

from xvla_jax.serving.limits import Limits
from xvla_jax.serving.pictures import picture
from xvla_jax.serving.refusal import RequestError, bad_field

# What a field may be called: first the released name, then openpi's.
_NAMES: Final[Mapping[str, tuple[str, ...]]] = {
    "instruction": ("language_instruction", "instruction", "prompt"),
    "proprio": ("proprio", "state", "observation/state"),
    "images": ("images",),
    "image0": ("image0", "observation/image"),
    "image1": ("image1", "observation/wrist_image"),
    "domain_id": ("domain_id",),
    "prefix": ("prefix",),
    "prefix_committed": ("prefix_committed",),
    "steps": ("steps",),
    "seed": ("seed",),
    "num_actions": ("num_actions",),
    "deadline_ms": ("deadline_ms",),
    "request_id": ("request_id",),
    "observation_time": ("observation_time",),
}
_MOST_ID: Final = 64  # characters
_MOST_SEED: Final = 2**32 - 1
_MOST_PROPRIO: Final = 1e6  # nothing that a robot measures, in any unit; the model would overflow
_DEFAULT_STEPS: Final = 10  # denoising steps, as released


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
    """

    num_views: int
    views: int
    widths: tuple[int, ...]
    num_actions: int
    domains: Collection[int]
    num_domains: int
    limits: Limits


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


def parse_request(
    fields: Mapping[Any, Any], rules: Rules, array: Callable[[str, Any], Any]
) -> ActRequest:
    """Checks every field.

    Args:
        fields: by name, as the codec found them.
        rules: of the model.
        array: the codec's way from a field's value to an array or a list.

    Raises:
        RequestError: names the field, what it was and what is allowed.
    """
    taken, unknown = _by_field(fields, rules.num_views)
    limits = rules.limits
    warnings = [f"unknown field {name!r} was ignored" for name in unknown[:4]]
    domain = _integer(taken, "domain_id", None, 0, rules.num_domains - 1)
    if domain not in rules.domains:
        raise bad_field("domain_id", domain, f"domains of this checkpoint: {sorted(rules.domains)}")
    proprio = _proprio(_required(taken, "proprio"), rules, array, warnings)
    seed = _integer(taken, "seed", 0, 0, _MOST_SEED) if "seed" in taken else None
    return ActRequest(
        observation={
            "images": _images(taken, rules, array),
            "instruction": _instruction(_required(taken, "instruction"), limits),
            "proprio": proprio,
            "domain_id": domain,
            **_prefix(taken, rules, array),
        },
        steps=_integer(taken, "steps", _DEFAULT_STEPS, 1, limits.steps),
        seed=seed,
        num_actions=_integer(taken, "num_actions", rules.num_actions, 1, rules.num_actions),
        deadline_ms=_integer(taken, "deadline_ms", limits.deadline_ms, 1, limits.deadline_ms),
        request_id=_identifier(taken.get("request_id", "")),
        observation_time=_time(taken.get("observation_time")),
        warnings=tuple(warnings),
    )


def _by_field(fields: Mapping[Any, Any], num_views: int) -> tuple[dict[str, Any], list[str]]:
    """Values by our name, and the names that mean nothing here."""
    names = {f"image{i}": (f"image{i}",) for i in range(num_views)} | dict(_NAMES)
    field_of = {name: field for field, known in names.items() for name in known}
    taken: dict[str, Any] = {}
    unknown = []
    for name, value in fields.items():
        field = field_of.get(name) if isinstance(name, str) else None
        if field is None:
            unknown.append(str(name)[:40].encode("ascii", "backslashreplace").decode())
        elif field in taken:
            raise bad_field(field, name, f"one of {', '.join(names[field])}, not two")
        elif value is not None:
            taken[field] = value
    return taken, unknown


def _required(taken: Mapping[str, Any], field: str) -> Any:
    if field not in taken:
        names = _NAMES.get(field, (field,))
        raise RequestError(
            400,
            f"{names[0]} is missing",
            field=names[0],
            allowed=f"one of the fields {', '.join(names)}",
        )
    return taken[field]


def _integer(taken: Mapping[str, Any], field: str, default: int | None, low: int, high: int) -> int:
    value = taken.get(field, default)
    if value is None:
        value = _required(taken, field)
    allowed = f"a whole number {low} .. {high}"
    number = value
    if isinstance(number, np.ndarray) and number.size == 1:
        number = number.item()
    if isinstance(number, str) and number.isascii() and number.isdigit() and len(number) < 20:
        number = int(number)
    if isinstance(number, float) and number.is_integer():
        number = int(number)
    if type(number) is not int or not low <= number <= high:
        raise bad_field(field, value, allowed)
    return number


def _instruction(value: Any, limits: Limits) -> str:
    allowed = f"a text of 1 .. {limits.text_characters} characters"
    name = _NAMES["instruction"][0]
    if not isinstance(value, str) or not value.strip():
        raise bad_field(name, value, allowed)
    if len(value) > limits.text_characters:
        raise bad_field(name, f"{len(value)} characters", allowed)
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise bad_field(name, value, "a text without halves of surrogate pairs")
    return value


def _images(
    taken: Mapping[str, Any], rules: Rules, array: Callable[[str, Any], Any]
) -> list[np.ndarray]:
    """Images in their order; as released, places in that order decide the slots, not the names."""
    found = {name: taken[name] for i in range(rules.num_views) if (name := f"image{i}") in taken}
    many = taken.get("images")
    if many is not None:
        if found or not isinstance(many, list):
            raise bad_field("images", many, "a list of images, and no image0 beside it")
        found = {f"images[{i}]": value for i, value in enumerate(many[: rules.views + 1])}
    if not 1 <= len(found) <= rules.views:
        count = len(many) if many is not None else len(found)
        raise RequestError(
            400,
            "no valid images found" if not count else "too many images",
            field="image0",
            value=count,
            allowed=f"1 .. {rules.views} images",
        )
    most = rules.limits.image_pixels
    return [
        # on the websocket, images are arrays or the bytes of files already
        picture(name, v if isinstance(v, (np.ndarray, bytes)) else array(name, v), most_pixels=most)
        for name, v in found.items()
    ]


def _proprio(
    value: Any, rules: Rules, array: Callable[[str, Any], Any], warnings: list[str]
) -> np.ndarray:
    allowed = f"{' or '.join(map(str, rules.widths))} finite numbers"
    found = array("proprio", value)
    try:
        state = np.asarray(found)
    except (ValueError, OverflowError) as error:
        raise bad_field("proprio", "lists of unequal lengths", allowed) from error
    shape = f"{state.dtype}{list(state.shape)}"
    if state.dtype.kind not in "iuf" or state.ndim != 1 or not 1 <= state.size <= 1024:
        raise bad_field("proprio", shape, allowed)
    if not (np.isfinite(state) & (np.abs(state.astype(np.float64)) <= _MOST_PROPRIO)).all():
        raise bad_field("proprio", "numbers that are not finite, or huge", allowed)
    if state.size in rules.widths:
        return state.astype(np.float32)
    if state.any():
        raise bad_field("proprio", shape, allowed)
    warnings.append(
        f"proprio has {state.size} zeros where {rules.widths[0]} numbers are expected; it was read "
        "as no state"
    )
    return np.zeros(rules.widths[0], np.float32)


def _prefix(
    taken: Mapping[str, Any], rules: Rules, array: Callable[[str, Any], Any]
) -> dict[str, Any]:
    """Rows that the chunk begins with; what they may hold beyond numbers, the policy knows."""
    if "prefix" not in taken:
        if "prefix_committed" in taken:
            raise bad_field("prefix_committed", taken["prefix_committed"], "beside a prefix only")
        return {}
    allowed = f"up to {rules.num_actions} rows of {rules.widths[-1]} finite numbers"
    found = array("prefix", taken["prefix"])
    try:
        rows = np.asarray(found)
    except (ValueError, OverflowError) as error:
        raise bad_field("prefix", "lists of unequal lengths", allowed) from error
    if rows.ndim and len(rows) == 0:
        rows = np.zeros((0, rules.widths[-1]), np.float32)
    if (
        rows.dtype.kind not in "iuf"
        or rows.ndim != 2
        or len(rows) > rules.num_actions
        or rows.shape[1] not in rules.widths
    ):
        raise bad_field("prefix", f"{rows.dtype}{list(rows.shape)}", allowed)
    if not (np.isfinite(rows) & (np.abs(rows.astype(np.float64)) <= _MOST_PROPRIO)).all():
        raise bad_field("prefix", "numbers that are not finite, or huge", allowed)
    committed = _integer(taken, "prefix_committed", len(rows), 0, len(rows))
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
