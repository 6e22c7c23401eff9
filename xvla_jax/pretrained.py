"""Loads and saves checkpoints of every layout, LoRA runs among them.

`load_pretrained` and `save_pretrained` are for users; `load_checkpoint` also returns processor,
contracts and the files beside. A LoRA run keeps its adapter alone: its base is found by the path
and the digest that the ``model`` item of each step states, and merged when the run is loaded.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Collection, Mapping
from typing import Any, Final

import jax
import numpy as np

from xvla_jax import buckets
from xvla_jax.checkpoints import hf_folder, lerobot, run_folder
from xvla_jax.checkpoints.accounting import INT8, STORED, check_tree
from xvla_jax.checkpoints.fingerprints import params_digest
from xvla_jax.checkpoints.folders import atomic_folder, check_free, disk_errors
from xvla_jax.checkpoints.hf_folder import Pretrained
from xvla_jax.checkpoints.names import DIALECTS
from xvla_jax.checkpoints.peft import PeftConfig
from xvla_jax.checkpoints.safetensors_files import DTYPES, Progress
from xvla_jax.checkpoints.torch_tensors import check_stored_as
from xvla_jax.config import XVLAConfig
from xvla_jax.contract import (
    Contract,
    check_domain_names,
    check_fits,
    read_contracts,
    read_domains,
)
from xvla_jax.errors import CheckpointError, ConfigError
from xvla_jax.lora import Adapter, abstract_adapter, merge_adapter, save_adapter
from xvla_jax.models.int8 import DEFAULT_GROUPS, GROUPS, Int8Leaf, int8_params
from xvla_jax.models.xvla import abstract_params
from xvla_jax.processor import Processor

ORBAX: Final = "orbax"
LAYOUTS: Final = (*DIALECTS, ORBAX)
ADAPTER: Final = "adapter"  # section of the model item
_RELABELLED: Final = "relabelled"  # in that section: the base has another action space
_DELAYED: Final = "delayed"  # likewise: the run states its delays
PEFT: Final = "peft"  # layout of an adapter's folder
_HOW_TO_MERGE: Final = (
    "python -m scripts.convert_checkpoint RUN ADAPTER --layout=peft writes the adapter alone; "
    "python -m scripts.convert_checkpoint BASE DST --layout=hf --adapter=ADAPTER merges it"
)


def load_pretrained(folder: str | os.PathLike[str]) -> tuple[XVLAConfig, dict[str, Any]]:
    """Loads config and parameters of a checkpoint.

    Args:
        folder: released Hugging Face layout, one of LeRobot's, or an Orbax workdir or one of its
            steps. The adapter of a LoRA run is merged into its base, which must be where it was.

    Returns:
        The config, and the parameters as a nested dict of float32 numpy arrays.

    Raises:
        CheckpointError, ConfigError: nothing usable is there; the message says what was found.
    """
    loaded = load_checkpoint(folder)
    return loaded.config, loaded.params


def load_checkpoint(
    folder: str | os.PathLike[str], *, stored: bool = False, int8: bool = False
) -> Pretrained:
    """Loads a checkpoint with its processor, contracts and the files beside.

    With ``stored`` parameters stay on disk as `StoredLeaf` until they are read, by
    `save_pretrained` for example; values that are not finite are refused then. With ``int8`` such
    weights are read too, as `Int8Leaf` if stored and in float32 if not.
    """
    folder = run_folder.existing(folder)
    step = run_folder.find_step(folder)
    if step is not None:
        return _load_orbax(step, stored=stored)
    return hf_folder.load(folder, _template, stored=stored, int8=int8)


def save_pretrained(
    folder: str | os.PathLike[str],
    config: XVLAConfig,
    params: Mapping[str, Any],
    layout: str = "hf",
    *,
    processor: Processor | None = None,
    contracts: Mapping[int, Contract] | None = None,
    overwrite: bool = False,
    buffers: Mapping[str, np.ndarray] | None = None,
    dtype: str = "float32",
    files: Mapping[str, bytes] | None = None,
    progress: Progress | None = None,
    domain: int | None = None,
    domains: Mapping[str, int] | None = None,
    int8: Collection[str] = DEFAULT_GROUPS,
) -> int:
    """Writes a checkpoint in any layout; PyTorch's layouts load in the packages they are from.

    The folder appears complete or not at all. Without a processor its files are left out.

    Args:
        folder: must not exist, or be empty, unless ``overwrite``.
        config: the model.
        params: its parameters.
        layout: ``hf`` (released), ``lerobot-vendored``, ``lerobot-native``, or ``orbax``: a workdir
            whose step 0 has no optimizer.
        processor: image and text preprocessing that the weights were trained with.
        contracts: action contracts by domain; our addition, other readers ignore it.
        overwrite: replace the folder, once the new one is complete.
        buffers: see `Pretrained`.
        dtype: of the stored tensors: ``float32``, ``bfloat16`` or ``float16``. Orbax keeps float32,
            and the name. ``int8``, in layout ``hf`` alone, is that of matrices, see ``int8``.
        files: see `Pretrained`.
        progress: called after each tensor or leaf.
        domain: of LeRobot's pipeline, where there are several contracts.
        domains: ids of domains by name; our addition, like the contracts.
        int8: rows of ``models.int8.GROUPS`` that dtype ``int8`` is for; others stay float32.

    Returns the number of tensors that were rounded, as ``dtype`` does not hold them exactly.

    Raises:
        CheckpointError, ContractError: the folder is in use, or a part does not fit the config.
        OSError: the disk is full, read-only or failing.
    """
    _check_names(layout, dtype, int8)
    _check_parts(config, params, contracts or {}, domains or {}, where=folder)
    contracts, buffers, files = dict(contracts or {}), dict(buffers or {}), dict(files or {})
    params = int8_params(params, int8) if dtype == INT8 else dict(params)
    parts = (config, params, processor, contracts, buffers, dtype, files)
    checkpoint = Pretrained(*parts, domains=dict(domains or {}))
    check_free(place := buckets.place_of(folder), _stored_bytes(params, layout, dtype))
    with atomic_folder(place, overwrite=overwrite) as scratch, disk_errors(place):
        if layout == ORBAX:
            from xvla_jax.checkpoints import orbax  # late, see `check_stored_tree`

            item = model_item(config, processor, contracts, source=checkpoint, domains=domains)
            orbax.write_step(scratch, checkpoint.params, item, progress=progress)
            return 0
        return hf_folder.write(scratch, checkpoint, layout, progress=progress, domain=domain)


def model_item(
    config: XVLAConfig,
    processor: Processor | None,
    contracts: Mapping[int, Contract],
    *,
    source: Pretrained | None = None,
    domains: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """Returns the ``model`` item of an Orbax checkpoint; `load_checkpoint` reads it back.

    Args:
        config: the model.
        processor: None where it is unknown; no `Policy` can be made of such a checkpoint.
        contracts: action contracts by domain.
        source: checkpoint that training began with; its buffers, stored type and files are kept.
        domains: ids of domains by name.
    """
    item = {
        "config": config.to_dict(),
        "processor": processor.to_dict() if processor else None,
        "contracts": [c.to_dict() for c in contracts.values()],
    }
    if domains:
        item["domains"] = dict(domains)
    if source:
        item["source"] = {
            "buffers": run_folder.buffers_to_json(source.buffers),
            "stored_dtype": source.stored_dtype,
            "files": run_folder.files_to_json(source.files),
        }
    return item


def adapter_section(
    peft: PeftConfig,
    base: str | os.PathLike[str],
    digest: str,
    *,
    relabelled: bool = False,
    delayed: bool = False,
) -> dict[str, Any]:
    """Returns the section `ADAPTER` of the ``model`` item of a LoRA run.

    Args:
        peft: the adapter's config.
        base: folder of the base.
        digest: `params_digest` of the base.
        relabelled: the run has another action space than the base.
        delayed: the run states the delays that it trains for.
    """
    folder = str(buckets.absolute(buckets.place_of(base)))
    section: dict[str, Any] = {"peft": dict(peft.raw), "base": folder, "base_sha256": digest}
    section |= {_RELABELLED: True} if relabelled else {}
    return section | ({_DELAYED: True} if delayed else {})


def is_lora_run(folder: str | os.PathLike[str]) -> bool:
    """Returns True for the workdir of a LoRA run and for its steps."""
    step = run_folder.find_step(folder)
    return step is not None and ADAPTER in run_folder.read_model(step)


def read_adapter(step: buckets.Place) -> Adapter:
    """Loads the adapter of a step to the host.

    Raises:
        CheckpointError: it cannot be read, or belongs to another model.
    """
    from xvla_jax.checkpoints import orbax  # late, see `check_stored_tree`

    step = run_folder.on_disk(step)
    item = run_folder.read_model(step)
    adapter = abstract_adapter(
        lerobot.config_from_dict(item["config"]), PeftConfig(item[ADAPTER]["peft"])
    )
    return dataclasses.replace(adapter, tensors=orbax.load_params(step.resolve(), adapter.tensors))


def base_folder(step: buckets.Place) -> buckets.Place:
    """Returns the folder of a step's base.

    Raises:
        CheckpointError: it is missing; the message says how to continue without it.
    """
    folder = buckets.place_of(run_folder.read_model(step)[ADAPTER]["base"])
    if not buckets.in_bucket(folder) and not folder.is_dir():
        raise CheckpointError(
            f"{step} is of a LoRA run, and its base {folder} is not here. Put it back, or merge "
            f"the adapter into a copy of it: {_HOW_TO_MERGE}"
        )
    return folder


def merged_params(step: buckets.Place, base: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the base's parameters with a step's adapter merged, lazily for a base on disk.

    Raises:
        CheckpointError: the adapter was trained on other parameters.
    """
    item = run_folder.read_model(step)
    section, config = item[ADAPTER], lerobot.config_from_dict(item["config"])
    digest = params_digest(base, config)
    if digest != section["base_sha256"]:
        raise CheckpointError(
            f"{step} is of a LoRA run on {section['base']} with parameters of SHA-256 "
            f"{section['base_sha256']}; those there now have {digest}. Give the base that it was "
            f"trained on, or merge the adapter into this one all the same: {_HOW_TO_MERGE}"
        )
    return merge_adapter(base, read_adapter(step))


