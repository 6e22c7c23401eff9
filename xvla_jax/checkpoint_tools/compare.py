"""Whether two models compute the same: equal inputs, outputs stage by stage, stated gates.

A stage's figure is the largest difference over the largest value that is expected. The stages
follow one another, so the first that fails says where to look. Inputs come from ``xvla_jax.checkpoint_tools.probe``.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, Final, cast

import jax
import jax.numpy as jnp
import numpy as np

from xvla_jax import flow
from xvla_jax.config import XVLAConfig
from xvla_jax.errors import ConfigError
from xvla_jax.models.xvla import XVLA, Context

# Type of weights or of computing -> largest difference over largest value that passes.
GATES: Final[Mapping[str, float]] = {
    "float32": 1e-5,
    "float16": 4e-3,  # three more bits than bfloat16
    "bfloat16": 3e-2,
}


@dataclasses.dataclass(frozen=True)
class Stage:
    """A stage whose output is compared.

    Attributes:
        name: key among the outputs.
        title: for people.
        axes: what the indices count.
    """

    name: str
    title: str
    axes: str


STAGES: Final = (
    Stage("image_features_valid", "image features of present views", "view, token, channel"),
    Stage("vlm_features", "encoder: first view and text", "sample, token, channel"),
    Stage("aux_visual_inputs", "tokens of the other views", "sample, token, channel"),
    Stage("head_output", "one step of the head", "sample, row, channel"),
    Stage("actions", "actions after all steps", "sample, row, channel"),
)


RAW_STAGES: Final = (  # from raw observations to what a robot gets
    Stage("pixel_values", "pixels of the views", "sample, view, channel, row, column"),
    Stage("image_mask", "views that are shown", "sample, view"),
    Stage("input_ids", "text tokens", "sample, token"),
    Stage("proprio", "proprio of the network", "sample, channel"),
    Stage("robot_actions", "actions in the robot's units", "sample, row, channel"),
)


@dataclasses.dataclass(frozen=True)
class StageResult:
    """How far one output is from another; differences that are not finite count as infinite."""

    stage: Stage
    shape: tuple[int, ...]
    largest_difference: float
    largest_value: float
    where: tuple[int, ...]
    gate: float

    @property
    def quotient(self) -> float:
        """Largest difference over largest value."""
        if not self.largest_difference:
            return 0.0
        return self.largest_difference / self.largest_value if self.largest_value else math.inf

    @property
    def passed(self) -> bool:
        """Whether the quotient is within the gate."""
        return self.quotient <= self.gate

    def to_dict(self) -> dict[str, Any]:
        """JSON values; an infinite difference is null."""
        values = dataclasses.asdict(self) | {"quotient": self.quotient, "passed": self.passed}
        values |= {"stage": self.stage.name, "axes": self.stage.axes}
        return {
            k: None if isinstance(v, float) and not math.isfinite(v) else v
            for k, v in values.items()
        }


def compare(
    found: Mapping[str, np.ndarray],
    wanted: Mapping[str, np.ndarray],
    *,
    gate: float,
    stages: Sequence[Stage] = STAGES,
) -> list[StageResult]:
    """Every stage of ``found`` against ``wanted``.

    Raises:
        ConfigError: an output has another shape: the two are not one model.
    """
    results = []
    for stage in stages:
        a, b = np.asarray(found[stage.name], np.float64), np.asarray(wanted[stage.name], np.float64)
        if a.shape != b.shape:
            raise ConfigError(
                f"{stage.name} is {list(a.shape)} on one side and {list(b.shape)} on the other; "
                "the two checkpoints are not of one model"
            )
        if not b.size:  # a single view leaves no other tokens
            results.append(StageResult(stage, a.shape, 0.0, 0.0, (), gate))
            continue
        difference = np.abs(a - b)
        difference[~np.isfinite(difference)] = math.inf
        place = np.unravel_index(difference.argmax(), difference.shape)
        results.append(
            StageResult(
                stage=stage,
                shape=a.shape,
                largest_difference=float(difference[place]),
                largest_value=float(np.abs(b).max()),
                where=tuple(int(i) for i in place),
                gate=gate,
            )
        )
    return results


def gate_of(dtypes: Sequence[str]) -> tuple[str, float]:
    """The widest gate among types of stored weights and of computing, and whose it is."""
    widest = max(dtypes, key=lambda dtype: GATES[dtype])
    return widest, GATES[widest]


def stage_outputs(
    config: XVLAConfig,
    params: Mapping[str, Any],
    inputs: Mapping[str, np.ndarray],
    *,
    dtype: str,
    steps: int,
) -> dict[str, np.ndarray]:
    """Every stage of one model, float32, by the program that serves.

    The head step takes the noisy actions and proprio as they are; the sampler hides what the action
    space hides.

    Args:
        config: the model.
        params: its parameters, as `xvla_jax.models.xvla.inference_params` makes them for ``dtype``.
        inputs: as `xvla_jax.checkpoint_tools.probe.make_inputs` gives them.
        dtype: computing type; products of float32 are exact on every device.
        steps: of the sampler.
    """
    model = XVLA(config, dtype=jnp.dtype(dtype), unroll=True)
    with jax.default_matmul_precision("highest"):
        outputs = _run(model, params, dict(inputs), steps)
    outputs = {name: np.asarray(value, np.float32) for name, value in outputs.items()}
    tokens = outputs["image_features_valid"]  # of all view slots
    outputs["image_features_valid"] = tokens[np.asarray(inputs["image_mask"]).ravel()]
    return outputs


@functools.partial(jax.jit, static_argnums=(0, 3))
def _run(
    model: XVLA, params: Any, inputs: Mapping[str, jax.Array], steps: int
) -> dict[str, jax.Array]:
    encoded: Any = model.apply(
        {"params": params},
        inputs["pixel_values"].transpose(0, 1, 3, 4, 2),
        inputs["image_mask"],
        inputs["input_ids"],
        method="encode",
        capture_intermediates=lambda module, _: module.name == "image_projector",
        mutable=["intermediates"],
    )
    context: Context = encoded[0]
    tower = encoded[1]["intermediates"]["vlm"]
    head = model.apply(
        {"params": params},
        context,
        inputs["head_action"],
        inputs["proprio"],
        inputs["domain_id"],
        inputs["head_t"],
        method="denoise",
    )
    actions = flow.sample(
        model,
        params,
        context,
        inputs["proprio"],
        inputs["domain_id"],
        noise=inputs["sample_noise"],
        steps=steps,
    )
    return {
        "image_features_valid": tower["image_projector"]["__call__"][0],
        "vlm_features": context.vlm_features,
        "aux_visual_inputs": context.aux_visual_inputs,
        "head_output": cast(jax.Array, head),
        "actions": actions,
    }
