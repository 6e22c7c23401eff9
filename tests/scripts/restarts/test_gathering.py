"""Hosts agree on the next attempt; here they are threads that share a folder."""

from __future__ import annotations

import dataclasses
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from scripts.restarts import gathering
from scripts.restarts.gathering import CUT_OFF, LEFT, Gathering, Host, Plan
from scripts.restarts.journal import FOLDER
from tests.scripts.runs import free_port
from xvla_jax.errors import DistributedError

_REJOIN_S = 0.5


def _all(most: int) -> int:
    return most


def _never() -> bool:
    return False


class Hosts:
    """Up to four hosts of a run."""

    def __init__(self, workdir: Path, count: int) -> None:
        self.port = free_port()
        self._workdir, self._count = workdir, count
        self._pool = ThreadPoolExecutor(2 * count)
        self.open: dict[int, Gathering] = {}

    def start(self, index: int, timeout_s: float = 20.0) -> Gathering:
        host = Gathering(
            self._workdir,
            index=index,
            count=self._count,
            address=f"127.0.0.1:{self.port}",
            timeout_s=timeout_s,
            rejoin_s=_REJOIN_S,
            beat_s=0.02,
        )
        self.open[index] = host.__enter__()
        return host

    def end(self, index: int) -> None:
        """The host ends in order."""
        self.open.pop(index).__exit__(None, None, None)

    def lose(self, index: int) -> None:
        """The host shows no life any more, as if its power was cut."""
        host = self.open.pop(index)
        host._ended.set()
        host._thread.join()
        host._close()

    def gather(
        self, *indices: int, fits: Callable[[int], int] = _all
    ) -> dict[int, Future[Plan | None]]:
        return {i: self._pool.submit(self.open[i].gather, fits, _never) for i in indices}

    def close(self) -> None:
        for index in list(self.open):
            self.end(index)
        self._pool.shutdown()


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    made = Hosts(tmp_path, 4)
    yield made
    made.close()


def _first(hosts: Hosts) -> Plan:
    for index in range(4):
        hosts.start(index)
    plans = {future.result() for future in hosts.gather(0, 1, 2, 3).values()}
    plan = Plan(1, (0, 1, 2, 3), f"127.0.0.1:{hosts.port}")
    assert plans == {plan}, "all have the same plan"
    return plan


def test_all_come_to_the_first_attempt_and_to_the_next(hosts: Hosts) -> None:
    plan = _first(hosts)
    assert [host.lost(plan) for host in hosts.open.values()] == [[], [], [], []]
    plans = [future.result() for future in hosts.gather(0, 1, 2, 3).values()]
    assert [p and (p.attempt, p.members) for p in plans] == [(2, (0, 1, 2, 3))] * 4


def test_the_first_attempt_does_not_begin_without_a_host(hosts: Hosts) -> None:
    hosts.start(0, timeout_s=1.0)
    hosts.start(1, timeout_s=1.0)
    for index, future in hosts.gather(0, 1).items():
        message = rf"host {index} waited 1 s .*hosts: 0 waiting, 1 waiting, 2 silent, 3 silent"
        with pytest.raises(DistributedError, match=message):
            future.result()


def test_those_that_are_left_go_on_without_a_lost_host_and_without_the_first(hosts: Hosts) -> None:
    plan = _first(hosts)
    hosts.lose(0)
    deadline = time.monotonic() + 10
    while hosts.open[1].lost(plan) != [0]:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    plans = {future.result() for future in hosts.gather(1, 2, 3).values()}
    assert plans == {Plan(2, (1, 2, 3), f"127.0.0.1:{hosts.port}")}


def test_a_host_that_left_is_not_waited_for(hosts: Hosts) -> None:
    plan = _first(hosts)
    began = time.monotonic()
    hosts.end(3)
    time.sleep(0.1)
    assert hosts.open[0].lost(plan) == [3]
    plans = {future.result() for future in hosts.gather(0, 1, 2).values()}
    assert {p.members for p in plans if p} == {(0, 1, 2)}
    assert time.monotonic() - began < _REJOIN_S + 1


def test_where_the_batch_does_not_allow_all_a_spare_waits_and_steps_in(hosts: Hosts) -> None:
    _first(hosts)
    hosts.end(3)
    waiting = hosts.gather(0, 1, 2, fits=lambda most: {3: 2}.get(most, most))
    plans = [waiting[i].result() for i in (0, 1)]
    assert {p.members for p in plans if p} == {(0, 1)}
    time.sleep(0.2)
    assert not waiting[2].done(), "host 2 is spare"
    hosts.end(0)
    again = hosts.gather(1)
    assert waiting[2].result() == again[1].result()
    assert again[1].result() == Plan(3, (1, 2), f"127.0.0.1:{hosts.port}")


