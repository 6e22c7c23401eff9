"""LoRA adapters: low-rank tensors beside the parameters, by path.

An adapter's tensors form a tree like the parameters' own. At a changed leaf it holds either a pair
``{"a", "b"}``, for ``W + scale * a @ b``, or a new leaf. Its paths begin with the parameters'
paths, so the optimizer's path table covers it. On disk an adapter is a PEFT folder, as X-VLA's are
released, or the steps of a LoRA run (see ``xvla_jax/pretrained.py``).

* ``adapter``: the adapter, the config that asks for one, and a new one,
* ``merging``: a base with an adapter, as parameters: on devices, on the host, and to train,
* ``files``: folders that PEFT writes and reads.
"""

from xvla_jax.lora.adapter import (
    Adapter,
    LoraConfig,
    abstract_adapter,
    init_adapter,
)
from xvla_jax.lora.files import (
    ADAPTER_WEIGHTS_NAME,
    adapter_delay,
    adapter_space,
    load_adapter,
    save_adapter,
)
from xvla_jax.lora.merging import MERGE_SCOPE, adapted_params, apply_adapter, merge_adapter

__all__ = [
    "ADAPTER_WEIGHTS_NAME",
    "MERGE_SCOPE",
    "Adapter",
    "LoraConfig",
    "abstract_adapter",
    "adapted_params",
    "adapter_delay",
    "adapter_space",
    "apply_adapter",
    "init_adapter",
    "load_adapter",
    "merge_adapter",
    "save_adapter",
]
