"""What a run needs of a TPU slice, before anyone pays for one; no TPU is needed.

``python -m scripts.plan --config=configs/pretrain.py --topology=v5p:4x4x4 [--config.a.b=v]``

Compiles the real train step (with ``--inference`` the sampler too) for the slice from shapes
alone. The model is ``config.model``; no checkpoint or data is read. Needs libtpu:
``bash scripts/setup.sh tpu``. The full model compiles in about 17 minutes on two cores
(``docs/planner.md``); the search for the largest batch takes up to four times as long again:
``--nolargest`` leaves it out.
``--topology`` may list several, with commas.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

# The slice is described by the compiler; this process itself needs no accelerator.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax.numpy as jnp
from absl import app, flags
from ml_collections import config_flags
from rich.console import Console
from rich.table import Table

from data.rows.mixtures import mixture
from data.rows.table import dataset
from data.stream.memory import SourceSize, host_bytes
from data.stream.stream import StreamShape
from scripts.terminal import ends_clearly, parse_flags
from scripts.training.initial_model import planned_config
from xvla_jax.errors import ConfigError, XVLAError
from xvla_jax.lora import LoraConfig
from xvla_jax.planning.chips import GIB, Slice, describe
from xvla_jax.planning.programs import Run
from xvla_jax.planning.report import make_plan
from xvla_jax.planning.traffic import ASSUMPTIONS
from xvla_jax.processor import Processor
from xvla_jax.sharding import global_batch_size
from xvla_jax.training.optimizer import OptimizerConfig

_CONFIG = config_flags.DEFINE_config_file("config", None, "Config file.", lock_config=True)
_TOPOLOGY = flags.DEFINE_list("topology", None, "Slices, such as v5e:4x4.", required=True)
_INFERENCE = flags.DEFINE_bool("inference", False, "Compile the sampler too.")
_VIEWS = flags.DEFINE_integer(
    "views", 0, "Views that the data fills; 0 = as its rows say, or all slots.", lower_bound=0
)
_LARGEST = flags.DEFINE_bool("largest", True, "Search for the largest batch that fits.")
_JSON = flags.DEFINE_bool("json", False, "Print the plans as JSON.")
_MARKDOWN = flags.DEFINE_bool("markdown", False, "Print the plans as a Markdown table.")

_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
# A typical source, where the data is not at hand: samples of its largest file and of an episode,
# bytes of an encoded 256 px image.
_PART_SAMPLES, _EPISODE_SAMPLES, _IMAGE_BYTES = 1000, 200, 25_000


def run_of(config: Any, views: int) -> Run:
    """What of a config decides the programs; 0 views leave their number to the data's rows."""
    if config.dtype not in _DTYPES:
        raise ConfigError(f"config.dtype is {config.dtype!r}; allowed are {', '.join(_DTYPES)}")
    processor = Processor(**config.processor.to_dict())
    rows = [dataset(name) for name, _ in mixture(config.data.mixture)]
    # HDF5 recordings name their views themselves; the row then lists none.
    views = views or max(len(row.views) or processor.num_views for row in rows)
    return Run(
        config=planned_config(config),
        processor=processor,
        optimizer=OptimizerConfig(**config.optimizer.to_dict()),
        dtype=_DTYPES[config.dtype],
        remat=config.remat,
        batch_size=config.batch_size,
        views=min(views, processor.num_views),
        data=config.mesh.data,
        fsdp=config.mesh.fsdp,
        accumulate=config.accumulate,
        ema_decay=config.ema_decay,
        jitter=any(row.augment != "none" for row in rows),
        lora=LoraConfig(**config.lora.to_dict()) if config.lora.rank else None,
        scan_vision=config.scan_vision,
    )


