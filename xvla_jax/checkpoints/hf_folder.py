"""Checkpoint folders of the PyTorch layouts: weights, config, processor and what lies beside."""

from __future__ import annotations

import dataclasses
import json
import logging
import pathlib
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from xvla_jax.checkpoints import lerobot, lerobot_export, torch_tensors
from xvla_jax.checkpoints.lerobot_pipelines import AFTER, BEFORE, read_processor
from xvla_jax.checkpoints.names import DIALECTS
from xvla_jax.checkpoints.peft import ADAPTER_CONFIG_NAME
from xvla_jax.checkpoints.safetensors_files import (
    BIN_NAME,
    STORED_AS,
    WEIGHTS_NAME,
    TensorFiles,
    write_safetensors,
)
from xvla_jax.config import CONFIG_NAME, XVLAConfig
from xvla_jax.contract import Contract, read_contracts
from xvla_jax.errors import CheckpointError
from xvla_jax.formats.carried import side_files
from xvla_jax.formats.file_names import plain_name
from xvla_jax.formats.lerobot_state import with_state_of_model
from xvla_jax.formats.stored import Progress
from xvla_jax.processor import PREPROCESSOR_NAME, Processor
from xvla_jax.untrusted import read_json

_log = logging.getLogger(__name__)

CONTRACT_NAME: Final = "action_contract.json"
_WRITTEN: Final = frozenset(  # names that an export writes itself
    {CONFIG_NAME, PREPROCESSOR_NAME, CONTRACT_NAME, lerobot.RELEASED_NAME}
)


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A checkpoint in memory.

    Attributes:
        config: the model.
        params: nested dict of float32 numpy arrays; `StoredLeaf` where they were left on disk.
        processor: None where the folder has no processor files.
        contracts: action contracts by domain.
        buffers: released name -> tensor that is saved but is no parameter, as the source had it.
        stored_dtype: type of the source's tensors: ``float32``, ``bfloat16`` or ``float16``.
        files: small files that are carried along unread, by name.
    """

    config: XVLAConfig
    params: dict[str, Any]
    processor: Processor | None
    contracts: dict[int, Contract]
    buffers: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    stored_dtype: str = "float32"
    files: dict[str, bytes] = dataclasses.field(default_factory=dict)


def load(
    folder: pathlib.Path,
    template_of: Callable[[XVLAConfig], Any],
    *,
    stored: bool,
) -> Pretrained:
    """Reads a folder.

    Args:
        folder: of any PyTorch layout.
        template_of: gives the parameters' shapes, as ``abstract_params`` does.
        stored: leave the parameters on disk.

    Raises:
        CheckpointError, ConfigError: nothing usable is there; the message says what was found.
    """
    _check_kind(folder)
    config = XVLAConfig.read(folder)
    template = template_of(config)
    files = TensorFiles.open(folder)
    try:
        files = with_state_of_model(files, config)
        read = torch_tensors.open_torch if stored else torch_tensors.from_torch
        weights = read(files, config, template)
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: {error}") from error
    names = frozenset(path.name for path, _ in files.places.values())
    return Pretrained(
        config,
        weights.params,
        _read_processor(folder, config),
        _read_contracts(folder, config),
        weights.buffers,
        weights.stored_dtype,
        side_files(folder, own=_WRITTEN, weights=names),
    )


def write(
    folder: pathlib.Path,
    whole: Pretrained,
    layout: str,
    *,
    progress: Progress | None,
    domain: int | None = None,
) -> int:
    """Writes all files of a layout, the weights last; returns how many tensors were rounded."""
    dialect = DIALECTS[layout]
    released, files = whole.config.to_dict(), dict(whole.files)
    for name in {"dtype", "torch_dtype"} & released.keys():
        released[name] = whole.stored_dtype
    made = {CONFIG_NAME: released}
    processor = whole.processor
    if dialect.lerobot:
        processor = processor and _said(lerobot_export.as_lerobot_can(processor), processor)
        config, pipelines = lerobot_export.lerobot_files(
            whole.config,
            processor,
            whole.contracts,
            files,
            dtype=whole.stored_dtype,
            domain=domain,
        )
        files = {k: v for k, v in files.items() if not k.startswith((BEFORE, AFTER))} | pipelines
        made = {CONFIG_NAME: config, lerobot.RELEASED_NAME: released}
    if processor:
        processor.write(folder)
    for name, content in made.items():
        _write_json(folder / name, content)
    for name, content in files.items():
        if plain_name(name, "a carried file") in _WRITTEN:
            raise CheckpointError(f"a carried file is named {name}, which an export writes itself")
        (folder / name).write_bytes(content)
    if whole.contracts:
        _write_json(folder / CONTRACT_NAME, [c.to_dict() for c in whole.contracts.values()])
    state = torch_tensors.to_torch(
        whole.params, whole.config, dialect.name, buffers=whole.buffers, dtype=whole.stored_dtype
    )
    total, done = sum(info.nbytes for info in state.info.values()), 0

    def read(name: str) -> np.ndarray:
        nonlocal done
        done += state.info[name].nbytes
        if progress:
            progress(done, total)
        return state.read(name)

    write_safetensors(
        folder / WEIGHTS_NAME, state.info, read, metadata=state.metadata, order=state.order
    )
    return len(state.rounded)


def _said(written: Processor, processor: Processor) -> Processor:
    if written != processor:
        _log.warning(
            "LeRobot cannot resize images by Pillow's filter, as this checkpoint does (resize "
            "'stretch'); its own stretch is written ('linear'): actions on images that are not "
            "%d x %d px differ a little. --resize names another way",
            processor.image_size,
            processor.image_size,
        )
    return written


def _write_json(path: pathlib.Path, content: Any) -> None:
    # Not sorted: LeRobot fills view slots in the order of its input_features.
    path.write_text(json.dumps(content, indent=2) + "\n")


def _check_kind(folder: pathlib.Path) -> None:
    """Refuses folders that are something else than a checkpoint, by name."""
    has = {path.name for path in folder.iterdir()}
    if ADAPTER_CONFIG_NAME in has and not has & {*STORED_AS}:
        raise CheckpointError(
            f"{folder} is a PEFT adapter, no checkpoint; give its base and --adapter={folder}"
        )
    if CONFIG_NAME in has and not has & {*STORED_AS}:
        raise CheckpointError(
            f"{folder} has {CONFIG_NAME}, but no {WEIGHTS_NAME} and no Orbax steps, nor "
            f"{BIN_NAME}; it has {sorted(has)}"
        )


def _read_processor(folder: pathlib.Path, config: XVLAConfig) -> Processor | None:
    """In a LeRobot folder LeRobot's files say what LeRobot does; the rest is in ours, if there."""
    ours = Processor.read(folder) if (folder / PREPROCESSOR_NAME).is_file() else None
    section = json.loads(config.extra).get(lerobot.SECTION)
    theirs = lerobot.is_lerobot(read_json(folder / CONFIG_NAME))
    if not section or (ours and not theirs):
        return ours
    try:
        processor = read_processor(section, folder)
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: {error}") from error
    if not (ours and processor):
        return processor or ours
    return dataclasses.replace(processor, tokenizer_dir=ours.tokenizer_dir, extra=ours.extra)


def _read_contracts(folder: pathlib.Path, config: XVLAConfig) -> dict[int, Contract]:
    path = folder / CONTRACT_NAME
    if not path.is_file():
        return {}
    return read_contracts(read_json(path), config, where=str(path))
