"""Acts with an exported policy; takes this folder, JAX, NumPy and flatbuffers (of jax.export).

::

    from policy import ExportedPolicy

    policy = ExportedPolicy(".")
    observation = {
        "images": [front, wrist],  # uint8[S, S, 3] RGB, main camera first
        "instruction": "put the cube onto the plate",
        "proprio": state,  # float32[D]
        "domain_id": "so101",  # or its number
    }
    actions = policy.act([observation], seed=0)  # float32[1, T, D]

Files: ``program.bin`` (StableHLO, as ``jax.export`` serialises it, for the platforms that the
manifest names), ``weights.safetensors``, ``action_contract.json`` (what the numbers mean),
``processor.json`` (what images and text were in training) and ``manifest.json``, with the SHA-256
of all others. They report a damaged or exchanged file, not its author: a program computes whatever
its author chose, so run those of people you trust.
"""

from __future__ import annotations

import hashlib
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

FORMAT: Final = 1
MANIFEST: Final = "manifest.json"
PROGRAM: Final = "program.bin"
WEIGHTS: Final = "weights.safetensors"
CONTRACT: Final = "action_contract.json"
PROCESSOR: Final = "processor.json"
_DTYPES: Final = {
    "F32": np.dtype(np.float32),
    "BF16": np.dtype(jnp.bfloat16),
    "I8": np.dtype(np.int8),
}
_CHUNK: Final = 1 << 24  # bytes that are hashed at a time


class ExportedError(ValueError):
    """A folder that cannot be used, or an observation that does not fit; the message says why."""


