"""The train step and sampler of a run, compiled for a slice from shapes alone, and their guards."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from xvla_jax.actions import action_space
from xvla_jax.batch import abstract_batch
from xvla_jax.config import XVLAConfig
from xvla_jax.errors import ConfigError, ProgramError
from xvla_jax.lora import MERGE_SCOPE, LoraConfig
from xvla_jax.models.inference import abstract_inference_params, example_inputs
from xvla_jax.models.packing import PACKING_SCOPE
from xvla_jax.models.xvla import XVLA
from xvla_jax.objectives.distillation import Distillation
from xvla_jax.planning import flops, hlo
from xvla_jax.planning.chips import Slice
from xvla_jax.planning.hlo import collective_kind
from xvla_jax.plans import STEPS
from xvla_jax.policy import chunk
from xvla_jax.processor import Processor
from xvla_jax.sharding import BATCH_SPEC, make_mesh
from xvla_jax.training.optimizer import OptimizerConfig
from xvla_jax.training.state import Recipe, TrainState, abstract_state
from xvla_jax.training.step import make_train_step

_HOST_OPS: Final = {"infeed", "outfeed", "send", "recv"}
_GATHERS: Final = {"all-gather", "all-to-all", "collective-permute"}
_OPTIMIZER_STATE: Final = re.compile(r"^state\.opt_state\b")
_LARGE: Final = 2**14  # elements; smaller leaves are not sharded
_UNITS: Final = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class Run:
    """The part of an experiment that determines its programs.

    Attributes:
        config: the model's shape.
        processor: size of images and text.
        optimizer: of the train step.
        dtype: computing type.
        remat: a row of ``xvla_jax.models.layers.REMAT``.
        batch_size: samples of a step, over all chips.
        views: view slots that the data fills.
        data: devices along this axis of the mesh; -1 for all that are left.
        fsdp: see ``data``.
        accumulate: parts of a batch, whose gradients are summed.
        ema_decay: of the moving average; 0 keeps none.
        jitter: some source of the data is augmented.
        channel_mask: some source of the data lacks a channel.
        lora: the adapter that is trained in place of the parameters; None for none.
        scan_vision: see ``xvla_jax.XVLA``.
        attention: see ``xvla_jax.XVLA``.
        packed_views: see ``xvla_jax.XVLA``.
        noise_draws: times and noises for each observation.
        distill: the teacher of the run; None for none.
    """

    config: XVLAConfig
    processor: Processor
    optimizer: OptimizerConfig
    dtype: Any
    remat: str
    batch_size: int
    views: int
    data: int
    fsdp: int
    accumulate: int = 1
    ema_decay: float = 0.0
    jitter: bool = False
    channel_mask: bool = False
    lora: LoraConfig | None = None
    scan_vision: bool = False
    attention: str = "xla"
    packed_views: float = 0.0
    noise_draws: int = 1
    distill: Distillation | None = None

    def mesh(self, devices: list[Any]) -> Mesh:
        """Returns the run's mesh over these devices."""
        return make_mesh(self.data, self.fsdp, devices)

    def state(self, mesh: Mesh) -> TrainState:
        """Returns shapes and placement of the train state."""
        return abstract_state(self.recipe, mesh)

    def lower_step(self, mesh: Mesh) -> jax.stages.Lowered:
        """Lowers the train step as the training loop calls it.

        Raises:
            ConfigError: the devices do not divide the batch.
        """
        if self.batch_size % mesh.size:
            raise ConfigError(
                f"config.batch_size is {self.batch_size}; a multiple of the {mesh.size} devices "
                "is needed"
            )
        step = make_train_step(self.recipe, self.processor, seed=0)
        placement = NamedSharding(mesh, BATCH_SPEC)
        batch = abstract_batch(
            self.config,
            self.batch_size,
            num_views=self.processor.num_views,
            shown=self.views,
            image_size=self.processor.image_size,
            text_length=self.processor.text_length,
            jitter=self.jitter,
            channel_mask=self.channel_mask,
            sharding=placement,
        )
        state = self.state(mesh)  # before the mesh is set: its key needs a real device
        with jax.set_mesh(mesh):
            return step.lower(state, batch)

    def lower_sampler(self, mesh: Mesh) -> jax.stages.Lowered:
        """Lowers the sampler for one observation on the first device: serving is not sharded."""
        alone = NamedSharding(Mesh(mesh.devices.ravel()[:1], ("one",)), P())
        shape = self.config.num_actions, action_space(self.config).width
        inputs = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=alone),
            jax.eval_shape(lambda: example_inputs(self.processor, shape, self.views, 1)),
        )
        return chunk.lower(
            XVLA(self.config, dtype=self.dtype, unroll=True),
            tuple(self.processor.mean),
            tuple(self.processor.std),
            abstract_inference_params(self.config, self.dtype, alone),
            inputs,
            steps=STEPS,
        )

    @property
    def recipe(self) -> Recipe:
        """The model and how it is trained."""
        model = XVLA(
            self.config,
            dtype=self.dtype,
            remat=self.remat,
            scan_vision=self.scan_vision,
            packed_views=self.packed_views,
            attention=self.attention,
        )
        return Recipe(
            model,
            self.optimizer,
            self.accumulate,
            self.ema_decay,
            self.lora,
            noise_draws=self.noise_draws,
            distill=self.distill,
        )


