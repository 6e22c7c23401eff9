"""Our train step in a process of its own.

``python -m benchmarks.train_step --shape=RELEASED [--scan_vision] [--program_cache=FOLDER]``

Its last line is JSON: seconds of the steps, of the first (which compiles, or reads its program from
the cache), and peak memory.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from configs import models
from xvla_jax.compilation.program_cache import keep_programs
from xvla_jax.config import XVLAConfig
from xvla_jax.models.xvla import XVLA
from xvla_jax.processor import Processor
from xvla_jax.sharding import global_batch, make_mesh
from xvla_jax.training.cpu_memory import keep_between_steps, trim_after_compiling
from xvla_jax.training.optimizer import OptimizerConfig
from xvla_jax.training.state import Recipe, TrainState, init_state
from xvla_jax.training.step import make_train_step

Step = Callable[[TrainState, Mapping[str, jax.Array]], tuple[TrainState, dict[str, jax.Array]]]


def timed_steps(
    step: Step, state: TrainState, batch: Mapping[str, jax.Array], *, repeat: int
) -> tuple[list[float], TrainState]:
    """Returns the seconds of each of ``repeat`` steps, and the state after them."""
    seconds = []
    for _ in range(repeat):
        began = time.perf_counter()
        state, metrics = step(state, batch)
        jax.block_until_ready((state, metrics))
        seconds.append(time.perf_counter() - began)
    return seconds, state


def small_run() -> tuple[TrainState, Step, Mapping[str, jax.Array]]:
    """Returns state, compiled step and batch of 32 of the quickstart size."""
    state, step, batch = run_parts("SMALL", Processor(image_size=64, text_length=16), size=32)
    _, state = timed_steps(step, state, batch, repeat=2)
    return state, step, batch


def run_parts(
    shape: str, processor: Processor, *, size: int, scan_vision: bool = False
) -> tuple[TrainState, Step, Mapping[str, jax.Array]]:
    """Returns state, step (its first call compiles) and batch of a row of ``configs/models.py``."""
    config = XVLAConfig.from_dict(models.model_dict(getattr(models, shape), action_mode="ee6d"))
    optimizer = OptimizerConfig(schedule="constant", iters=100, freeze_steps=0)
    recipe = Recipe(XVLA(config, scan_vision=scan_vision), optimizer)
    mesh = make_mesh(1, 1, jax.devices()[:1])
    state = init_state(recipe, mesh, seed=0)
    batch = global_batch(made_up_batch(config, processor, size), mesh)
    step = make_train_step(recipe, processor, seed=0)

    def on_mesh(state: TrainState, batch: Any) -> Any:
        with jax.set_mesh(mesh):
            return step(state, batch)

    return state, on_mesh, batch


def made_up_batch(config: XVLAConfig, processor: Processor, size: int) -> dict[str, np.ndarray]:
    """Returns a batch with noise in every view."""
    rng = np.random.default_rng(0)
    views, side = processor.num_views, processor.image_size
    actions = rng.normal(0, 0.3, (size, config.num_actions, 20)).astype(np.float32)
    actions[..., [9, 19]] = 1.0
    return {
        "images": rng.integers(0, 256, (size, views, side, side, 3), np.uint8),
        "view_mask": np.ones((size, views), bool),
        "input_ids": rng.integers(3, 1000, (size, processor.text_length)).astype(np.int32),
        "domain_id": np.arange(size, dtype=np.int32) % config.num_domains,
        "proprio": rng.normal(0, 0.3, (size, 20)).astype(np.float32),
        "actions": actions,
    }


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", required=True)
    parser.add_argument("--text_length", type=int, default=50)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--scan_vision", action="store_true")
    parser.add_argument("--program_cache", default="off", help="Folder of compiled programs.")
    options = parser.parse_args()
    keep_programs(options.program_cache)
    keep_between_steps()  # both as the trainer does
    trim_after_compiling()
    processor = Processor(text_length=options.text_length)
    state, step, batch = run_parts(
        options.shape, processor, size=1, scan_vision=options.scan_vision
    )
    first, state = timed_steps(step, state, batch, repeat=1)
    seconds, _ = timed_steps(step, state, batch, repeat=options.repeat)
    figures = {
        "first_s": first[0],
        "steps_s": seconds,
        "median_s": float(np.median(seconds)),
        "peak_rss_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
