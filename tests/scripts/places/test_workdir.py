"""A workdir in a bucket: its small files are beside the checkpoints, whatever ends a process."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from etils import epath

from scripts.places.workdir import Workdir
from scripts.training.session import held_workdir
from tests.fake_gcs import FakeStorage, Rule
from xvla_jax import buckets
from xvla_jax.errors import TrainingError
from xvla_jax.training.multihost import Processes
from xvla_jax.training.workdir_lock import LOCK_NAME

PLACE = epath.Path("gs://lab/runs/one")


def _stored(lab: FakeStorage) -> dict[str, bytes]:
    return {n.removeprefix("runs/one/"): o.content for n, o in lab.objects.items()}


def test_on_a_disk_it_is_the_folder_itself(tmp_path: Path) -> None:
    with Workdir(tmp_path) as workdir:
        assert (workdir.local, workdir.place, workdir.in_bucket) == (tmp_path, tmp_path, False)
        (tmp_path / "metrics.jsonl").touch()
    assert workdir.copy()
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_files_are_copied_when_they_change_and_come_back(lab: FakeStorage) -> None:
    lab.put("runs/one/checkpoints/2/params/d/x", b"large", {})
    with Workdir(PLACE) as workdir:
        assert workdir.local.name == "one"
        (workdir.local / "metrics.jsonl").write_text("1\n")
        (workdir.local / "tensorboard").mkdir()
        (workdir.local / "tensorboard" / "events").write_bytes(b"e")
        (workdir.local / ".part").touch()
        assert workdir.copy()
        versions = {name: stored.generation for name, stored in lab.objects.items()}
        with (workdir.local / "metrics.jsonl").open("a") as file:
            file.write("2\n")
        # the end copies the rest
    assert not workdir.local.exists()
    changed = {n for n, o in lab.objects.items() if versions.get(n) != o.generation}
    assert changed == {"runs/one/metrics.jsonl"}
    with Workdir(PLACE) as workdir:  # another process, on another machine
        names = [path.relative_to(workdir.local).as_posix() for path in workdir.local.rglob("*")]
        assert names == ["metrics.jsonl"], "what is appended to, no checkpoints"
        assert (workdir.local / "metrics.jsonl").read_text() == "1\n2\n"
        # what the first process of a run writes meanwhile is not written over by this one
        lab.put("runs/one/metrics.jsonl", b"1\n2\n3\n", {})
        (workdir.local / "skipped_1.jsonl").write_text("s\n")
    assert _stored(lab)["metrics.jsonl"] == b"1\n2\n3\n"
    assert _stored(lab)["skipped_1.jsonl"] == b"s\n"


def test_a_process_that_is_killed_has_copied_what_is_older_than_the_interval(
    lab: FakeStorage,
) -> None:
    with Workdir(PLACE, every_s=0.05) as workdir:
        (workdir.local / "metrics.jsonl").write_text("1\n")
        until = time.monotonic() + 10
        while "metrics.jsonl" not in _stored(lab):
            assert time.monotonic() < until
            time.sleep(0.02)


def test_a_store_that_is_away_ends_no_run_and_loses_no_line(
    lab: FakeStorage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(buckets, "LIMIT_S", 0.1)
    with Workdir(PLACE) as workdir:
        (workdir.local / "metrics.jsonl").write_text("1\n")
        lab.rules = [Rule("^POST", 503, times=1000)]
        assert not workdir.copy()
        assert f"files of the run stay in {workdir.local} for now" in caplog.text
        lab.rules = []
    assert _stored(lab) == {"metrics.jsonl": b"1\n"}
    with Workdir(PLACE) as workdir:
        (workdir.local / "metrics.jsonl").write_text("1\n2\n")
        lab.rules = [Rule("^POST", 503, times=1000)]
    assert (workdir.local / "metrics.jsonl").read_text() == "1\n2\n", "it is not removed"


def test_a_held_bucket_is_refused_and_nothing_is_left_behind(lab: FakeStorage) -> None:
    alone = Processes(0, 1, 1)
    with held_workdir(PLACE, alone, take_over=False) as workdir:
        assert list(_stored(lab)) == [LOCK_NAME]
        with (
            pytest.raises(TrainingError, match=r"gs://lab/runs/one is in use by process"),
            held_workdir(PLACE, alone, take_over=False),
        ):
            pass
        assert not (workdir.local / LOCK_NAME).exists()
    assert not lab.objects


def test_a_bucket_without_permission_ends_a_run_in_a_line(
    lab: FakeStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    lab.rules = [Rule("^(POST|PUT|DELETE)", 403, times=1000)]
    message = rf"^{PLACE}/{LOCK_NAME}: the account of this machine may not do this: .*$"
    with (
        pytest.raises(TrainingError, match=message),
        held_workdir(PLACE, Processes(0, 1, 1), take_over=False),
    ):
        pass
    assert not lab.objects
    assert not list(tmp_path.iterdir()), "no folder 'gs:'"
