"""Writes a checkpoint of random weights in the released layout.

python -m scripts.make_random_checkpoint DST [--config=PATH/config.json] [--seed=0]
    [--dtype=float32|bfloat16]

Without --config the model is the released one with action space ee6d: 903 tensors, 3,519,068,172
bytes. The same seed gives the same file.
"""

from __future__ import annotations

import sys

from absl import app, flags
from rich.console import Console

from scripts.random_weights import STORED, read_config, write_random_checkpoint
from scripts.terminal import count_progress, ends_clearly, quiet_libraries
from xvla_jax.errors import XVLAError
from xvla_jax.processor import Processor

_CONFIG = flags.DEFINE_string("config", "", "config.json of the model; empty: the released size.")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of all weights.", lower_bound=0)
_DTYPE = flags.DEFINE_enum("dtype", "float32", sorted(STORED), "Type of every tensor.")
_IMAGE_SIZE = flags.DEFINE_integer("image_size", 224, "Side of images in px.", lower_bound=1)
_TEXT_LENGTH = flags.DEFINE_integer("text_length", 50, "Text tokens.", lower_bound=3)


def main(argv: list[str]) -> int:
    """Returns the exit status: 0, or 1 when nothing was written."""
    if len(argv) != 2:
        raise app.UsageError("one folder, DST, is needed")
    quiet_libraries()
    console = Console()
    processor = Processor(image_size=_IMAGE_SIZE.value, text_length=_TEXT_LENGTH.value)
    try:
        config = read_config(_CONFIG.value)
        with count_progress(console, "tensors") as show:
            written = write_random_checkpoint(
                argv[1],
                config,
                processor,
                seed=_SEED.value,
                dtype=_DTYPE.value,
                on_tensor=show,
            )
    except XVLAError as error:
        console.print(f"error: {error}", style="bold red", markup=False)
        return 1
    console.print(
        f"{argv[1]}: {written.tensors} tensors, {written.size:,} bytes, sha256 {written.sha256}",
        markup=False,
        soft_wrap=True,
    )
    return 0


if __name__ == "__main__":
    sys.exit(app.run(ends_clearly(main)))
