"""Measures what the policy server adds to the policy, what batching gains, and what it withstands.

``python -m benchmarks.serving [--quick] [--against=CHECKOUT] [--out=FILE.json]``

Latency is measured on the quickstart's size. Throughput, soak and hostile requests use the test
size: there a call costs more than its arithmetic, as on an accelerator. All of it is on loopback.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any, Final

from absl import app, flags
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.serving import load
from benchmarks.serving.attacks import ATTACKS, beside
from benchmarks.serving.memory import peaks
from benchmarks.serving.server_process import idle_server, server
from configs import models
from eval.files import write_json
from scripts.random_weights import write_random_checkpoint
from scripts.terminal import quiet_libraries
from xvla_jax.config import XVLAConfig
from xvla_jax.policy import Policy
from xvla_jax.processor import Processor

_OUT = flags.DEFINE_string("out", "outputs/serving.json", "Where the figures go.")
_QUICK = flags.DEFINE_bool("quick", False, "A soak of 10 minutes instead of an hour.")
_SOAK = flags.DEFINE_float("soak_seconds", 0.0, "Another soak.", 0.0)
_FUZZ = flags.DEFINE_integer("fuzz", 20_000, "Hostile requests.", 0)
_CALLS = flags.DEFINE_integer("calls", 200, "Timed calls of each way.", 1)
_ROWS = flags.DEFINE_list(
    "rows", ["latency", "throughput", "soak", "fuzz", "attacks", "memory"], "Which to measure."
)
_ATTACK = flags.DEFINE_float("attack_seconds", 20.0, "Of each attack.", 1.0)
_AGAINST = flags.DEFINE_string(
    "against",
    "",
    "Checkout of another version: its figures stand beside, its latency is measured in turns.",
)

_CLIENTS: Final = 16
_SIDE: Final = 32  # px, of the test size
_SECONDS: Final = 20.0  # of each throughput
_SMALL: Final = (models.SMALL, Processor(image_size=64, text_length=16))
_TINY: Final = (
    dataclasses.replace(models.TINY, num_actions=30), Processor(image_size=_SIDE, text_length=12)
)  # fmt: skip
_FLAGS: Final = ("--device=cpu", "--views=2")
_WITHSTOOD: Final = frozenset({"soak", "attacks", "memory", "fuzz"})  # rows of one server


def _checkpoint(folder: pathlib.Path, shape: models.Shape, processor: Processor) -> pathlib.Path:
    config = XVLAConfig.from_dict(models.model_dict(shape, action_mode="ee6d"))
    write_random_checkpoint(
        folder, config, processor, seed=0, dtype="float32", on_tensor=lambda *_: None
    )
    return folder


def measure(folder: pathlib.Path, console: Console) -> dict[str, Any]:
    """Returns the figures of the rows; those of ``--against`` stand under that name."""
    record: dict[str, Any] = {}
    rows = set(_ROWS.value)
    if "latency" in rows:
        console.print("latency")
        small = _checkpoint(folder / "small", *_SMALL)
        policy = Policy.from_pretrained(small)
        with server(small, [*_FLAGS, "--max_batch=1"]) as one:
            record["latency"] = load.latency(one, policy, calls=_CALLS.value)
        if _AGAINST.value:
            with idle_server() as ours, idle_server(_AGAINST.value) as theirs:
                record["own_time"] = load.in_turns((ours, theirs), calls=_CALLS.value)
    tiny = _checkpoint(folder / "tiny", *_TINY)
    if "throughput" in rows:
        console.print("throughput")
        record["throughput"] = {str(batch): _throughput(tiny, batch) for batch in (1, _CLIENTS)}
    rows &= _WITHSTOOD
    if rows:
        record |= _withstood(tiny, rows, console)
    if rows and _AGAINST.value:
        console.print(f"the same of {_AGAINST.value}", markup=False)
        record["against"] = _withstood(tiny, rows - {"soak"}, console, _AGAINST.value)
    return record


def _withstood(
    checkpoint: pathlib.Path, rows: set[str], console: Console, checkout: str = ""
) -> dict[str, Any]:
    """Figures of one server, of this version or of a checkout."""
    record: dict[str, Any] = {}
    seconds = _SOAK.value or (600.0 if _QUICK.value else 3600.0)
    seen = {**load.observation(_SIDE, 2), "seed": 0}
    with server(checkpoint, [*_FLAGS, "--max_batch=4"], checkout=checkout) as one:
        if "soak" in rows:
            console.print(f"soak of {seconds:.0f} s")
            record["soak"] = {"seconds": seconds} | load.soak(
                one, seconds=seconds, clients=_CLIENTS, side=_SIDE
            )
        for name in ("", *ATTACKS) if "attacks" in rows else ():
            console.print(f"attack: {name or 'none'}")
            noticed = beside(one, name, seconds=_ATTACK.value, observation=seen).to_dict()
            resident = {"resident": one.resident_bytes()}
            record.setdefault("attacks", {})[name or "none"] = noticed | resident
        if "memory" in rows:
            console.print("memory of single requests")
            record["memory"] = peaks(one)
        if "fuzz" in rows:
            console.print(f"{_FUZZ.value} hostile requests")
            record["fuzz"] = load.fuzz(one, requests=_FUZZ.value)
            record["fuzz"]["exit_status"] = one.stop()
    return record


def _throughput(checkpoint: pathlib.Path, batch: int) -> float:
    with server(checkpoint, [*_FLAGS, f"--max_batch={batch}"]) as one:
        ways = {"clients": _CLIENTS, "side": _SIDE}
        load.throughput(one, **ways, seconds=2.0)
        return load.throughput(one, **ways, seconds=_SECONDS)


def show(console: Console, record: dict[str, Any]) -> None:
    """Prints the targets and figures; those of ``--against`` in a column beside."""
    title = f"Policy server, loopback, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    table = Table(title=title, box=box.SIMPLE)
    for column in ("what", "target", "measured", *(["--against"] if "against" in record else ())):
        table.add_column(column)
    others = {what: figure for what, _, figure in _withstood_lines(record.get("against", {}))}
    for line in _speed_lines(record):
        table.add_row(*line)
    for what, target, figure in _withstood_lines(record):
        table.add_row(what, target, figure, others.get(what, "-"))
    console.print(table)


Line = tuple[str, str, str]  # what, target, measured


def _speed_lines(record: dict[str, Any]) -> Iterator[Line]:
    latency = record.get("latency", {})
    for door, target in (("http", 8), ("websocket", 4)) if latency else ():
        over, p99 = 1000 * latency[f"{door}_over"], latency[f"{door}_p99_over_p50"]
        yield (
            f"{door}: over Policy.act ({1000 * latency['act']['p50']:.1f} ms), one client, "
            "2 views 224 px",
            f"p50 <= {target} ms, p99 <= 3 x p50",
            f"p50 {over:.1f} ms, p99 {p99:.2f} x p50",
        )
    for door, (ours, theirs) in record.get("own_time", {}).items():
        yield (
            f"{door}: the server's own time against --against, in turns",
            "<= 1.1 x",
            f"{ours / theirs:.2f} x ({1000 * ours:.2f} against {1000 * theirs:.2f} ms)",
        )
    if "throughput" in record:
        one, many = record["throughput"]["1"], record["throughput"][str(_CLIENTS)]
        yield (
            f"{_CLIENTS} clients, batches against single requests",
            ">= 2.5 x",
            f"{many / one:.2f} x ({many:.0f} against {one:.0f} chunks/s)",
        )


def _withstood_lines(record: dict[str, Any]) -> Iterator[Line]:
    if "soak" in record:
        soak = record["soak"]
        yield (
            f"soak of {soak['seconds']:.0f} s with random disconnects",
            "0 errors, RSS within 5 %",
            f"{soak['errors']} errors of {sum(soak['outcomes'].values())}, "
            f"RSS {soak['after'] / soak['before'] - 1:+.1%}",
        )
    if "fuzz" in record:
        fuzz = record["fuzz"]
        yield (
            f"{sum(fuzz['statuses'].values())} hostile requests",
            "all 4xx, no crash, RSS within 100 MB",
            f"{sum(fuzz['wrong'].values())} not 4xx, {'alive' if fuzz['alive'] else 'dead'}, "
            f"RSS {(fuzz['after'] - fuzz['before']) / 2**20:+.0f} MB",
        )
    attacks = record.get("attacks", {})
    for name, seen in attacks.items():
        growth = (seen["resident"] - attacks["none"]["resident"]) / 2**20
        probes = sum(n for status, n in seen["probes"].items() if status != "200")
        yield (
            f"a robot beside: {name}",
            "0 failed, p99 <= 100 ms, RSS within 100 MB",
            f"{sum(seen['failed'].values())} of {seen['answered']} failed, {probes} probes, "
            f"p99 {1000 * seen['p99']:.0f} ms, RSS {growth:+.0f} MB",
        )
    for name, seen in record.get("memory", {}).items():
        yield (
            f"one request: {name}",
            f"<= {3 * seen['body'] / 2**20 + 64:.0f} MB",
            f"{seen['status']}, {seen['peak'] / 2**20:+.0f} MB",
        )


def main(argv: list[str]) -> None:
    """Measures, prints the table, writes the JSON."""
    del argv
    quiet_libraries()
    console = Console(width=150)
    with tempfile.TemporaryDirectory() as folder:
        record = measure(pathlib.Path(folder), console)
    show(console, record)
    out = pathlib.Path(_OUT.value)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_json(out, record)
    console.print(f"written to {out}", markup=False)


if __name__ == "__main__":
    app.run(main)
