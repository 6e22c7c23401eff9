"""The planner's command: configs read as runs, plans shown as tables, a tiny model planned."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import pytest
from rich.console import Console

from configs import debug, finetune_libero, pretrain, pretrain_oxe
from scripts import plan
from scripts.training.planning import (
    as_markdown,
    pipeline_bytes,
    plan_rows,
    print_plan,
    run_of,
    stage_rows,
    stage_tables,
)
from xvla_jax.errors import ConfigError
from xvla_jax.planning.chips import CHIPS, GIB, Slice, describe, has_compiler
from xvla_jax.planning.programs import Run

ROOT = Path(__file__).resolve().parents[2]

_PLAN: dict[str, Any] = {
    "topology": "v5e:4x4",
    "devices": 16,
    "hosts": 2,
    "mesh": {"data": 4, "fsdp": 4},
    "ring_hops": {"data": 3, "fsdp": 3},
    "batch_size": 128,
    "views": 2,
    "dtype": "bfloat16",
    "remat": "full",
    "hbm_limit": 16 * GIB,
    "state_per_chip": 3 * GIB,
    "checkpoint": {"step": 4, "params": 3 * GIB, "opt_state": 6 * GIB},
    "host_ram": {"checkpoint copy": 4 * GIB, "blocks": GIB},
    "host_ram_limit": 512 * GIB,
    "fits": True,
    "memory": {
        "arguments": 3 * GIB,
        "outputs": 3 * GIB,
        "aliased": 3 * GIB,
        "temporaries": 8 * GIB,
        "code": 0,
        "peak": 11 * GIB,
    },
    "flops": 4e12,
    "model_flops": 3e12,
    "hbm_bytes": 20 * GIB,
    "ici_bytes": {"all-gather": 2 * GIB, "all-reduce": 0.0},
    "core_seconds": 0.04,
    "ici_seconds": 0.02,
    "fastest_seconds": 0.04,
    "slowest_seconds": 0.06,
    "limited_by": "FLOPs",
    "mfu_bound": 0.38,
    "compile_seconds": 60.0,
    "guards": {"host calls": [], "gathers of optimizer state": ["all-gather.1"]},
    "largest": {"batch_size": 192, "peak": 15 * GIB, "per_sample": GIB, "compilations": 2},
}


def test_configs_are_read_as_runs() -> None:
    run = run_of(pretrain.get_config(), 0)
    assert (run.batch_size, run.views, run.fsdp, run.dtype) == (1024, 3, 4, jnp.bfloat16)
    assert (run.optimizer.iters, run.optimizer.betas) == (200_000, (0.9, 0.95))
    assert (run.optimizer.learning_rate, run.optimizer.weight_decay) == (1e-4, 0.01)
    libero = run_of(finetune_libero.get_config(), 2)
    assert (libero.batch_size, libero.views, libero.optimizer.iters) == (128, 2, 60_000)
    delayed: Any = finetune_libero.get_config()
    delayed.rtc.max_delay = 8
    assert (libero.config.rtc_max_delay, run_of(delayed, 2).config.rtc_max_delay) == (0, 8)
    delayed.rtc.max_delay = 30
    with pytest.raises(ConfigError, match=r"max_delay is 30; .* 0 \.\. 29 is allowed: a chunk has"):
        run_of(delayed, 2)
    wrong = debug.get_config()
    wrong.dtype = "float16"
    with pytest.raises(ConfigError, match=r"config\.dtype is 'float16'; allowed are float32"):
        run_of(wrong, 0)


def test_a_teacher_is_planned_with_its_student() -> None:
    config: Any = debug.get_config()
    config.distill.steps, config.context_attends_to = 1, "context"
    run = run_of(config, 2)
    assert run.distill
    assert run.distill.teacher.config.context_attends_to == "all"
    assert run.config == dataclasses.replace(
        run.distill.teacher.config, context_attends_to="context"
    )
    assert run.recipe.distill is run.distill
    rows = dict(plan_rows(_PLAN | {"teacher_per_chip": GIB}))
    assert rows["of it the teacher"] == "1.00 GiB a chip"
    config.from_scratch = True
    with pytest.raises(ConfigError, match=r"distill.steps is 1 and config.from_scratch True: the"):
        run_of(config, 2)


def test_host_memory_is_shared_by_hosts() -> None:
    config = pretrain.get_config()
    run = run_of(config, 0)
    one, four = (
        pipeline_bytes(config, run, Slice("", CHIPS["v5p"], (2, 2, n), range(4 * n)))
        for n in (1, 4)
    )
    assert one["batches"] == 4 * four["batches"]
    assert one["blocks"] > four["blocks"]


def test_the_sets_of_open_x_share_the_memory_of_one_buffer() -> None:
    config: Any = pretrain_oxe.get_config()
    run = run_of(config, 0)
    assert (run.batch_size, run.views, run.fsdp) == (1024, 3, 4)
    target = Slice("", CHIPS["v5p"], (4, 4, 4), range(64))
    shared = pipeline_bytes(config, run, target)["blocks"]
    config.data.shuffle_per = "source"
    assert pipeline_bytes(config, run, target)["blocks"] > 5 * shared


def test_a_plan_that_fits_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    rows = dict(row for row in plan_rows(_PLAN) if row[0])
    assert rows["peak HBM"] == "11.00 GiB of 16.00 GiB a chip"
    assert rows["sent a chip"] == "all-gather 2.00 GiB"
    assert rows["step"] == "40.0 to 60.0 ms (limited by FLOPs)"
    assert rows["guards"] == "1 gathers of optimizer state"
    assert rows["checkpoint"] == "9.00 GiB: params 3.00 GiB, opt_state 6.00 GiB"
    assert rows["largest batch"].startswith("192 (15.00 GiB")
    row = as_markdown([_PLAN]).splitlines()[2]
    assert row.startswith("| v5e:4x4 | 4 x 4 | 128 | full | 11.00 / 16.00 | 4.00 | 20.0 | 2.00 |")
    assert row.endswith("| 40 to 60 | 38% | 192 |")
    print_plan(Console(width=200), _PLAN)
    assert "assumed: collectives are rings" in capsys.readouterr().out


def test_the_table_by_stage_ends_with_its_sum() -> None:
    share = {"stage": "head", "of_pass": "backward", "kind": "product"}
    small = {"flops": 0, "bytes": GIB, "seconds": 1e-5}
    shares = [
        share | {"flops": 2e12, "bytes": 3 * GIB, "seconds": 0.02},
        share | {"kind": "copy"} | small,
    ]
    first, last = stage_rows(shares)
    assert first == ("head", "backward", "product", "2.00", "3.0", "20.0")
    assert last == ("all", "", "", "2.00", "4.0", "20.0")
    [table] = stage_tables([_PLAN, _PLAN | {"by_stage": shares}])
    assert table.splitlines()[2] == "| head | backward | product | 2.00 | 3.0 | 20.0 |"


def test_a_plan_that_does_not_fit_says_what_would() -> None:
    made = {"memory", "largest", "fits"}
    plan = {k: v for k, v in _PLAN.items() if k not in made} | {"fits": False, "needed": 20 * GIB}
    nearest = {"change": "--config.batch_size=64", "peak": 14 * GIB, "accumulation": 2}
    rows = plan_rows(plan | {"nearest": nearest})
    assert ("peak HBM", "does not fit: 20.00 GiB of 16.00 GiB") in rows
    assert ("nearest that fits", "--config.batch_size=64 (14.00 GiB)") in rows
    assert ("", "the same global batch takes 2 accumulated steps") in rows
    none = ("nearest that fits", "none found; take a larger slice")
    assert none in plan_rows(plan | {"nearest": None})
    assert "20.0 / 16.00: does not fit" in as_markdown([plan])


def test_nothing_is_warmed_where_nothing_is_kept(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["plan", "--warm", "--config=configs/debug.py", "--program_cache=off"]
    monkeypatch.setattr(sys, "argv", argv)
    assert plan.COMMAND.run(plan.main, argv) == 1
    assert capsys.readouterr().err.splitlines() == [
        "error: compiled programs are not kept (--program_cache=off); --warm compiles to keep: "
        "name a --program_cache=FOLDER"
    ]


@pytest.mark.parametrize("name", ["v5e", "v5e-16", "h100:4x4", "v5e:4"])
def test_unknown_slices_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="write kind:AxB or kind:AxBxC, with a kind of v5e"):
        describe(name)


@pytest.mark.parametrize("topologies", ["v5e:4x4,gpu:24,v5e:2x2", "gpu:24,v5e:2x2,v5e:4x4"])
def test_each_topology_is_planned_as_if_it_were_alone(
    topologies: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: dict[str, int] = {}

    def planned(run: Run, target: Slice, **_: Any) -> dict[str, Any]:
        batches[target.name] = run.batch_size
        return {"fits": True}

    def on_cards(run: Run, chosen: Any, **_: Any) -> list[dict[str, Any]]:
        batches[chosen[0].name] = run.batch_size
        return [{"fits": True}]

    def nothing(*_: Any) -> None: ...

    def described(name: str) -> Any:
        sides = name.partition(":")[2].split("x")
        return SimpleNamespace(name=name, hosts=1, devices=[0] * math.prod(map(int, sides)))

    for place, fake in (
        ("xvla_jax.planning.chips.describe", described),
        ("xvla_jax.planning.report.make_plan", planned),
        ("xvla_jax.planning.cards.card_plans", on_cards),
        ("scripts.training.planning.print_plan", nothing),
        ("scripts.training.planning.print_cards", nothing),
    ):
        monkeypatch.setattr(place, fake)
    config = debug.get_config()
    config.batch_size, config.batch_size_per = 2, "device"
    line = ["plan", "--config=configs/debug.py", f"--topology={topologies}"]
    arguments = plan.COMMAND.parse(line)
    monkeypatch.setattr(plan, "_CONFIG", SimpleNamespace(value=config))
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert plan.main(arguments) == 0
    assert batches == {"v5e:4x4": 32, "gpu:24": 2, "v5e:2x2": 8}


_COMPILING = """
import hashlib
import runpy
import sys
from scripts.training import planning

