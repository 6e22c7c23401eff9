"""Seeded random weights in the released layout, written one tensor at a time.

The released weights cannot always be had; what is measured on them (time, memory, equality of two
implementations) can be measured on these. A tensor depends on the seed and its own name alone.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Final

import numpy as np

from configs import models
from xvla_jax.checkpoints import torch_tensors
from xvla_jax.checkpoints.folders import atomic_folder
from xvla_jax.checkpoints.hf_folder import CONTRACT_NAME
from xvla_jax.checkpoints.lerobot import config_from_dict
from xvla_jax.checkpoints.safetensors_files import (
    DTYPES,
    WEIGHTS_NAME,
    TensorInfo,
    write_safetensors,
)
from xvla_jax.config import XVLAConfig
from xvla_jax.contract import Contract
from xvla_jax.errors import ConfigError
from xvla_jax.models.xvla import abstract_params
from xvla_jax.processor import Processor

Shape = tuple[int, ...]

# Type of the file's tensors -> its name in a safetensors header.
STORED: Final[Mapping[str, str]] = {"float32": "F32", "bfloat16": "BF16"}


# Models by name, with the action space ee6d.
SIZES: Final[Mapping[str, models.Shape]] = {"": models.RELEASED, "small": models.SMALL}


def _normal(rng: np.random.Generator, shape: Shape) -> np.ndarray:
    values = rng.standard_normal(shape, np.float32)
    values *= np.float32(0.02)
    return values


def _gain(rng: np.random.Generator, shape: Shape) -> np.ndarray:
    values = _normal(rng, shape)
    values += np.float32(1.0)
    return values


def _xavier_uniform(rng: np.random.Generator, shape: Shape) -> np.ndarray:
    values = rng.random(shape, np.float32)
    values -= np.float32(0.5)
    values *= np.float32(2.0 * math.sqrt(6.0 / sum(shape)))
    return values


# (regex over released names, how the tensor is drawn), first match wins. As the reference
# initialises, so that activations keep their natural size; but where it sets constants (gains 1,
# biases 0) these are scattered, or two swapped tensors would go unseen.
_INITIALISERS: Final[tuple[tuple[str, Callable[..., np.ndarray]], ...]] = (
    (r"(norm\d?|layernorm_embedding)\.weight$", _gain),
    (r"(qkv|attn(\.fn)?\.proj|[qkv]_proj|out_proj|fc\d?|(vlm|visual)_proj)\.weight$",
     _xavier_uniform),
    (r"", _normal),  # tables, convolutions, biases
)  # fmt: skip


def draw(seed: int, name: str, shape: Shape) -> np.ndarray:
    """Returns the released tensor ``name``: float32, a function of seed, name and shape."""
    digest = np.frombuffer(hashlib.sha256(name.encode()).digest(), np.uint32)
    rng = np.random.default_rng([seed, *digest.tolist()])
    initialise = next(init for pattern, init in _INITIALISERS if re.search(pattern, name))
    return initialise(rng, shape)


def read_config(path: str) -> XVLAConfig:
    """Reads the model of a ``config.json``; a name of ``SIZES`` stands for that of its shape.

    Raises:
        ConfigError: there is no such file, or it describes no model.
    """
    if path in SIZES:
        return XVLAConfig.from_dict(models.model_dict(SIZES[path], action_mode="ee6d"))
    try:
        raw = json.loads(pathlib.Path(path).read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ConfigError(f"{path} is not a readable JSON file: {error}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: a JSON object is expected, not {raw!r:.40}")
    return config_from_dict(raw)


@dataclasses.dataclass(frozen=True)
class Written:
    """The file of weights: its number of tensors, size in bytes and SHA-256."""

    tensors: int
    size: int
    sha256: str


def write_random_checkpoint(
    folder: str | os.PathLike[str],
    config: XVLAConfig,
    processor: Processor,
    *,
    seed: int,
    dtype: str,
    on_tensor: Callable[[int, int], None],
    contracts: Iterable[Contract] = (),
) -> Written:
    """Writes config, weights and processor files; the folder appears complete or not at all.

    Args:
        folder: must not exist, or be empty.
        config: the model.
        processor: what its observations go through.
        seed: of all weights, not negative.
        dtype: ``float32`` or ``bfloat16``, of every tensor.
        on_tensor: called with (tensors written, tensors in all) after each.
        contracts: action contracts, one a domain; without any no task can be driven.

    Raises:
        CheckpointError: the folder is in use.
    """
    buffers = torch_tensors.reference_buffers(config)
    shapes = torch_tensors.torch_shapes(config, abstract_params(config))
    shapes |= {name: value.shape for name, value in buffers.items()}
    stored = STORED[dtype]
    read: list[str] = []

    def read_one(name: str) -> np.ndarray:
        value = buffers[name] if name in buffers else draw(seed, name, shapes[name])
        read.append(name)
        on_tensor(len(read), len(shapes))
        return value.astype(DTYPES[stored], copy=False)

    with atomic_folder(folder) as scratch:
        weights = scratch / WEIGHTS_NAME
        info = {name: TensorInfo(stored, shape) for name, shape in shapes.items()}
        write_safetensors(weights, info, read_one, metadata={"format": "pt"})
        config.write(scratch)
        processor.write(scratch)
        if stated := [contract.to_dict() for contract in contracts]:
            (scratch / CONTRACT_NAME).write_text(json.dumps(stated, indent=1) + "\n")
        with weights.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        return Written(len(shapes), weights.stat().st_size, sha256)