class ExportedPolicy:
    """A policy from a folder of an exported program.

    The result of an observation depends on it, its seed and the number of steps alone.

    Args:
        folder: as `write_program` of xvla_jax writes it.
        platform: ``cpu``, ``cuda`` or ``tpu``, of the first device of JAX by default.

    Attributes:
        manifest: content of ``manifest.json``.
        contracts: content of ``action_contract.json``.

    Raises:
        ExportedError: a file is missing, was changed, or is for other platforms.
    """

    def __init__(self, folder: str, *, platform: str | None = None) -> None:
        path = pathlib.Path(folder)
        self.manifest = read_manifest(path)
        self.contracts = json.loads((path / CONTRACT).read_text())
        self._processor = json.loads((path / PROCESSOR).read_text())
        device = jax.devices(platform)[0]
        exported = export.deserialize(bytearray((path / PROGRAM).read_bytes()))
        kind = "cuda" if device.platform == "gpu" else str(device.platform)
        if kind not in exported.platforms:
            raise ExportedError(
                f"{path / PROGRAM} is for {', '.join(exported.platforms)}; the device is {kind}. "
                f"Export again with --platforms={','.join((*exported.platforms, kind))}"
            )
        with jax.default_device(device):
            self._params = jax.device_put(read_weights(path / WEIGHTS), device)
            shapes = jax.tree.map(
                lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), self._inputs([])
            )
            self._program = jax.jit(exported.call).lower(self._params, shapes).compile()

    def act(
        self, observations: Sequence[Mapping[str, Any]], *, steps: int | None = None, seed: Any = 0
    ) -> np.ndarray:
        """Returns chunks ``float32[B, T, d]`` in the robot's units.

        Args:
            observations: at least one, at most the manifest's ``batch``.
            steps: denoising steps; the manifest's by default.
            seed: of the noise, one for all or one for each observation.

        Raises:
            ExportedError: an observation does not fit; the message names it and the field.
        """
        count = len(observations)
        steps = int(self.manifest["steps"] if steps is None else steps)
        if not 1 <= count <= self.manifest["batch"]:
            raise ExportedError(
                f"{count} observations; 1 .. {self.manifest['batch']}, the batch of the program"
            )
        if steps < 1:
            raise ExportedError(f"steps is {steps}; at least 1 is needed")
        prepared = [self._prepare(o, f"observation {i}: ") for i, o in enumerate(observations)]
        inputs = self._inputs([one for one, _ in prepared])
        inputs["seed"][:count] = seed
        inputs["steps"][:] = steps
        if count < self.manifest["batch"]:  # the rest repeats the first
            for rows in inputs.values():
                rows[count:] = rows[0]
        actions = np.asarray(self._program(self._params, inputs))[:count]
        actions = _unscale(actions, self.manifest["scaling"]["action"])
        for row, (_, held) in zip(actions, prepared, strict=True):
            for channel, value in held.items():
                row[:, channel] = value
        return actions

    def _inputs(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
        """Returns the program's inputs, with zeros behind the given rows."""
        inputs = {
            name: np.zeros(entry["shape"], entry["dtype"])
            for name, entry in self.manifest["inputs"].items()
        }
        for i, row in enumerate(rows):
            for name, value in row.items():
                inputs[name][i] = value
        return inputs

    def _prepare(
        self, observation: Mapping[str, Any], who: str
    ) -> tuple[dict[str, Any], dict[int, float]]:
        """Returns the inputs of an observation, and channels that its actions hold."""
        domain = self.manifest["domains"].get(observation["domain_id"], observation["domain_id"])
        if domain not in self.manifest["domains"].values():
            known = ", ".join(f"{name} ({i})" for name, i in self.manifest["domains"].items())
            raise ExportedError(f"{who}domain_id is {domain!r}; allowed are {known}")
        images = self._images(observation["images"], who)
        proprio, width = np.asarray(observation["proprio"], np.float32), self.manifest["width"]
        widths = self.manifest["proprio_widths"]
        if proprio.ndim != 1 or len(proprio) not in widths or not np.isfinite(proprio).all():
            raise ExportedError(
                f"{who}proprio has shape {proprio.shape}; {' or '.join(map(str, widths))} finite "
                "numbers are expected"
            )
        unrecorded = self.manifest["unrecorded"].get(str(domain), {"hidden": [], "held": []})
        held = dict.fromkeys(unrecorded["hidden"], 0.0)
        held |= {i: float(proprio[i]) for i in unrecorded["held"] if i < len(proprio)}
        proprio = _scale(proprio, self.manifest["scaling"]["state"])
        row = {
            "images": images,
            "view_mask": np.arange(self._processor["num_views"]) < len(observation["images"]),
            "input_ids": self._ids(observation, who),
            "proprio": np.pad(proprio, (0, width - len(proprio))),
            "domain_id": domain,
        }
        if "channel_mask" in self.manifest["inputs"]:
            row["channel_mask"] = ~np.isin(np.arange(width), unrecorded["hidden"])
        real = self.manifest["real_width"]
        return row, {i: value for i, value in held.items() if i < real}

    def _images(self, images: Sequence[Any], who: str) -> np.ndarray:
        side, most = self._processor["image_size"], self.manifest["views"]
        if not 1 <= len(images) <= most:
            raise ExportedError(f"{who}{len(images)} images; 1 .. {most} are allowed")
        entry = self.manifest["inputs"]["images"]
        out = np.zeros(entry["shape"][1:], entry["dtype"])
        for slot, image in enumerate(map(np.asarray, images)):
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
                raise ExportedError(
                    f"{who}image {slot} is {image.dtype}{list(image.shape)}; uint8[H, W, 3] RGB "
                    "is expected"
                )
            out[slot] = image if image.shape[:2] == (side, side) else self._stretch(image, who)
        return out

    def _stretch(self, image: np.ndarray, who: str) -> np.ndarray:
        """Resizes as training did, by Pillow, where that is how training did it."""
        side, way = self._processor["image_size"], self._processor["resize"]
        if way != "stretch":
            raise ExportedError(
                f"{who}an image is {image.shape[0]} x {image.shape[1]} px and the policy takes "
                f"{side} x {side}; resize it by {way!r} of processor.json, as training did"
            )
        try:
            from PIL import Image
        except ImportError as error:
            raise ExportedError(
                f"{who}an image is {image.shape[0]} x {image.shape[1]} px and the policy takes "
                f"{side} x {side}; install Pillow, whose filter {self._processor['resample']} "
                "training resized with"
            ) from error
        filter_ = Image.Resampling(self._processor["resample"])
        return np.asarray(Image.fromarray(image).resize((side, side), filter_))

    def _ids(self, observation: Mapping[str, Any], who: str) -> np.ndarray:
        """Returns the tokens of an instruction that was exported, or those that were given."""
        length = self._processor["text_length"]
        if "input_ids" in observation:
            ids = np.asarray(observation["input_ids"], np.int32)
            if ids.shape != (length,):
                raise ExportedError(f"{who}input_ids has shape {ids.shape}; ({length},) is needed")
            return ids
        text, known = observation["instruction"], self.manifest["instructions"]
        if text not in known:
            raise ExportedError(
                f"{who}instruction is {text!r}; exported are {', '.join(map(repr, known))}. Export "
                "again with another --instruction, or give its tokens as input_ids"
            )
        return np.asarray(known[text], np.int32)


def read_manifest(folder: pathlib.Path) -> dict[str, Any]:
    """Reads the manifest of a folder and compares all files with it.

    Raises:
        ExportedError: names the file that is missing or was changed.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text())
        sealed = manifest["seal"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ExportedError(f"{path} cannot be read as a manifest: {error}") from error
    if seal_of(manifest) != sealed:
        raise ExportedError(f"{path} was changed: its content does not have its seal {sealed}")
    if manifest["format"] != FORMAT:
        raise ExportedError(f"{path} has format {manifest['format']}; this file reads {FORMAT}")
    for name, expected in manifest["files"].items():
        try:
            digest = file_hash(folder / name)
        except OSError as error:
            raise ExportedError(f"{folder / name} cannot be read: {error}") from error
        if digest != expected:
            raise ExportedError(
                f"{folder / name} was changed: its SHA-256 is {digest}, the manifest has {expected}"
            )
    return manifest


def seal_of(manifest: Mapping[str, Any]) -> str:
    """Returns the SHA-256 of a manifest without its seal."""
    content = {name: value for name, value in manifest.items() if name != "seal"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def file_hash(path: pathlib.Path) -> str:
    """Returns the SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(_CHUNK):
            digest.update(part)
    return digest.hexdigest()


def read_weights(path: pathlib.Path) -> dict[str, Any]:
    """Reads a safetensors file as a tree; ``a/b`` is ``b`` in ``a``.

    Arrays are mapped from the file, so the host holds each once at most.

    Raises:
        ExportedError: a tensor lies outside the file or has another size than its shape.
    """
    data = np.memmap(path, np.uint8, "r")
    length = int.from_bytes(data[:8].tobytes(), "little")
    header = json.loads(data[8 : 8 + length].tobytes())
    tree: dict[str, Any] = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        begin, end = (8 + length + offset for offset in entry["data_offsets"])
        dtype, shape = _DTYPES[entry["dtype"]], tuple(entry["shape"])
        if end > len(data) or end - begin != dtype.itemsize * math.prod(shape):
            raise ExportedError(f"{path}: tensor {name} does not fit its place in the file")
        *parents, last = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = data[begin:end].view(dtype).reshape(shape)
    return tree


def _scale(values: np.ndarray, scaling: Mapping[str, Any] | None) -> np.ndarray:
    """Returns a robot's numbers in the network's units; None changes nothing."""
    if scaling is None:
        return values
    low, divide, _, ranged = _parts(scaling)
    out = values.copy()
    real = (values[..., : len(low)] - low) / divide
    out[..., : len(low)] = 2 * real - 1 if ranged else real
    return out


def _unscale(values: np.ndarray, scaling: Mapping[str, Any] | None) -> np.ndarray:
    out = np.array(values, np.float32)
    if scaling is not None:
        low, _, multiply, ranged = _parts(scaling)
        real = out[..., : len(low)]
        out[..., : len(low)] = ((real + 1) / 2 if ranged else real) * multiply + low
    return out


def _parts(scaling: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray, bool]:
    low, divide, multiply = (
        np.asarray(scaling[name], np.float32) for name in ("low", "divide", "multiply")
    )
    return low, divide, multiply, scaling["ranged"]
