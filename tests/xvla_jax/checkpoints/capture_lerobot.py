"""Makes the outputs in tests/fixtures/lerobot/VERSION with LeRobot itself.

    python -m tests.xvla_jax.checkpoints.capture_lerobot VERSION PYTHON

PYTHON has lerobot of that VERSION. Two kinds: folders that LeRobot saves (``lerobot_cases.SAVED``)
and our exports, each from raw observations through LeRobot's own preprocessing.
"""

from __future__ import annotations

import json
import pathlib
import shutil
import subprocess
import sys
import tempfile
from typing import Any

import numpy as np

from scripts.equivalence.torch_process import TorchOptions, TorchReference
from tests.xvla_jax.checkpoints import lerobot_cases as cases
from tests.xvla_jax.checkpoints import lerobot_exports as exports
from xvla_jax.checkpoints.safetensors_files import TensorFiles
from xvla_jax.processor import Processor


def _raw(
    folder: pathlib.Path, python: str, tokenizer: pathlib.Path, arrays: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    with TorchReference(folder, TorchOptions("lerobot", python=python)) as reference:
        return reference.raw(arrays, cases.TASKS, tokenizer=tokenizer)


def _save(name: str, shape: pathlib.Path, python: str, scratch: pathlib.Path) -> None:
    saved, out = cases.SAVED[name], scratch / name
    module = "tests.xvla_jax.checkpoints.lerobot_saves"
    subprocess.run([python, "-m", module, name, shape, out, scratch], check=True)
    width = json.loads(shape.read_text())["max_action_dim"]
    arrays = cases.observations(saved.size, saved.state, width)
    outputs = _raw(out, python, scratch, arrays)
    target = cases.FOLDER / saved.lerobot / name
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for path in out.iterdir():
        if path.name.startswith("policy_") or path.name == "config.json":
            shutil.copy(path, target)
    info = TensorFiles.open(out).info
    shapes = {name: value.shape for name, value in info.items() if not cases.is_buffer(name)}
    (target / "tensors.json").write_text(json.dumps(shapes, separators=(",", ":")) + "\n")
    np.savez_compressed(target / "outputs.npz", **_kept(outputs))


def _kept(outputs: dict[str, np.ndarray]) -> dict[str, Any]:
    return {name: value for name, value in outputs.items() if name != "image_mask"}


def main(version: str, python: str) -> None:
    """Captures what is of this version."""
    with tempfile.TemporaryDirectory() as folder:
        scratch = pathlib.Path(folder)
        Processor().write(scratch)
        shape = scratch / "shape.json"
        shape.write_text(json.dumps(exports.config("auto").to_dict()))
        for name, saved in cases.SAVED.items():
            if saved.lerobot == version:
                _save(name, shape, python, scratch)
        actions: dict[str, Any] = {}
        pixels: dict[str, Any] = {}
        for mode, resize in exports.EXPORTS:
            place = exports.write(scratch / f"{mode}-{resize}", mode, resize)
            arrays = exports.observations(mode)
            actions[f"{mode}/{resize}"] = _raw(place, python, scratch, arrays)["robot_actions"]
        for resize in ("pad", "linear"):
            place = scratch / f"ee6d-{resize}"
            for size in cases.SIZES:
                arrays = cases.observations(size, 20, 20)
                pixels = _raw(place, python, scratch, arrays)["pixel_values"][1, 0]
                pixels[f"{resize}/{size[0]}x{size[1]}"] = pixels
        np.savez_compressed(cases.FOLDER / version / "export_actions.npz", **actions)
        np.savez_compressed(cases.FOLDER / version / "pixels.npz", **pixels)


if __name__ == "__main__":
    main(*sys.argv[1:])
