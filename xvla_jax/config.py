"""XVLAConfig: the model's shape, read from and written to the released ``config.json``.

Two styles of that file exist, a trimmed one and a full dump; both load. Fields that the model does
not read are kept as they stand and written back, so a round trip loses nothing. The third style,
LeRobot's, is read by ``xvla_jax/checkpoints/lerobot.py``.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import Field

from xvla_jax.errors import ConfigError
from xvla_jax.untrusted import (
    Layers,
    Positions,
    Share,
    Vocabulary,
    Width,
    check_bound,
    shown,
    typed_fields,
    typed_map,
)

CONFIG_NAME: Final = "config.json"
ALL, CONTEXT = ATTENDED = ("all", "context")  # tokens that those of the context attend to

_Patch = Annotated[int, Field(ge=1, le=64)]  # pixels
_Padding = Annotated[int, Field(ge=0, le=64)]  # pixels
_FLORENCE: Final = "florence_config"
_STAGES: Final = Field(min_length=1, max_length=16)


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """DaViT: four stages, one convolutional embedding and ``depths[i]`` block pairs each."""

    drop_path_rate: Share = 0.1
    patch_size: Annotated[tuple[_Patch, ...], _STAGES] = (7, 3, 3, 3)
    patch_stride: Annotated[tuple[_Patch, ...], _STAGES] = (4, 2, 2, 2)
    patch_padding: Annotated[tuple[_Padding, ...], _STAGES] = (3, 1, 1, 1)
    patch_prenorm: Annotated[tuple[bool, ...], _STAGES] = (False, True, True, True)
    dim_embed: Annotated[tuple[Width, ...], _STAGES] = (256, 512, 1024, 2048)
    num_heads: Annotated[tuple[Width, ...], _STAGES] = (8, 16, 32, 64)
    num_groups: Annotated[tuple[Width, ...], _STAGES] = (8, 16, 32, 64)
    depths: Annotated[tuple[Layers, ...], _STAGES] = (1, 1, 9, 1)
    window_size: Positions = 12
    projection_dim: Width = 1024
    image_feature_source: tuple[str, ...] = ("spatial_avg_pool", "temporal_avg_pool")
    max_pos_embeddings: Positions = 50  # rows of each of the two position tables
    max_temporal_embeddings: Positions = 100  # rows of the fixed sine table; row 0 is used


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """BART encoder of Florence-2."""

    vocab_size: Vocabulary = 51289
    d_model: Width = 1024
    encoder_layers: Layers = 12
    encoder_attention_heads: Width = 16
    encoder_ffn_dim: Width = 4096
    max_position_embeddings: Positions = 1024
    dropout: Share = 0.1
    attention_dropout: Share = 0.0
    activation_dropout: Share = 0.0
    encoder_layerdrop: Share = 0.0
    activation_function: str = "gelu"
    pad_token_id: Annotated[int, Field(ge=0)] = 1


@dataclasses.dataclass(frozen=True)
class XVLAConfig:
    """Shape of an X-VLA model.

    Field names and defaults are those of the released ``config.json``. ``extra`` is the JSON text
    of the file that was read, so fields that are not used here survive.

    Two fields are ours, and are not written where they have X-VLA's value. ``rtc_max_delay``: the
    most first rows of a chunk that training committed, see ``config.rtc``; 0 for all other weights.
    ``context_attends_to``: with "all" the context sees the noisy actions; with "context" it sees
    itself alone, so that its keys and values are those of every step. No parameter depends on it.
    """

    vision: VisionConfig
    text: TextConfig
    action_mode: str
    hidden_size: Width = 1024
    depth: Layers = 24
    num_heads: Width = 16
    mlp_ratio: Annotated[float, Field(gt=0, le=64)] = 4.0
    num_domains: Width = 30
    len_soft_prompts: Annotated[int, Field(ge=0, le=16_384)] = 32
    dim_time: Width = 32
    max_len_seq: Positions = 512
    use_hetero_proj: bool = False
    num_actions: Positions = 30
    real_action_dim: Width = 20
    max_action_dim: Width = 20
    context_attends_to: Literal["all", "context"] = "all"
    rtc_max_delay: Annotated[int, Field(ge=0)] = 0
    extra: str = dataclasses.field(default="{}", repr=False, compare=False)

    def __post_init__(self) -> None:
        """Refuses shapes that no weights can have, naming the field."""
        _check(self)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any], where: object = CONFIG_NAME) -> XVLAConfig:
        """Builds a config from the parsed ``config.json`` of a release.

        Args:
            raw: content of the file.
            where: the file, for messages.

        Raises:
            ConfigError: a field is missing, of the wrong type, out of bounds, or contradicts
                another.
        """
        if raw.get("model_type", "xvla") != "xvla":
            raise ConfigError(f"{where}: model_type is {raw['model_type']!r}, expected 'xvla'")
        if "type" in raw and "model_type" not in raw:  # other names: defaults would hide its fields
            raise ConfigError(
                f"{where} is LeRobot's, in whose style fields have other names; read it with "
                "config_from_dict of xvla_jax/checkpoints/lerobot.py"
            )
        florence = raw.get("florence_config")
        florence = _map({} if florence is None else florence, where, "florence_config")
        for name in ("vision_config", "text_config", "projection_dim"):
            if name not in florence:
                raise ConfigError(
                    f"{where}: florence_config has no {name!r}; found {sorted(florence)}. "
                    "An empty florence_config describes no model: "
                    "copy it from the released config.json."
                )
        if "action_mode" not in raw:
            raise ConfigError(f"{where}: action_mode is missing; it names the action space")
        tables = {
            name: _map(florence[name], where, f"florence_config.{name}")
            for name in ("vision_config", "text_config")
        }
        tables["vision_config"] |= _position_rows(tables["vision_config"], where)
        vision = VisionConfig(
            **_fields(VisionConfig, tables["vision_config"], where, f"{_FLORENCE}.vision_config.")
        )
        text = TextConfig(
            **_fields(TextConfig, tables["text_config"], where, f"{_FLORENCE}.text_config.")
        )
        if florence["projection_dim"] != text.d_model:
            raise ConfigError(
                f"{where}: florence_config.projection_dim is {shown(florence['projection_dim'])}, "
                f"text_config.d_model is {text.d_model}; they must be equal"
            )
        known = _fields(cls, raw, where)
        known["action_mode"] = known["action_mode"].lower()
        try:
            return cls(vision=vision, text=text, extra=json.dumps(raw), **known)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """Returns the released ``config.json``: these values over all that was read."""
        raw = json.loads(self.extra)
        florence = raw.setdefault("florence_config", {})
        vision = florence.setdefault("vision_config", {})
        text = florence.setdefault("text_config", {})
        for target, source in ((vision, self.vision), (text, self.text), (raw, self)):
            for field in dataclasses.fields(source):
                if field.name in ("vision", "text", "extra", *_POSITION_FIELDS):
                    continue
                value = getattr(source, field.name)
                if field.name in _OURS and value == field.default:
                    target.pop(field.name, None)  # the file is that of a release
                    continue
                target[field.name] = list(value) if isinstance(value, tuple) else value
        vision["image_pos_embed"] = {
            "type": "learned_abs_2d",
            "max_pos_embeddings": self.vision.max_pos_embeddings,
        }
        vision["visual_temporal_embedding"] = {
            "type": "COSINE",
            "max_temporal_embeddings": self.vision.max_temporal_embeddings,
        }
        florence["projection_dim"] = self.text.d_model
        for target, name in ((raw, "xvla"), (florence, "florence2"), (vision, "davit")):
            target.setdefault("model_type", name)
        raw.setdefault("architectures", ["XVLA"])
        return raw

    def write(self, folder: str | os.PathLike[str]) -> None:
        """Writes ``folder/config.json``."""
        text = json.dumps(self.to_dict(), indent=2)  # not sorted: view slots follow this order
        (pathlib.Path(folder) / CONFIG_NAME).write_text(text + "\n")


_POSITION_FIELDS: Final = ("max_pos_embeddings", "max_temporal_embeddings")
_OURS: Final = ("context_attends_to", "rtc_max_delay")  # fields that no release has


def _position_rows(vision: Mapping[str, Any], where: object) -> dict[str, int]:
    """Reads the rows of the position tables from the file's two nested tables."""
    rows = {}
    for key, kind, field in (
        ("image_pos_embed", "learned_abs_2d", "max_pos_embeddings"),
        ("visual_temporal_embedding", "COSINE", "max_temporal_embeddings"),
    ):
        value = vision.get(key)
        if not isinstance(value, Mapping) or value.get("type") != kind or field not in value:
            raise ConfigError(
                f"{where}: florence_config.vision_config.{key} is {shown(value)}; "
                f"expected {{'type': {kind!r}, {field!r}: <rows>}}"
            )
        rows[field] = value[field]
    return rows


