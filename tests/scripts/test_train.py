"""Training runs, as somebody at a shell starts, stops and resumes them."""

from __future__ import annotations

import dataclasses
import signal
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.scripts.runs import end, start, wait_for_step
from tests.xvla_jax import tiny
from xvla_jax import pretrained
from xvla_jax.contract import Contract
from xvla_jax.pretrained import load_checkpoint
from xvla_jax.training.telemetry import read_metrics

pytestmark = [pytest.mark.rlds, pytest.mark.slow]


def test_names_that_do_not_exist_are_errors(demos: Path, tmp_path: Path) -> None:
    """Both at once: importing takes longer than anything else here."""
    key = start(demos, tmp_path / "a", "--config.optimizer.learning_rat=1e-3")
    flag = start(demos, tmp_path / "b", "--wrokdir=x")
    status, output = end(key)
    assert status != 0
    assert "learning_rat" in output
    status, output = end(flag)
    assert status != 0
    assert "wrokdir" in output
    assert not list(tmp_path.iterdir()), "nothing was started"
    model = start(demos, tmp_path / "c", "--config.model.real_action_dim=7")
    status, output = end(model)
    assert status != 0
    assert "--config.model.real_action_dim=7: the config has no such field" in output
    assert "Traceback" not in output
    assert not list(tmp_path.iterdir())


def test_a_stopped_run_resumes_to_the_same_parameters(
    demos: Path, tmp_path: Path, compiled: Path, straight: Path
) -> None:
    stopped = start(demos, tmp_path / "stopped", compiled=compiled)
    wait_for_step(stopped, tmp_path / "stopped", 1)
    stopped.send_signal(signal.SIGTERM)
    status, output = end(stopped)
    assert status == 0, output
    assert "the same command resumes from there" in output
    assert read_metrics(tmp_path / "stopped")[-1]["step"] < 8

    status, output = end(start(demos, tmp_path / "stopped", compiled=compiled))
    assert status == 0, output
    assert "resuming" in output
    assert "trained 8 steps" in output

    ours, theirs = (load_checkpoint(workdir) for workdir in (tmp_path / "stopped", straight))
    assert ours.contracts == theirs.contracts
    assert set(ours.contracts) == {3}
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, ours.params, theirs.params)))
    losses = [
        [line["loss"] for line in read_metrics(workdir)]
        for workdir in (tmp_path / "stopped", straight)
    ]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 8


def test_a_checkpoint_of_poses_is_fine_tuned_on_joints_when_that_is_said(
    demos: Path, tmp_path: Path, compiled: Path
) -> None:
    base, workdir = tmp_path / "base", tmp_path / "run"
    poses = Contract(3, "ee6d", "contiguous", 20.0, ("agentview", "wrist"), "commanded")
    contracts = {i: dataclasses.replace(poses, domain_id=i) for i in (3, 7)}
    pretrained.save_pretrained(
        base, tiny.CONFIG, tiny.params(), processor=tiny.PROCESSOR, contracts=contracts
    )
    flags = ["--config.data.mixture=tests.scripts.robots:JOINTS6", f"--config.init_from={base}"]
    status, output = end(start(demos, workdir, *flags, compiled=compiled))
    assert status == 1, output
    assert "'joints6' has 6 channels of joints" in output
    assert "Traceback" not in output
    assert not workdir.exists()

    flags += ["--config.action_mode=auto", "--config.real_action_dim=6"]
    status, output = end(
        start(demos, workdir, *flags, "--config.optimizer.iters=2", compiled=compiled)
    )
    assert status == 0, output
    assert "relabelled the head: action space 'auto' with 6 of 20 channels" in output
    assert "dropped the action contracts of domains [3, 7]" in output
    status, output = end(
        start(demos, workdir, *flags[:2], "--config.optimizer.iters=4", compiled=compiled)
    )
    assert status == 1, output
    assert "error: " in output
    status, output = end(
        start(demos, workdir, *flags, "--config.optimizer.iters=4", compiled=compiled)
    )
    assert status == 0, output
    assert "resuming" in output
    straight = end(
        start(demos, tmp_path / "two", *flags, "--config.optimizer.iters=4", compiled=compiled)
    )
    assert straight[0] == 0, straight
    ours, theirs = (load_checkpoint(tmp_path / name) for name in ("run", "two"))
    assert tiny.equal(ours.params, theirs.params)
    assert (ours.config.action_mode, ours.config.real_action_dim) == ("auto", 6)
    contract = Contract(3, "auto", "none", 30.0, ("front", "wrist"), "measured")
    assert ours.contracts == {3: contract}
    assert not tiny.equal(ours.params, tiny.params())


