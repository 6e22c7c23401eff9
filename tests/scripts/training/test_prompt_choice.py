"""The domain of a checkpoint that a new robot begins with."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.sources import open_mixture
from data.trajectory import Source
from scripts import prompt
from scripts.training import prompt_choice
from tests.xvla_jax import tiny
from xvla_jax.checkpoint_tools import domains
from xvla_jax.contract import Contract
from xvla_jax.errors import CheckpointError, ConfigError
from xvla_jax.pretrained import Pretrained, save_pretrained

_RATE = 6 / 0.2  # actions of the tiny model in the rows' window, Hz
# as tests.scripts.robots has them, but for the rate; and another robot
_ALIKE = Contract(1, "ee6d", "interleaved", 2 * _RATE, ("front", "wrist"), "measured")
_OTHER = Contract(2, "ee6d", "contiguous", _RATE, ("front",), "commanded")
_LIBERO = 3  # a domain that rows of data/rows/ name, and their robot


def _source(name: str) -> Source:
    (source,) = open_mixture(((f"tests.scripts.robots:{name}", 1.0),), "")
    return source


def _loaded(params: Any) -> Pretrained:
    contracts = {1: _ALIKE, 2: _OTHER}
    return Pretrained(tiny.CONFIG, params, tiny.PROCESSOR, contracts, domains={"one": 1, "two": 2})


@pytest.fixture(scope="module")
def loaded() -> Pretrained:
    """The tiny model, of which domains 1 and 2 are trained, the second to say nothing."""
    before = _loaded(tiny.params())
    rows = domains.read_rows(before, 1)
    trained = {k: v + 0.1 if k.endswith("bias") else v for k, v in rows.items()}
    # actions and proprio do not reach the head, nor does the observation
    mute = {k: v if k.endswith("bias") else np.zeros_like(v) for k, v in trained.items()}
    first = domains.with_domain(before, 1, trained, _ALIKE, note={}, overwrite=True)
    return domains.with_domain(first, 2, mute, _OTHER, note={}, overwrite=True)


@pytest.fixture(scope="module")
def choice(loaded: Pretrained) -> prompt_choice.Choice:
    """The choice for a robot with six joints, which the checkpoint's head is not for."""
    return prompt_choice.choose(loaded, _source("JOINTS6"), episodes=2, seed=0)


@pytest.mark.slow
def test_the_command_names_it_and_writes_all(
    loaded: Pretrained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, file = tmp_path / "base", tmp_path / "new" / "choice.json"
    save_pretrained(
        folder,
        loaded.config,
        loaded.params,
        processor=loaded.processor,
        contracts=loaded.contracts,
        domains=loaded.domains,
    )

    def run(*flags: str) -> tuple[int, str]:
        status = prompt.COMMAND.run(prompt.main, ["prompt", "nearest", f"{folder}", *flags])
        said = capsys.readouterr()
        return status, said.out + said.err

    row = ("--data=tests.scripts.robots:JOINTS6", f"--root={tmp_path}")
    status, said = run(*row, "--by=conventions", f"--report={file}")
    assert status == 0, said
    assert "nearest by conventions: domain 1 (one)" in said
    written = json.loads(file.read_text())
    assert written["nearest"] == 1
    assert [one["domain_id"] for one in written["candidates"]] == [1, 2]
    for flags, problem in (
        ((*row, f"--report={file}"), f"--report={file} exists"),
        (row[:1], "nearest needs --data=ROW and --root=FOLDER"),
        (("--data=tests.scripts.robots:JOINTS", row[1]), "tests.scripts.robots has no JOINTS"),
    ):
        status, said = run(*flags)
        assert status == 1
        assert problem in said.replace("\n", "")


@pytest.mark.slow
def test_a_prompt_is_judged_by_the_best_head_for_it(choice: prompt_choice.Choice) -> None:
    one, two = choice.candidates
    assert (one.domain_id, two.domain_id) == (1, 2)
    assert (one.name, two.name) == ("one", "two")
    assert 0 < one.unexplained < two.unexplained
    assert choice.nearest(prompt_choice.LOSS) is one
    assert len(set(choice.fresh)) == 3, "each draw differs"
    assert choice.motion == prompt_choice.Motion(), "joints have no place in the room"
    assert choice.to_dict(prompt_choice.LOSS)["nearest"] == 1


@pytest.mark.slow
def test_the_table_names_what_agrees(choice: prompt_choice.Choice) -> None:
    table = prompt_choice.choice_table(choice)
    columns = {str(column.header): list(column.cells) for column in table.columns}
    assert columns["domain"][:2] == ["1", "2"]
    assert columns["same conventions"][0] == "relative channels, proprio, number of views, views"
    assert columns["same conventions"][1] == "relative channels"
    assert columns["rate, Hz"][:2] == ["60", "30"]


def test_conventions_come_before_rate_and_motion() -> None:
    new = dataclasses.replace(_ALIKE, anchor_hz=_RATE)
    moves = prompt_choice.Motion(0.8, 1.0)

    def order(domain_id: int, name: str, contract: Contract | None) -> tuple[float, ...]:
        domain = domains.Domain(domain_id, name, True, contract, 1.0, True, {})
        return prompt_choice.candidate(domain, new, moves, 0.5).order

    alike, same_rate = order(1, "one", _ALIKE), order(1, "one", new)
    known = order(_LIBERO, "libero", new)
    assert order(0, "none", None) < order(2, "two", _OTHER) < alike < same_rate
    libero = prompt_choice.candidate(
        domains.Domain(_LIBERO, "libero", True, new, 1.0, True, {}), new, moves, 0.5
    )
    assert libero.motion == prompt_choice.Motion(0.855, 1.7), "the maker's, of a Franka Panda"
    assert same_rate < known, "of the other no reach and no speed is known"


def test_a_robot_of_poses_is_measured() -> None:
    chunk = np.zeros((2, 6, 20), np.float32)
    chunk[..., 0] = 0.5
    chunk[..., 1] = np.arange(6) * 0.01  # 1 cm a step of 1/30 s
    spec = _source("POSES").reader.spec
    contract = dataclasses.replace(_ALIKE, anchor_hz=_RATE)
    motion = prompt_choice.recorded_motion(spec, contract, [chunk])
    assert motion.reach == pytest.approx(np.hypot(0.5, 0.05), rel=0.01)
    assert motion.speed == pytest.approx(0.3, rel=1e-5)
    relative = dataclasses.replace(spec, delta_idx=(0, 1, 2))
    assert prompt_choice.recorded_motion(relative, contract, [chunk]) == prompt_choice.Motion()


def test_what_cannot_be_compared_is_refused_in_a_line(loaded: Pretrained) -> None:
    with pytest.raises(CheckpointError, match="no domain of this checkpoint is trained"):
        prompt_choice.choose(_loaded(tiny.params()), _source("JOINTS6"), episodes=2, seed=0)
    with pytest.raises(ConfigError, match="1 of 2 episodes of 'joints6' would be read"):
        prompt_choice.choose(loaded, _source("JOINTS6"), episodes=1, seed=0)
    bare = dataclasses.replace(loaded, processor=None)
    with pytest.raises(ConfigError, match=r"no preprocessor_config\.json"):
        prompt_choice.choose(bare, _source("JOINTS6"), episodes=2, seed=0)
