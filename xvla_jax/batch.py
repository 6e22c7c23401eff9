"""The two doors: `Batch` comes in from ``data/``, `Observation` from ``eval/``, servers and robots.

Both are plain dicts of numpy values, so that the peers on the other side need not import this
library. Each is written down once, as a TypedDict whose annotations hold a `Field` for each value:
type checkers read the types, `check_batch`, `check_observation`, `abstract_batch` and
`door_table` the fields.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import (
    Annotated,
    Any,
    Final,
    NotRequired,
    TypedDict,
    get_args,
    get_origin,
    get_type_hints,
)

import jax
import jax.numpy as jnp
import numpy as np

from xvla_jax.actions import action_space
from xvla_jax.config import XVLAConfig
from xvla_jax.errors import InputError

LETTERS: Final[Mapping[str, str]] = {
    "B": "samples of a batch",
    "V": "view slots of the model",
    "S": "side of the model's square images, in pixels",
    "H": "height of an image, in pixels",
    "W": "width of an image, in pixels",
    "C": "3, red, green and blue",
    "J": "3 colour operations: brightness, contrast, saturation",
    "L": "text tokens",
    "T": "actions of a chunk",
    "P": "leading actions that are given, at most T",
    "D": "channels of the action space; those that only pad the head may be left out",
}


@dataclasses.dataclass(frozen=True)
class Field:
    """One value of a door.

    Attributes:
        dtype: numpy's name.
        shape: a letter of `LETTERS` for each axis; empty for a single value.
        meaning: of the numbers, with units where they have some.
        listed: the value is a list of such arrays.
    """

    dtype: str
    shape: str
    meaning: str
    listed: bool = False

    def __str__(self) -> str:
        """Dtype and shape, as ``float32[B, T, D]``."""
        axes = f"[{', '.join(self.shape)}]" if self.shape else ""
        return f"list of {self.dtype}{axes}" if self.listed else f"{self.dtype}{axes}"


class Batch(TypedDict):
    """Training samples on the host.

    The optional fields are in every batch of a run or in none: the two of jitter together, and the
    channel mask where a dataset of the mixture lacks a channel.
    """

    images: Annotated[np.ndarray, Field("uint8", "BVSSC", "RGB; absent views are zero")]
    view_mask: Annotated[np.ndarray, Field("bool", "BV", "True where the view is present")]
    input_ids: Annotated[np.ndarray, Field("int32", "BL", "tokens of the instruction, padded")]
    domain_id: Annotated[np.ndarray, Field("int32", "B", "row of the soft prompts and heads")]
    proprio: Annotated[np.ndarray, Field("float32", "BD", "pose at the start of the window")]
    actions: Annotated[
        np.ndarray, Field("float32", "BTD", "row k: pose after (k + 1) / T of the window")
    ]
    jitter: NotRequired[
        Annotated[np.ndarray, Field("float32", "BVJ", "factors of the operations; 1 = unchanged")]
    ]
    jitter_order: NotRequired[
        Annotated[np.ndarray, Field("int32", "BVJ", "which operation comes 1st, 2nd, 3rd")]
    ]
    channel_mask: NotRequired[
        Annotated[np.ndarray, Field("bool", "BD", "True where the channel was recorded")]
    ]


class Observation(TypedDict):
    """Sensor values of a robot at the moment when it asks for a chunk."""

    images: Annotated[
        Sequence[np.ndarray],
        Field("uint8", "HWC", "RGB of the present views, main camera first", listed=True),
    ]
    instruction: Annotated[str, Field("str", "", "the task, in words")]
    proprio: Annotated[
        np.ndarray, Field("float32", "D", "ee6d: metres, 6-D rotation, gripper 1 = closed")
    ]
    domain_id: Annotated[int, Field("int", "", "row of the soft prompts and heads")]
    prefix: NotRequired[
        Annotated[np.ndarray, Field("float32", "PD", "start of the chunk, as `act` returned it")]
    ]
    prefix_committed: NotRequired[
        Annotated[int, Field("int", "", "rows of the prefix sure to be executed; default all")]
    ]
    prefix_mode: NotRequired[
        Annotated[str, Field("str", "", "inpaint, or trained: weights that know delays")]
    ]


def fields_of(door: type) -> dict[str, tuple[Field, bool]]:
    """Returns the fields of a door by name, each with True where it is optional."""
    rows = {}
    for name, hint in get_type_hints(door, include_extras=True).items():
        optional = get_origin(hint) is NotRequired
        _, field = get_args(get_args(hint)[0] if optional else hint)
        rows[name] = field, optional
    return rows


def door_table(door: type) -> str:
    """Returns the fields of a door as a Markdown table, followed by a table of its letters."""
    rows = fields_of(door)
    lines = ["| field | value | meaning |", "|---|---|---|"]
    for name, (field, optional) in rows.items():
        lines.append(f"| `{name}`{' (optional)' * optional} | {field} | {field.meaning} |")
    used = {letter for field, _ in rows.values() for letter in field.shape}
    lines += ["", "| letter | size |", "|---|---|"]
    lines += [f"| {letter} | {size} |" for letter, size in LETTERS.items() if letter in used]
    return "\n".join(lines) + "\n"


_BATCH: Final = fields_of(Batch)
_OBSERVATION: Final = fields_of(Observation)
_JITTER: Final = ("jitter", "jitter_order")
CHANNEL_MASK: Final = "channel_mask"
_OPTIONAL: Final = (_JITTER, (CHANNEL_MASK,))  # fields that come together
IMAGE_FIELDS: Final = ("images", *_JITTER)  # on the device, only of views that some sample fills

IMAGE_MEAN: Final = (0.485, 0.456, 0.406)  # ImageNet, RGB
IMAGE_STD: Final = (0.229, 0.224, 0.225)


def normalise(
    images: jax.Array | np.ndarray,
    mean: Sequence[float] = IMAGE_MEAN,
    std: Sequence[float] = IMAGE_STD,
) -> jax.Array:
    """Scales RGB ``[..., 3]`` of 0 .. 255 to normalised float32, inside the jitted step."""
    return (jnp.asarray(images, jnp.float32) / 255.0 - jnp.asarray(mean)) / jnp.asarray(std)


def abstract_batch(
    config: XVLAConfig,
    size: int,
    *,
    num_views: int,
    shown: int,
    image_size: int,
    text_length: int,
    jitter: bool,
    channel_mask: bool = False,
    sharding: jax.sharding.Sharding,
) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes of a batch as the train step gets it.

    Args:
        config: of the model.
        size: B.
        num_views: V.
        shown: view slots whose images are on the device; no sample fills the others.
        image_size: S.
        text_length: L.
        jitter: a source of the mixture is augmented.
        channel_mask: a source of the mixture lacks a channel.
        sharding: of every field.
    """
    sizes = _model_sizes(config) | {
        "B": size,
        "V": num_views,
        "S": image_size,
        "L": text_length,
        "D": action_space(config).width,  # data/ pads every row to the width of the head
    }
    present = (_JITTER if jitter else ()) + ((CHANNEL_MASK,) if channel_mask else ())
    shapes = {}
    for name, (field, optional) in _BATCH.items():
        if optional and name not in present:
            continue
        letters = sizes | {"V": shown} if name in IMAGE_FIELDS else sizes
        shape = tuple(letters[letter] for letter in field.shape)
        shapes[name] = jax.ShapeDtypeStruct(shape, np.dtype(field.dtype), sharding=sharding)
    return shapes


