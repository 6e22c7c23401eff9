"""An equivalence report for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from xvla_jax.checkpoint_tools.compare import RAW_STAGES, STAGES

_SHOWN = 5  # differing fields and parameters that are listed; the JSON has more
_VERDICTS = {
    True: Text("pass", style="green"),
    False: Text("FAIL", style="bold red"),
    None: Text("not gated", style="yellow"),
}


def print_report(console: Console, report: Mapping[str, Any]) -> None:
    """What is in the files, what differs, then a table for each comparison, then the verdict."""
    for side in ("a", "b"):
        if side in report:
            console.print(f"{side.upper()}  {_contents(report[side])}", markup=False)
    if "torch" in report:
        about = report["torch"]
        console.print(f"PyTorch {about['torch']}, {about['package']}", markup=False)
    console.print(_observations(report["inputs"]), markup=False, highlight=False)
    if "b" in report:
        console.print(_differences(report))
        for entry in report["parameters"]["most_different"][:_SHOWN]:
            console.print(
                f"  by {entry['largest_difference']:.2g} or more: {entry['name']}", highlight=False
            )
    for comparison in report["comparisons"]:
        console.print(_stages(comparison))
    console.print(Text.assemble("verdict: ", _VERDICTS[report["passed"]]))


def _contents(side: Mapping[str, Any]) -> str:
    dtypes = ", ".join(side["dtypes"])
    adapter = f", adapter {side['adapter']} merged" if side["adapter"] else ""
    return (
        f"{side['folder']} ({side['layout']}{adapter})\n   {side['parameters']} parameters of "
        f"{side['values']:,} values ({dtypes}); buffers {len(side['buffers'])}, "
        f"second names {len(side['aliases'])}, unused tensors {len(side['unused'])}"
    )


def _observations(inputs: Mapping[str, Any]) -> str:
    def listed(values: list[int]) -> str:
        return " ".join(map(str, values[:8])) + (" .." if len(values) > 8 else "")

    return (
        f"{len(inputs['domains'])} observations of seed {inputs['seed']}: "
        f"views {listed(inputs['views_shown'])} of {inputs['views']}, "
        f"domains {listed(inputs['domains'])}, {inputs['image_size']} px, "
        f"{inputs['text_length']} text tokens; {inputs['steps']} steps"
    )


def _differences(report: Mapping[str, Any]) -> Table:
    """What the files of A and B hold, against each other."""
    table = Table("A and B", "", "", show_header=True, title_justify="left")
    parameters = report["parameters"]
    table.add_row(
        "parameters",
        f"{parameters['equal']} of {parameters['compared']} equal bit for bit"
        + (f" in {parameters['rounded_to']}" if parameters["rounded_to"] != "float32" else ""),
        _VERDICTS[parameters["passed"]],
    )
    buffers = [f"{name}: {verdict}" for name, verdict in report["buffers"].items()]
    table.add_row("buffers", "\n".join(buffers) or "none", _VERDICTS[None])
    for part, gated in (("config", None), ("processor", report["processor"]["passed"])):
        differing = report[part]["differing"]
        lines = [f"{k}: {x!r} and {y!r}" for k, (x, y) in list(differing.items())[:_SHOWN]]
        if report[part].get("raw_pixel_difference"):
            lines.append(f"pixels of 480 x 640 images: by {report[part]['raw_pixel_difference']:g}")
        if len(differing) > _SHOWN:
            lines.append(f"and {len(differing) - _SHOWN} more fields")
        holders = report[part].get("files_in", ["A", "B"])
        absent = f"files in {holders[0]} alone" if holders else "no files"
        same = "none differs" if len(holders) == 2 else absent
        table.add_row(f"{part} fields", "\n".join(lines) or same, _VERDICTS[gated])
    return table


def _stages(comparison: Mapping[str, Any]) -> Table:
    reason = "" if comparison["gate_of"] == comparison["dtype"] else " of the stored weights"
    table = Table(
        title=f"{comparison['who']} in {comparison['dtype']} against {comparison['against']}; "
        f"gate {comparison['gate']:g} ({comparison['gate_of']}{reason})",
        title_justify="left",
    )
    table.add_column("stage")
    for column in ("difference", "of", "quotient", "at", ""):
        table.add_column(column, justify="right")
    titles = {stage.name: stage.title for stage in (*STAGES, *RAW_STAGES)}
    for row in comparison["stages"]:
        table.add_row(
            titles[row["stage"]],
            _number(row["largest_difference"]),
            _number(row["largest_value"]),
            _number(row["quotient"]),
            "" if row["largest_difference"] == 0 else str(list(row["where"])),
            _VERDICTS[row["passed"]],
        )
    return table


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.3g}"
