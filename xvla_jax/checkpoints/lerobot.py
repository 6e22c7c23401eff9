"""LeRobot's policy config, and the action encoder whose size one of its fields changes.

LeRobot refuses fields that it does not know, and has many of its own. So an export to LeRobot puts
the released config into a file of its own beside LeRobot's, and the released style keeps LeRobot's
fields as one section: both survive any number of conversions.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final

import numpy as np
import pydantic
from pydantic import Field
from typing_extensions import TypedDict

from xvla_jax.actions import action_space
from xvla_jax.checkpoints.names import detect_dialect
from xvla_jax.checkpoints.safetensors_files import TensorFiles, TensorInfo
from xvla_jax.config import CONFIG_NAME, XVLAConfig
from xvla_jax.errors import CheckpointError, ConfigError
from xvla_jax.untrusted import BOUNDS, STRICT, Side, Width, check_object, read_json, typed

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
_IMAGES: Final = "observation.images."
# action encoder, [domains, (actions + state + time) * M]
_ENCODER: Final = "transformer.action_encoder.fc.weight"
_Length = Annotated[int, Field(ge=0, le=BOUNDS["channels"])]  # 0: images of an unknown size


_log = logging.getLogger(__name__)


class _Feature(TypedDict, total=False):
    type: str | None
    shape: Annotated[list[_Length], Field(min_length=1)]


@pydantic.with_config(STRICT)
class _Policy(TypedDict, total=False):
    """Fields of a LeRobot policy that are read here; the others are kept unread."""

    input_features: dict[str, _Feature] | None
    output_features: dict[str, _Feature] | None
    use_proprio: bool | None
    max_state_dim: Width | None
    tokenizer_name: str | None
    tokenizer_max_length: int | None
    tokenizer_padding_side: str | None
    pad_language_to: str | None
    num_image_views: int | None
    empty_cameras: int | None
    resize_imgs_with_padding: Annotated[list[Side], Field(min_length=2, max_length=2)] | None
    normalization_mapping: dict[str, str] | None


_POLICY: Final = pydantic.TypeAdapter(_Policy)


def read_config(folder: str | os.PathLike[str]) -> XVLAConfig:
    """Reads ``folder/config.json``, in the released style or in LeRobot's.

    Raises:
        ConfigError: there is no such file, or it describes no model.
    """
    path = pathlib.Path(folder) / CONFIG_NAME
    if not path.is_file():
        raise ConfigError(f"{path}: no such file; a checkpoint folder needs its config.json")
    raw = check_object(read_json(path, error=ConfigError), path, error=ConfigError)
    if is_lerobot(raw):
        raw = to_released(raw, read_beside(folder))
    return config_from_dict(raw, path)


def config_from_dict(raw: Mapping[str, Any], where: object = CONFIG_NAME) -> XVLAConfig:
    """Builds a config from a parsed ``config.json``, in the released style or in LeRobot's.

    Args:
        raw: content of the file, or of the ``config`` that an Orbax step stores.
        where: the file, for messages.

    Raises:
        ConfigError: it describes no model, or LeRobot's fields have a wrong type.
    """
    if is_lerobot(raw):
        raw = to_released(raw)
    if SECTION in raw:
        check_section(raw[SECTION], where, field=SECTION)
    return XVLAConfig.from_dict(raw, where)


def is_lerobot(raw: Mapping[str, Any]) -> bool:
    """True for a parsed ``config.json`` of a LeRobot policy."""
    return raw.get("type") == "xvla" and "model_type" not in raw


def check_section(section: Any, where: object, *, field: str = "") -> None:
    """Refuses LeRobot's fields of a wrong type, in its own file or in our section for them."""
    typed(_POLICY, section, where, field=field, error=ConfigError)


