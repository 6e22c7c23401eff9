"""Converts a checkpoint from any layout into another, and compares the two on request.

python -m scripts.convert_checkpoint CHECKPOINT OUT --layout=hf [--verify] [--adapter=FOLDER]
    [--tasks=ROW,ROW] [--dtype=int8]

CHECKPOINT is of any layout (Hugging Face, LeRobot's two, Orbax workdir or step); OUT appears
complete or not at all. Each may be gs://BUCKET/FOLDER. --adapter merges a PEFT adapter into the
weights. The workdir of a LoRA run is merged into its base; --layout=peft writes its adapter alone,
for which the base is not needed. --verify reads OUT back and compares parameters, and actions from
the same noise. --tasks states the action contracts of rows of eval/tasks/ for domains of which
CHECKPOINT states none, as X-VLA's released folders do not: say only what the weights were trained
for, since nothing can check it. --dtype=int8 rounds matrices to int8 with a scale for each output
channel, a quarter of the bytes; such a folder acts, and is not trained. From one, --dtype=float32
writes its values, which are not the weights that it was made of.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import sys
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from eval.files import write_json
from scripts.terminal import (
    STOPPED,
    Command,
    Termination,
    UsageError,
    bytes_progress,
    message,
    quiet_libraries,
)

if TYPE_CHECKING:
    from xvla_jax.buckets import Place
    from xvla_jax.checkpoint_tools.convert_layout import Conversion
    from xvla_jax.pretrained import Pretrained

_ADAPTER_ALONE = "peft"
_LAYOUTS = ("hf", "lerobot-vendored", "lerobot-native", "orbax")

COMMAND = Command(
    __doc__,
    positional=("checkpoint", "out"),
    rows={"tasks": "tasks"},
    in_buckets=("checkpoint", "out", "adapter"),
)
_CHECKPOINT = COMMAND.DEFINE_string(
    "checkpoint", None, "Folder of the checkpoint, any layout.", required=True
)
_OUT = COMMAND.DEFINE_string("out", None, "Folder to write.", required=True)
_LAYOUT = COMMAND.DEFINE_enum(
    "layout", None, (*_LAYOUTS, _ADAPTER_ALONE), "Layout of OUT.", required=True
)
_DTYPE = COMMAND.DEFINE_enum(
    "dtype",
    "source",
    ("source", "float32", "bfloat16", "float16", "int8"),
    "Type of the tensors in OUT (Orbax: float32; int8: layout hf).",
)
_INT8 = COMMAND.DEFINE_list(
    "int8_groups", [], "Rows of xvla_jax/models/int8.py to round; by default all but action_*."
)
_ADAPTER = COMMAND.DEFINE_string("adapter", "", "PEFT folder to merge into the weights.")
_RESIZE = COMMAND.DEFINE_enum(
    "resize",
    None,
    ("stretch", "pad", "linear", "none"),
    "How OUT resizes images; as CHECKPOINT if not given.",
)
_DOMAIN = COMMAND.DEFINE_integer("domain", None, "Of all observations in LeRobot's pipeline.")
_TASKS = COMMAND.DEFINE_list("tasks", [], "Rows whose action contracts OUT states too.")
_OVERWRITE = COMMAND.DEFINE_bool("overwrite", False, "Replace OUT once the new one is complete.")
_VERIFY = COMMAND.DEFINE_bool("verify", False, "Read OUT back and compare actions.")
_REPORT = COMMAND.DEFINE_string("report", "", "JSON file of the numbers, with those of --verify.")


def _print(console: Console, done: Conversion) -> None:
    table = Table("", "layout", "tensors", "MB")
    for name, side in (("read", done.source), ("written", done.target)):
        table.add_row(name, side.layout, str(side.tensors), f"{side.nbytes / 1e6:,.1f}")
    console.print(table)
    console.print(
        f"{done.target.folder}: every tensor of the source was used once; {done.seconds:.1f} s, "
        f"peak memory {done.peak_rss / 1e6:,.0f} MB",
        markup=False,
    )
    if done.rounded:
        console.print(
            f"stored as {done.dtype}: {done.rounded} of {done.target.tensors} tensors were "
            "rounded, the written weights are not exactly those read",
            style="yellow",
            markup=False,
        )
    for name in done.certificates:
        console.print(f"{name}: carried along, as the model is the same", markup=False)
    for name in done.left:
        console.print(
            f"{name}: left, as it says nothing of the changed model; "
            "python -m scripts.certify_sampler measures OUT",
            style="yellow",
            markup=False,
        )


def _print_verdict(console: Console, verdict: dict[str, Any]) -> None:
    console.print(
        f"{verdict['parameters']:,} parameters read back, equal: {verdict['parameters_equal']}; "
        f"{verdict['chunks_compared']} chunks from the same raw observations and noise, largest "
        f"action difference {verdict['largest_action_difference']:g} of "
        f"{verdict['largest_action']:.3g}"
    )
    for name, (ours, theirs) in verdict["preprocessing"].items():
        console.print(
            f"preprocessing, {name}: {ours!r} in CHECKPOINT, {theirs!r} in OUT", style="yellow"
        )


def _converted(
    source: Place, target: Place, console: Console, termination: Termination
) -> tuple[Pretrained, Conversion]:
    """Converts; returns what was read, and the account of what was written."""
    from scripts.evaluation.entrants import contracts_of
    from xvla_jax.buckets import place_of
    from xvla_jax.checkpoint_tools.convert_layout import convert_checkpoint

    with bytes_progress(console, "converting") as progress:
        return convert_checkpoint(
            source,
            target,
            _LAYOUT.value,
            dtype=_DTYPE.value,
            adapter=place_of(_ADAPTER.value) if _ADAPTER.value else None,
            overwrite=_OVERWRITE.value,
            resize=_RESIZE.value,
            domain=_DOMAIN.value,
            int8=_INT8.value,
            stating=functools.partial(contracts_of, _TASKS.value) if _TASKS.value else None,
            progress=termination.checked(progress),
        )


def _checked(loaded: Pretrained, done: Conversion, target: Place, console: Console) -> int:
    """Prints the account, and checks what was written where that is asked for."""
    from xvla_jax.checkpoint_tools.convert_layout import verify

    _print(console, done)
    if loaded.int8 and done.dtype != loaded.stored_dtype:
        console.print(
            f"{done.source.folder} has int8 weights: {done.target.folder} holds their values, not "
            "the weights that they were made of",
            style="yellow",
            markup=False,
        )
    verdict = verify(loaded, target, dtype=done.dtype) if _VERIFY.value else {}
    if _REPORT.value:
        write_json(pathlib.Path(_REPORT.value), dataclasses.asdict(done) | verdict)
    if not verdict:
        return 0
    _print_verdict(console, verdict)
    exact = done.rounded or not verdict["largest_action_difference"]
    return 0 if verdict["parameters_equal"] and exact else 1


def main(_: list[str]) -> int:
    """Returns the exit status: 0, or 1 when something fails or differs."""
    if _INT8.value and _DTYPE.value != "int8":
        raise UsageError(f"--int8_groups is for --dtype=int8; --dtype is {_DTYPE.value}")
    others = (_ADAPTER.value, _VERIFY.value, _REPORT.value, _TASKS.value)
    if _LAYOUT.value == _ADAPTER_ALONE and any(others):
        raise UsageError("--layout=peft takes none of --adapter, --verify, --report, --tasks")
    from xvla_jax.buckets import place_of
    from xvla_jax.checkpoint_tools.convert_layout import extract_adapter
    from xvla_jax.errors import XVLAError

    quiet_libraries()
    console, state = Console(), "was not written"
    try:
        source, target = place_of(_CHECKPOINT.value), place_of(_OUT.value)
        with Termination() as termination:
            if _LAYOUT.value == _ADAPTER_ALONE:
                _print(console, extract_adapter(source, target, overwrite=_OVERWRITE.value))
                return 0
            loaded, done = _converted(source, target, console, termination)
            state = "is written"
            termination.check()
            return _checked(loaded, done, target, console)
    except (XVLAError, OSError) as error:
        console.print(f"error: {message(error)}", style="bold red", markup=False, soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        console.print(f"stopped; {_OUT.value} {state}", markup=False, soft_wrap=True)
        return STOPPED


if __name__ == "__main__":
    sys.exit(COMMAND.run(main, sys.argv))
