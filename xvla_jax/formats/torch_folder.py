"""Checkpoint folders of the PyTorch layouts: weights, config, processor and what lies beside."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from xvla_jax import convert
from xvla_jax.actions import action_space
from xvla_jax.config import CONFIG_NAME, XVLAConfig
from xvla_jax.contract import Contract, by_domain
from xvla_jax.errors import CheckpointError, ConfigError
from xvla_jax.formats import lerobot_files
from xvla_jax.formats.carried import side_files
from xvla_jax.formats.file_names import plain_name
from xvla_jax.formats.peft import ADAPTER_CONFIG_NAME
from xvla_jax.formats.stored import Progress
from xvla_jax.formats.tensor_files import INDEX_NAME, WEIGHTS_NAME, TensorFiles, write_safetensors
from xvla_jax.formats.torch_names import Dialect
from xvla_jax.processor import PREPROCESSOR_NAME, Processor
from xvla_jax.typed_json import read_json

CONTRACT_NAME: Final = "action_contract.json"
_WRITTEN: Final = frozenset(  # names that an export writes itself
    {CONFIG_NAME, PREPROCESSOR_NAME, CONTRACT_NAME, lerobot_files.RELEASED_NAME}
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
    _check_proprio(config)
    template = template_of(config)
    files = TensorFiles.open(folder)
    try:
        read = convert.open_torch if stored else convert.from_torch
        weights = read(files, config, template)
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: {error}") from error
    names = frozenset(path.name for path, _ in files.places.values())
    return Pretrained(
        config,
        weights.params,
        Processor.read(folder) if (folder / PREPROCESSOR_NAME).is_file() else None,
        _read_contracts(folder, config),
        weights.buffers,
        weights.stored_dtype,
        side_files(folder, own=_WRITTEN, weights=names),
    )


def write(
    folder: pathlib.Path, whole: Pretrained, dialect: Dialect, *, progress: Progress | None
) -> int:
    """Writes all files of a layout, the weights last; returns how many tensors were rounded."""
    if whole.processor:
        whole.processor.write(folder)
    released = whole.config.to_dict()
    for name in {"dtype", "torch_dtype"} & released.keys():
        released[name] = whole.stored_dtype
    if dialect.lerobot:
        interface = _interface(whole)
        config = lerobot_files.to_lerobot(released, interface, dtype=whole.stored_dtype)
        made = lerobot_files.pipelines(config, domain_id=interface.domain_id)
        made |= {CONFIG_NAME: config, lerobot_files.RELEASED_NAME: released}
    else:
        made = {CONFIG_NAME: released}
    for name, content in made.items():
        _write_json(folder / name, content)
    for name, content in whole.files.items():
        if plain_name(name, "a carried file") in _WRITTEN:
            raise CheckpointError(f"a carried file is named {name}, which an export writes itself")
        (folder / name).write_bytes(content)
    if whole.contracts:
        _write_json(folder / CONTRACT_NAME, [c.to_dict() for c in whole.contracts.values()])
    state = convert.to_torch(
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


def _interface(whole: Pretrained) -> lerobot_files.Interface:
    space, processor = action_space(whole.config), whole.processor or Processor()
    return lerobot_files.Interface(
        width=space.width,
        real_width=space.real_width,
        image_size=processor.image_size,
        num_views=processor.num_views,
        text_length=processor.text_length,
        # LeRobot's own default is 0.
        domain_id=next(iter(whole.contracts)) if len(whole.contracts) == 1 else 0,
    )


def _write_json(path: pathlib.Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def _check_kind(folder: pathlib.Path) -> None:
    """Refuses folders that are something else than a checkpoint, by name."""
    has = {path.name for path in folder.iterdir()}
    if ADAPTER_CONFIG_NAME in has and WEIGHTS_NAME not in has:
        raise CheckpointError(
            f"{folder} is a PEFT adapter, no checkpoint; give its base and --adapter={folder}"
        )
    if CONFIG_NAME in has and not has & {WEIGHTS_NAME, INDEX_NAME}:
        raise CheckpointError(
            f"{folder} has {CONFIG_NAME}, but no {WEIGHTS_NAME} and no Orbax steps; "
            f"it has {sorted(has)}"
        )


def _check_proprio(config: XVLAConfig) -> None:
    found = json.loads(config.extra).get(lerobot_files.SECTION, {}).get("max_state_dim")
    space = action_space(config)
    if found not in (None, space.width):
        raise ConfigError(
            f"LeRobot config.json: max_state_dim is {found}; in action space {space.mode!r} X-VLA "
            f"takes a proprio of width {space.width}, so these weights cannot be its"
        )


def _read_contracts(folder: pathlib.Path, config: XVLAConfig) -> dict[int, Contract]:
    path = folder / CONTRACT_NAME
    if not path.is_file():
        return {}
    return by_domain(Contract.from_json(read_json(path), path), config.num_domains, path)
