"""Writes a checkpoint of random weights in the released layout.

python -m scripts.make_random_checkpoint OUT [--model_config=PATH/config.json|small] [--seed=0]
    [--dtype=float32|bfloat16] [--tasks=ROW,ROW]

Without --model_config the model is the released one with action space ee6d: 903 tensors,
3,519,068,172 bytes; `small` is that of the quickstart, 28 MB, for images of 64 px and texts of 16
tokens. The same seed gives the same file. --tasks gives it the action contracts of these rows,
without which scripts.evaluate refuses a checkpoint.
"""

from __future__ import annotations

import sys

from rich.console import Console

from scripts.terminal import Command, count_progress, quiet_libraries

COMMAND = Command(__doc__, positional=("out",), rows={"tasks": "tasks"})
_OUT = COMMAND.DEFINE_string("out", None, "Folder of the checkpoint; new or empty.", required=True)
_CONFIG = COMMAND.DEFINE_string(
    "model_config", "", "config.json, or small: the quickstart's size; empty: the released size."
)
_SEED = COMMAND.DEFINE_integer("seed", 0, "Seed of all weights.", lower_bound=0)
_DTYPE = COMMAND.DEFINE_enum("dtype", "float32", ["bfloat16", "float32"], "Type of every tensor.")
_IMAGE_SIZE = COMMAND.DEFINE_integer("image_size", 224, "Side of images in px.", lower_bound=1)
_TEXT_LENGTH = COMMAND.DEFINE_integer("text_length", 50, "Text tokens.", lower_bound=3)
_TASKS = COMMAND.DEFINE_list("tasks", [], "Rows of eval/tasks/ that it can be evaluated on.")
COMMAND.DEFINE_alias("config", "model_config")


def main(_: list[str]) -> int:
    """Returns the exit status: 0, or 1 when nothing was written."""
    from scripts.evaluation.entrants import contracts_of
    from scripts.random_weights import read_config, write_random_checkpoint
    from xvla_jax.errors import XVLAError
    from xvla_jax.processor import Processor

    quiet_libraries()
    console = Console()
    processor = Processor(image_size=_IMAGE_SIZE.value, text_length=_TEXT_LENGTH.value)
    try:
        config = read_config(_CONFIG.value)
        contracts = contracts_of(_TASKS.value, config)
        with count_progress(console, "tensors") as show:
            written = write_random_checkpoint(
                _OUT.value,
                config,
                processor,
                seed=_SEED.value,
                dtype=_DTYPE.value,
                on_tensor=show,
                contracts=contracts,
            )
    except (XVLAError, ValueError) as error:
        console.print(f"error: {error}", style="bold red", markup=False)
        return 1
    console.print(
        f"{_OUT.value}: {written.tensors} tensors, {written.size:,} bytes, sha256 {written.sha256}",
        markup=False,
        soft_wrap=True,
    )
    return 0


if __name__ == "__main__":
    sys.exit(COMMAND.run(main, sys.argv))
