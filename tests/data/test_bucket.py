"""RLDS is read from gs:// by TensorFlow's own client."""

import json
import os
import shutil
import subprocess
import sys
from typing import Any

import pytest

from data.readers.rlds import RldsReader
from data.rows.table import dataset
from tests.fake_gcs import BUCKET, Rule, fake_gcs

pytestmark = [
    pytest.mark.rlds,
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which("openssl"), reason="no openssl to make a certificate"),
]

READ = """
import json, logging, sys
logging.basicConfig(level=logging.INFO)
from data.counting.frame_counts import frames_of
from data.rows.table import dataset
from data.sources import open_mixture, origin
(source,) = open_mixture((("bridge_dataset", 1.0),), sys.argv[1])
(first, *_) = source.reader.read(0)
frames = frames_of(source.reader, sys.argv[2])
poses, images = first.poses.tolist(), [len(image) for image in first.images[0]]
print(json.dumps([origin(source)["index_files"], first.instruction, poses, images, frames]))
"""


def test_a_set_in_a_bucket_reads_as_on_disk(fixtures, tmp_path):
    with fake_gcs(tmp_path) as (storage, environ):
        storage.add_folder(fixtures / "bridge_dataset", "bridge_dataset/")
        storage.rules = [Rule("^(POST|PUT|DELETE)", 403, times=1000)]
        done = subprocess.run(
            [sys.executable, "-c", READ, f"gs://{BUCKET}", str(tmp_path / "spare")],
            env=os.environ | environ,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
    assert done.returncode == 0, done.stderr[-3000:]
    files, instruction, poses, images, frames = json.loads(done.stdout.splitlines()[-1])
    first: Any = next(iter(RldsReader(dataset("bridge_dataset"), fixtures).read(0)))
    assert (instruction, poses) == (first.instruction, first.poses.tolist())
    assert images == [len(image) for image in first.images[0]]
    assert frames == 250
    assert all(name.startswith(f"gs://{BUCKET}/bridge_dataset/1.0.0/") for name in files)
    assert (tmp_path / "spare" / "frame_counts.json").exists(), "the bucket is read-only"
    assert "cannot be written" in done.stderr