def check_batch(batch: Mapping[str, Any], config: XVLAConfig) -> None:
    """Refuses a batch that is not a `Batch` of the model at hand, before the device sees it.

    Raises:
        InputError: names the field, its value and the expected one.
    """
    # of fields that come together, one that is there asks for the others
    present = {name for group in _OPTIONAL if any(n in batch for n in group) for name in group}
    sizes = _model_sizes(config)
    for name, (field, optional) in _BATCH.items():
        if optional and name not in present:
            continue
        if name not in batch:
            raise InputError(f"the batch has no {name!r}; it has {sorted(batch)}")
        array = np.asarray(batch[name])
        if array.dtype != field.dtype or array.ndim != len(field.shape):
            raise InputError(
                f"batch[{name!r}] is {array.dtype}{list(array.shape)}; {field} is expected"
            )
        _check_sizes(name, field, array.shape, sizes, config)
    if not batch["view_mask"].any():
        raise InputError("batch['view_mask'] is all False: at least one view must be real")
    check_domains(batch["domain_id"], config)
    if "jitter" in present:
        _check_jitter(np.asarray(batch["jitter"]), np.asarray(batch["jitter_order"]))
    if CHANNEL_MASK in present and not np.asarray(batch[CHANNEL_MASK]).any(axis=-1).all():
        raise InputError(
            f"batch[{CHANNEL_MASK!r}] has a row that is all False: a sample of no recorded channel "
            "trains nothing"
        )


