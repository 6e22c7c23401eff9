"""The recipe of a run (model, optimizer, adapter), and the sharded state that a step changes."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh

from xvla_jax.actions import action_space
from xvla_jax.config import XVLAConfig
from xvla_jax.errors import ConfigError
from xvla_jax.lora import (
    Adapter,
    LoraConfig,
    abstract_adapter,
    adapted_params,
    apply_adapter,
    init_adapter,
)
from xvla_jax.models.inference import abstract_inference_params, inference_params
from xvla_jax.models.packing import check_share
from xvla_jax.models.xvla import XVLA, abstract_params, init_params
from xvla_jax.objectives.distillation import Distillation
from xvla_jax.sharding import tree_shardings
from xvla_jax.training.groups import Groups, join, split
from xvla_jax.training.optimizer import GroupRow, OptimizerConfig, group_rows, make_optimizer

Array = jax.Array


class TrainState(struct.PyTreeNode):
    """Everything that a step changes, and the base and the teacher, which it does not."""

    step: Array  # int32, steps taken
    params: Any  # of the model; with LoRA, the adapter's tensors
    opt_state: Any  # of the parameters that train
    ema: Any  # their moving average; {} where not kept
    skipped: Array  # int32, steps without an update, because something was not finite
    base: Any = struct.field(default_factory=dict)  # the model's parameters under an adapter
    teacher: Any = struct.field(default_factory=dict)  # parameters of `Recipe.distill`'s teacher


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Model, optimizer and adapter of a run.

    Attributes:
        model: the module.
        config: optimizer, schedule, and which parameters train.
        accumulate: parts that a batch is cut into, one after the other, to save memory.
        ema_decay: of the moving average of the parameters; 0 keeps none.
        lora: the adapter that trains in the place of the parameters; None for none.
        noise_draws: times and noises for each observation, which is encoded once.
        distill: the teacher whose chunks are the target; None for recorded actions.
    """

    model: XVLA
    config: OptimizerConfig
    accumulate: int = 1
    ema_decay: float = 0.0
    lora: LoraConfig | None = None
    noise_draws: int = 1
    distill: Distillation | None = None

    def __post_init__(self) -> None:
        """Raises a ConfigError for a number out of range."""
        check_share(self.model.packed_views)
        if self.accumulate < 1:
            raise ConfigError(f"config.accumulate is {self.accumulate}; it must be 1 or more")
        if self.noise_draws < 1:
            raise ConfigError(f"config.noise_draws is {self.noise_draws}; it must be 1 or more")
        if not 0 <= self.ema_decay < 1:
            raise ConfigError(f"config.ema_decay is {self.ema_decay}; 0 <= ema_decay < 1")

    @functools.cached_property
    def groups(self) -> Groups:
        """Groups of parameters, with their rates."""
        return self.config.groups(self.model.config)

    @functools.cached_property
    def optimizer(self) -> optax.GradientTransformationExtraArgs:
        """The optimizer of the parameters that train."""
        return make_optimizer(self.config, self.groups)

    @functools.cached_property
    def adapter(self) -> Adapter | None:
        """Shapes and scales of the adapter; None without LoRA."""
        return self.lora and abstract_adapter(self.model.config, self.lora.peft())

    def merged(self, params: Any, base: Any) -> Any:
        """Returns the weights to compute with: the parameters, or the base with the adapter."""
        if self.adapter is None:
            return params
        return apply_adapter(base, params, self.adapter.scales, dtype=self.model.dtype)

    def weights(self, params: Any, merged: Any) -> Any:
        """Returns the weights to differentiate in the parameters, where `merged` is at hand."""
        if self.adapter is None:
            return params
        return adapted_params(merged, params, self.adapter.scales)

    def group_rows(self) -> list[GroupRow]:
        """Returns a row for each group of parameters; a base has a row of its own."""
        base = abstract_params(self.model.config)
        params = base if self.adapter is None else self.adapter.tensors
        rows = group_rows(params, self.config, self.groups)
        if self.adapter is not None:
            size = sum(leaf.size for leaf in jax.tree.leaves(base))
            rows.append(GroupRow("base", size, learning_rate=0.0, frozen_until=None))
        return rows

    def fresh(self, params: Any) -> TrainState:
        """Returns the state before the first step, without a base.

        Raises:
            ConfigError: no parameter trains.
        """
        params = without_padding(params, self.model.config)
        trained, _ = split(params, self.groups)
        if not trained:  # an adapter without what the mode trains
            raise ConfigError(
                f"config.optimizer.mode is {self.config.mode!r}, which trains nothing of this "
                "adapter; name another mode, or what it trains in config.lora.modules_to_save"
            )
        # A copy, for the parameters themselves are donated to the first step.
        ema = jax.tree.map(jnp.copy, trained) if self.ema_decay else {}
        zero = jnp.zeros([], jnp.int32)
        return TrainState(zero, params, self.optimizer.init(trained), ema, zero)

    def acting(self, state: TrainState) -> Any:
        """Returns the weights to act with: of the moving average, if one is kept."""
        params = state.params
        # The average covers what trains; the rest never changes, so it is taken from the state.
        if self.ema_decay:
            params = join(state.ema, split(params, self.groups)[1])
        return self.merged(params, state.base)


