"""Shows what training for delays teaches: ``python -m benchmarks.delay_training``.

``python -m benchmarks.delay_training [--steps=1000] [--seed=0]``

A task whose observation says nothing: each chunk stays at a place of its own, drawn for each
sample, so only the given rows say where the others are. Two tiny models are trained on it, one for
delays of 0 to 4 of its 6 rows and one for none. The table has the distance of the rows behind the
given ones from their place, in mm, for each way to give them.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.train_step import made_up_batch
from configs import models
from scripts.terminal import count_progress, quiet_libraries
from xvla_jax import flow, inpainting
from xvla_jax.batch import normalise
from xvla_jax.config import XVLAConfig
from xvla_jax.inpainting import Prefix
from xvla_jax.models.xvla import XVLA
from xvla_jax.plans import STEPS
from xvla_jax.processor import Processor
from xvla_jax.sharding import global_batch, make_mesh
from xvla_jax.training.optimizer import OptimizerConfig
from xvla_jax.training.state import Recipe, init_state
from xvla_jax.training.step import make_train_step

_STEPS = flags.DEFINE_integer("steps", 1000, "Training steps.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "Of weights, places and noise.")

_SIZE: Final = 32  # samples of a step, and of the measurement
_REACH: Final = 0.3  # m, of the places along each axis
_DELAYS: Final = (0, 4)  # longest delay of each training
_PROCESSOR: Final = Processor(image_size=32, text_length=12)
_STAGE: Final[dict[str, Any]] = {  # of the vision tower, which has nothing to see
    **dict.fromkeys(("depths", "num_heads", "num_groups"), (1,)),
    **dict.fromkeys(("dim_embed", "patch_size", "patch_stride"), (8,)),
    "patch_prenorm": (False,),
    "patch_padding": (0,),
}
_POSITION: Final = slice(0, 3)  # channels


def places(rng: np.random.Generator, config: XVLAConfig) -> np.ndarray:
    """Draws chunks [B, T, 20] that stay at a place, all other channels 0."""
    actions = np.zeros((_SIZE, config.num_actions, 20), np.float32)
    actions[..., _POSITION] = rng.uniform(-_REACH, _REACH, (_SIZE, 1, 3))
    return actions


def trained(config: XVLAConfig, host: dict[str, Any], console: Console) -> Any:
    """Returns the parameters after training on places."""
    optimizer = OptimizerConfig(
        "warmup_cosine", _STEPS.value, learning_rate=3e-3, freeze_steps=0, warmup_steps=50
    )
    recipe, mesh = Recipe(XVLA(config), optimizer), make_mesh(1, 1, jax.devices()[:1])
    step = make_train_step(recipe, _PROCESSOR, seed=_SEED.value)
    state, rng = init_state(recipe, mesh, seed=_SEED.value), np.random.default_rng(_SEED.value)
    with jax.set_mesh(mesh), count_progress(console, f"delay {config.rtc_max_delay}") as show:
        for number in range(1, _STEPS.value + 1):
            state, _ = step(state, global_batch(host | {"actions": places(rng, config)}, mesh))
            show(number, _STEPS.value)
    return state.params


def measured(config: XVLAConfig, params: Any, host: dict[str, Any]) -> dict[str, list[float]]:
    """Returns mm of the free rows by way, for 0, 1, .. given rows up to the longest delay."""
    model, length = XVLA(config), config.num_actions
    true = places(np.random.default_rng(_SEED.value + 1), config)
    pixels = normalise(host["images"], _PROCESSOR.mean, _PROCESSOR.std)
    seen = pixels, host["view_mask"], host["input_ids"]
    encode = functools.partial(model.apply, method="encode")
    context: Any = jax.jit(encode)({"params": params}, *seen)
    noise = jax.random.normal(jax.random.key(_SEED.value), true.shape)

    @jax.jit
    def sampled(prefix: Prefix) -> jax.Array:
        given = context, host["proprio"], host["domain_id"]
        return flow.sample(model, params, *given, noise=noise, steps=STEPS, prefix=prefix)

    rows: dict[str, list[float]] = {}
    for given in range(max(_DELAYS) + 1):
        for way in ("switch", *inpainting.MODES):
            committed = given if way in inpainting.MODES else 0
            weight = inpainting.weights(committed, committed, length)
            clean = given if way == "trained" else 0
            prefix = Prefix(
                jnp.asarray(true),
                jnp.tile(jnp.asarray(weight), (_SIZE, 1)),
                jnp.full(_SIZE, clean, jnp.int32),
            )
            apart = np.asarray(sampled(prefix))[:, given:, _POSITION] - true[:, given:, _POSITION]
            rows.setdefault(way, []).append(1e3 * float(np.linalg.norm(apart, axis=-1).mean()))
    return rows


def main(_: list[str]) -> None:
    """Prints a line for each training and way."""
    quiet_libraries()
    console = Console()
    table = Table("trained for", "way", title="mm behind the given rows", box=box.SIMPLE)
    for given in range(max(_DELAYS) + 1):
        table.add_column(f"{given} given", justify="right")
    plain = XVLAConfig.from_dict(models.model_dict(models.TINY, action_mode="ee6d"))
    plain = dataclasses.replace(plain, vision=dataclasses.replace(plain.vision, **_STAGE))
    host = made_up_batch(plain, _PROCESSOR, _SIZE)
    host |= {name: np.zeros_like(host[name]) for name in ("domain_id", "proprio")}  # one robot
    host["images"] = host["images"][:, :1]
    host["view_mask"][:, 1:] = False
    for longest in _DELAYS:
        config = dataclasses.replace(plain, rtc_max_delay=longest)
        rows = measured(config, trained(config, host, console), host)
        for way, millimetres in rows.items():
            table.add_row(f"0 .. {longest}", way, *(f"{mm:.0f}" for mm in millimetres))
    console.print(table)


if __name__ == "__main__":
    app.run(main)
