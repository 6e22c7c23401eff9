"""Certificates end to end: measured on recorded frames, then asked for by evaluation and server."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from configs import models
from data.rows.contracts import contracts_of
from data.rows.table import dataset
from eval.tasks.table import task_contract, task_spec
from scripts import certify_sampler
from scripts.evaluation.drift import drifts, quantities
from scripts.evaluation.entrants import Entrant, load
from scripts.evaluation.planned import parse_plans
from scripts.evaluation.recorded import acted
from scripts.random_weights import write_random_checkpoint
from xvla_jax.actions import action_space
from xvla_jax.checkpoint_tools.certificate import (
    SHARE,
    certificate_path,
    read_certificate,
    sealed,
)
from xvla_jax.checkpoint_tools.convert_layout import convert_checkpoint
from xvla_jax.config import XVLAConfig
from xvla_jax.contract import Contract
from xvla_jax.errors import CertificateError, ConfigError
from xvla_jax.plans import DEFAULT, PLANS
from xvla_jax.policy import Policy
from xvla_jax.processor import Processor
from xvla_jax.serving.engine import PolicyEngine, model_sha256
from xvla_jax.serving.limits import Limits

_SPACE = action_space(XVLAConfig.from_dict(models.model_dict(models.TINY, action_mode="ee6d")))
_CONTRACT = Contract(
    action_space="ee6d",
    **contracts_of([dataset("libero_demos")], num_actions=30)[0],
)


def _poses(*degrees: float) -> np.ndarray:
    """Left arms turned about z, with a free gripper; [1, T, 20], contiguous 6-D rotation."""
    rows = np.zeros((1, len(degrees), 20))
    for row, angle in zip(rows[0], np.radians(degrees), strict=True):
        row[3:9] = math.cos(angle), math.sin(angle), 0, -math.sin(angle), math.cos(angle), 0
    return rows


class _Echo:
    """Stands for a policy: a chunk is the observation and its seed."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def act(self, observations: list[int], *, seed: Sequence[int], plan: object) -> np.ndarray:
        assert plan == DEFAULT
        self.sizes.append(len(observations))
        return np.array(list(zip(observations, seed, strict=True)))


def test_the_noise_of_a_frame_is_that_of_its_place_in_all_batches() -> None:
    echo: Any = _Echo()
    chunks = acted(echo, range(100, 135), DEFAULT, seed=7)
    assert echo.sizes == [16, 16, 3]
    assert chunks.tolist() == [[100 + place, 7 + place] for place in range(35)]


def test_drift_is_in_millimetres_degrees_and_decisions() -> None:
    default, plan, recorded = _poses(0, 10), _poses(0, 13), _poses(0, 30)
    plan[0, 1, :3] = 0.003, 0.004, 0.0
    recorded[0, :, :3] = 0.0, 0.0, 0.1
    plan[0, 0, 9], default[0, 0, 9] = 0.6, 0.4
    measured = drifts(quantities(_SPACE, _CONTRACT), default, plan, recorded)
    position, rotation = measured["left position"], measured["left rotation"]
    assert (position.unit, position.worst, position.mean) == (
        "mm",
        pytest.approx(5),
        pytest.approx(2.5),
    )
    assert position.own_error == pytest.approx(100)
    assert (rotation.unit, rotation.worst) == ("deg", pytest.approx(3))
    assert rotation.own_error == pytest.approx(10)
    assert (measured["left gripper"].unit, measured["left gripper"].mean) == (SHARE, 0.5)
    assert "right position" not in measured  # no such arm: the recorded numbers are zero


def test_joints_have_their_own_names_and_units() -> None:
    shape = models.model_dict(models.TINY, action_mode="auto")
    config = XVLAConfig.from_dict({**shape, "real_action_dim": 2, "max_action_dim": 20})
    space = action_space(config)
    contract = dataclasses.replace(
        _CONTRACT,
        action_space="auto",
        rotation_layout="none",
        channels=({"name": "elbow", "unit": "rad"}, {"name": "jaw", "unit": "%"}),
    )
    zeros = np.zeros((1, 1, 2))
    measured = drifts(quantities(space, contract), zeros, zeros + 0.5, zeros + 1)
    assert {name: (d.unit, round(d.mean, 2)) for name, d in measured.items()} == {
        "elbow": ("deg", 28.65),
        "jaw": ("%", 0.5),
    }


