"""What the policy server adds to the policy, what batching gains, and what it withstands.

``python -m benchmarks.serving [--quick] [--against=CHECKOUT] [--out=FILE.json]``

Latency is measured on the quickstart's size. Throughput, soak and hostile requests use the test
size: there a call costs more than its arithmetic, as on an accelerator. All of it is on loopback.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import tempfile
from typing import Any, Final

from absl import app, flags
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks import serving_load
from benchmarks.server_process import Server, server
from benchmarks.serving_attacks import ATTACKS, beside
from benchmarks.serving_memory import peaks
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
    "Checkout of another version, whose latency is measured in turns with this one's.",
)

_CLIENTS: Final = 16
_SIDE: Final = 32  # px, of the test size
_SECONDS: Final = 20.0  # of each throughput
_SMALL: Final = (models.SMALL, Processor(image_size=64, text_length=16))
_TINY: Final = (
    dataclasses.replace(models.TINY, num_actions=30), Processor(image_size=_SIDE, text_length=12)
)  # fmt: skip
_DOORS: Final = ("http", "websocket")
_SIDES: Final = ("ours", "theirs")
_FLAGS: Final = ("--device=cpu", "--views=2")


def _checkpoint(folder: pathlib.Path, shape: models.Shape, processor: Processor) -> pathlib.Path:
    config = XVLAConfig.from_dict(models.model_dict(shape, action_mode="ee6d"))
    write_random_checkpoint(
        folder, config, processor, seed=0, dtype="float32", on_tensor=lambda *_: None
    )
    return folder


def measure(folder: pathlib.Path, console: Console) -> dict[str, Any]:
    """The rows that are asked for."""
    record: dict[str, Any] = {}
    rows = set(_ROWS.value)
    if "latency" in rows:
        console.print("latency")
        small = _checkpoint(folder / "small", *_SMALL)
        policy = Policy.from_pretrained(small)
        with server(small, [*_FLAGS, "--max_batch=1"]) as one:
            record["latency"] = serving_load.latency(one, policy, calls=_CALLS.value)
            if _AGAINST.value:
                record["against"] = _against(small, policy, one)
    tiny = _checkpoint(folder / "tiny", *_TINY)
    if "throughput" in rows:
        console.print("throughput")
        record["throughput"] = {str(batch): _throughput(tiny, batch) for batch in (1, _CLIENTS)}
    seconds = _SOAK.value or (600.0 if _QUICK.value else 3600.0)
    with server(tiny, [*_FLAGS, "--max_batch=4"]) as one:
        if "soak" in rows:
            console.print(f"soak of {seconds:.0f} s")
            record["soak"] = {"seconds": seconds} | serving_load.soak(
                one, seconds=seconds, clients=_CLIENTS, side=_SIDE
            )
        if "attacks" in rows:
            seen = {**serving_load.observation(_SIDE, 2), "seed": 0}
            for name in ("", *ATTACKS):
                console.print(f"attack: {name or 'none'}")
                found = beside(one, name, seconds=_ATTACK.value, observation=seen).to_dict()
                resident = {"resident": one.resident_bytes()}
                record.setdefault("attacks", {})[name or "none"] = found | resident
        if "memory" in rows:
            console.print("memory of single requests")
            record["memory"] = peaks(one)
        if "fuzz" in rows:
            console.print(f"{_FUZZ.value} hostile requests")
            record["fuzz"] = serving_load.fuzz(one, requests=_FUZZ.value)
            record["fuzz"]["exit_status"] = one.stop()
    return record


def _against(checkpoint: pathlib.Path, policy: Policy, ours: Server) -> dict[str, float]:
    """Overhead of this version over that of another, each the mean of three turns."""
    over: dict[str, list[float]] = {f"{door}_{who}": [] for door in _DOORS for who in _SIDES}
    with server(checkpoint, [*_FLAGS, "--max_batch=1"], checkout=_AGAINST.value) as theirs:
        for _ in range(3):
            for who, one in zip(_SIDES, (ours, theirs), strict=True):
                found = serving_load.latency(one, policy, calls=_CALLS.value // 2)
                for door in _DOORS:
                    over[f"{door}_{who}"].append(found[f"{door}_over"])
    return {name: sum(values) / len(values) for name, values in over.items()}


def _throughput(checkpoint: pathlib.Path, batch: int) -> float:
    with server(checkpoint, [*_FLAGS, f"--max_batch={batch}"]) as one:
        ways = {"clients": _CLIENTS, "side": _SIDE}
        serving_load.throughput(one, **ways, seconds=2.0)
        return serving_load.throughput(one, **ways, seconds=_SECONDS)


def show(console: Console, record: dict[str, Any]) -> None:
    """The table, with the targets beside the figures."""
    table = Table(title=f"Policy server, loopback, {os.cpu_count()} cores", box=box.SIMPLE)
    for column in ("what", "target", "measured"):
        table.add_column(column)
    found = record.get("latency")
    if found:
        act = 1000 * found["act"]["p50"]
        for door, target in (("http", 8), ("websocket", 4)):
            over, p99 = 1000 * found[f"{door}_over"], found[f"{door}_p99_over_p50"]
            table.add_row(
                f"{door}: over Policy.act ({act:.1f} ms), one client, 2 views 224 px",
                f"p50 <= {target} ms, p99 <= 3 x p50",
                f"p50 {over:.1f} ms, p99 {p99:.2f} x p50",
            )
    found = record.get("throughput")
    if found:
        one, many = found["1"], found[str(_CLIENTS)]
        table.add_row(
            f"{_CLIENTS} clients, batches against single requests",
            ">= 2.5 x",
            f"{many / one:.2f} x ({many:.0f} against {one:.0f} chunks/s)",
        )
    found = record.get("soak")
    if found:
        growth = found["after"] / found["before"] - 1
        table.add_row(
            f"soak of {found['seconds']:.0f} s with random disconnects",
            "0 errors, RSS within 5 %",
            f"{found['errors']} errors of {sum(found['outcomes'].values())}, RSS {growth:+.1%}",
        )
    found = record.get("fuzz")
    if found:
        growth = (found["after"] - found["before"]) / 2**20
        table.add_row(
            f"{sum(found['statuses'].values())} hostile requests",
            "all 4xx, no crash, RSS within 100 MB",
            f"{sum(found['wrong'].values())} not 4xx, "
            f"{'alive' if found['alive'] else 'dead'}, RSS {growth:+.0f} MB",
        )
    _show_attacks(table, record)
    console.print(table)


def _show_attacks(table: Table, record: dict[str, Any]) -> None:
    for door in _DOORS if "against" in record else ():
        ours, theirs = (1000 * record["against"][f"{door}_{who}"] for who in _SIDES)
        table.add_row(
            f"{door}: overhead against --against, in turns",
            "<= 1.1 x",
            f"{ours / theirs:.2f} x ({ours:.2f} against {theirs:.2f} ms)",
        )
    found = record.get("attacks", {})
    for name, seen in found.items():
        growth = (seen["resident"] - found["none"]["resident"]) / 2**20
        probes = sum(n for status, n in seen["probes"].items() if status != "200")
        table.add_row(
            f"a robot beside: {name}",
            "0 failed, p99 <= 100 ms, RSS within 100 MB",
            f"{sum(seen['failed'].values())} of {seen['answered']} failed, {probes} probes, "
            f"p99 {1000 * seen['p99']:.0f} ms, RSS {growth:+.0f} MB",
        )
    for name, seen in record.get("memory", {}).items():
        table.add_row(
            f"one request: {name}",
            f"<= {3 * seen['body'] / 2**20 + 64:.0f} MB",
            f"{seen['status']}, {seen['peak'] / 2**20:+.0f} MB",
        )


def main(argv: list[str]) -> None:
    """Measures, prints the table, writes the JSON."""
    del argv
    quiet_libraries()
    console = Console(width=120)
    with tempfile.TemporaryDirectory() as folder:
        record = measure(pathlib.Path(folder), console)
    show(console, record)
    out = pathlib.Path(_OUT.value)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_json(out, record)
    console.print(f"written to {out}", markup=False)


if __name__ == "__main__":
    app.run(main)