def pipeline_bytes(config: Any, run: Run, target: Slice) -> dict[str, int]:
    """Host memory of the data pipeline, for sources of a typical size."""
    size = SourceSize(
        part_samples=_PART_SAMPLES,
        episode_samples=_EPISODE_SAMPLES,
        image_bytes=run.views * _IMAGE_BYTES,
        num_views=run.views,
    )
    shape = StreamShape(
        seed=config.seed,
        batch_size=run.batch_size,
        num_actions=run.config.num_actions,
        shuffle_buffer=config.data.shuffle_buffer,
        lanes=max(config.data.lanes, target.hosts),
    )
    return host_bytes(
        [size] * len(mixture(config.data.mixture)),
        shape,
        hosts=target.hosts,
        num_views=run.processor.num_views,
        image_size=run.processor.image_size,
        text_length=run.processor.text_length,
        cache_mb=config.data.cache_mb,
    )


def main(argv: list[str]) -> None:
    """Plans, prints, and exits with 1 where a run does not fit."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    if _CONFIG.value is None:
        raise app.UsageError("--config=configs/X.py is needed")
    console = Console(stderr=_JSON.value or _MARKDOWN.value)
    plans = []
    try:
        run = run_of(_CONFIG.value, _VIEWS.value)
        for name in _TOPOLOGY.value:
            target = describe(name)
            batch_size = global_batch_size(
                _CONFIG.value.batch_size,
                per=_CONFIG.value.batch_size_per,
                devices=len(target.devices),
            )
            run = dataclasses.replace(run, batch_size=batch_size)
            plan = make_plan(
                run,
                target,
                pipeline=pipeline_bytes(_CONFIG.value, run, target),
                inference=_INFERENCE.value,
                largest=_LARGEST.value,
                say=console.log,
            )
            plans.append(plan)
            print_plan(console, plan)
    except (XVLAError, ValueError) as error:
        sys.exit(f"error: {error}")
    if _JSON.value:
        print(json.dumps(plans, indent=1))
    if _MARKDOWN.value:
        print(as_markdown(plans))
    sys.exit(0 if all(plan["fits"] for plan in plans) else 1)


def print_plan(console: Console, plan: dict[str, Any]) -> None:
    """A plan, with what it assumes below."""
    table = Table(title=f"{plan['topology']}: {plan['devices']} devices, {plan['hosts']} hosts")
    table.add_column("what")
    table.add_column("value")
    for what, value in plan_rows(plan):
        table.add_row(what, value)
    console.print(table)
    for line in ASSUMPTIONS:
        console.print(f"  assumed: {line}", highlight=False)


def plan_rows(plan: dict[str, Any]) -> list[tuple[str, str]]:
    """(what, value) of everything that a plan knows."""
    limit = plan["hbm_limit"]
    rows = [
        ("state", f"{_gib(plan['state_per_chip'])} a chip"),
        ("mesh", ", ".join(f"{axis} {size}" for axis, size in plan["mesh"].items())),
        ("batch", f"{plan['batch_size']} ({plan['views']} views, {plan['dtype']})"),
        ("remat", plan["remat"]),
    ]
    if "memory" in plan:
        rows += _program_rows(plan, limit)
    else:
        rows.append(("peak HBM", f"does not fit: {_gib(plan['needed'])} of {_gib(limit)}"))
    if nearest := plan.get("nearest"):
        rows.append(("nearest that fits", f"{nearest['change']} ({_gib(nearest['peak'])})"))
        if nearest["accumulation"] > 1:
            steps = nearest["accumulation"]
            rows.append(("", f"the same global batch takes {steps} accumulated steps"))
    elif "nearest" in plan:
        rows.append(("nearest that fits", "none found; take a larger slice"))
    if best := plan.get("largest"):
        rows.append(
            (
                "largest batch",
                f"{best['batch_size']} ({_gib(best['peak'])}, {best['per_sample'] / 2**20:.0f} "
                f"MiB a sample; {best['compilations']} more compilations)",
            )
        )
    stored = {name: size for name, size in plan["checkpoint"].items() if size > 2**10}
    rows += [
        ("checkpoint", _terms(stored)),
        ("host RAM", f"{_terms(plan['host_ram'])}; a host has {_gib(plan['host_ram_limit'])}"),
    ]
    if sampler := plan.get("sampler"):
        rows += [(f"sampler: {what}", value) for what, value in _program_rows(sampler, limit)]
    return rows


def _program_rows(program: dict[str, Any], limit: float) -> list[tuple[str, str]]:
    memory = program["memory"]
    parts = {name: size for name, size in memory.items() if name != "peak"}
    sent = {kind: size for kind, size in program["ici_bytes"].items() if size}
    peak = f"{_gib(memory['peak'])} of {_gib(limit)} a chip"
    broken = {name: found for name, found in program["guards"].items() if found}
    return [
        ("peak HBM", peak if program["fits"] else f"does not fit: {peak}"),
        ("", ", ".join(f"{name} {_gib(size)}" for name, size in parts.items())),
        (
            "FLOPs a chip",
            f"{program['flops'] / 1e12:.2f} T, {program['model_flops'] / 1e12:.2f} T of them "
            "not recomputed",
        ),
        ("HBM traffic a chip", _gib(program["hbm_bytes"])),
        ("sent a chip", _terms(sent) if sent else "nothing"),
        (
            "step",
            f"{1e3 * program['fastest_seconds']:.1f} to {1e3 * program['slowest_seconds']:.1f} ms "
            f"(limited by {program['limited_by']})",
        ),
        ("MFU bound", f"{program['mfu_bound']:.0%}"),
        ("guards", "; ".join(f"{n} {name}" for name, n in _counts(broken)) or "all hold"),
        ("compiled in", f"{program['compile_seconds']:.0f} s"),
    ]


def _counts(broken: dict[str, list[str]]) -> list[tuple[str, int]]:
    return [(name, len(found)) for name, found in broken.items()]


_HEAD = (
    *("slice", "mesh data x fsdp", "batch", "remat", "peak HBM / limit, GiB", "TFLOPs a chip"),
    *("HBM, GiB", "sent, GiB", "step, ms", "MFU bound", "largest batch"),
)


def as_markdown(plans: Sequence[dict[str, Any]]) -> str:
    """A row for each plan."""
    lines = [_HEAD, ("---",) * len(_HEAD), *(_markdown_row(plan) for plan in plans)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _markdown_row(plan: dict[str, Any]) -> tuple[str, ...]:
    start = (
        plan["topology"],
        f"{plan['mesh']['data']} x {plan['mesh']['fsdp']}",
        str(plan["batch_size"]),
        plan["remat"],
    )
    limit = plan["hbm_limit"] / GIB
    if "memory" not in plan:
        return (*start, f"{plan['needed'] / GIB:.1f} / {limit:.2f}: does not fit", *["-"] * 6)
    best = plan.get("largest")
    return (
        *start,
        f"{plan['memory']['peak'] / GIB:.2f} / {limit:.2f}",
        f"{plan['flops'] / 1e12:.2f}",
        f"{plan['hbm_bytes'] / GIB:.1f}",
        f"{sum(plan['ici_bytes'].values()) / GIB:.2f}",
        f"{1e3 * plan['fastest_seconds']:.0f} to {1e3 * plan['slowest_seconds']:.0f}",
        f"{plan['mfu_bound']:.0%}",
        str(best["batch_size"]) if best else "not searched",
    )


def _terms(sizes: dict[str, Any]) -> str:
    parts = ", ".join(f"{name} {_gib(size)}" for name, size in sizes.items())
    return f"{_gib(sum(sizes.values()))}: {parts}" if len(sizes) > 1 else parts


def _gib(size: float) -> str:
    return f"{size / GIB:.2f} GiB"


if __name__ == "__main__":
    app.run(ends_clearly(main), flags_parser=parse_flags)
