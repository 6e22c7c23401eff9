"""Steps of a LoRA run: the adapter's tensors alone, and which base they change.

The ``params`` item of such a step holds the adapter's tensors, a few MB. The ``model`` item has a
section ``adapter``: PEFT's config, the base's folder, and a digest of the base's parameters, which
does not depend on their layout.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any, Final

from xvla_jax.checkpoints.fingerprints import params_digest
from xvla_jax.checkpoints.orbax import load_params
from xvla_jax.checkpoints.peft import PeftConfig
from xvla_jax.config import XVLAConfig
from xvla_jax.errors import CheckpointError
from xvla_jax.formats.lora_files import save_adapter
from xvla_jax.lora import Adapter, abstract_adapter, merge_adapter
from xvla_jax.training import checkpointer

ADAPTER: Final = "adapter"  # section of the model item
_RELABELLED: Final = "relabelled"  # in it, where the base has another action space
PEFT: Final = "peft"  # the layout of an adapter's folder
_HOW_TO_MERGE: Final = (
    "python -m scripts.convert_checkpoint RUN ADAPTER --layout=peft writes the adapter alone; "
    "python -m scripts.convert_checkpoint BASE DST --layout=hf --adapter=ADAPTER merges it"
)


def adapter_section(
    peft: PeftConfig, base: str | os.PathLike[str], digest: str, *, relabelled: bool = False
) -> dict[str, Any]:
    """Returns what the ``model`` item of a LoRA run says.

    Args:
        peft: the adapter's config.
        base: folder of the base.
        digest: `params_digest` of the base.
        relabelled: the run has another action space than the base.
    """
    folder = str(pathlib.Path(base).resolve())
    section: dict[str, Any] = {"peft": dict(peft.raw), "base": folder, "base_sha256": digest}
    return section | ({_RELABELLED: True} if relabelled else {})


def is_lora_run(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder is the workdir of a LoRA run, or one of its steps."""
    step = checkpointer.find_step(folder)
    return step is not None and ADAPTER in checkpointer.read_model(step)


def read_adapter(step: pathlib.Path) -> Adapter:
    """The adapter of a step, on the host.

    Raises:
        CheckpointError: it cannot be read, or is that of another model.
    """
    item = checkpointer.read_model(step)
    adapter = abstract_adapter(
        XVLAConfig.from_dict(item["config"]), PeftConfig(item[ADAPTER]["peft"])
    )
    return dataclasses.replace(adapter, tensors=load_params(step.resolve(), adapter.tensors))


def base_folder(step: pathlib.Path) -> pathlib.Path:
    """Where the base of a step is.

    Raises:
        CheckpointError: it is not there; the message says how to go on without it.
    """
    folder = pathlib.Path(checkpointer.read_model(step)[ADAPTER]["base"])
    if not folder.is_dir():
        raise CheckpointError(
            f"{step} is of a LoRA run, and its base {folder} is not here. Put it back, or merge "
            f"the adapter into a copy of it: {_HOW_TO_MERGE}"
        )
    return folder


def merged_params(step: pathlib.Path, base: Mapping[str, Any]) -> dict[str, Any]:
    """The base's parameters with the adapter of a step in them, lazily where the base is stored.

    Raises:
        CheckpointError: the adapter was trained on other parameters.
    """
    item = checkpointer.read_model(step)
    section, config = item[ADAPTER], XVLAConfig.from_dict(item["config"])
    found = params_digest(base, config)
    if found != section["base_sha256"]:
        raise CheckpointError(
            f"{step} is of a LoRA run on {section['base']} with parameters of SHA-256 "
            f"{section['base_sha256']}; those there now have {found}. Give the base that it was "
            f"trained on, or merge the adapter into this one all the same: {_HOW_TO_MERGE}"
        )
    return merge_adapter(base, read_adapter(step))


def export_adapter(
    step: pathlib.Path, folder: str | os.PathLike[str], *, overwrite: bool = False
) -> None:
    """Writes the adapter of a step as a folder that PEFT loads.

    Raises:
        CheckpointError: the step is not of a LoRA run, or the folder is in use.
    """
    item = checkpointer.read_model(step)
    if ADAPTER not in item:
        raise CheckpointError(
            f"{step} is not of a LoRA run, so it has no adapter; layouts of whole checkpoints are "
            "hf, lerobot-vendored, lerobot-native and orbax"
        )
    config = XVLAConfig.from_dict(item["config"])
    save_adapter(
        folder,
        read_adapter(step),
        config,
        overwrite=overwrite,
        relabelled=item[ADAPTER].get(_RELABELLED, False),
    )


def check_same_base(step: pathlib.Path, ours: Mapping[str, Any]) -> None:
    """Refuses to go on from a step with another adapter or base than it has.

    Args:
        step: of the run that is to be resumed.
        ours: the ``model`` item that the run would write now.

    Raises:
        CheckpointError: names what differs.
    """
    saved: Any = checkpointer.read_model(step).get(ADAPTER)
    wanted: Any = ours.get(ADAPTER)
    if saved is None and wanted is None:
        return
    if saved is None or wanted is None:
        has, asked = ("no adapter", "one") if saved is None else ("an adapter", "none")
        raise CheckpointError(
            f"{step} holds {has}, but config.lora asks for {asked}; use another --workdir, or the "
            "config that the run was started with"
        )
    problems = [
        f"{field} is {wanted['peft'].get(field)!r} now and was {value!r}"
        for field, value in saved["peft"].items()
        if value != wanted["peft"].get(field) and field != "base_model_name_or_path"
    ]
    if saved["base_sha256"] != wanted["base_sha256"]:
        problems.append(
            f"config.init_from is {wanted['base']} (SHA-256 {wanted['base_sha256']}), the base was "
            f"{saved['base']} ({saved['base_sha256']})"
        )
    if problems:
        raise CheckpointError(
            f"{step} is of a LoRA run with another adapter or base; " + "; ".join(problems)
        )
