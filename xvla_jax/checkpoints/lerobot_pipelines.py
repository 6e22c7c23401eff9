"""Reads LeRobot's two processor pipelines into a `Processor`; ``lerobot_export`` writes them.

LeRobot prepares an observation by its ``config.json`` (side, padding, views), by the steps of
``policy_preprocessor.json`` (text, mean and deviation, units of the state) and by
``policy_postprocessor.json`` (units of actions), with statistics beside them. A step or setting
that is not understood here would change actions silently, so it is refused by name.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final

import numpy as np
import pydantic
from pydantic import Field
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from typing_extensions import TypedDict

from xvla_jax.batch import IMAGE_MEAN, IMAGE_STD
from xvla_jax.errors import CheckpointError
from xvla_jax.preprocessing.scaling import MODES, Scaling
from xvla_jax.processor import Processor
from xvla_jax.untrusted import (
    BOUNDS,
    STRICT,
    DomainId,
    Side,
    check_link,
    parse_json,
    plain_name,
    typed,
)

BEFORE: Final = "policy_preprocessor"
AFTER: Final = "policy_postprocessor"
STATE: Final = "observation.state"
ACTION: Final = "action"
TOKENIZER: Final = "facebook/bart-large"
_BART: Final = (TOKENIZER, "facebook/bart-base")  # one vocabulary
EPS: Final = 1e-8
_EMPTY: Final = "observation.images.empty_camera_"
RESIZE: Final = "image_crop_resize_processor"
DOMAIN: Final = "xvla_add_domain_id"

# Steps that are understood, and the only values that each of these settings may have.
_STEPS: Final[Mapping[str, Mapping[str, Mapping[str, Sequence[Any]]]]] = {
    BEFORE: {
        "rename_observations_processor": {},  # names alone; ours are the slots of config.json
        "to_batch_processor": {},
        "tokenizer_processor": {
            "padding_side": ("right",),
            "padding": ("max_length",),
            "truncation": (True,),
        },
        "xvla_image_to_float": {"image_keys": (None,)},
        RESIZE: {"crop_params_dict": (None, {})},
        "xvla_imagenet_normalize": {"image_keys": (None,)},
        DOMAIN: {},
        "device_processor": {"float_dtype": (None, "float32")},
        "normalizer_processor": {},
    },
    AFTER: {
        "unnormalizer_processor": {},
        "device_processor": {"float_dtype": (None, "float32")},
    },
}

# the order of the steps on images that the arithmetic below assumes
_IMAGES: Final = (
    "xvla_image_to_float", RESIZE, "xvla_imagenet_normalize", "normalizer_processor"
)  # fmt: skip

Steps = dict[str, dict[str, Any]]  # settings by name; statistics under "stats"


class _Feature(TypedDict, total=False):
    type: str | None


class _Settings(TypedDict, total=False):
    """Settings of any step that are read here; the others are compared, or ignored."""

    tokenizer_name: str | None
    max_length: int
    resize_size: Annotated[list[Side], Field(min_length=2, max_length=2)] | None
    domain_id: DomainId
    eps: Annotated[float, Field(ge=0)]
    norm_map: dict[str, str]
    features: dict[str, _Feature]
    normalize_observation_keys: list[str] | None


# `class` cannot be the name of an attribute
_Step = TypedDict(
    "_Step",
    {
        "registry_name": str | None,
        "class": str,
        "config": _Settings | None,
        "state_file": str | None,
    },
    total=False,
)


@pydantic.with_config(STRICT)
class _Pipeline(TypedDict):
    steps: list[_Step]


_PIPELINE: Final = pydantic.TypeAdapter(_Pipeline)
# errors that the library raises for damaged files, and for types unknown to numpy
_NO_TENSORS: Final = (SafetensorError, AttributeError, KeyError, TypeError, ValueError)


def read_processor(
    config: Mapping[str, Any], folder: pathlib.Path | Mapping[str, bytes]
) -> Processor | None:
    """Reads the processor that LeRobot's files describe.

    Args:
        config: LeRobot's ``config.json``.
        folder: where the pipelines and their statistics are, or those files by name.

    Returns:
        None where the config leaves text length and images open, as LeRobot's own never does.

    Raises:
        CheckpointError: the files ask for something that our processor cannot do; names the field.
    """
    if "tokenizer_max_length" not in config or "resize_imgs_with_padding" not in config:
        return None
    files = _contents(folder)
    before, after = (_steps(files, name) for name in (BEFORE, AFTER))
    if before is None or after is None:
        before, after = _steps_of_config(config, BEFORE if before is None else AFTER)
    features = cameras(config)
    size, mode = _resizing(config, features, before)
    mean, std = _mean_std(before, features)
    text = before.get("tokenizer_processor", {})
    if text.get("tokenizer_name") not in _BART or not isinstance(text.get("max_length"), int):
        raise CheckpointError(
            f"{BEFORE}.json: tokenizer_processor has tokenizer_name {text.get('tokenizer_name')!r} "
            f"and max_length {text.get('max_length')!r}; one of {', '.join(_BART)} and a number "
            "are expected, as X-VLA's text is BART's"
        )
    processor = Processor(
        image_size=size,
        num_views=max(
            config.get("num_image_views") or 0,
            len(_views(config)) + (config.get("empty_cameras") or 0),
        ),
        text_length=text["max_length"],
        resize=mode,
        mean=mean,
        std=std,
        state=_scaling(before.get("normalizer_processor"), STATE, "STATE", BEFORE),
        action=_scaling(after.get("unnormalizer_processor"), ACTION, "ACTION", AFTER),
    )
    # built again from its dict, which checks the bounds of every field
    return Processor.from_dict(processor.to_dict(), "LeRobot's files")


def read_domain(files: Mapping[str, bytes]) -> int | None:
    """Returns the domain that the pipeline gives every observation; None if no step does."""
    steps = _steps(files, BEFORE) or {}
    return steps[DOMAIN].get("domain_id", 0) if DOMAIN in steps else None


def _contents(folder: pathlib.Path | Mapping[str, bytes]) -> Mapping[str, bytes]:
    if isinstance(folder, Mapping):
        return folder
    return {
        path.name: path.read_bytes()
        for path in sorted(folder.iterdir())
        if path.name.startswith((BEFORE, AFTER))
        and path.is_file()
        and path.stat().st_size <= BOUNDS["bytes of a carried file"]
        and check_link(path)
    }


def _steps(files: Mapping[str, bytes], name: str) -> Steps | None:
    """Returns settings and statistics of a pipeline's steps by name; None without the file."""
    file = f"{name}.json"
    if file not in files:
        return None
    try:
        raw = parse_json(files[file])
    except ValueError as error:
        raise CheckpointError(f"{file}: not a pipeline of LeRobot ({error})") from error
    typed(_PIPELINE, raw, file)
    entries = raw["steps"]
    steps = {entry.get("registry_name") or entry.get("class"): entry for entry in entries}
    if None in steps:
        raise CheckpointError(f"{file}: a step has no registry_name, by which it would be known")
    settings_of = {step: dict(entry.get("config") or {}) for step, entry in steps.items()}
    known = _STEPS[name]
    unknown = sorted(set(steps) - set(known))
    if unknown or len(entries) > len(steps):
        raise CheckpointError(
            f"{file}: steps {unknown or sorted(steps)}, each once, are expected among "
            f"{', '.join(known)}; what another one does to observations or actions is not done here"
        )
    order = [step for step in steps if step in _IMAGES]
    if order != [step for step in _IMAGES if step in order]:
        raise CheckpointError(
            f"{file}: steps are in the order {order}; {list(_IMAGES)} is expected"
        )
    for step, settings in settings_of.items():
        for key, allowed in known[step].items():
            if settings.get(key, allowed[0]) not in allowed:
                raise CheckpointError(
                    f"{file}: {key} of {step} is {settings[key]!r}; "
                    f"{' or '.join(map(repr, allowed))} is expected"
                )
        state_file = steps[step].get("state_file")
        if state_file:
            settings["stats"] = _read_stats(files, state_file, file)
    return settings_of


