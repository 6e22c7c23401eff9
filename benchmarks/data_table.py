"""The table of ``benchmarks.data``."""

from __future__ import annotations

from typing import Any, Final

from rich import box
from rich.console import Console
from rich.table import Table

_TARGETS: Final = {"xvla": 4.0, "rlds": 400.0, "resume": 0.02, "memory": 0.05}
_MB: Final = 2.0**20


def show(console: Console, record: dict[str, Any]) -> None:
    """Prints a record: what was measured, the figure, the target."""
    table = Table(title="Data pipeline", box=box.SIMPLE)
    table.add_column("what")
    for column in ("figure", "target"):
        table.add_column(column, justify="right", no_wrap=True)
    notes: list[str] = []
    for part, rows in (("hdf5", _hdf5), ("rlds", _rlds), ("python", _python)):
        if part in record:
            rows(table, notes, record[part])
            table.add_section()
    if "resume" in record:
        _resume(table, notes, record["resume"])
        table.add_section()
    if "memory" in record:
        _memory(table, notes, record["memory"])
    console.print(table)
    for note in notes:
        console.print(note, markup=False, highlight=False)


def _hdf5(table: Table, notes: list[str], found: dict[str, Any]) -> None:
    for name, rate in found["samples_per_s"].items():
        table.add_row(f"HDF5, {found['files']['views']} views, samples/s: {name}", f"{rate:.0f}")
    for name, ratio in found["ratios"].items():
        target = f"at least {_TARGETS['xvla']:.0f}" if name.endswith("open") else ""
        table.add_row(f"HDF5: {name}", f"{ratio:.1f} x", target)
    notes.append(_files("HDF5", found["files"]))
    if "xvla" in found:
        about = found["xvla"]
        notes.append(
            f"X-VLA's reader: {about['workers']} workers, {about['decoder']} decodes, PyTorch "
            f"{about['torch']}; with colour jitter. Ours without: the device does it."
        )
    if "not_run" in found:
        notes.append(found["not_run"])


def _rlds(table: Table, notes: list[str], found: dict[str, Any]) -> None:
    rate = found["samples_per_s"]["ours"]
    views = found["files"]["views"]
    table.add_row(
        f"RLDS, {views} views, samples/s", f"{rate:.0f}", f"at least {_TARGETS['rlds']:.0f}"
    )
    notes.append(_files("RLDS", found["files"]))


def _python(table: Table, notes: list[str], found: dict[str, Any]) -> None:
    table.add_row("HDF5, Python's lock held, us a sample", f"{found['held_us']:.0f}")
    table.add_row("HDF5, most samples/s of one process", f"{found['ceiling']:.0f}")
    notes.append(
        f"Lock: {found['glue_us']:.0f} us of reading and bookkeeping, and for each of "
        f"{found['views']} pictures {found['opening_us']:.0f} us of header and "
        f"{found['packing_us']:.0f} us of packing."
    )


def _resume(table: Table, notes: list[str], found: dict[str, Any]) -> None:
    steps, whole = found["steps"], found["seconds"]
    table.add_row(f"{steps} steps of a small mixture, s", f"{whole:.1f}")
    for name, target in (("position", f"under {_TARGETS['resume']:.0%}"), ("start_step", "")):
        text = f"resume there with {name}, {found[name]:.2f} s, of that"
        table.add_row(text, f"{found[name] / whole:.2%}", target)
    notes.append(f"Small mixture: HDF5 and RLDS, 64 px, batch {found['batch_size']}.")


def _memory(table: Table, notes: list[str], found: dict[str, Any]) -> None:
    curve = [value / _MB for value in found["curve"]]
    steps = found["steps"]
    table.add_row(f"resident memory after {found['warm_up']} steps, MB", f"{curve[0]:.0f}")
    table.add_row(f"at most within {steps} more steps, MB", f"{max(curve):.0f}")
    table.add_row(f"after {steps} more steps, MB", f"{curve[-1]:.0f}")
    grown = max(curve) / curve[0] - 1
    table.add_row("growth", f"{grown:.1%}", f"within {_TARGETS['memory']:.0%}")
    terms = {name: value / _MB for name, value in found["formula"].items()}
    above = max(curve) - found["before"] / _MB
    table.add_row("at most, above what there was before the pipeline, MB", f"{above:.0f}")
    table.add_row("formula of data/stream/memory.py, MB", f"{sum(terms.values()):.0f}")
    notes.append("Formula, MB: " + ", ".join(f"{k} {v:.1f}" for k, v in terms.items()) + ".")
    notes.append("Resident, MB: " + " ".join(f"{value:.0f}" for value in curve))


def _files(kind: str, files: dict[str, Any]) -> str:
    return (
        f"{kind}: {files['episodes']} episodes of {files['frames']} frames, {files['size']} px, "
        f"{files['picture_bytes'] / 1000:.0f} kB a picture (JPEG, quality 95), read from the page "
        f"cache; batch {files['batch_size']}, {files['threads']} threads to read and as many to "
        "decode."
    )
