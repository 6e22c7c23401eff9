"""The plan of a run on a slice: the run as its config gives it, and the plan as tables."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from data.rows.mixtures import mixture
from data.rows.table import dataset
from data.stream.memory import SourceSize, host_bytes
from scripts.training.domains import counted_domains
from scripts.training.initial_model import computing_dtype, distillation, planned_config
from scripts.training.packed_views import (
    PackedViews,
    SourceViews,
    packed_mixture,
    stream_shape,
)
from xvla_jax.lora import LoraConfig
from xvla_jax.planning.chips import GIB, Slice
from xvla_jax.planning.programs import Run
from xvla_jax.planning.traffic import ASSUMPTIONS
from xvla_jax.processor import Processor
from xvla_jax.training.optimizer import OptimizerConfig

# A typical source, as the data need not be there: samples of its largest file and of an episode,
# bytes of an encoded 256 px image.
_PART_SAMPLES, _EPISODE_SAMPLES, _IMAGE_BYTES = 1000, 200, 25_000
_SHOWN_S = 5e-5  # a row of the table by stage takes at least this long


def run_of(config: Any, views: int) -> Run:
    """Returns the fields of a config that decide the programs; 0 views: as the data's rows say."""
    processor = Processor(**config.processor.to_dict())
    rows = [dataset(name) for name, _ in mixture(config.data.mixture)]
    # HDF5 recordings name their views themselves; the row then lists none.
    views = views or max(len(row.views) or processor.num_views for row in rows)
    model = planned_config(config)
    # From X-VLA's weights or random ones, the same names get the same ids.
    domains = counted_domains(config, (), rows, model)
    return Run(
        config=domains.of_model(model),
        processor=processor,
        optimizer=OptimizerConfig(**config.optimizer.to_dict()),
        dtype=computing_dtype(config),
        remat=config.remat,
        batch_size=config.batch_size,
        views=min(views, processor.num_views),
        data=config.mesh.data,
        fsdp=config.mesh.fsdp,
        accumulate=config.accumulate,
        ema_decay=config.ema_decay,
        jitter=any(row.augment != "none" for row in rows),
        channel_mask=any(row.unrecorded for row in rows),
        lora=LoraConfig(**config.lora.to_dict()) if config.lora.rank else None,
        scan_vision=config.scan_vision,
        attention=config.attention,
        noise_draws=config.noise_draws,
        distill=distillation(config, None, domains),
    )


def packed_run(config: Any, run: Run, *, devices: int) -> tuple[Run, PackedViews | None]:
    """Returns a run with its packed views, as the rows of the mixture say, and what they come to.

    Weights by frames count as shares of samples: the frames are not known without the data. HDF5
    recordings name their views themselves, so all slots count as filled, and a stated share is
    taken as it is.
    """
    if not config.packed_views:
        return run, None
    rows = [(dataset(name), weight) for name, weight in mixture(config.data.mixture)]
    sources = [
        SourceViews(weight, min(len(row.views) or run.views, run.views), row.main_view_share)
        for row, weight in rows
    ]
    sure = all(row.views for row, _ in rows)
    packed = packed_mixture(
        config,
        sources,
        run.batch_size,
        devices=devices,
        parts=run.accumulate,
        **({} if sure else {"most": 1.0}),
    )
    return dataclasses.replace(run, packed_views=packed.share), packed


def pipeline_bytes(config: Any, run: Run, target: Slice) -> dict[str, int]:
    """Returns the host memory of the data pipeline, for sources of a typical size."""
    weights = [weight for _, weight in mixture(config.data.mixture)]
    sizes = [
        SourceSize(
            part_samples=_PART_SAMPLES,
            episode_samples=_EPISODE_SAMPLES,
            image_bytes=run.views * _IMAGE_BYTES,
            num_views=run.views,
            share=weight / sum(weights),  # as if the sources had equally many frames
        )
        for weight in weights
    ]
    shape = stream_shape(config, run.batch_size, lanes=max(config.data.lanes, target.hosts))
    return host_bytes(
        sizes,
        shape,
        hosts=target.hosts,
        num_views=run.processor.num_views,
        image_size=run.processor.image_size,
        text_length=run.processor.text_length,
        cache_mb=config.data.cache_mb,
    )


def print_plan(console: Console, plan: dict[str, Any], packed: PackedViews | None = None) -> None:
    """Prints a plan, with its assumptions and a line on packed views below."""
    table = Table(title=f"{plan['topology']}: {plan['devices']} devices, {plan['hosts']} hosts")
    table.add_column("quantity")
    table.add_column("value")
    for quantity, value in plan_rows(plan):
        table.add_row(quantity, value)
    console.print(table)
    if shares := plan.get("by_stage"):
        table = Table(*_STAGE_HEAD, title="train step by stage")
        for row in stage_rows(shares):
            table.add_row(*row)
        console.print(table)
    for line in ASSUMPTIONS:
        console.print(f"  assumed: {line}", highlight=False)
    if packed:
        console.print(f"  {packed}", highlight=False)


