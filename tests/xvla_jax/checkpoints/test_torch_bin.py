"""PyTorch's .bin files: read in place, without PyTorch; what they ask to be run is refused."""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
import zipfile
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

import xvla_jax
from tests.xvla_jax import golden
from tests.xvla_jax.checkpoints import torch_save
from xvla_jax.checkpoints.safetensors_files import TensorFiles
from xvla_jax.errors import CheckpointError
from xvla_jax.lora import load_adapter
from xvla_jax.pretrained import load_checkpoint

BIN = "pytorch_model.bin"
STATE = golden.FOLDER.parent / "torch_bin" / "state.bin"
ADAPTER = golden.FOLDER.parent / "lora" / "ee6d"
W = np.arange(12, dtype=np.float32).reshape(3, 4)
VALUES = {
    "w": W,
    "view": W[1:],
    "half": np.array([1.5], np.float16),
    "brain": np.array([1.0, 3.0e38], ml_dtypes.bfloat16),
    "scalar": np.array(3.0, np.float32),
    "empty": np.zeros((0, 4), np.float32),
    "ids": np.array([2**40]),
    "b": np.array([True, False]),
    "p": np.ones(2, np.float32),
    "u8": np.arange(5, dtype=np.uint8),
    "i32": np.array([-7], np.int32),
    "f64": np.array([[1.5, -2.5]]),
}


def test_a_file_of_pytorch_is_read() -> None:
    files = TensorFiles.open(STATE)
    assert set(files.info) == {*VALUES, "weight", "bias"}
    for name, value in VALUES.items():
        read = files.read(name)
        assert read.dtype == value.dtype
        np.testing.assert_array_equal(read, value)


@pytest.mark.torch
def test_the_installed_pytorch_is_understood(tmp_path: Path) -> None:
    torch: Any = pytest.importorskip("torch")
    torch.save({"w": torch.arange(6.0).reshape(2, 3)}, tmp_path / "x.bin")
    np.testing.assert_array_equal(
        TensorFiles.open(tmp_path / "x.bin").read("w"), np.arange(6.0).reshape(2, 3)
    )


def test_a_checkpoint_is_the_same_in_either_form(tmp_path: Path) -> None:
    tensors = load_file(golden.FOLDER / "ee6d" / "model.safetensors")
    shutil.copy(golden.FOLDER / "ee6d" / "config.json", tmp_path)
    torch_save.save(tmp_path / BIN, tensors)
    ours, theirs = load_checkpoint(tmp_path), load_checkpoint(golden.FOLDER / "ee6d")
    jax.tree.map(np.testing.assert_array_equal, ours.params, theirs.params)
    assert BIN not in ours.files


def test_shards_are_read_by_their_index(tmp_path: Path) -> None:
    weight_map = {}
    for number, name in enumerate(("w", "view")):
        torch_save.save(tmp_path / f"pytorch_model-{number}.bin", {name: VALUES[name]})
        weight_map[name] = f"pytorch_model-{number}.bin"
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    np.testing.assert_array_equal(TensorFiles.open(tmp_path).read("view"), W[1:])
    (tmp_path / "pytorch_model-1.bin").unlink()
    with pytest.raises(CheckpointError, match=r"1 of the 2 shards that pytorch_model.bin.index"):
        TensorFiles.open(tmp_path)


def test_an_adapter_of_an_older_peft_is_read(tmp_path: Path) -> None:
    tensors = load_file(ADAPTER / "adapter_model.safetensors")
    shutil.copy(ADAPTER / "adapter_config.json", tmp_path)
    torch_save.save(tmp_path / "adapter_model.bin", tensors)
    config, _ = xvla_jax.load_pretrained(golden.FOLDER / "ee6d")
    ours, theirs = load_adapter(tmp_path, config), load_adapter(ADAPTER, config)
    jax.tree.map(np.testing.assert_array_equal, ours.tensors, theirs.tensors)


class Command:
    """Runs when its pickle is loaded carelessly."""

    def __init__(self, target: Path) -> None:
        self._target = str(target)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self._target,)