def _read_stats(files: Mapping[str, bytes], name: str, pipeline: str) -> dict[str, np.ndarray]:
    if plain_name(name, f"{pipeline}: state_file") not in files:
        raise CheckpointError(
            f"{pipeline} has its statistics in {name}, which is missing; fetch it beside"
        )
    try:
        return load_tensors(files[name])
    except _NO_TENSORS as error:
        raise CheckpointError(f"{name}: not a complete safetensors file ({error!r})") from error


def _steps_of_config(config: Mapping[str, Any], missing: str) -> tuple[Steps, Steps]:
    """Returns the pipelines that LeRobot makes from a policy config if the folder has none."""
    mapping = config.get("normalization_mapping") or {}
    scaled = {kind: mode for kind, mode in mapping.items() if mode != "IDENTITY"}
    if scaled:
        raise CheckpointError(
            f"config.json: normalization_mapping is {scaled}, and {missing}.json with the "
            "statistics is missing; save the policy's processors beside it"
        )
    text = {"tokenizer_name": "tokenizer_name", "max_length": "tokenizer_max_length"}
    for key, expected in (("tokenizer_padding_side", "right"), ("pad_language_to", "max_length")):
        if config.get(key, expected) != expected:
            raise CheckpointError(
                f"config.json: {key} is {config[key]!r}; {expected!r} is expected"
            )
    settings = {name: config.get(key) for name, key in text.items()}
    return {"tokenizer_processor": settings, "xvla_imagenet_normalize": {}}, {}