def test_joints_of_two_arms_train_from_random_weights_that_were_asked_for(
    demos: Path, tmp_path: Path, compiled: Path
) -> None:
    flags = ["--config.data.mixture=tests.scripts.robots:JOINTS14", "--config.action_mode=joint"]
    flags += ["--config.optimizer.iters=2", "--config.validation.every=2"]
    flags += ["--config.validation.episodes=1", "--config.validation.stride=1"]
    refused = start(
        demos, tmp_path / "no", *flags, "--config.from_scratch=False", compiled=compiled
    )
    status, output = end(refused)
    assert status == 1, output
    assert "config.init_from is '' and config.from_scratch False" in output
    status, output = end(start(demos, tmp_path / "run", *flags, compiled=compiled))
    assert status == 0, output
    assert "initial weights: random" in output
    assert "gripper_loss" in output
    loaded = load_checkpoint(tmp_path / "run")
    assert loaded.config.action_mode == "joint"
    assert loaded.contracts[3].rotation_layout == "none"


def test_domains_without_an_id_or_a_gripper_train_and_resume(
    demos: Path, tmp_path: Path, compiled: Path
) -> None:
    mixture = "tests.scripts.robots:POSES:1,tests.scripts.robots:PUSHER:1"
    flags = [f"--config.data.mixture={mixture}", "--config.validation.every=2"]
    flags += ["--config.validation.episodes=1", "--config.validation.stride=4"]
    for name, iters in (("straight", 4), ("resumed", 2), ("resumed", 4)):
        more = [*flags, f"--config.optimizer.iters={iters}", "--config.accumulate=2"]
        status, output = end(start(demos, tmp_path / name, *more, compiled=compiled))
        assert status == 0, output
    ours, theirs = (load_checkpoint(tmp_path / name) for name in ("resumed", "straight"))
    assert tiny.equal(ours.params, theirs.params)
    assert ours.domains == {"libero": 3, "pusher": 19}
    assert (ours.contracts[3].unrecorded, ours.contracts[19].unrecorded) == ((), (9,))
    line = read_metrics(tmp_path / "straight")[-1]
    assert {"loss/libero", "loss/pusher", "val_l1/poses", "val_l1/pusher"} <= set(line)
    assert "val_gripper/pusher" in line, "of the other arm"

    # the checkpoint begins another run: it knows both, and gets a third by name
    third = ["--config.data.mixture=tests.scripts.robots:OTHER_PUSHER:1"]
    third += [f"--config.init_from={tmp_path / 'straight'}", "--config.optimizer.iters=1"]
    status, output = end(start(demos, tmp_path / "third", *third, compiled=compiled))
    assert status == 1, output
    assert "has no domain 'other'; it has libero, pusher. Take its names" in output
    third += ["--config.new_domains=other=pusher"]
    status, output = end(start(demos, tmp_path / "third", *third, compiled=compiled))
    assert status == 0, output
    assert "domain 'other' is copied from domain 19" in output
    assert load_checkpoint(tmp_path / "third").domains == {"libero": 3, "pusher": 19, "other": 20}
    status, output = end(start(demos, tmp_path / "straight", *third, compiled=compiled))
    assert status == 1, output
