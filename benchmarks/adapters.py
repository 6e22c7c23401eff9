"""A step that trains an adapter, against one that differentiates its merged weights.

``python -m benchmarks.adapters [--released] [--topology=v5e:2x2 --samples=8]``

Prints seconds of the train step of the quickstart's size on the default device, by the clock and of
the CPU: forms in turns, the fastest of each. With ``--released``: FLOPs of the step of the released
size for a sample of two views, without recomputed ones, counted as it is traced. With a topology:
the planner's estimate for two blocks of the released head with their gradients, in bfloat16 with
``remat=full`` on one chip; nothing is run.

Forms: ``merged`` differentiates the merged weights, ``pair`` computes ``x W + (x A) B``, ``apart``
is the train step.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks.timing import seconds_of
from benchmarks.train_step import made_up_batch
from configs import models
from xvla_jax.config import XVLAConfig
from xvla_jax.lora import LoraConfig, apply_adapter
from xvla_jax.models.layers import stacked
from xvla_jax.models.low_rank import AdaptedKernel
from xvla_jax.models.soft_transformer import PolicyBlock
from xvla_jax.models.xvla import XVLA, init_params
from xvla_jax.planning.chips import describe
from xvla_jax.planning.flops import step_flops
from xvla_jax.planning.programs import compile_program
from xvla_jax.planning.traffic import estimate
from xvla_jax.processor import Processor
from xvla_jax.sharding import global_batch, make_mesh
from xvla_jax.training.optimizer import OptimizerConfig
from xvla_jax.training.state import Recipe, abstract_state, init_state
from xvla_jax.training.step import make_train_step

_TOPOLOGY = flags.DEFINE_string("topology", "", "TPU slice to compile for, such as v5e:2x2.")
_RELEASED = flags.DEFINE_bool("released", False, "Count FLOPs of the released size alone.")
_SAMPLES = flags.DEFINE_integer("samples", 16, "Samples of a step.", lower_bound=1)
_STEPS = flags.DEFINE_integer("steps", 8, "Timed steps of each form.", lower_bound=1)

_LORA: Final = LoraConfig()
_TOKENS: Final = 262  # of a sample in the released head
_DTYPE: Final = jnp.bfloat16


class Differentiated(Recipe):
    """Takes the gradients of A and B from those of the merged weights."""

    def merged(self, params: Any, base: Any) -> Any:
        """Returns the base: `weights` merges it."""
        del params
        return base

    def weights(self, params: Any, merged: Any) -> Any:
        """Returns the merged weights."""
        return super().merged(params, merged)


_RECIPES: Final[dict[str, type[Recipe]]] = {"merged": Differentiated, "apart": Recipe}


class Pair(AdaptedKernel):
    """A pair beside a kernel that is not merged."""

    def __rmatmul__(self, x: jax.Array) -> jax.Array:
        """Returns ``x W + (x A) B``."""
        return x @ self.merged + (x @ self.a.astype(x.dtype)) @ self.b.astype(x.dtype)


def _merged(kernel: Any, pair: Any) -> jax.Array:
    return apply_adapter({"w": kernel}, {"w": pair}, {("w",): 2.0}, dtype=_DTYPE)["w"]


# Form -> the kernel to differentiate, of the base's kernel, a pair and the merged kernel.
_KERNELS: Final[dict[str, Callable[[Any, Any, Any], Any]]] = {
    "merged": lambda kernel, pair, _: _merged(kernel, pair),
    "pair": lambda kernel, pair, _: Pair(kernel, 2.0 * pair["a"], pair["b"]),
    "apart": lambda _, pair, merged: AdaptedKernel(merged, 2.0 * pair["a"], pair["b"]),
}


def _lowered(form: str, samples: int, sharding: Any) -> jax.stages.Lowered:
    """Lowers two blocks of the head with gradients of their pairs and of their input."""
    blocks: Any = stacked(PolicyBlock, 2, remat="full")(1024, 16, 4096, dtype=_DTYPE)
    keys = {name: jax.random.key(0) for name in ("params", "dropout")}
    x = jax.ShapeDtypeStruct((samples, _TOKENS, 1024), _DTYPE, sharding=sharding)
    shapes = jax.eval_shape(lambda x: blocks.init(keys, x, True)["params"], x)
    base: Any = flatten_dict(shapes)
    kernels = [path for path in base if path[-1] == "kernel"]
    pairs = {
        path: {
            "a": jax.ShapeDtypeStruct((*base[path].shape[:-1], _LORA.rank), jnp.float32),
            "b": jax.ShapeDtypeStruct((2, _LORA.rank, base[path].shape[-1]), jnp.float32),
        }
        for path in kernels
    }

    def loss(pairs: Any, x: jax.Array, base: Any, merged: Any) -> jax.Array:
        adapted = {p: _KERNELS[form](base[p], pairs[p], merged[p]) for p in kernels}
        params = unflatten_dict({**base, **adapted})
        y, _ = blocks.apply({"params": params}, x, True, rngs={"dropout": jax.random.key(1)})
        return jnp.square(y.astype(jnp.float32)).mean()

    def step(pairs: Any, x: jax.Array, base: Any) -> Any:
        merged = {path: _merged(base[path], pairs[path]) for path in kernels}
        return jax.value_and_grad(loss, argnums=(0, 1))(pairs, x, base, merged)

    placed = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), (pairs, base)
    )
    return jax.jit(step).lower(placed[0], x, placed[1])


def _estimates(topology: str, samples: int) -> None:
    target = describe(topology)
    sharding = NamedSharding(Mesh(np.array(target.devices[:1]), ("one",)), P())
    for form in _KERNELS:
        program = compile_program(_lowered(form, samples, sharding))
        work = estimate(program.module, target)
        print(
            f"{form:7} {1e3 * work.core_seconds:6.2f} ms  {work.flops / 1e12:.2f} TFLOP  "
            f"{work.hbm_bytes / 2**30:.2f} GiB  compiled in {program.seconds:.0f} s",
            flush=True,
        )


def _step(kind: type[Recipe], samples: int) -> Callable[[], Any]:
    """Returns a train step of the quickstart's size; each call follows the one before."""
    config = XVLAConfig.from_dict(models.model_dict(models.SMALL, action_mode="ee6d"))
    model, processor = XVLA(config), Processor(image_size=64, text_length=16)
    recipe = kind(model, OptimizerConfig(schedule="constant", iters=100), lora=_LORA)
    mesh = make_mesh(1, 1, jax.devices()[:1])
    make = jax.jit(functools.partial(init_params, model))
    base = jax.device_get(make(jax.random.key(0, impl="rbg")))
    states = [init_state(recipe, mesh, seed=0, params=base)]
    batch = global_batch(made_up_batch(config, processor, samples), mesh)
    step = make_train_step(recipe, processor, seed=0)

    def call() -> Any:
        with jax.set_mesh(mesh):
            state, metrics = step(states.pop(), batch)
        states.append(state)
        return metrics

    return call


