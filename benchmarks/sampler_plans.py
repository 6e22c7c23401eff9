"""Measures what sampler plans cost: ``python -m benchmarks.sampler_plans``.

``python -m benchmarks.sampler_plans [--checkpoint=FOLDER] [--plans=exact10,frozen10,frozen3]
[--views=3] [--batch=1] [--dtype=float32] [--rounds=3] [--out=FILE.json]``

GFLOP of a chunk from each compiled program, loops times their trips; and seconds of calls that take
turns, plan after plan, so that other load on the machine meets all of them. Without a checkpoint it
writes one of the released size with random weights: what a plan costs does not depend on them.
``--rounds=0`` counts only: programs are compiled from shapes, and no weights are read or written.
"""

from __future__ import annotations

import functools
import os
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.checkpoints import released_checkpoint
from benchmarks.timing import seconds_of
from eval.files import write_json
from scripts.random_weights import read_config
from scripts.terminal import count_progress, quiet_libraries
from xvla_jax.actions import action_space
from xvla_jax.config import XVLAConfig
from xvla_jax.models.inference import abstract_inference_params, example_inputs
from xvla_jax.models.xvla import XVLA
from xvla_jax.planning import flops
from xvla_jax.plans import DEFAULT, SamplerPlan, named_plan
from xvla_jax.policy import Policy, chunk
from xvla_jax.pretrained import load_checkpoint
from xvla_jax.processor import Processor

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
_ROUNDS = flags.DEFINE_integer(
    "rounds", 3, "Calls of each plan; 0: count the work alone.", lower_bound=0
)

# part of a chunk -> pattern of the place in the model where a product stands
PARTS: Final = {
    "encoder": r"/vlm/",
    "head, once": r"/XVLA\.prepare/",
    "steps over all tokens": r"/XVLA\.keep/",
    "other steps": r"/XVLA\.denoise/",
}


Lower = Callable[[SamplerPlan], jax.stages.Lowered]


def lower_shapes(config: XVLAConfig, processor: Processor) -> Lower:
    """Returns what lowers a plan's program for weights that need not exist."""
    params = abstract_inference_params(config, jnp.dtype(_DTYPE.value), None)
    shape = config.num_actions, action_space(config).width
    inputs = jax.eval_shape(lambda: example_inputs(processor, shape, _VIEWS.value, _BATCH.value))
    model = XVLA(config, dtype=jnp.dtype(_DTYPE.value), unroll=True)

    def lower(plan: SamplerPlan) -> jax.stages.Lowered:
        mean, std = tuple(processor.mean), tuple(processor.std)
        return chunk.lower(model, mean, std, params, inputs, form=plan.form, steps=plan.steps)

    return lower


def count(
    lower: Lower, plans: list[SamplerPlan], console: Console
) -> tuple[list[jax.stages.Compiled], list[dict[str, Any]]]:
    """Returns the program of each plan, and a record with its work."""
    programs, records = [], []
    with count_progress(console, "programs") as show:
        for plan in plans:
            began = time.perf_counter()
            programs.append(lower(plan).compile())
            compiling = time.perf_counter() - began
            work = {}
            if not plan.form.adaptive:  # how often its loop runs is known at run time
                work = flops.flops_by_stage(programs[-1].as_text(), PARTS)
            records.append(
                {"plan": plan.name, **plan.to_dict(), "flops": work, "compile_seconds": compiling}
            )
            show(len(programs), len(plans))
    return programs, records


def measure(policy: Policy, plans: list[SamplerPlan], console: Console) -> list[dict[str, Any]]:
    """Returns a record for each plan: work of its program, and seconds of its calls."""
    lower = functools.partial(policy.lower, views=_VIEWS.value, batch=_BATCH.value)
    programs, records = count(lambda plan: lower(plan=plan), plans, console)
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
        work, seconds = sum(record["flops"].values()), record.get("seconds")
        shown.add_row(
            record["plan"],
            f"{work / 1e9:.0f}" if work else "",
            *(f"{record['flops'].get(part, 0) / 1e9:.0f}" if work else "" for part in PARTS),
            f"{work / sum(base['flops'].values()):.2f}" if base and work else "",
            f"{statistics.median(seconds):.3f}" if seconds else "",
            f"{min(seconds):.3f}" if seconds else "",
            f"{statistics.median(seconds) / statistics.median(base['seconds']):.2f}"
            if base and seconds
            else "",
            f"{record['compile_seconds']:.0f}",
        )
    return shown


def shape_of(folder: str) -> tuple[XVLAConfig, Processor]:
    """Returns config and preprocessing of a checkpoint, or of the released size without one."""
    if not folder:
        return read_config(""), Processor()
    loaded = load_checkpoint(folder, stored=True)
    return loaded.config, loaded.processor or Processor()


def main(_: list[str]) -> None:
    """Measures, prints the table, writes the JSON."""
    quiet_libraries()
    console = Console(width=140)
    plans = [named_plan(name, "--plans") for name in _PLANS.value]
    out = pathlib.Path(_OUT.value)
    device, load = jax.local_devices()[0], os.getloadavg()[0]
    if _ROUNDS.value:
        checkpoint = released_checkpoint(_CHECKPOINT.value, out, console)
        policy = Policy.from_pretrained(checkpoint, dtype=_DTYPE.value)
        records = measure(policy, plans, console)
    else:
        config, processor = shape_of(_CHECKPOINT.value)
        records = count(lower_shapes(config, processor), plans, console)[1]
    console.print(table(records))
    loads = f"load {load:.1f} before, {os.getloadavg()[0]:.1f} after"
    console.print(f"{device.platform} {device.device_kind}, {_VIEWS.value} views, {loads}")
    out.parent.mkdir(parents=True, exist_ok=True)
    settings = {"views": _VIEWS.value, "batch": _BATCH.value, "dtype": _DTYPE.value}
    write_json(out, {**settings, "device": device.device_kind, "load": loads, "plans": records})
    console.print(f"written to {out}", markup=False)


if __name__ == "__main__":
    app.run(main)
