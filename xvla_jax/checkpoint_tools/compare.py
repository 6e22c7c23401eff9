"""Compares two checkpoints: their files, their configs, and their outputs stage by stage.

A stage's figure is the largest difference over the largest expected value, and passes up to a gate
that is stated for each type. Stages follow one another, so the first that fails shows where to
look. ``probe.py`` makes the inputs.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Final, cast

import jax
import jax.numpy as jnp
import numpy as np

from xvla_jax import flow
from xvla_jax.actions import action_space
from xvla_jax.checkpoints import lerobot, run_folder
from xvla_jax.checkpoints.names import BUFFERS, EMBED_TOKENS, SHARED, detect_dialect, rows
from xvla_jax.checkpoints.safetensors_files import DTYPES, TensorFiles
from xvla_jax.config import XVLAConfig
from xvla_jax.errors import CheckpointError, ConfigError
from xvla_jax.models.xvla import XVLA, Context, abstract_params
from xvla_jax.pretrained import ADAPTER, ORBAX

# fields that do not change the outputs of a trained model
_TRAINING_ONLY: Final = frozenset(
    {
        "rtc_max_delay",  # prefixes that may be given; the rest acts as ever
        "text.activation_dropout",
        "text.attention_dropout",
        "text.dropout",
        "text.encoder_layerdrop",
        "text.pad_token_id",  # its row of the token table takes no gradient
        "vision.drop_path_rate",
        "vision.max_temporal_embeddings",  # rows of a fixed table; only row 0 is read
    }
)
# fields that are compared as the action space that they describe together
_ACTION_FIELDS: Final = frozenset({"action_mode", "real_action_dim", "max_action_dim"})
# type of weights or of computing -> largest quotient of difference and value that passes
GATES: Final[Mapping[str, float]] = {
    "float32": 1e-5,
    "float16": 4e-3,  # three more bits than bfloat16
    "bfloat16": 3e-2,
}


@dataclasses.dataclass(frozen=True)
class Inventory:
    """The stored tensors of a checkpoint, by kind.

    Attributes:
        folder: of the checkpoint.
        layout: ``hf``, one of LeRobot's, or ``orbax``.
        config: the model.
        dtypes: number of parameters by stored type; for Orbax the type of the source.
        parameters: number of stored tensors that are parameters.
        values: number of their values.
        buffers: stored names that are no parameters.
        aliases: second names of a parameter.
        unused: names that nothing reads.
    """

    folder: str
    layout: str
    config: XVLAConfig
    dtypes: Mapping[str, int]
    parameters: int
    values: int
    buffers: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Returns JSON values, without the config."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        del fields["config"]
        return fields


@dataclasses.dataclass(frozen=True)
class Stage:
    """An output that is compared.

    Attributes:
        name: key among the outputs.
        title: for readers.
        axes: names of the output's axes.
    """

    name: str
    title: str
    axes: str


STAGES: Final = (
    Stage("image_features_valid", "image features of present views", "view, token, channel"),
    Stage("vlm_features", "encoder: first view and text", "sample, token, channel"),
    Stage("aux_visual_inputs", "tokens of the other views", "sample, token, channel"),
    Stage("head_output", "one step of the head", "sample, row, channel"),
    Stage("actions", "actions after all steps", "sample, row, channel"),
)
RAW_STAGES: Final = (  # from raw observations to what a robot gets
    Stage("pixel_values", "pixels of the views", "sample, view, channel, row, column"),
    Stage("image_mask", "views that are shown", "sample, view"),
    Stage("input_ids", "text tokens", "sample, token"),
    Stage("proprio", "proprio of the network", "sample, channel"),
    Stage("robot_actions", "actions in the robot's units", "sample, row, channel"),
)


@dataclasses.dataclass(frozen=True)
class StageResult:
    """Distance of two outputs; a difference that is not finite counts as infinite."""

    stage: Stage
    shape: tuple[int, ...]
    largest_difference: float
    largest_value: float
    where: tuple[int, ...]
    gate: float

    @property
    def quotient(self) -> float:
        """Largest difference over largest value."""
        if not self.largest_difference:
            return 0.0
        return self.largest_difference / self.largest_value if self.largest_value else math.inf

    @property
    def passed(self) -> bool:
        """True if the quotient is within the gate."""
        return self.quotient <= self.gate

    def to_dict(self) -> dict[str, Any]:
        """Returns JSON values; an infinite difference is null."""
        values = dataclasses.asdict(self) | {"quotient": self.quotient, "passed": self.passed}
        values |= {"stage": self.stage.name, "axes": self.stage.axes}
        return {
            k: None if isinstance(v, float) and not math.isfinite(v) else v
            for k, v in values.items()
        }


def take_inventory(folder: str | os.PathLike[str]) -> Inventory:
    """Reads names, types and shapes of a checkpoint, but no values.

    Raises:
        CheckpointError, ConfigError: the folder is no usable checkpoint.
    """
    folder = run_folder.existing(folder)
    step = run_folder.find_step(folder)
    if step is not None:
        return _inventory_of_step(folder, step)
    config = lerobot.read_config(folder)
    files = TensorFiles.open(folder)
    dialect = detect_dialect(set(files.info))
    tied = [dialect.rename(name) for name in (SHARED, EMBED_TOKENS)]
    names = {dialect.rename(row.torch) for row in rows(config)} | set(tied)
    parameters = sorted(names & set(files.info))
    aliases = tied[1:] if set(tied) <= set(files.info) else []
    buffers = sorted({dialect.rename(name) for name in BUFFERS} & set(files.info))
    kinds = [DTYPES[files.info[name].dtype].name for name in parameters]
    return Inventory(
        folder=str(folder),
        layout=dialect.name,
        config=config,
        dtypes={kind: kinds.count(kind) for kind in sorted(set(kinds))},
        parameters=len(parameters) - len(aliases),
        values=sum(int(np.prod(files.info[n].shape)) for n in parameters if n not in aliases),
        buffers=tuple(buffers),
        aliases=tuple(aliases),
        unused=tuple(sorted(set(files.info) - set(parameters) - set(buffers))),
    )


def _inventory_of_step(folder: pathlib.Path, step: pathlib.Path) -> Inventory:
    item = run_folder.read_model(step)
    if ADAPTER in item:
        raise CheckpointError(
            f"{step} belongs to a LoRA run and holds an adapter alone; merge it first, with "
            f"python -m scripts.convert_checkpoint {folder} DST --layout=hf"
        )
    config = lerobot.config_from_dict(item["config"])
    source = item.get("source", {})
    leaves = jax.tree.leaves(abstract_params(config))
    return Inventory(
        folder=str(folder),
        layout=ORBAX,
        config=config,
        dtypes={source.get("stored_dtype", "float32"): len(leaves)},
        parameters=len(leaves),
        values=sum(leaf.size for leaf in leaves),
        buffers=tuple(sorted(source.get("buffers", {}))),
    )


def config_differences(a: XVLAConfig, b: XVLAConfig) -> dict[str, tuple[Any, Any]]:
    """Returns the fields of ``config.json`` that differ, by dotted name, with both values.

    Raises:
        ConfigError: the two describe different models; names all fields that differ.
    """
    fields_a, fields_b = _model_fields(a), _model_fields(b)
    other = {k: (fields_a[k], fields_b[k]) for k in fields_a if fields_a[k] != fields_b[k]}
    essential = {k: v for k, v in other.items() if k not in _TRAINING_ONLY}
    if essential:
        raise ConfigError(
            "the two checkpoints are of different models; "
            + "; ".join(f"{k}: {x!r} and {y!r}" for k, (x, y) in essential.items())
        )
    written_a, written_b = _flat(a.to_dict()), _flat(b.to_dict())
    return {
        k: (written_a.get(k), written_b.get(k))
        for k in sorted(written_a.keys() | written_b.keys())
        if written_a.get(k) != written_b.get(k)
    }


def stage_outputs(
    config: XVLAConfig,
    params: Mapping[str, Any],
    inputs: Mapping[str, np.ndarray],
    *,
    dtype: str,
    steps: int,
) -> dict[str, np.ndarray]:
    """Returns every stage's output in float32, computed by the program that serves.

    The head step takes the noisy actions and proprio unmasked; the sampler masks the channels that
    the action space masks.

    Args:
        config: the model.
        params: its parameters, as `inference_params` returns them for ``dtype``.
        inputs: as `probe.make_inputs` returns them.
        dtype: computing type; products of float32 are exact on every device.
        steps: denoising steps of the sampler.
    """
    model = XVLA(config, dtype=jnp.dtype(dtype), unroll=True)
    with jax.default_matmul_precision("highest"):
        outputs = _run(model, params, dict(inputs), steps)
    outputs = {name: np.asarray(value, np.float32) for name, value in outputs.items()}
    tokens = outputs["image_features_valid"]  # of all view slots
    outputs["image_features_valid"] = tokens[np.asarray(inputs["image_mask"]).ravel()]
    return outputs


def compare(
    outputs: Mapping[str, np.ndarray],
    expected: Mapping[str, np.ndarray],
    *,
    gate: float,
    stages: Sequence[Stage] = STAGES,
) -> list[StageResult]:
    """Compares every stage of ``outputs`` with ``expected``.

    Raises:
        ConfigError: an output has another shape, so the two are not one model.
    """
    results = []
    for stage in stages:
        a, b = (
            np.asarray(outputs[stage.name], np.float64),
            np.asarray(expected[stage.name], np.float64),
        )
        if a.shape != b.shape:
            raise ConfigError(
                f"{stage.name} is {list(a.shape)} on one side and {list(b.shape)} on the other; "
                "the two checkpoints are not of one model"
            )
        if not b.size:  # a single view leaves no other tokens
            results.append(StageResult(stage, a.shape, 0.0, 0.0, (), gate))
            continue
        difference = np.abs(a - b)
        difference[~np.isfinite(difference)] = math.inf
        place = np.unravel_index(difference.argmax(), difference.shape)
        results.append(
            StageResult(
                stage=stage,
                shape=a.shape,
                largest_difference=float(difference[place]),
                largest_value=float(np.abs(b).max()),
                where=tuple(int(i) for i in place),
                gate=gate,
            )
        )
    return results


def gate_of(dtypes: Sequence[str]) -> tuple[str, float]:
    """Returns the type with the widest gate among stored and computing types, and its gate."""
    widest = max(dtypes, key=lambda dtype: GATES[dtype])
    return widest, GATES[widest]


def _model_fields(config: XVLAConfig) -> dict[str, Any]:
    values = {
        f.name: getattr(config, f.name)
        for f in dataclasses.fields(config)
        if f.name not in ("vision", "text", "extra", *_ACTION_FIELDS)
    }
    for part in ("vision", "text"):
        nested = dataclasses.asdict(getattr(config, part))
        values |= {f"{part}.{name}": value for name, value in nested.items()}
    space = action_space(config)
    return values | {
        "action_mode": space.mode,
        "width of actions": space.width,
        "real width of actions": space.real_width,
    }


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        if isinstance(inner, Mapping):
            flat |= _flat(inner, f"{prefix}{key}.")
        else:
            flat[prefix + key] = inner
    return flat


@functools.partial(jax.jit, static_argnums=(0, 3))
def _run(
    model: XVLA, params: Any, inputs: Mapping[str, jax.Array], steps: int
) -> dict[str, jax.Array]:
    encoded: Any = model.apply(
        {"params": params},
        inputs["pixel_values"].transpose(0, 1, 3, 4, 2),  # BVCHW -> BVHWC
        inputs["image_mask"],
        inputs["input_ids"],
        method="encode",
        capture_intermediates=lambda module, _: module.name == "image_projector",
        mutable=["intermediates"],
    )
    context: Context = encoded[0]
    tower = encoded[1]["intermediates"]["vlm"]
    head = model.apply(
        {"params": params},
        context,
        inputs["head_action"],
        inputs["proprio"],
        inputs["domain_id"],
        inputs["head_t"],
        method="denoise",
    )
    actions = flow.sample(
        model,
        params,
        context,
        inputs["proprio"],
        inputs["domain_id"],
        noise=inputs["sample_noise"],
        steps=steps,
    )
    return {
        "image_features_valid": tower["image_projector"]["__call__"][0],
        "vlm_features": context.vlm_features,
        "aux_visual_inputs": context.aux_visual_inputs,
        "head_output": cast(jax.Array, head),
        "actions": actions,
    }
