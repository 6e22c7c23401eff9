"""Finds the fields of a request under the names that clients use, cameras among them."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Collection, Mapping
from typing import Any, Final

from xvla_jax.serving.limits import RequestError, bad_field, printable

# field -> its names: the released one, then those of openpi, LeRobot, OpenVLA and DROID.
NAMES: Final[Mapping[str, tuple[str, ...]]] = {
    "instruction": ("language_instruction", "instruction", "prompt", "task", "task_description"),
    "proprio": ("proprio", "state", "observation/state", "observation.state"),
    "images": ("images",),
    "image0": (
        "image0", "observation/image", "observation/exterior_image_1_left", "image", "full_image"
    ),
    "image1": ("image1", "observation/wrist_image", "observation/wrist_image_left", "wrist_image"),
    "domain_id": ("domain_id",),
    "prefix": ("prefix",),
    "prefix_committed": ("prefix_committed",),
    "prefix_mode": ("prefix_mode",),
    "steps": ("steps",),
    "plan": ("plan",),
    "seed": ("seed",),
    "num_actions": ("num_actions",),
    "deadline_ms": ("deadline_ms",),
    "request_id": ("request_id",),
    "observation_time": ("observation_time",),
}  # fmt: skip
# A field in several parts, joined in this order: DROID's robots send their gripper apart.
PARTS: Final[Mapping[str, tuple[str, ...]]] = {
    "proprio": ("observation/joint_position", "observation/gripper_position"),
}
# What stands before the name of a camera; the name alone works too.
CAMERA_PREFIXES: Final = ("observation.images.", "observation/images/", "observation/", "images.")
_OF_PLACE: Final = ("image{}", "image_{}")
_MOST_NAMED: Final = 8  # fields that a warning or refusal names
_MOST_NAME: Final = 40  # characters


@dataclasses.dataclass(frozen=True)
class Taken:
    """The fields of a request by our names.

    Attributes:
        values: as they were sent.
        names: what the client calls each of them.
        parts: fields that were sent in parts, as (name, value) in the order of `PARTS`.
        cameras: fields of images that were sent by the name of a camera.
        ignored: names that mean nothing here, in printable form, the first few.
        uncounted: how many more there were.
    """

    values: Mapping[str, Any]
    names: Mapping[str, str]
    parts: Mapping[str, list[tuple[str, Any]]]
    cameras: Collection[str]
    ignored: tuple[str, ...]
    uncounted: int

    @property
    def warnings(self) -> list[str]:
        """One line for each field that was ignored, bounded in number and length."""
        more = [f"{self.uncounted} more unknown fields were ignored"] if self.uncounted else []
        return [f"unknown field {name!r} was ignored" for name in self.ignored] + more

    def required(self, field: str) -> Any:
        """The value of a field.

        Raises:
            RequestError: it was not sent; names what was sent instead.
        """
        if field in self.values:
            return self.values[field]
        names = NAMES[field]
        parts = " and ".join(PARTS.get(field, ()))
        raise RequestError(
            400,
            f"{names[0]} is missing",
            field=names[0],
            value=self.instead,
            allowed=f"one of the fields {', '.join(names)}" + (f", or {parts}" if parts else ""),
        )

    @property
    def instead(self) -> str | None:
        """The names of fields that were sent and mean nothing here."""
        return f"ignored: {', '.join(self.ignored)}" if self.ignored else None


def take(fields: Mapping[Any, Any], cameras: tuple[str, ...], num_views: int) -> Taken:
    """Finds each field under any of its names; one that is null counts as not sent.

    Args:
        fields: of the request.
        cameras: of the domain, in the order of the view slots; empty where they are unknown.
        num_views: image slots of the model.

    Raises:
        RequestError: two names of one field, or a part of one without the others.
    """
    field_of, by_camera = _field_of(cameras, num_views)
    values: dict[str, Any] = {}
    names: dict[str, str] = {}
    unknown: list[Any] = []
    parts = {name for row in PARTS.values() for name in row}
    named = _named_images(fields, field_of, cameras)
    for name, value in itertools.chain(fields.items(), named.items()):
        if name in parts or (name == "images" and named):
            continue
        field = field_of.get(name) if isinstance(name, str) else None
        if field is None:
            unknown.append(name)
        elif value is not None:
            if field in values:
                raise _twice(field, names[field], name, field_of)
            values[field], names[field] = value, name
    return Taken(
        values=values,
        names=names,
        parts=_parts(fields, names, field_of),
        cameras={field for field, name in names.items() if name in by_camera},
        ignored=tuple(printable(name, _MOST_NAME) for name in unknown[:_MOST_NAMED]),
        uncounted=max(0, len(unknown) - _MOST_NAMED),
    )


def _parts(
    fields: Mapping[Any, Any], names: Mapping[str, str], field_of: Mapping[str, str]
) -> dict[str, list[tuple[str, Any]]]:
    parts = {}
    for field, row in PARTS.items():
        present = [(name, fields[name]) for name in row if fields.get(name) is not None]
        if present and field in names:
            raise _twice(field, names[field], present[0][0], field_of)
        if 0 < len(present) < len(row):
            raise bad_field(field, f"{present[0][0]} alone", " and ".join(row))
        if present:
            parts[field] = present
    return parts


def _twice(field: str, one: str, other: str, field_of: Mapping[str, str]) -> RequestError:
    names = [*NAMES.get(field, (field,)), *(n for n, f in field_of.items() if f == field)]
    known = ", ".join(list(dict.fromkeys(names))[:_MOST_NAMED])
    return bad_field(field, f"{one} and {other}", f"one of {known}, not two")


def _named_images(
    fields: Mapping[Any, Any], field_of: Mapping[str, str], cameras: tuple[str, ...]
) -> dict[str, Any]:
    """Images by camera in one map, as openpi's ALOHA sends them."""
    images = fields.get("images")
    if not isinstance(images, dict) or "__numpy__" in images:
        return {}
    unknown = [name for name in images if not str(field_of.get(name, "")).startswith("image")]
    if unknown:
        raise bad_field(
            "images",
            ", ".join(printable(name, _MOST_NAME) for name in unknown[:_MOST_NAMED]),
            _camera_names(cameras),
        )
    return images