def cameras(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the cameras of a policy config in the order of the view slots, but no empty slot."""
    return {k: v for k, v in _views(config).items() if not k.startswith(_EMPTY)}


def _views(config: Mapping[str, Any]) -> dict[str, Any]:
    features = (config.get("input_features") or {}).items()
    return {k: v for k, v in features if isinstance(v, Mapping) and v.get("type") == "VISUAL"}


def _resizing(
    config: Mapping[str, Any], features: Mapping[str, Any], before: Steps
) -> tuple[int, str]:
    """Returns the side of the network's images, and the name of the resizing to it."""
    padded = config["resize_imgs_with_padding"]
    stretched = before.get(RESIZE, {}).get("resize_size")
    if padded is not None and stretched is not None:
        raise CheckpointError(
            f"config.json: resize_imgs_with_padding is {padded} and {BEFORE}.json resizes to "
            f"{stretched}; one of them is expected"
        )
    sizes = {tuple((value.get("shape") or ())[-2:]) for value in features.values()}
    chosen = padded or stretched
    if chosen is None and (len(sizes) != 1 or () in sizes):
        raise CheckpointError(
            "config.json: resize_imgs_with_padding is null, and the cameras of input_features are "
            f"{sorted(sizes)}; one size for all is expected"
        )
    sides = list(chosen or next(iter(sizes)))
    if len(sides) != 2 or sides[0] != sides[1]:
        raise CheckpointError(
            f"config.json: images of {' x '.join(map(str, sides))} px come from "
            + ("the setting" if chosen else "input_features, as resize_imgs_with_padding is null")
            + "; X-VLA takes squares. Set resize_imgs_with_padding to the [S, S] of its training"
        )
    return sides[0], "pad" if padded else "linear" if stretched else "none"


def _mean_std(
    before: Steps, features: Mapping[str, Any]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns mean and deviation of pixels in 0 .. 1, all of LeRobot's steps combined."""
    imagenet = "xvla_imagenet_normalize" in before
    mean, std = (IMAGE_MEAN, IMAGE_STD) if imagenet else ((0.0,) * 3, (1.0,) * 3)
    step = before.get("normalizer_processor")
    each = {key: _scaling(step, key, "VISUAL", BEFORE) for key in features}
    if len(set(each.values())) > 1:
        raise CheckpointError(
            f"{BEFORE}.json: norm_map.VISUAL normalises the cameras {sorted(each)} by different "
            "statistics; a processor has one mean and deviation for all of them"
        )
    scaling = next(iter(each.values()), None)
    if scaling is None:
        return mean, std
    low, high = np.array(scaling.low), np.array(scaling.high)
    if len(low) not in (1, 3):
        raise CheckpointError(f"{BEFORE}.json: {len(low)} statistics of images; RGB has 3")
    if MODES[scaling.mode][2]:
        low, high = (low + high) / 2, (high - low) / 2
    else:
        high = high + scaling.eps
    return tuple((np.array(mean) + np.array(std) * low).tolist()), tuple((std * high).tolist())


def _scaling(step: Mapping[str, Any] | None, key: str, kind: str, pipeline: str) -> Scaling | None:
    """Returns the scaling of a feature by a step; None if the step leaves it alone."""
    if step is None or key not in step.get("features", {}):
        return None
    keys = step.get("normalize_observation_keys")
    if keys is not None and key not in keys and kind != "ACTION":
        return None
    kind = step["features"][key].get("type", kind)
    mode = step.get("norm_map", {}).get(kind, "IDENTITY")
    stats = {
        name.rpartition(".")[2]: value
        for name, value in step.get("stats", {}).items()
        if name.rpartition(".")[0] == key
    }
    if mode == "IDENTITY" or not stats:  # LeRobot skips a feature without statistics
        return None
    names = MODES.get(mode, ())[:2]
    if not names or set(names) - set(stats):
        raise CheckpointError(
            f"{pipeline}.json: norm_map.{kind} is {mode!r}, and {key} has the statistics "
            f"{sorted(stats)}; known are "
            + ", ".join(f"{name} ({low}, {high})" for name, (low, high, _) in MODES.items())
        )
    low, high = (tuple(np.float32(stats[name]).reshape(-1).tolist()) for name in names)
    return Scaling(mode, low, high, float(step.get("eps", EPS)))
