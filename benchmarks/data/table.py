"""The table of ``benchmarks.data``."""

from __future__ import annotations

from typing import Any, Final

from rich import box
from rich.console import Console
from rich.table import Table

_TARGETS: Final = {"xvla": 4.0, "rlds": 400.0, "resume": 0.02, "memory": 0.05, "sets": 0.8}
_MB: Final = 2.0**20


def show(console: Console, record: dict[str, Any]) -> None:
    """Prints a record: the quantity, its figure, its target."""
    table = Table(title="Data pipeline", box=box.SIMPLE)
    table.add_column("what")
    for column in ("figure", "target"):
        table.add_column(column, justify="right", no_wrap=True)
    notes: list[str] = []
    for part, rows in (("hdf5", _hdf5), ("rlds", _rlds), ("stages", _stages)):
        if part in record:
            rows(table, notes, record[part])
            table.add_section()
    if "resume" in record:
        _resume(table, notes, record["resume"])
        table.add_section()
    if "memory" in record:
        _memory(table, notes, record["memory"])
        table.add_section()
    if "mixture" in record:
        _sets(table, notes, record["mixture"])
    console.print(table)
    for note in notes:
        console.print(note, markup=False, highlight=False)


def _hdf5(table: Table, notes: list[str], figures: dict[str, Any]) -> None:
    for name, rate in figures["samples_per_s"].items():
        table.add_row(f"HDF5, {figures['files']['views']} views, samples/s: {name}", f"{rate:.0f}")
    for name, seconds in figures["cpu_s_per_sample"].items():
        table.add_row(f"HDF5, CPU of a sample, ms: {name}", f"{1000 * seconds:.2f}")
    for name, ratio in figures["ratios"].items():
        target = f"at least {_TARGETS['xvla']:.0f}" if name.endswith("open") else ""
        table.add_row(f"HDF5: {name}", f"{ratio:.1f} x", target)
    notes.append(_files("HDF5", figures["files"]))
    if "xvla" in figures:
        about = figures["xvla"]
        notes.append(
            f"X-VLA's reader: {about['workers']} workers, {about['decoder']} decodes, PyTorch "
            f"{about['torch']}; with colour jitter. Ours without: the device does it."
        )
    if "not_run" in figures:
        notes.append(figures["not_run"])


def _rlds(table: Table, notes: list[str], figures: dict[str, Any]) -> None:
    rate = figures["samples_per_s"]["ours"]
    views = figures["files"]["views"]
    table.add_row(
        f"RLDS, {views} views, samples/s", f"{rate:.0f}", f"at least {_TARGETS['rlds']:.0f}"
    )
    notes.append(_files("RLDS", figures["files"]))


def _stages(table: Table, notes: list[str], figures: dict[str, Any]) -> None:
    image = figures["image_us"]
    rows = {
        "header": "header",
        "decoding": "decoding",
        "packing": "packing of pixels",
        "Pillow": "resizing, Pillow",
        "compiled": "resizing, compiled",
    }
    for key, text in rows.items():
        if key in image:
            table.add_row(f"HDF5, CPU of an image, us: {text}", f"{image[key]:.0f}")
    table.add_row("HDF5, reading and bookkeeping, us a sample", f"{figures['glue_us']:.0f}")
    table.add_row("HDF5, Python's lock held, us a sample", f"{figures['held_us']:.0f}")
    table.add_row("HDF5, most samples/s of one process", f"{figures['ceiling']:.0f}")
    notes.append(
        f"Lock: reading and bookkeeping, and for each of {figures['views']} images header and "
        "packing."
    )


def _resume(table: Table, notes: list[str], figures: dict[str, Any]) -> None:
    steps, straight_s = figures["steps"], figures["seconds"]
    table.add_row(f"{steps} steps of a small mixture, s", f"{straight_s:.1f}")
    for name, target in (("position", f"under {_TARGETS['resume']:.0%}"), ("start_step", "")):
        text = f"resume there with {name}, {figures[name]:.2f} s, of that"
        table.add_row(text, f"{figures[name] / straight_s:.2%}", target)
    notes.append(f"Small mixture: HDF5 and RLDS, 64 px, batch {figures['batch_size']}.")


def _memory(table: Table, notes: list[str], figures: dict[str, Any]) -> None:
    curve = [value / _MB for value in figures["curve"]]
    steps = figures["steps"]
    table.add_row(f"resident memory after {figures['warm_up']} steps, MB", f"{curve[0]:.0f}")
    table.add_row(f"at most within {steps} more steps, MB", f"{max(curve):.0f}")
    table.add_row(f"after {steps} more steps, MB", f"{curve[-1]:.0f}")
    grown = max(curve) / curve[0] - 1
    table.add_row("growth", f"{grown:.1%}", f"within {_TARGETS['memory']:.0%}")
    terms = {name: value / _MB for name, value in figures["formula"].items()}
    above = max(curve) - figures["before"] / _MB
    table.add_row("at most, above the memory before the pipeline, MB", f"{above:.0f}")
    table.add_row("formula of data/stream/memory.py, MB", f"{sum(terms.values()):.0f}")
    notes.append("Formula, MB: " + ", ".join(f"{k} {v:.1f}" for k, v in terms.items()) + ".")
    notes.append("Resident, MB: " + " ".join(f"{value:.0f}" for value in curve))


def _sets(table: Table, notes: list[str], figures: dict[str, Any]) -> None:
    name = f"mixture of {figures['sets']} sets"
    for side, what in (("many", name), ("one", "the same frames in one set")):
        table.add_row(f"{what}, samples/s", f"{figures['samples_per_s'][side]:.0f}")
        table.add_row("    opened in, s", f"{figures[f'{side}_open_s']:.2f}")
        table.add_row("    first batch after, s", f"{figures[f'{side}_first_batch_s']:.2f}")
        cpu = figures["cpu_s_per_sample"][side]
        table.add_row("    CPU of a sample, ms", f"{1000 * cpu:.2f}")
    table.add_row(f"{name} / one", f"{figures['ratio']:.2f} x", f"at least {_TARGETS['sets']} x")
    table.add_row("read for a sample, kB", f"{figures['bytes_per_sample'] / 1000:.0f}")
    above = (figures["peak"] - figures["before"]) / _MB
    table.add_row(f"{name}: peak above the memory before, MB", f"{above:.0f}")
    table.add_row(f"{name}: formula, MB", f"{figures['formula'] / _MB:.0f}")
    files = figures["files"]
    notes.append(
        f"Mixture: {files['episodes']} episodes of {files['frames']} frames, {files['views']} "
        f"views of {files['size']} px, {files['image_bytes'] / 1000:.0f} kB an image, read by "
        f"{'dlimp' if figures['dlimp'] else 'data/readers/dlataset.py'}."
    )
    for side, rates in figures["rounds"].items():
        notes.append(f"Rounds, {side}: " + " ".join(f"{rate:.0f}" for rate in rates))


def _files(kind: str, files: dict[str, Any]) -> str:
    return (
        f"{kind}: {files['episodes']} episodes of {files['frames']} frames, {files['size']} px, "
        f"{files['image_bytes'] / 1000:.0f} kB an image (JPEG, quality 95), read from the page "
        f"cache; batch {files['batch_size']}, {files['threads']} threads to read and as many to "
        "decode."
    )
