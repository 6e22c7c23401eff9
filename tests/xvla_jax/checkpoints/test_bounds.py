"""Files that ask for more than a machine has are refused in one line, before anything is allocated.

Every message names the value, the limit, and the table that holds the limit.
"""

from __future__ import annotations

import json
import math
import resource
import shutil
import struct
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
import pytest

import xvla_jax
from tests.xvla_jax import golden
from tests.xvla_jax.checkpoints import torch_save
from xvla_jax.checkpoints.names import DIALECTS
from xvla_jax.checkpoints.peft import PeftConfig, slots
from xvla_jax.checkpoints.run_folder import CHECKPOINTS, read_model
from xvla_jax.checkpoints.safetensors_files import TensorFiles
from xvla_jax.errors import CheckpointError, ConfigError, XVLAError
from xvla_jax.lora import load_adapter
from xvla_jax.pretrained import load_checkpoint
from xvla_jax.processor import Processor
from xvla_jax.untrusted import BOUNDS

WHERE = r"\(BOUNDS in xvla_jax/untrusted\.py has this limit\)"
LAYOUTS = ("hf", "lerobot-native", "lerobot-vendored", "orbax")
# each field within its own bound, all of them together 5 * 10**13 parameters
WIDE = {"hidden_size": 65_536, "num_heads": 64, "depth": 1024}
ADAPTER = golden.FOLDER.parent / "lora" / "ee6d"


def _checkpoint(folder: Path, layout: str) -> Path:
    case = golden.load("ee6d")
    processor = Processor(image_size=32, text_length=12)
    xvla_jax.save_pretrained(folder, case.config, dict(case.params), layout, processor=processor)
    return folder


def _config_file(folder: Path) -> Path:
    files = sorted((folder / CHECKPOINTS / "0" / "model").rglob("metadata"))
    return files[0] if files else folder / "config.json"


def _edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def _edit_config(folder: Path, fields: dict[str, Any]) -> None:
    path = _config_file(folder)
    _edit(path, lambda raw: (raw["config"] if path.name == "metadata" else raw).update(fields))


def _peak_bytes() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _refused(call: Callable[[], object], message: str) -> None:
    """Checks one line of ours, in seconds, with no more memory than a traced model takes."""
    began, before = time.monotonic(), _peak_bytes()
    with pytest.raises(XVLAError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
    assert time.monotonic() - began < 30
    assert _peak_bytes() - before < 500 * 2**20


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_model_of_too_many_parameters(layout: str, tmp_path: Path) -> None:
    folder = _checkpoint(tmp_path / "made", layout)
    _edit_config(folder, WIDE)
    message = rf"made.* has 52,[\d,]{{15}} parameters; at most 20,000,000,000 .*{WHERE}"
    _refused(lambda: load_checkpoint(folder), message)
    _refused(lambda: load_checkpoint(folder, stored=True), message)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("field", "value"), [("depth", 10**6), ("hidden_size", 10**9)])
def test_a_field_beyond_its_bound(layout: str, field: str, value: int, tmp_path: Path) -> None:
    folder = _checkpoint(tmp_path / "made", layout)
    _edit_config(folder, {field: value})
    _refused(lambda: load_checkpoint(folder), rf"{field} is {value}; allowed is less .*{WHERE}")


def test_more_blocks_of_the_vision_tower_than_can_be_traced() -> None:
    raw = json.loads((golden.FOLDER / "ee6d" / "config.json").read_text())
    vision = raw["florence_config"]["vision_config"]
    vision["depths"] = [1024] * len(vision["depths"])
    with pytest.raises(ConfigError, match=rf"depths has 4,096 vision blocks; .* 128 .*{WHERE}"):
        xvla_jax.XVLAConfig.from_dict(raw)


def _sparse(path: Path, nbytes: int, names: int = 1) -> None:
    """Writes a safetensors file that is valid, takes no room on disk, and has ``nbytes`` bytes."""
    each = nbytes // names // 4
    header = {
        f"vlm.{i}": {
            "dtype": "F32",
            "shape": [each],
            "data_offsets": [4 * each * i, 4 * each * (i + 1)],
        }
        for i in range(names)
    }
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + 4 * each * names)


