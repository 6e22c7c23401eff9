"""config.json: both styles load, nothing is lost, nonsense is refused by name."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from tests.xvla_jax import golden
from xvla_jax.config import XVLAConfig
from xvla_jax.errors import ConfigError


def _raw() -> dict[str, Any]:
    return json.loads((golden.FOLDER / "ee6d" / "config.json").read_text())


def test_trimmed_and_full_styles_load() -> None:
    trimmed = XVLAConfig.from_dict(
        json.loads((golden.FOLDER / "full_size_config.json").read_text())
    )
    assert trimmed.text.encoder_ffn_dim == 4096  # absent there: the class default
    assert trimmed.text.max_position_embeddings == 4096
    assert trimmed.vision.depths == (1, 1, 9, 1)
    full = XVLAConfig.from_dict(_raw())
    assert (full.hidden_size, full.text.d_model, full.vision.window_size) == (48, 32, 3)


def test_unknown_fields_survive_a_round_trip(tmp_path: Path) -> None:
    raw = _raw() | {"somebody_elses": {"field": [1, 2]}}
    config = XVLAConfig.from_dict(raw)
    config.write(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert XVLAConfig.from_dict(written) == config
    assert written["somebody_elses"] == {"field": [1, 2]}
    assert written["florence_config"]["text_config"]["decoder_ffn_dim"] == 64


def test_the_delays_of_a_training_are_written_where_there_were_some() -> None:
    """So a config, and what is hashed of it, is as before for weights that know none."""
    plain = XVLAConfig.from_dict(_raw())
    assert "rtc_max_delay" not in plain.to_dict()
    delayed = dataclasses.replace(plain, rtc_max_delay=2)
    assert XVLAConfig.from_dict(delayed.to_dict()).rtc_max_delay == 2
    again = XVLAConfig.from_dict(delayed.to_dict())
    assert "rtc_max_delay" not in dataclasses.replace(again, rtc_max_delay=0).to_dict()


def _edited(path: str, value: Any) -> dict[str, Any]:
    raw = copy.deepcopy(_raw())
    node = raw
    *parents, last = path.split("/")
    for key in parents:
        node = node[key]
    if value is None:
        del node[last]
    else:
        node[last] = value
    return raw


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("action_mode", None, "action_mode is missing"),
        ("florence_config", {}, "florence_config has no 'vision_config'"),
        ("florence_config/projection_dim", 33, "projection_dim is 33, text_config.d_model is 32"),
        ("hidden_size", "48", r"config\.json: hidden_size is '48'; allowed is a valid integer"),
        ("hidden_size", True, "hidden_size is True; allowed is a valid integer"),
        ("num_heads", 5, "hidden_size = 48 is not a positive multiple of num_heads = 5"),
        ("florence_config/vision_config/dim_embed", 8, "dim_embed is 8; allowed is a valid array"),
        ("florence_config/vision_config/depths", [1, 1], "patch_size has 4 entries, depths has 2"),
        (
            "florence_config/vision_config/image_pos_embed",
            {},
            "vision_config.image_pos_embed is {}",
        ),
        ("florence_config/vision_config/image_feature_source", ["cls"], "image_feature_source is"),
        ("model_type", "pi0", "model_type is 'pi0', expected 'xvla'"),
        ("rtc_max_delay", -1, "rtc_max_delay is -1; allowed is "),
        (
            "rtc_max_delay",
            30,
            r"rtc_max_delay is 30; 0 \.\. \d+ is allowed, as a chunk has \d+ act",
        ),
    ],
)
def test_nonsense_is_refused_by_name(path: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        XVLAConfig.from_dict(_edited(path, value))


def test_lerobots_style_is_not_taken_for_a_release() -> None:
    raw = {"type": "xvla", "chunk_size": 7} | _edited("model_type", None)
    with pytest.raises(ConfigError, match="LeRobot's"):  # else num_actions would be the default
        XVLAConfig.from_dict(raw)
