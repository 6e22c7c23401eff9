"""Measures the speed of one chunk of actions, beside PyTorch's if it is given.

``python -m benchmarks.inference [--quick] [--checkpoint=FOLDER] [--out=FILE.json]
[--torch_python=EXE --torch_package=FOLDER]``

Without a checkpoint it writes one of the released size with random weights. A cell is a number of
views, denoising steps, a batch and a computing type; one whose calls would take longer than
``--budget`` is listed as not run. PyTorch's calls alternate with ours, so that other load on the
machine meets both.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import pathlib
import resource
import subprocess
import sys
import tempfile
import time
from typing import Any, Final

import jax
import numpy as np
from absl import app, flags
from rich.console import Console

from benchmarks.checkpoints import released_checkpoint
from benchmarks.inference import table
from benchmarks.timing import Timing, matmul_peak, seconds_of
from eval.files import write_json
from scripts.equivalence.torch_process import TorchOptions, TorchReference
from scripts.terminal import count_progress, quiet_libraries
from xvla_jax.planning import flops
from xvla_jax.policy import Policy

_CHECKPOINT = flags.DEFINE_string("checkpoint", "", "Released layout; random weights if empty.")
_OUT = flags.DEFINE_string("out", "outputs/inference.json", "Where the figures go.")
_QUICK = flags.DEFINE_bool("quick", False, "Few cells: under 10 minutes on 2 cores.")
_CELLS = flags.DEFINE_list(
    "cells", [], "Only these: views/steps/batch/dtype, as in 3/10/1/float32."
)
_REPEAT = flags.DEFINE_integer("repeat", 3, "Timed calls of a cell.", lower_bound=1)
_BUDGET = flags.DEFINE_float("budget", 120.0, "Most seconds for the calls of a cell.")
_COLD = flags.DEFINE_bool("cold_start", True, "Measure a fresh process up to its first action too.")
_TORCH_PYTHON = flags.DEFINE_string("torch_python", sys.executable, "Interpreter with PyTorch.")
_TORCH_PACKAGE = flags.DEFINE_string(
    "torch_package", "", "As scripts/equivalence/torch_reference.py has it."
)

_DTYPES: Final = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class Cell:
    """One line of the table."""

    views: int
    steps: int
    batch: int
    dtype: str


_GRID: Final = [Cell(*c) for c in itertools.product((1, 2, 3), (1, 5, 10), (1, 8, 32), _DTYPES)]
_QUICK_GRID: Final = [
    Cell(3, 10, 1, "float32"),
    Cell(1, 10, 1, "float32"),
    Cell(3, 1, 1, "float32"),
    Cell(3, 1, 1, "bfloat16"),
]

# Fresh processes: name, and whether they have a compilation cache (the first with one fills it).
_STARTS: Final = (("no cache", False), ("cold cache", True), ("warm cache", True))

# line of the table of work -> pattern of the place in the model where a product stands
STAGES: Final = {
    "vision tower": r"/vision_tower/",
    "image tokens": r"/image_projector/",
    "text encoder": r"/text_encoder/",
    "head, once": r"/XVLA\.prepare/",
    "head, attention": r"/XVLA\.denoise/.*/attn/(?!.*(?:qkv|proj)/dot_general)",
    "head, every step": r"/XVLA\.denoise/",
}


def measure(
    policy: Policy, cell: Cell, peak: float, torch: TorchReference | None
) -> dict[str, Any]:
    """Returns all figures of a cell; without ``p50`` if it was skipped."""
    start = time.perf_counter()
    lowered = policy.lower(views=cell.views, batch=cell.batch, steps=cell.steps)
    program = lowered.compile()
    record: dict[str, Any] = {
        **dataclasses.asdict(cell),
        "compile_seconds": time.perf_counter() - start,
        "flops": flops.flops_by_stage(program.as_text(), STAGES),
    }
    work = sum(record["flops"].values())
    calls = _REPEAT.value + 1
    expected = calls * work / peak * (2 if torch else 1)
    if expected > _BUDGET.value:
        return record | {"not_run": f"{calls} calls would take about {expected:.0f} s"}
    inputs = jax.device_put(policy.example_inputs(views=cell.views, batch=cell.batch))
    seconds_of(lambda: program(policy.params, inputs))
    ours, theirs = [], []
    _torch_call(torch, policy, cell)
    for _ in range(_REPEAT.value):
        ours.append(seconds_of(lambda: np.asarray(program(policy.params, inputs))))
        theirs += _torch_call(torch, policy, cell)
    timing = Timing(tuple(ours))
    record |= timing.to_dict() | {
        "chunks_per_second": cell.batch / timing.percentile(50),
        "flops_per_second": work / timing.percentile(50),
        "memory_bytes": _memory(program),
    }
    if theirs:
        other = Timing(tuple(theirs))
        record["pytorch"] = other.to_dict()
        record["ratio"] = timing.percentile(50) / other.percentile(50)
    return record


def _torch(
    checkpoint: pathlib.Path, dtype: str
) -> contextlib.AbstractContextManager[TorchReference | None]:
    if not _TORCH_PACKAGE.value:
        return contextlib.nullcontext()
    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    options = TorchOptions(_TORCH_PACKAGE.value, _TORCH_PYTHON.value, dtype=dtype, device=device)
    return TorchReference(checkpoint, options)


def _torch_call(torch: TorchReference | None, policy: Policy, cell: Cell) -> list[float]:
    if torch is None:
        return []
    request = {
        "command": "time",
        "batch": cell.batch,
        "views": policy.processor.num_views,
        "present": cell.views,
        "image_size": policy.processor.image_size,
        "text_length": policy.processor.text_length,
        "steps": cell.steps,
        "warmup": 0,
        "repeat": 1,
        "parts": ["actions"],
    }
    return torch.ask(request)["seconds"]["actions"]


def _memory(program: jax.stages.Compiled) -> int:
    """Returns bytes on the device: the allocator's peak if reported, else those declared."""
    stats = jax.local_devices()[0].memory_stats() or {}
    declared: Any = program.memory_analysis()
    return stats.get(
        "peak_bytes_in_use", declared.argument_size_in_bytes + declared.temp_size_in_bytes
    )


