"""Converts a checkpoint: ``python -m scripts.convert_checkpoint SRC DST --layout=hf [--verify]``.

SRC is of any layout (Hugging Face, LeRobot's two, Orbax workdir or step), DST of the one that is
asked for; it appears whole or not at all. ``--adapter`` merges a PEFT adapter into the weights.
SRC may be the workdir of a LoRA run: it is merged into its base, and ``--layout=peft`` writes its
adapter alone, for which the base is not needed.
``--verify`` reads DST back and compares parameters, and actions from the same noise.
"""

from __future__ import annotations

import dataclasses
import pathlib
import sys

from absl import app, flags
from rich.console import Console
from rich.table import Table

from eval.files import write_json
from scripts.terminal import (
    STOPPED,
    Termination,
    bytes_progress,
    ends_clearly,
    quiet_libraries,
    said,
)
from xvla_jax.checkpoint_tools.convert_layout import (
    SOURCE_DTYPE,
    Conversion,
    convert_checkpoint,
    extract_adapter,
    verify,
)
from xvla_jax.checkpoints.accounting import STORED
from xvla_jax.errors import XVLAError
from xvla_jax.pretrained import LAYOUTS, PEFT
from xvla_jax.resizing import RESIZING

_LAYOUT = flags.DEFINE_enum("layout", None, (*LAYOUTS, PEFT), "Layout of DST.", required=True)
_DTYPE = flags.DEFINE_enum(
    "dtype", SOURCE_DTYPE, (SOURCE_DTYPE, *STORED), "Type of DST's tensors (Orbax: float32)."
)
_ADAPTER = flags.DEFINE_string("adapter", "", "PEFT folder to merge into the weights.")
_RESIZE = flags.DEFINE_enum(
    "resize", None, list(RESIZING), "How DST resizes images, where it is not to be as in SRC."
)
_DOMAIN = flags.DEFINE_integer("domain", None, "Of all observations in LeRobot's pipeline.")
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace DST, once the new one is whole.")
_VERIFY = flags.DEFINE_bool("verify", False, "Read DST back and compare actions.")
_REPORT = flags.DEFINE_string("report", "", "JSON file for the numbers, and what --verify found.")


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


def _run(
    source: pathlib.Path, target: pathlib.Path, console: Console, termination: Termination
) -> int:
    if _LAYOUT.value == PEFT:
        _print(console, extract_adapter(source, target, overwrite=_OVERWRITE.value))
        return 0
    with bytes_progress(console, "converting") as progress:
        loaded, done = convert_checkpoint(
            source,
            target,
            _LAYOUT.value,
            dtype=_DTYPE.value,
            adapter=pathlib.Path(_ADAPTER.value) if _ADAPTER.value else None,
            overwrite=_OVERWRITE.value,
            resize=_RESIZE.value,
            domain=_DOMAIN.value,
            progress=termination.checked(progress),
        )
    termination.check()
    _print(console, done)
    found = verify(loaded, target, dtype=done.dtype) if _VERIFY.value else {}
    if _REPORT.value:
        write_json(pathlib.Path(_REPORT.value), dataclasses.asdict(done) | found)
    if not found:
        return 0
    console.print(
        f"{found['parameters']:,} parameters read back, equal: {found['parameters_equal']}; "
        f"{found['chunks_compared']} chunks from the same raw observations and noise, largest "
        f"action difference {found['largest_action_difference']:g} of {found['largest_action']:.3g}"
    )
    for name, (ours, theirs) in found["preprocessing"].items():
        console.print(f"preprocessing, {name}: {ours!r} in SRC, {theirs!r} in DST", style="yellow")
    exact = done.rounded or not found["largest_action_difference"]
    return 0 if found["parameters_equal"] and exact else 1


def main(argv: list[str]) -> int:
    """Returns the exit status: 0, or 1 when anything is wrong or differs."""
    if len(argv) != 3:
        raise app.UsageError("SRC and DST are needed")
    if _LAYOUT.value == PEFT and (_ADAPTER.value or _VERIFY.value or _REPORT.value):
        raise app.UsageError("--layout=peft takes neither --adapter nor --verify nor --report")
    quiet_libraries()
    console = Console()
    try:
        with Termination() as termination:
            return _run(pathlib.Path(argv[1]), pathlib.Path(argv[2]), console, termination)
    except (XVLAError, OSError) as error:
        console.print(f"error: {said(error)}", style="bold red", markup=False, soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        console.print(f"stopped; {argv[2]} was not written", markup=False)
        return STOPPED


if __name__ == "__main__":
    sys.exit(app.run(ends_clearly(main)))
