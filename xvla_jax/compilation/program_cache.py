"""The cache of compiled programs, which commands keep from one process to the next.

JAX reads and writes it; here its place is chosen and checked. What lies there runs as this user's
code, so the folder must be the user's own. An entry that cannot be read is removed and compiled
again: JAX would keep it, and complain at each start.
"""

from __future__ import annotations

import collections
import functools
import hashlib
import logging
import os
import pathlib
import platform
import stat
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, Final

import jax
from etils import epath
from jax import monitoring

from xvla_jax.errors import ConfigError

OFF: Final = "off"
LIMIT_BYTES: Final = 8 * 2**30  # of a folder; the entries unused for longest go first
_VARIABLE: Final = "JAX_COMPILATION_CACHE_DIR"  # JAX's own, as are those below
_SWITCH: Final = "JAX_ENABLE_COMPILATION_CACHE"
_SHORTEST: Final = "jax_persistent_cache_min_compile_time_secs"
_REQUEST: Final = "/jax/compilation_cache/compile_requests_use_cache"
_HIT: Final = "/jax/compilation_cache/cache_hits"
_UNREADABLE: Final = "Error reading persistent compilation cache entry for "
_UNWRITABLE: Final = "Error writing persistent compilation cache entry for "
_ENTRY: Final = "*-cache"
_ENTRIES: Final = (_ENTRY, "*-lowered*", "*-shapes*")  # with those of stored.py, also cut off

_settings: Any = jax.config  # its fields are unknown to type checkers
_log = logging.getLogger(__name__)
_events: collections.Counter[str] = collections.Counter()


def keep_programs(place: str | None) -> str:
    """Turns the cache on; call it before anything is compiled.

    Args:
        place: folder, or bucket (``gs://``), of ``--program_cache``; `OFF` keeps none. None stands
            for JAX's own variable JAX_COMPILATION_CACHE_DIR, or else for the user's cache folder.

    Returns:
        A line that states the place, or why there is none.

    Raises:
        ConfigError: the folder that was asked for is not safe, or cannot be made.
    """
    _count_events()
    if place == OFF or not _settings.jax_enable_compilation_cache:
        _settings.update("jax_enable_compilation_cache", False)
        return f"compiled programs are not kept ({_reason_off(place)})"
    variable = os.environ.get(_VARIABLE)
    asked = place or variable
    try:
        folder = asked or str(default_folder(os.environ))
        # JAX's variable means the folder itself, also for other programs that read it.
        folder = folder if folder == variable else os.path.join(folder, machine())
        if "://" not in folder:
            _own_folder(pathlib.Path(folder))
            _prune(pathlib.Path(folder), LIMIT_BYTES)
    except (OSError, ConfigError) as error:
        if asked:
            source = "--program_cache" if place else _VARIABLE
            raise ConfigError(
                f"{source}={asked}: {error}; name a folder of your own, a gs:// bucket, or {OFF}"
            ) from error
        _settings.update("jax_enable_compilation_cache", False)
        return f"compiled programs are not kept: {error}; --program_cache=FOLDER keeps them"
    _settings.update("jax_compilation_cache_dir", folder)
    if _SHORTEST.upper() not in os.environ:
        # A start has a hundred small programs: together they take seconds.
        _settings.update(_SHORTEST, 0.0)
    _repair(folder)
    return f"compiled programs are kept in {folder} (--program_cache={OFF} keeps none)"


def counts() -> tuple[int, int]:
    """Returns the programs of this process that came from the cache, and those compiled for it."""
    return _events[_HIT], _events[_REQUEST] - _events[_HIT]


def not_kept() -> int:
    """Returns how many programs of this process the folder did not take, as where it is full."""
    return _events[_UNWRITABLE]


def folder_in_use() -> str | None:
    """Returns the folder or bucket of compiled programs; None where none are kept."""
    if not _settings.jax_enable_compilation_cache:
        return None
    return _settings.jax_compilation_cache_dir or None


