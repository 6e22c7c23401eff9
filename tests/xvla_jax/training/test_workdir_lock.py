"""One run for each workdir: refused by name while it lives, taken over when it is dead."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from etils import epath

from tests.fake_gcs import FakeStorage, Rule
from xvla_jax import buckets
from xvla_jax.errors import ConfigError, TrainingError
from xvla_jax.training.workdir_lock import LOCK_NAME, Holder, WorkdirLock

ROOT = Path(__file__).resolve().parents[3]
HOLD = """
import sys, time
from xvla_jax.training.workdir_lock import WorkdirLock
with WorkdirLock(sys.argv[1], beat_s=0.1, stale_s=1.0):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def _start(workdir: Path, seconds: float) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", HOLD, str(workdir), str(seconds)],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def _held(workdir: Path) -> subprocess.Popen[str]:
    process = _start(workdir, 60)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n", process.communicate()[1]
    return process


def _lock(workdir: Path | str, **more: object) -> WorkdirLock:
    return WorkdirLock(workdir, beat_s=0.05, stale_s=0.5, **more)  # pyright: ignore[reportArgumentType] # take_over


def _elsewhere(**more: object) -> Holder:
    """A holder on another host."""
    base = dataclasses.replace(Holder.me({}), host="node7", place="another boot", token="t")
    return dataclasses.replace(base, **more)  # pyright: ignore[reportArgumentType] # fields by name


def _write(workdir: Path, holder: Holder) -> None:
    (workdir / LOCK_NAME).write_text(json.dumps(dataclasses.asdict(holder)))


def test_a_second_run_is_refused_and_the_first_continues(tmp_path: Path) -> None:
    first = _held(tmp_path)
    try:
        pattern = rf"{re.escape(str(tmp_path))} is in use by process {first.pid} on host \S+, since"
        with pytest.raises(TrainingError, match=pattern), _lock(tmp_path):
            pass
        assert first.poll() is None
    finally:
        first.send_signal(signal.SIGKILL)
        first.communicate()
    with _lock(tmp_path):  # at once: the process is dead
        assert json.loads((tmp_path / LOCK_NAME).read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_it_is_free_after_the_end_and_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyError), _lock(tmp_path):
        raise KeyError
    with _lock(tmp_path), pytest.raises(TrainingError, match="in use"), _lock(tmp_path):
        pass


def test_a_holder_on_another_host_is_refused_while_it_beats(tmp_path: Path) -> None:
    _write(tmp_path, _elsewhere())
    stop = threading.Event()

    def beat() -> None:
        number = 0
        while not stop.wait(0.1):
            number += 1
            _write(tmp_path, _elsewhere(beat=number))

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(TrainingError, match="on host node7"), _lock(tmp_path):
            pass
    finally:
        stop.set()
        thread.join()
    began = time.monotonic()
    with _lock(tmp_path):  # silent now
        assert time.monotonic() - began > 0.4
    assert list(tmp_path.iterdir()) == []


def test_a_silent_holder_elsewhere_is_replaced_at_once_by_flag(tmp_path: Path) -> None:
    _write(tmp_path, _elsewhere())
    began = time.monotonic()
    with WorkdirLock(tmp_path, take_over=True, stale_s=60):
        assert time.monotonic() - began < 5


def test_the_flag_takes_nothing_from_a_living_process_of_this_host(tmp_path: Path) -> None:
    with (
        _lock(tmp_path),
        pytest.raises(TrainingError, match="in use"),
        _lock(tmp_path, take_over=True),
    ):
        pass


def test_a_requeued_job_follows_itself_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write(tmp_path, _elsewhere(job="71", restarts=0))
    monkeypatch.setenv("SLURM_JOB_ID", "71")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    began = time.monotonic()
    with WorkdirLock(tmp_path, stale_s=60):
        assert time.monotonic() - began < 5


def test_a_process_id_that_is_used_again_is_another_process(tmp_path: Path) -> None:
    _write(tmp_path, dataclasses.replace(Holder.me({}), born="1", token="t"))
    with WorkdirLock(tmp_path, stale_s=60):
        pass


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'{"host": 3}', b"null"])
def test_a_file_that_says_nothing_is_waited_for_and_replaced(
    tmp_path: Path, content: bytes
) -> None:
    (tmp_path / LOCK_NAME).write_bytes(content)
    with _lock(tmp_path):
        assert json.loads((tmp_path / LOCK_NAME).read_text())["pid"] == os.getpid()


def test_a_file_that_is_being_written_is_not_taken_for_the_silent_one(tmp_path: Path) -> None:
    """While one waits, another takes the dead workdir over; its file is empty at first."""
    _write(tmp_path, _elsewhere())

    def take_over_slowly() -> None:
        time.sleep(1)
        (tmp_path / LOCK_NAME).write_bytes(b"")
        time.sleep(1.5)
        _write(tmp_path, _elsewhere(token="u"))

    thread = threading.Thread(target=take_over_slowly)
    thread.start()
    lock = WorkdirLock(tmp_path, beat_s=0.05, stale_s=2)
    with pytest.raises(TrainingError, match="on host node7"), lock:
        pass
    thread.join()


