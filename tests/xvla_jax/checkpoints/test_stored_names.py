"""Names of files in checkpoints: a plain one, in every layout, or nothing is written."""

from __future__ import annotations

import base64
import json
import os
import pickle
import zlib
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

import xvla_jax
from tests.xvla_jax import golden
from xvla_jax.checkpoint_tools.convert_layout import convert_checkpoint
from xvla_jax.checkpoints.safetensors_files import TensorFiles
from xvla_jax.errors import CheckpointError
from xvla_jax.pretrained import LAYOUTS, load_checkpoint
from xvla_jax.processor import Processor
from xvla_jax.untrusted import plain_name

NAMES = ("../x", "/x", "a/b.txt", "..", ".", "", "a\\b.txt", "a\0.txt", "x\n.txt", "n" * 300)


@pytest.mark.parametrize("name", [*NAMES, None, 7, ["a"]])
def test_a_name_is_one_plain_component(name: object) -> None:
    with pytest.raises(CheckpointError, match=r"^index\.json names a file .* plain name"):
        plain_name(name, "index.json")


def _orbax(tmp_path: Path, files: dict[str, bytes]) -> Path:
    source = load_checkpoint(golden.FOLDER / "ee6d")
    folder = tmp_path / "source"
    xvla_jax.save_pretrained(folder, source.config, source.params, "orbax", files={"a.txt": b"1"})
    path = folder / "checkpoints/0/model/metadata"
    content = json.loads(path.read_text())
    content["source"]["files"] = {
        name: base64.b64encode(zlib.compress(value)).decode() for name, value in files.items()
    }
    path.write_text(json.dumps(content))
    return folder


def _tree(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["../x.txt", "/x.txt", "s/x.txt", "config.json", "x.bin", ".x"])
def test_carried_files_write_nothing_outside(name: str, layout: str, tmp_path: Path) -> None:
    name = str(tmp_path / "x.txt") if name.startswith("/") else name
    folder = _orbax(tmp_path, {name: b"owned"})
    before = _tree(tmp_path)
    if layout == "orbax" and name == "config.json":
        return  # no file of that name is written there
    with pytest.raises(CheckpointError, match="file"):
        convert_checkpoint(folder, tmp_path / "out", layout)
    assert _tree(tmp_path) == before


def test_carried_files_unpack_to_a_bound(tmp_path: Path) -> None:
    folder = _orbax(tmp_path, {"bomb.txt": b"\0" * (17 << 20)})
    with pytest.raises(CheckpointError, match=r"source\.files\.bomb\.txt unpacks to more than"):
        load_checkpoint(folder)
    path = folder / "checkpoints/0/model/metadata"
    content = json.loads(path.read_text())
    packed = content["source"]["files"]["bomb.txt"]
    for text in ("!!", base64.b64encode(b"abc").decode(), packed[:40]):
        content["source"]["files"] = {"a.txt": text}
        path.write_text(json.dumps(content))
        with pytest.raises(CheckpointError, match=r"a\.txt cannot be unpacked"):
            load_checkpoint(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": [1 << 16] * 4}, r"bytes of a buffer; at most 1,073,741,824 are allowed"),
        ({"shape": [2]}, "bytes; its type and shape say 8"),
        ({"dtype": "F31"}, "dtype is 'F31'; allowed are"),
        ({"shape": [-1]}, r"shape\.0 is -1; allowed is"),
    ],
)
def test_carried_buffers_are_what_they_say(
    change: dict[str, object], message: str, tmp_path: Path
) -> None:
    folder = _orbax(tmp_path, {})
    path = folder / "checkpoints/0/model/metadata"
    content = json.loads(path.read_text())
    data = base64.b64encode(zlib.compress(b"\0" * 4)).decode()
    buffer = {"dtype": "F32", "shape": [1], "data": data} | change
    content["source"]["buffers"] = {"vlm.language_model.final_logits_bias": buffer}
    path.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(folder)


@pytest.mark.parametrize("name", [f"{top}part.safetensors" for top in ("../", "/", "a/../")])
def test_shards_lie_in_their_folder(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "sharded"
    folder.mkdir()
    name = str(tmp_path / "part.safetensors") if name.startswith("/") else name
    tensors = load_file(golden.FOLDER / "ee6d" / "model.safetensors")
    save_file(tensors, tmp_path / "part.safetensors")
    index = {"weight_map": dict.fromkeys(tensors, name)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"index\.json: weight_map names a file"):
        TensorFiles.open(folder)


def test_a_link_out_of_the_folder_is_not_carried(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("key")
    cache = tmp_path / "cache"
    folder = cache / "snapshots" / "abc"
    folder.mkdir(parents=True)
    (cache / "blobs").mkdir()
    for name in ("config.json", "model.safetensors"):
        (cache / "blobs" / name).write_bytes((golden.FOLDER / "ee6d" / name).read_bytes())
        (folder / name).symlink_to(f"../../blobs/{name}")
    (cache / "blobs" / "1").write_text("carried")
    (folder / "a.txt").symlink_to("../../blobs/1")
    assert load_checkpoint(folder).files == {"a.txt": b"carried"}
    (folder / "b.txt").symlink_to(secret)
    with pytest.raises(CheckpointError, match=r"b\.txt is a link to .*secret, outside its folder"):
        load_checkpoint(folder)


def test_a_tokenizer_reads_files_of_its_folder(tmp_path: Path) -> None:
    Processor().write(tmp_path)
    vocabulary = json.loads((tmp_path / "vocab.json").read_text())
    vocabulary["Ġpick"] = 9
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    config = {"tokenizer_class": "BartTokenizer", "vocab_file": "/etc/passwd"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json: vocab_file names a file"):
        Processor.read(tmp_path)


class _Touch:
    """A pickle that touches a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_a_pickle_in_place_of_weights_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((golden.FOLDER / "ee6d" / "config.json").read_bytes())
    for name in ("model.safetensors", "pytorch_model.bin"):
        (tmp_path / name).write_bytes(pickle.dumps(_Touch(tmp_path / "made")))
    with pytest.raises(CheckpointError):
        load_checkpoint(tmp_path)
    assert not (tmp_path / "made").exists()
