"""LeRobot's config and pipelines for an export, so that LeRobot does what our processor does.

A folder that came from LeRobot keeps its files while they agree with the checkpoint; after a
fine-tune on other cameras, another domain or other units they are written again.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from safetensors.numpy import save as save_tensors

from xvla_jax.actions import action_space
from xvla_jax.batch import IMAGE_MEAN, IMAGE_STD
from xvla_jax.checkpoints.lerobot import SECTION, features, to_lerobot
from xvla_jax.checkpoints.lerobot_pipelines import (
    ACTION,
    AFTER,
    BEFORE,
    DOMAIN,
    EPS,
    RESIZE,
    STATE,
    TOKENIZER,
    cameras,
    read_domain,
    read_processor,
)
from xvla_jax.config import ALL, XVLAConfig
from xvla_jax.contract import Contract
from xvla_jax.errors import CheckpointError
from xvla_jax.preprocessing.scaling import MODES
from xvla_jax.processor import Processor

_log = logging.getLogger(__name__)


def as_lerobot_can(processor: Processor) -> Processor:
    """Returns the nearest processor that LeRobot has the steps for.

    LeRobot has none of Pillow's filters. Its own step stretches images too, bilinear in float.
    """
    if processor.tokenizer_dir:
        raise CheckpointError(
            f"the tokenizer in {processor.tokenizer_dir} is not BART's, which LeRobot's pipeline "
            f"names ({TOKENIZER}); only --layout=hf can carry another"
        )
    if processor.resize != "stretch":
        return processor
    return dataclasses.replace(processor, resize="linear", resample=Processor.resample)


def lerobot_files(
    config: XVLAConfig,
    processor: Processor | None,
    contracts: Mapping[int, Contract],
    files: Mapping[str, bytes],
    *,
    dtype: str,
    domain: int | None,
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Returns LeRobot's ``config.json``, and its pipelines with their statistics by name.

    Args:
        config: the model.
        processor: as `as_lerobot_can` returns it; None leaves its fields out of the config, and
            the only pipelines are those of ``files``.
        contracts: of the checkpoint; the one of the domain names the cameras.
        files: carried along from the source.
        dtype: stored type of the weights.
        domain: of every observation; None: the only one, or the first with a warning.

    Raises:
        CheckpointError: LeRobot has no such model or domain.
    """
    if config.context_attends_to != ALL:
        raise CheckpointError(
            f"context_attends_to of config.json is {config.context_attends_to!r}: LeRobot's X-VLA "
            f"knows {ALL!r} alone, and would act otherwise with these weights; write the layout "
            "hf or orbax"
        )
    space, released = action_space(config), config.to_dict()
    section = released.get(SECTION, {})
    carried = {name: files[name] for name in files if name.startswith((BEFORE, AFTER))}
    contract = _contract(contracts, domain)
    kept = to_lerobot(released, {}, width=space.width, dtype=dtype)
    if section and _agree(kept, carried, processor, contract):
        return kept, carried
    if processor is None:
        stated = _own_fields(contract, section, None, space.real_width, space.real_width)
        return to_lerobot(released, stated, width=space.width, dtype=dtype), carried
    state = processor.state.width if processor.state else space.real_width
    stated = _own_fields(contract, section, processor, state, space.real_width)
    made = to_lerobot(released, stated, width=space.width, dtype=dtype)
    domain_id = contract.domain_id if contract else read_domain(carried) or 0
    return made, _pipelines(made, processor, domain_id=domain_id)


def _contract(contracts: Mapping[int, Contract], domain: int | None) -> Contract | None:
    """Returns the contract whose domain and cameras LeRobot's one pipeline gets."""
    if domain is not None and domain not in contracts:
        raise CheckpointError(
            f"--domain={domain}: the checkpoint has contracts of {sorted(contracts)} alone"
        )
    if not contracts:
        return None
    chosen = min(contracts) if domain is None else domain
    if domain is None and len(contracts) > 1:
        _log.warning(
            "LeRobot's pipeline gives every observation one domain: %d here, of %s; "
            "--domain=ID names another",
            chosen,
            sorted(contracts),
        )
    return contracts[chosen]


def _agree(
    config: Mapping[str, Any],
    files: Mapping[str, bytes],
    processor: Processor | None,
    contract: Contract | None,
) -> bool:
    """True if LeRobot's files as they came still agree with the checkpoint."""
    try:
        if processor is not None and read_processor(config, files) != processor:
            return False
    except CheckpointError:  # they are incomplete, or ask for what no processor does
        return False
    if contract is None:
        return True
    names = list(cameras(config))
    return contract.domain_id == read_domain(files) and names == list(_cameras(contract))


def _cameras(contract: Contract) -> list[str]:
    return list(cameras(features(contract.views, {}, side=1, state=1, action=1)))


