"""The command line of a command, its ends, and which records of libraries reach a terminal."""

from __future__ import annotations

import errno
import gc
import logging
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import jax
import pytest

from scripts import terminal, train
from scripts.terminal import (
    STOPPED,
    Command,
    Termination,
    UsageError,
    message,
    quiet_libraries,
)
from xvla_jax.compilation.ahead import Ahead, compiling

_CONFIG = "configs/debug.py"


def _command() -> Command:
    command = Command(
        "Does it.\n\npython -m scripts.it IN     --workers=2", positional=("checkpoint",)
    )
    command.DEFINE_string("checkpoint", None, "Folder.", required=True)
    command.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Type.")
    command.DEFINE_integer("workers", 2, "Processes.", lower_bound=1)
    command.DEFINE_float("minutes", 15.0, "Time.", lower_bound=0.0)
    command.DEFINE_bool("largest", True, "Search.")
    command.DEFINE_multi_string("answer", [], "A=B.")
    command.DEFINE_alias("model_path", "checkpoint")
    return command


@pytest.mark.parametrize("argument", ["a/b", "--checkpoint=a/b", "--model_path=a/b"])
def test_a_flag_its_alias_and_its_place_are_the_same(argument: str) -> None:
    command = _command()
    assert command.parse(["it", argument, "--workers=3"]) == []
    assert command.flags["checkpoint"].value == "a/b"
    assert command.flags["workers"].value == 3
    assert command.line == f"python -m scripts.it {argument} --workers=3"


