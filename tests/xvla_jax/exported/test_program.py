"""An exported policy acts as the policy does, without this library, and names what was changed."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.xvla_jax import tiny
from xvla_jax.batch import Observation
from xvla_jax.contract import Contract
from xvla_jax.errors import CheckpointError, InputError
from xvla_jax.exported import standalone
from xvla_jax.exported.program import RUNNER, write_program
from xvla_jax.exported.standalone import ExportedError, ExportedPolicy
from xvla_jax.policy import Policy
from xvla_jax.preprocessing.scaling import MODES, Scaling

_TEXTS = ("stack the cups", "put the cube onto the plate")
_STEPS, _VIEWS, _BATCH = 2, 2, 2
_SCALING = Scaling("MEAN_STD", tuple(np.linspace(-1, 1, 20)), tuple(np.linspace(0.5, 2, 20)), 1e-8)
# What an environment of JAX, NumPy and flatbuffers holds; jax.export reads programs by the last.
_BARE = ("jax", "jaxlib", "numpy", "ml_dtypes", "opt_einsum", "scipy", "flatbuffers")
_ACT = """
import numpy as np
from policy import ExportedPolicy
given = np.load("given.npz")
observation = {
    "images": list(given["images"]), "instruction": str(given["instruction"]),
    "proprio": given["proprio"], "domain_id": "libero",
}
np.save("acted.npy", ExportedPolicy(".").act([observation], seed=7))
"""


def _observation(number: int, views: int = _VIEWS, domain: int = 3) -> Observation:
    rng = np.random.default_rng(number)
    side = tiny.PROCESSOR.image_size
    return {
        "images": [rng.integers(0, 256, (side, side, 3), np.uint8) for _ in range(views)],
        "instruction": _TEXTS[number % 2],
        "proprio": rng.normal(0, 0.3, 20).astype(np.float32),
        "domain_id": domain,
    }


@pytest.fixture(scope="module")
def policy() -> Policy:
    """Units of its own, and a domain that lacks two channels of the second arm."""
    processor = dataclasses.replace(tiny.PROCESSOR, state=_SCALING, action=_SCALING)
    lacking = Contract(5, "ee6d", "contiguous", 20.0, ("agentview", "wrist"), "commanded")
    lacking = dataclasses.replace(lacking, unrecorded=(12, 19), relative_channels=(12,))
    return Policy(tiny.CONFIG, tiny.params(), processor, {5: lacking})


@pytest.fixture(scope="module")
def folder(policy: Policy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exported") / "program"
    write_program(out, policy, instructions=_TEXTS, views=_VIEWS, batch=_BATCH, steps=_STEPS)
    return out


@pytest.fixture(scope="module")
def exported(folder: Path) -> ExportedPolicy:
    return ExportedPolicy(str(folder))


def test_actions_are_those_of_the_policy_to_the_bit(
    policy: Policy, exported: ExportedPolicy
) -> None:
    observations = [_observation(0), _observation(1, views=1, domain=5)]
    expected = policy.act(observations, steps=_STEPS, seed=[3, 4])
    acted = exported.act(observations, seed=[3, 4])
    np.testing.assert_array_equal(acted, expected)
    # the channels that the domain's data lack: the pose is held, the relative one does not move
    assert (acted[1, :, 19] == np.float32(observations[1]["proprio"][19])).all()
    assert (acted[1, :, 12] == 0).all()
    np.testing.assert_array_equal(
        exported.act(observations, seed=9, steps=3), policy.act(observations, seed=9, steps=3)
    )


def test_one_of_a_batch_is_the_same_alone(exported: ExportedPolicy) -> None:
    both = exported.act([_observation(0), _observation(1)], seed=[3, 4])
    alone = exported.act([_observation(0)], seed=3)
    np.testing.assert_array_equal(alone[0], both[0])


def test_jax_and_its_own_needs_are_all_that_it_takes(
    folder: Path, exported: ExportedPolicy, tmp_path: Path
) -> None:
    shutil.copytree(folder, tmp_path / "moved")
    given = _observation(1)
    np.savez(
        tmp_path / "moved" / "given.npz",
        images=np.stack(given["images"]),
        instruction=given["instruction"],
        proprio=given["proprio"],
    )
    site = tmp_path / "site"
    site.mkdir()
    for name in _BARE:
        installed = Path(importlib.import_module(name).__file__ or "").parent
        for pattern in (name, f"{name}.libs", f"{name}-*.dist-info"):
            for part in installed.parent.glob(pattern):
                (site / part.name).symlink_to(part)
    done = subprocess.run(
        [sys.executable, "-S", "-c", _ACT],  # -S: without the packages that are installed here
        cwd=tmp_path / "moved",
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    acted = np.load(tmp_path / "moved" / "acted.npy")
    np.testing.assert_array_equal(acted, exported.act([_observation(1)], seed=7))


@pytest.mark.parametrize(
    "name",
    [
        *(standalone.PROGRAM, standalone.WEIGHTS, standalone.CONTRACT, standalone.PROCESSOR),
        *(standalone.MANIFEST, RUNNER),
    ],
)
@pytest.mark.parametrize("gone", [False, True])
def test_a_changed_byte_is_named(folder: Path, tmp_path: Path, name: str, gone: bool) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    path = tmp_path / "copy" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink()
    if not gone:
        path.write_bytes(content)
    with pytest.raises(ExportedError, match=name.replace(".", r"\.")):
        ExportedPolicy(str(tmp_path / "copy"))


def test_another_contract_is_refused_by_name(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    path = tmp_path / "copy" / standalone.CONTRACT
    contracts: Any = json.loads(path.read_text())
    contracts[0]["rate_hz"] = 10.0
    path.write_text(json.dumps(contracts))
    with pytest.raises(ExportedError, match=r"action_contract\.json was changed"):
        ExportedPolicy(str(tmp_path / "copy"))


def test_a_program_for_other_devices_says_how_to_export_it(policy: Policy, tmp_path: Path) -> None:
    write_program(tmp_path / "tpu", policy, instructions=_TEXTS, views=1, platforms=["tpu"])
    with pytest.raises(ExportedError, match=r"is for tpu; the device is cpu.*platforms=tpu,cpu"):
        ExportedPolicy(str(tmp_path / "tpu"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"instruction": "dance"}, "instruction is 'dance'; exported are 'stack the cups', 'put"),
        ({"domain_id": "mars"}, "domain_id is 'mars'; allowed are Bridge"),
        ({"domain_id": 77}, "domain_id is 77; allowed are Bridge"),
        ({"images": [np.zeros((32, 32, 3), np.uint8)] * 3}, "3 images; 1 .. 2 are allowed"),
        ({"images": []}, "0 images; 1 .. 2 are allowed"),
        ({"images": [np.zeros((32, 32), np.uint8)]}, r"image 0 is uint8\[32, 32\]; uint8\[H"),
        ({"proprio": np.zeros(7, np.float32)}, r"proprio has shape \(7,\); 20 finite"),
        ({"proprio": np.full(20, np.nan)}, r"proprio has shape \(20,\); 20 finite"),
        ({"input_ids": [1, 2]}, r"input_ids has shape \(2,\); \(12,\) is needed"),
    ],
)
def test_what_does_not_fit_is_one_line(
    exported: ExportedPolicy, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ExportedError, match=f"observation 0: {said}"):
        exported.act([{**_observation(0), **changes}])


def test_a_batch_or_steps_out_of_range_is_one_line(exported: ExportedPolicy) -> None:
    with pytest.raises(ExportedError, match=r"3 observations; 1 \.\. 2, the batch"):
        exported.act([_observation(0)] * 3)
    with pytest.raises(ExportedError, match="steps is 0; at least 1"):
        exported.act([_observation(0)], steps=0)


def test_tokens_may_be_given(policy: Policy, exported: ExportedPolicy) -> None:
    text = "open the drawer"
    given = {**_observation(0), "input_ids": policy.processor.tokenize([text])[0]}
    observation: Observation = {**_observation(0), "instruction": text}
    expected = policy.act([observation, observation], steps=_STEPS, seed=2)
    np.testing.assert_array_equal(exported.act([given], seed=2)[0], expected[0])


def test_other_sizes_are_resized_as_in_training(policy: Policy, exported: ExportedPolicy) -> None:
    images = [np.random.default_rng(1).integers(0, 256, (40, 48, 3), np.uint8)] * 2
    observation: Observation = {**_observation(0), "images": images}
    expected = policy.act([observation, observation], steps=_STEPS, seed=2)
    np.testing.assert_array_equal(exported.act([observation], seed=2)[0], expected[0])


@pytest.mark.parametrize("mode", MODES)
def test_units_are_turned_as_the_library_turns_them(mode: str) -> None:
    from xvla_jax.exported.program import _scaling

    rng = np.random.default_rng(0)
    low = rng.normal(size=6)
    high = low + np.array([0.5, 1, 2, 0, 3, 4])  # one range of zero
    scaling = Scaling(mode, tuple(low), tuple(high), 1e-4)
    values = rng.normal(size=(5, 8)).astype(np.float32)
    plain = json.loads(json.dumps(_scaling(scaling)))
    np.testing.assert_array_equal(
        standalone._scale(values, plain), scaling.scale(values, what="proprio")
    )
    np.testing.assert_array_equal(standalone._unscale(values, plain), scaling.unscale(values))


def test_numbers_out_of_range_and_a_folder_in_use_write_nothing(
    policy: Policy, folder: Path, tmp_path: Path
) -> None:
    before = sorted(path.name for path in folder.iterdir())
    with pytest.raises(CheckpointError, match="exists and is not empty"):
        write_program(folder, policy, instructions=_TEXTS, views=1)
    assert sorted(path.name for path in folder.iterdir()) == before
    for views, batch in ((4, 1), (0, 1), (1, 0)):
        with pytest.raises(InputError, match="at most 3 views"):
            write_program(tmp_path / "out", policy, instructions=_TEXTS, views=views, batch=batch)
    with pytest.raises(InputError, match="an instruction is ' '"):
        write_program(tmp_path / "out", policy, instructions=[" "], views=1)
    assert not list(tmp_path.iterdir())
