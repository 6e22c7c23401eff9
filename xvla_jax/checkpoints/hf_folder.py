"""Checkpoint folders of the PyTorch layouts: weights, config, processor and what lies beside."""

from __future__ import annotations

import base64
import dataclasses
import json
import logging
import os
import pathlib
import zlib
from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
import pydantic
from typing_extensions import TypedDict

from xvla_jax.actions import action_space
from xvla_jax.checkpoints import lerobot, lerobot_export, torch_tensors
from xvla_jax.checkpoints.lerobot_pipelines import AFTER, BEFORE, read_processor
from xvla_jax.checkpoints.names import BUFFERS, DIALECTS, detect_dialect
from xvla_jax.checkpoints.peft import ADAPTER_CONFIG_NAME
from xvla_jax.checkpoints.safetensors_files import (
    BIN_NAME,
    DTYPES,
    STORED_AS,
    WEIGHTS_NAME,
    Progress,
    TensorFiles,
    TensorInfo,
    write_safetensors,
)
from xvla_jax.config import CONFIG_NAME, XVLAConfig
from xvla_jax.contract import Contract, read_contracts
from xvla_jax.errors import CheckpointError, ConfigError
from xvla_jax.processor import PREPROCESSOR_NAME, Processor
from xvla_jax.untrusted import (
    LARGEST,
    STRICT,
    Width,
    check_link,
    plain_name,
    read_json,
    shown,
    typed,
)

# Tokenizer, remote code, LeRobot's pipelines with their statistics, licences: what loaders of
# other packages look for. A model card speaks of the weights that it came with and stays there.
_SUFFIXES: Final = (".json", ".txt", ".py", ".jinja", ".model", ".safetensors")
_NAMES: Final = ("LICENSE", "NOTICE")
_LARGEST_BUFFER: Final = 1 << 30  # bytes
_log = logging.getLogger(__name__)


@pydantic.with_config(STRICT)
class _Buffer(TypedDict):
    dtype: str
    shape: list[Width]
    data: str


_FILES: Final = pydantic.TypeAdapter(dict[str, str], config=STRICT)
_BUFFERS: Final = pydantic.TypeAdapter(dict[str, _Buffer])


def side_files(
    folder: str | os.PathLike[str], *, own: frozenset[str], weights: frozenset[str]
) -> dict[str, bytes]:
    """The files of a checkpoint folder that are copied as they are.

    Args:
        folder: the checkpoint.
        own: names that an export writes itself.
        weights: names of the weight files.
    """
    return {
        path.name: path.read_bytes()
        for path in sorted(pathlib.Path(folder).iterdir())
        if path.is_file()
        and _travels(path.name)
        and path.name not in own | weights
        and path.stat().st_size <= LARGEST
        and check_link(path)
    }


def _travels(name: str) -> bool:
    path = pathlib.PurePath(name)
    chosen = path.suffix in _SUFFIXES or path.stem in _NAMES
    weights = ("model.safetensors", "pytorch_model.bin", "adapter_")
    return chosen and not name.startswith((".", *weights))


def files_to_json(files: Mapping[str, bytes]) -> dict[str, str]:
    """JSON form of `side_files`."""
    return {name: _pack(content) for name, content in files.items()}


def files_from_json(raw: Any, where: object) -> dict[str, bytes]:
    """Inverse of `files_to_json`; ``where`` is the file for messages.

    Raises:
        CheckpointError: a name is not that of a file that is carried, or a content is damaged or
            too large.
    """
    for name in typed(_FILES, raw, where, field="source.files"):
        plain_name(name, f"{where}: source.files")
        if not _travels(name):
            raise CheckpointError(
                f"{where}: source.files has {shown(name)}, which no checkpoint carries; allowed "
                f"are names that end in {', '.join(_SUFFIXES)}, and {', '.join(_NAMES)}"
            )
    return {
        name: _unpack(text, LARGEST, f"{where}: source.files.{name}") for name, text in raw.items()
    }


