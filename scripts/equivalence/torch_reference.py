"""X-VLA in PyTorch as a program of its own: stage outputs and timings to compare with.

It needs torch, transformers, einops and safetensors, but neither JAX nor xvla_jax. It runs the code
of the package that ``--package`` names, a folder that holds ``models/`` or lerobot (0.4.4, 0.6.1),
on a checkpoint in the released (``hf``) layout, or with lerobot in one of LeRobot's. From the root
of this repository:

    PYTHON -m scripts.equivalence.torch_reference --checkpoint=FOLDER --package=FOLDER|lerobot
        [--dtype=float32|bfloat16] [--threads=N] [--device=cpu|cuda]

Once the model is loaded it writes a line: {"torch", "package", "threads", "dtype", "device",
"import_seconds", "load_seconds"}. Then it answers every line on stdin by one on stdout until stdin
ends, all of them JSON. ``torch_process.py`` is the other end.

    {"command": "stages", "inputs": NPZ, "outputs": NPZ, "steps": 10}
        inputs: pixel_values f32[B,V,3,S,S], image_mask bool[B,V], input_ids int[B,L],
        domain_id int[B], proprio f32[B,D], sample_noise and head_action f32[B,T,D], head_t f32[B];
        outputs: float32 arrays under the names in ``STAGES``. Answer: {"seconds": s}
    {"command": "time", "batch": 1, "views": 3, "present": 3, "image_size": 224, "text_length": 50,
     "steps": 10, "warmup": 1, "repeat": 5, "parts": ["actions", "encode"]}
        present: number of filled view slots; parts: names in ``PARTS``.
        Answer: {"seconds": {part: [s of each call]}, "peak_rss_bytes": n}
    {"command": "raw", "inputs": NPZ, "outputs": NPZ, "tasks": [...], "tokenizer": FOLDER}
        raw observations through LeRobot's own preprocessing, policy and postprocessing; the
        checkpoint is in a layout of LeRobot's. ``torch_lerobot.py`` describes the arrays.

A request that cannot be served ends the program with a message on stderr.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import pathlib
import re
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any
from unittest import mock

import numpy as np

from scripts.equivalence.torch_lerobot import raw_outputs
from scripts.equivalence.torch_packages import (
    chunk_shape,
    image_features,
    import_torch,
    load_model,
    require,
)

STAGES = ("image_features_valid", "vlm_features", "aux_visual_inputs", "head_output", "actions")


def _encode(model: Any, x: Mapping[str, Any]) -> dict[str, Any]:
    return model.forward_vlm(
        input_ids=x["input_ids"], pixel_values=x["pixel_values"], image_mask=x["image_mask"]
    )


def _image_features(model: Any, x: Mapping[str, Any]) -> Any:
    return image_features(model, x["pixel_values"].flatten(0, 1)[x["image_mask"].flatten()])


def _head_step(model: Any, x: Mapping[str, Any], context: Mapping[str, Any]) -> Any:
    return model.transformer(
        domain_id=x["domain_id"],
        action_with_noise=x["head_action"],
        t=x["head_t"],
        proprio=x["proprio"],
        **context,
    )


def _actions(model: Any, x: Mapping[str, Any], steps: int) -> Any:
    return model.generate_actions(
        input_ids=x["input_ids"],
        image_input=x["pixel_values"],
        image_mask=x["image_mask"],
        domain_id=x["domain_id"],
        proprio=x["proprio"],
        steps=steps,
    )


# parts that can be timed -> call of (model, inputs, context, steps)
PARTS: Mapping[str, Callable[[Any, Mapping[str, Any], Mapping[str, Any], int], Any]] = {
    "actions": lambda model, x, _, steps: _actions(model, x, steps),
    "encode": lambda model, x, *_: _encode(model, x),
    "image_features": lambda model, x, *_: _image_features(model, x),
    "head_step": lambda model, x, context, _: _head_step(model, x, context),
}


def _on_device(model: Any, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Moves inputs to the model's device, floats in its type."""
    torch = importlib.import_module("torch")
    like = next(model.parameters())
    tensors = {k: torch.as_tensor(v).to(like.device) for k, v in arrays.items()}
    return {k: v.to(like.dtype) if v.is_floating_point() else v for k, v in tensors.items()}