def test_what_a_pickle_asks_to_be_run_is_not_run(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / BIN, "w") as archive:
        archive.writestr("x/data.pkl", pickle.dumps(Command(tmp_path / "made")))
    with pytest.raises(CheckpointError, match=r"it asks for posix.mkdir, .* is not run"):
        TensorFiles.open(tmp_path)
    assert not (tmp_path / "made").exists()


def _written(folder: Path, pickled: bytes, kind: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(folder / BIN, "w", kind) as archive:
        archive.writestr("x/data.pkl", pickled)
    return folder


_MAKER = b"ctorch._utils\n_rebuild_tensor_v2\n"


@pytest.mark.parametrize(
    ("pickled", "said"),
    [
        (b"\x80\x02}r" + (2**31 - 1).to_bytes(4, "little") + b".", "place 2147483647 of"),
        (b"\x80\x02" + _MAKER + b"}X\x08\0\0\0__code__Nsb.", "with a state"),
        (b"\x80\x02" + _MAKER + b"N}X\x08\0\0\0__code__Ns\x86b.", "with a state"),
        (b"\x80\x02]" * 10_000 + b".", BIN),
        (b"", BIN),
    ],
)
def test_a_crafted_pickle_changes_and_takes_nothing(
    pickled: bytes, said: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=said):
        TensorFiles.open(_written(tmp_path, pickled))


def test_a_packed_pickle_is_not_unpacked(tmp_path: Path) -> None:
    _written(tmp_path, b"\0" * 2_000_000, zipfile.ZIP_DEFLATED)
    with pytest.raises(CheckpointError, match=r"data\.pkl is compressed"):
        TensorFiles.open(tmp_path)


def test_damaged_files_are_refused_by_name(tmp_path: Path) -> None:
    torch_save.save(tmp_path / BIN, {"w": W, "view": W[1:]})
    content, draw = (tmp_path / BIN).read_bytes(), random.Random(0)
    said: list[str] = []
    for _ in range(600):
        mutant = bytearray(content)
        for _ in range(draw.choice((1, 3, 20))):
            mutant[draw.randrange(len(mutant))] = draw.randrange(256)
        (tmp_path / BIN).write_bytes(mutant)
        try:  # no other error is let through
            files = TensorFiles.open(tmp_path)
            for name in files.info:
                files.read(name)
        except CheckpointError as error:
            said.append(str(error))
    assert len(said) > 100
    assert [text for text in said if BIN not in text] == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"stride": (1, 3)}, "tensor w is not stored in order"),
        ({"first": 1}, "tensor w reaches beyond its 48 bytes"),
        ({"first": -1}, "tensor w reaches beyond"),
        ({"shape": (4, 4), "stride": (4, 1)}, "tensor w reaches beyond"),
        ({"storage": "torch\nComplexFloatStorage"}, "it asks for torch.ComplexFloatStorage"),
        ({"byteorder": "big"}, "big-endian"),
    ],
)
def test_what_cannot_be_read_is_named(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    torch_save.save(tmp_path / BIN, {"w": W}, **changes)
    with pytest.raises(CheckpointError, match=f"{BIN}: .*{said}"):
        TensorFiles.open(tmp_path)


def test_a_file_cut_short_or_of_another_kind_is_named(tmp_path: Path) -> None:
    torch_save.save(tmp_path / BIN, {"w": W})
    content = (tmp_path / BIN).read_bytes()
    for wrong in (content[:-30], b"version https://git-lfs", b""):
        (tmp_path / BIN).write_bytes(wrong)
        with pytest.raises(CheckpointError, match=r"no complete file of torch.save"):
            TensorFiles.open(tmp_path)
    for strange in ({"state_dict": {}, "epoch": 1}, [1, 2]):
        with zipfile.ZipFile(tmp_path / BIN, "w") as archive:
            archive.writestr("x/data.pkl", pickle.dumps(strange))
        with pytest.raises(CheckpointError, match=r"a state dict, .* is expected; found"):
            TensorFiles.open(tmp_path)