def buffers_to_json(buffers: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """JSON form of tensors by name, bit for bit."""
    return {
        name: {
            "dtype": TensorInfo.of(value).dtype,
            "shape": list(value.shape),
            "data": _pack(value.tobytes()),
        }
        for name, value in buffers.items()
    }


def buffers_from_json(raw: Any, where: object) -> dict[str, np.ndarray]:
    """Inverse of `buffers_to_json`; ``where`` is the file for messages.

    Raises:
        CheckpointError: a buffer is not one of the model's, or damaged, or of another size than
            its shape says.
    """
    found: dict[str, np.ndarray] = {}
    for name, value in typed(_BUFFERS, raw, where, field="source.buffers").items():
        field = f"{where}: source.buffers.{name}"
        for what, value_, known in (("name", name, BUFFERS), ("dtype", value["dtype"], DTYPES)):
            if value_ not in known:
                raise CheckpointError(
                    f"{field}: {what} is {shown(value_)}; allowed are {', '.join(known)}"
                )
        info = TensorInfo(value["dtype"], tuple(value["shape"]))
        if info.nbytes > _LARGEST_BUFFER:
            raise CheckpointError(f"{field} has shape {value['shape']}; 1 GiB is allowed")
        content = _unpack(value["data"], info.nbytes, field)
        if len(content) != info.nbytes:
            raise CheckpointError(
                f"{field} holds {len(content)} bytes; its type and shape say {info.nbytes}"
            )
        found[name] = np.frombuffer(content, DTYPES[info.dtype]).reshape(info.shape)
    return found


def _pack(content: bytes) -> str:
    return base64.b64encode(zlib.compress(content)).decode("ascii")


def _unpack(text: str, largest: int, where: str) -> bytes:
    """The content of a packed field, of which at most ``largest`` bytes are unpacked."""
    unpacker = zlib.decompressobj()
    try:
        content = unpacker.decompress(base64.b64decode(text), largest + 1)
    except (ValueError, zlib.error) as error:
        raise CheckpointError(f"{where} cannot be unpacked ({error})") from error
    if len(content) > largest:
        raise CheckpointError(f"{where} unpacks to more than {largest} bytes, which are allowed")
    if not unpacker.eof:
        raise CheckpointError(f"{where} cannot be unpacked (it is cut short)")
    return content


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
    config = lerobot.read_config(folder)
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


_ENCODER: Final = "transformer.action_encoder.fc.weight"  # [domains, (actions + state + time) * M]


def with_state_of_model(files: TensorFiles, config: XVLAConfig) -> TensorFiles:
    """The tensors, with an action encoder that takes a proprio of the action space's width.

    Raises:
        CheckpointError: the state itself is wider, so that no row may go.
        ConfigError: the weights are of another width than LeRobot's config says.
    """
    section = json.loads(config.extra).get(lerobot.SECTION, {})
    dialect = detect_dialect(set(files.info))
    name = dialect.rename(_ENCODER)
    if section.get("max_state_dim") is None or name not in files.info:
        return files
    width, info = action_space(config).width, files.info[name]
    if len(info.shape) != 2:
        return files  # of no model; whoever reads it says so
    stored = info.shape[-1] // config.hidden_size - width - config.dim_time
    if dialect.lerobot and stored != section["max_state_dim"]:
        raise ConfigError(
            f"LeRobot config.json: max_state_dim is {section['max_state_dim']}; in action space "
            f"{config.action_mode!r} these weights take a proprio of width {stored}"
        )
    if stored == width or stored != section["max_state_dim"]:
        return files
    feature = (section.get("input_features") or {}).get("observation.state") or {}
    state = (feature.get("shape") or [stored])[-1]
    if state > width:
        raise CheckpointError(
            f"LeRobot config.json: observation.state has {state} channels and max_state_dim is "
            f"{stored}; X-VLA takes a proprio of the width of its actions, {width}"
        )
    _log.warning(
        "LeRobot's max_state_dim is %d: the action encoder's rows %s, which see only zeros, were "
        "%s; the actions are the same",
        stored,
        f"{width} .. {stored - 1}" if stored > width else f"{stored} .. {width - 1}",
        "cut" if stored > width else "added",
    )
    shape = (info.shape[0], info.shape[1] + (width - stored) * config.hidden_size)
    return _Resized(
        {**files.info, name: dataclasses.replace(info, shape=shape)},
        files.metadata,
        files.places,
        name,
        info,
        (width, stored, config.hidden_size),
    )


@dataclasses.dataclass(frozen=True)
class _Resized(TensorFiles):
    """Tensors of which one is read with other rows than are stored."""

    name: str
    stored: TensorInfo
    sizes: tuple[int, int, int]  # width, stored width, M

    def read(self, name: str) -> np.ndarray:
        if name != self.name:
            return super().read(name)
        width, stored, model = self.sizes
        kernel = TensorFiles({name: self.stored}, {}, self.places).read(name)
        rows = kernel.reshape(len(kernel), -1, model)  # [domains, actions + state + time, M]
        state = rows[:, width : width + stored][:, :width]
        more = np.zeros((len(rows), width - state.shape[1], model), rows.dtype)
        parts = [rows[:, :width], state, more, rows[:, width + stored :]]
        return np.concatenate(parts, axis=1).reshape(len(rows), -1)
