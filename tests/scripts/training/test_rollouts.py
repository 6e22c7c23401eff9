"""Rollouts beside a training: chosen and confirmed, skipped, failed, killed; a shell evaluates."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import logging
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from configs import base
from eval.runs.receipt import RESULTS, plan_key
from eval.tasks.table import task_contract, task_spec
from scripts.run_summary import CURVES, draw_curves, summary
from scripts.training.rollout_results import (
    CHOICE,
    CONFIRMATION,
    FAILED,
    SHARE,
    SKIPPED,
    folder_of,
    read_results,
    write_page,
)
from scripts.training.rollouts import RolloutPlan, Rollouts, rollout_plan
from tests.eval.evaluations import PLAN, contestant, evaluate, resealed
from xvla_jax.checkpoints.run_folder import CHECKPOINTS
from xvla_jax.contract import Contract
from xvla_jax.errors import ConfigError, ContractError
from xvla_jax.training.signals import StopSignal
from xvla_jax.training.telemetry import JsonLines, read_metrics

_EPISODES = [plan_key(episode) for episode in PLAN]
_LIMIT_S = 60.0


@pytest.fixture(scope="module")
def receipt(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A receipt of 12 successes in 12 episodes."""
    made: Any = evaluate(tmp_path_factory.mktemp("evaluation"), contestant("a", noise=0.0))
    return made


@dataclasses.dataclass(frozen=True)
class _ShellPlan(RolloutPlan):
    """Evaluates by a line of shell for each step; ``{out}`` in it is the folder."""

    lines: Mapping[int, str] = dataclasses.field(default_factory=dict)

    def command(self, checkpoint: Path, half: str, out: Path) -> list[str]:
        line = self.lines[int(checkpoint.name)].format(out=out, half=half)
        return ["sh", "-c", f"echo begun >> {out}/starts; {line}", "sh"]


class _Training:
    """The loop of a run without its steps: saves, follows and logs."""

    def __init__(self, workdir: Path, receipt: Any) -> None:
        self.workdir, self._receipt = workdir, receipt
        self.lines: dict[int, str] = {}

    def copy(self, successes: int, confirmed: int = 0) -> str:
        """A line of shell that copies a receipt of so many successes, for each half."""
        for half, count in ((CHOICE, successes), (CONFIRMATION, confirmed)):
            made = copy.deepcopy(self._receipt)
            (task,) = made["tasks"].values()
            (entry,) = task["policies"].values()
            for number, record in enumerate(entry["episodes"]):
                record["success"] = number < count
            (self.workdir / f"{half}{successes}").write_text(json.dumps(resealed(made)))
        return f"cp {self.workdir}/{{half}}{successes} {{out}}/{RESULTS}"

    def open(
        self,
        *,
        last: int = 8,
        limit_s: float = 0.0,
        planned: Sequence[str] = _EPISODES,
    ) -> Rollouts:
        plan = _ShellPlan(
            task="quickstart",
            every=2,
            last=last,
            states={},
            episodes=dict.fromkeys((CHOICE, CONFIRMATION), planned),
            options=(),
            environment={},
            limit_s=limit_s,
            lines=self.lines,
        )
        return Rollouts(plan, self.workdir, console=Console(quiet=True))

    def step(self, rollouts: Rollouts, step: int) -> None:
        if rollouts.due(step):
            (self.workdir / CHECKPOINTS / str(step)).mkdir(parents=True, exist_ok=True)
        self._write(step, {"loss": 1.0, "step_s": 0.5, **rollouts.scalars()})
        for earlier, scalars in rollouts.follow(step).items():
            self._write(earlier, scalars)

    def finish(self, rollouts: Rollouts) -> bool:
        return rollouts.finish(self._write, StopSignal())

    def starts(self, step: int, half: str = CHOICE) -> int:
        path = folder_of(self.workdir, step, half) / "starts"
        return path.read_text().count("begun") if path.is_file() else 0

    def _write(self, step: int, scalars: Mapping[str, float]) -> None:
        lines = JsonLines(self.workdir)
        lines.write(step, scalars)
        lines.close()