def _own_fields(
    contract: Contract | None,
    section: Mapping[str, Any],
    processor: Processor | None,
    state: int,
    action: int,
) -> dict[str, Any]:
    """Returns LeRobot's fields beyond the model's."""
    views = contract.views if contract else tuple(cameras(section))
    if processor is None:
        # no cameras, as their sizes would be a guess: LeRobot asks for them
        made = features((), {}, side=0, state=state, action=action)
        return {**made, **{key: section[key] for key in made if key in section}}
    side = processor.image_size
    views = views or [f"image{i + 1 if i else ''}" for i in range(processor.num_views)]
    return {
        **features(views, section, side=side, state=state, action=action),
        "normalization_mapping": _normalization_mapping(processor),
        "tokenizer_name": TOKENIZER,
        "tokenizer_max_length": processor.text_length,
        "tokenizer_padding_side": "right",
        "pad_language_to": "max_length",
        "num_image_views": processor.num_views,
        "empty_cameras": 0,
        "resize_imgs_with_padding": [side, side] if processor.resize == "pad" else None,
    }


def _pipelines(
    config: Mapping[str, Any], processor: Processor, *, domain_id: int
) -> dict[str, bytes]:
    """Returns LeRobot's processor files by name, as its own factory makes them from a config.

    Args:
        config: LeRobot's ``config.json``, as `to_lerobot` returns it.
        processor: whose work the pipelines do.
        domain_id: of every observation.
    """
    norm_map = config["normalization_mapping"]
    features = config["input_features"] | config["output_features"]
    scaling = processor.state or processor.action
    scale = {"eps": scaling.eps if scaling else EPS, "norm_map": norm_map}
    tokenizer = {
        "max_length": config["tokenizer_max_length"],
        "task_key": "task",
        "padding_side": config["tokenizer_padding_side"],
        "padding": config["pad_language_to"],
        "truncation": True,
        "tokenizer_name": config["tokenizer_name"],
    }
    side = processor.image_size
    squares = [(RESIZE, {"crop_params_dict": None, "resize_size": [side, side]})]
    before = [
        ("rename_observations_processor", {"rename_map": {}}),
        ("to_batch_processor", {}),
        ("tokenizer_processor", tokenizer),
        ("xvla_image_to_float", {"image_keys": None, "validate_range": True}),
        *(squares if processor.resize == "linear" else []),
        ("xvla_imagenet_normalize", {"image_keys": None}),
        (DOMAIN, {"domain_id": domain_id}),
        ("device_processor", {"device": "cpu", "float_dtype": None}),
        ("normalizer_processor", scale | {"features": features}),
    ]
    after = [
        ("unnormalizer_processor", scale | {"features": config["output_features"]}),
        ("device_processor", {"device": "cpu", "float_dtype": None}),
    ]
    stats = _stats(config, processor)
    return _files(BEFORE, before, stats) | _files(AFTER, after, stats)


def _normalization_mapping(processor: Processor) -> dict[str, str]:
    """Returns LeRobot's modes by kind of feature."""
    imagenet = (processor.mean, processor.std) == (IMAGE_MEAN, IMAGE_STD)
    return {
        "VISUAL": "IDENTITY" if imagenet else "MEAN_STD",
        "STATE": processor.state.mode if processor.state else "IDENTITY",
        "ACTION": processor.action.mode if processor.action else "IDENTITY",
    }


def _stats(config: Mapping[str, Any], processor: Processor) -> dict[str, np.ndarray]:
    """Returns statistics by ``feature.name``."""
    stats = {}
    for key, scaling in ((STATE, processor.state), (ACTION, processor.action)):
        if scaling:
            low, high, _ = MODES[scaling.mode]
            stats |= {f"{key}.{low}": scaling.low, f"{key}.{high}": scaling.high}
    if config["normalization_mapping"]["VISUAL"] != "IDENTITY":
        # LeRobot applies ImageNet's mean and deviation first, then these.
        mean = (np.asarray(processor.mean) - IMAGE_MEAN) / IMAGE_STD
        std = np.asarray(processor.std) / IMAGE_STD - EPS
        for key in cameras(config):
            stats |= {f"{key}.mean": mean[:, None, None], f"{key}.std": std[:, None, None]}
    return {name: np.asarray(value, np.float32) for name, value in stats.items()}


def _files(
    name: str, steps: Sequence[tuple[str, Mapping[str, Any]]], stats: Mapping[str, np.ndarray]
) -> dict[str, bytes]:
    """Returns a pipeline's file, and that of its statistics if there are any."""
    entries, files = [], {}
    for number, (step, settings) in enumerate(steps):
        entries.append({"registry_name": step, "config": settings})
        if stats and "norm_map" in settings:
            state_file = f"{name}_step_{number}_{step}.safetensors"
            files[state_file] = save_tensors(dict(stats))
            entries[-1]["state_file"] = state_file
    content = json.dumps({"name": name, "steps": entries}, indent=2) + "\n"
    return files | {f"{name}.json": content.encode()}
