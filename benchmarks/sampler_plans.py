"""Measures what sampler plans cost: ``python -m benchmarks.sampler_plans``.

``python -m benchmarks.sampler_plans [--checkpoint=FOLDER] [--plans=exact10,frozen10,frozen3]
[--views=3] [--batch=1] [--dtype=float32] [--rounds=3] [--out=FILE.json]``

GFLOP of a chunk from each compiled program, loops times their trips; and seconds of calls that take
turns, plan after plan, so that other load on the machine meets all of them. Without a checkpoint it
writes one of the released size with random weights: what a plan costs does not depend on them.
"""

from __future__ import annotations

import os
import pathlib
import statistics
import time
from typing import Any, Final

import jax
import numpy as np
from absl import app, flags
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.checkpoints import released_checkpoint
from benchmarks.timing import seconds_of
from eval.files import write_json
from scripts.terminal import count_progress, quiet_libraries
from xvla_jax.planning import flops
from xvla_jax.plans import DEFAULT, SamplerPlan, named_plan
from xvla_jax.policy import Policy

_CHECKPOINT = flags.DEFINE_string("checkpoint", "", "Any layout; random weights if empty.")
_OUT = flags.DEFINE_string("out", "outputs/sampler_plans.json", "Where the figures go.")
_PLANS = flags.DEFINE_list(
    "plans",
    ["exact10", "frozen10", "refresh2", "exact5", "exact3", "frozen3"],
    "Rows of xvla_jax/plans.py.",
)
_VIEWS = flags.DEFINE_integer("views", 3, "Images of an observation.", lower_bound=1)
_BATCH = flags.DEFINE_integer("batch", 1, "Observations at once.", lower_bound=1)
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Computing type.")
_ROUNDS = flags.DEFINE_integer("rounds", 3, "Calls of each plan.", lower_bound=1)

# part of a chunk -> pattern of the place in the model where a product stands
PARTS: Final = {
    "encoder": r"/vlm/",
    "head, once": r"/XVLA\.prepare/",
    "steps over all tokens": r"/XVLA\.keep/",
    "other steps": r"/XVLA\.denoise/",
}


def measure(policy: Policy, plans: list[SamplerPlan], console: Console) -> list[dict[str, Any]]:
    """Returns a record for each plan: work of its program, and seconds of its calls."""
    programs, records = [], []
    with count_progress(console, "programs") as show:
        for plan in plans:
            began = time.perf_counter()
            lowered = policy.lower(views=_VIEWS.value, batch=_BATCH.value, plan=plan)
            programs.append(lowered.compile())
            compiling = time.perf_counter() - began
            work = {}
            if not plan.form.adaptive:  # how often its loop runs is known at run time
                work = flops.flops_by_stage(programs[-1].as_text(), PARTS)
            records.append(
                {"plan": plan.name, **plan.to_dict(), "flops": work, "compile_seconds": compiling}
            )
            show(len(programs), len(plans))
    inputs: dict[str, Any] = policy.example_inputs(views=_VIEWS.value, batch=_BATCH.value)
    for plan, record in zip(plans, records, strict=True):
        tolerance = np.full(_BATCH.value, plan.tolerance, np.float32)
        more = {"tolerance": tolerance} if plan.form.adaptive else {}
        record["inputs"] = jax.device_put(inputs | more)
        record["seconds"] = []
    with count_progress(console, "calls") as show:
        for turn in range(_ROUNDS.value + 1):
            for i, (program, record) in enumerate(zip(programs, records, strict=True)):
                seconds = seconds_of(lambda p=program, r=record: p(policy.params, r["inputs"]))
                record["seconds"] += [seconds] if turn else []  # the first finds cold memory
                show(turn * len(plans) + i + 1, (_ROUNDS.value + 1) * len(plans))
    for record in records:
        del record["inputs"]
    return records


def table(records: list[dict[str, Any]]) -> Table:
    """Returns a line for each plan; ratios are to the default plan, where it was measured."""
    shown = Table(title="One chunk of actions by sampler plan", box=box.SIMPLE)
    shown.add_column("plan")
    for column in ("GFLOP", *PARTS, "of exact10", "p50 s", "min s", "of exact10's", "compile s"):
        shown.add_column(column, justify="right")
    base = next((r for r in records if r["plan"] == DEFAULT.name), None)
    for record in records:
        work, middle = sum(record["flops"].values()), statistics.median(record["seconds"])
        shown.add_row(
            record["plan"],
            f"{work / 1e9:.0f}" if work else "",
            *(f"{record['flops'].get(part, 0) / 1e9:.0f}" if work else "" for part in PARTS),
            f"{work / sum(base['flops'].values()):.2f}" if base and work else "",
            f"{middle:.3f}",
            f"{min(record['seconds']):.3f}",
            f"{middle / statistics.median(base['seconds']):.2f}" if base else "",
            f"{record['compile_seconds']:.0f}",
        )
    return shown


def main(_: list[str]) -> None:
    """Measures, prints the table, writes the JSON."""
    quiet_libraries()
    console = Console(width=140)
    plans = [named_plan(name, "--plans") for name in _PLANS.value]
    out = pathlib.Path(_OUT.value)
    checkpoint = released_checkpoint(_CHECKPOINT.value, out, console)
    policy = Policy.from_pretrained(checkpoint, dtype=_DTYPE.value)
    device, load = jax.local_devices()[0], os.getloadavg()[0]
    records = measure(policy, plans, console)
    console.print(table(records))
    loads = f"load {load:.1f} before, {os.getloadavg()[0]:.1f} after"
    console.print(f"{device.platform} {device.device_kind}, {_VIEWS.value} views, {loads}")
    out.parent.mkdir(parents=True, exist_ok=True)
    settings = {"views": _VIEWS.value, "batch": _BATCH.value, "dtype": _DTYPE.value}
    write_json(out, {**settings, "device": device.device_kind, "load": loads, "plans": records})
    console.print(f"written to {out}", markup=False)


if __name__ == "__main__":
    app.run(main)
