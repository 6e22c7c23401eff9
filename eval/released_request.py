"""The request that the released policy server answers, as JSON values."""

from __future__ import annotations

import base64
import json
from typing import Any, Mapping

import numpy as np
from numpy.typing import NDArray

from .profiles import ClientProfile


def encode_array(array: NDArray[Any]) -> str:
    """An array in the json_numpy form: base64 of its C-order bytes, dtype and shape."""
    return json.dumps(
        {
            "__numpy__": base64.b64encode(np.ascontiguousarray(array).tobytes()).decode("ascii"),
            "dtype": array.dtype.str,
            "shape": list(array.shape),
        }
    )


def request_body(profile: ClientProfile, observation: Mapping[str, Any]) -> dict[str, Any]:
    """Body of `POST /act` for an observation of door 2; see `profiles.Wire`."""
    wire = profile.wire
    told = np.asarray(observation["proprio"], wire.proprio_dtype)
    encode = {"json_numpy": encode_array, "json_list": lambda values: json.dumps(values.tolist())}
    body = {
        "proprio": encode[wire.proprio_form](told),
        "language_instruction": observation["instruction"],
        "domain_id": observation["domain_id"],
    }
    for slot, image in enumerate(observation["images"]):
        body[f"image{slot}"] = encode_array(image)
    if wire.denoising_steps is not None:
        body["steps"] = wire.denoising_steps
    return body
