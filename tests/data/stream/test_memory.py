"""The formula of host memory against what the pipeline holds, and a soak."""

import json
import subprocess
import sys

import pytest

from data.faults import Faults
from data.stream.batches import KEPT_INSTRUCTIONS, BatchForm, Collator
from data.stream.memory import SourceSize, host_bytes
from data.stream.stream import StreamShape
from tests.data.fakes import tokenize

SIZE = SourceSize(part_samples=50, episode_samples=50, image_bytes=20_000.0, num_views=2)
SHAPE = StreamShape(seed=0, batch_size=64, num_actions=30, shuffle_buffer=10_000, lanes=1)
OPTIONS = {"num_views": 3, "image_size": 224, "text_length": 50}


def test_the_terms_by_hand():
    terms = host_bytes([SIZE], SHAPE, hosts=1, cache_mb=3.0, **OPTIONS)
    sample = 20_000 + 2 * 48 + 4 * 20 * 31
    assert terms["blocks"] == 2 * (10_000 + 50) * sample
    assert terms["batches"] == 5 * 64 * (3 * 224 * 224 * 3 + 200 + 4 * 20 * 31)
    assert terms["cache"] == 3 * 2**20
    assert terms["ids"] == 65_536 * 320


def test_twenty_episodes_decide_where_they_are_more():
    long = SourceSize(1000, 1000, 20_000.0, 2)
    terms = host_bytes([long], SHAPE, hosts=1, **OPTIONS)
    assert terms["blocks"] == 2 * (20 * 1000 + 1000) * (20_000 + 96 + 2480)


def test_lanes_and_hosts_share_the_memory():
    one = host_bytes([SIZE], SHAPE, hosts=1, **OPTIONS)
    lanes = StreamShape(0, 64, 30, 10_000, 8)
    one_host = host_bytes([SIZE], lanes, hosts=1, **OPTIONS)
    eighth = host_bytes([SIZE], lanes, hosts=8, **OPTIONS)
    assert one_host["blocks"] == pytest.approx(8 * eighth["blocks"], abs=8)
    assert one["blocks"] < one_host["blocks"] < 1.05 * one["blocks"], "a part more for each lane"
    assert eighth["batches"] == one["batches"] // 8


def test_instructions_are_not_kept_for_ever():
    collate = Collator(BatchForm(1, 8, tokenize), faults=Faults(0))
    for first in range(0, 3 * KEPT_INSTRUCTIONS, 4096):
        collate.input_ids([f"text {n}" for n in range(first, first + 4096)])
        assert collate.kept_instructions <= KEPT_INSTRUCTIONS
    twice = collate.input_ids(["a", "b", "a"])
    assert twice.tolist() == tokenize(["a", "b", "a"]).tolist()
    collate.close()


SOAK = """
import json, os, re, sys
from data.stream.pipeline import batches
from data.trajectory import Source
from tests.data.fakes import FakeReader, tokenize

def rss():
    return int(re.search(r"VmRSS:\\s+(\\d+)", open("/proc/self/status").read())[1])

readers = [FakeReader((2,) * 60, name="libero_demos", frames=30),
           FakeReader((1,) * 90, name="bridge_dataset", frames=30)]
sources = [Source(reader, 1.0) for reader in readers]
steps, sizes = int(sys.argv[1]), []
with batches(sources, batch_size=8, num_actions=30, num_views=3, image_size=32, tokenize=tokenize,
             seed=0, shuffle_buffer=300, lanes=2) as stream:
    for step in range(steps):
        next(stream)
        if step % (steps // 20) == 0:
            sizes.append(rss())
print(json.dumps(sizes))
"""


@pytest.mark.slow
def test_memory_stays_flat_over_many_epochs():
    run = subprocess.run(
        [sys.executable, "-c", SOAK, "6000"], check=True, capture_output=True, text=True
    )
    sizes = json.loads(run.stdout)
    warm = sizes[4]
    assert max(sizes[5:]) < 1.05 * warm, sizes
