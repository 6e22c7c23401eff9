"""Times a fresh process up to its first action, part by part.

``python -m benchmarks.cold_start CHECKPOINT [--cache=DIR] [--views=3] [--steps=10] [--clock=cpu]``
prints one line of JSON, seconds by part; those of the CPU hardly change with other load.
``benchmarks.inference`` runs it in processes of its own.
"""

import time

_CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
_START = {name: clock() for name, clock in _CLOCKS.items()}  # before anything large is imported

# ruff: noqa: E402 (the imports are what is measured)
import json
import os
import pathlib
import sys

import jax
import numpy as np
from absl import app, flags

from scripts.terminal import quiet_libraries
from xvla_jax.batch import Observation
from xvla_jax.checkpoints.safetensors_files import WEIGHTS_NAME
from xvla_jax.compilation.program_cache import OFF, keep_programs
from xvla_jax.policy import Policy

_CACHE = flags.DEFINE_string("cache", "", "Folder of JAX's persistent compilation cache.")
_VIEWS = flags.DEFINE_integer("views", 3, "Views of the observation.")
_STEPS = flags.DEFINE_integer("steps", 10, "Denoising steps.")
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Computing type.")
_CLOCK = flags.DEFINE_enum("clock", "wall", sorted(_CLOCKS), "Seconds that are printed.")
_BLOCK = 1 << 24  # bytes


def _read(path: pathlib.Path) -> None:
    buffer = bytearray(_BLOCK)
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def main(argv: list[str]) -> None:
    """Prints the seconds of the parts.

    ``read`` reads the weights' file plainly, before anything else does; ``first`` is the first
    call, compiled or taken from the cache, and ``second`` the next one.
    """
    quiet_libraries()
    clock = _CLOCKS[_CLOCK.value]
    imported = clock()
    folder = pathlib.Path(argv[1])
    keep_programs(_CACHE.value or OFF)
    _read(folder / WEIGHTS_NAME)
    read = clock()
    policy = Policy.from_pretrained(
        folder,
        dtype=_DTYPE.value,
        ahead=lambda processor: [(min(_VIEWS.value, processor.num_views), 1)],
    )
    jax.block_until_ready(policy.params)
    loaded = clock()
    side = policy.processor.image_size
    observation: Observation = {
        "images": [np.zeros((side, side, 3), np.uint8)] * _VIEWS.value,
        "instruction": "pick up the bottle",
        "proprio": np.zeros(
            policy.example_inputs(views=1, batch=1)["proprio"].shape[1], np.float32
        ),
        "domain_id": 0,
    }
    policy.act([observation], steps=_STEPS.value)
    first = clock()
    policy.act([observation], steps=_STEPS.value)
    second = clock()
    parts = {
        "import": imported - _START[_CLOCK.value],
        "read": read - imported,
        "load": loaded - read,
        "first": first - loaded,
        "second": second - first,
    }
    print(json.dumps(parts))
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    app.run(main)
