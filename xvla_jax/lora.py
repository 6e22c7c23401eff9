"""LoRA adapters: low-rank tensors beside the parameters, merged by path.

An adapter's tensors form a tree like the parameters' own. At a changed leaf it holds either a pair
``{"a", "b"}``, for ``W + scale * a @ b``, or the whole new leaf. Its paths begin as the parameters'
do, so the optimizer's path table covers it. `apply_adapter` works inside a jitted step.

On disk an adapter is a PEFT folder (``lora_files``), as X-VLA's are released. A base and an adapter
become one checkpoint by::

    loaded = pretrained.load_checkpoint(base)
    adapter = lora_files.load_adapter(folder, loaded.config)
    params = lora.merge_adapter(loaded.params, adapter)
    pretrained.save_pretrained(target, loaded.config, params, "hf", ...)
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

from xvla_jax.config import XVLAConfig
from xvla_jax.errors import CheckpointError
from xvla_jax.formats.lora_slots import Slot, slots
from xvla_jax.formats.peft import ALL_LINEAR, PeftConfig
from xvla_jax.formats.torch_names import DIALECTS, LAYOUTS, Path

# What X-VLA's LoRA recipe trains as a whole, by PyTorch name.
RELEASED_MODULES_TO_SAVE: Final = (
    "transformer.soft_prompt_hub",
    "transformer.action_encoder",
    "transformer.action_decoder",
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
        dialect: in which the file names its tensors, a key of ``torch_names.DIALECTS``.
        dtypes: safetensors' name of the stored type, by name in the file; float32 if absent.
    """

    tensors: dict[str, Any]
    scales: Mapping[Path, np.ndarray]
    peft: PeftConfig
    dialect: str
    dtypes: Mapping[str, str] = dataclasses.field(default_factory=dict, repr=False)


_product = functools.partial(jnp.matmul, precision="highest")  # TPUs round float32 factors else


def apply_adapter(
    params: Mapping[str, Any],
    tensors: Mapping[str, Any],
    scales: Mapping[Path, Any],
    product: Callable[[Any, Any], Any] = _product,
) -> dict[str, Any]:
    """Parameters with an adapter's tensors in them; the originals stay as they are.

    Args:
        params: the base's parameters; leaves that do not change are passed on, not copied.
        tensors: as in `Adapter`, possibly traced.
        scales: as in `Adapter`.
        product: matrix product with batch axes.

    Raises:
        CheckpointError: the adapter changes a parameter that is not there or has another shape.
    """

    def visit(node: Any, change: Any, path: Path) -> Any:
        where = "/".join(path)
        if not isinstance(node, Mapping):
            pair = isinstance(change, Mapping)
            new = product(scales[path] * change["a"], change["b"]) if pair else change
            if new.shape != node.shape:
                raise CheckpointError(
                    f"the adapter's {where} is {list(new.shape)}, the base's {list(node.shape)}: "
                    "it was trained on another base"
                )
            return node + new if pair else new
        strange = sorted(change.keys() - node.keys())
        if strange:
            raise CheckpointError(
                f"the adapter changes {strange} of {where or 'the model'}, which has "
                f"{sorted(node)}: it was trained on another base"
            )
        return {
            key: visit(child, change[key], (*path, key)) if key in change else child
            for key, child in node.items()
        }

    return visit(params, tensors, ())


def merge_adapter(params: Mapping[str, Any], adapter: Adapter) -> dict[str, Any]:
    """As `apply_adapter`, with numpy arrays on the host: what a merged checkpoint holds."""
    return apply_adapter(params, adapter.tensors, adapter.scales, np.matmul)


def init_adapter(
    params: Mapping[str, Any],
    config: XVLAConfig,
    *,
    seed: int,
    rank: int = 8,
    alpha: float = 16,
    target_modules: str | list[str] = ALL_LINEAR,
    modules_to_save: Iterable[str] = RELEASED_MODULES_TO_SAVE,
    base: str | None = None,
) -> Adapter:
    """A fresh adapter, which changes nothing yet: A is random, B zero, whole tensors are copies.

    The defaults are X-VLA's recipe. A is uniform within ``1 / sqrt(in)``, as PEFT has it.

    Args:
        params: of the base.
        config: of the base.
        seed: of A.
        rank: columns of A.
        alpha: the pairs are scaled by ``alpha / rank``.
        target_modules: "all-linear", a regular expression over the released module names, or a
            list of such names or their ends.
        modules_to_save: modules to be trained whole, by released name or its end.
        base: where the base came from, noted for the reader.

    Raises:
        CheckpointError: the base has nothing of what is asked for.
    """
    saved = list(modules_to_save)
    peft = PeftConfig(
        {
            "base_model_name_or_path": base,
            "bias": "none",
            "fan_in_fan_out": False,
            "inference_mode": True,
            "init_lora_weights": True,
            "lora_alpha": alpha,
            "lora_dropout": 0.0,
            "modules_to_save": saved,
            "peft_type": "LORA",
            "r": rank,
            "target_modules": target_modules,
            "task_type": None,
        }
    )
    rng = np.random.default_rng(seed)

    def value(slot: Slot) -> np.ndarray:
        if slot.scale is None:
            return read_slot(params, slot)
        if slot.path[-1] == "b":
            return np.zeros(slot.shape, np.float32)
        bound = float(np.prod(slot.shape[1:])) ** -0.5  # fan in
        return rng.uniform(-bound, bound, slot.shape).astype(np.float32)

    tensors, scales = fill_slots(slots(config, peft, DIALECTS["hf"]), value)
    return Adapter(tensors, scales, peft, "hf")


def fill_slots(
    table: Iterable[Slot], value: Callable[[Slot], np.ndarray]
) -> tuple[dict[str, Any], dict[Path, np.ndarray]]:
    """``Adapter.tensors`` and ``Adapter.scales`` from the tensors of a file, given by ``value``."""
    leaves: dict[Path, np.ndarray] = {}
    scales: dict[Path, np.ndarray] = {}
    for slot in table:
        if slot.path not in leaves:
            leaves[slot.path] = np.zeros(slot.leaf_shape, np.float32)
        view = leaves[slot.path][slot.index]
        view[...] = LAYOUTS[slot.layout].to_jax(value(slot).astype(np.float32), view.shape)
        if slot.scale is not None:
            layer = slot.index[0]  # an integer where layers are stacked
            stacked = layer is not ...
            empty = np.zeros((slot.leaf_shape[0], 1, 1) if stacked else (), np.float32)
            scales.setdefault(slot.path[:-1], empty)[layer] = slot.scale
    return unflatten_dict(leaves), scales


def read_slot(tensors: Mapping[str, Any], slot: Slot) -> np.ndarray:
    """The tensor of a slot as the file holds it, but in float32."""
    node: Any = tensors
    for key in slot.path:
        node = node[key]
    return LAYOUTS[slot.layout].to_torch(np.asarray(node, dtype=np.float32)[slot.index])