def test_one_of_many_wins_a_dead_workdir(tmp_path: Path) -> None:
    _write(tmp_path, _elsewhere())
    together, results = threading.Barrier(8), []

    def take() -> None:
        together.wait()
        try:
            with _lock(tmp_path):
                results.append("held")
                while len(results) < 8:
                    time.sleep(0.01)
        except TrainingError as error:
            results.append(str(error))

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert len(results) == 8
    assert results.count("held") == 1
    assert sum("is in use by process" in text for text in results) == 7
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_was_replaced_writes_nothing_more(tmp_path: Path) -> None:
    first = _held(tmp_path)
    _write(tmp_path, _elsewhere())
    _, errors = first.communicate(timeout=30)
    assert first.returncode == 1
    assert errors.startswith(
        f"error: {tmp_path} was taken over by process {os.getpid()} on host node7"
    )


def test_a_file_removed_by_hand_is_made_again(tmp_path: Path) -> None:
    with _lock(tmp_path):
        (tmp_path / LOCK_NAME).unlink()
        until = time.monotonic() + 10
        while not (tmp_path / LOCK_NAME).exists():
            assert time.monotonic() < until
            time.sleep(0.02)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", ["s3://b/run", "gs://b"])
def test_another_store_is_refused_before_anything_is_made(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=rf"^--workdir={path}: allowed are"), WorkdirLock(path):
        pass
    assert not list(tmp_path.iterdir()), "no folder 's3:' beside the store"


def test_a_mounted_epath_is_a_workdir(tmp_path: Path) -> None:
    with WorkdirLock(epath.Path(tmp_path)):
        assert (tmp_path / LOCK_NAME).is_file()


@pytest.mark.parametrize("where", ["fsync", "start"])
def test_a_signal_while_the_lock_is_taken_leaves_no_file(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def raised(*_: object) -> None:
        raise SystemExit(143)

    lock = WorkdirLock(tmp_path, take_over=False)
    monkeypatch.setattr(*((os, "fsync") if where == "fsync" else (lock._thread, "start")), raised)
    with pytest.raises(SystemExit), lock:
        pass
    assert list(tmp_path.iterdir()) == []


# The same in a bucket, where the version of an object decides.
OBJECT = "runs/one/run.lock"
IN_BUCKET = "gs://lab/runs/one"


def _put(lab: FakeStorage, holder: Holder) -> None:
    lab.put(OBJECT, json.dumps(dataclasses.asdict(holder)).encode(), {})


def test_a_bucket_is_held_beaten_and_left(lab: FakeStorage) -> None:
    with _lock(IN_BUCKET):
        first = lab.objects[OBJECT]
        assert json.loads(first.content)["pid"] == os.getpid()
        with pytest.raises(TrainingError, match=rf"{IN_BUCKET} is in use by process"):
            _lock(IN_BUCKET).__enter__()
        until = time.monotonic() + 10
        while lab.objects[OBJECT].generation == first.generation:
            assert time.monotonic() < until
            time.sleep(0.02)
    assert not lab.objects


def test_in_a_bucket_a_silent_holder_is_replaced_and_a_living_one_is_not(
    lab: FakeStorage,
) -> None:
    _put(lab, _elsewhere())
    beats = itertools.count(1)
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(0.1):
            _put(lab, _elsewhere(beat=next(beats)))

    thread = threading.Thread(target=beat)
    thread.start()
    with pytest.raises(TrainingError, match="on host node7"), _lock(IN_BUCKET):
        pass
    stop.set()
    thread.join()
    with _lock(IN_BUCKET):  # silent now
        assert json.loads(lab.objects[OBJECT].content)["pid"] == os.getpid()
    assert not lab.objects


def test_one_of_many_wins_a_dead_bucket(lab: FakeStorage) -> None:
    _put(lab, _elsewhere())
    together, results = threading.Barrier(4), []

    def take() -> None:
        together.wait()
        try:
            with _lock(IN_BUCKET):
                results.append("held")
                while len(results) < 4:
                    time.sleep(0.01)
        except TrainingError as error:
            results.append(str(error))

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert sorted(result == "held" for result in results) == [False, False, False, True]
    assert not lab.objects


def test_a_run_whose_bucket_was_taken_ends_and_leaves_the_other(
    lab: FakeStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = threading.Event()
    monkeypatch.setattr(os, "_exit", lambda status: ended.set())
    with _lock(IN_BUCKET):
        _put(lab, _elsewhere())
        assert ended.wait(10)
    assert json.loads(lab.objects[OBJECT].content)["host"] == "node7"


def test_a_store_that_is_away_for_a_while_ends_no_run(
    lab: FakeStorage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(buckets, "LIMIT_S", 0.1)
    with _lock(IN_BUCKET):
        lab.rules = [Rule("", 503, times=4)]
        until = time.monotonic() + 20
        while lab.rules[0].times or not json.loads(lab.objects[OBJECT].content)["beat"]:
            assert time.monotonic() < until
            time.sleep(0.02)
    assert "no sign of life could be written" in caplog.text
    assert not lab.objects


def test_a_bucket_without_permission_is_said_by_its_name(lab: FakeStorage) -> None:
    lab.rules = [Rule("^(POST|DELETE)", 403, times=100)]
    with (
        pytest.raises(PermissionError, match=rf"may not do this: .*{IN_BUCKET}/run.lock"),
        _lock(IN_BUCKET),
    ):
        pass
