"""Memory and time of int8 weights: ``python -m benchmarks.inference.int8_cost``.

Bytes of the weights and of other memory, from the compiled program of one chunk; and seconds of
calls that take turns with the float32 weights, so that other load meets both. Without a checkpoint
it writes one of the released size with random weights. Prints a Markdown table.
"""

from __future__ import annotations

import os
import pathlib
import statistics
import sys
from typing import Any

import jax
from rich.console import Console

from benchmarks.checkpoints import released_checkpoint
from benchmarks.timing import seconds_of
from scripts.terminal import Command, quiet_libraries
from xvla_jax.models.int8 import DEFAULT_GROUPS, int8_params
from xvla_jax.plans import DEFAULT
from xvla_jax.policy import Policy
from xvla_jax.pretrained import load_checkpoint
from xvla_jax.processor import Processor

COMMAND = Command(__doc__)
_CHECKPOINT = COMMAND.DEFINE_string("checkpoint", "", "Float32 weights; random ones if empty.")
_OUT = COMMAND.DEFINE_string("out", "outputs/int8", "Where random weights go.")
_VIEWS = COMMAND.DEFINE_integer("views", 3, "Images of an observation.", lower_bound=1)
_ROUNDS = COMMAND.DEFINE_integer("rounds", 3, "Calls of each.", lower_bound=0)


def main(_: list[str]) -> int:
    """Returns the exit status."""
    quiet_libraries()
    console, load = Console(), os.getloadavg()[0]
    folder = released_checkpoint(_CHECKPOINT.value, pathlib.Path(_OUT.value), console)
    loaded = load_checkpoint(folder, stored=True)
    calls: dict[str, Any] = {}
    rows: dict[str, list[str]] = {}
    for name, params in (
        ("float32", loaded.params),
        ("int8", int8_params(loaded.params, DEFAULT_GROUPS)),
    ):
        policy = Policy(loaded.config, params, loaded.processor or Processor(), {})
        program = policy.lower(views=_VIEWS.value, batch=1, plan=DEFAULT).compile()
        memory: Any = program.memory_analysis()
        weights = jax.tree.leaves(policy.params)
        sizes = sum(x.nbytes for x in weights), memory.argument_size_in_bytes
        rows[name] = [f"{size / 1e6:,.1f}" for size in (*sizes, memory.temp_size_in_bytes)]
        inputs = jax.device_put(policy.example_inputs(views=_VIEWS.value, batch=1))
        calls[name] = lambda p=program, w=policy.params, i=inputs: p(w, i)
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(_ROUNDS.value + 1 if _ROUNDS.value else 0):
        for name, call in calls.items():
            took = seconds_of(call)
            seconds[name] += [took] if turn else []  # the first finds cold memory
    titles = ("weights", "weights, MB", "arguments, MB", "temporaries, MB", "seconds", "of float32")
    for row in (titles, ["---"] * len(titles)):
        console.print(f"| {' | '.join(row)} |", markup=False, soft_wrap=True)
    for name, cells in rows.items():
        if seconds[name]:
            middle = statistics.median(seconds[name])
            cells += [f"{middle:.3f}", f"{middle / statistics.median(seconds['float32']):.2f}"]
        console.print(f"| {' | '.join([name, *cells])} |", markup=False, soft_wrap=True)
    device = jax.local_devices()[0]
    console.print(
        f"{device.platform} {device.device_kind}, {_VIEWS.value} views, exact10, load {load:.1f} "
        f"before, {os.getloadavg()[0]:.1f} after",
        markup=False,
    )
    return 0


if __name__ == "__main__":
    sys.exit(COMMAND.run(main, sys.argv))