def _camera_names(cameras: tuple[str, ...]) -> str:
    if cameras:
        return f"the cameras of this domain: {', '.join(cameras)}"
    return "image0, image1, ...; the checkpoint names no cameras for this domain"


@functools.lru_cache(maxsize=256)
def _field_of(
    cameras: tuple[str, ...], num_views: int
) -> tuple[Mapping[str, str], Collection[str]]:
    """Fields by name, and the names that are those of cameras.

    The released names come last and win: `image2` is the third image, whatever a camera is called.
    """
    fields = {name: field for field, names in NAMES.items() for name in names}
    places = {form.format(i): f"image{i}" for i in range(num_views) for form in reversed(_OF_PLACE)}
    by_camera = {
        f"{prefix}{camera}": f"image{i}"
        for i, camera in enumerate(cameras[:num_views])
        for prefix in ("", *CAMERA_PREFIXES)
    }
    released = places | {names[0]: field for field, names in NAMES.items()}
    return fields | by_camera | released, by_camera.keys() - released.keys()


def view_warnings(taken: Taken, sent: list[str], cameras: tuple[str, ...]) -> list[str]:
    """Returns warnings about images that the domain was trained with and the request lacks.

    Args:
        taken: the fields.
        sent: the fields of images that were sent, in order.
        cameras: of the domain; empty where they are unknown.

    Raises:
        RequestError: an image has the name of a camera, and one before it is missing, so that its
            place would be another camera's.
    """
    missing = [f"image{i}" for i in range(len(cameras)) if f"image{i}" not in sent]
    moved = [field for i, field in enumerate(sent) if field != f"image{i}"]
    if moved and moved[0] in taken.cameras:
        raise bad_field(
            taken.names[moved[0]],
            f"no image of {_called('image0' if not missing else missing[0], cameras)} before it",
            _camera_names(cameras),
        )
    warnings = [
        f"{field} was sent without {_called(f'image{sent.index(field)}', cameras)} before it; its "
        f"place decides, so it was read as view {sent.index(field)}"
        for field in moved
    ]
    if missing and not moved:
        lacking = ", ".join(_called(field, cameras) for field in missing)
        warnings.append(f"no image was sent for {lacking}, which this domain was trained with")
    extra = sent[len(cameras) :] if cameras else []
    if extra:
        warnings.append(
            f"{', '.join(extra)}: this domain was trained with {len(cameras)} cameras, "
            f"{', '.join(cameras)}"
        )
    return [printable(warning, 200) for warning in warnings]


def _called(field: str, cameras: tuple[str, ...]) -> str:
    place = int(field[len("image") :])
    return f"{field} ({cameras[place]})" if place < len(cameras) else field
