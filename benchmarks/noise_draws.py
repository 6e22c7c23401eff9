"""Work of a train step by number of draws per observation, counted in the compiled program.

``JAX_PLATFORMS=cpu python -m benchmarks.noise_draws [--shape=RELEASED] [--views=2] [--draws=1,4]``

Nothing is run: the step is compiled for this machine from shapes alone. The gain is the number of
chunks that the head trains on for a FLOP, over that of the first number of draws.
"""

from __future__ import annotations

from typing import Final

import jax
import jax.numpy as jnp
from absl import app, flags
from rich.console import Console
from rich.table import Table

from configs import models
from xvla_jax.config import XVLAConfig
from xvla_jax.planning.flops import flops_by_stage
from xvla_jax.planning.programs import Run, compile_program
from xvla_jax.processor import Processor
from xvla_jax.training.optimizer import OptimizerConfig

_SHAPE = flags.DEFINE_string("shape", "RELEASED", "Row of configs/models.py.")
_VIEWS = flags.DEFINE_integer("views", 2, "Views of an observation.", lower_bound=1)
_DRAWS = flags.DEFINE_list("draws", ["1", "4"], "Numbers of draws; the first is the base.")

_STAGES: Final = {"encoder": r"/vlm/", "head": r"/transformer/"}


def work(draws: int) -> dict[str, int]:
    """Returns the FLOPs of a step of one observation by stage, forward and backward."""
    run = Run(
        config=XVLAConfig.from_dict(
            models.model_dict(getattr(models, _SHAPE.value), action_mode="ee6d")
        ),
        processor=Processor(),
        optimizer=OptimizerConfig(schedule="constant", iters=100, freeze_steps=0),
        dtype=jnp.float32,
        remat="none",
        batch_size=1,
        views=_VIEWS.value,
        data=1,
        fsdp=1,
        noise_draws=draws,
    )
    program = compile_program(run.lower_step(run.mesh(jax.devices()[:1])))
    return flops_by_stage(program.text, _STAGES)


def main(_: list[str]) -> None:
    """Counts and prints."""
    table = Table("draws", *(f"{name}, GFLOP" for name in (*_STAGES, "other")), "chunks per FLOP")
    base = None
    for draws in map(int, _DRAWS.value):
        stages = work(draws)
        rate = draws / sum(stages.values())
        base = base or rate
        table.add_row(
            str(draws),
            *(f"{flops / 1e9:,.1f}" for flops in stages.values()),
            f"{rate / base:.2f} x",
        )
    Console().print(table)


if __name__ == "__main__":
    app.run(main)
