"""The adapter: tensors by path of the parameters, the config that asks for them, a new one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import jax
import numpy as np
from flax.traverse_util import unflatten_dict

from xvla_jax.checkpoints.names import DIALECTS, LAYOUTS, Path
from xvla_jax.checkpoints.peft import ALL_LINEAR, PeftConfig, Slot, form_problems, modules, slots
from xvla_jax.config import XVLAConfig
from xvla_jax.errors import ConfigError

# Modules that X-VLA's LoRA recipe trains in full, by PyTorch name.
RELEASED_MODULES_TO_SAVE: Final = (
    "transformer.soft_prompt_hub",
    "transformer.action_encoder",
    "transformer.action_decoder",
)


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Adapter to train in place of the parameters; the defaults are X-VLA's recipe.

    Attributes:
        rank: columns of A.
        alpha: the pairs are scaled by ``alpha / rank``.
        dropout: only 0: PEFT drops inputs of the pair alone, which merged weights cannot express.
        target_modules: "all-linear", a regular expression over the released module names, or such
            names or their ends.
        modules_to_save: modules that are trained in full, by released name or its end.
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    target_modules: str | tuple[str, ...] = ALL_LINEAR
    modules_to_save: tuple[str, ...] = RELEASED_MODULES_TO_SAVE

    def __post_init__(self) -> None:
        """Refuses a rank below 1, dropout, and names that PEFT cannot match: a ConfigError."""
        if self.rank < 1:
            raise ConfigError(f"config.lora.rank is {self.rank}; 1 or more, or 0 for no adapter")
        if self.dropout:
            raise ConfigError(
                f"config.lora.dropout is {self.dropout}; only 0 is possible, as in X-VLA's recipe: "
                "the adapter is merged into the weights, which have no input of its own to drop"
            )
        named = {"target_modules": self._targets, "modules_to_save": list(self.modules_to_save)}
        if problems := form_problems(named, named):
            raise ConfigError("; ".join(f"config.lora.{problem}" for problem in problems))

    @property
    def _targets(self) -> str | list[str]:
        return (
            self.target_modules if isinstance(self.target_modules, str) else [*self.target_modules]
        )

    def unmatched(self, config: XVLAConfig) -> list[str]:
        """Returns the ``modules_to_save`` that no module of a model ends in, as PEFT takes them."""

        def matches(name: str, known: set[str]) -> bool:
            alone = dataclasses.replace(self, modules_to_save=(name,)).peft()
            return any(alone.saves(module) for module in known)

        known = modules(config, DIALECTS["hf"])
        return [name for name in self.modules_to_save if not matches(name, known)]

    def peft(self, base: str | None = None) -> PeftConfig:
        """Returns the content of ``adapter_config.json``, which names ``base`` for its readers."""
        return PeftConfig(
            {
                "base_model_name_or_path": base,
                "bias": "none",
                "fan_in_fan_out": False,
                "inference_mode": True,
                "init_lora_weights": True,
                "lora_alpha": self.alpha,
                "lora_dropout": self.dropout,
                "modules_to_save": list(self.modules_to_save),
                "peft_type": "LORA",
                "r": self.rank,
                "target_modules": self._targets,
                "task_type": None,
            }
        )


@dataclasses.dataclass(frozen=True)
class Adapter:
    """A change of a model's parameters.

    Attributes:
        tensors: tree of float32 arrays; ``a [..., in, r]`` and ``b [..., r, out]``, stacked like
            their parameter. Layers that are not adapted, and columns beyond a layer's own rank, are
            zero in both, so their gradients are zero too.
        scales: by path of the changed parameter, ``float32[]`` or ``float32[layers, 1, 1]``.
        peft: the adapter's config, with all its fields.
        dialect: of the file's tensor names, a key of ``xvla_jax.checkpoints.names.DIALECTS``.
        dtypes: safetensors' name of the stored type, by name in the file; float32 if absent.
    """

    tensors: dict[str, Any]
    scales: Mapping[Path, np.ndarray]
    peft: PeftConfig
    dialect: str
    dtypes: Mapping[str, str] = dataclasses.field(default_factory=dict, repr=False)


def abstract_adapter(config: XVLAConfig, peft: PeftConfig) -> Adapter:
    """Returns an adapter of a model with shapes in place of tensors.

    Raises:
        CheckpointError: the model has no module that the adapter names.
    """
    table = slots(config, peft, DIALECTS["hf"])
    shapes = {slot.path: jax.ShapeDtypeStruct(slot.leaf_shape, np.float32) for slot in table}
    return Adapter(unflatten_dict(shapes), slot_scales(table), peft, "hf")


def init_adapter(
    params: Mapping[str, Any], config: XVLAConfig, peft: PeftConfig, *, seed: int
) -> Adapter:
    """Returns a new adapter, which changes nothing: A is random, B zero, full leaves are copies.

    A is uniform within ``1 / sqrt(in)``, as in PEFT.

    Args:
        params: of the base.
        config: of the base.
        peft: the adapter's config, from `LoraConfig.peft`.
        seed: of A.

    Raises:
        CheckpointError: the base has no module that the adapter names.
    """
    rng = np.random.default_rng(seed)

    def value(slot: Slot) -> np.ndarray:
        if slot.scale is None:
            return read_slot(params, slot)
        if slot.path[-1] == "b":
            return np.zeros(slot.shape, np.float32)
        bound = float(np.prod(slot.shape[1:])) ** -0.5  # fan in: PyTorch's shape is [out, in]
        return rng.uniform(-bound, bound, slot.shape).astype(np.float32)

    table = slots(config, peft, DIALECTS["hf"])
    return Adapter(fill_slots(table, value), slot_scales(table), peft, "hf")


def fill_slots(table: Iterable[Slot], value: Callable[[Slot], np.ndarray]) -> dict[str, Any]:
    """Builds ``Adapter.tensors`` from the tensors of a file, which ``value`` returns."""
    leaves: dict[Path, np.ndarray] = {}
    for slot in table:
        if slot.path not in leaves:
            leaves[slot.path] = np.zeros(slot.leaf_shape, np.float32)
        view = leaves[slot.path][slot.index]
        view[...] = LAYOUTS[slot.layout].to_jax(value(slot).astype(np.float32), view.shape)
    return unflatten_dict(leaves)


def slot_scales(table: Iterable[Slot]) -> dict[Path, np.ndarray]:
    """Builds ``Adapter.scales``."""
    scales: dict[Path, np.ndarray] = {}
    for slot in table:
        if slot.scale is not None:
            layer = slot.index[0]  # an integer where layers are stacked
            stacked = layer is not ...
            empty = np.zeros((slot.leaf_shape[0], 1, 1) if stacked else (), np.float32)
            scales.setdefault(slot.path[:-1], empty)[layer] = slot.scale
    return scales


def read_slot(tensors: Mapping[str, Any], slot: Slot) -> np.ndarray:
    """Returns the tensor of a slot in the file's layout, in float32."""
    node: Any = tensors
    for key in slot.path:
        node = node[key]
    return LAYOUTS[slot.layout].to_torch(np.asarray(node, dtype=np.float32)[slot.index])
