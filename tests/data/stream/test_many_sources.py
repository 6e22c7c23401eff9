"""A mixture of thirty sources: resume, other numbers of hosts, and a shared shuffle buffer."""

import dataclasses
import json

import numpy as np
import pytest

from data.stream.memory import SourceSize, host_bytes
from data.stream.position import merge_positions
from data.stream.stream import StreamShape
from data.trajectory import Source
from tests.data.fakes import FIELDS, FakeReader, assert_equal, run

COUNT = 30
OPTIONS = {"batch_size": 24, "lanes": 4, "shuffle_buffer": 300, "shuffle_per": "mixture"}


def thirty():
    """Sources of one to five files, of other lengths and weights."""
    sources = []
    for number in range(COUNT):
        reader = FakeReader((1 + number % 3,) * (1 + number % 5), frames=5 + number % 7)
        reader.spec = dataclasses.replace(reader.spec, name=f"set_{number:02d}")
        sources.append(Source(reader, weight=1.0 + number % 4))
    return sources


@pytest.fixture(scope="module")
def uninterrupted():
    return run(24, sources=thirty(), **OPTIONS)[0]


def run_hosts(count, hosts, positions=()):
    """Global batches from `hosts` hosts, and the position of each as JSON gives it back."""
    position = merge_positions(positions) if positions else None
    shares = [
        run(count, sources=thirty(), host=host, hosts=hosts, position=position, **OPTIONS)
        for host in range(hosts)
    ]
    joined = [
        {field: np.concatenate([made[step][field] for made, _ in shares]) for field in FIELDS}
        for step in range(count)
    ]
    return joined, json.loads(json.dumps([position for _, position in shares]))


@pytest.mark.parametrize(("before", "after"), [(1, 1), (2, 4), (4, 1)])
def test_a_run_resumes_bit_for_bit_on_another_number_of_hosts(before, after, uninterrupted):
    first, positions = run_hosts(15, before)
    rest, _ = run_hosts(9, after, positions)
    assert_equal(first + rest, uninterrupted)


def test_sources_share_the_buffer_by_weight_and_each_has_its_own_without():
    shape = StreamShape(0, 24, 30, 300, 4, "mixture")
    assert [shape.of_source(share).shuffle_buffer for share in (1.0, 0.5, 0.001)] == [300, 150, 1]
    assert dataclasses.replace(shape, shuffle_per="source").of_source(0.5).shuffle_buffer == 300
    with pytest.raises(ValueError, match=r"shuffle_per is 'set'; allowed are source, mixture"):
        dataclasses.replace(shape, shuffle_per="set")


def test_a_shared_buffer_does_not_grow_with_the_number_of_sources():
    shape = StreamShape(0, 1024, 30, 100_000, 16, "mixture")

    def blocks(count, shape):
        size = SourceSize(100, 50, 20_000.0, 2, share=1 / count)
        options = {"num_views": 3, "image_size": 224, "text_length": 50}
        return host_bytes([size] * count, shape, hosts=16, **options)["blocks"]

    assert blocks(30, shape) < 1.5 * blocks(1, shape)
    assert blocks(30, dataclasses.replace(shape, shuffle_per="source")) > 25 * blocks(1, shape)


def test_the_position_of_a_stream_with_a_buffer_for_each_source_is_that_of_0_2_0():
    _, position = run(1, sources=thirty()[:1], batch_size=4)
    assert "shuffle_per" not in position["stream"]
    _, shared = run(1, sources=thirty()[:1], batch_size=4, shuffle_per="mixture")
    with pytest.raises(ValueError, match="shuffle_per: mixture saved, source now"):
        run(1, sources=thirty()[:1], batch_size=4, position=shared)
    with pytest.raises(ValueError, match="shuffle_per: source saved, mixture now"):
        run(1, sources=thirty()[:1], batch_size=4, position=position, shuffle_per="mixture")


def test_an_even_deal_is_a_stream_of_its_own():
    _, position = run(1, sources=thirty(), batch_size=24)
    assert "deal" not in position["stream"], "as in the checkpoints of 0.4"
    first, even = run(3, sources=thirty(), batch_size=24, deal="even")
    again, _ = run(2, sources=thirty(), batch_size=24, deal="even", position=even)
    assert_equal(first + again, run(5, sources=thirty(), batch_size=24, deal="even")[0])
    with pytest.raises(ValueError, match="deal: independent saved, even now"):
        run(1, sources=thirty(), batch_size=24, position=position, deal="even")
    with pytest.raises(ValueError, match=r"config.data.deal is 'odd'; allowed are independent, ev"):
        run(1, sources=thirty(), batch_size=24, deal="odd")


def test_a_refused_position_names_the_sources_that_differ_alone():
    _, position = run(1, sources=thirty(), **OPTIONS)
    others = thirty()
    others[7] = dataclasses.replace(others[7], weight=9.0)
    with pytest.raises(ValueError, match="another stream") as refused:
        run(1, sources=others, position=position, **OPTIONS)
    assert "'set_07'" in str(refused.value)
    assert "'set_08'" not in str(refused.value)
