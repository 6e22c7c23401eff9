"""Trains X-VLA: ``python -m scripts.train --config=configs/X.py --workdir=W [--config.a.b=v]``.

A workdir that holds a checkpoint is resumed, data stream included. Ctrl-C and SIGTERM save and
stop.
"""

from __future__ import annotations

import logging
import pathlib
import sys
from typing import Any

import jax
import jax.numpy as jnp
from absl import app, flags
from ml_collections import config_flags

from data.contracts import contracts_of
from data.mixtures import mixture
from data.pipeline import Batches, Source, batches
from data.readers import open_mixture
from scripts.logs import quiet_libraries
from xvla_jax.actions import action_space
from xvla_jax.checkpoint import Checkpointer
from xvla_jax.config import XVLAConfig
from xvla_jax.contract import Contract
from xvla_jax.errors import ConfigError, XVLAError
from xvla_jax.loop import LoopConfig, StopSignal, run_loop
from xvla_jax.metrics import MetricsWriter
from xvla_jax.models.xvla import XVLA
from xvla_jax.optimizer import OptimizerConfig
from xvla_jax.pretrained import load_checkpoint, model_item
from xvla_jax.processor import Processor
from xvla_jax.sharding import make_mesh
from xvla_jax.skips import SkipWatch
from xvla_jax.train import Recipe, abstract_state, init_state, make_train_step

_CONFIG = config_flags.DEFINE_config_file("config", None, "Config file.", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of checkpoints and metrics.", required=True)
_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def run(config: Any, workdir: pathlib.Path) -> int:
    """Trains, and returns the exit status: 0 done or stopped by SIGTERM, 130 stopped by Ctrl-C."""
    if config.dtype not in _DTYPES:
        raise ConfigError(f"config.dtype is {config.dtype!r}; allowed are {', '.join(_DTYPES)}")
    loaded = load_checkpoint(config.init_from) if config.init_from else None
    model_config = loaded.config if loaded else XVLAConfig.from_dict(config.model.to_dict())
    processor = (loaded and loaded.processor) or Processor(**config.processor.to_dict())
    sources = open_mixture(mixture(config.data.mixture), config.data.root)
    model = XVLA(model_config, dtype=_DTYPES[config.dtype], remat=config.remat)
    optimizer_config = OptimizerConfig(**config.optimizer.to_dict())
    recipe = Recipe(model, optimizer_config, config.accumulate, config.ema_decay)
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp)
    checkpointer = Checkpointer(workdir, keep=config.keep, save_interval=config.save_every)

    step, position = checkpointer.latest_step(), None
    if step is not None:
        logging.info("resuming %s at step %d", workdir, step)
        abstract = abstract_state(recipe, mesh)
        state, saved = checkpointer.restore(abstract, step=step)
        position = saved
    else:
        state = init_state(recipe, mesh, seed=config.seed, params=loaded.params if loaded else None)
    with (
        _open_batches(config, model_config, processor, sources, position) as stream,
        MetricsWriter(workdir) as writer,
        StopSignal() as stop,
    ):
        state = run_loop(
            state,
            make_train_step(recipe, processor, seed=config.seed),
            stream,
            config=LoopConfig(
                iters=optimizer_config.iters,
                log_every=config.log_every,
                present_views=max(len(s.reader.spec.views) for s in sources),
            ),
            model_config=model_config,
            mesh=mesh,
            checkpointer=checkpointer,
            model_item=model_item(
                model_config, processor, _contracts(sources, model_config), source=loaded
            ),
            writer=writer,
            stop=stop,
            skips=SkipWatch(workdir, limit=config.max_skipped_steps),
        )
        checkpointer.close()
    if int(state.step) < optimizer_config.iters:
        print(f"stopped at step {int(state.step)}; the same command goes on from there")
        return 130 if stop.number == 2 else 0
    print(f"trained {optimizer_config.iters} steps; checkpoints are in {checkpointer.folder}")
    return 0


def _open_batches(
    config: Any,
    model_config: XVLAConfig,
    processor: Processor,
    sources: list[Source],
    position: dict | None,
) -> Batches:
    return batches(
        sources,
        batch_size=config.batch_size,
        num_actions=model_config.num_actions,
        num_views=processor.num_views,
        image_size=processor.image_size,
        tokenize=processor.tokenize,
        seed=config.seed,
        shuffle_buffer=config.data.shuffle_buffer,
        lanes=config.data.lanes,
        max_bad_episodes=config.data.max_bad_episodes,
        position=position,
        host=jax.process_index(),
        hosts=jax.process_count(),
        cache_mb=config.data.cache_mb,
    )


def _contracts(sources: list[Source], model_config: XVLAConfig) -> dict[int, Contract]:
    """What the data says of the domains, as the checkpoint will carry it."""
    mode = action_space(model_config).mode
    rows = contracts_of([s.reader.spec for s in sources], num_actions=model_config.num_actions)
    return {row["domain_id"]: Contract(action_space=mode, **row) for row in rows}


def main(argv: list[str]) -> None:
    """Runs, and turns our own errors into one clear line."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    if _CONFIG.value is None:
        raise app.UsageError("--config=configs/X.py is needed")
    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
    quiet_libraries()
    workdir = pathlib.Path(_WORKDIR.value)
    workdir.mkdir(parents=True, exist_ok=True)
    try:
        status = run(_CONFIG.value, workdir)
    except (XVLAError, OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    sys.exit(status)


if __name__ == "__main__":
    app.run(main)
