"""The report of ``scripts/check_equivalence.py``: made by `check`, printed by `print_report`.

`check` runs one side at a time, so that one model is in memory, and returns plain values for JSON.
"""

from __future__ import annotations

import dataclasses
import pathlib
import resource
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from scripts.equivalence import raw as raw_side
from scripts.equivalence.raw import Export, RawSide
from scripts.equivalence.torch_packages import LEROBOT
from scripts.equivalence.torch_process import TorchOptions, TorchReference, require_torch
from xvla_jax import lora
from xvla_jax.checkpoint_tools import compare, probe
from xvla_jax.checkpoint_tools.compare import RAW_STAGES, STAGES, Inventory, Stage, StageResult
from xvla_jax.checkpoints import fingerprints
from xvla_jax.checkpoints.fingerprints import Fingerprint
from xvla_jax.checkpoints.safetensors_files import WEIGHTS_NAME
from xvla_jax.models.inference import inference_params
from xvla_jax.plans import STEPS
from xvla_jax.pretrained import load_checkpoint
from xvla_jax.processor import Processor

SCHEMA = 1
REFERENCE = "float32"  # computing type of A, with which all others are compared
DTYPES = ("float32", "bfloat16")
_SHOWN = 5  # differing fields and parameters that are listed; the JSON has more
_UNCUT = 64  # tokens, more than the instructions here have
_VERDICTS = {
    True: Text("pass", style="green"),
    False: Text("FAIL", style="bold red"),
    None: Text("not gated", style="yellow"),
}
Outputs = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Plan:
    """The sides to compare, and how.

    Attributes:
        a: folder of the checkpoint that everything is compared with.
        b: folder of the other; None compares A with itself in other types, and with PyTorch.
        adapter_a: folder of a LoRA adapter to merge into A.
        adapter_b: the same for B.
        dtypes: computing types of B, or of A without a B.
        observations: number of them.
        seed: of observations and noise.
        torch: how to run PyTorch on A; None skips it.
    """

    a: str
    b: str | None = None
    adapter_a: str | None = None
    adapter_b: str | None = None
    dtypes: Sequence[str] = DTYPES
    observations: int = 4
    seed: int = 0
    torch: TorchOptions | None = None


