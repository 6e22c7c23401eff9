"""safetensors files: the library's own bytes, one tensor at a time; damage is named."""

from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.xvla_jax import golden
from xvla_jax.checkpoints.safetensors_files import TensorFiles, TensorInfo, write_safetensors
from xvla_jax.errors import CheckpointError

_FILES = sorted(golden.FOLDER.glob("*/*.safetensors"))
_TENSORS = {
    "flags": np.array([True, False, True]),
    "wide": np.array([[1.5, -2.5]]),
    "scalar": np.array(3.0, np.float32),
    "empty": np.zeros((0, 4), np.float32),
    "half": np.array([0.5, 65504.0], np.float16),
    "brain": np.array([1.0, 3.0e38, -0.0078125], ml_dtypes.bfloat16),
    "count": np.array([2**40], np.int64),
    "bytes": np.arange(5, dtype=np.uint8),
    "ids": np.array([-7], np.int32),
}


def _write(path: Path, tensors: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
    info = {name: TensorInfo.of(value) for name, value in tensors.items()}
    write_safetensors(path, info, tensors.__getitem__, metadata=metadata)


@pytest.mark.parametrize("path", _FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_pytorch_file_is_written_back_byte_for_byte(path: Path, tmp_path: Path) -> None:
    files = TensorFiles.open(path)
    copy = tmp_path / "copy.safetensors"
    write_safetensors(copy, files.info, files.read, metadata=files.metadata)
    assert copy.read_bytes() == path.read_bytes()


def test_every_type_is_read_and_written_as_the_library_does(tmp_path: Path) -> None:
    theirs, ours = tmp_path / "theirs.safetensors", tmp_path / "ours.safetensors"
    save_file(_TENSORS, theirs, metadata={"format": "pt"})
    _write(ours, _TENSORS, {"format": "pt"})
    assert ours.read_bytes() == theirs.read_bytes()
    files = TensorFiles.open(theirs)
    assert files.metadata == {"format": "pt"}
    assert files.nbytes == sum(value.nbytes for value in _TENSORS.values())
    for name, value in _TENSORS.items():
        read = files.read(name)
        assert read.dtype == value.dtype
        np.testing.assert_array_equal(read, value)


def test_a_tensor_read_is_nobody_elses_memory(tmp_path: Path) -> None:
    _write(tmp_path / "x.safetensors", {"a": np.ones(3, np.float32)}, {})
    files = TensorFiles.open(tmp_path / "x.safetensors")
    files.read("a")[:] = 5
    assert files.read("a").tolist() == [1, 1, 1]


def _shards(folder: Path) -> dict[str, np.ndarray]:
    tensors = {f"t{i}": np.full((2, i + 1), i, np.float32) for i in range(4)}
    for shard, names in (("model-1.safetensors", "t0 t2"), ("model-2.safetensors", "t1 t3")):
        _write(folder / shard, {n: tensors[n] for n in names.split()}, {"format": "pt"})
    index = {f"t{i}": f"model-{i % 2 + 1}.safetensors" for i in range(4)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return tensors


def test_shards_are_one_checkpoint(tmp_path: Path) -> None:
    tensors = _shards(tmp_path)
    files = TensorFiles.open(tmp_path)
    assert set(files.info) == set(tensors)
    for name, value in tensors.items():
        np.testing.assert_array_equal(files.read(name), value)


def test_lost_shards_and_a_wrong_index_are_named(tmp_path: Path) -> None:
    _shards(tmp_path)
    (tmp_path / "model-2.safetensors").rename(tmp_path / "away")
    with pytest.raises(CheckpointError, match=r"1 of the 2 shards .* missing: model-2.safetensors"):
        TensorFiles.open(tmp_path)
    (tmp_path / "away").rename(tmp_path / "model-2.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(index.read_text().replace('"t3": "model-2', '"t3": "model-1'))
    with pytest.raises(CheckpointError, match=r"disagree on 1 tensors, for example \['t3'\]"):
        TensorFiles.open(tmp_path)
    index.write_text("[]")
    with pytest.raises(
        CheckpointError, match=r"index\.json: the content is \[\]; allowed is an object"
    ):
        TensorFiles.open(tmp_path)


def _lie(edit: dict[str, object]) -> bytes:
    header = {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | edit}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + bytes(8)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 64,
        (1 << 40).to_bytes(8, "little") + b"{}",
        _lie({"shape": [3]}),
        _lie({"data_offsets": [0, 800]}),
        _lie({"data_offsets": [4, 12]}),
        _lie({"dtype": "F33"}),
        _lie({})[:-1],
        _lie({}) + b"more",
    ],
)
def test_damaged_files_are_refused_by_name(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: not a complete"):
        TensorFiles.open(tmp_path)


def test_a_sound_header_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(_lie({}))
    assert TensorFiles.open(tmp_path).read("a").tolist() == [0, 0]


def test_a_type_that_no_checkpoint_has_is_refused(tmp_path: Path) -> None:
    save_file({"c": np.zeros(2, np.complex64)}, tmp_path / "c.safetensors")
    with pytest.raises(CheckpointError, match=r"\{'c': 'C64'\}; allowed are BOOL"):
        TensorFiles.open(tmp_path / "c.safetensors")


def test_a_file_cut_after_it_was_opened_is_noticed(tmp_path: Path) -> None:
    _write(tmp_path / "x.safetensors", {"a": np.ones(4, np.float32)}, {})
    files = TensorFiles.open(tmp_path / "x.safetensors")
    content = (tmp_path / "x.safetensors").read_bytes()
    (tmp_path / "x.safetensors").write_bytes(content[:-4])
    with pytest.raises(CheckpointError, match="tensor a has 3 of 4 values"):
        files.read("a")


def test_a_tensor_other_than_announced_leaves_no_file(tmp_path: Path) -> None:
    info = {"a": TensorInfo("F32", (2,))}
    with pytest.raises(CheckpointError, match=r"tensor a is float64\[2\]; announced was F32\[2\]"):
        write_safetensors(tmp_path / "x", info, lambda _: np.zeros(2), metadata={})
    assert list(tmp_path.iterdir()) == []