def stages(model: Any, request: Mapping[str, Any]) -> dict[str, Any]:
    """Writes the outputs of every stage, float32; the sampler starts from ``sample_noise``."""
    torch = importlib.import_module("torch")
    with np.load(request["inputs"]) as arrays:
        x = _on_device(model, arrays)
    noise = x["sample_noise"]

    def fixed_noise(*shape: int, **_: Any) -> Any:
        if shape != tuple(noise.shape):
            raise SystemExit(f"the sampler draws {shape}; sample_noise is {tuple(noise.shape)}")
        return noise

    start = time.perf_counter()
    context = _encode(model, x)
    outputs = {
        "image_features_valid": _image_features(model, x),
        **context,
        "head_output": _head_step(model, x, context),
    }
    with mock.patch.object(torch, "randn", fixed_noise):
        outputs["actions"] = _actions(model, x, request["steps"])
    seconds = time.perf_counter() - start
    np.savez(request["outputs"], **{name: outputs[name].float().cpu().numpy() for name in STAGES})
    return {"seconds": seconds}


def measure(model: Any, request: Mapping[str, Any]) -> dict[str, Any]:
    """Times each call of the requested parts, on random inputs."""
    torch = importlib.import_module("torch")
    b, v, side = request["batch"], request["views"], request["image_size"]
    chunk, width = chunk_shape(model)
    rng = np.random.default_rng(0)
    floats = {
        "pixel_values": (b, v, 3, side, side),
        "proprio": (b, width),
        "head_action": (b, chunk, width),
    }
    x = _on_device(
        model,
        {name: rng.normal(size=shape).astype(np.float32) for name, shape in floats.items()}
        | {
            "image_mask": np.tile(np.arange(v) < request["present"], (b, 1)),
            "input_ids": rng.integers(3, 50, (b, request["text_length"])),
            "domain_id": np.zeros(b, np.int64),
            "head_t": np.ones(b, np.float32),
        },
    )
    context = _encode(model, x)
    wait = torch.cuda.synchronize if x["proprio"].is_cuda else lambda: None
    seconds: dict[str, list[float]] = {}
    for part in request["parts"]:
        seconds[part] = []
        for call in range(request["warmup"] + request["repeat"]):
            start = time.perf_counter()
            PARTS[part](model, x, context, request["steps"])
            wait()
            if call >= request["warmup"]:
                seconds[part].append(time.perf_counter() - start)
    return {"seconds": seconds, "peak_rss_bytes": _peak_rss()}


def raw(_: Any, request: Mapping[str, Any]) -> dict[str, Any]:
    """Writes LeRobot's outputs for raw observations."""
    start = time.perf_counter()
    with np.load(request["inputs"]) as arrays:
        outputs: dict[str, Any] = raw_outputs(
            request["folder"], request["tokenizer"], dict(arrays), request["tasks"]
        )
    np.savez(request["outputs"], **outputs)
    return {"seconds": time.perf_counter() - start}


COMMANDS: Mapping[str, Callable[[Any, Mapping[str, Any]], dict[str, Any]]] = {
    "stages": stages,
    "time": measure,
    "raw": raw,
}


def _peak_rss() -> int | None:
    """Returns the peak memory in bytes; None if the system does not report it."""
    # not getrusage, which counts the memory of the parent before exec too
    status = pathlib.Path("/proc/self/status")
    match = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.is_file() else None
    return int(match[1]) * 1024 if match else None


def main() -> None:
    """Loads the model, then answers until stdin ends."""
    parser = argparse.ArgumentParser(description="X-VLA in PyTorch; see the top of this file.")
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--package", required=True)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--threads", type=int, default=0, help="0 leaves PyTorch's own choice")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    # libraries print too, but only answers may reach the real stdout
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def answer(value: Mapping[str, Any]) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    start = time.perf_counter()
    require(options.package)
    torch = import_torch()
    torch.set_num_threads(options.threads or torch.get_num_threads())
    imported = time.perf_counter()
    folder = pathlib.Path(options.checkpoint)
    model = load_model(folder, options.package, options.dtype, options.device)
    answer(
        {
            "torch": torch.__version__,
            "package": type(model).__module__,
            "threads": torch.get_num_threads(),
            "dtype": options.dtype,
            "device": options.device,
            "import_seconds": imported - start,
            "load_seconds": time.perf_counter() - imported,
        }
    )
    with torch.inference_mode():
        for line in sys.stdin:
            request = json.loads(line)
            request = {"folder": str(folder), **request}
            answer(COMMANDS[request["command"]](model, request))


if __name__ == "__main__":
    main()
