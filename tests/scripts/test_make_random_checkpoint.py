"""Random checkpoints: what is in them, from which they follow, and the released size."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from eval.tasks.table import TASKS
from scripts.evaluation.entrants import check_task, contracts_of
from scripts.random_weights import Written, draw, read_config, write_random_checkpoint
from tests.xvla_jax import golden
from xvla_jax.batch import Observation
from xvla_jax.checkpoints.safetensors_files import TensorFiles
from xvla_jax.errors import CheckpointError, ConfigError, ContractError
from xvla_jax.policy import Policy
from xvla_jax.pretrained import load_checkpoint
from xvla_jax.processor import Processor

_TOY = golden.FOLDER / "ee6d" / "config.json"
_PROCESSOR = Processor(image_size=64, text_length=11)


def _write(folder: Path, *, seed: int = 0, dtype: str = "float32") -> Written:
    config = read_config(str(_TOY))
    return write_random_checkpoint(
        folder, config, _PROCESSOR, seed=seed, dtype=dtype, on_tensor=lambda done, total: None
    )


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Written]:
    folder = tmp_path_factory.mktemp("random") / "out"
    return folder, _write(folder, seed=7)


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "scripts.make_random_checkpoint", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def _observation() -> Observation:
    rng = np.random.default_rng(0)
    return {
        "images": [rng.integers(0, 256, (96, 128, 3), dtype=np.uint8) for _ in range(3)],
        "instruction": "fold the towel",
        "proprio": rng.normal(size=20).astype(np.float32),
        "domain_id": 2,
    }


def test_the_file_has_the_tensors_of_the_reference_and_no_constants(
    toy: tuple[Path, Written],
) -> None:
    folder, written = toy
    ours, theirs = TensorFiles.open(folder), TensorFiles.open(_TOY.parent)
    assert dict(ours.info) == dict(theirs.info)
    assert written.tensors == len(theirs.info)
    assert written.size == (_TOY.parent / "model.safetensors").stat().st_size
    buffers = {"vlm.visual_temporal_embed.pos_idx_to_embed", "vlm.language_model.final_logits_bias"}
    for name in sorted(set(ours.info) - buffers):
        value = ours.read(name)
        assert np.isfinite(value).all()
        assert value.std() > 0.005, name
        if ".norm" in name and name.endswith(".weight"):
            assert value.mean() == pytest.approx(1.0, abs=0.02), name
    assert not ours.read("vlm.language_model.final_logits_bias").any()
    loaded = load_checkpoint(folder)
    assert loaded.config == golden.load("ee6d").config
    assert loaded.processor == _PROCESSOR


def test_a_tensor_follows_from_seed_and_name_alone() -> None:
    name = "transformer.blocks.0.attn.qkv.weight"
    first = draw(3, name, (1200, 400))
    np.testing.assert_array_equal(first, draw(3, name, (1200, 400)))
    for seed, other in ((4, name), (3, name.replace("0", "1"))):
        assert abs(np.corrcoef(first.ravel(), draw(seed, other, (1200, 400)).ravel())[0, 1]) < 0.01
    bound = (6 / 1600) ** 0.5  # Xavier
    assert 0.999 * bound < np.abs(first).max() <= bound * (1 + 1e-6)
    assert first.std() == pytest.approx(bound / 3**0.5, rel=0.01)
    table = draw(3, "vlm.language_model.model.shared.weight", (1200, 400))
    assert table.std() == pytest.approx(0.02, rel=0.01)


def test_same_seed_same_file(toy: tuple[Path, Written], tmp_path: Path) -> None:
    folder, first = toy
    assert _write(tmp_path / "again", seed=7) == first
    data = (folder / "model.safetensors").read_bytes()
    assert (first.size, first.sha256) == (len(data), hashlib.sha256(data).hexdigest())


def test_from_the_command_line_in_bfloat16(toy: tuple[Path, Written], tmp_path: Path) -> None:
    """The same numbers rounded."""
    flags = ("--seed=7", "--dtype=bfloat16", "--image_size=64", "--text_length=11")
    done = _run(str(tmp_path / "half"), f"--config={_TOY}", *flags)
    assert done.returncode == 0, done.stdout + done.stderr
    data = (tmp_path / "half" / "model.safetensors").read_bytes()
    assert f"{len(data):,} bytes, sha256 {hashlib.sha256(data).hexdigest()}" in done.stdout
    full, half = TensorFiles.open(toy[0]), TensorFiles.open(tmp_path / "half")
    assert {info.dtype for info in half.info.values()} == {"BF16"}
    for name in full.info:
        rounded = full.read(name).astype(half.read(name).dtype)
        np.testing.assert_array_equal(half.read(name), rounded, err_msg=name)
    processor = Processor.read(tmp_path / "half")
    assert (processor.image_size, processor.text_length) == (64, 11)


def test_contracts_are_written_beside_the_weights(tmp_path: Path) -> None:
    flags = ("--model_config=small", "--tasks=calvin_abc_d,widowx_spoon")
    done = _run(str(tmp_path / "small"), *flags)
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(load_checkpoint(tmp_path / "small").contracts) == [0, 2]
    refused = _run(str(tmp_path / "none"), f"--config={_TOY}", "--tasks=so101")
    assert (refused.returncode, list(tmp_path.iterdir())) == (1, [tmp_path / "small"])
    assert "error: task 'so101' carries out 20 rows" in refused.stdout


def test_it_can_be_evaluated_on_the_rows_that_it_is_given() -> None:
    names = ["calvin_abc_d", "widowx_spoon", "widowx_carrot:strict"]
    small = read_config("small")
    contracts = contracts_of(names, small)
    assert [contract.domain_id for contract in contracts] == [2, 0]
    for name in names:
        check_task(TASKS[name], "ee6d", {c.domain_id: c for c in contracts})
    with pytest.raises(ContractError, match="two contracts of domain 3; give rows of one"):
        contracts_of(["libero_goal", "quickstart"], small)
    with pytest.raises(ContractError, match="'so101' has"):
        contracts_of(["so101"], small)
    with pytest.raises(ContractError, match=r"carries out 20 rows.* chunks have 7"):
        contracts_of(["calvin_abc_d"], read_config(str(_TOY)))


def test_a_folder_in_use_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("keep me")
    with pytest.raises(CheckpointError, match="exists and is not empty"):
        _write(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_stopped_run_leaves_nothing(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done == total // 2:
            raise KeyboardInterrupt

    config = read_config(str(_TOY))
    with pytest.raises(KeyboardInterrupt):
        write_random_checkpoint(
            tmp_path / "out", config, _PROCESSOR, seed=0, dtype="float32", on_tensor=stop
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("nowhere.json", "nowhere.json is not a readable JSON file"),
        (str(_TOY.parent / "model.safetensors"), "is not a readable JSON file"),
        (str(_TOY.parent / "meta.json"), "florence_config has no"),
    ],
    ids=["nothing", "not JSON", "another JSON"],
)
def test_a_config_that_is_none_is_refused(path: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read_config(path)


def test_the_default_is_the_released_model() -> None:
    released = golden.FOLDER / "full_size_config.json"
    assert read_config("") == read_config(str(released))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "--out must be given"),
        (("out", "--dtype=float64"), "should be one of <bfloat16|float32>"),
        (("out", "--config=nowhere.json"), "error: nowhere.json is not a readable"),
    ],
    ids=["no folder", "dtype", "no config"],
)
def test_bad_arguments_write_nothing(arguments: tuple[str, ...], said: str, tmp_path: Path) -> None:
    done = _run(*(str(tmp_path / a) if a == "out" else a for a in arguments))
    assert done.returncode == 1
    text = " ".join((done.stdout + done.stderr).split())  # the terminal wraps it
    assert said in text
    assert "Traceback" not in text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_released_size_acts(tmp_path: Path) -> None:
    """Writes 3.5 GB, loads them, and samples one chunk: minutes, and about 9 GB of memory."""
    config = golden.FOLDER / "full_size_config.json"
    done = _run(str(tmp_path / "full"), f"--config={config}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "903 tensors, 3,519,068,172 bytes" in done.stdout
    policy = Policy.from_pretrained(tmp_path / "full")
    actions = policy.act([_observation()])
    assert actions.shape == (1, 30, 20)
    assert np.isfinite(actions).all()
    assert actions[..., :9].std() > 0.01