@dataclasses.dataclass(frozen=True)
class Memory:
    """HBM of one chip in bytes, as the compiler laid it out."""

    arguments: int
    outputs: int
    aliased: int  # outputs that take the place of donated arguments
    temporaries: int
    code: int

    @property
    def peak(self) -> int:
        """Largest use, with all temporaries counted as alive at once."""
        return self.arguments + self.outputs - self.aliased + self.temporaries + self.code


class DoesNotFitError(ProgramError):
    """The compiler could not lay a program out in the memory of a chip.

    Attributes:
        needed: bytes that it asked for; NaN if its message has none.
    """

    def __init__(self, message: str) -> None:
        """Reads the size from the compiler's message."""
        sizes = re.findall(r"([\d.]+)([KMGT]) of [\d.]+[KMGT] hbm|\(([\d.]+)([KMGT])\)", message)
        numbers = [float(a or c) * _UNITS[b or d] for a, b, c, d in sizes]
        self.needed = max(numbers, default=math.nan)
        super().__init__(message.splitlines()[0])


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program."""

    memory: Memory
    text: str
    seconds: float  # to compile

    @functools.cached_property
    def module(self) -> hlo.Module:
        """The parsed text."""
        return hlo.parse(self.text)


def compile_program(lowered: jax.stages.Lowered) -> Program:
    """Compiles a program for the platform of its devices.

    Raises:
        DoesNotFitError: it needs more memory than a chip has.
    """
    start = time.perf_counter()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise DoesNotFitError(str(error)) from error
    analysis = compiled.memory_analysis()
    if analysis is None:
        raise ProgramError("the compiler of this platform does not report the memory of a program")
    memory = Memory(
        arguments=analysis.argument_size_in_bytes,
        outputs=analysis.output_size_in_bytes,
        aliased=analysis.alias_size_in_bytes,
        temporaries=analysis.temp_size_in_bytes,
        code=analysis.generated_code_size_in_bytes,
    )
    return Program(memory, compiled.as_text() or "", time.perf_counter() - start)


def step_program(run: Run, target: Slice) -> Program:
    """Compiles the train step of a run for a slice."""
    return compile_program(run.lower_step(run.mesh(list(target.devices))))


def bytes_of(tree: Any) -> int:
    """Returns the bytes of all leaves together, before they are sharded."""
    return sum(
        math.prod(leaf.shape) * jnp.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(tree)
    )


def bytes_per_chip(tree: Any) -> int:
    """Returns the bytes of all leaves on one device."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * jnp.dtype(leaf.dtype).itemsize
        for leaf in jax.tree.leaves(tree)
    )