def test_plans_of_an_evaluation() -> None:
    names = ["exact", "cheap"]
    assert parse_plans([], names) == dict.fromkeys(names, DEFAULT)
    assert parse_plans(["cheap=frozen3"], names)["cheap"] == PLANS["frozen3"]
    assert parse_plans(["frozen3", "exact=exact10"], names) == {
        "exact": DEFAULT,
        "cheap": PLANS["frozen3"],
    }
    with pytest.raises(ValueError, match="policy 'b' is not evaluated; the policies are exact, ch"):
        parse_plans(["b=frozen3"], names)
    with pytest.raises(ValueError, match="policy 'cheap' is given twice"):
        parse_plans(["cheap=frozen3", "cheap=exact3"], names)
    with pytest.raises(ConfigError, match="--plan is 'quick'; allowed are exact10"):
        parse_plans(["quick"], names)


def test_a_plan_is_for_checkpoints() -> None:
    with ExitStack() as until, pytest.raises(ValueError, match="of the kind expert, which has its"):
        load(Entrant("e", "expert", ""), [], lerobot_python="", until=until, plan=PLANS["frozen3"])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with random weights and the task's own contract."""
    folder = tmp_path_factory.mktemp("certified") / "tiny"
    shape = dataclasses.replace(models.TINY, num_actions=30)
    config = XVLAConfig.from_dict(models.model_dict(shape, action_mode="ee6d"))
    processor = Processor(image_size=32, text_length=12)
    write_random_checkpoint(
        folder, config, processor, seed=0, dtype="float32", on_tensor=lambda *_: None
    )
    contract = Contract(action_space="ee6d", **task_contract(task_spec("quickstart")))
    (folder / "action_contract.json").write_text(json.dumps([contract.to_dict()]))
    return folder


def _run(*flags: str) -> int:
    return certify_sampler.COMMAND.run(certify_sampler.main, ["certify_sampler.py", *flags])