_map = functools.partial(typed_map, error=ConfigError)
_fields = functools.partial(typed_fields, error=ConfigError)


def _check(config: XVLAConfig) -> None:
    vision, text = config.vision, config.text
    _check_ours(config)
    stages = len(vision.depths)
    check_bound("vision blocks", sum(vision.depths), "vision_config.depths", error=ConfigError)
    for name in (
        "patch_size",
        "patch_stride",
        "patch_padding",
        "patch_prenorm",
        "dim_embed",
        "num_heads",
        "num_groups",
    ):
        if len(getattr(vision, name)) != stages:
            raise ConfigError(
                f"vision_config.{name} has {len(getattr(vision, name))} entries, "
                f"depths has {stages}; one per stage"
            )
    if vision.patch_prenorm[0]:
        raise ConfigError(
            "vision_config.patch_prenorm[0] is true; the raw image is never normed before stage 0"
        )
    divisions = [
        ("hidden_size", config.hidden_size, "num_heads", config.num_heads),
        (
            "text_config.d_model",
            text.d_model,
            "encoder_attention_heads",
            text.encoder_attention_heads,
        ),
    ]
    for i, width in enumerate(vision.dim_embed):
        divisions.append((f"vision_config.dim_embed[{i}]", width, "num_heads", vision.num_heads[i]))
        divisions.append(
            (f"vision_config.dim_embed[{i}]", width, "num_groups", vision.num_groups[i])
        )
    for name, value, by, divisor in divisions:
        if divisor < 1 or value < 1 or value % divisor:
            raise ConfigError(f"{name} = {value} is not a positive multiple of {by} = {divisor}")
    if vision.projection_dim != text.d_model:
        raise ConfigError(
            f"vision_config.projection_dim is {vision.projection_dim}, "
            f"text_config.d_model is {text.d_model}; image and text tokens share one width"
        )
    if text.activation_function != "gelu" or text.encoder_layerdrop:
        raise ConfigError(
            f"text_config.activation_function is {text.activation_function!r} and "
            f"encoder_layerdrop is {text.encoder_layerdrop}; X-VLA has 'gelu' (erf) and 0"
        )
    unknown = set(vision.image_feature_source) - {
        "spatial_avg_pool",
        "temporal_avg_pool",
        "last_frame",
    }
    if unknown or not vision.image_feature_source:
        raise ConfigError(
            f"vision_config.image_feature_source is {vision.image_feature_source!r}; "
            "a list of 'spatial_avg_pool', 'temporal_avg_pool', 'last_frame' is expected"
        )


def _check_ours(config: XVLAConfig) -> None:
    """Refuses values of the fields that no release has."""
    if config.context_attends_to not in ATTENDED:
        raise ConfigError(
            f"context_attends_to is {config.context_attends_to!r}; allowed are "
            f"{', '.join(ATTENDED)}"
        )
    if config.rtc_max_delay >= config.num_actions:
        raise ConfigError(
            f"rtc_max_delay is {config.rtc_max_delay}; 0 .. {config.num_actions - 1} is allowed, "
            f"as a chunk has {config.num_actions} actions (num_actions)"
        )
