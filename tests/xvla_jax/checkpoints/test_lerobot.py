"""LeRobot's config and pipelines, against those that LeRobot itself wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.xvla_jax import golden
from xvla_jax.checkpoints import lerobot
from xvla_jax.contract import Contract
from xvla_jax.errors import ConfigError
from xvla_jax.pretrained import load_checkpoint, save_pretrained
from xvla_jax.processor import Processor

_FIXTURES = golden.FOLDER.parent / "lerobot"
_PROCESSOR = Processor(image_size=64, text_length=11, resize="pad")


def _theirs(name: str) -> dict[str, Any]:
    return json.loads((_FIXTURES / name).read_text())


def _export(folder: Path, case: str = "ee6d", **options: Any) -> Path:
    source = golden.load(case)
    save_pretrained(
        folder, source.config, source.params, "lerobot-native", processor=_PROCESSOR, **options
    )
    return folder


def test_config_has_lerobots_fields_and_no_others(tmp_path: Path) -> None:
    ours = json.loads((_export(tmp_path / "out") / "config.json").read_text())
    theirs = _theirs("config.json")
    assert {key: theirs[key] for key in ours if key in theirs} == ours


@pytest.mark.parametrize("name", ["policy_preprocessor.json", "policy_postprocessor.json"])
def test_pipelines_are_lerobots(name: str, tmp_path: Path) -> None:
    assert json.loads((_export(tmp_path / "out") / name).read_text()) == _theirs(name)


def test_the_only_domain_is_the_pipelines(tmp_path: Path) -> None:
    contract = Contract(2, "ee6d", "interleaved", 7.5, ("front",), "measured")
    folder = _export(tmp_path / "out", contracts={2: contract})
    steps = json.loads((folder / "policy_preprocessor.json").read_text())["steps"]
    assert {"registry_name": "xvla_add_domain_id", "config": {"domain_id": 2}} in steps


@pytest.mark.parametrize(("stored", "said"), [("bfloat16", "bfloat16"), ("float16", "float32")])
def test_stored_type_is_said_as_lerobot_knows_it(stored: str, said: str, tmp_path: Path) -> None:
    folder = _export(tmp_path / "out", dtype=stored)
    assert json.loads((folder / "config.json").read_text())["dtype"] == said


def test_auto_keeps_its_real_width(tmp_path: Path) -> None:
    raw = json.loads((_export(tmp_path / "out", "auto") / "config.json").read_text())
    assert raw["output_features"]["action"]["shape"] == [7]
    assert (raw["max_state_dim"], raw["max_action_dim"]) == (11, 11)
    assert lerobot.read_config(tmp_path / "out") == golden.load("auto").config


def test_fields_of_both_sides_survive(tmp_path: Path) -> None:
    folder = _export(tmp_path / "native")
    raw = json.loads((folder / "config.json").read_text())
    raw |= {"empty_cameras": 1, "repo_id": "somebody/something", "n_action_steps": 3}
    (folder / "config.json").write_text(json.dumps(raw))
    released = json.loads((folder / "released_config.json").read_text())
    released["somebody_elses"] = {"field": 1}
    (folder / "released_config.json").write_text(json.dumps(released))
    for layout in ("hf", "orbax", "lerobot-vendored"):
        loaded = load_checkpoint(folder)
        folder = tmp_path / layout
        save_pretrained(folder, loaded.config, loaded.params, layout, files=loaded.files)
        if layout == "hf":
            hf = json.loads((folder / "config.json").read_text())
            assert hf["somebody_elses"] == {"field": 1}
            assert hf["model_type"] == "xvla"
            assert "type" not in hf
            assert hf["num_actions"] == raw["chunk_size"]
    assert json.loads((folder / "config.json").read_text()) == raw
    assert json.loads((folder / "released_config.json").read_text())["somebody_elses"] == {
        "field": 1
    }


def test_lerobots_own_folder_loads_without_our_files(tmp_path: Path) -> None:
    folder = _export(tmp_path / "out")
    (folder / "released_config.json").unlink()
    (folder / "preprocessor_config.json").unlink()
    (folder / "config.json").write_text(json.dumps(_theirs("config.json")))
    loaded = load_checkpoint(folder)
    assert loaded.config == golden.load("ee6d").config
    assert loaded.processor == _PROCESSOR
    assert {"policy_preprocessor.json", "policy_postprocessor.json"} <= set(loaded.files)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"max_state_dim": 32}, "max_state_dim is 32; in action space 'ee6d' .* width 20"),
        ({"use_proprio": False}, "use_proprio is false"),
        ({"action_mode": "ee7d"}, "ee7d"),
        ({"action_mode": "auto", "output_features": {}}, r"output_features\.action\.shape"),
    ],
)
def test_policies_that_are_no_released_x_vla_are_refused(
    edit: dict[str, Any], message: str, tmp_path: Path
) -> None:
    folder = _export(tmp_path / "out")
    (folder / "config.json").write_text(json.dumps(_theirs("config.json") | edit))
    with pytest.raises(ConfigError, match=message):
        load_checkpoint(folder)


def test_the_chunk_is_lerobots_where_its_config_is_silent() -> None:
    raw = _theirs("config.json")
    del raw["chunk_size"]
    assert lerobot.to_released(raw)["num_actions"] == 32


def test_no_file_and_no_json_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        lerobot.read_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="not JSON"):
        lerobot.read_config(tmp_path)


def test_lerobot_policy_config_is_translated() -> None:
    raw = json.loads((golden.FOLDER / "ee6d" / "config.json").read_text())
    del raw["model_type"]
    raw |= {"type": "xvla", "chunk_size": raw.pop("num_actions"), "action_mode": "auto"}
    raw |= {"output_features": {"action": {"shape": [7]}}, "max_action_dim": 20}
    config = lerobot.config_from_dict(raw)
    assert config.num_actions == golden.load("ee6d").config.num_actions
    assert config.real_action_dim == 7