def host_calls(module: hlo.Module) -> list[str]:
    """Lists instructions that wait for the host: callbacks, feeds, transfers."""
    return [
        visit.instruction.name
        for visit in module.visits()
        if visit.instruction.op in _HOST_OPS
        or "callback" in visit.instruction.attribute("custom_call_target")
        or "is_host_transfer=true" in visit.instruction.rest
    ]


def wide_products(module: hlo.Module) -> list[str]:
    """Lists ``op_name`` of every product of two float32 operands.

    Products of a float32 and a bfloat16 operand do not count: the gradient of attention scores,
    which are float32, meets bfloat16 queries and keys, and the matrix unit takes it as bfloat16.
    Those that merge an adapter do not count either: they are exact on purpose, and little work.
    """
    return [
        visit.op_name
        for visit in module.visits()
        if flops.product_flops(visit) is not None
        and MERGE_SCOPE not in visit.op_name
        and visit.operand(0).dtype == visit.operand(1).dtype == "f32"
    ]


def gradients_of_merged(module: hlo.Module) -> list[str]:
    """Lists ``op_name`` of every product of the gradient of a matrix that an adapter changes.

    Gradients of A and B come from the tokens, see ``xvla_jax/models/low_rank.py``. Taken from the
    gradient of the merged matrix instead, they cost as much as the gradients of a full fine-tune.
    Merging itself makes a large matrix of small ones, its gradient small ones of a large matrix.
    """
    return [
        visit.op_name
        for visit in module.visits()
        if flops.product_flops(visit) is not None
        and MERGE_SCOPE in visit.op_name
        and any(visit.operand(i).elements > visit.instruction.arrays[0].elements for i in range(2))
    ]


def gathers_of_optimizer_state(module: hlo.Module) -> list[str]:
    """Lists collectives that gather values computed from the optimizer's state.

    State and parameters are read and written where they are stored, so none is needed; sums of
    scalars, such as a norm of the update, are allowed.
    """
    body = module.computations[module.entry]
    derived: set[str] = set()
    gathers = []
    for visit in module.visits():
        line = visit.instruction
        if body.get(line.name) is not line:
            continue
        if line.op == "parameter":
            if _OPTIMIZER_STATE.match(line.op_name):
                derived.add(line.name)
        elif derived.intersection(line.operands):
            derived.add(line.name)
            elements = sum(array.elements for array in line.arrays)
            if collective_kind(visit) in _GATHERS and elements >= _LARGE:
                gathers.append(line.name)
    return gathers


def sums_of_activations(module: hlo.Module) -> list[str]:
    """Lists sums between chips in the forward pass, of more than losses.

    Each chip works on its own samples. Where the compiler splits a layer like its weights instead,
    every chip gets the activations of all samples.
    """
    return [
        visit.instruction.name
        for visit in module.visits()
        if collective_kind(visit) == "all-reduce"
        and "jvp(" in visit.op_name
        and "transpose(" not in visit.op_name
        and sum(array.elements for array in visit.instruction.arrays) >= _LARGE
    ]


def exchanges_of_packed_views(module: hlo.Module) -> list[str]:
    """Lists collectives that move packed images or tokens: each device packs its own."""
    return [
        visit.instruction.name
        for visit in module.visits()
        if PACKING_SCOPE in visit.instruction.op_name and collective_kind(visit) is not None
    ]


GUARDS: Final[Mapping[str, Callable[[hlo.Module], list[str]]]] = {
    "host calls": host_calls,
    "products of two float32 operands": wide_products,
    "gradients of matrices that an adapter changes": gradients_of_merged,
    "gathers of optimizer state": gathers_of_optimizer_state,
    "sums of activations": sums_of_activations,
    "exchanges of packed views": exchanges_of_packed_views,
}
