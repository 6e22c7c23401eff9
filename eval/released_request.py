"""The request that the released policy server answers, as JSON values."""

from __future__ import annotations

import json
from typing import Any, Mapping

import numpy as np

from .tasks.profiles import ClientProfile
from .wire import array_text


def request_body(profile: ClientProfile, observation: Mapping[str, Any]) -> dict[str, Any]:
    """Body of `POST /act` for an observation of door 2; see `profiles.Wire`."""
    wire = profile.wire
    told = np.asarray(observation["proprio"], wire.proprio_dtype)
    encode = {"json_numpy": array_text, "json_list": lambda values: json.dumps(values.tolist())}
    body = {
        "proprio": encode[wire.proprio_form](told),
        "language_instruction": observation["instruction"],
        "domain_id": observation["domain_id"],
    }
    for slot, image in enumerate(observation["images"]):
        body[f"image{slot}"] = array_text(image)
    if wire.denoising_steps is not None:
        body["steps"] = wire.denoising_steps
    return body
