"""Hosts with networks of their own agree on an attempt, whatever happens to the network."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from benchmarks.cuts.network import Network
from scripts.restarts import gathering
from scripts.restarts.gathering import Gathering, Plan

pytestmark = pytest.mark.slow  # a few seconds; needs root

_REJOIN_S = 1.0
_PORT = 8476


class Hosts:
    """Four hosts of a run, each a thread in a network of its own."""

    def __init__(self, network: Network, workdir: Path) -> None:
        self.network, self.workdir = network, workdir
        self.pools = [
            ThreadPoolExecutor(1, initializer=network.enter, initargs=(index,))
            for index in range(4)
        ]
        self.open: dict[int, Gathering] = {}

    def start(self, index: int) -> None:
        def enter() -> Gathering:
            return Gathering(
                self.workdir,
                index=index,
                count=4,
                address=f"{self.network.address(0)}:{_PORT}",
                timeout_s=60.0,
                rejoin_s=_REJOIN_S,
                beat_s=0.05,
            ).__enter__()

        self.open[index] = self.pools[index].submit(enter).result()

    def gather(self, *indices: int) -> dict[int, Future[Plan | None]]:
        fits: Callable[[int], int] = lambda most: {3: 2}.get(most, most)  # noqa: E731 # 8 samples
        return {i: self.pools[i].submit(self.open[i].gather, fits, lambda: False) for i in indices}

    def close(self) -> None:
        for host in self.open.values():
            host.__exit__(None, None, None)
        for pool in self.pools:
            pool.shutdown()


@pytest.fixture
def hosts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hosts]:
    missing = Network.missing()
    if missing:
        pytest.skip(f"no hosts can be made here: {missing}")
    monkeypatch.setattr(gathering, "_REACH_S", 1.0)
    with Network(4, tmp_path) as network:
        made = Hosts(network, tmp_path / "run")
        for index in range(4):
            made.start(index)
        yield made
        made.close()


def _plans(waiting: dict[int, Future[Plan | None]], *indices: int) -> set[Plan | None]:
    return {waiting[index].result(timeout=60) for index in indices}


def test_a_run_goes_on_without_the_host_that_is_cut_off_and_takes_it_back(hosts: Hosts) -> None:
    address = f"{hosts.network.address(0)}:{_PORT}"
    assert _plans(hosts.gather(0, 1, 2, 3), 0, 1, 2, 3) == {Plan(1, (0, 1, 2, 3), address)}
    hosts.network.cut(3)
    waiting = hosts.gather(0, 1, 2, 3)
    assert _plans(waiting, 0, 1) == {Plan(2, (0, 1), address)}, "8 samples: host 2 is spare"
    time.sleep(0.5)
    assert not waiting[2].done()
    assert not waiting[3].done()
    hosts.network.mend(3)
    again = hosts.gather(0, 1)
    assert _plans(waiting | again, 0, 1, 2, 3) == {Plan(3, (0, 1, 2, 3), address)}


def test_a_cut_off_coordinator_leaves_the_lead_to_the_next(hosts: Hosts) -> None:
    _plans(hosts.gather(0, 1, 2, 3), 0, 1, 2, 3)
    hosts.network.cut(0)
    waiting = hosts.gather(0, 1, 2, 3)
    plan = Plan(2, (1, 2), f"{hosts.network.address(1)}:{_PORT}")
    assert _plans(waiting, 1, 2) == {plan}
    assert not waiting[0].done(), "and does not train alone"
    for index in (1, 2):
        hosts.open[index].complete()
    assert _plans(waiting, 0, 3) == {None}


def test_a_divided_network_trains_on_one_side(hosts: Hosts) -> None:
    _plans(hosts.gather(0, 1, 2, 3), 0, 1, 2, 3)
    hosts.network.divide({0, 1}, {2, 3})
    waiting = hosts.gather(0, 1, 2, 3)
    assert _plans(waiting, 0, 1) == {Plan(2, (0, 1), f"{hosts.network.address(0)}:{_PORT}")}
    time.sleep(2 * _REJOIN_S)
    assert not waiting[2].done()
    assert not waiting[3].done()
    for index in (0, 1):
        hosts.open[index].complete()
    assert _plans(waiting, 2, 3) == {None}


def test_a_slow_host_takes_part(hosts: Hosts, monkeypatch: pytest.MonkeyPatch) -> None:
    hosts.network.slow(2, loss=0.2, delay_s=0.05)
    monkeypatch.setattr(gathering, "_REACH_S", 10.0)  # as in a run
    assert {p and p.members for p in _plans(hosts.gather(0, 1, 2, 3), 0, 1, 2, 3)} == {(0, 1, 2, 3)}
