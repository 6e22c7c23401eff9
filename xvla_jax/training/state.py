"""What trains and how: the recipe of a run, and its sharded state."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh

from xvla_jax.errors import ConfigError
from xvla_jax.lora import Adapter, LoraConfig, abstract_adapter, apply_adapter, init_adapter
from xvla_jax.models.xvla import XVLA, abstract_params, init_params
from xvla_jax.sharding import tree_shardings
from xvla_jax.training.groups import Groups, join, split
from xvla_jax.training.optimizer import GroupRow, OptimizerConfig, group_rows, make_optimizer

Array = jax.Array


class TrainState(struct.PyTreeNode):
    """What a step changes, and the base that it does not."""

    step: Array  # int32, steps taken
    params: Any  # of the model; with LoRA, the adapter's tensors
    opt_state: Any  # of the parameters that learn
    ema: Any  # their moving average; {} where not kept
    skipped: Array  # int32, steps without an update, because something was not finite
    base: Any = struct.field(default_factory=dict)  # the model's parameters under an adapter


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a model learns.

    Attributes:
        model: the module.
        config: optimizer, schedule, and which parameters learn.
        accumulate: parts into which a batch is cut, one after the other; less memory.
        ema_decay: of the moving average of the parameters; 0 keeps none.
        lora: the adapter that learns in the place of the parameters; None for none.
    """

    model: XVLA
    config: OptimizerConfig
    accumulate: int = 1
    ema_decay: float = 0.0
    lora: LoraConfig | None = None

    def __post_init__(self) -> None:
        """Raises a ConfigError for a number out of range."""
        if self.accumulate < 1:
            raise ConfigError(f"config.accumulate is {self.accumulate}; it must be 1 or more")
        if not 0 <= self.ema_decay < 1:
            raise ConfigError(f"config.ema_decay is {self.ema_decay}; 0 <= ema_decay < 1")

    @functools.cached_property
    def groups(self) -> Groups:
        """Which parameters learn, and how fast."""
        return self.config.groups(self.model.config)

    @functools.cached_property
    def optimizer(self) -> optax.GradientTransformationExtraArgs:
        """Of the parameters that learn."""
        return make_optimizer(self.config, self.groups)

    @functools.cached_property
    def adapter(self) -> Adapter | None:
        """Shapes and scales of the adapter that learns."""
        return self.lora and abstract_adapter(self.model.config, self.lora.peft())

    def weights(self, params: Any, base: Any) -> Any:
        """What the model computes with: a state's parameters, or its base with the adapter."""
        if self.adapter is None:
            return params
        return apply_adapter(base, params, self.adapter.scales, dtype=self.model.dtype)

    def group_rows(self) -> list[GroupRow]:
        """What happens to which parameters; a base has a row of its own."""
        base = abstract_params(self.model.config)
        learning = base if self.adapter is None else self.adapter.tensors
        rows = group_rows(learning, self.config, self.groups)
        if self.adapter is not None:
            size = sum(leaf.size for leaf in jax.tree.leaves(base))
            rows.append(GroupRow("base", size, learning_rate=0.0, frozen_until=None))
        return rows

    def fresh(self, params: Any) -> TrainState:
        """The state before the first step, without a base."""
        learning, _ = split(params, self.groups)
        ema = jax.tree.map(jnp.copy, learning) if self.ema_decay else {}
        zero = jnp.zeros([], jnp.int32)
        return TrainState(zero, params, self.optimizer.init(learning), ema, zero)

    def acting(self, state: TrainState) -> Any:
        """The parameters to act with: their moving average where one is kept."""
        params = state.params
        if self.ema_decay:
            params = join(state.ema, split(params, self.groups)[1])
        return self.weights(params, state.base)


def abstract_state(recipe: Recipe, mesh: Mesh) -> TrainState:
    """Shapes, dtypes and shardings of the state; allocates nothing."""
    params = abstract_params(recipe.model.config)
    if recipe.adapter is None:
        shapes = jax.eval_shape(recipe.fresh, params)
    else:
        shapes = jax.eval_shape(recipe.fresh, recipe.adapter.tensors).replace(base=params)
    shardings = tree_shardings(shapes, mesh)
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        shardings,
    )


def init_state(
    recipe: Recipe, mesh: Mesh, *, seed: int, params: Mapping[str, Any] | None = None
) -> TrainState:
    """A fresh state on the mesh, from given parameters (numpy or jax) or from random ones.

    Every leaf is made where it lives: the whole model is never on one device. With LoRA the given
    parameters become the base.

    Raises:
        ConfigError: LoRA without parameters to adapt.
    """
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(recipe, mesh))
    bare = shardings.replace(base={})
    if recipe.lora is not None:
        if params is None:
            raise ConfigError("config.lora asks for an adapter; set config.init_from, its base")
        peft = recipe.lora.peft()
        tensors = init_adapter(params, recipe.model.config, peft, seed=seed).tensors
        placed = jax.device_put(tensors, shardings.params)
        return place_base(jax.jit(recipe.fresh, out_shardings=bare)(placed), mesh, params)
    if params is None:
        make = jax.jit(lambda key: recipe.fresh(init_params(recipe.model, key)), out_shardings=bare)
        # rbg: compiles in a third of the time that a threefry for each of hundreds of leaves takes
        return make(jax.random.key(seed, impl="rbg"))
    placed = jax.device_put(dict(params), shardings.params)
    return jax.jit(recipe.fresh, out_shardings=bare)(placed)


def place_base(state: TrainState, mesh: Mesh, params: Mapping[str, Any]) -> TrainState:
    """The state with a base under its adapter; no checkpoint of a LoRA run holds one."""
    return state.replace(base=jax.device_put(dict(params), tree_shardings(dict(params), mesh)))
