"""One batch ahead on the device, with the position behind the batch that was taken."""

from __future__ import annotations

import threading
import time
from typing import Any

import jax
import numpy as np
import pytest

from tests.xvla_jax import tiny
from xvla_jax.errors import InputError
from xvla_jax.training.loop import DeviceFeed


class _Source:
    """Batch k is filled with k; ``slow_s`` each."""

    def __init__(self, domain: int = 3, slow_s: float = 0.0) -> None:
        self.at = 0
        self.bad_episodes: dict[str, dict[str, int]] = {}
        self.left_out: dict[str, dict[str, int]] = {}
        self.samples = [f"row {i}" for i in range(8)]
        self.asked = threading.Event()
        self._batch = tiny.batch() | {"domain_id": np.full(8, domain, np.int32)}
        self._slow_s = slow_s

    def __next__(self) -> dict[str, np.ndarray]:
        time.sleep(self._slow_s)
        self.at += 1
        if self.at == 2:
            self.asked.set()
        return self._batch | {"proprio": np.full((8, 20), self.at - 1, np.float32)}

    @property
    def position(self) -> dict[str, Any]:
        return {"step": self.at}


def _feed(source: _Source) -> DeviceFeed:
    return DeviceFeed(source, tiny.mesh(1, 1), tiny.CONFIG, present_views=2)


def test_batches_come_in_order_with_the_position_behind_them() -> None:
    with _feed(_Source()) as feed:
        for k in range(4):
            fed = next(feed)
            assert isinstance(fed.batch["proprio"], jax.Array)
            np.testing.assert_array_equal(fed.batch["proprio"], k)
            assert fed.batch["images"].shape[1] == 2
            assert fed.position == {"step": k + 1}
            assert (fed.rows, fed.samples[7]) == (8, "row 7")


def test_the_next_batch_is_placed_while_the_caller_works() -> None:
    source = _Source()
    with _feed(source) as feed:
        next(feed)
        assert source.asked.wait(timeout=30), "nobody asked for batch 1, but it is on its way"


def test_waiting_is_measured() -> None:
    with _feed(_Source(slow_s=0.2)) as feed:
        next(feed)
        next(feed)
        assert feed.waited_s > 0.1


def test_a_batch_that_does_not_fit_the_model_is_an_error_that_stays() -> None:
    with _feed(_Source(domain=30)) as feed:
        for _ in range(2):
            with pytest.raises(InputError, match="domain_id 30"):
                next(feed)
