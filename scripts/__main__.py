"""Lists the commands: ``python -m scripts``."""

from __future__ import annotations

import pathlib

from scripts import choices

_FOLDER = pathlib.Path(__file__).parent
_WIDTH = 24

# what people come for -> commands, in the order in which one uses them
COMMANDS: dict[str, tuple[str, ...]] = {
    "Try it": ("doctor", "quickstart", "report"),
    "Pretrain, fine-tune": ("plan", "train", "run_summary"),
    "Data": (
        *("new_robot", "inspect_data", "count_frames", "build_rlds", "convert_libero"),
        "record_demos",
    ),
    "Checkpoints": (
        *("convert_checkpoint", "check_equivalence", "prompt", "make_random_checkpoint"),
        "export_program",
    ),
    "Evaluate": (
        *("evaluate", "merge_results", "compare_results", "verify_receipt", "latency_curve"),
        "golden_frame",
    ),
    "Serve": ("certify_sampler", "serve", "compare_client"),
}


def index() -> str:
    """Returns a line for each command: its name and the first line of its docstring."""
    lines = ["python -m scripts.NAME --help shows the flags of a command, with an example."]
    for purpose, names in COMMANDS.items():
        lines += ["", purpose]
        for name in names:
            summary = choices.docstring(_FOLDER / f"{name}.py").splitlines()[0]
            lines.append(f"  {name.ljust(_WIDTH)}{summary}")
    return "\n".join(lines)


if __name__ == "__main__":
    print(index())
