"""Checkpoints in a bucket: the files of a disk, complete or refused."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fake_gcs import FakeStorage, Rule
from tests.xvla_jax import golden, tiny
from xvla_jax import buckets
from xvla_jax.checkpoint_tools.convert_layout import convert_checkpoint
from xvla_jax.checkpoints import run_folder
from xvla_jax.checkpoints.folders import (
    COMMITTED,
    INCOMPLETE,
    atomic_folder,
    check_free,
    check_target,
    disk_errors,
)
from xvla_jax.checkpoints.run_folder import find_step, on_disk
from xvla_jax.errors import CheckpointError
from xvla_jax.pretrained import LAYOUTS, load_checkpoint

ROOT = Path(__file__).resolve().parents[3]
OUT = "gs://lab/out"


def _contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def _stored(lab: FakeStorage) -> dict[str, bytes]:
    return {name.removeprefix("out/"): stored.content for name, stored in lab.objects.items()}


def _written(*names: str) -> None:
    with atomic_folder(OUT) as scratch:
        for name in names:
            (scratch / name).parent.mkdir(exist_ok=True)
            (scratch / name).write_text(name)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_goes_through_a_bucket_and_back(
    layout: str, lab: FakeStorage, tmp_path: Path
) -> None:
    source = golden.FOLDER / "ee6d"
    convert_checkpoint(source, tmp_path / "local", layout)
    _, there = convert_checkpoint(source, buckets.place_of(OUT), layout)
    assert there.target.folder == OUT
    stored = _stored(lab)
    if layout == "orbax":  # its files have random names and times
        assert {"0", "params", "model"} == {
            Path(name).parent.name for name in stored if Path(name).name == COMMITTED
        }
    else:
        assert stored == _contents(tmp_path / "local")
    ours, theirs = load_checkpoint(OUT), load_checkpoint(source)
    assert tiny.equal(ours.params, theirs.params)
    assert (ours.config, ours.processor) == (theirs.config, theirs.processor)
    assert load_checkpoint(OUT, stored=True).files == theirs.files
    convert_checkpoint(buckets.place_of(OUT), tmp_path / "back", "hf")
    convert_checkpoint(tmp_path / "local", tmp_path / "straight", "hf")
    assert _contents(tmp_path / "back") == _contents(tmp_path / "straight")


def test_a_copy_is_made_once_and_a_new_version_is_copied_again(
    lab: FakeStorage, tmp_path: Path
) -> None:
    _written("config.json", "model.safetensors")
    first = on_disk(OUT)
    assert on_disk(OUT) == first
    lab.put("out/model.safetensors", b"new", {})
    assert (on_disk(OUT) / "model.safetensors").read_bytes() == b"new"
    assert (first / "model.safetensors").read_text() == "model.safetensors"
    assert str(first).endswith("gs/lab/out"), "messages name the place"


def test_the_newest_complete_step_is_copied_without_its_optimizer(lab: FakeStorage) -> None:
    for step in (2, 4, 10):
        for name in ("params/d/x", "model/metadata", "opt_state/d/x"):
            lab.put(f"runs/run/checkpoints/{step}/{name}", b"%d" % step, {})
    with pytest.raises(CheckpointError, match="has 2, 4, 10, of which none is complete"):
        find_step("gs://lab/runs/run")
    for step in (2, 4):
        lab.put(f"runs/run/checkpoints/{step}/{COMMITTED}", b"", {})
    for place in ("run", "run/checkpoints", "run/checkpoints/4"):
        step = find_step(f"gs://lab/runs/{place}")
        assert step
        assert sorted(_contents(step)) == [COMMITTED, "model/metadata", "params/d/x"]
        assert (step / "params/d/x").read_bytes() == b"4"
    with pytest.raises(CheckpointError, match=r"no checkpoint is in this folder; it has .* run"):
        on_disk("gs://lab/runs")
    with pytest.raises(CheckpointError, match="no checkpoint is in this folder; it is empty"):
        on_disk("gs://lab/runs/ru")  # shares the beginning of a name


def test_last_files_come_last(lab: FakeStorage) -> None:
    _written("config.json", "model.safetensors", "0/commit_success.txt", "0/d")
    numbers = {name: stored.generation for name, stored in lab.objects.items()}
    assert sorted(numbers, key=numbers.__getitem__)[2:] == [
        "out/0/commit_success.txt",
        "out/config.json",
    ]


def test_a_target_in_use_is_refused(lab: FakeStorage) -> None:
    _written("config.json")
    with pytest.raises(CheckpointError, match="gs://lab/out exists and is not empty"):
        _written("config.json")
    assert lab.objects["out/config.json"].content == b"config.json"
    with pytest.raises(CheckpointError, match="lie in one another"):
        check_target(OUT, overwrite=True, source="gs://lab/out/checkpoints")
    check_target(f"{OUT}2", source=OUT)
    with atomic_folder(OUT, overwrite=True) as scratch:
        (scratch / "other").touch()
    assert list(lab.objects) == ["out/other"]


def test_of_two_writers_the_second_is_refused_by_the_name_of_the_first(lab: FakeStorage) -> None:
    with (
        atomic_folder(OUT) as scratch,
        pytest.raises(CheckpointError, match=rf"is incomplete: process {os.getpid()} on host"),
        atomic_folder(OUT),
    ):
        (scratch / "a").touch()
    assert not lab.objects


def test_a_writer_that_fails_before_the_copy_leaves_nothing(lab: FakeStorage) -> None:
    def fail() -> None:
        with atomic_folder(OUT) as scratch:
            (scratch / "a").touch()
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert not lab.objects
    lab.rules = [Rule("^POST", 403, times=1000)]
    with pytest.raises(PermissionError, match="gs://lab/out/INCOMPLETE"), atomic_folder(OUT):
        pytest.fail("work began")


def test_a_writer_killed_in_the_copy_leaves_what_is_refused(lab: FakeStorage) -> None:
    code = (
        "from xvla_jax.checkpoints.folders import atomic_folder\n"
        f"with atomic_folder('{OUT}') as scratch:\n"
        "    for name in ('config.json', 'model.safetensors', 'vocab.json'):\n"
        "        (scratch / name).write_text(name)\n"
    )
    lab.rules = [Rule("^POST", "hold", skip=2)]  # the mark and one file pass
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    lab.wait_for_fault(process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert f"out/{INCOMPLETE}" in lab.objects
    assert "out/config.json" not in lab.objects
    for refused in (lambda: load_checkpoint(OUT), lambda: _written("config.json")):
        with pytest.raises(CheckpointError, match=f"is incomplete: process {process.pid} on host"):
            refused()
    with atomic_folder(OUT, overwrite=True) as scratch:
        (scratch / "config.json").write_text("{}")
    assert list(lab.objects) == ["out/config.json"]


def test_a_copy_that_fails_leaves_what_is_refused(
    lab: FakeStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buckets, "LIMIT_S", 0.2)
    lab.rules = [Rule("^POST", 503, skip=1, times=1000)]  # the mark passes
    with pytest.raises(OSError, match="gave no answer"):
        _written("config.json")
    assert list(lab.objects) == [f"out/{INCOMPLETE}"]


def test_a_disk_too_small_for_the_copy_is_said_before(
    lab: FakeStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.put("out/config.json", b"x" * 100, {})
    monkeypatch.setattr(run_folder, "check_free", lambda folder, _: check_free(folder, 1 << 62))
    with pytest.raises(OSError, match="No space left"):
        on_disk(OUT)
    assert not any("alt=media" in request for request in lab.requests)


def test_what_tensorstore_says_of_a_bucket_is_one_short_line() -> None:
    text = "PERMISSION_DENIED: Error writing in gs://lab/x: fault [http_response_code='403']"
    with (
        pytest.raises(OSError, match=r"PERMISSION_DENIED: .*: fault: 'gs://lab/run'$"),
        disk_errors(buckets.place_of("gs://lab/run")),
    ):
        raise ValueError(text)
    with pytest.raises(ValueError, match="another"), disk_errors(buckets.place_of(OUT)):
        raise ValueError("another")
