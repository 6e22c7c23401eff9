"""Checkpoint folders of the PyTorch layouts: weights, config, processor and the files beside them.

`load` and `write` are the two halves; `Pretrained` is a checkpoint in memory, in every layout.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import pathlib
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from xvla_jax.checkpoints import lerobot, lerobot_export, torch_tensors
from xvla_jax.checkpoints.accounting import INT8, check_size
from xvla_jax.checkpoints.lerobot_pipelines import AFTER, BEFORE, read_processor
from xvla_jax.checkpoints.names import DIALECTS
from xvla_jax.checkpoints.peft import ADAPTER_CONFIG_NAME
from xvla_jax.checkpoints.safetensors_files import (
    BIN_NAME,
    STORED_AS,
    WEIGHTS_NAME,
    Progress,
    TensorFiles,
    write_safetensors,
)
from xvla_jax.config import CONFIG_NAME, XVLAConfig
from xvla_jax.contract import Contract, presumed_domains, read_contracts, read_domains
from xvla_jax.errors import CheckpointError
from xvla_jax.models.int8 import int8_groups
from xvla_jax.processor import PREPROCESSOR_NAME, Processor
from xvla_jax.untrusted import (
    BOUNDS,
    check_link,
    parse_json,
    plain_name,
    read_json,
    shown,
    typed_map,
)

CONTRACT_NAME: Final = "action_contract.json"
DOMAINS_NAME: Final = "domains.json"  # name of each domain -> its id
NOTES_NAME: Final = "domain_notes.json"  # origin of added domains; carried beside the weights
_WRITTEN: Final = frozenset(  # names that an export writes itself
    {CONFIG_NAME, PREPROCESSOR_NAME, CONTRACT_NAME, DOMAINS_NAME, lerobot.RELEASED_NAME}
)
# Tokenizer, remote code, LeRobot's pipelines with their statistics, licences: the files that
# loaders of other packages look for. A model card describes the weights that it came with, so it is
# not carried along.
CARRIED_SUFFIXES: Final = (".json", ".txt", ".py", ".jinja", ".model", ".safetensors")
CARRIED_NAMES: Final = ("LICENSE", "NOTICE")
_WEIGHTS: Final = ("model.safetensors", "pytorch_model.bin", "adapter_")  # names begin with them

_INT8_MEANS: Final = "NAME times NAME_scale, a float32 for each output channel"
_HOW_TO_EXPAND: Final = (
    "which act, but are not trained, adapted or edited: use the float32 weights that they were "
    "made of, or python -m scripts.convert_checkpoint {} OUT --layout=hf --dtype=float32, which "
    "writes their values, not the original ones"
)

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A checkpoint in memory.

    Attributes:
        config: the model.
        params: nested dict of float32 numpy arrays; `StoredLeaf` where they were left on disk, and
            there `Int8Leaf` for int8 weights.
        processor: None where the folder has no processor files.
        contracts: action contracts by domain.
        buffers: released name -> tensor that is saved but is no parameter, as the source had it.
        stored_dtype: type of the source's tensors: ``float32``, ``bfloat16``, ``float16``, or
            ``int8`` where it is that of some.
        files: small files that are carried along unread, by name.
        domains: ids of domains by name, as stored; empty where they are not.
        int8: groups of parameters that the source has in int8.
    """

    config: XVLAConfig
    params: dict[str, Any]
    processor: Processor | None
    contracts: dict[int, Contract]
    buffers: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    stored_dtype: str = "float32"
    files: dict[str, bytes] = dataclasses.field(default_factory=dict)
    domains: dict[str, int] = dataclasses.field(default_factory=dict)
    int8: tuple[str, ...] = ()

    @property
    def domain_ids(self) -> dict[str, int]:
        """Ids of domains by name; where none are stored, those of X-VLA's weights and of notes."""
        return dict(self.domains) or presumed_domains(self.config, read_notes(self))


def read_notes(loaded: Pretrained) -> dict[str, Any]:
    """Returns notes by domain id; the ids are text.

    Raises:
        CheckpointError: they have another form.
    """
    try:
        notes = parse_json(loaded.files.get(NOTES_NAME, b"{}"))
    except ValueError as error:
        raise CheckpointError(f"{NOTES_NAME}: not JSON ({error})") from error
    for domain, note in typed_map(notes, NOTES_NAME, "").items():
        typed_map(note, NOTES_NAME, domain)
    return notes


def load(
    folder: pathlib.Path,
    template_of: Callable[[XVLAConfig], Any],
    *,
    stored: bool,
    int8: bool,
) -> Pretrained:
    """Reads a folder.

    Args:
        folder: of any PyTorch layout.
        template_of: gives the parameters' shapes, as ``abstract_params`` does.
        stored: leave the parameters on disk.
        int8: int8 weights may be read.

    Raises:
        CheckpointError, ConfigError: there is no usable checkpoint; the message says what is there.
    """
    _check_kind(folder)
    config, groups = _without_int8(lerobot.read_config(folder))
    if groups is not None and not int8:
        raise CheckpointError(f"{folder} has int8 weights, {_HOW_TO_EXPAND.format(folder)}")
    template = template_of(config)
    check_size(template, folder / CONFIG_NAME)
    files = TensorFiles.open(folder)
    try:
        files = lerobot.with_state_of_model(files, config)
        read = torch_tensors.open_torch if stored else torch_tensors.from_torch
        weights = read(files, config, template)
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: {error}") from error
    if weights.int8 != tuple(groups or ()):
        raise CheckpointError(
            f"{folder / CONFIG_NAME}: {INT8}.groups is {shown(groups)}, the weights have "
            f"{list(weights.int8)} in int8; give the files that were written together"
        )
    return Pretrained(
        config,
        weights.params,
        _read_processor(folder, config),
        _read_contracts(folder, config),
        weights.buffers,
        weights.stored_dtype,
        _carried_files(folder, {path.name for path, _ in files.places.values()}),
        _read_domains(folder, config),
        weights.int8,
    )