def cold_starts(checkpoint: pathlib.Path) -> dict[str, dict[str, float]]:
    """Times fresh processes by part: without a cache, filling one, and with it filled."""
    starts = {}
    with tempfile.TemporaryDirectory() as cache:
        for name, cached in _STARTS[1 if _QUICK.value else 0 :]:
            command = [sys.executable, "-m", "benchmarks.cold_start", str(checkpoint)]
            done = subprocess.run(
                [*command, f"--cache={cache if cached else ''}"],
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
            starts[name] = json.loads(done.stdout.splitlines()[-1])
    return starts


def _cells() -> list[Cell]:
    if not _CELLS.value:
        return _QUICK_GRID if _QUICK.value else _GRID
    parts = [text.split("/") for text in _CELLS.value]
    return [Cell(int(v), int(s), int(b), dtype) for v, s, b, dtype in parts]


def main(argv: list[str]) -> None:
    """Measures, prints the tables, writes the JSON."""
    del argv
    quiet_libraries()
    console = Console(width=120)
    started = time.perf_counter()
    out = pathlib.Path(_OUT.value)
    checkpoint, cells = released_checkpoint(_CHECKPOINT.value, out, console), _cells()
    device = jax.local_devices()[0]
    record: dict[str, Any] = {
        "device": f"{device.platform} {device.device_kind}",
        "jax": jax.__version__,
        "cold_start": cold_starts(checkpoint) if _COLD.value else {},
        "matmul_peak": {},
        "cells": [],
    }
    with count_progress(console, "cells") as show:
        for dtype in _DTYPES:
            chosen = [cell for cell in cells if cell.dtype == dtype]
            if not chosen:
                continue
            peak = record["matmul_peak"][dtype] = matmul_peak(dtype)
            policy = Policy.from_pretrained(checkpoint, dtype=dtype)
            with _torch(checkpoint, dtype) as torch:
                record.setdefault("pytorch", {})[dtype] = dict(torch.about) if torch else None
                for cell in chosen:
                    record["cells"].append(measure(policy, cell, peak, torch))
                    show(len(record["cells"]), len(cells))
    record["peak_rss_bytes"] = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    record["seconds"] = time.perf_counter() - started
    table.show(console, record)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_json(out, record)
    console.print(f"written to {out} after {record['seconds']:.0f} s", markup=False)


if __name__ == "__main__":
    app.run(main)
