"""The folder of compiled programs: its place, its owner, its size, and entries that are broken."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from xvla_jax.compilation import program_cache
from xvla_jax.compilation.program_cache import OFF, default_folder, keep_programs, machine
from xvla_jax.errors import ConfigError

_CHILD = """
import shutil
import sys
import jax
from xvla_jax.compilation import program_cache

jax.config.update("jax_enable_compilation_cache", True)
print(program_cache.keep_programs(sys.argv[1]))
for round in range(4):
    jax.clear_caches()
    before = program_cache.counts()
    print(round, float(jax.jit(lambda x: x * 3 + 1)(2.0)), end=" ")
    print(*(now - then for now, then in zip(program_cache.counts(), before)))
    if round == 1:
        for path in program_cache.pathlib.Path(sys.argv[1]).glob("*/*-cache"):
            path.write_bytes(path.read_bytes()[:-9])
folder = program_cache.pathlib.Path(program_cache.folder_in_use())
print(folder.stat().st_mode & 0o077)
shutil.rmtree(folder)
jax.jit(lambda x: x * 5)(2.0)
print(program_cache.not_kept())
"""


def test_programs_are_kept_and_broken_ones_are_made_again(tmp_path: Path) -> None:
    folder = tmp_path / "programs"
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, str(folder)], capture_output=True, text=True, check=True
    )
    place, *rounds, open_to_others, not_kept = done.stdout.splitlines()
    assert place == (
        f"compiled programs are kept in {folder}/{machine()} (--program_cache=off keeps none)"
    )
    made, kept, broken, repaired = (line.split()[1:] for line in rounds)
    assert made == ["7.0", "0", "1"]
    assert kept == ["7.0", "1", "0"]
    assert broken == ["7.0", "0", "1"]
    assert repaired == ["7.0", "1", "0"]
    assert open_to_others == "0"
    assert int(not_kept) > 0, "the folder has gone"
    assert f"a program is not kept in {folder}/{machine()}: " in done.stderr
    warning = [line for line in done.stderr.splitlines() if "compiled again" in line]
    assert len(warning) == 1
    assert f"program jit__lambda in {folder}/{machine()} is compiled again: error: " in warning[0]
    assert "Traceback" not in done.stderr


def test_the_place_is_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert default_folder({"XDG_CACHE_HOME": "/c"}) == Path("/c/xvla_jax/programs")
    monkeypatch.setenv("HOME", str(tmp_path))
    for relative in ("", "somewhere"):
        folder = default_folder({"XDG_CACHE_HOME": relative})
        assert folder == tmp_path / ".cache/xvla_jax/programs"
    assert machine() == machine()
    assert machine().partition("-")[0] == os.uname().machine


@pytest.fixture
def cache_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets `keep_programs` choose a place, without changing where this process keeps programs."""

    class Config:
        jax_enable_compilation_cache = True

        @staticmethod
        def update(name: str, value: object) -> None:
            """Changes nothing."""

    monkeypatch.setattr(program_cache, "_settings", Config)
    monkeypatch.setattr(program_cache, "_repair", lambda folder: None)
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)


@pytest.mark.usefixtures("cache_on")
def test_a_folder_that_others_can_write_to_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = tmp_path / machine()
    shared.mkdir()
    shared.chmod(0o777)
    with pytest.raises(ConfigError, match=rf"--program_cache={tmp_path}: everybody may write in"):
        keep_programs(str(tmp_path))
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(shared))
    with pytest.raises(ConfigError, match=r"JAX_COMPILATION_CACHE_DIR=.* chmod o-w"):
        keep_programs(None)
    shared.chmod(0o755)
    assert f"kept in {shared} " in keep_programs(None), "JAX's variable is the folder itself"
    monkeypatch.setattr(os, "getuid", lambda: 4321)
    with pytest.raises(ConfigError, match=r"belongs to user id \d+, this process runs as 4321"):
        keep_programs(str(tmp_path))


@pytest.mark.usefixtures("cache_on")
def test_a_default_place_that_is_unusable_ends_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "xvla_jax").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    line = keep_programs(None)
    assert line.startswith("compiled programs are not kept: ")
    assert "--program_cache=FOLDER keeps them" in line
    with pytest.raises(ConfigError, match="name a folder of your own"):
        keep_programs(str(tmp_path / "xvla_jax" / "x"))
    assert "\n" not in line


@pytest.mark.usefixtures("cache_on")
def test_it_can_be_turned_off_or_put_into_a_bucket() -> None:
    assert keep_programs(OFF) == "compiled programs are not kept (--program_cache=off)"
    line = keep_programs("gs://bucket/programs")
    assert f"kept in gs://bucket/programs/{machine()} " in line


def test_the_entries_unused_for_longest_go_first(tmp_path: Path) -> None:
    names = ("a-cache", "b-lowered", "c-cache", "d-lowered.123-4f")  # the last one was cut off
    for age, name in enumerate(names):
        path = tmp_path / name
        path.write_bytes(bytes(10))
        os.utime(path, (1000 - age, 1000 - age))
    (tmp_path / "notes.txt").write_bytes(bytes(100))
    program_cache._prune(tmp_path, 25)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a-cache", "b-lowered", "notes.txt"]