def write(
    folder: pathlib.Path,
    loaded: Pretrained,
    layout: str,
    *,
    progress: Progress | None,
    domain: int | None = None,
) -> int:
    """Writes all files of a layout, the weights last; returns how many tensors were rounded."""
    dialect = DIALECTS[layout]
    released, files = loaded.config.to_dict(), dict(loaded.files)
    wide = "float32" if loaded.stored_dtype == INT8 else loaded.stored_dtype
    for name in {"dtype", "torch_dtype"} & released.keys():
        released[name] = wide
    if loaded.stored_dtype == INT8:
        released[INT8] = {"groups": list(int8_groups(loaded.params)), "values": _INT8_MEANS}
    configs = {CONFIG_NAME: released}
    processor = loaded.processor
    if dialect.lerobot:
        processor = processor and _for_lerobot(processor)
        config, pipelines = lerobot_export.lerobot_files(
            loaded.config,
            processor,
            loaded.contracts,
            files,
            dtype=loaded.stored_dtype,
            domain=domain,
        )
        files = {k: v for k, v in files.items() if not k.startswith((BEFORE, AFTER))} | pipelines
        configs = {CONFIG_NAME: config, lerobot.RELEASED_NAME: released}
    if processor:
        processor.write(folder)
    for name, content in configs.items():
        _write_json(folder / name, content)
    for name, content in files.items():
        if plain_name(name, "a carried file") in _WRITTEN:
            raise CheckpointError(f"a carried file is named {name}, which an export writes itself")
        (folder / name).write_bytes(content)
    if loaded.contracts:
        _write_json(folder / CONTRACT_NAME, [c.to_dict() for c in loaded.contracts.values()])
    if loaded.domains:
        _write_json(folder / DOMAINS_NAME, loaded.domains)
    state = torch_tensors.to_torch(
        loaded.params,
        loaded.config,
        dialect.name,
        buffers=loaded.buffers,
        dtype=loaded.stored_dtype,
    )
    _write_weights(folder / WEIGHTS_NAME, state, progress)
    return len(state.rounded)


def _without_int8(config: XVLAConfig) -> tuple[XVLAConfig, Any]:
    """Returns a config without its note on int8 weights, and the groups that the note states."""
    extra = json.loads(config.extra)
    if INT8 not in extra:
        return config, None
    note = typed_map(extra.pop(INT8), CONFIG_NAME, INT8)
    return dataclasses.replace(config, extra=json.dumps(extra)), note.get("groups", [])


def is_carried(name: str) -> bool:
    """True for the name of a file that travels with a checkpoint unread."""
    path = pathlib.PurePath(name)
    chosen = path.suffix in CARRIED_SUFFIXES or path.stem in CARRIED_NAMES
    return chosen and not name.startswith((".", *_WEIGHTS))


def _write_weights(
    path: pathlib.Path, state: torch_tensors.TorchTensors, progress: Progress | None
) -> None:
    total, done = sum(info.nbytes for info in state.info.values()), 0

    def read(name: str) -> np.ndarray:
        nonlocal done
        done += state.info[name].nbytes
        if progress:
            progress(done, total)
        return state.read(name)

    write_safetensors(path, state.info, read, metadata=state.metadata, order=state.order)


def _for_lerobot(processor: Processor) -> Processor:
    """Returns the nearest processor that LeRobot has, with a warning where it differs."""
    nearest = lerobot_export.as_lerobot_can(processor)
    if nearest != processor:
        _log.warning(
            "LeRobot cannot resize images by Pillow's filter, as this checkpoint does (resize "
            "'stretch'); its own stretch is written ('linear'): actions on images that are not "
            "%d x %d px differ a little. --resize names another way",
            processor.image_size,
            processor.image_size,
        )
    return nearest


def _write_json(path: pathlib.Path, content: Any) -> None:
    # Not sorted: LeRobot fills view slots in the order of its input_features.
    path.write_text(json.dumps(content, indent=2) + "\n")


def _check_kind(folder: pathlib.Path) -> None:
    """Refuses, by name, a folder that is an adapter or has no weights."""
    names = set(os.listdir(folder))
    if ADAPTER_CONFIG_NAME in names and not names & {*STORED_AS}:
        raise CheckpointError(
            f"{folder} is a PEFT adapter, no checkpoint; give its base and --adapter={folder}"
        )
    if CONFIG_NAME in names and not names & {*STORED_AS}:
        raise CheckpointError(
            f"{folder} has {CONFIG_NAME}, but no {WEIGHTS_NAME} and no Orbax steps, nor "
            f"{BIN_NAME}; it has {sorted(names)}"
        )


def _read_processor(folder: pathlib.Path, config: XVLAConfig) -> Processor | None:
    """Reads the processor: from LeRobot's files where they are, else or in addition from ours."""
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


def _read_domains(folder: pathlib.Path, config: XVLAConfig) -> dict[str, int]:
    path = folder / DOMAINS_NAME
    return read_domains(read_json(path), config, where=path) if path.is_file() else {}


def _carried_files(folder: pathlib.Path, weights: set[str]) -> dict[str, bytes]:
    """Returns the files that an export copies as they are; ``weights`` are the weights' names."""
    return {
        path.name: path.read_bytes()
        for path in sorted(folder.iterdir())
        if path.is_file()
        and is_carried(path.name)
        and path.name not in _WRITTEN | weights
        and path.stat().st_size <= BOUNDS["bytes of a carried file"]
        and check_link(path)
    }