def default_folder(environ: Mapping[str, str]) -> pathlib.Path:
    """Returns the user's folder of programs, by the XDG base directories.

    Raises:
        ConfigError: the user has no home.
    """
    base = environ.get("XDG_CACHE_HOME")
    if base and pathlib.Path(base).is_absolute():  # a relative one is to be ignored, by XDG
        return pathlib.Path(base, "xvla_jax", "programs")
    try:
        return pathlib.Path.home() / ".cache" / "xvla_jax" / "programs"
    except RuntimeError as error:
        raise ConfigError("this user has no home folder") from error


@functools.cache
def machine() -> str:
    """Returns a name for this kind of CPU.

    Programs for CPU hold its instructions, and JAX's key does not name all of them; a home folder
    or bucket serves many machines.
    """
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # no Linux
        lines = [f"model name: {platform.processor()}"]
    # the first processor's; others, such as the frequency, change
    rows = {name.strip(): value for name, _, value in (line.partition(":") for line in lines[:40])}
    text = " ".join(rows.get(name, "") for name in ("model name", "flags", "Features"))
    return f"{platform.machine()}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _reason_off(place: str | None) -> str:
    return f"--program_cache={OFF}" if place == OFF else f"{_SWITCH}={os.environ.get(_SWITCH)}"


def _own_folder(folder: pathlib.Path) -> None:
    """Makes a folder for this user alone, or checks one that is there."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.stat()
    if status.st_uid != os.getuid():
        raise ConfigError(
            f"{folder} belongs to user id {status.st_uid}, this process runs as {os.getuid()}, "
            "and compiled programs run as code"
        )
    if status.st_mode & stat.S_IWOTH:
        raise ConfigError(
            f"everybody may write in {folder} (mode {stat.S_IMODE(status.st_mode):o}), and "
            f"compiled programs run as code; chmod o-w {folder}"
        )
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError(f"{folder} cannot be written to")


def _prune(folder: pathlib.Path, limit: int) -> None:
    """Removes the entries that were not read for longest until the rest is within the limit."""
    entries = []
    for path, status in _stats(folder):
        entries.append((max(status.st_atime, status.st_mtime), status.st_size, path))
    total = sum(size for _, size, _ in entries)
    for _, size, path in sorted(entries):
        if total <= limit:
            return
        path.unlink(missing_ok=True)  # another process may have removed it
        total -= size


def _stats(folder: pathlib.Path) -> Iterator[tuple[pathlib.Path, os.stat_result]]:
    for path in (path for ending in _ENTRIES for path in folder.glob(ending)):
        try:
            yield path, path.stat()
        except FileNotFoundError:  # removed by another process since
            continue


@functools.cache
def _count_events() -> None:
    def count(event: str, **kwargs: Any) -> None:
        del kwargs
        if event in (_REQUEST, _HIT):
            _events[event] += 1

    monitoring.register_event_listener(count)


def _repair(folder: str) -> None:
    """Turns JAX's warnings about entries into one line each, and removes unreadable ones."""
    show = warnings.showwarning

    def show_or_repair(message: Warning | str, *args: Any, **kwargs: Any) -> None:
        text = str(message)
        if text.startswith(_UNREADABLE):
            name, _, reason = text.removeprefix(_UNREADABLE).partition(": ")
            name = name.strip("'")
            _remove(folder, name)
            _log.warning("program %s in %s is compiled again: %s", name, folder, reason)
        elif text.startswith(_UNWRITABLE):
            _events[_UNWRITABLE] += 1
            _log.warning("a program is not kept in %s: %s", folder, text.partition(": ")[2])
        else:
            show(message, *args, **kwargs)

    warnings.showwarning = show_or_repair


def _remove(folder: str, name: str) -> None:
    """Removes all entries of a program's name: JAX does not say which of them it could not read."""
    for path in epath.Path(folder).glob(f"{name}-{_ENTRY}"):
        path.unlink(missing_ok=True)
