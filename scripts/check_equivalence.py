"""Compares what checkpoints compute, stage by stage: the same inputs and noise through A and B.

python -m scripts.check_equivalence A [B] [--dtypes=float32,bfloat16] [--torch_package=FOLDER]
    [--out=FILE.json]

A and B are of any layout; --torch_package also runs PyTorch on A's weights. Everything is compared
with A in float32: B in every type of --dtypes (without B, A in bfloat16), and PyTorch in float32.
One checkpoint is in memory at a time. Exit status: 0 if every gate is passed, 1 if one is not, 2 if
something cannot be compared.
"""

from __future__ import annotations

import pathlib
import sys

from rich.console import Console

from eval.files import write_json
from scripts.equivalence.torch_process import TorchOptions, TorchReferenceError
from scripts.terminal import Command, UsageError, quiet_libraries

_REFERENCE = "float32"
_DTYPES_KNOWN = (_REFERENCE, "bfloat16")

COMMAND = Command(__doc__, positional=("checkpoint", "other"), status=2)
_A = COMMAND.DEFINE_string("checkpoint", None, "A: folder of the checkpoint.", required=True)
_B = COMMAND.DEFINE_string("other", None, "B: folder of the checkpoint to compare with A.")
_OUT = COMMAND.DEFINE_string("out", None, "JSON file for the report.")
_ADAPTER_A = COMMAND.DEFINE_string("adapter", None, "PEFT folder of a LoRA adapter, merged into A.")
_ADAPTER_B = COMMAND.DEFINE_string("adapter_b", None, "The same for B.")
_DTYPES = COMMAND.DEFINE_list(
    "dtypes", list(_DTYPES_KNOWN), f"Computing types of B: {', '.join(_DTYPES_KNOWN)}."
)
_OBSERVATIONS = COMMAND.DEFINE_integer("observations", 4, "Random observations.", lower_bound=1)
_SEED = COMMAND.DEFINE_integer("seed", 0, "Seed of observations and noise.", lower_bound=0)
_PACKAGE = COMMAND.DEFINE_string(
    "torch_package", None, "Folder of the original package (it holds models/), or lerobot."
)
_PYTHON = COMMAND.DEFINE_string("torch_python", sys.executable, "Python that has torch.")
COMMAND.DEFINE_alias("adapter_a", "adapter")


def main(_: list[str]) -> int:
    """Returns the exit status."""
    dtypes, package = tuple(dict.fromkeys(_DTYPES.value)), _PACKAGE.value
    if not dtypes or set(dtypes) - set(_DTYPES_KNOWN):
        raise UsageError(
            f"--dtypes={','.join(dtypes)}; of {', '.join(_DTYPES_KNOWN)}, at least one"
        )
    if not (_B.value or package or set(dtypes) - {_REFERENCE}):
        raise UsageError("A alone needs --torch_package, or bfloat16 in --dtypes")
    from scripts.equivalence.report import Plan, check, print_report
    from xvla_jax.errors import XVLAError

    quiet_libraries()
    plan = Plan(
        a=_A.value,
        b=_B.value,
        adapter_a=_ADAPTER_A.value,
        adapter_b=_ADAPTER_B.value,
        dtypes=dtypes,
        observations=_OBSERVATIONS.value,
        seed=_SEED.value,
        torch=TorchOptions(package, python=_PYTHON.value) if package else None,
    )
    console = Console()
    try:
        report = check(plan)
    except (XVLAError, TorchReferenceError) as error:
        console.print(f"error: {error}", style="bold red", markup=False, highlight=False)
        return 2
    if _OUT.value:
        write_json(pathlib.Path(_OUT.value), report)
    print_report(console, report)
    return 0 if report["passed"] else 1


if __name__ == "__main__":
    sys.exit(COMMAND.run(main, sys.argv))
