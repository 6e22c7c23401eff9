"""Steps that are traced, and the content of a trace."""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from xvla_jax.compilation.profiling import DATA_WAIT, STEP, StepProfile, data_wait, steps_of
from xvla_jax.errors import ConfigError


def test_steps_are_read_from_the_config() -> None:
    assert list(steps_of("10:13", 50)) == [10, 11, 12]
    assert list(steps_of("50:51", 50)) == [50]
    assert not steps_of("", 50)


@pytest.mark.parametrize("text", ["10", "a:b", "0:3", "7:7", "9:7", "50:52", "-1:2", "1:2:3", ":"])
def test_other_steps_are_refused(text: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        steps_of(text, 50)
    assert str(refusal.value) == (
        f"config.profile is {text!r}; START:STOP is expected, the steps from START up to but "
        "without STOP, with 1 <= START < STOP <= 51, such as 10:13 (config.optimizer.iters is 50)"
    )


def _run(profile: StepProfile, *, first: int, last: int) -> None:
    double = jax.jit(lambda x: 2 * x)
    with contextlib.closing(profile):
        for number in range(first, last + 1):
            with profile.step(number):
                with data_wait():
                    x = jnp.ones(8)
                y = double(x)
            profile.end(number, y)


def traced(folder: Path) -> dict[str, list[int]]:
    """Numbers of the traced steps and waits for data, of all traces in a folder of TensorBoard."""
    names: dict[str, list[int]] = {STEP: [], DATA_WAIT: []}
    for path in folder.glob("plugins/profile/*/*.xplane.pb"):
        for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
            for event in (event for line in plane.lines for event in line.events):
                if event.name in names:
                    names[event.name].append(int(dict(event.stats).get("step_num", 0)))
    return {name: sorted(numbers) for name, numbers in names.items()}


def test_a_trace_holds_the_steps_that_were_asked_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        _run(StepProfile(range(3, 5), tmp_path), first=1, last=6)
    assert traced(tmp_path) == {STEP: [3, 4], DATA_WAIT: [0, 0]}
    assert f"the trace of steps 3 to 4 is in {tmp_path}" in caplog.text


def test_a_resumed_run_traces_the_rest(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        _run(StepProfile(range(3, 5), tmp_path / "late", done=4), first=5, last=6)
    assert not (tmp_path / "late").exists()
    assert "config.profile is 3:5, and step 4 is done: nothing is traced" in caplog.text
    # it ends within the asked steps: what was traced is written
    _run(StepProfile(range(3, 7), tmp_path / "rest", done=3), first=4, last=5)
    assert traced(tmp_path / "rest")[STEP] == [4, 5]


def test_a_trace_that_cannot_be_written_ends_no_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "plugins").write_text("in the way")
    _run(StepProfile(range(2, 4), tmp_path), first=1, last=5)
    _run(StepProfile(range(2, 9), tmp_path), first=1, last=3)  # JAX has not ended the one before
    (tmp_path / "plugins").unlink()
    jax.profiler.stop_trace()
    first, second = caplog.messages
    assert first.startswith(f"the trace of steps 2 to 3 is not written into {tmp_path}: ")
    assert "not a directory" in first
    assert second.startswith(f"the trace of steps 2 to 8 is not written into {tmp_path}: ")
    assert "already been started" in second
