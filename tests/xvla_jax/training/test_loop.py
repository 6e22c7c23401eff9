"""The loop with a stand-in for the train step, and the feed that places its batches."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.xvla_jax import tiny
from xvla_jax.checkpoints.run_folder import CHECKPOINTS
from xvla_jax.errors import ConfigError, InputError, TrainingError
from xvla_jax.training.checkpointer import Checkpointer, LowestError, RunItems
from xvla_jax.training.loop import (
    SKIPPED_NAME,
    Companion,
    DeviceFeed,
    Placement,
    Reports,
    Saving,
    Schedule,
    SkipWatch,
    _scalars,
    run_loop,
)
from xvla_jax.training.signals import StopSignal
from xvla_jax.training.state import TrainState
from xvla_jax.training.telemetry import JsonLines, MetricsWriter, TensorBoard, Watch, read_metrics
from xvla_jax.training.validation import Validation


class _Source:
    """Batch k of the stream is filled with k; the position is the number of batches given."""

    def __init__(self, at: int = 0, domain: int = 3, slow_s: float = 0.0) -> None:
        self.at = at
        self.samples = [f"row {i}" for i in range(8)]
        self.bad_episodes: dict[str, dict[str, int]] = {}
        self.left_out: dict[str, dict[str, int]] = {}
        self.second_asked = threading.Event()
        self._batch = tiny.batch() | {"domain_id": np.full(8, domain, np.int32)}
        self._slow_s = slow_s

    def __next__(self) -> dict[str, np.ndarray]:
        time.sleep(self._slow_s)
        self.at += 1
        if self.at == 2:
            self.second_asked.set()
        return self._batch | {"proprio": np.full((8, 20), self.at - 1, np.float32)}

    @property
    def position(self) -> dict[str, Any]:
        return {"step": self.at}


_PLACEMENT = Placement(tiny.mesh(1, 1), tiny.CONFIG, present_views=2)


def _state(step: int = 0) -> TrainState:
    return TrainState(
        jnp.int32(step), {"w": jnp.float32(step)}, {"m": jnp.zeros(2)}, {}, jnp.int32(0)
    )


def _train_step(
    state: TrainState, batch: Mapping[str, jax.Array]
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Loss: the number of the batch. The parameter counts steps."""
    assert batch["images"].shape[1] == 2, "slots that no sample fills are left out"
    assert batch["view_mask"].shape[1] == 3
    loss = batch["proprio"][0, 0]
    params = {"w": state.params["w"] + 1}
    metrics = {"loss": loss, "grad_norm": loss, "finite": jnp.bool_(True)}
    return state.replace(step=state.step + 1, params=params), metrics


def _run(
    workdir: Path,
    *,
    iters: int,
    state: TrainState | None = None,
    train_step: Callable[..., Any] = _train_step,
    source: _Source | None = None,
    log_every: int = 2,
    max_skipped_steps: int = 0,
    validation: Validation | None = None,
    lowest: LowestError | None = None,
    companion: Companion | None = None,
    keep: int = 10,
) -> TrainState:
    workdir.mkdir(exist_ok=True)
    kept_too = [lowest] if lowest else []
    checkpointer = Checkpointer(workdir, keep=keep, save_interval=6, kept_too=kept_too)
    with MetricsWriter(JsonLines(workdir), TensorBoard(workdir)) as writer, StopSignal() as stop:
        try:
            return run_loop(
                state or _state(),
                train_step,
                source or _Source(),
                schedule=Schedule(iters, log_every),
                placement=_PLACEMENT,
                saving=Saving(
                    checkpointer, RunItems({}, {}, {}), dict, lowest, companion or Companion()
                ),
                reports=Reports(
                    writer,
                    Watch(0, iters, began=0.0, clock=lambda: 0.0),
                    SkipWatch(workdir, limit=max_skipped_steps),
                ),
                stop=stop,
                validation=validation,
            )
        finally:
            checkpointer.close()


def _saved(workdir: Path) -> list[int]:
    return sorted(int(p.name) for p in (workdir / CHECKPOINTS).iterdir())


