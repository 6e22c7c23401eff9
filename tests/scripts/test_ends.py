"""Commands end in one line, whatever happens to files and disks."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.terminal import STOPPED, ends_clearly, said
from tests.small_disk import make_read_only, small_disk
from tests.xvla_jax import golden
from xvla_jax.checkpoints.folders import check_free, disk_errors
from xvla_jax.pretrained import LAYOUTS

ROOT = Path(__file__).resolve().parents[2]
SERVANTS = {"torch_reference.py"}  # started by another command, which reads what it prints


def test_every_command_ends_clearly() -> None:
    mains = [
        path
        for path in sorted((ROOT / "scripts").glob("*.py"))
        if '__name__ == "__main__"' in path.read_text() and path.name not in SERVANTS
    ]
    assert len(mains) > 20
    unclear = [
        path.name for path in mains if not re.search(r"ends_clearly\(main\b", path.read_text())
    ]
    assert unclear == []


def test_one_line_and_a_status(capsys: pytest.CaptureFixture[str]) -> None:
    def fails(error: BaseException) -> int:
        raise error

    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/mnt/x")
    assert ends_clearly(fails)(full) == 1
    assert capsys.readouterr().err == (
        "error: /mnt/x: No space left on device; free some space, or choose another place\n"
    )
    assert (
        ends_clearly(fails, status=2)(PermissionError(errno.EACCES, "Permission denied", "x")) == 2
    )
    assert capsys.readouterr().err == "error: x: Permission denied\n"
    assert ends_clearly(fails)(KeyboardInterrupt()) == STOPPED
    assert ends_clearly(lambda _: None)([]) == 0
    with pytest.raises(KeyError):
        ends_clearly(fails)(KeyError("a mistake"))
    assert said(OSError("told in words")) == "told in words"


@pytest.mark.parametrize(
    "error",
    [
        ValueError("RESOURCE_EXHAUSTED: ... No space left on device [os_error_code='28']"),
        RuntimeError("Failed writing: No space left on device"),
        OSError(errno.ENOSPC, "No space left on device"),
    ],
)
def test_a_disk_is_found_behind_a_librarys_error(error: Exception, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left on device") as caught, disk_errors(tmp_path):
        raise error
    assert caught.value.errno == errno.ENOSPC
    with pytest.raises(ValueError, match=r"^another$"), disk_errors(tmp_path):
        raise ValueError("another")


def test_room_is_asked_for_before_anything_is_written(tmp_path: Path) -> None:
    check_free(tmp_path / "not" / "there", 1)
    with pytest.raises(OSError, match=r"No space left on device: .* MB are needed"):
        check_free(tmp_path / "not" / "there", 1 << 62)


def _convert(target: Path, layout: str, before: str = "") -> tuple[int, list[str]]:
    code = (
        f"import sys; {before}\n"
        "from absl import app\n"
        "from scripts.convert_checkpoint import main\n"
        "from scripts.terminal import ends_clearly\n"
        "app.run(ends_clearly(main))\n"
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
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize
