"""Whether checkpoints act alike, and where they part: python -m scripts.check_equivalence A [B].

The same made-up observations and noise go through A and B, of any layout, and with --torch_package
through PyTorch on A's weights. Everything is compared with A in float32: B in every type of
--dtypes (without B, A in bfloat16), and PyTorch in float32. One checkpoint is in memory at a time.
Ends with 0 when every gate is passed, 1 when one is not, 2 when something cannot be compared.
"""

from __future__ import annotations

import pathlib
import sys

from absl import app, flags
from rich.console import Console

from eval.files import write_json
from scripts.equivalence.report import DTYPES, REFERENCE, Plan, check, print_report
from scripts.equivalence.torch_process import TorchOptions, TorchReferenceError
from scripts.terminal import ends_clearly, quiet_libraries
from xvla_jax.errors import XVLAError

_OUT = flags.DEFINE_string("out", None, "JSON file for the report.")
_ADAPTER_A = flags.DEFINE_string("adapter_a", None, "LoRA adapter (PEFT folder) merged into A.")
_ADAPTER_B = flags.DEFINE_string("adapter_b", None, "LoRA adapter (PEFT folder) merged into B.")
_DTYPES = flags.DEFINE_list("dtypes", list(DTYPES), f"Computing types of B: {', '.join(DTYPES)}.")
_OBSERVATIONS = flags.DEFINE_integer("observations", 4, "Made-up observations.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "Of observations and noise.", lower_bound=0)
_PACKAGE = flags.DEFINE_string(
    "torch_package", None, "Folder of the original package (it holds models/), or lerobot."
)
_PYTHON = flags.DEFINE_string("torch_python", sys.executable, "Python that has torch.")

flags.register_validator(
    _DTYPES,
    lambda chosen: bool(chosen) and set(chosen) <= set(DTYPES),
    f"of {DTYPES}, at least one",
)


def main(argv: list[str]) -> int:
    """Returns the exit status."""
    if len(argv) not in (2, 3):
        raise app.UsageError("one or two checkpoint folders are needed", exitcode=2)
    b = argv[2] if len(argv) == 3 else None
    package = _PACKAGE.value
    if not (b or package or set(_DTYPES.value) - {REFERENCE}):
        raise app.UsageError("A alone needs --torch_package, or bfloat16 in --dtypes", exitcode=2)
    quiet_libraries()
    plan = Plan(
        a=argv[1],
        b=b,
        adapter_a=_ADAPTER_A.value,
        adapter_b=_ADAPTER_B.value,
        dtypes=tuple(dict.fromkeys(_DTYPES.value)),
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
    sys.exit(app.run(ends_clearly(main, status=2)))