def test_checkpoints_and_metrics_come_when_due(tmp_path: Path) -> None:
    state = _run(tmp_path, iters=7)
    assert (int(state.step), float(state.params["w"])) == (7, 7.0)
    # Orbax keeps the first step that it is offered, then every third, and the last is forced
    assert {3, 6, 7} <= set(_saved(tmp_path))
    lines = read_metrics(tmp_path)
    assert [(line["step"], line["loss"]) for line in lines] == [(2, 1), (4, 3), (6, 5), (7, 6)]
    assert {"loss", "grad_norm", "finite", "samples_per_s", "goodput", "skipped_steps"} < set(
        lines[0]
    )
    assert list((tmp_path / "tensorboard").glob("events.*"))


def test_losses_of_domains_have_their_names() -> None:
    metrics = {
        "loss": jnp.float32(1.0),
        "domain_loss": jnp.array([0.0, 2.0, 3.0]),
        "domain_samples": jnp.array([0.0, 1.0, 4.0]),
    }
    assert _scalars(metrics, {0: "a", 2: "libero"}) == {
        "loss": 1.0, "loss/domain_1": 2.0, "loss/libero": 3.0
    }  # fmt: skip


def test_bad_episodes_and_what_rows_leave_out_are_metrics_of_their_own(tmp_path: Path) -> None:
    source = _Source()
    source.bad_episodes = {"a": {"clock": 2}}
    source.left_out = {"b": {"empty_text": 40, "frames_without_text": 7}}
    _run(tmp_path, iters=2, source=source)
    line = read_metrics(tmp_path)[-1]
    counts = {name: value for name, value in line.items() if "/" in name and "domain" not in name}
    assert counts == {
        "bad_episodes/a/clock": 2,
        "left_out/b/empty_text": 40,
        "left_out/b/frames_without_text": 7,
    }


def test_overflows_are_counted_in_all_steps_not_in_the_logged_ones(tmp_path: Path) -> None:
    def step(state: TrainState, batch: Any) -> Any:
        state, metrics = _train_step(state, batch)
        return state, metrics | {"packed_overflow": jnp.float32(int(state.step) in (1, 2, 5))}

    _run(tmp_path, iters=8, train_step=step, log_every=4)
    lines = {line["step"]: line["packed_overflow"] for line in read_metrics(tmp_path)}
    assert lines == {4: 0.5, 8: 0.25}


def test_a_checkpoint_holds_the_place_in_the_data(tmp_path: Path) -> None:
    _run(tmp_path, iters=7)
    checkpointer = Checkpointer(tmp_path, keep=10, save_interval=6)
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one), _state()
    )
    for step in (3, 6, 7):
        state, position = checkpointer.restore(abstract, step=step)
        assert float(state.params["w"]) == step
        assert position == {"step": step}, "batches made, not those fetched ahead"
    checkpointer.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_ends_the_run(tmp_path: Path, number: signal.Signals) -> None:
    def interrupted(state: TrainState, batch: Any) -> Any:
        if int(state.step) == 4:
            os.kill(os.getpid(), number)
        return _train_step(state, batch)

    before = signal.getsignal(number)
    state = _run(tmp_path, iters=100, train_step=interrupted)
    assert int(state.step) == 5
    assert _saved(tmp_path)[-1] == 5
    assert signal.getsignal(number) is before, "the old handler is back"


def test_a_second_signal_does_not_wait() -> None:
    with StopSignal() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.number == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def _diverging(state: TrainState, batch: Any) -> Any:
    """Steps 4 and 6 are not finite."""
    state, metrics = _train_step(state, batch)
    bad = (state.step == 4) | (state.step == 6)
    return state, metrics | {"loss": jnp.where(bad, jnp.nan, 1.0), "finite": ~bad}


def test_skipped_steps_are_written_with_their_samples(tmp_path: Path) -> None:
    state = _run(tmp_path, iters=20, train_step=_diverging, max_skipped_steps=2)
    assert int(state.step) == 20
    records = [json.loads(line) for line in (tmp_path / SKIPPED_NAME).read_text().splitlines()]
    assert [(r["step"], r["loss"], r["grad_norm"]) for r in records] == [
        (4, "nan", 3),
        (6, "nan", 5),
    ]
    assert records[0]["samples"] == [f"row {i}" for i in range(8)]
    assert read_metrics(tmp_path)[-1]["skipped_steps"] == 2


