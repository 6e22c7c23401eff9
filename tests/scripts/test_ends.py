"""Disks that are full or read-only end a command in one line and leave nothing."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.small_disk import make_read_only, small_disk
from tests.xvla_jax import golden
from xvla_jax.checkpoints.folders import check_free, disk_errors
from xvla_jax.pretrained import LAYOUTS

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    "error",
    [
        ValueError("RESOURCE_EXHAUSTED: ... No space left on device [os_error_code='28']"),
        RuntimeError("Failed writing: No space left on device"),
        OSError(errno.ENOSPC, "No space left on device"),
    ],
)
def test_a_disk_is_seen_behind_a_librarys_error(error: Exception, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left on device") as caught, disk_errors(tmp_path):
        raise error
    assert caught.value.errno == errno.ENOSPC
    with pytest.raises(ValueError, match=r"^another$"), disk_errors(tmp_path):
        raise ValueError("another")


@pytest.mark.parametrize(
    ("error", "logged"),
    [
        (ValueError("Failed to write 485929 bytes [os_error_code='27']"), False),
        (OSError(errno.ENOSPC, "No space left on device"), False),
        (ValueError("another"), True),
    ],
)
def test_writes_beside_the_one_that_failed_log_nothing(
    error: Exception, logged: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A loop reports a future that nobody awaits when its memory is freed: at any time."""

    async def fail_unseen() -> None:
        asyncio.get_running_loop().create_future().set_exception(error)

    with disk_errors(tmp_path):
        pass
    asyncio.run(fail_unseen())
    gc.collect()
    assert ("never retrieved" in caplog.text) == logged


def test_room_is_asked_for_before_anything_is_written(tmp_path: Path) -> None:
    check_free(tmp_path / "not" / "there", 1)
    with pytest.raises(OSError, match=r"No space left on device: .* MB are needed"):
        check_free(tmp_path / "not" / "there", 1 << 62)


def _convert(target: Path, layout: str, before: str = "") -> tuple[int, list[str]]:
    code = (
        f"import sys; {before}\n"
        "from scripts.convert_checkpoint import COMMAND, main\n"
        "sys.exit(COMMAND.run(main, sys.argv))\n"
    )
    source = golden.FOLDER / "ee6d"
    run = subprocess.run(
        [sys.executable, "-c", code, str(source), str(target), f"--layout={layout}"],
        cwd=ROOT,
        env=os.environ | {"COLUMNS": "300"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    output = [line.strip() for line in (run.stdout + run.stderr).splitlines() if line.strip()]
    return run.returncode, [line for line in output if not line.startswith("converting")]


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_disk_that_fills_under_a_conversion(layout: str, tmp_path: Path) -> None:
    """A limit on the size of files stands for it: writing fails after the space was checked."""
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000))"
    status, output = _convert(tmp_path / "out", layout, limit)
    assert status == 1, output
    assert len(output) == 1, output
    assert output[0].startswith("error: ")
    assert "File too large" in output[0]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_full_and_a_read_only_disk_under_a_conversion(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "20m") as disk:
        (disk / "other").write_bytes(bytes(disk_free(disk) - 300_000))
        for layout in LAYOUTS:
            status, output = _convert(disk / "out", layout)
            assert (status, len(output)) == (1, 1), output
            assert "No space left on device" in output[0]
        make_read_only(disk)
        (disk_line,) = _convert(disk / "out", "hf")[1]
        assert "Read-only file system" in disk_line or "No space left" in disk_line
    with small_disk(tmp_path / "another", "20m") as disk:
        make_read_only(disk)
        for layout in LAYOUTS:
            status, output = _convert(disk / "out", layout)
            assert (status, len(output)) == (1, 1), output
            assert "Read-only file system" in output[0]


def disk_free(folder: Path) -> int:
    """Bytes that are free."""
    disk = os.statvfs(folder)
    return disk.f_bavail * disk.f_frsize
