"""Loading and saving whole checkpoints, whatever their layout."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from xvla_jax import checkpoint, convert
from xvla_jax.config import CONFIG_NAME, XVLAConfig
from xvla_jax.contract import Contract
from xvla_jax.errors import CheckpointError
from xvla_jax.models.xvla import abstract_params
from xvla_jax.processor import PREPROCESSOR_NAME, Processor

WEIGHTS_NAME: Final = "model.safetensors"
CONTRACT_NAME: Final = "action_contract.json"


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A checkpoint in memory. ``processor`` is None where the folder has no processor files."""

    config: XVLAConfig
    params: dict[str, Any]
    processor: Processor | None
    contracts: dict[int, Contract]


def load_pretrained(folder: str | os.PathLike[str]) -> tuple[XVLAConfig, dict[str, Any]]:
    """Config and parameters of a checkpoint.

    Args:
        folder: released Hugging Face layout, one of LeRobot's, or an Orbax workdir, or one of its
            steps.

    Returns:
        The config, and the parameters as a nested dict of float32 numpy arrays.

    Raises:
        CheckpointError, ConfigError: nothing usable is there; the message says what was found.
    """
    loaded = load_checkpoint(folder)
    return loaded.config, loaded.params


def load_checkpoint(folder: str | os.PathLike[str]) -> Pretrained:
    """As `load_pretrained`, with the processor and the action contracts."""
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder")
    step = checkpoint.find_step(folder)
    if step is not None:
        return _load_orbax(step)
    config = XVLAConfig.read(folder)
    params = convert.from_torch(_read_tensors(folder), config, abstract_params(config))
    processor = Processor.read(folder) if (folder / PREPROCESSOR_NAME).is_file() else None
    return Pretrained(config, params, processor, _read_contracts(folder))


def save_pretrained(
    folder: str | os.PathLike[str],
    config: XVLAConfig,
    params: Mapping[str, Any],
    layout: str = "hf",
    *,
    processor: Processor | None = None,
    contracts: Mapping[int, Contract] | None = None,
    overwrite: bool = False,
) -> None:
    """Writes a checkpoint that PyTorch users can load.

    The folder appears whole or not at all. With a processor its files are written too; without,
    only config and weights.

    Args:
        folder: must not exist, or be empty, unless ``overwrite``.
        config: the model.
        params: its parameters.
        layout: ``hf`` (released), ``lerobot-vendored`` or ``lerobot-native``.
        processor: image and text preprocessing that the weights were trained with.
        contracts: action contracts by domain; our addition, other readers ignore it.
        overwrite: replace the folder, once the new one is whole.

    Raises:
        CheckpointError: the folder is in use, the layout unknown, or the parameters are not the
            config's.
    """
    folder = pathlib.Path(folder)
    taken = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    if taken and not (overwrite and folder.is_dir()):
        raise CheckpointError(
            f"{folder} exists and is not empty; choose another folder or remove it"
        )
    state = convert.to_torch(params, config, layout)
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = pathlib.Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        save_file(state, scratch / WEIGHTS_NAME, metadata={"format": "pt"})
        config.write(scratch)
        if processor is not None:
            processor.write(scratch)
        if contracts:
            text = json.dumps([c.to_dict() for c in contracts.values()], indent=2)
            (scratch / CONTRACT_NAME).write_text(text + "\n")
        scratch.chmod(0o755)
        if taken:
            shutil.rmtree(folder)
        scratch.replace(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def model_item(
    config: XVLAConfig, processor: Processor, contracts: Mapping[int, Contract]
) -> dict[str, Any]:
    """The ``model`` item of an Orbax checkpoint; `load_checkpoint` reads it back."""
    return {
        "config": config.to_dict(),
        "processor": processor.to_dict(),
        "contracts": [c.to_dict() for c in contracts.values()],
    }


def _load_orbax(step: pathlib.Path) -> Pretrained:
    item = checkpoint.read_model(step)
    config = XVLAConfig.from_dict(item["config"])
    contracts = [Contract.from_dict(c) for c in item["contracts"]]
    return Pretrained(
        config,
        checkpoint.load_params(step.resolve(), abstract_params(config)),
        Processor.from_dict(item["processor"]),
        {c.domain_id: c for c in contracts},
    )


def _read_tensors(folder: pathlib.Path) -> dict[str, np.ndarray]:
    path = folder / WEIGHTS_NAME
    if not path.is_file():
        raise CheckpointError(
            f"{folder} has {CONFIG_NAME}, but no {WEIGHTS_NAME} and no Orbax steps; "
            f"it has {sorted(p.name for p in folder.iterdir())}"
        )
    try:
        with safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise CheckpointError(
            f"{path}: not a whole safetensors file ({error}); fetch it again"
        ) from error


def _read_contracts(folder: pathlib.Path) -> dict[int, Contract]:
    path = folder / CONTRACT_NAME
    if not path.is_file():
        return {}
    contracts = [Contract.from_dict(raw) for raw in json.loads(path.read_text())]
    return {c.domain_id: c for c in contracts}
