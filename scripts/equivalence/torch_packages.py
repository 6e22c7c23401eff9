"""The two PyTorch packages that hold X-VLA, each turned into a model with a checkpoint's weights.

A part of ``torch_reference.py``: it runs where torch is installed, and imports nothing of this
repository but the other parts of that program.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import json
import pathlib
import sys
import types
from collections.abc import Mapping
from typing import Any

from scripts.equivalence import torch_lerobot

LEROBOT = "lerobot"  # any other package is a folder with models/ of the original code
NEEDED = ("torch", "transformers", "einops", "safetensors")
_TIED = "encoder.embed_tokens.weight"  # the same tensor as shared.weight

# Packages that the two import and inference does not need: stubs if they are not installed. The few
# names in them that matter get an equivalent of torch. Drop path does nothing in inference.
_OPTIONAL = ("timm", "torchvision", "fastapi", "uvicorn", "json_numpy", "cv2")
_STAND_INS = {
    ("timm.layers", "DropPath"): ("torch.nn", "Identity"),
    ("timm.layers", "trunc_normal_"): ("torch.nn.init", "trunc_normal_"),
}


class _Stub(types.ModuleType):
    """A module in which every public name is an empty class, except for the stand-ins."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if (self.__name__, name) in _STAND_INS:
            module, attribute = _STAND_INS[self.__name__, name]
            return getattr(importlib.import_module(module), attribute)
        return type(name, (), {})


class _StubFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finder at the end of ``sys.meta_path``, which gets the names that are not installed."""

    def find_spec(self, fullname: str, *_: Any) -> importlib.machinery.ModuleSpec | None:
        if fullname.split(".")[0] not in _OPTIONAL:
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return _Stub(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        """Does nothing: a stub has no code."""


def require(package: str) -> None:
    """Checks that everything needed is installed, without importing it.

    Raises:
        SystemExit: something is missing; the message says what to do.
    """
    needed = (*NEEDED, LEROBOT) if package == LEROBOT else NEEDED
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise SystemExit(
            f"{sys.executable} has no {', '.join(missing)}. Name a Python that has "
            f"(--torch_python), or install there: pip install {' '.join(missing)}"
        )
    if package != LEROBOT and not pathlib.Path(package, "models", "modeling_xvla.py").is_file():
        raise SystemExit(
            f"{package} has no models/modeling_xvla.py; the package is {LEROBOT!r}, or the folder "
            "of the original code"
        )


def import_torch() -> Any:
    """Imports torch, and installs the stubs for packages that inference does not need."""
    torch = importlib.import_module("torch")
    importlib.import_module("transformers")  # before the stubs: it checks which packages exist
    sys.meta_path.append(_StubFinder())
    return torch


def load_model(folder: pathlib.Path, package: str, dtype: str, device: str) -> Any:
    """Loads the model of a checkpoint, in evaluation mode.

    The checkpoint is in the released layout, or with lerobot in one of its own, which LeRobot
    itself then loads.
    """
    torch = importlib.import_module("torch")
    raw = json.loads((folder / "config.json").read_text())
    if package == LEROBOT and "model_type" not in raw:
        model = torch_lerobot.load_policy(str(folder)).model
        return model.to(device=device, dtype=getattr(torch, dtype)).eval()
    state = importlib.import_module("safetensors.torch").load_file(folder / "model.safetensors")
    if package == LEROBOT:
        width = state["transformer.action_decoder.bias.weight"].shape[1]
        model, state = _build_lerobot(raw, width, dtype, state)
    else:
        model = _build_original(package, raw)
    missing, surplus = model.load_state_dict(state, strict=False)
    if any(not name.endswith(_TIED) for name in missing) or surplus:
        raise SystemExit(
            f"{folder}: the weights are not those of {package}; missing {sorted(missing)[:5]}, "
            f"surplus {sorted(surplus)[:5]}"
        )
    text = model.vlm.language_model
    text = getattr(text, "model", text)  # lerobot 0.5 and later has transformers' own Florence-2
    text.encoder.embed_tokens.weight = text.shared.weight
    return model.to(device=device, dtype=getattr(torch, dtype)).eval()


def image_features(model: Any, images: Any) -> Any:
    """Returns the tokens of images, by the method that the package has."""
    if hasattr(model.vlm, "_encode_image"):
        return model.vlm._encode_image(images)
    return model.vlm.get_image_features(images).pooler_output


def chunk_shape(model: Any) -> tuple[int, int]:
    """Returns rows and channels of the chunk; the two packages name the first differently."""
    rows = model.num_actions if hasattr(model, "num_actions") else model.chunk_size
    return rows, model.action_space.dim_action


def _build_original(package: str, raw: Mapping[str, Any]) -> Any:
    sys.path.insert(0, package)
    config = importlib.import_module("models.configuration_xvla").XVLAConfig(**raw)
    return importlib.import_module("models.modeling_xvla").XVLA(config)


def _build_lerobot(
    raw: Mapping[str, Any], width: int, dtype: str, state: Mapping[str, Any]
) -> tuple[Any, Mapping[str, Any]]:
    """Builds the model alone, without importing other policies; returns it and its tensors."""
    root = pathlib.Path(importlib.import_module(LEROBOT).__path__[0])
    # The __init__ of these two import every policy; empty packages in their places do not.
    for name in ("lerobot.policies", "lerobot.policies.xvla"):
        module = types.ModuleType(name)
        module.__path__ = [str(root.joinpath(*name.split(".")[1:]))]
        sys.modules[name] = module
    modeling = importlib.import_module("lerobot.policies.xvla.modeling_xvla")
    features = importlib.import_module("lerobot.configs.types")
    remap = getattr(modeling, "_remap_vendored_florence_state_dict", None)  # since 0.5
    if remap:
        renamed = remap({f"model.{name}": value for name, value in state.items()})
        state = {name.removeprefix("model."): value for name, value in renamed.items()}
    names = {field.name for field in dataclasses.fields(modeling.XVLAConfig)}
    known = {name: value for name, value in raw.items() if name in names}
    real = raw.get("real_action_dim", width) if raw["action_mode"].lower() == "auto" else width
    action = features.PolicyFeature(type=features.FeatureType.ACTION, shape=(real,))
    known |= {
        "chunk_size": raw["num_actions"],
        "n_action_steps": raw["num_actions"],
        "output_features": {"action": action},
        "dtype": dtype,
        "device": "cpu",
    }
    config = modeling.XVLAConfig(**known)
    return modeling.XVLAModel(config, config.get_florence_config(), width), state