def without_padding(params: Any, config: XVLAConfig) -> Any:
    """Returns the parameters with the head blind and silent on channels that the space pads with.

    Training shows the network zeros there and asks nothing of its answer, so nothing changes these
    weights; a sampler, the original's too, puts noise there and feeds the answer back. A head that
    was trained on poses had learned much about them: at the small size a policy for six joints
    that began from one solved none of 50 episodes, and 25 with these weights zero.

    Args:
        params: of a model, or the tensors of an adapter; a leaf that is a pair stays as it is.
        config: of the model.
    """
    space = action_space(config)
    real, width = space.real_width, space.width
    if real == width:
        return params
    # tables [domains, in, out]: the encoder reads actions first, the decoder writes nothing else
    rows = {("action_encoder", "kernel"): (slice(None), slice(real, width))}
    rows |= {("action_decoder", "kernel"): (slice(None), slice(None), slice(real, width))}
    rows |= {("action_decoder", "bias"): (slice(None), slice(real, width))}
    flat: dict[Any, Any] = dict(flatten_dict(dict(params)))
    for path, place in rows.items():
        path = ("transformer", *path)
        if path in flat:
            flat[path] = flat[path].at[place].set(0.0)
    return unflatten_dict(flat)


def abstract_state(recipe: Recipe, mesh: Mesh) -> TrainState:
    """Returns shapes, dtypes and shardings of the state; allocates nothing."""
    params = abstract_params(recipe.model.config)
    if recipe.adapter is None:
        shapes = jax.eval_shape(recipe.fresh, params)
    else:
        # The base is no part of a checkpoint, but it takes its place on the devices.
        shapes = jax.eval_shape(recipe.fresh, recipe.adapter.tensors).replace(base=params)
    if recipe.distill is not None:
        teacher = recipe.distill.teacher
        shapes = shapes.replace(
            teacher=abstract_inference_params(teacher.config, teacher.dtype, None)
        )
    # Moments and average have the parameter's path in theirs, so the same rules place them.
    shardings = tree_shardings(shapes, mesh)
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        shardings,
    )


def init_state(
    recipe: Recipe, mesh: Mesh, *, seed: int, params: Mapping[str, Any] | None = None
) -> TrainState:
    """Returns a fresh state on the mesh, from given parameters (numpy or jax) or random ones.

    Every leaf is made where it lives: no device ever holds all of the model. With LoRA the
    given parameters become the base. A teacher is placed apart, see `place_teacher`.

    Raises:
        ConfigError: LoRA without parameters to adapt.
    """
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(recipe, mesh))
    make = fresh_program(recipe, mesh, given=params is not None)
    if recipe.lora is not None:
        if params is None:
            raise ConfigError("config.lora asks for an adapter; set config.init_from, its base")
        peft = recipe.lora.peft()
        tensors = init_adapter(params, recipe.model.config, peft, seed=seed).tensors
        placed = jax.device_put(tensors, shardings.params)
        # The base is placed apart, because as an input of the jitted function it would be copied.
        return place_base(make(placed), mesh, params)
    if params is None:
        # rbg: compiles in a third of the time that a threefry for each of hundreds of leaves takes
        return make(jax.random.key(seed, impl="rbg"))
    return make(jax.device_put(dict(params), shardings.params))


def fresh_program(recipe: Recipe, mesh: Mesh, *, given: bool) -> Any:
    """Returns the jitted function of a fresh state without a base, placed on the mesh.

    Args:
        recipe: model and optimizer.
        mesh: of the run.
        given: the function takes placed parameters (with LoRA the adapter's tensors); otherwise a
            key of kind rbg, from which it draws them.
    """
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(recipe, mesh))
    # Base and teacher are placed as they are, without a computation.
    bare = shardings.replace(base={}, teacher={})
    if given:
        return jax.jit(recipe.fresh, out_shardings=bare)
    return jax.jit(lambda key: recipe.fresh(init_params(recipe.model, key)), out_shardings=bare)


def place_base(state: TrainState, mesh: Mesh, params: Mapping[str, Any]) -> TrainState:
    """Returns the state with a base under its adapter; checkpoints of a LoRA run hold none."""
    return state.replace(base=jax.device_put(dict(params), tree_shardings(dict(params), mesh)))


def place_teacher(
    state: TrainState, recipe: Recipe, mesh: Mesh, params: Mapping[str, Any]
) -> TrainState:
    """Returns the state with its teacher, in the computing type; checkpoints hold none.

    Args:
        state: of a run with `Recipe.distill`, or of another, which stays as it is.
        recipe: of the run.
        mesh: of the run.
        params: the initial weights, which the teacher keeps.
    """
    if recipe.distill is None:
        return state
    teacher = inference_params(params, recipe.distill.teacher.dtype)
    return state.replace(teacher=jax.device_put(teacher, tree_shardings(teacher, mesh)))