def _seconds(samples: int, steps: int) -> None:
    calls = {form: _step(kind, samples) for form, kind in _RECIPES.items()}
    for call in calls.values():
        seconds_of(call)  # compiles
    turns = [[_timed(call) for call in calls.values()] for _ in range(steps)]
    for form, times in zip(calls, zip(*turns, strict=True), strict=True):
        wall, cpu = (min(column) for column in zip(*times, strict=True))
        print(f"{form:7} {wall:.3f} s, {cpu:.3f} s of the CPU", flush=True)


def _timed(call: Callable[[], Any]) -> tuple[float, float]:
    began = time.process_time()
    wall = seconds_of(call)
    return wall, time.process_time() - began


def _counts(samples: int) -> None:
    config = XVLAConfig.from_dict(models.model_dict(models.RELEASED, action_mode="ee6d"))
    processor = Processor(image_size=224, text_length=50)
    batch = made_up_batch(config, processor, samples)
    batch["images"] = batch["images"][:, :2]
    mesh = make_mesh(1, 1, jax.devices()[:1])
    for form, kind in _RECIPES.items():
        recipe = kind(XVLA(config), OptimizerConfig(schedule="constant", iters=100), lora=_LORA)
        count = step_flops(recipe, processor, abstract_state(recipe, mesh), batch) / samples
        print(f"{form:7} {count / 1e9:.1f} GFLOP a sample", flush=True)


def main(arguments: list[str]) -> None:
    """Prints a line for each form."""
    del arguments
    if _TOPOLOGY.value:
        _estimates(_TOPOLOGY.value, _SAMPLES.value)
    elif _RELEASED.value:
        _counts(_SAMPLES.value)
    else:
        _seconds(_SAMPLES.value, _STEPS.value)


if __name__ == "__main__":
    app.run(main)
