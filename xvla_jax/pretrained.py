"""Loading and saving whole checkpoints, whatever their layout."""

from __future__ import annotations

import functools
import os
import pathlib
from collections.abc import Mapping
from typing import Any, Final

import jax
import numpy as np

from xvla_jax.checkpoints import hf_folder, orbax
from xvla_jax.checkpoints.accounting import STORED, check_tree
from xvla_jax.checkpoints.disk_errors import check_free, disk_errors
from xvla_jax.checkpoints.hf_folder import Pretrained
from xvla_jax.checkpoints.names import DIALECTS
from xvla_jax.checkpoints.safetensors_files import DTYPES
from xvla_jax.config import XVLAConfig
from xvla_jax.contract import Contract, check_fits, read_contracts
from xvla_jax.errors import CheckpointError, ConfigError
from xvla_jax.formats import lora_step
from xvla_jax.formats.carried import (
    buffers_from_json,
    buffers_to_json,
    files_from_json,
    files_to_json,
)
from xvla_jax.formats.folders import whole_folder
from xvla_jax.formats.stored import Progress
from xvla_jax.models.xvla import abstract_params
from xvla_jax.processor import Processor
from xvla_jax.training import checkpointer

__all__ = ["Pretrained", "load_checkpoint", "load_pretrained", "model_item", "save_pretrained"]

ORBAX: Final = "orbax"
LAYOUTS: Final = (*DIALECTS, ORBAX)


def load_pretrained(folder: str | os.PathLike[str]) -> tuple[XVLAConfig, dict[str, Any]]:
    """Config and parameters of a checkpoint.

    Args:
        folder: released Hugging Face layout, one of LeRobot's, or an Orbax workdir, or one of its
            steps. Those of a LoRA run are merged into their base, which must be where it was.

    Returns:
        The config, and the parameters as a nested dict of float32 numpy arrays.

    Raises:
        CheckpointError, ConfigError: nothing usable is there; the message says what was found.
    """
    loaded = load_checkpoint(folder)
    return loaded.config, loaded.params


def load_checkpoint(folder: str | os.PathLike[str], *, stored: bool = False) -> Pretrained:
    """As `load_pretrained`, with all that belongs to the parameters.

    With ``stored`` they stay on disk as `StoredLeaf` until somebody, `save_pretrained` for one,
    reads them; only then are values that are not finite found.
    """
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder")
    step = checkpointer.find_step(folder)
    if step is not None:
        return _load_orbax(step, stored=stored)
    return hf_folder.load(folder, _template, stored=stored)


def save_pretrained(
    folder: str | os.PathLike[str],
    config: XVLAConfig,
    params: Mapping[str, Any],
    layout: str = "hf",
    *,
    processor: Processor | None = None,
    contracts: Mapping[int, Contract] | None = None,
    overwrite: bool = False,
    buffers: Mapping[str, np.ndarray] | None = None,
    dtype: str = "float32",
    files: Mapping[str, bytes] | None = None,
    progress: Progress | None = None,
    domain: int | None = None,
) -> int:
    """Writes a checkpoint in any layout; those of PyTorch users load in their own packages.

    The folder appears whole or not at all. Without a processor its files are left out.

    Args:
        folder: must not exist, or be empty, unless ``overwrite``.
        config: the model.
        params: its parameters.
        layout: ``hf`` (released), ``lerobot-vendored``, ``lerobot-native``, or ``orbax``: a workdir
            whose step 0 has no optimizer.
        processor: image and text preprocessing that the weights were trained with.
        contracts: action contracts by domain; our addition, other readers ignore it.
        overwrite: replace the folder, once the new one is whole.
        buffers: as `Pretrained` has them.
        dtype: of the stored tensors: ``float32``, ``bfloat16`` or ``float16``. Orbax keeps float32,
            and the name.
        files: as `Pretrained` has them.
        progress: told of every tensor or leaf.
        domain: of LeRobot's pipeline, where there are several contracts.

    Returns:
        How many tensors ``dtype`` does not hold exactly, and so were rounded.

    Raises:
        CheckpointError, ContractError: the folder is in use, the layout unknown, or parameters or
            contracts are not the config's.
        OSError: the disk is full, read-only or failing.
    """
    _check_names(layout, dtype)
    check_tree(dict(params), _template(config))
    check_fits((contracts or {}).values(), config)
    agreed, saved = dict(contracts or {}), dict(buffers or {})
    whole = Pretrained(config, dict(params), processor, agreed, saved, dtype, dict(files or {}))
    check_free(pathlib.Path(folder), _stored_bytes(params, layout, dtype))
    with whole_folder(folder, overwrite=overwrite) as scratch, disk_errors(pathlib.Path(folder)):
        if layout == ORBAX:
            item = model_item(config, processor, whole.contracts, source=whole)
            orbax.write_step(scratch, whole.params, item, progress=progress)
            return 0
        return hf_folder.write(scratch, whole, layout, progress=progress, domain=domain)


