"""Runs a checkpoint inside LeRobot from raw observations; a part of ``torch_reference.py``.

Weights, both pipelines and every setting come from the folder, by LeRobot's own loaders. It runs
where lerobot is installed (0.4.4 and 0.6.1 work), and imports nothing of this repository.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Mapping
from typing import Any
from unittest import mock

import numpy as np

_POLICY = "lerobot.policies.xvla.modeling_xvla"
_FACTORY = "lerobot.policies.factory"


@functools.lru_cache(maxsize=1)
def load_policy(folder: str) -> Any:
    """Returns a policy with its weights."""
    return importlib.import_module(_POLICY).XVLAPolicy.from_pretrained(folder)


def _load_pipelines(policy: Any, folder: str, tokenizer: str) -> tuple[Any, Any]:
    """Returns the steps before and after a policy."""
    overrides = {
        "device_processor": {"device": "cpu"},
        "tokenizer_processor": {
            "tokenizer_name": tokenizer
        },  # a folder, so that nothing is downloaded
    }
    return importlib.import_module(_FACTORY).make_pre_post_processors(
        policy.config, pretrained_path=folder, preprocessor_overrides=overrides
    )


def raw_outputs(
    folder: str, tokenizer: str, arrays: Mapping[str, np.ndarray], tasks: list[str]
) -> dict[str, np.ndarray]:
    """Returns the policy's inputs and actions for raw observations, each in a batch of its own.

    Args:
        folder: in one of LeRobot's layouts.
        tokenizer: folder with the tokenizer's files.
        arrays: images uint8[B, V, H, W, 3], shown int[B] (views of each), proprio float32[B, d],
            sample_noise float32[B, T, D].
        tasks: B instructions.

    Returns:
        pixel_values float32[B, V, 3, S, S], image_mask bool[B, V], input_ids int[B, L],
        domain_id int[B], proprio float32[B, D'] as the network takes it, and
        robot_actions float32[B, T, d], after LeRobot's postprocessing.
    """
    torch = importlib.import_module("torch")
    policy = load_policy(folder)
    before, after = _load_pipelines(policy, folder, tokenizer)
    keys = list(policy.config.image_features)
    rows: dict[str, list[np.ndarray]] = {}
    for i, task in enumerate(tasks):
        batch: dict[str, Any] = {
            key: torch.as_tensor(image).permute(2, 0, 1)
            for key, image in zip(keys, arrays["images"][i][: arrays["shown"][i]], strict=False)
        }
        batch |= {"observation.state": torch.as_tensor(arrays["proprio"][i]), "task": task}
        noise = torch.as_tensor(arrays["sample_noise"][i : i + 1])
        with torch.inference_mode():
            batch = before(batch)
            inputs = policy._build_model_inputs(batch)
            with mock.patch.object(torch, "randn", lambda *_, noise=noise, **__: noise):
                actions = after(policy.predict_action_chunk(batch))
        outputs = {
            "pixel_values": inputs["image_input"],
            "image_mask": inputs["image_mask"],
            "input_ids": inputs["input_ids"],
            "domain_id": inputs["domain_id"],
            "proprio": inputs["proprio"],
            "robot_actions": actions,
        }
        for name, value in outputs.items():
            rows.setdefault(name, []).append(value.cpu().numpy())
    return {name: np.concatenate(values) for name, values in rows.items()}