def export_adapter(
    step: buckets.Place, folder: str | os.PathLike[str], *, overwrite: bool = False
) -> None:
    """Writes the adapter of a step as a folder that PEFT loads.

    Raises:
        CheckpointError: the step is not of a LoRA run, or the folder is in use.
    """
    item = run_folder.read_model(step)
    if ADAPTER not in item:
        raise CheckpointError(
            f"{step} is not of a LoRA run, so it has no adapter; layouts of checkpoints are "
            f"{', '.join(LAYOUTS)}"
        )
    config = lerobot.config_from_dict(item["config"])
    save_adapter(
        folder,
        read_adapter(step),
        config,
        overwrite=overwrite,
        relabelled=item[ADAPTER].get(_RELABELLED, False),
        delayed=item[ADAPTER].get(_DELAYED, False),
    )


def check_same_base(step: buckets.Place, ours: Mapping[str, Any]) -> None:
    """Refuses to resume from a step with another adapter or base than it has.

    Args:
        step: of the run to resume.
        ours: ``model`` item that the run would write now.

    Raises:
        CheckpointError: names what differs.
    """
    saved: Any = run_folder.read_model(step).get(ADAPTER)
    current: Any = ours.get(ADAPTER)
    if saved is None and current is None:
        return
    if saved is None or current is None:
        has, asked = ("no adapter", "one") if saved is None else ("an adapter", "none")
        raise CheckpointError(
            f"{step} holds {has}, but config.lora asks for {asked}; use another --workdir, or the "
            "config that the run was started with"
        )
    problems = [
        f"{field} is {current['peft'].get(field)!r} now and was {value!r}"
        for field, value in saved["peft"].items()
        if value != current["peft"].get(field) and field != "base_model_name_or_path"
    ]
    if saved["base_sha256"] != current["base_sha256"]:
        problems.append(
            f"config.init_from is {current['base']} (SHA-256 {current['base_sha256']}), the base "
            f"was {saved['base']} ({saved['base_sha256']})"
        )
    if problems:
        raise CheckpointError(
            f"{step} is of a LoRA run with another adapter or base; " + "; ".join(problems)
        )


