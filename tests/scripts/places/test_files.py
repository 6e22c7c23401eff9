"""Single files, on a disk and in a bucket."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.places import files
from scripts.terminal import UsageError
from tests.fake_gcs import FakeStorage


@pytest.mark.parametrize("kind", ["disk", "bucket"])
def test_files_are_written_read_and_listed(kind: str, tmp_path: Path, lab: FakeStorage) -> None:
    folder = files.place_of(str(tmp_path) if kind == "disk" else "gs://lab/one")
    assert files.read(folder / "a") is None
    assert files.names(folder) == files.names(folder / "none") == []
    files.write(folder / "b", b"1")
    files.rewrite(folder / "a", b"2")
    files.rewrite(folder / "a", b"3")
    assert files.names(folder) == ["a", "b"]
    assert files.read(folder / "a") == b"3"
    assert sorted(lab.objects) == (["one/a", "one/b"] if kind == "bucket" else [])


def test_a_bucket_without_a_folder_is_refused() -> None:
    with pytest.raises(UsageError, match=r"^--out=gs://lab: allowed are a path of this machine"):
        files.place_of("gs://lab", flag="--out")


@pytest.mark.skipif(not shutil.which("openssl"), reason="no openssl to make a certificate")
def test_a_command_runs_beside_a_bucket() -> None:
    pytest.importorskip("google.cloud.storage", reason="needs the extra gcs")
    code = "import sys; from google.cloud import storage; sys.exit(storage.Client().bucket('lab')"
    code += ".blob('a').upload_from_string(b'1') or 3)"
    command = [sys.executable, "-m", "tests.fake_gcs", sys.executable, "-c", code]
    assert subprocess.run(command, check=False, timeout=60).returncode == 3
