"""Soft prompts from the command line, as somebody with a new robot uses them."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.xvla_jax import golden, tiny
from xvla_jax import pretrained
from xvla_jax.checkpoint_tools import domains
from xvla_jax.contract import Contract

pytestmark = pytest.mark.slow

_CONTRACT = Contract(1, "ee6d", "interleaved", 10.0, ("front", "wrist"), "measured")


def _run(*arguments: object, status: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "scripts.prompt", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=os.environ | {"COLUMNS": "200"},
    )
    assert done.returncode == status, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A golden model in which domain 3 is as a new model has it."""
    case, folder = golden.load("ee6d"), tmp_path_factory.mktemp("prompt") / "ckpt"
    loaded = pretrained.Pretrained(case.config, dict(case.params), None, {})
    fresh = domains.fresh_rows(loaded, seed=0)
    changed = domains.with_domain(loaded, 3, fresh, None, note={}, overwrite=True)
    pretrained.save_pretrained(folder, case.config, changed.params, contracts={1: _CONTRACT})
    return folder


def test_a_new_robot_gets_the_nearest_domain_and_its_own_contract(
    checkpoint: Path, tmp_path: Path
) -> None:
    listed = _run("list", checkpoint)
    assert "(libero" in listed
    assert listed.count("trained") == 3
    assert listed.count("initial") == 1

    new = ("--domain=3", "--from=nearest", "--rate=30", "--rotation=interleaved", "--name=my arm")
    said = _run("add", checkpoint, tmp_path / "out", *new, status=1)
    assert "views, proprio must be given" in said
    cameras = ("--views=front,wrist", "--proprio=measured")
    said = _run("add", checkpoint, tmp_path / "out", *new, *cameras)
    assert "copied from domain 1: nearest of 1 contracts: same action space" in said
    loaded = pretrained.load_checkpoint(tmp_path / "out")
    contract = Contract(3, "ee6d", "interleaved", 30.0, ("front", "wrist"), "measured")
    assert loaded.contracts == {1: _CONTRACT, 3: contract}
    rows = [domains.read_rows(loaded, i) for i in (1, 3)]
    assert tiny.equal(*rows)
    listed = _run("list", tmp_path / "out")
    assert "my arm" in listed
    assert "30 Hz, interleaved, front, wrist, proprio measured" in listed
    taken = ("--domain=1", "--from=0", *new[2:], *cameras)
    said = _run("add", checkpoint, tmp_path / "no", *taken, status=1)
    assert "domain 1 is in use" in said


def test_a_domain_of_other_actions_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    new = ("--domain=3", "--from=fresh", "--rate=30", "--views=front", "--proprio=measured")
    said = _run("add", checkpoint, tmp_path / "out", *new, "--rotation=none", status=1)
    assert "joints with rotation_layout 'none', but action space 'ee6d' takes 10 or 20" in said
    assert "config.action_mode" in said
    beyond = ("--rotation=contiguous", "--relative=0,20")
    said = _run("add", checkpoint, tmp_path / "out", *new, *beyond, status=1)
    assert "relative channels [20], but action space 'ee6d' has channels 0 to 19" in said
    case = golden.load("ee6d")
    config = dataclasses.replace(case.config, action_mode="auto", real_action_dim=6)
    pretrained.save_pretrained(tmp_path / "auto", config, case.params)
    new = (*new, "--overwrite")
    said = _run(
        "add", tmp_path / "auto", tmp_path / "out", *new, "--rotation=interleaved", status=1
    )
    assert "poses with rotation_layout 'interleaved', but action space 'auto' takes 6" in said
    assert not (tmp_path / "out").exists()
    _run("add", tmp_path / "auto", tmp_path / "out", *new, "--rotation=none")
    contract = pretrained.load_checkpoint(tmp_path / "out").contracts[3]
    assert (contract.action_space, contract.rotation_layout) == ("auto", "none")


def test_a_domain_moves_as_a_file(checkpoint: Path, tmp_path: Path) -> None:
    file = tmp_path / "one.safetensors"
    said = _run("export", checkpoint, file, "--domain=1")
    assert "with its contract" in said
    assert file.stat().st_size < 50_000
    _run("import", checkpoint, file, tmp_path / "out", "--domain=3")
    ours, theirs = (pretrained.load_checkpoint(p) for p in (tmp_path / "out", checkpoint))
    assert tiny.equal(domains.read_rows(ours, 3), domains.read_rows(theirs, 1))
    assert ours.contracts[3].views == ("front", "wrist")
    np.testing.assert_array_equal(
        ours.params["transformer"]["pos_emb"], theirs.params["transformer"]["pos_emb"]
    )
    said = _run("import", checkpoint, file, tmp_path / "two", "--domain=0", status=1)
    assert "Choose another --domain, or replace it with --overwrite" in said
    assert not (tmp_path / "two").exists()
    _run("import", checkpoint, file, tmp_path / "two", "--domain=0", "--overwrite")
    assert tiny.equal(
        domains.read_rows(pretrained.load_checkpoint(tmp_path / "two"), 0),
        domains.read_rows(theirs, 1),
    )


def test_domains_are_known_by_name(checkpoint: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    new = ("--rate=30", "--rotation=interleaved", "--views=front", "--proprio=measured")
    said = _run("add", checkpoint, one, "--name=my_arm", "--from=RT1", *new)
    assert "domain 19 (my_arm) is in it" in said, "ids of X-VLA's weights are left to them"
    loaded = pretrained.load_checkpoint(one)
    assert loaded.domains["my_arm"] == 19
    assert loaded.config.num_domains == 20
    assert tiny.equal(domains.read_rows(loaded, 19), domains.read_rows(loaded, 1))
    listed = _run("list", one)
    assert "my_arm" in listed
    assert "libero" in listed
    assert "(libero)" not in listed, "the checkpoint states the names now"
    file = tmp_path / "arm.safetensors"
    _run("export", one, file, "--domain=my_arm")
    _run("import", one, file, two, "--name=second")
    assert pretrained.load_checkpoint(two).domains["second"] == 20
    said = _run("export", one, file, "--domain=my_rm", status=1)
    assert "no domain of that name; it has Bridge, RT1, Calvin, libero, my_arm" in said
    said = _run("add", one, tmp_path / "no", "--name=my_arm", "--from=RT1", *new, status=1)
    assert "domain 19 is in use" in said
    said = _run("add", one, tmp_path / "no", "--name=a=b", "--from=RT1", *new, status=1)
    assert "'a=b' cannot name a domain" in said