def _check_names(layout: str, dtype: str, int8: Collection[str]) -> None:
    check_stored_as(layout, dtype, LAYOUTS)
    if dtype == INT8 and not (int8 and set(int8) <= set(GROUPS)):
        raise CheckpointError(
            f"groups of int8 weights are {', '.join(int8) or 'none'}; known are {', '.join(GROUPS)}"
        )


def _check_parts(
    config: XVLAConfig,
    params: Mapping[str, Any],
    contracts: Mapping[int, Contract],
    domains: Mapping[str, int],
    *,
    where: str | os.PathLike[str],
) -> None:
    check_tree(dict(params), _template(config))
    check_fits(contracts.values(), config)
    check_domain_names(domains, config, where=where)


def _stored_bytes(params: Mapping[str, Any], layout: str, dtype: str) -> int:
    size = 4 if layout == ORBAX or dtype == INT8 else DTYPES[STORED[dtype]].itemsize
    leaves = jax.tree.leaves(params)
    return sum((1 if isinstance(leaf, Int8Leaf) else size) * leaf.size for leaf in leaves)


def _load_orbax(step: pathlib.Path, *, stored: bool) -> Pretrained:
    from xvla_jax.checkpoints import orbax  # late, see `check_stored_tree`

    item = run_folder.read_model(step)
    config = lerobot.config_from_dict(item["config"], f"{step}: model.config")
    if ADAPTER in item:
        base = load_checkpoint(base_folder(step), stored=stored)
        params = merged_params(step, base.params)
    else:
        read = orbax.stored_params if stored else orbax.load_params
        try:
            params = read(step.resolve(), _template(config))
        except ConfigError as error:
            raise ConfigError(f"{step}: {error}") from error
    contracts = read_contracts(item["contracts"], config, where=f"{step}: model.contracts")
    source = item.get("source", {})
    stored_dtype = source.get("stored_dtype", "float32")
    if stored_dtype not in STORED:
        raise CheckpointError(
            f"{step}: model.source.stored_dtype is {stored_dtype!r}; known are {', '.join(STORED)}"
        )
    return Pretrained(
        config,
        params,
        Processor.from_dict(item["processor"], step) if item["processor"] else None,
        contracts,
        run_folder.buffers_from_json(source.get("buffers", {}), step),
        stored_dtype,
        run_folder.files_from_json(source.get("files", {}), step),
        read_domains(item.get("domains", {}), config, where=f"{step}: model"),
    )


def _template(config: XVLAConfig) -> dict[str, Any]:
    """Returns the shapes of a model's parameters."""
    try:
        return abstract_params(config)
    except (ValueError, TypeError, ArithmeticError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(
            f"config.json describes a model that cannot be built: {reason}"
        ) from error
