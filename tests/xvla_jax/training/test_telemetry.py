"""Time of a run, on a clock that is set by hand."""

from __future__ import annotations

import pytest

from xvla_jax.training.telemetry import Watch, duration, goodput


class _Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_rates_are_those_since_the_last_reading_without_compilation() -> None:
    clock = _Clock()
    watch = Watch(10, 40, began=90.0, flops=3e12, peak=6e12, clock=clock)
    clock.now += 50  # the first step compiles
    watch.step(waited_s=7.0, samples=8)
    for _ in range(4):
        clock.now += 2
        watch.step(waited_s=0.5, samples=8)
    with watch.waiting("checkpoint"):
        clock.now += 2
    found = watch.read()
    assert found["samples_per_s"] == 32 / 10
    assert found["step_s"] == 8 / 4, "saving is not part of a step"
    assert found["data_wait_share"] == 0.2
    assert found["checkpoint_wait_share"] == 0.2
    assert found["validation_wait_share"] == 0.0
    assert found["tflops_per_s"] == pytest.approx(3 * 4 / 10)
    assert found["mfu"] == pytest.approx(12 / 10 / 6)
    assert found["session_s_total"] == 70
    assert found["useful_s_total"] == 6
    assert found["goodput"] == 6 / 70
    assert found["session_start"] == 10

    clock.now += 5
    watch.step(waited_s=0.0, samples=8)
    later = watch.read()
    assert later["samples_per_s"] == 8 / 5
    assert later["data_wait_share"] == 0.0
    assert later["useful_s_total"] == 11
    line = watch.line(16, later | {"loss": 1.5, "grad_norm": 2.0})
    assert line == (
        "step 16/40  loss 1.5  grad_norm 2  1.6 samples/s  data wait 0%  ETA 2 min 00 s"
    )


def test_the_first_step_has_no_rate() -> None:
    clock = _Clock()
    watch = Watch(0, 2, began=100.0, clock=clock)
    watch.step(waited_s=1.0, samples=8)
    found = watch.read()
    assert "step_s" not in found
    assert "mfu" not in found
    assert watch.line(1, found | {"grad_norm": 1.0}) == "step 1/2  grad_norm 1"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.6, "1 min 00 s"), (125, "2 min 05 s"), (3600 * 30 + 61, "30 h 01 min")],
)
def test_durations_are_written_for_people(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def _line(session: float, start: int, step: int, total: float, useful: float) -> dict[str, float]:
    return {
        "session": session,
        "session_start": start,
        "step": step,
        "session_s_total": total,
        "useful_s_total": useful,
    }


def test_goodput_leaves_out_what_was_done_again() -> None:
    """Killed at step 60, gone on from 40."""
    lines = [_line(1.0, 0, 20, 40, 20), _line(1.0, 0, 40, 60, 38), _line(1.0, 0, 60, 80, 55)]
    lines += [_line(2.0, 40, 60, 50, 20), _line(2.0, 40, 80, 70, 40)]
    found = goodput(lines)
    assert found == {
        "seconds": 150,
        "useful_s": 38 + 40,
        "goodput": 78 / 150,
        "sessions": 2,
        "steps_repeated": 20,
    }
    assert goodput([{"step": 1}])["goodput"] == 0.0, "a log of an older version"
