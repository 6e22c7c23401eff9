"""Writes a policy as a folder that `xvla_jax.exported.standalone` acts from, without this library.

The program is the one of `Policy.run` for one number of views and one batch size, lowered for
several platforms at once, so its results are those of the policy, bit for bit on the same device.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any, Final

import jax
import numpy as np
from jax import export

from xvla_jax.checkpoints.folders import atomic_folder
from xvla_jax.checkpoints.safetensors_files import TensorInfo, write_safetensors
from xvla_jax.errors import InputError
from xvla_jax.exported import standalone
from xvla_jax.models.int8 import Int8
from xvla_jax.plans import STEPS
from xvla_jax.policy import Policy, chunk
from xvla_jax.preprocessing.scaling import MODES, Scaling

PLATFORMS: Final = ("cpu", "cuda", "tpu")
RUNNER: Final = "policy.py"  # the name of `standalone` in a folder
_INT8_FIELDS: Final = {field.name for field in dataclasses.fields(Int8)}


def write_program(
    folder: str | os.PathLike[str],
    policy: Policy,
    *,
    instructions: Sequence[str],
    views: int,
    batch: int = 1,
    steps: int = STEPS,
    platforms: Sequence[str] = PLATFORMS,
    source: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Writes a policy as a program; the folder appears complete or not at all.

    Args:
        folder: new or empty.
        policy: to export, with its computing type.
        instructions: texts that it will act on; their tokens are stored, not the tokenizer.
        views: most images of an observation.
        batch: most observations of a call.
        steps: denoising steps where a call names none.
        platforms: of `PLATFORMS`.
        source: of the weights, such as path and digest, for the manifest.

    Returns:
        The manifest.

    Raises:
        InputError: a number is out of range, or an instruction is not one.
        CheckpointError: the folder is in use.
    """
    if not 1 <= views <= policy.processor.num_views or batch < 1 or steps < 1:
        raise InputError(
            f"views {views}, batch {batch}, steps {steps}: at least 1 each is needed, and at most "
            f"{policy.processor.num_views} views, the slots of the checkpoint"
        )
    tokens = policy.processor.tokenize(list(instructions))
    inputs = policy.example_inputs(views=views, batch=batch)
    inputs["steps"] = np.full(batch, steps, np.int32)
    program = _lowered(policy, inputs, platforms)
    with atomic_folder(folder) as scratch:
        (scratch / standalone.PROGRAM).write_bytes(program.serialize())
        _write_weights(scratch / standalone.WEIGHTS, policy.params)
        contracts = [contract.to_dict() for contract in policy.contracts.values()]
        (scratch / standalone.CONTRACT).write_text(json.dumps(contracts, indent=2))
        processor = policy.processor.to_dict()
        (scratch / standalone.PROCESSOR).write_text(json.dumps(processor, indent=2))
        shutil.copyfile(standalone.__file__, scratch / RUNNER)
        manifest = {
            **_facts(policy, inputs, program.platforms),
            "steps": steps,
            "source": dict(source or {}),
            "instructions": dict(zip(instructions, tokens.tolist(), strict=True)),
            "files": {path.name: standalone.file_hash(path) for path in sorted(scratch.iterdir())},
        }
        manifest["seal"] = standalone.seal_of(manifest)
        (scratch / standalone.MANIFEST).write_text(json.dumps(manifest, indent=2))
    return manifest


def _facts(
    policy: Policy, inputs: Mapping[str, np.ndarray], platforms: Sequence[str]
) -> dict[str, Any]:
    """Returns what a manifest says of the program and of the numbers that go in and out."""
    batch, views = inputs["images"].shape[:2]
    return {
        "format": standalone.FORMAT,
        "jax": jax.__version__,
        "platforms": list(platforms),
        "views": views,
        "batch": batch,
        "width": policy.space.width,
        "real_width": policy.space.real_width,
        "inputs": {
            name: {"shape": list(value.shape), "dtype": str(value.dtype)}
            for name, value in inputs.items()
        },
        "domains": policy.domains,
        **_units(policy),
    }


def _lowered(
    policy: Policy, inputs: Mapping[str, np.ndarray], platforms: Sequence[str]
) -> export.Exported:
    static = policy.model, tuple(policy.processor.mean), tuple(policy.processor.std)

    def run(params: Any, inputs: Any) -> jax.Array:
        return chunk(*static, _joined(params), inputs)

    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype),
        (_split(policy.params), dict(inputs)),
    )
    return export.export(jax.jit(run), platforms=platforms)(*shapes)


def _split(params: Any) -> Any:
    """Returns parameters as dicts alone, which JAX reads without this library."""
    if isinstance(params, Int8):
        return vars(params)
    if isinstance(params, Mapping):
        return {name: _split(child) for name, child in params.items()}
    return params


def _joined(params: Any) -> Any:
    """Undoes `_split`."""
    if not isinstance(params, Mapping):
        return params
    if params.keys() == _INT8_FIELDS:
        return Int8(**params)
    return {name: _joined(child) for name, child in params.items()}


def _write_weights(path: pathlib.Path, params: Mapping[str, Any]) -> None:
    leaves = {
        "/".join(key.key for key in names): leaf
        for names, leaf in jax.tree_util.tree_leaves_with_path(_split(params))
    }
    info = {name: TensorInfo.of(leaf) for name, leaf in leaves.items()}
    write_safetensors(path, info, lambda name: np.asarray(leaves[name]), metadata={})


def _units(policy: Policy) -> dict[str, Any]:
    """Returns what turns a robot's numbers into the network's and back, as plain values."""
    state, action, space = policy.processor.state, policy.processor.action, policy.space
    unrecorded = {
        str(domain): {
            "hidden": list(contract.unrecorded),
            "held": sorted(set(contract.unrecorded) - set(contract.relative_channels)),
        }
        for domain, contract in policy.contracts.items()
        if contract.unrecorded
    }
    return {
        "proprio_widths": sorted({space.width, state.width if state else space.real_width}),
        "scaling": {"state": _scaling(state), "action": _scaling(action)},
        "unrecorded": unrecorded,
    }


def _scaling(scaling: Scaling | None) -> dict[str, Any] | None:
    """Returns the numbers of a scaling as its two directions use them."""
    if scaling is None:
        return None
    ranged = MODES[scaling.mode][2]
    low, high = np.asarray(scaling.low, np.float32), np.asarray(scaling.high, np.float32)
    eps = np.float32(scaling.eps)
    divide = np.where(high == low, eps, high - low) if ranged else high + eps
    multiply = divide if ranged else high
    numbers = {"low": low, "divide": divide, "multiply": multiply}
    return {name: value.tolist() for name, value in numbers.items()} | {"ranged": ranged}