def test_one_skipped_step_more_than_allowed_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(
        TrainingError, match=r"2 steps .* 1 are allowed .*; the last is step 6, with loss nan"
    ):
        _run(tmp_path, iters=100, train_step=_diverging, max_skipped_steps=1)
    assert _saved(tmp_path), "what was reached is kept"
    with pytest.raises(ConfigError, match="max_skipped_steps is -1"):
        SkipWatch(tmp_path, limit=-1)


def test_a_step_skipped_at_the_very_end_is_seen(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="the last is step 4"):
        _run(tmp_path, iters=4, train_step=_diverging)
    assert _saved(tmp_path)[-1] == 4


def _validation(eval_step: Callable[..., Any]) -> Validation:
    held = {"actions": np.full(8, 2.0, np.float32), "images": np.zeros((8, 1), np.float32)}
    return Validation(
        eval_step=eval_step,
        params_of=lambda state: state.params,
        sources={"a": lambda: iter([held])},
        batch_size=8,
        every=3,
        present_views=1,
        seed=0,
    )


def test_held_out_samples_are_measured_when_due(tmp_path: Path) -> None:
    validation = _validation(lambda params, batch, _: {"l1": params["w"] * batch["actions"]})
    _run(tmp_path, iters=7, log_every=5, validation=validation)
    l1 = {line["step"]: line.get("val_l1/a") for line in read_metrics(tmp_path)}
    assert l1 == {3: 6.0, 5: None, 6: 12.0, 7: 14.0}


def test_the_measured_step_with_the_lowest_error_is_saved_and_kept(tmp_path: Path) -> None:
    validation = _validation(lambda params, *_: {"l1": jnp.full(8, jnp.abs(params["w"] - 7))})
    for iters, first in ((9, 0), (10, 9)):  # the second process has the errors from the log
        errors = {s["step"]: s["val_l1"] for s in read_metrics(tmp_path) if "val_l1" in s}
        _run(
            tmp_path,
            iters=iters,
            state=_state(first),
            validation=validation,
            lowest=LowestError(errors),
            keep=1,
        )
    # measured at 3, 6 and 9, and at the end; 1 below 7 is nearest to it, as 5 is not measured
    assert _saved(tmp_path) == [6, 10]


class _Companion(Companion):
    """Has a result of each due step two steps later."""

    def __init__(self) -> None:
        self.followed: list[tuple[int, bool]] = []

    def due(self, step: int) -> bool:
        return step in (2, 5)

    def follow(self, step: int) -> Mapping[int, Mapping[str, float]]:
        self.followed.append((step, step - 2 in (2, 5)))
        return {step - 2: {"success": 0.5}} if step - 2 in (2, 5) else {}

    def scalars(self) -> Mapping[str, float]:
        return {"share": 0.25}


def test_a_companion_has_its_checkpoints_and_its_results_stand_at_their_step(
    tmp_path: Path,
) -> None:
    companion = _Companion()
    _run(tmp_path, iters=8, log_every=3, companion=companion)
    assert {2, 5} < set(_saved(tmp_path))
    assert [step for step, _ in companion.followed] == list(range(1, 9))
    lines = {line["step"]: line for line in read_metrics(tmp_path)}
    assert {step: line.get("success") for step, line in lines.items()} == {
        2: 0.5,
        3: None,
        5: 0.5,
        6: None,
        8: None,
    }
    assert (lines[3]["share"], lines[3]["loss"]) == (0.25, 2)
    assert "loss" not in lines[2], "it was no step of the log"


def test_the_first_batch_is_checked(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="domain_id 30 is out of range"):
        _run(tmp_path, iters=2, source=_Source(domain=30))


def test_a_finished_run_does_nothing(tmp_path: Path) -> None:
    _run(tmp_path, iters=3)
    source = _Source(at=3)
    state = _run(tmp_path, iters=3, state=_state(3), source=source)
    assert (int(state.step), source.at) == (3, 3)


def _feed(source: _Source) -> DeviceFeed:
    return DeviceFeed(source, _PLACEMENT)


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
        assert source.second_asked.wait(timeout=30), "batch 1 is on its way unasked"


def test_waiting_is_measured() -> None:
    with _feed(_Source(slow_s=0.2)) as feed:
        next(feed)
        next(feed)
        assert feed.waited_s > 0.1


def test_a_batch_that_does_not_fit_the_model_is_refused_each_time() -> None:
    with _feed(_Source(domain=30)) as feed:
        for _ in range(2):
            with pytest.raises(InputError, match="domain_id 30"):
                next(feed)
