"""A run from bucket to bucket: killed in a save, resumed through faults, the bits of a disk."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scripts import convert_checkpoint
from tests.fake_gcs import FakeStorage, Rule, fake_gcs
from tests.scripts.runs import end, start
from tests.xvla_jax import tiny
from xvla_jax import buckets
from xvla_jax.errors import TrainingError
from xvla_jax.pretrained import load_checkpoint
from xvla_jax.training.telemetry import METRICS_NAME
from xvla_jax.training.workdir_lock import LOCK_NAME, WorkdirLock

pytest.importorskip("google.cloud.storage", reason="needs the extra gcs")
pytestmark = [
    pytest.mark.rlds,
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which("openssl"), reason="no openssl to make a certificate"),
]

RUN = "gs://lab/runs/one"
FLAGS = ("--config.data.root=gs://lab/rlds", "--config.save_every=8")  # saves 4 and 8


@pytest.fixture
def lab(demos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeStorage]:
    """The bucket, with demonstrations, for this process and those that it starts."""
    for name in ("certificate", "tmp"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    with fake_gcs(tmp_path / "certificate") as (storage, environ):
        for name, value in environ.items():
            monkeypatch.setenv(name, value)
        storage.add_folder(demos, "rlds/")
        buckets._client.cache_clear()
        yield storage
        buckets._client.cache_clear()


def _lines(text: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def _losses(lines: list[dict[str, Any]]) -> dict[int, float]:
    return {line["step"]: line["loss"] for line in lines}


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _killed_in_a_save(lab: FakeStorage, compiled: Path) -> None:
    """A run that is killed while its eighth step is written; the fourth is complete."""
    lab.rules = [Rule(r"POST .*/checkpoints/8/opt_state", "hold", times=50)]
    killed = start(Path("unused"), RUN, *FLAGS, compiled=compiled)
    lab.wait_for_fault(killed)
    with (
        pytest.raises(TrainingError, match=rf"{RUN} is in use by process {killed.pid} on host"),
        WorkdirLock(RUN),
    ):
        pass
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    lab.met.clear()
    lab.rules = [
        Rule(r"POST .*/checkpoints/8/params", 503, times=2),  # TensorStore
        Rule(r"POST .*/checkpoints/8/params", "cut"),
        Rule(r"POST .*resumable.*/checkpoints/8/", 503, times=2),  # TensorFlow
        Rule(r"PUT .*upload_id", "cut"),
        Rule(r"GET .*rlds.*tfrecord", 503, times=2),
        Rule(r"POST .*multipart", 503, times=2),  # Google's client
        Rule(r"POST .*multipart", "cut"),
    ]


def _check_left(lab: FakeStorage) -> None:
    """Checks for a step that is not complete, and for the metrics up to the newest that is."""
    left = {name for name in lab.objects if "/checkpoints/8/" in name}
    assert left
    assert not any(name.endswith("checkpoints/8/commit_success.txt") for name in left)
    lines = _lines(lab.objects[f"runs/one/{METRICS_NAME}"].content)
    assert {line["step"] for line in lines} >= {1, 2, 3, 4}


def test_a_run_in_a_bucket_is_killed_and_resumes_to_the_bits_of_a_disk(
    straight: Path, tmp_path: Path, compiled: Path, lab: FakeStorage
) -> None:
    _killed_in_a_save(lab, compiled)
    _check_left(lab)
    assert list((tmp_path / "tmp").glob(f"{buckets.SCRATCH}*"))
    status, output = end(start(Path("unused"), RUN, *FLAGS, compiled=compiled))
    assert status == 0, output
    assert "Traceback" not in output
    assert f"resuming {RUN}/checkpoints at step 4" in output
    assert f"trained 8 steps; checkpoints are in {RUN}/checkpoints" in output
    assert not list((tmp_path / "tmp").glob(f"{buckets.SCRATCH}*")), "also of the killed one"
    assert not any(rule.times for rule in lab.rules), lab.rules
    assert f"runs/one/{LOCK_NAME}" not in lab.objects

    lines = _lines(lab.objects[f"runs/one/{METRICS_NAME}"].content)
    assert _losses(lines) == _losses(_lines((straight / METRICS_NAME).read_bytes()))
    assert len(_losses(lines)) == 8
    ours, theirs = load_checkpoint(RUN), load_checkpoint(straight)
    assert tiny.equal(ours.params, theirs.params)
    assert ours.contracts == theirs.contracts
    place = "checkpoints/8/position/metadata"
    assert lab.objects[f"runs/one/{place}"].content == (straight / place).read_bytes()
    for source, target in ((RUN, "gs://lab/hf"), (str(straight), str(tmp_path / "hf"))):
        line = ["convert_checkpoint", source, target, "--layout=hf"]
        assert convert_checkpoint.COMMAND.run(convert_checkpoint.main, line) == 0
    objects = {n.removeprefix("hf/"): o.content for n, o in lab.objects.items() if n[:3] == "hf/"}
    assert objects == _contents(tmp_path / "hf")