def to_released(raw: Mapping[str, Any], beside: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Converts a LeRobot policy config to the released style.

    Args:
        raw: LeRobot's ``config.json``.
        beside: the ``released_config.json`` of our own exports.

    Raises:
        ConfigError: the policy differs from X-VLA as released.
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


def to_lerobot(
    released: Mapping[str, Any], stated: Mapping[str, Any], *, width: int, dtype: str
) -> dict[str, Any]:
    """Converts a config in the released style to LeRobot's ``config.json``.

    Args:
        released: config in the released style, with its LeRobot section if it has one.
        stated: fields of LeRobot's that win over those of the section.
        width: channels of proprio as the network takes it.
        dtype: stored type of the weights; LeRobot computes in it, and has no float16.
    """
    defaults = {"type": "xvla", "n_obs_steps": 1, "n_action_steps": released["num_actions"]}
    model = {key: released[name] for key, name in _MODEL.items() if name in released}
    return (
        defaults
        | {k: v for k, v in released.get(SECTION, {}).items() if v is not None or k not in defaults}
        | model
        | dict(stated)
        | {"max_state_dim": width, "dtype": "bfloat16" if dtype == "bfloat16" else "float32"}
    )


def features(
    views: Sequence[str], section: Mapping[str, Any], *, side: int, state: int, action: int
) -> dict[str, Any]:
    """Returns LeRobot's input and output features.

    Args:
        views: cameras in the order of the view slots, as contracts name them.
        section: LeRobot's fields as the source had them; a feature keeps its own entry there.
        side: of the network's images, where a camera's own size is not known.
        state: channels of the robot's state.
        action: channels of its action.
    """
    known = section.get("input_features") or {}
    inputs = {
        key: known.get(key, {"type": "VISUAL", "shape": [3, side, side]})
        for key in (camera(view) for view in views)
    }
    inputs["observation.state"] = {"type": "STATE", "shape": [state]}
    outputs = {"action": {"type": "ACTION", "shape": [action]}}
    return {"input_features": inputs, "output_features": outputs}


def camera(view: str) -> str:
    """Returns LeRobot's name of a view, which has no slashes and lies below its images."""
    return view if view.startswith("observation.") else _IMAGES + view.replace("/", ".")


def read_beside(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Returns the released config that our exports put beside LeRobot's; empty in other folders."""
    path = pathlib.Path(folder) / RELEASED_NAME
    if not path.is_file():
        return {}
    return check_object(read_json(path, error=ConfigError), path, error=ConfigError)


def with_state_of_model(files: TensorFiles, config: XVLAConfig) -> TensorFiles:
    """Resizes the action encoder to a proprio of the action space's width.

    LeRobot pads the state to ``max_state_dim``. Rows of the encoder beyond the action space's width
    see zeros alone, so that cutting or adding them leaves the actions as they are.

    Raises:
        CheckpointError: the state itself is wider, so that no row may be cut.
        ConfigError: the weights have another width than LeRobot's config says.
    """
    section = json.loads(config.extra).get(SECTION, {})
    dialect = detect_dialect(set(files.info))
    name = dialect.rename(_ENCODER)
    if section.get("max_state_dim") is None or name not in files.info:
        return files
    width, info = action_space(config).width, files.info[name]
    if len(info.shape) != 2:
        return files  # no X-VLA; the accounting of shapes refuses it
    stored = info.shape[-1] // config.hidden_size - width - config.dim_time
    if dialect.lerobot and stored != section["max_state_dim"]:
        raise ConfigError(
            f"LeRobot config.json: max_state_dim is {section['max_state_dim']}; in action space "
            f"{config.action_mode!r} these weights take a proprio of width {stored}"
        )
    if stored == width or stored != section["max_state_dim"]:
        return files
    feature = (section.get("input_features") or {}).get("observation.state") or {}
    state = (feature.get("shape") or [stored])[-1]
    if state > width:
        raise CheckpointError(
            f"LeRobot config.json: observation.state has {state} channels and max_state_dim is "
            f"{stored}; X-VLA takes a proprio of the width of its actions, {width}"
        )
    _log.warning(
        "LeRobot's max_state_dim is %d: the action encoder's rows %s, which see only zeros, were "
        "%s; the actions are the same",
        stored,
        f"{width} .. {stored - 1}" if stored > width else f"{stored} .. {width - 1}",
        "cut" if stored > width else "added",
    )
    shape = (info.shape[0], info.shape[1] + (width - stored) * config.hidden_size)
    return _Resized(
        {**files.info, name: dataclasses.replace(info, shape=shape)},
        files.metadata,
        files.places,
        name,
        info,
        (width, stored, config.hidden_size),
    )


@dataclasses.dataclass(frozen=True)
class _Resized(TensorFiles):
    """Tensors of which one is read with more or fewer rows than are stored."""

    name: str
    stored: TensorInfo
    sizes: tuple[int, int, int]  # width, stored width, M

    def read(self, name: str) -> np.ndarray:
        if name != self.name:
            return super().read(name)
        width, stored, model = self.sizes
        kernel = TensorFiles({name: self.stored}, {}, self.places).read(name)
        rows = kernel.reshape(len(kernel), -1, model)  # [domains, actions + state + time, M]
        state = rows[:, width : width + stored][:, :width]  # [domains, at most width, M]
        more = np.zeros((len(rows), width - state.shape[1], model), rows.dtype)
        parts = [rows[:, :width], state, more, rows[:, width + stored :]]
        return np.concatenate(parts, axis=1).reshape(len(rows), -1)
