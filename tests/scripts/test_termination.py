"""SIGTERM where Python raises it, and where Python drops it."""

from __future__ import annotations

import gc
import signal

import pytest

from scripts.terminal import Termination


def test_raised_where_it_comes() -> None:
    with pytest.raises(SystemExit, match="143"), Termination():
        signal.raise_signal(signal.SIGTERM)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_not_lost_in_the_garbage_collector() -> None:
    seen: list[tuple[int, int]] = []

    def signalled(*_: object) -> None:
        gc.callbacks.remove(signalled)
        signal.raise_signal(signal.SIGTERM)

    with Termination() as termination:
        tell = termination.checked(lambda done, total: seen.append((done, total)))
        tell(1, 2)
        gc.callbacks.append(signalled)
        gc.collect()  # goes on: what the callback raised is printed, and dropped
        with pytest.raises(SystemExit, match="143"):
            tell(2, 2)
    assert seen == [(1, 2)]


def test_handler_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Termination():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before
