"""Work of a train step by number of draws per observation, counted in the compiled program.

``JAX_PLATFORMS=cpu python -m benchmarks.noise_draws [--shape=RELEASED] [--views=2] [--draws=1,4]
[--traced]``

The step of one observation is compiled for this machine from shapes alone, and not run. The gain is
the number of chunks that the head trains on for a FLOP, over that of the first number of draws.
With ``--traced`` the step is traced instead, which takes a minute and gives the sum alone.

``JAX_PLATFORMS=cpu XLA_FLAGS=--xla_force_host_platform_device_count=2
python -m benchmarks.noise_draws --timed_steps=20 --draws=1,2,4``

times steps of the quickstart instead, 32 observations of two views, those of each number in turn.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from rich.console import Console
from rich.table import Table

from benchmarks.train_step import made_up_batch
from configs import models, quickstart
from xvla_jax.config import XVLAConfig
from xvla_jax.models.xvla import XVLA
from xvla_jax.planning.flops import flops_by_stage, step_flops
from xvla_jax.planning.programs import Run, compile_program
from xvla_jax.processor import Processor
from xvla_jax.sharding import global_batch, make_mesh
from xvla_jax.training.optimizer import OptimizerConfig
from xvla_jax.training.state import Recipe, TrainState, init_state
from xvla_jax.training.step import make_train_step

_SHAPE = flags.DEFINE_string("shape", "RELEASED", "Row of configs/models.py.")
_VIEWS = flags.DEFINE_integer("views", 2, "Views of an observation.", lower_bound=1)
_TIMED = flags.DEFINE_integer("timed_steps", 0, "Steps of the quickstart to time.", lower_bound=0)
_TRACED = flags.DEFINE_bool("traced", False, "Count in the traced step, without compiling.")
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
    mesh = run.mesh(jax.devices()[:1])
    if not _TRACED.value:
        return flops_by_stage(compile_program(run.lower_step(mesh)).text, _STAGES)
    host = made_up_batch(run.config, run.processor, run.batch_size)
    batch = host | {"images": host["images"][:, : run.views]}
    return {"all": step_flops(run.recipe, run.processor, run.state(mesh), batch)}


def _timed(numbers: list[int]) -> Table:
    """Returns seconds, of the clock and of all cores together, of steps taken in turns."""
    runs = {draws: _quickstart(draws) for draws in numbers}
    for _ in range(2):  # the first call compiles
        runs = {draws: (step, step(state)) for draws, (step, state) in runs.items()}
    seconds: dict[int, list[tuple[float, float]]] = {draws: [] for draws in numbers}
    for _ in range(_TIMED.value):
        for draws, (step, state) in runs.items():
            wall, cores = time.perf_counter(), time.process_time()
            runs[draws] = step, step(state)
            taken = time.perf_counter() - wall, time.process_time() - cores
            seconds[draws].append(taken)
    table = Table("draws", "step, s", "CPU, s", "chunks per CPU second")
    medians = {draws: np.median(taken, axis=0) for draws, taken in seconds.items()}
    for draws, (wall, cores) in medians.items():
        gain = draws / cores * medians[numbers[0]][1] / numbers[0]
        table.add_row(str(draws), f"{wall:.3f}", f"{cores:.3f}", f"{gain:.2f} x")
    return table


def _quickstart(draws: int) -> tuple[Callable[[TrainState], TrainState], TrainState]:
    """Returns a step on one made-up batch, which waits for its end, and the first state."""
    config: Any = quickstart.get_config()
    processor = Processor(**config.processor.to_dict())
    recipe = Recipe(
        XVLA(XVLAConfig.from_dict(config.model.to_dict())),
        OptimizerConfig(**config.optimizer.to_dict()),
        noise_draws=draws,
    )
    mesh = make_mesh(-1, 1)
    host = made_up_batch(recipe.model.config, processor, config.batch_size)
    batch = global_batch(host | {"images": host["images"][:, : _VIEWS.value]}, mesh)
    train_step = make_train_step(recipe, processor, seed=0)

    def step(state: TrainState) -> TrainState:
        with jax.set_mesh(mesh):
            state, metrics = train_step(state, batch)
        jax.block_until_ready((state, metrics))
        return state

    return step, init_state(recipe, mesh, seed=0)


def _counted(numbers: list[int]) -> Table:
    """Returns the FLOPs of a step by stage."""
    counts = {draws: work(draws) for draws in numbers}
    names = counts[numbers[0]]
    table = Table("draws", *(f"{name}, GFLOP" for name in names), "chunks per FLOP")
    base = None
    for draws, stages in counts.items():
        rate = draws / sum(stages.values())
        base = base or rate
        table.add_row(
            str(draws),
            *(f"{flops / 1e9:,.1f}" for flops in stages.values()),
            f"{rate / base:.2f} x",
        )
    return table


def main(_: list[str]) -> None:
    """Counts or times, and prints."""
    numbers = [int(draws) for draws in _DRAWS.value]
    Console().print(_timed(numbers) if _TIMED.value else _counted(numbers))


if __name__ == "__main__":
    app.run(main)
