"""The adapting configs as somebody at a shell runs them, on a tiny model and made-up data."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from data.rows.table import dataset
from data.writing.recorded import write_dataset
from tests.data.writing.test_recorded import OPTIONS, episode
from tests.quick_compile import QUICK_COMPILE
from tests.xvla_jax import tiny
from xvla_jax import pretrained
from xvla_jax.checkpoint_tools.convert_layout import convert_checkpoint
from xvla_jax.lora import adapter_delay, adapter_space, load_adapter, merge_adapter
from xvla_jax.training.groups import split
from xvla_jax.training.optimizer import OptimizerConfig

pytestmark = [pytest.mark.rlds, pytest.mark.slow]

_ROOT = Path(__file__).resolve().parents[2]
_SMALL = {
    "data.mixture": "libero_demos",
    "data.shuffle_buffer": 64,
    "data.lanes": 1,
    "dtype": "float32",
    "batch_size": 8,
    "mesh.fsdp": 1,
    "log_every": 1,
    "save_every": 4,
    "optimizer.iters": 4,
    "optimizer.freeze_steps": 2,
    "optimizer.learning_rate": 1e-3,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds ``rlds``, one demonstration, and ``base``, a tiny checkpoint."""
    folder = tmp_path_factory.mktemp("adapting")
    path = folder / "0.npz"
    np.savez(path, **episode(0, frames=20, rate_hz=dataset("libero_demos").rate_hz))
    write_dataset([path], folder / "rlds", **OPTIONS)
    pretrained.save_pretrained(
        folder / "base", tiny.CONFIG, tiny.params(), processor=tiny.PROCESSOR
    )
    return folder


def _train(folder: Path, name: str, config: str, **changes: object) -> tuple[int, str]:
    options = {"data.root": folder / "rlds", "init_from": folder / "base"} | _SMALL | changes
    command = [sys.executable, "-m", "scripts.train", f"--config=configs/{config}.py"]
    command += [f"--workdir={folder / name}"]
    environ = {
        "XLA_FLAGS": QUICK_COMPILE,
        "COLUMNS": "120",
        "JAX_ENABLE_COMPILATION_CACHE": "true",
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    done = subprocess.run(
        command + [f"--config.{key}={value}" for key, value in options.items()],
        cwd=_ROOT,
        env=os.environ | environ,
        text=True,
        capture_output=True,
        timeout=600,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout + done.stderr


def test_a_lora_run_resumes_on_its_base_alone_and_leaves_an_adapter(folder: Path) -> None:
    half = {"optimizer.iters": 2}
    status, output = _train(folder, "run", "lora", **half)
    assert status == 0, output
    assert "frozen until step" in output
    assert "the adapter is in" in output
    other = {**pretrained.load_checkpoint(folder / "base").params}
    other["transformer"]["norm"]["bias"] += 1.0
    pretrained.save_pretrained(folder / "other", tiny.CONFIG, other, processor=tiny.PROCESSOR)
    status, output = _train(folder, "run", "lora", init_from=folder / "other")
    assert status != 0
    assert "is of a LoRA run with another adapter or base; config.init_from is" in output
    status, output = _train(folder, "run", "lora", init_from=folder / "run")
    assert status != 0
    assert "an adapter needs a complete checkpoint" in output

    status, output = _train(folder, "run", "lora")
    assert status == 0, output
    assert "resuming" in output
    status, output = _train(folder, "straight", "lora")
    assert status == 0, output
    loaded = pretrained.load_checkpoint(folder / "run")
    assert tiny.equal(loaded.params, pretrained.load_checkpoint(folder / "straight").params)
    assert set(loaded.contracts) == {3}
    base = pretrained.load_checkpoint(folder / "base").params
    adapter = load_adapter(folder / "run" / "peft", loaded.config)
    assert tiny.equal(loaded.params, merge_adapter(base, adapter))
    assert adapter.peft.base == str(folder / "base")
    kernel = adapter.tensors["transformer"]["blocks"]["mlp"]["fc1"]["kernel"]
    assert np.abs(kernel["b"]).max() > 0, "it learned after the freeze"
    step = folder / "run" / "checkpoints" / "4"
    assert not any("token_embedding" in p.read_text() for p in (step / "params").glob("_METADATA"))


def test_an_adapter_for_joints_on_a_base_of_poses_says_so_wherever_it_goes(folder: Path) -> None:
    joints = {"data.mixture": "tests.scripts.robots:JOINTS6"}
    status, output = _train(folder, "no", "lora", **joints)
    assert status == 1, output
    assert "'joints6' has 6 channels of joints" in output
    joints |= {"action_mode": "auto", "real_action_dim": "6", "rtc.max_delay": "2"}
    status, output = _train(folder, "joints", "lora", **joints, **{"optimizer.iters": 2})
    assert status == 0, output
    status, output = _train(folder, "joints", "lora", **joints)
    assert status == 0, output
    assert "resuming" in output
    assert "trains for delays of 0 .. 2 actions" in output
    loaded, adapter = pretrained.load_checkpoint(folder / "joints"), folder / "joints" / "peft"
    assert (loaded.config.action_mode, loaded.config.real_action_dim) == ("auto", 6)
    assert loaded.config.rtc_max_delay == adapter_delay(adapter) == 2
    assert loaded.contracts[3].rotation_layout == "none"
    assert adapter_space(adapter) == ("auto", 6)
    convert_checkpoint(folder / "base", folder / "merged", "hf", adapter=adapter)
    merged = pretrained.load_checkpoint(folder / "merged")
    assert merged.config == loaded.config
    assert (merged.config.action_mode, merged.config.real_action_dim) == ("auto", 6)
    assert tiny.equal(merged.params, loaded.params)


def test_a_new_robot_is_adapted_to_in_two_steps(folder: Path) -> None:
    status, output = _train(folder, "first", "adapt_new_robot", **{"optimizer.iters": 2})
    assert status == 0, output
    assert "transformer_core" in output
    base = pretrained.load_checkpoint(folder / "base").params
    first = pretrained.load_checkpoint(folder / "first").params
    groups = OptimizerConfig("constant", 1, mode="prompts_and_heads").groups(tiny.CONFIG)
    learned, waited = split(first, groups)
    assert tiny.equal(waited, split(base, groups)[1]), "the first step is prompts and heads"
    assert not any(
        jax.tree.leaves(
            jax.tree.map(lambda a, b: np.array_equal(a, b), learned, split(base, groups)[0])
        )
    )
    status, output = _train(folder, "both", "adapt_new_robot", **{"optimizer.warmup_steps": 1})
    assert status == 0, output
    both = pretrained.load_checkpoint(folder / "both").params
    assert not tiny.equal(split(both, groups)[1], waited)
