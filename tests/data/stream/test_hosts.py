"""The same global stream on any number of hosts, and over restarts with another number."""

import json

import numpy as np
import pytest

from data.stream.position import merge_positions
from data.trajectory import Source
from tests.data.fakes import FIELDS, SHAPE, BrokenReader, FakeReader, assert_equal, run


def run_hosts(count, hosts, *, positions=None, **options):
    """The global batches, joined from the hosts' parts, and the position of each host."""
    position = merge_positions(positions) if positions else None
    shares = [
        run(count, host=host, hosts=hosts, position=position, **options) for host in range(hosts)
    ]
    joined = [
        {field: np.concatenate([made[step][field] for made, _ in shares]) for field in FIELDS}
        for step in range(count)
    ]
    return joined, [position for _, position in shares]


@pytest.mark.parametrize("hosts", [1, 2, 4])
@pytest.mark.parametrize("lanes", [1, 2, 4, 8])
def test_the_stream_is_the_same_for_any_number_of_hosts(hosts, lanes):
    options = {"batch_size": 8, "lanes": lanes}
    one_host, _ = run(12, **options)
    joined, _ = run_hosts(12, hosts, **options)
    assert_equal(joined, one_host)


@pytest.mark.parametrize(("before", "after"), [(4, 1), (1, 4), (2, 4), (4, 2)])
@pytest.mark.parametrize("lanes", [1, 4])
def test_a_run_goes_on_with_another_number_of_hosts(before, after, lanes):
    options = {"batch_size": 8, "lanes": lanes}
    one_host, _ = run(30, **options)
    _, positions = run_hosts(17, before, **options)
    saved = json.loads(json.dumps(positions))
    rest, _ = run_hosts(13, after, positions=saved, **options)
    assert_equal(rest, one_host[17:])


def test_a_position_of_some_hosts_only_is_slower_but_no_other():
    options = {"batch_size": 8, "lanes": 4}
    one_host, _ = run(20, **options)
    _, positions = run_hosts(17, 4, **options)
    assert positions[1]["cursors"]["libero_demos"][0] is None
    rest, _ = run(3, position=positions[1], **options)
    assert_equal(rest, one_host[17:])


def test_hosts_at_different_steps_have_no_common_position():
    _, early = run(1, batch_size=8)
    _, late = run(2, batch_size=8)
    with pytest.raises(ValueError, match="hosts stand at steps 1 and 2"):
        merge_positions([early, late])


@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_a_host_reads_the_parts_of_its_lanes_only(hosts):
    read = []
    for host in range(hosts):
        reader = FakeReader((1,) * 64)
        options = {**SHAPE, "batch_size": 8, "lanes": 4, "shuffle_buffer": 4, "prefetch": 1}
        # 16 of 64 episodes in each lane; a block is five of them
        run(8, sources=[Source(reader, 1.0)], host=host, hosts=hosts, **options)
        read.append(set(reader.parts_read))
    assert sum(map(len, read)) == len(set().union(*read)) > 0, "no part is read by two"
    assert all(len(parts) <= 64 // hosts for parts in read)


def test_a_position_is_small_and_does_not_grow_with_the_data():
    few, many = FakeReader((1,) * 4), FakeReader((1,) * 2000)
    sizes = [
        len(json.dumps(run(3, sources=[Source(reader, 1.0)], batch_size=8, lanes=4)[1]))
        for reader in (few, many)
    ]
    assert sizes[1] - sizes[0] < 20
    assert sizes[1] < 600


@pytest.mark.parametrize("hosts", [1, 2])
def test_a_sample_with_a_broken_image_gives_its_place_to_another(hosts):
    options = {
        "sources": [Source(BrokenReader((1,) * 6), 1.0)],
        "shuffle_buffer": 1000,
        "batch_size": 8,
        "max_bad_episodes": 1,
    }
    joined, _ = run_hosts(20, hosts, **options)
    one_host, _ = run(20, **options)
    good, _ = run(20, **{**options, "sources": [Source(FakeReader((1,) * 6), 1.0)]})
    assert_equal(joined, one_host)
    replaced = 0
    for ours, theirs in zip(one_host, good, strict=True):
        for row in range(8):
            part = int(theirs["proprio"][row, 0]) // 1000
            same = np.array_equal(ours["images"][row], theirs["images"][row])
            assert same == (part != 0), "all others keep their places"
            assert ours["images"][row, 0, 0, 0, 1] == int(ours["proprio"][row, 0]) // 1000
            replaced += not same
    assert replaced > 10