def _model_sizes(config: XVLAConfig) -> dict[str, int]:
    """Sizes of the letters that do not depend on the batch."""
    return {"C": 3, "J": 3, "T": config.num_actions}


def _check_sizes(
    name: str, field: Field, shape: tuple[int, ...], sizes: dict[str, int], config: XVLAConfig
) -> None:
    """Compares a shape with the letters; the first field with a letter decides its size."""
    space = action_space(config)
    for letter, size in zip(field.shape, shape, strict=True):
        if letter == "D":
            if size not in (space.width, space.real_width):
                raise InputError(
                    f"batch[{name!r}] has {size} channels; "
                    f"action space {space.mode!r} has {space.real_width}"
                )
        elif sizes.setdefault(letter, size) != size:
            raise InputError(
                f"batch[{name!r}] has {letter} = {size} in {list(shape)}; "
                f"{sizes[letter]} is expected (T is num_actions of config.json)"
            )


def _check_jitter(factors: np.ndarray, order: np.ndarray) -> None:
    bad = factors[~(np.isfinite(factors) & (factors > 0))]
    if bad.size:
        raise InputError(
            f"batch['jitter'] has a factor {bad.flat[0]}; factors are finite and above 0 "
            "(1 leaves an image as it is)"
        )
    # Every row of the order must be a permutation: sorted, it counts from 0.
    strange = order[(np.sort(order, axis=-1) != np.arange(order.shape[-1])).any(axis=-1)]
    if strange.size:
        raise InputError(
            f"batch['jitter_order'] has {strange[0].tolist()}; a permutation of 0, 1, 2 is expected"
        )


def check_observation(observation: Mapping[str, Any], config: XVLAConfig, *, who: str = "") -> None:
    """Refuses what is not an `Observation`; sizes that depend on the checkpoint are not compared.

    Numbers of another precision are fine, as robots send float64; other kinds of numbers are not.

    Args:
        observation: to be checked.
        config: of the model.
        who: begins the message of an error.

    Raises:
        InputError: names the field, its value and the expected one.
    """
    for name, (field, optional) in _OBSERVATION.items():
        value = observation.get(name)
        if value is None:
            if optional:
                continue
            raise InputError(f"{who}there is no {name!r}; there is {sorted(observation)}")
        for each in value if field.listed else (value,):
            _check_value(f"{who}{name}", field, each)
    check_domains(observation["domain_id"], config)


def _check_value(what: str, field: Field, value: Any) -> None:
    if field.dtype == "str":
        if not isinstance(value, str):
            raise InputError(f"{what} is a {type(value).__name__}; a str is expected")
        return
    array = np.asarray(value)
    same_kind = np.can_cast(array.dtype, field.dtype, "same_kind")
    if not same_kind or array.ndim != len(field.shape):
        raise InputError(f"{what} has {array.dtype}{list(array.shape)}; {field} is expected")


def check_domains(domain_id: Any, config: XVLAConfig) -> None:
    """Refuses ids without a row: a gather on the device clamps and would serve another robot.

    Raises:
        InputError: an id is outside ``0 .. num_domains - 1``.
    """
    ids = np.asarray(domain_id)
    bad = ids[(ids < 0) | (ids >= config.num_domains)]
    if bad.size:
        raise InputError(
            f"domain_id {int(bad.flat[0])} is out of range; this model has domains "
            f"0 .. {config.num_domains - 1} (num_domains in config.json)"
        )
