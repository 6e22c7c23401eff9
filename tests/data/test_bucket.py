"""RLDS is read from gs://, and built there, by TensorFlow's own client."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from typing import Any

import pytest

from data.readers.rlds import RldsReader
from data.rows.table import dataset
from tests.data.builds import built
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


BUILD = """
import dataclasses, sys
from data.rows.table import dataset
from data.writing.storage import folder_at
from tests.data.builds import build, request_of
row = dataclasses.replace(dataset("bridge_dataset"), index_margin=2)
request = request_of(row, sys.argv[1], "unused", shard_mb=0.3)
build(dataclasses.replace(request, out=folder_at(sys.argv[2])), lambda done, total, good: None)
"""


def test_a_set_is_built_in_a_bucket_with_the_bytes_of_a_disk(fixtures, tmp_path):
    """One request of each kind fails first; a run killed before its manifest continues."""
    arguments = [sys.executable, "-c", BUILD, str(fixtures), f"gs://{BUCKET}/sets"]
    with fake_gcs(tmp_path) as (storage, environ):
        storage.rules = [Rule("POST .*manifest.json", "hold", times=100)]
        killed = subprocess.Popen(arguments, env=os.environ | environ)
        storage.wait_for_fault(killed)
        killed.kill()
        killed.wait()
        shards = {n: o.generation for n, o in storage.objects.items() if "tfrecord" in n}
        assert shards
        storage.rules = [Rule("^POST", 503), Rule("^PUT", "cut"), Rule("^GET", 503)]
        subprocess.run(arguments, env=os.environ | environ, check=True, timeout=300)
        assert not any(rule.times for rule in storage.rules)
        versions = {name: storage.objects[name].generation for name in shards}
        head = "sets/bridge_dataset/1.0.0/"
        made = {n.removeprefix(head): o.content for n, o in storage.objects.items()}
    assert versions == shards, "finished shards are kept"
    row = dataclasses.replace(dataset("bridge_dataset"), index_margin=2)
    local = built(row, fixtures, tmp_path / "local", shard_mb=0.3).folder
    names = {path.name for path in local.iterdir()}
    assert names == {name for name in made if not name.startswith("sets/")}
    for name in names - {"manifest.json"}:  # which says when it was made
        assert made[name] == (local / name).read_bytes()


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