def run_of(config, views):
    print("begun", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**28)  # minutes outside of Python, as a compilation

planning.run_of = run_of
sys.argv = ["plan", "--config=configs/debug.py", "--topology=cpu"]
runpy.run_module("scripts.plan", run_name="__main__")
"""


@pytest.mark.slow
def test_ctrl_c_ends_a_compilation() -> None:
    command = [sys.executable, "-c", _COMPILING]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "begun\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == -signal.SIGINT


@pytest.mark.slow
@pytest.mark.skipif(not has_compiler(), reason="no libtpu: scripts/setup.sh tpu")
def test_the_tiny_model_is_planned_for_a_slice() -> None:
    command = [
        *(sys.executable, "-m", "scripts.plan", "--config=configs/debug.py"),
        *("--topology=v5e:4x4", "--config.batch_size=32", "--config.dtype=bfloat16"),
        *(
            "--config.remat=full",
            "--config.mesh.fsdp=4",
            "--nolargest",
            "--inference",
            "--by_stage",
            "--json",
        ),
    ]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name != "XLA_FLAGS"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    [plan] = json.loads(done.stdout)
    assert plan["fits"]
    assert 0 < plan["memory"]["peak"] < 2**30
    assert plan["flops"] > plan["model_flops"] > 0
    assert plan["ici_bytes"]["all-reduce"] > 0
    assert sum(share["bytes"] for share in plan["by_stage"]) == plan["hbm_bytes"]
    stages = {share["stage"] for share in plan["by_stage"] if share["kind"] == "product"}
    assert {"vision tower", "text encoder", "head"} <= stages
    for program in (plan, plan["sampler"]):
        assert program["guards"] == {name: [] for name in program["guards"]}
    assert sum(plan["sampler"]["ici_bytes"].values()) == 0