def _check_names(layout: str, dtype: str) -> None:
    for what, value, known in (("layout", layout, LAYOUTS), ("dtype", dtype, STORED)):
        if value not in known:
            raise CheckpointError(f"{what} is {value!r}; known are {', '.join(known)}")


def _stored_bytes(params: Mapping[str, Any], layout: str, dtype: str) -> int:
    size = 4 if layout == ORBAX else DTYPES[STORED[dtype]].itemsize
    return size * sum(leaf.size for leaf in jax.tree.leaves(params))


def model_item(
    config: XVLAConfig,
    processor: Processor | None,
    contracts: Mapping[int, Contract],
    *,
    source: Pretrained | None = None,
) -> dict[str, Any]:
    """The ``model`` item of an Orbax checkpoint; `load_checkpoint` reads it back.

    Args:
        config: the model.
        processor: None where it is unknown; nothing can act with such a checkpoint.
        contracts: action contracts by domain.
        source: the checkpoint that training began with: buffers, stored type and files go on.
    """
    item = {
        "config": config.to_dict(),
        "processor": processor.to_dict() if processor else None,
        "contracts": [c.to_dict() for c in contracts.values()],
    }
    if source:
        item["source"] = {
            "buffers": buffers_to_json(source.buffers),
            "stored_dtype": source.stored_dtype,
            "files": files_to_json(source.files),
        }
    return item


def _load_orbax(step: pathlib.Path, *, stored: bool) -> Pretrained:
    item = checkpointer.read_model(step)
    config = XVLAConfig.from_dict(item["config"], f"{step}: model.config")
    if lora_step.ADAPTER in item:
        base = load_checkpoint(lora_step.base_folder(step), stored=stored)
        params = lora_step.merged_params(step, base.params)
    else:
        read = orbax.stored_params if stored else orbax.load_params
        try:
            params = read(step.resolve(), _template(config))
        except ConfigError as error:
            raise ConfigError(f"{step}: {error}") from error
    contracts = read_contracts(item["contracts"], config, where=f"{step}: model.contracts")
    source = item.get("source", {})
    stored_dtype = source.get("stored_dtype", "float32")
    if stored_dtype not in STORED:
        raise CheckpointError(
            f"{step}: model.source.stored_dtype is {stored_dtype!r}; known are {', '.join(STORED)}"
        )
    return Pretrained(
        config,
        params,
        Processor.from_dict(item["processor"], step) if item["processor"] else None,
        contracts,
        buffers_from_json(source.get("buffers", {}), step),
        stored_dtype,
        files_from_json(source.get("files", {}), step),
    )


@functools.lru_cache(maxsize=4)
def _template(config: XVLAConfig) -> dict[str, Any]:
    """The shapes of a model's parameters; tracing the full-size one takes a second or two."""
    try:
        return abstract_params(config)
    except (ValueError, TypeError, ArithmeticError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(
            f"config.json describes a model that cannot be built: {reason}"
        ) from error