def print_cards(
    console: Console, plans: Sequence[dict[str, Any]], packed: PackedViews | None = None
) -> None:
    """Prints the memory of one program on several cards, with advice where it does not fit."""
    plan = plans[0]
    memory = f"{_gib(plan['memory']['peak'])}, of which the train state is {_gib(plan['state'])}"
    console.print(f"one device, batch {plan['batch_size']}: {memory}", highlight=False)
    table = Table("card", "usable", "fits", "what to do")
    for plan in plans:
        table.add_row(
            plan["card"], _gib(plan["limit"]), "yes" if plan["fits"] else "no", card_advice(plan)
        )
    console.print(table)
    console.print(
        "  assumed: the program of this CPU, which computes bfloat16 products in float32: a GPU "
        "takes less; 5 % are the driver's",
        highlight=False,
    )
    if packed:
        console.print(f"  {packed}", highlight=False)


def card_advice(plan: dict[str, Any]) -> str:
    """Returns what to set so that a run fits a card; empty where nothing is needed."""
    if plan["fits"]:
        return plan["advice"]
    nearest = plan["nearest"]
    if nearest is None:
        return "nothing found; take a larger card or a smaller model"
    parts = nearest["accumulation"]
    same = (
        f"; --config.accumulate={parts} in place of the batch keeps the batch" if parts > 1 else ""
    )
    return f"{nearest['change']} ({_gib(nearest['peak'])}){same}"


def plan_rows(plan: dict[str, Any]) -> list[tuple[str, str]]:
    """Returns (quantity, value) for everything that a plan holds."""
    limit = plan["hbm_limit"]
    teacher = plan.get("teacher_per_chip")
    rows = [
        ("state", f"{_gib(plan['state_per_chip'])} a chip"),
        *([("of it the teacher", f"{_gib(teacher)} a chip")] if teacher else []),
        ("mesh", _listed(plan["mesh"])),
        ("links in a ring's longest step", _listed(plan["ring_hops"])),
        ("batch", f"{plan['batch_size']} ({plan['views']} views, {plan['dtype']})"),
        ("remat", plan["remat"]),
        *([("attention", plan["attention"])] if "attention" in plan else []),
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
    broken = [(name, lines) for name, lines in program["guards"].items() if lines]
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
        ("guards", "; ".join(f"{len(lines)} {name}" for name, lines in broken) or "all hold"),
        ("compiled in", f"{program['compile_seconds']:.0f} s"),
    ]


_HEAD = (
    *("slice", "mesh data x fsdp", "batch", "remat", "peak HBM / limit, GiB", "TFLOPs a chip"),
    *("HBM, GiB", "sent, GiB", "step, ms", "MFU bound", "largest batch"),
)


def as_markdown(plans: Sequence[dict[str, Any]]) -> str:
    """Returns a Markdown table with a row for each plan."""
    return _markdown_table(_HEAD, [_markdown_row(plan) for plan in plans])


_STAGE_HEAD = ("stage", "pass", "kind", "TFLOPs", "HBM, GiB", "ms")


def stage_rows(shares: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Returns the table of ``plan["by_stage"]``, without what is under 0.05 ms, and its sum."""
    rows = [
        (share["stage"], share["of_pass"], share["kind"], *_work([share]))
        for share in shares
        if share["seconds"] >= _SHOWN_S
    ]
    return [*rows, ("all", "", "", *_work(shares))]


def stage_tables(plans: Sequence[dict[str, Any]]) -> list[str]:
    """Returns a Markdown table by stage for each plan that has one."""
    return [
        _markdown_table(_STAGE_HEAD, stage_rows(plan["by_stage"]))
        for plan in plans
        if "by_stage" in plan
    ]


def _work(shares: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    flops, size, seconds = (sum(s[key] for s in shares) for key in ("flops", "bytes", "seconds"))
    return f"{flops / 1e12:.2f}", f"{size / GIB:.1f}", f"{1e3 * seconds:.1f}"


def _markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
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


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())


def _terms(sizes: dict[str, Any]) -> str:
    parts = ", ".join(f"{name} {_gib(size)}" for name, size in sizes.items())
    return f"{_gib(sum(sizes.values()))}: {parts}" if len(sizes) > 1 else parts


def _gib(size: float) -> str:
    return f"{size / GIB:.2f} GiB"