@pytest.fixture
def training(tmp_path: Path, receipt: Any) -> _Training:
    return _Training(tmp_path, receipt)


def _until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _LIMIT_S
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_best_is_chosen_on_one_half_and_confirmed_on_the_other(
    training: _Training, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    training.lines |= {2: training.copy(3), 4: training.copy(9, 7), 6: training.copy(9, 6)}
    training.lines[8] = training.copy(5)
    with contextlib.closing(training.open()) as rollouts:
        for step in range(1, 9):
            training.step(rollouts, step)
            evaluated = folder_of(training.workdir, step - step % 2, CHOICE)
            if step > 1:  # the simulator is as quick as the training
                _until(lambda folder=evaluated: (folder / RESULTS).is_file())
                _until(lambda: rollouts._running is None or rollouts._running.process.ended)
        assert training.finish(rollouts)
        assert rollouts.kept([4, 6, 8]) == {6}, "of equals the last, which is confirmed"
        assert rollouts.kept([4, 8]) == {4}, "the best of those that are there"
    lines = [line for line in read_metrics(training.workdir) if "rollouts/success" in line]
    rates = {line["step"]: line["rollouts/success"] for line in lines}
    assert rates == {2: 3 / 12, 4: 9 / 12, 6: 9 / 12, 8: 5 / 12}
    line = read_metrics(training.workdir)[5]
    assert line["loss"] == 1.0, "the line of the step keeps its other fields"
    assert line["rollouts/success/low"] < 0.75 < line["rollouts/success/high"]
    assert (line["rollouts/confirmed"], line["rollouts/confirmed/episodes"]) == (0.5, 12)
    assert [training.starts(s, CONFIRMATION) for s in (2, 4, 6, 8)] == [0, 0, 1, 0]
    rows = summary(training.workdir)
    assert rows["checkpoints evaluated"] == "4, 0 skipped, 0 without a score"
    assert rows["chosen checkpoint"] == "checkpoints/6, the best of 4"
    assert rows["success where chosen"] == "9 of 12 (75%; 46 to 93 %)"
    assert rows["success confirmed"] == "6 of 12 (50%; 23 to 77 %)"
    page = write_page(training.workdir)
    assert page is not None
    text = page.read_text()
    for part in (
        "Step 6 was chosen among 4 checkpoints",
        "9 of 12 (75%; 46 to 93 %)",
        "it succeeded in 6 of 12 (50%; 23 to 77 %)",
        "step 2, choice",
    ):
        assert part in text
    draw_curves([training.workdir], training.workdir / CURVES)
    assert (training.workdir / CURVES).stat().st_size > 10_000


def test_a_slow_simulator_is_not_waited_for(
    training: _Training, caplog: pytest.LogCaptureFixture
) -> None:
    wait = f"until [ -e {training.workdir}/go ]; do sleep 0.01; done; "
    training.lines |= {2: wait + training.copy(1), 6: training.copy(2, 4), 8: training.copy(2)}
    with contextlib.closing(training.open()) as rollouts:
        began = time.monotonic()
        for step in range(1, 8):
            training.step(rollouts, step)
        assert time.monotonic() - began < 5
        assert rollouts.kept([2, 4, 6]) == {2, 6}, "evaluated now, and waiting"
        assert "step 4 are skipped: step 2 is still being evaluated" in caplog.text
        training.step(rollouts, 8)
        (training.workdir / "go").touch()
        assert training.finish(rollouts)
    assert {s: training.starts(s) for s in (2, 4, 6, 8)} == {2: 1, 4: 0, 6: 0, 8: 1}
    lines = {line["step"]: line for line in read_metrics(training.workdir)}
    assert (lines[4][SKIPPED], lines[6][SKIPPED]) == (1, 1)
    assert "rollouts/success" not in lines[4]
    assert (lines[2][SHARE], lines[3][SHARE], lines[5][SHARE]) == (0, 1, 1)
    rows = summary(training.workdir)
    assert rows["checkpoints evaluated"] == "2, 2 skipped, 0 without a score"
    assert rows["step beside an evaluation, s"] == "0.5"


def test_a_failing_simulator_is_named_and_no_score(
    training: _Training, caplog: pytest.LogCaptureFixture
) -> None:
    training.lines |= {2: "echo error: no renderer; echo here; exit 1", 4: "kill -9 $$"}
    with contextlib.closing(training.open(last=4)) as rollouts:
        for step in range(1, 5):
            training.step(rollouts, step)
        assert training.finish(rollouts), "the training is complete all the same"
    assert "step 2, choice: no score, because no renderer here (" in caplog.text
    assert "step 4, choice: no score, because it ended with status -9, see " in caplog.text
    lines = read_metrics(training.workdir)
    assert [line["step"] for line in lines if FAILED in line] == [2, 4]
    assert not any("rollouts/success" in line for line in lines)
    assert summary(training.workdir)["checkpoints evaluated"] == "0, 0 skipped, 2 without a score"
    assert write_page(training.workdir) is None

    # the next process of the run tries again, from the first episode
    training.lines |= {2: 'echo "$@" > {out}/flags; ' + training.copy(3, 2), 4: training.copy(1)}
    with contextlib.closing(training.open(last=4)) as rollouts:
        assert training.finish(rollouts)
    assert (folder_of(training.workdir, 2, CHOICE) / "flags").read_text() == "--restart\n"
    assert summary(training.workdir)["chosen checkpoint"] == "checkpoints/2, the best of 2"


def test_a_process_that_does_not_start_ends_no_training(
    training: _Training, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_ShellPlan, "command", lambda *_: [str(training.workdir / "none")])
    with contextlib.closing(training.open(last=2)) as rollouts:
        training.step(rollouts, 2)
        assert training.finish(rollouts)
    assert f"no score, because {training.workdir}/none: No such file or directory" in caplog.text


def test_an_evaluation_is_ended_at_its_limit(
    training: _Training, caplog: pytest.LogCaptureFixture
) -> None:
    training.lines[2] = "exec sleep 60"
    with contextlib.closing(training.open(last=2, limit_s=0.2)) as rollouts:
        training.step(rollouts, 2)
        assert training.finish(rollouts)
    assert "it was ended after 0.2 s (config.rollouts.limit_s)" in caplog.text


def test_an_evaluation_outlives_a_killed_run_and_is_not_made_twice(
    training: _Training, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    wait = f"until [ -e {training.workdir}/go ]; do sleep 0.01; done; "
    training.lines |= {2: wait + training.copy(4, 4), 4: training.copy(3)}
    killed = training.open(last=4)
    for step in (1, 2):
        training.step(killed, step)
    _until(lambda: training.starts(2) == 1)
    # killed here; the run resumes from step 2
    with contextlib.closing(training.open(last=4)) as rollouts:
        assert rollouts.kept([2]) == {2}
        for step in (3, 4):
            training.step(rollouts, step)
        assert "rollouts of step 2, choice: 12 episodes of quickstart still run" in caplog.text
        (training.workdir / "go").touch()
        assert training.finish(rollouts)
    assert [training.starts(step) for step in (2, 4)] == [1, 1]
    assert summary(training.workdir)["success where chosen"].startswith("4 of 12")
    # killed again after a result, before its line was written
    log = training.workdir / "metrics.jsonl"
    log.write_text("".join(t for t in log.open() if "rollouts/success" not in t))
    with contextlib.closing(training.open(last=4)) as rollouts:
        assert training.finish(rollouts)
    lines = read_metrics(training.workdir)
    assert [line["step"] for line in lines if "rollouts/success" in line] == [2, 4]
    assert [training.starts(step) for step in (2, 4)] == [1, 1]


def test_results_on_other_states_are_not_compared(training: _Training) -> None:
    training.lines[2] = training.copy(3, 2)
    with contextlib.closing(training.open(last=2)) as rollouts:
        training.step(rollouts, 2)
        assert training.finish(rollouts)
    with pytest.raises(ConfigError, match=r"has 12 episodes of quickstart, and .* plans 11 others"):
        training.open(last=2, planned=_EPISODES[1:])


def test_a_stopped_run_ends_its_evaluation_and_resumes_it(training: _Training) -> None:
    training.lines |= {2: "exec sleep 60"}
    stop = StopSignal()
    with contextlib.closing(training.open(last=2)) as rollouts:
        training.step(rollouts, 2)
        stop.number = signal.SIGTERM
        assert not rollouts.finish(lambda *_: None, stop)
        assert rollouts._running is not None
    assert rollouts._running.process.ended
    training.lines |= {2: 'echo "$@" > {out}/flags; ' + training.copy(3, 2)}
    with contextlib.closing(training.open(last=2)) as rollouts:
        assert training.finish(rollouts)
    assert (folder_of(training.workdir, 2, CHOICE) / "flags").read_text() == "\n", "continued"
    assert read_results(training.workdir).chosen == 2


def _run(**changes: Any) -> Any:
    config: Any = base.get_config({})
    config.rollouts.update({"task": "so101", **changes})
    contract = Contract(action_space="auto", **task_contract(task_spec("so101")))
    return SimpleNamespace(
        config=config,
        contracts={0: contract},
        model_config=SimpleNamespace(action_mode="auto"),
        recipe=SimpleNamespace(config=SimpleNamespace(iters=10)),
    )


def test_a_changed_row_is_played_without_its_control_arm() -> None:
    run = _run(task="quickstart:camera2")
    run.contracts = {3: Contract(action_space="ee6d", **task_contract(task_spec("quickstart")))}
    run.model_config.action_mode = "ee6d"
    plan = rollout_plan(run, processes=1)
    assert plan is not None
    assert "--nocontrol" in plan.command(Path("/w/checkpoints/4"), CHOICE, Path("/w/out"))


def test_a_plan_has_the_states_that_no_demonstration_starts_from() -> None:
    assert rollout_plan(_run(task=""), processes=2) is None
    plan = rollout_plan(_run(every=4, workers=2, accept_renderer=True), processes=1)
    assert plan is not None
    assert [step for step in range(1, 11) if plan.due(step)] == [4, 8, 10]
    assert plan.environment == {"JAX_PLATFORMS": "cpu"}
    words = plan.command(Path("/w=1/checkpoints/4"), CHOICE, Path("/w=1/rollouts/4/choice"))
    assert words[1:] == [
        "-m",
        "scripts.evaluate",
        "--tasks=so101",
        "--init_states=50:100:2",
        "--policy=step_4=checkpoint:/w=1/checkpoints/4",
        "--out=/w=1/rollouts/4/choice",
        "--film=",
        "--workers=2",
        "--accept_renderer",
    ]
    assert "--init_states=51:100:2" in plan.command(Path("4"), CONFIRMATION, Path("o"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "so102"}, "config.rollouts: no task 'so102'; the rows of eval/tasks/ are "),
        ({"task": "softfold"}, "task 'softfold' is of a real robot"),
        ({"every": 0}, "config.rollouts.every is 0; it must be 1 or more"),
        ({"workers": 0}, "config.rollouts.workers is 0; it must be 1 or more"),
        (
            {"task": "libero_goal", "states": "45:60"},
            r"initial states \[51, .* of libero_goal; there are 0..49",
        ),
        ({"states": "5:"}, "config.rollouts: initial states '5:'; first:end"),
        ({"states": "5:6"}, "1 initial states cannot be split"),
        ({"environment": "cpu"}, "environment is 'cpu'; NAME=VALUE,NAME=VALUE is expected"),
    ],
)
def test_a_plan_that_cannot_be_is_refused_before_the_first_step(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        rollout_plan(_run(**changes), processes=1)


def test_several_processes_and_another_contract_are_refused() -> None:
    with pytest.raises(ConfigError, match="'so101' in a run of 2 processes; rollouts accompany"):
        rollout_plan(_run(), processes=2)
    other = _run()
    other.contracts[0] = dataclasses.replace(other.contracts[0], anchor_hz=30.0)
    with pytest.raises(
        ContractError, match=r"task is .so101.: .* anchor_hz: checkpoint[^\n]* or nothing to train"
    ):
        rollout_plan(other, processes=1)
