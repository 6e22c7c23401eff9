"""The two doors: `Batch` comes in from ``data/``, `Observation` from ``eval/``, servers and robots.

Both are plain dicts of numpy values, so that the peers on the other side need not import this
library.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NotRequired, TypedDict

import jax
import jax.numpy as jnp
import numpy as np

from xvla_jax.actions import action_space
from xvla_jax.config import XVLAConfig
from xvla_jax.errors import InputError


class Batch(TypedDict):
    """Training samples on the host; every field leads with B.

    S is the model's image side in pixels. Absent views are zero images. An action row is the pose
    after ``(k + 1) / T`` of the window. The jitter fields come together, in every batch of a
    mixture or in none; xvla_jax/training/step.py says what they mean.
    """

    images: np.ndarray  # uint8[B, V, S, S, 3] RGB
    view_mask: np.ndarray  # bool[B, V]
    input_ids: np.ndarray  # int32[B, L]
    domain_id: np.ndarray  # int32[B]
    proprio: np.ndarray  # float32[B, D]
    actions: np.ndarray  # float32[B, T, d], d the real or the padded width
    jitter: NotRequired[np.ndarray]  # float32[B, V, 3]: brightness, contrast, saturation; 1 = as is
    jitter_order: NotRequired[np.ndarray]  # int32[B, V, 3]: which of them comes 1st, 2nd, 3rd


class Observation(TypedDict):
    """What a robot sees at the moment it asks for a chunk."""

    # uint8[H, W, 3] RGB of the present views, main camera first, any size
    images: Sequence[np.ndarray]
    instruction: str
    proprio: np.ndarray  # float32[D]; metres, 6-D rotation, gripper 1 = closed for ee6d
    domain_id: int
    # What the chunk has to begin with, see xvla_jax/inpainting.py: float32[P, d] as `act` returns
    # them, and how many of them are certain to be carried out (all, unless said).
    prefix: NotRequired[np.ndarray]
    prefix_committed: NotRequired[int]


IMAGE_MEAN: Final = (0.485, 0.456, 0.406)  # ImageNet, RGB
IMAGE_STD: Final = (0.229, 0.224, 0.225)

# Field -> dtype and shape letters; the letters are bound once per batch.
_FIELDS: Final[Mapping[str, tuple[str, str]]] = {
    "images": ("uint8", "BVSSC"),
    "view_mask": ("bool", "BV"),
    "input_ids": ("int32", "BL"),
    "domain_id": ("int32", "B"),
    "proprio": ("float32", "Bd"),
    "actions": ("float32", "BTd"),
}
_JITTER_FIELDS: Final[Mapping[str, tuple[str, str]]] = {
    "jitter": ("float32", "BVJ"),
    "jitter_order": ("int32", "BVJ"),
}
IMAGE_FIELDS: Final = ("images", *_JITTER_FIELDS)  # on the device, only of views that are filled


def normalise(
    images: jax.Array | np.ndarray,
    mean: Sequence[float] = IMAGE_MEAN,
    std: Sequence[float] = IMAGE_STD,
) -> jax.Array:
    """RGB ``[..., 3]`` of 0 .. 255 -> normalised float32, inside the jitted step."""
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
    sharding: jax.sharding.Sharding,
) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of a batch as the train step gets it: images of the first ``shown`` slots alone.

    With ``jitter`` as where a source is augmented.
    """
    fields = {**_FIELDS, **(_JITTER_FIELDS if jitter else {})}
    sizes = {
        "B": size,
        "V": num_views,
        "S": image_size,
        "C": 3,
        "J": 3,
        "L": text_length,
        "T": config.num_actions,
        "d": action_space(config).real_width,
    }
    shapes = {name: [sizes[letter] for letter in letters] for name, (_, letters) in fields.items()}
    shapes["proprio"][1] = action_space(config).width
    for name in set(IMAGE_FIELDS) & set(shapes):
        shapes[name][1] = shown
    return {
        name: jax.ShapeDtypeStruct(tuple(shape), np.dtype(fields[name][0]), sharding=sharding)
        for name, shape in shapes.items()
    }


def check_batch(batch: Mapping[str, Any], config: XVLAConfig) -> None:
    """Refuses a batch that is not a `Batch` of the model at hand, before the device sees it.

    Raises:
        InputError: names the field, what was found and what is expected.
    """
    space = action_space(config)
    sizes: dict[str, int] = {"C": 3, "J": 3, "T": config.num_actions}
    jitters = any(name in batch for name in _JITTER_FIELDS)
    fields = {**_FIELDS, **(_JITTER_FIELDS if jitters else {})}
    for name, (dtype, letters) in fields.items():
        if name not in batch:
            raise InputError(f"the batch has no {name!r}; it has {sorted(batch)}")
        array = np.asarray(batch[name])
        if array.dtype != dtype or array.ndim != len(letters):
            raise InputError(
                f"batch[{name!r}] is {array.dtype}{list(array.shape)}; "
                f"{dtype}[{', '.join(letters)}] is expected"
            )
        for letter, size in zip(letters, array.shape, strict=True):
            if letter == "d":
                if size not in (space.width, space.real_width):
                    raise InputError(
                        f"batch[{name!r}] has {size} channels; "
                        f"action space {space.mode!r} has {space.real_width}"
                    )
            elif sizes.setdefault(letter, size) != size:
                raise InputError(
                    f"batch[{name!r}] has {letter} = {size} in {list(array.shape)}; "
                    f"{sizes[letter]} is expected (T is num_actions of config.json)"
                )
    if not batch["view_mask"].any():
        raise InputError("batch['view_mask'] is all False: at least one view must be real")
    check_domains(batch["domain_id"], config)
    if jitters:
        _check_jitter(np.asarray(batch["jitter"]), np.asarray(batch["jitter_order"]))


def _check_jitter(factors: np.ndarray, order: np.ndarray) -> None:
    bad = factors[~(np.isfinite(factors) & (factors > 0))]
    if bad.size:
        raise InputError(
            f"batch['jitter'] has a factor {bad.flat[0]}; factors are finite and above 0 "
            "(1 leaves a picture as it is)"
        )
    strange = order[(np.sort(order, axis=-1) != np.arange(order.shape[-1])).any(axis=-1)]
    if strange.size:
        raise InputError(
            f"batch['jitter_order'] has {strange[0].tolist()}; a permutation of 0, 1, 2 is expected"
        )


def check_domains(domain_id: Any, config: XVLAConfig) -> None:
    """A gather on the device clamps silently and would serve another robot's policy, so check here.

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