@pytest.mark.parametrize("shards", [0, 3])
def test_weights_of_too_many_bytes(shards: int, tmp_path: Path) -> None:
    if not shards:
        _sparse(tmp_path / "model.safetensors", 2 * 10**11)
        file = "model.safetensors"
    else:
        file = "model.safetensors.index.json"
        for i in range(shards):
            _sparse(tmp_path / f"{i}.safetensors", 10**11)
            _edit_names(tmp_path / f"{i}.safetensors", i)
        weight_map = {f"vlm.{i}": f"{i}.safetensors" for i in range(shards)}
        (tmp_path / file).write_text(json.dumps({"weight_map": weight_map}))
    total = 300_000_000_000 if shards else 200_000_000_000
    message = rf"{file} has {total:,} bytes of tensors; at most 160,000,000,000 .*{WHERE}"
    _refused(lambda: TensorFiles.open(tmp_path), message)


def _edit_names(path: Path, number: int) -> None:
    """Renames the only tensor, whose name keeps its length."""
    with path.open("r+b") as file:
        head = file.read(64).replace(b"vlm.0", f"vlm.{number}".encode())
        file.seek(0)
        file.write(head)


def test_views_of_one_storage_count_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BOUNDS, "bytes of tensors", 10_000)
    file = tmp_path / "pytorch_model.bin"
    with zipfile.ZipFile(file, "w") as archive:
        names = {f"vlm.{i}": np.zeros(1000, np.float32) for i in range(3)}
        pickled = torch_save.pickled(names, storages=[0, 0, 0])
        archive.writestr("any/data.pkl", pickled)
        archive.writestr("any/data/0", bytes(4000))
    _refused(lambda: TensorFiles.open(file), rf"has 12,000 bytes of tensors; .*{WHERE}")


@pytest.mark.parametrize("layout", LAYOUTS[:3])
def test_weights_beyond_a_lowered_bound(
    layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = _checkpoint(tmp_path / "made", layout)
    monkeypatch.setitem(BOUNDS, "bytes of tensors", 10_000)
    _refused(lambda: load_checkpoint(folder), rf"bytes of tensors; at most 10,000 .*{WHERE}")


def test_orbax_arrays_that_are_not_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The metadata of an array may state any shape: chunks that are missing are read as zeros."""
    folder = _checkpoint(tmp_path / "made", "orbax")
    _edit_config(folder, WIDE)
    config = xvla_jax.XVLAConfig.from_dict(read_model(folder / CHECKPOINTS / "0")["config"])
    assert config.hidden_size == WIDE["hidden_size"]
    monkeypatch.setattr(ocp.PyTreeCheckpointHandler, "restore", _no_restore)
    _refused(lambda: load_checkpoint(folder), rf"parameters; at most .*{WHERE}")


def _no_restore(*_: object, **__: object) -> None:
    raise AssertionError("an array is allocated")


def _adapter(folder: Path, fields: dict[str, Any]) -> Path:
    shutil.copytree(ADAPTER, folder)
    _edit(folder / "adapter_config.json", lambda raw: raw.update(fields))
    return folder


def test_an_adapter_of_too_many_columns(tmp_path: Path) -> None:
    folder = _adapter(tmp_path / "made", {"r": 10**9})
    config = golden.load("ee6d").config
    with pytest.raises(CheckpointError, match=r"r is 1000000000; a positive integer"):
        load_adapter(folder, config)


@pytest.mark.parametrize("pattern", [{}, {r"blocks\.0\.attn\.qkv": 65_536}])
def test_an_adapter_of_too_many_parameters(
    pattern: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One layer's rank sets the width of all layers of a stack."""
    raw = json.loads((ADAPTER / "adapter_config.json").read_text())
    raw |= {"r": 1, "rank_pattern": pattern}
    config = golden.load("ee6d").config
    table = slots(config, PeftConfig(raw), DIALECTS["hf"])
    total = sum({slot.path: math.prod(slot.leaf_shape) for slot in table}.values())
    monkeypatch.setitem(BOUNDS, "parameters", total - 1)
    message = rf"adapter_config\.json has {total:,} parameters; .*{WHERE}"
    _refused(lambda: slots(config, PeftConfig(raw), DIALECTS["hf"]), message)


@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json"])
def test_json_of_too_many_bytes(file: str, tmp_path: Path) -> None:
    folder = _checkpoint(tmp_path / "made", "hf")
    with (folder / file).open("r+b") as content:
        content.truncate(10**10)  # sparse
    _refused(lambda: load_checkpoint(folder), rf"{file} has 10,000,000,000 bytes of JSON.*{WHERE}")


def test_a_model_within_the_bounds_is_read(tmp_path: Path) -> None:
    for layout in LAYOUTS:
        loaded = load_checkpoint(_checkpoint(tmp_path / layout, layout))
        np.testing.assert_array_equal(
            loaded.params["transformer"]["pos_emb"],
            golden.load("ee6d").params["transformer"]["pos_emb"],
        )
