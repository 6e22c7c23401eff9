"""Hosts whose workdir is in a bucket gather there, and keep their attempts there."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

from scripts.restarts import journal, run_files
from scripts.restarts.gathering import Gathering, Plan
from tests.fake_gcs import FakeStorage
from tests.scripts.runs import free_port
from xvla_jax import buckets

RUN = buckets.place_of("gs://lab/runs/one")


def test_the_newest_step_is_a_complete_one(lab: FakeStorage) -> None:
    assert run_files.newest_step(RUN) == 0
    for step in (2, 10, 12):
        lab.put(f"runs/one/checkpoints/{step}/params/x", b"x", {})
    for step in (2, 10):
        lab.put(f"runs/one/checkpoints/{step}/commit_success.txt", b"", {})
    assert run_files.newest_step(RUN) == 10
    lab.put("runs/one/metrics.jsonl", b'{"step": 12}\n{"st', {})
    assert run_files.metrics(RUN) == [{"step": 12}]


def test_attempts_are_kept(lab: FakeStorage) -> None:
    for number in (1, 2):
        environ = {journal.TOKEN: f"a.{number}"}
        journal.begin(RUN, processes=4, devices=2, environ=environ)
        journal.finish(RUN, f"a.{number}", ended=9.0, status=number)
    assert [attempt.status for attempt in journal.attempts(RUN)] == [1, 2]


def test_hosts_agree(lab: FakeStorage) -> None:
    address, together = f"127.0.0.1:{free_port()}", threading.Barrier(2)

    def host(index: int) -> Plan | None:
        options = {"timeout_s": 30.0, "rejoin_s": 2.0, "beat_s": 0.1}
        with Gathering(RUN, index=index, count=2, address=address, **options) as hosts:
            plan = hosts.gather(lambda most: most, lambda: False)
            together.wait()
            hosts.complete()
            return plan

    with ThreadPoolExecutor(2) as pool:
        assert set(pool.map(host, range(2))) == {Plan(1, (0, 1), address)}