def test_what_needs_no_certificate_or_cannot_have_one_is_refused(
    checkpoint: Path, demos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = f"--checkpoint={checkpoint}", "--data=libero_demos", f"--root={demos}"
    assert _run(*given, "--plans=exact10") != 0
    assert "exact10 needs no certificate" in "".join(capsys.readouterr())
    assert _run(*given, "--task=quickstart") != 0
    assert "--task needs --out" in "".join(capsys.readouterr())


@pytest.mark.slow
def test_a_measured_plan_is_used_and_named(
    checkpoint: Path, demos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = task_spec("quickstart")
    entrant = Entrant("cheap", "checkpoint", str(checkpoint))

    def opened(**more: Any) -> dict[str, Any]:
        with ExitStack() as until:
            made = load(
                entrant, [spec], lerobot_python="", until=until, plan=PLANS["frozen2"], **more
            )
            return dict(made.identity)

    with pytest.raises(CertificateError, match="plan frozen2 has no certificate"):
        opened()
    assert opened(uncertified=True)["sampler"] == {
        "plan": "frozen2", "steps": 2, "refresh": [0], "tolerance": 0.0, "certificate": None,
    }  # fmt: skip
    # a fresh model's own error is large, so its drift is within any limit but 0
    flags = (
        f"--checkpoint={checkpoint}", "--data=libero_demos", f"--root={demos}", "--episodes=2",
        "--plans=frozen2", "--max_flips=1",
    )  # fmt: skip
    assert _run(*flags, "--max_drift=0") == 2
    said = "".join(capsys.readouterr())
    assert "frozen2: breaks limits: left position of domain" in said
    with pytest.raises(CertificateError, match="plan frozen2 breaks limits: left position"):
        opened()
    assert _run(*flags, "--max_drift=100") == 0
    assert "frozen2: certified" in "".join(capsys.readouterr())
    certificate, seal = read_certificate(certificate_path(checkpoint, "float32"))
    assert certificate.frames == {"libero_demos": 8}
    identity = opened()
    assert identity["sampler"]["certificate"] == seal
    assert identity["hash"] == certificate.model_sha256
    policy = Policy.from_pretrained(checkpoint)
    limits = Limits(batch=1)
    engine = PolicyEngine(
        policy, limits, views=[2], plans=[DEFAULT, PLANS["frozen2"]], certificates=checkpoint
    )
    assert engine.warm(PLANS["frozen2"], 2, 1) > 0
    stated = engine.info["plans"]
    assert [row["certificate"] for row in stated.values()] == [None, seal]
    assert (engine.info["plan"], list(stated["frozen2"]["latency_ms"])) == ("exact10", ["2"])
    with pytest.raises(CertificateError, match="has no plan frozen3"):
        PolicyEngine(policy, limits, plans=[PLANS["frozen3"]], certificates=checkpoint)


@pytest.mark.slow
def test_a_student_is_compared_with_its_teacher(
    checkpoint: Path, demos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its own exact10 may be certified then; a reference with other actions is refused."""
    student = tmp_path / "student"
    shutil.copytree(checkpoint, student, ignore=shutil.ignore_patterns("sampler_certificate*"))
    config = json.loads((student / "config.json").read_text())
    (student / "config.json").write_text(json.dumps({**config, "context_attends_to": "context"}))
    flags = f"--checkpoint={student}", "--data=libero_demos", f"--root={demos}", "--episodes=1"
    flags += f"--reference={checkpoint}", "--plans=exact10,frozen2", "--max_drift=100"
    assert _run(*flags, "--max_flips=1") == 0
    assert f"Distance from exact10 of {checkpoint}" in " ".join(capsys.readouterr().out.split())
    certificate, _ = read_certificate(certificate_path(student, "float32"))
    assert list(certificate.plans) == ["exact10", "frozen2"]
    drift = certificate.plans["exact10"].drift["libero"]["left position"]
    assert drift.mean > 0
    assert certificate.reference not in (None, certificate.model_sha256)
    assert "reference" not in sealed(dataclasses.replace(certificate, reference=None))

    contracts = student / "action_contract.json"
    contracts.write_text(contracts.read_text().replace('"anchor_hz": ', '"anchor_hz": 1'))
    assert _run(*flags) == 1
    assert "has another contract of domain" in " ".join(capsys.readouterr().out.split())
    fewer = json.loads(contracts.read_text())
    config["num_actions"] = 6
    (student / "config.json").write_text(json.dumps(config))
    contracts.write_text(json.dumps(fewer))
    assert _run(*flags) == 1
    assert "num_actions of --reference=" in " ".join(capsys.readouterr().out.split())


@pytest.mark.slow
def test_int8_weights_are_measured_from_the_float32_ones(
    checkpoint: Path, demos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    int8 = tmp_path / "int8"
    convert_checkpoint(checkpoint, int8, "hf", dtype="int8")
    spec, entrant = task_spec("quickstart"), Entrant("small", "checkpoint", str(int8))

    def opened() -> dict[str, Any]:
        with ExitStack() as until:
            return dict(load(entrant, [spec], lerobot_python="", until=until).identity)

    with pytest.raises(CertificateError, match="plan exact10 with int8 weights has no certificate"):
        opened()
    flags = (
        f"--checkpoint={int8}", "--data=libero_demos", f"--root={demos}", "--episodes=2",
        "--plans=exact10", "--max_flips=1",
    )  # fmt: skip
    assert _run(*flags, f"--reference={checkpoint}", "--max_drift=0.1") == 0
    said = "".join(capsys.readouterr())
    assert f"Distance from exact10 of {checkpoint}" in " ".join(said.split())
    certificate, seal = read_certificate(certificate_path(int8, "float32"))
    assert certificate.reference == model_sha256(Policy.from_pretrained(checkpoint))
    (entry,) = certificate.plans.values()
    (quantities_,) = entry.drift.values()
    assert quantities_["left position"].mean > 0
    assert opened()["sampler"] == {
        "plan": "exact10", "steps": 10, "refresh": None, "tolerance": 0.0, "certificate": seal,
    }  # fmt: skip
    # a reference with other actions is refused, and a file without one says nothing of int8
    other = tmp_path / "other"
    shutil.copytree(checkpoint, other)
    (other / "action_contract.json").write_text("[]")
    assert _run(*flags, f"--reference={other}") == 1
    assert "has another contract of domain" in " ".join("".join(capsys.readouterr()).split())
    assert _run(*flags[:-2], "--plans=frozen2") == 1
    assert "has int8 weights; --reference=FOLDER names" in " ".join(
        "".join(capsys.readouterr()).split()
    )
    content = sealed(dataclasses.replace(certificate, reference=None))
    certificate_path(int8, "float32").write_text(json.dumps(content))
    with pytest.raises(CertificateError, match="has no reference, and the weights are int8"):
        opened()