def test_a_spare_ends_with_the_run(hosts: Hosts) -> None:
    _first(hosts)
    hosts.end(3)
    waiting = hosts.gather(0, 1, 2, fits=lambda most: {3: 2}.get(most, most))
    for index in (0, 1):
        waiting[index].result()
        hosts.open[index].complete()
    assert waiting[2].result() is None


def test_a_host_that_comes_back_takes_part_again(hosts: Hosts) -> None:
    _first(hosts)
    hosts.lose(2)
    hosts.start(2)
    plans = {future.result() for future in hosts.gather(0, 1, 2, 3).values()}
    assert {p.members for p in plans if p} == {(0, 1, 2, 3)}


def test_a_host_that_reaches_nobody_does_not_lead(
    hosts: Hosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    _first(hosts)
    connect = gathering.Gathering._reached

    def cut(host: Gathering, others: dict[int, Host]) -> list[int]:
        return [] if host._index == 0 else connect(host, others)

    monkeypatch.setattr(gathering.Gathering, "_reached", cut)
    waiting = hosts.gather(0, 1, 2, 3)
    plans = {waiting[i].result() for i in (1, 2, 3)}
    assert plans == {Plan(2, (1, 2, 3), f"127.0.0.1:{hosts.port}")}
    assert not waiting[0].done()
    stored = json.loads((hosts.open[0]._folder / "host_0.json").read_text())
    assert stored["state"] == CUT_OFF
    for index in (1, 2, 3):
        hosts.open[index].complete()
    assert waiting[0].result() is None


def test_of_two_that_lead_at_once_one_does(hosts: Hosts, monkeypatch: pytest.MonkeyPatch) -> None:
    """Host 0 is cut off, and connected again while host 1, in its place, connects to the others."""
    _first(hosts)
    connect = gathering.Gathering._reached
    probing, connected = threading.Event(), threading.Event()

    def slow(host: Gathering, others: dict[int, Host]) -> list[int]:
        if host._index == 0 and not connected.is_set():
            return []
        if host._index == 1:
            probing.set()
            time.sleep(0.5)  # longer than host 0 takes to try again
        return connect(host, others)

    monkeypatch.setattr(gathering, "_AGAIN_S", 0.05)
    monkeypatch.setattr(gathering.Gathering, "_reached", slow)
    waiting = hosts.gather(0, 1, 2, 3)
    assert probing.wait(10)
    connected.set()
    plan = waiting[1].result()
    assert plan == Plan(2, (1, 2, 3), f"127.0.0.1:{hosts.port}")
    assert {waiting[i].result() for i in (2, 3)} == {plan}
    time.sleep(0.3)
    assert not waiting[0].done(), "host 0 is spare"
    for index in (1, 2, 3):
        hosts.open[index].complete()
    assert waiting[0].result() is None


def test_where_no_number_fits_the_wait_ends_and_says_so(hosts: Hosts) -> None:
    _first(hosts)
    hosts.end(3)
    for host in hosts.open.values():
        host._timeout_s = 1.0
    waiting = hosts.gather(0, 1, 2, fits=lambda most: 4 if most == 4 else 0)
    with pytest.raises(DistributedError, match="no 3 or fewer of 4 hosts can share the batch"):
        waiting[0].result()


def test_what_an_earlier_run_left_is_no_life(hosts: Hosts) -> None:
    folder = hosts._workdir / FOLDER
    folder.mkdir()
    for index in range(4):
        old = Host(index, "old", "127.0.0.1", 1, gathering.DONE, 7, (0, 1, 2, 3), "127.0.0.1:1", 9)
        (folder / f"host_{index}.json").write_text(json.dumps(dataclasses.asdict(old)))
    _first(hosts)


def test_a_torn_or_foreign_file_is_not_followed(hosts: Hosts) -> None:
    _first(hosts)
    hosts.end(3)
    (hosts.open[0]._folder / "host_3.json").write_text('{"index": 3, "state": "running"')
    plans = {future.result() for future in hosts.gather(0, 1, 2).values()}
    assert {p.members for p in plans if p} == {(0, 1, 2)}


def test_a_signal_ends_the_wait_and_the_file_says_left(hosts: Hosts) -> None:
    host = hosts.start(0)
    assert host.gather(_all, lambda: True) is None
    hosts.end(0)
    stored = json.loads((hosts._workdir / FOLDER / "host_0.json").read_text())
    assert stored["state"] == LEFT