def test_a_command_line_does_not_know_the_one_before() -> None:
    command = _command()
    command.parse(["it", "a", "--workers=3", "--nolargest"])
    command.parse(["it", "b"])
    values = [command.flags[name].value for name in ("checkpoint", "workers", "largest")]
    assert values == ["b", 2, True]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ([], "--checkpoint must be given"),
        (["a", "b", "c"], "unexpected arguments: b c"),
        (["a", "--worker=3"], "Unknown command line flag 'worker'. Did you mean: workers"),
        (["a", "--minutes=nan"], "--minutes=nan: a finite number is needed"),
        (["a", "--minutes=inf"], "--minutes=inf: a finite number is needed"),
        (["a", "--workers=0"], "--workers=0"),
        (["a", "--dtype=float16"], "should be one of <float32|bfloat16>"),
    ],
)
def test_a_wrong_command_line_is_two_lines(
    arguments: list[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _command().run(lambda _: 0, ["scripts/it.py", *arguments]) == 1
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("error: ")
    assert problem in first
    assert second == "see python -m scripts.it --help"


def test_help_has_the_flags_of_the_command_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert _command().run(lambda _: pytest.fail("was run"), ["it", "--help"]) == 0
    assert capsys.readouterr().out == (
        "Does it.\n\npython -m scripts.it IN\n    --workers=2\n\nFlags:\n"
        "  --checkpoint            Folder. Needed. Also argument 1. Also --model_path.\n"
        "  --dtype=float32|bfloat16\n"
        "                          Type. Default: float32.\n"
        "  --workers=2             Processes.\n"
        "  --minutes=15            Time.\n"
        "  --[no]largest           Search. Default: yes.\n"
        "  --answer                A=B. May be given several times.\n"
    )


def test_names_of_rows_are_checked_and_listed(capsys: pytest.CaptureFixture[str]) -> None:
    command = Command("", rows={"tasks": "tasks"})
    command.DEFINE_list("tasks", None, "Rows.", required=True)
    assert command.parse(["it", "--tasks=libero_goal,quickstart"]) == []
    with pytest.raises(UsageError) as caught:
        command.parse(["it", "--tasks=libero_gaol"])
    assert str(caught.value).startswith(
        "--tasks: there is no 'libero_gaol'; close to it: libero_goal"
    )
    assert len(str(caught.value)) < 200
    assert command.run(lambda _: pytest.fail("was run"), ["it", "--list"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert listed[0].split() == ["task", "benchmark", "suite", "tasks"]
    assert any(line.startswith("libero_goal ") for line in listed)


@pytest.mark.parametrize("argument", [[], ["--config"], ["--config="], ["--config=configs/no.py"]])
def test_a_config_that_is_none_lists_those_there_are(argument: list[str]) -> None:
    command = Command("")
    command.DEFINE_config("config", "Config.")
    with pytest.raises(UsageError, match=r"configs/pretrain\.py") as caught:
        command.parse(["it", *argument])
    assert "configs/base.py" not in str(caught.value), "nobody trains it"


def test_fields_of_a_config_are_set(monkeypatch: pytest.MonkeyPatch) -> None:
    command = Command("")
    holder = command.DEFINE_config("config", "Config.")
    argv = ["it", f"--config={_CONFIG}", "--config.optimizer.iters=7"]
    monkeypatch.setattr("sys.argv", argv)
    command.parse(argv)
    assert holder.value.optimizer.iters == 7
    assert command.fields_set("config") == {"optimizer.iters"}
    argv = ["it", f"--config={_CONFIG}", "--config.optimizer.iter=7"]
    monkeypatch.setattr("sys.argv", argv)
    with pytest.raises(UsageError, match="the config has no such field"):
        command.parse(argv)


def test_errors_of_files_are_one_line_and_a_status(capsys: pytest.CaptureFixture[str]) -> None:
    def status_of(error: BaseException, status: int = 1) -> int:
        def fail(_: list[str]) -> int:
            raise error

        return Command("", status=status).run(fail, ["it"])

    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/mnt/x")
    assert status_of(full) == 1
    assert capsys.readouterr().err == (
        "error: /mnt/x: No space left on device; free some space, or choose another place\n"
    )
    assert status_of(PermissionError(errno.EACCES, "Permission denied", "x"), status=2) == 2
    assert capsys.readouterr().err == "error: x: Permission denied\n"
    assert status_of(KeyboardInterrupt()) == STOPPED
    assert Command("").run(lambda _: 0, ["it"]) == 0
    with pytest.raises(KeyError):
        status_of(KeyError("a mistake"))
    assert message(OSError("in words")) == "in words"


def test_sigterm_is_raised_where_it_comes() -> None:
    with pytest.raises(SystemExit, match="143"), Termination():
        signal.raise_signal(signal.SIGTERM)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("number", "raised"),
    [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)],
)
def test_a_signal_is_not_lost_in_the_garbage_collector(
    number: signal.Signals, raised: type[BaseException]
) -> None:
    seen: list[tuple[int, int]] = []

    def signalled(*_: object) -> None:
        gc.callbacks.remove(signalled)
        signal.raise_signal(number)

    with Termination() as termination:
        progress = termination.checked(lambda done, total: seen.append((done, total)))
        progress(1, 2)
        gc.callbacks.append(signalled)
        gc.collect()  # continues: the exception of the callback is printed and dropped
        with pytest.raises(raised):
            progress(2, 2)
    assert seen == [(1, 2)]


def test_the_handler_of_sigterm_is_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Termination():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


_TASK = "Task exception was never retrieved\nfuture: <Task coro=<_open_and_write() at {}/x.py:121>>"


@pytest.mark.parametrize(
    ("name", "message", "shown"),
    [
        ("asyncio", _TASK.format("/lib/orbax/checkpoint"), False),
        ("asyncio", _TASK.format("/lib/aiohttp"), True),
        ("absl", "_SignalingThread.run() raised an exception", False),
        ("absl", "a checkpoint is missing", True),
        ("orbax", "restored in 3 s", False),
    ],
)
def test_what_orbax_raises_as_well_is_not_logged(
    name: str, message: str, shown: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    monkeypatch.setattr(handler, "emit", records.append)
    monkeypatch.setattr(logging.getLogger(), "handlers", [handler])
    monkeypatch.setattr(logging.getLogger("absl"), "handlers", [])
    monkeypatch.setattr("sys.unraisablehook", None)
    for logger in (name, "jax", "orbax"):
        monkeypatch.setattr(logging.getLogger(logger), "level", logging.INFO)
        monkeypatch.setattr(logging.getLogger(logger), "propagate", True)
    monkeypatch.setattr(logging.getLogger(name), "_cache", {})
    quiet_libraries()
    level = logging.INFO if message.startswith("restored") else logging.ERROR
    logging.getLogger(name).log(level, message)
    assert bool(records) is shown


@pytest.mark.parametrize(
    ("name", "path", "shown"),
    [
        ("absl", "/lib/orbax/checkpoint/checkpoint_manager.py", False),
        ("absl", "/lib/other/checkpoint.py", True),
        ("ours", "/lib/orbax/checkpoint/checkpoint_manager.py", True),
    ],
)
def test_an_exception_that_orbax_logs_and_raises_is_not_logged(
    name: str, path: str, shown: bool
) -> None:
    caught = (OSError, OSError("x"), None)
    record = logging.LogRecord(name, logging.ERROR, path, 1, "a thread failed", None, caught)
    assert terminal._is_news(record) is shown


def test_a_run_that_failed_does_not_wait_for_the_threads_of_its_save(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ended: list[int] = []
    monkeypatch.setattr("os._exit", ended.append)
    released = threading.Event()
    thread = threading.Thread(target=released.wait)
    thread.start()
    try:
        for status in (0, 130, 1):
            monkeypatch.setattr(train, "_supervise_or_train", lambda status=status: status)
            assert train.main([]) == status
    finally:
        released.set()
        thread.join()
    assert ended == [1]


def test_a_run_that_was_stopped_does_not_wait_for_a_compilation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ended: list[int] = []
    monkeypatch.setattr("os._exit", ended.append)
    begun, released = threading.Event(), threading.Event()

    def lower() -> Any:
        begun.set()
        assert released.wait(60)
        raise ValueError("nothing is lowered here")

    def stop() -> int:
        raise SystemExit(143)

    monkeypatch.setattr(train, "_supervise_or_train", stop)
    Ahead(lower)
    assert begun.wait(60)
    try:
        assert train.main([]) == 143
        monkeypatch.setattr(train, "_supervise_or_train", lambda: STOPPED)
        assert train.main([]) == STOPPED
    finally:
        released.set()
    while compiling():
        time.sleep(0.01)
    assert train.main([]) == STOPPED, "nothing is compiled any more: the process ends as others do"
    assert ended == [143, STOPPED]


def test_too_little_memory_is_one_line_with_a_way_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    argv = ["train", f"--config={_CONFIG}", f"--workdir={tmp_path / 'w'}"]
    monkeypatch.setattr("sys.argv", argv)
    monkeypatch.setattr(train, "quiet_libraries", lambda: None)
    monkeypatch.setattr(logging, "basicConfig", lambda **_: None)
    train.COMMAND.parse(argv)
    reason = "RESOURCE_EXHAUSTED: Out of memory allocating 12 bytes."
    errors = [jax.errors.JaxRuntimeError(f"{reason}\nBuffer 1"), MemoryError("16 TiB")]
    errors.append(RuntimeError("a bug"))

    def fail(_: object) -> int:
        raise errors.pop(0)

    monkeypatch.setattr(train, "_train", fail)
    assert [train._supervise_or_train() for _ in range(2)] == [1, 1]
    with pytest.raises(RuntimeError, match="a bug"):
        train._supervise_or_train()
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith(f"error: out of memory: {reason}; config.remat=full and a larger")
    assert second.startswith("error: out of memory: 16 TiB; config.remat=full")
