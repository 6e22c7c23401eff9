"""LeRobot's files beside the weights: its policy config, and its processor pipelines.

LeRobot refuses fields that it does not know, and has many of its own. So an export to LeRobot puts
the released config beside as a file of its own, and in the released style LeRobot's own fields are
kept as one section: both survive any number of conversions.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Annotated, Any, Final

import pydantic
from pydantic import Field
from typing_extensions import TypedDict

from xvla_jax.errors import ConfigError
from xvla_jax.typed_json import STRICT, Width, check_object, read_json, typed

RELEASED_NAME: Final = "released_config.json"
SECTION: Final = "lerobot"  # of config.json in the released style

# Fields of the model, and their released names.
_MODEL: Final[Mapping[str, str]] = {
    name: name
    for name in (
        "florence_config",
        "hidden_size",
        "depth",
        "num_heads",
        "mlp_ratio",
        "num_domains",
        "len_soft_prompts",
        "dim_time",
        "max_len_seq",
        "use_hetero_proj",
        "action_mode",
        "use_proprio",
        "max_action_dim",
    )
} | {"chunk_size": "num_actions"}
_CHUNK: Final = 32  # LeRobot's default, not ours
_IDENTITY: Final = dict.fromkeys(("VISUAL", "STATE", "ACTION"), "IDENTITY")
_TOKENIZER: Final = "facebook/bart-large"


class _Feature(TypedDict, total=False):
    shape: Annotated[list[Width], Field(min_length=1)]


@pydantic.with_config(STRICT)
class _Policy(TypedDict, total=False):
    """Fields of a LeRobot policy that are read here; the others are kept as they are."""

    input_features: dict[str, _Feature] | None
    output_features: dict[str, _Feature] | None
    use_proprio: bool | None
    max_state_dim: int | None
    tokenizer_max_length: int | None
    normalization_mapping: dict[str, str] | None


_POLICY: Final = pydantic.TypeAdapter(_Policy)


@dataclasses.dataclass(frozen=True)
class Interface:
    """What LeRobot wants to know of a policy beyond the model.

    Attributes:
        width: channels of proprio and of the network's actions.
        real_width: channels of a robot's action.
        image_size: side of the model's square images.
        num_views: view slots.
        text_length: ids of an instruction.
        domain_id: domain of observations that name none.
    """

    width: int
    real_width: int
    image_size: int
    num_views: int
    text_length: int
    domain_id: int


def is_lerobot(raw: Mapping[str, Any]) -> bool:
    """Whether a parsed ``config.json`` is a LeRobot policy's."""
    return raw.get("type") == "xvla" and "model_type" not in raw


def check_section(section: Any, where: object, *, field: str = "") -> None:
    """Refuses LeRobot's fields of a wrong type, in its own file or as our section of it."""
    typed(_POLICY, section, where, field=field, error=ConfigError)


def to_released(raw: Mapping[str, Any], beside: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The released form of a LeRobot policy config.

    Args:
        raw: LeRobot's ``config.json``.
        beside: the ``released_config.json`` of our own exports.

    Raises:
        ConfigError: the policy is no X-VLA as released.
    """
    check_section(raw, "LeRobot config.json")
    if raw.get("use_proprio") is False:
        raise ConfigError(
            "LeRobot config.json: use_proprio is false; such a policy's action encoder has no "
            "place for proprio, which the released model always takes"
        )
    released = {"num_actions": _CHUNK} | dict(beside or {})
    released |= {_MODEL[key]: value for key, value in raw.items() if key in _MODEL}
    released |= {"model_type": "xvla", SECTION: {k: v for k, v in raw.items() if k not in _MODEL}}
    if str(raw.get("action_mode", "")).lower() == "auto":
        action = (raw.get("output_features") or {}).get("action") or {}
        if "shape" not in action:
            raise ConfigError(
                "LeRobot config.json: action_mode is 'auto', "
                "but output_features.action.shape is missing"
            )
        released["real_action_dim"] = action["shape"][-1]
    return released


def to_lerobot(released: Mapping[str, Any], interface: Interface, *, dtype: str) -> dict[str, Any]:
    """LeRobot's ``config.json`` of a model.

    Args:
        released: config in the released style; its LeRobot section, if any, takes precedence.
        interface: for the fields that the released style lacks.
        dtype: stored type of the weights; LeRobot computes in it, and knows no float16.
    """
    views = {
        f"observation.images.image{i + 1 if i else ''}": {
            "type": "VISUAL",
            "shape": [3, interface.image_size, interface.image_size],
        }
        for i in range(interface.num_views)
    }
    state = {"observation.state": {"type": "STATE", "shape": [interface.width]}}
    made_up = {
        "type": "xvla",
        "n_obs_steps": 1,
        "input_features": views | state,
        "output_features": {"action": {"type": "ACTION", "shape": [interface.real_width]}},
        "normalization_mapping": _IDENTITY,
        "n_action_steps": released["num_actions"],
        "tokenizer_name": _TOKENIZER,
        "tokenizer_max_length": interface.text_length,
        "tokenizer_padding_side": "right",
        "pad_language_to": "max_length",
        "num_image_views": interface.num_views,
        "resize_imgs_with_padding": [interface.image_size, interface.image_size],
    }
    model = {key: released[name] for key, name in _MODEL.items() if name in released}
    return (
        made_up
        | {k: v for k, v in released.get(SECTION, {}).items() if v is not None or k not in made_up}
        | model
        | {
            "max_state_dim": interface.width,
            "dtype": "bfloat16" if dtype == "bfloat16" else "float32",
        }
    )


def pipelines(config: Mapping[str, Any], *, domain_id: int) -> dict[str, Any]:
    """LeRobot's processor files by name, as its own factory makes them from a policy config."""
    features = config["input_features"] | config["output_features"]
    scale = {"eps": 1e-08, "norm_map": config["normalization_mapping"]}
    tokenizer = {
        "max_length": config["tokenizer_max_length"],
        "task_key": "task",
        "padding_side": config["tokenizer_padding_side"],
        "padding": config["pad_language_to"],
        "truncation": True,
        "tokenizer_name": config["tokenizer_name"],
    }
    before = (
        ("rename_observations_processor", {"rename_map": {}}),
        ("to_batch_processor", {}),
        ("tokenizer_processor", tokenizer),
        ("xvla_image_to_float", {"image_keys": None, "validate_range": True}),
        ("xvla_imagenet_normalize", {"image_keys": None}),
        ("xvla_add_domain_id", {"domain_id": domain_id}),
        ("device_processor", {"device": "cpu", "float_dtype": None}),
        ("normalizer_processor", scale | {"features": features}),
    )
    after = (
        ("unnormalizer_processor", scale | {"features": config["output_features"]}),
        ("device_processor", {"device": "cpu", "float_dtype": None}),
    )
    return {
        f"{name}.json": {
            "name": name,
            "steps": [{"registry_name": step, "config": values} for step, values in steps],
        }
        for name, steps in (("policy_preprocessor", before), ("policy_postprocessor", after))
    }


def read_beside(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The released config that our own exports put beside LeRobot's; empty elsewhere."""
    path = pathlib.Path(folder) / RELEASED_NAME
    if not path.is_file():
        return {}
    return check_object(read_json(path, error=ConfigError), path, error=ConfigError)
