"""``scripts.plan --warm`` compiles what ``scripts.train`` runs; the run then writes a trace."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.quick_compile import QUICK_COMPILE
from tests.scripts.runs import end, start
from tests.xvla_jax.compilation.test_profiling import traced
from xvla_jax.compilation.profiling import DATA_WAIT, SCOPES, STEP
from xvla_jax.compilation.program_cache import machine

pytestmark = [pytest.mark.rlds, pytest.mark.slow]

_SINGLE = 20_000  # bytes; a single operation takes 2 to 10 kB, the smallest model program 200 kB
_ROOT = Path(__file__).resolve().parents[2]
_FLAGS = (
    "--config.from_scratch=True",
    "--config.optimizer.iters=4",
)


def test_a_run_finds_its_programs_and_traces_its_steps(demos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "programs"
    environ = os.environ | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count=1 {QUICK_COMPILE}",
        "JAX_ENABLE_COMPILATION_CACHE": "true",
        "COLUMNS": "120",
    }
    config = ("--config=configs/debug.py", f"--config.data.root={demos}", *_FLAGS)
    done = subprocess.run(
        [sys.executable, "-m", "scripts.plan", "--warm", *config, f"--program_cache={folder}"],
        cwd=_ROOT,
        env=environ,
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    for name in ("the initial state", "the train step"):
        assert f"{name} is kept now" in done.stdout
    assert f"compiled programs are kept in {folder}/" in done.stdout
    kept = set(folder.rglob("*-cache"))
    assert {path.name.partition("-")[0] for path in kept} > {"jit_train_step", "jit__lambda"}

    status, output = end(
        start(demos, tmp_path / "run", *_FLAGS, "--config.profile=2:4", compiled=folder / machine())
    )
    assert status == 0, output
    assert "train step: ready after " in output, output
    assert "no peak known for cpu" in output
    # JAX writes whatever it compiles: the run may add single operations, no program of the model
    new = [path for path in set(folder.rglob("*-cache")) - kept if path.stat().st_size > _SINGLE]
    assert new == []

    traces = tmp_path / "run" / "tensorboard"
    assert traced(traces) == {STEP: [2, 3], DATA_WAIT: [0, 0]}
    [trace] = traces.glob("plugins/profile/*/*.xplane.pb")
    program = trace.read_bytes()  # it holds the program, with the name of each operation
    # a scope of its own, or in that of a derivative: /optimizer/, jvp(loss)/
    assert [s for s in SCOPES if not re.search(rf"[/(]{s}[/)]".encode(), program)] == []
