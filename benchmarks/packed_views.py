"""Work of a train step with packed views, beside the padded step, on mixtures of 1, 2 and 3 views.

``python -m benchmarks.packed_views [--model=released] [--compiled]``

Counts matrix products and convolutions of one device, in the traced step or, with ``--compiled``,
in the program that XLA makes of it for this CPU; nothing is run. Steps that need a second pass
count with their share of the steps.
"""

from __future__ import annotations

from typing import Final

import jax
import jax.numpy as jnp
from absl import app, flags
from jax.sharding import NamedSharding

from configs import models
from data.sampling import DEALS
from data.stream.stream import StreamShape
from scripts.training.packed_views import AUTO, SourceViews, packed_views, view_load
from xvla_jax.batch import abstract_batch
from xvla_jax.config import XVLAConfig
from xvla_jax.models.xvla import XVLA
from xvla_jax.planning import flops
from xvla_jax.processor import Processor
from xvla_jax.sharding import BATCH_SPEC, make_mesh
from xvla_jax.training.optimizer import OptimizerConfig
from xvla_jax.training.state import Recipe, abstract_state
from xvla_jax.training.step import make_train_step

_MODEL = flags.DEFINE_enum("model", "small", ["small", "released"], "Shape of the model.")
_SHARES = flags.DEFINE_list("shares", ["0.4", "0.4", "0.2"], "Samples of 1, 2, 3 ... views.")
_ROWS = flags.DEFINE_integer("rows", 16, "Samples of a device.", lower_bound=1)
_DEVICES = flags.DEFINE_list("devices", ["1", "8", "64"], "Devices that share a batch.")
_DEALS = flags.DEFINE_list("deals", list(DEALS), "Ways to deal a batch, of config.data.deal.")
_COMPILED = flags.DEFINE_bool("compiled", False, "Count the compiled program.")

_SHAPES: Final = {"small": models.SMALL, "released": models.RELEASED}


def step_work(share: float) -> int:
    """Returns the FLOPs of one device in a step that needs no second pass."""
    config = XVLAConfig.from_dict(models.model_dict(_SHAPES[_MODEL.value], action_mode="ee6d"))
    processor = Processor(image_size=64 if _MODEL.value == "small" else 224)
    model = XVLA(config, dtype=jnp.bfloat16, scan_vision=True, packed_views=share)
    recipe = Recipe(model, OptimizerConfig(schedule="constant", iters=1))
    mesh = make_mesh(1, 1, jax.devices()[:1])
    views = len(_SHARES.value)
    batch = abstract_batch(
        config,
        _ROWS.value,
        num_views=views,
        shown=views,
        image_size=processor.image_size,
        text_length=processor.text_length,
        jitter=False,
        sharding=NamedSharding(mesh, BATCH_SPEC),
    )
    state = abstract_state(recipe, mesh)
    if not _COMPILED.value:
        return flops.step_flops(recipe, processor, state, batch)
    with jax.set_mesh(mesh):
        program = make_train_step(recipe, processor, seed=0).lower(state, batch).compile()
    return sum(flops.flops_by_stage(program.as_text(), {}).values())


def main(arguments: list[str]) -> None:
    """Prints a row for each way to deal a batch and number of devices."""
    del arguments
    sources = [SourceViews(float(share), i + 1) for i, share in enumerate(_SHARES.value)]
    padded = step_work(0.0)
    print(f"{_MODEL.value}, {_ROWS.value} samples a device: padded step {padded / 1e9:.1f} GFLOP")
    print(
        "| deal | devices | places of slots | filled | second passes | FLOPs of the padded step |"
    )
    print("|---|---:|---:|---:|---:|---:|")
    known = {1.0: padded}
    for deal in _DEALS.value:
        for devices in map(int, _DEVICES.value):
            shape = StreamShape(0, _ROWS.value * devices, 30, 10_000, 1, deal=deal)
            load = view_load(sources, shape, devices=devices, parts=1)
            packed = packed_views(AUTO, load)
            share = packed.share or 1.0
            if share not in known:
                known[share] = step_work(share)
            places = round(share * load.slots)
            # All slots but the places are the second pass, and the padded step has both.
            often = packed.work - share if packed.share else 0.0
            work = known[share] + often * (padded - known[share]) / max(1.0 - share, 1e-9)
            print(
                f"| {deal} | {devices} | {places} of {load.slots} | {load.images.mean():.1f} | "
                f"{load.overflow(places):.1%} | {work / padded:.1%} |",
                flush=True,
            )


if __name__ == "__main__":
    app.run(main)
