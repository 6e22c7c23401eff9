"""Measures the cost of a train step beside PyTorch's, and of a save.

``python -m benchmarks.training [--only=step|save|full_save] [--shape=RELEASED] [--out=FILE.json]
[--place=FOLDER] [--torch_python=EXE --torch_package=FOLDER|lerobot]``

Each side of the step runs in a process of its own, one after the other, as two full-size states do
not fit into one memory; forward, backward, clipping and AdamW on one sample of three views in
float32. The package is the folder with the original ``models/``, or lerobot, run from a checkpoint
with random weights. ``benchmarks.kills`` measures what kills cost.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any, Final

import jax
from absl import app, flags
from rich.console import Console
from rich.table import Table

from benchmarks.train_step import run_parts, small_run, timed_steps
from configs import models
from eval.files import write_json
from scripts.places.files import place_of
from scripts.places.workdir import Workdir
from scripts.random_weights import write_random_checkpoint
from scripts.restarts.run_files import newest_step
from scripts.terminal import quiet_libraries
from xvla_jax.config import XVLAConfig
from xvla_jax.processor import Processor
from xvla_jax.training.checkpointer import Checkpointer, RunItems
from xvla_jax.training.telemetry import JsonLines

_OUT = flags.DEFINE_string("out", "outputs/training.json", "Where the figures go.")
_ONLY = flags.DEFINE_multi_enum(
    "only", [], ["step", "save", "full_save"], "Only these; all if none is named."
)
_SHAPE = flags.DEFINE_enum("shape", "RELEASED", ["RELEASED", "SMALL", "TINY"], "Model of the step.")
_REPEAT = flags.DEFINE_integer("repeat", 3, "Timed steps.", lower_bound=1)
_TORCH_PYTHON = flags.DEFINE_string("torch_python", sys.executable, "Interpreter with PyTorch.")
_TORCH_PACKAGE = flags.DEFINE_string(
    "torch_package", "", "Folder with the original models/, or lerobot."
)

_PLACE = flags.DEFINE_string(
    "place",
    "",
    "New folder of the saves of --only=save, maybe in a bucket; temporary if not given.",
)

_SAVES: Final = 5
_INTERVAL: Final = 500  # steps between two saves, for the share
_GB: Final = 1e9


def steps() -> dict[str, Any]:
    """Measures seconds and peak memory of a step, ours and PyTorch's.

    PyTorch's comes first: an environment that lacks something fails before ours has compiled.
    """
    sides = {}
    if _TORCH_PACKAGE.value:
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = pathlib.Path(folder) / "checkpoint"
            shape_dict = models.model_dict(getattr(models, _SHAPE.value), action_mode="ee6d")
            write_random_checkpoint(
                checkpoint,
                XVLAConfig.from_dict(shape_dict),
                Processor(),
                seed=0,
                dtype="float32",
                on_tensor=lambda done, total: None,  # noqa: ARG005
            )
            command = [_TORCH_PYTHON.value, "-m", "benchmarks.torch_train_step"]
            command += [f"--package={_TORCH_PACKAGE.value}", f"--checkpoint={checkpoint}"]
            sides["pytorch"] = _run([*command, *_options()])
    shape = f"--shape={_SHAPE.value}"
    sides["ours"] = _run([sys.executable, "-m", "benchmarks.train_step", shape, *_options()])
    return sides


def _options() -> list[str]:
    # 49 image tokens and one more come before the text; the small shapes have few positions
    positions = getattr(models, _SHAPE.value).text_positions
    return [f"--repeat={_REPEAT.value}", f"--text_length={min(50, positions - 50)}"]


def _run(command: list[str]) -> dict[str, Any]:
    environ = os.environ | {"JAX_PLATFORMS": "cpu"}  # what the comparison is on
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environ)
    return json.loads(done.stdout.splitlines()[-1])


def saves() -> dict[str, Any]:
    """Measures how long asynchronous saves of the small model block the loop, beside its steps."""
    state, step, batch = small_run()
    seconds, state = timed_steps(step, state, batch, repeat=20)
    per_step = sorted(seconds)[len(seconds) // 2]
    blocked, written, beside = [], [], []
    items = RunItems({}, {}, {})
    with contextlib.ExitStack() as stack:
        folder = _PLACE.value or stack.enter_context(tempfile.TemporaryDirectory())
        workdir = stack.enter_context(Workdir(place_of(folder, flag="--place")))
        log = stack.enter_context(contextlib.closing(JsonLines(workdir.local)))

        def position() -> dict[str, Any]:
            workdir.copy()  # as a training does before it saves
            return {}

        checkpointer = Checkpointer(workdir.place, keep=1, save_interval=_INTERVAL)
        for number in range(1, _SAVES + 1):
            log.write(number, {"loss": 1.0})
            began, before = time.monotonic(), checkpointer.blocked_s
            checkpointer.save(number, state, position=position, items=items, force=True)
            blocked.append(checkpointer.blocked_s - before)
            while newest_step(workdir.place) < number:
                seconds, state = timed_steps(step, state, batch, repeat=5)
                beside += seconds
            written.append(time.monotonic() - began)
        checkpointer.close()
    state_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    return {
        "place": _PLACE.value or "a local disk",
        "step_s": per_step,
        "beside_s": sorted(beside)[len(beside) // 2],
        "blocked_s": blocked,
        "written_s": written,
        "share": max(blocked) / (_INTERVAL * per_step),
        "state_bytes": state_bytes,
    }


def full_save() -> dict[str, Any]:
    """Measures how long one save of the released size blocks, and until it is written.

    No step runs: the state and its copy take 21 GB, and a step's temporaries would come on top.
    """
    state, _, _ = run_parts("RELEASED", Processor(), size=1)
    with tempfile.TemporaryDirectory() as folder:
        checkpointer = Checkpointer(folder, keep=1, save_interval=_INTERVAL)
        began = time.perf_counter()
        checkpointer.save(1, state, position=dict, items=RunItems({}, {}, {}), force=True)
        checkpointer.close()
        written = time.perf_counter() - began
    return {
        "blocked_s": checkpointer.blocked_s,
        "written_s": written,
        "state_bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(state)),
    }


_PARTS: Final[dict[str, Callable[[], dict[str, Any]]]] = {
    "step": steps,
    "save": saves,
    "full_save": full_save,
}


def show(console: Console, record: dict[str, Any]) -> None:
    """Prints the figures as tables."""
    if "step" in record:
        table = Table(title=f"train step, {_SHAPE.value}, batch 1, float32")
        for name in ("", "step, s", "ratio", "peak memory, GB", "compile or first step, s"):
            table.add_column(name, justify="right" if name else "left")
        theirs = record["step"].get("pytorch")
        for side, figures in record["step"].items():
            ratio = f"{figures['median_s'] / theirs['median_s']:.2f}" if theirs else "not run"
            table.add_row(
                side,
                f"{figures['median_s']:.2f}",
                ratio,
                f"{figures['peak_rss_bytes'] / _GB:.2f}",
                f"{figures['first_s']:.1f}",
            )
        console.print(table)
    if "save" in record:
        figures = record["save"]
        table = Table(title=f"asynchronous save, small model, {figures['place']}")
        for name in (
            "step, s", "beside a save", f"blocked, longest of {_SAVES}, s",
            f"of {_INTERVAL} steps", "until written, longest, s", "state, MB",
        ):  # fmt: skip
            table.add_column(name, justify="right")
        table.add_row(
            f"{figures['step_s']:.3f}",
            f"{figures['beside_s']:.3f}",
            f"{max(figures['blocked_s']):.3f}",
            f"{figures['share']:.2%}",
            f"{max(figures['written_s']):.1f}",
            f"{figures['state_bytes'] / 1e6:.0f}",
        )
        console.print(table)
    if "full_save" in record:
        _show_full_save(console, record["full_save"])


def _show_full_save(console: Console, figures: dict[str, Any]) -> None:
    table = Table(title="asynchronous save, released size, no step beside it")
    for name in ("blocked, s", "until written, s", "state, GB"):
        table.add_column(name, justify="right")
    table.add_row(
        f"{figures['blocked_s']:.1f}",
        f"{figures['written_s']:.1f}",
        f"{figures['state_bytes'] / _GB:.2f}",
    )
    console.print(table)


def main(argv: list[str]) -> None:
    """Measures, prints the tables, writes the JSON."""
    del argv
    quiet_libraries()
    console = Console(width=120)
    record = {}
    for name in _ONLY.value or _PARTS:
        console.print(f"{name} ...", style="dim")
        record[name] = _PARTS[name]()
    show(console, record)
    out = pathlib.Path(_OUT.value)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_json(out, record)
    console.print(f"written to {out}", markup=False)


if __name__ == "__main__":
    app.run(main)