def check(plan: Plan) -> dict[str, Any]:
    """Runs everything and returns the report as JSON values; ``passed`` is the verdict.

    Raises:
        XVLAError: a checkpoint or adapter cannot be used, or the two are of different models.
        TorchReferenceError: PyTorch cannot be run.
    """
    if plan.torch:
        require_torch(plan.torch)
    a = compare.take_inventory(plan.a)
    b = compare.take_inventory(plan.b) if plan.b else None
    differing_fields = compare.config_differences(a.config, b.config) if b else {}
    stored = sorted({*a.dtypes, *(b.dtypes if b else ())})
    rounded, _ = compare.gate_of(stored)
    with tempfile.TemporaryDirectory() as scratch:
        layout = raw_side.layout_of(plan.torch)
        readable = a.layout == layout and pathlib.Path(plan.a, WEIGHTS_NAME).is_file()
        export = None
        if plan.torch and (plan.adapter_a or not readable):
            export = Export(pathlib.Path(scratch, layout), layout)
        kinds = {REFERENCE} | (set() if b else set(plan.dtypes))
        first = _run(a, plan.adapter_a, kinds, rounded, plan, export=export)
        by_torch = _run_torch(plan.torch, export.folder if export else plan.a, first)
    reference = first.outputs[REFERENCE]
    report: dict[str, Any] = {
        "schema": SCHEMA,
        "a": {**a.to_dict(), "adapter": plan.adapter_a, "seconds": first.seconds},
        "inputs": _describe(first.inputs, plan.seed),
        "versions": {"jax": jax.__version__, "device": jax.devices()[0].device_kind},
    }
    comparisons = []
    if b:
        second = _run(b, plan.adapter_b, set(plan.dtypes), rounded, plan, inputs=first.inputs)
        merged = bool(plan.adapter_a or plan.adapter_b)
        report |= {
            "b": {**b.to_dict(), "adapter": plan.adapter_b, "seconds": second.seconds},
            "config": {"differing": differing_fields},
            "parameters": _parameters(first, second, rounded, merged),
            "buffers": _buffers(first.buffers, second.buffers),
            "processor": _processors(first.processor, second.processor),
        }
        unlike = stored if set(a.dtypes) != set(b.dtypes) else []
        for dtype in plan.dtypes:
            comparisons.append(_comparison("B", dtype, second.outputs[dtype], reference, unlike))
    else:
        for dtype in plan.dtypes:
            if dtype != REFERENCE:
                comparisons.append(_comparison("A", dtype, first.outputs[dtype], reference, []))
    if by_torch:
        report["torch"], outputs, raw = by_torch
        comparisons += _torch_comparisons(first, outputs, raw)
    report["comparisons"] = comparisons
    report["peak_rss_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    verdicts = [c["passed"] for c in comparisons]
    verdicts += [report[part]["passed"] for part in ("parameters", "processor") if part in report]
    report["passed"] = False not in verdicts
    return report


def print_report(console: Console, report: Mapping[str, Any]) -> None:
    """Prints the files' contents, their differences, a table for each comparison, the verdict."""
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


@dataclasses.dataclass(frozen=True)
class _Side:
    """Results of a checkpoint, kept after it has left memory."""

    outputs: Mapping[str, Outputs]  # by computing type
    prints: Mapping[str, Fingerprint]
    buffers: Mapping[str, np.ndarray]
    processor: Processor | None
    inputs: Mapping[str, np.ndarray]
    seconds: Mapping[str, float]
    raw: RawSide | None  # to compare with LeRobot's own preprocessing


def _run(
    stock: Inventory,
    adapter: str | None,
    dtypes: set[str],
    rounded: str,
    plan: Plan,
    *,
    inputs: Outputs | None = None,
    export: Export | None = None,
) -> _Side:
    """Loads a checkpoint, writes ``export``, runs each type, and frees the memory."""
    start = time.perf_counter()
    loaded = load_checkpoint(stock.folder)
    config = loaded.config
    if adapter:
        merged = lora.merge_adapter(loaded.params, lora.load_adapter(adapter, config))
        loaded = dataclasses.replace(loaded, params=merged)
        del merged
    seconds = {"load": time.perf_counter() - start}
    if inputs is None:
        inputs = probe.make_inputs(
            config, loaded.processor, count=plan.observations, seed=plan.seed
        )
    prints = fingerprints.fingerprints(loaded.params, config, dtype=rounded)
    if export:
        export.write(loaded)
    raw = None
    lerobot = plan.torch is not None and plan.torch.package == LEROBOT
    if lerobot and plan.a == stock.folder and loaded.processor:
        place = export.folder if export else pathlib.Path(plan.a)
        raw = RawSide.of(loaded, place, count=plan.observations, seed=plan.seed)
    outputs = {}
    for dtype in sorted(dtypes):
        start = time.perf_counter()
        params = inference_params(loaded.params, dtype)
        if dtype == max(dtypes):
            loaded.params.clear()
        outputs[dtype] = compare.stage_outputs(
            config, _move_to_device(params), inputs, dtype=dtype, steps=STEPS
        )
        seconds[dtype] = time.perf_counter() - start
    return _Side(outputs, prints, loaded.buffers, loaded.processor, inputs, seconds, raw)


def _move_to_device(params: dict[str, Any]) -> Any:
    """Moves a tree to the device leaf by leaf and empties it, so that only one copy is held."""
    leaves, tree = jax.tree.flatten(params)
    params.clear()
    for i, leaf in enumerate(leaves):
        leaves[i] = jax.device_put(leaf)
    return jax.tree.unflatten(tree, leaves)


def _run_torch(
    options: TorchOptions | None, folder: str | pathlib.Path, first: _Side
) -> tuple[dict[str, Any], Outputs, Outputs | None] | None:
    if options is None:
        return None
    with TorchReference(folder, options) as reference:
        outputs = reference.stages(first.inputs, steps=STEPS)
        raw = first.raw.ask(reference) if first.raw else None
        return dict(reference.about), outputs, raw


def _torch_comparisons(first: _Side, outputs: Outputs, raw: Outputs | None) -> list[dict[str, Any]]:
    """Compares PyTorch's network, and LeRobot from raw observations, with A."""
    reference = first.outputs[REFERENCE]
    comparisons = [_comparison("PyTorch on A", REFERENCE, outputs, reference, [])]
    if raw and first.raw:
        who, ours = f"LeRobot on raw observations ({first.raw.note})", first.raw.outputs
        comparisons.append(_comparison(who, REFERENCE, raw, ours, [], compare.RAW_STAGES))
    return comparisons


def _comparison(
    who: str,
    dtype: str,
    outputs: Outputs,
    expected: Outputs,
    stored: Sequence[str],
    stages: Sequence[Stage] = compare.STAGES,
) -> dict[str, Any]:
    """Compares one side in one type with A in float32, by the widest gate of the types involved."""
    gated_by, gate = compare.gate_of([dtype, *stored])
    results: list[StageResult] = compare.compare(outputs, expected, gate=gate, stages=stages)
    return {
        "who": who,
        "dtype": dtype,
        "against": f"A in {REFERENCE}",
        "gate": gate,
        "gate_of": gated_by,
        "stages": [result.to_dict() for result in results],
        "passed": all(result.passed for result in results),
    }


def _parameters(first: _Side, second: _Side, rounded: str, merged: bool) -> dict[str, Any]:
    """Compares parameters; not gated if an adapter was merged, as sums may round differently."""
    comparison = fingerprints.compare_parameters(first.prints, second.prints)
    passed = None if merged else not comparison["differing"]
    return comparison | {"rounded_to": rounded, "passed": passed}


def _buffers(a: Outputs, b: Outputs) -> dict[str, str]:
    verdicts = {}
    for name in sorted(a.keys() | b.keys()):
        if name in a and name in b:
            verdicts[name] = "equal" if np.array_equal(a[name], b[name]) else "different"
        else:
            verdicts[name] = "only in A" if name in a else "only in B"
    return verdicts


def _processors(a: Processor | None, b: Processor | None) -> dict[str, Any]:
    """Compares preprocessing, which changes the actions too; gated if both sides have files."""
    if a is None or b is None:
        holders = [name for name, side in (("A", a), ("B", b)) if side is not None]
        return {"files_in": holders, "differing": {}, "passed": None}
    fields, others = _processor_fields(a), _processor_fields(b)
    differing = {k: (fields[k], others[k]) for k in fields if fields[k] != others[k]}
    pixels = raw_side.pixel_difference(a, b)
    return {
        "files_in": ["A", "B"],
        "differing": differing,
        "raw_pixel_difference": pixels,
        "passed": not differing and not pixels,
    }


def _processor_fields(processor: Processor) -> dict[str, Any]:
    """Returns fields as JSON values, and the ids of a text in place of the tokenizer's folder."""
    uncut = dataclasses.replace(processor, text_length=_UNCUT)
    ids = uncut.tokenize(probe.INSTRUCTIONS[:1])[0]
    values = dataclasses.asdict(processor)
    fields = {f.name: values[f.name] for f in dataclasses.fields(processor) if f.compare}
    del fields["tokenizer_dir"]
    return fields | {"ids of an instruction": [int(i) for i in ids if i != probe.PAD]}


def _describe(inputs: Outputs, seed: int) -> dict[str, Any]:
    _, views, _, side, _ = inputs["pixel_values"].shape
    return {
        "seed": seed,
        "views": views,
        "views_shown": inputs["image_mask"].sum(axis=1).tolist(),
        "image_size": side,
        "text_length": inputs["input_ids"].shape[1],
        "domains": inputs["domain_id"].tolist(),
        "steps": STEPS,
    }


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
    """Returns the table of differences between the files of A and B."""
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
