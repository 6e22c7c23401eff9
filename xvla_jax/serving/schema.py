"""Describes the protocol for OpenAPI; docs/serving.md has it in words."""

from __future__ import annotations

from typing import Any, Final

from xvla_jax.errors import needs
from xvla_jax.inpainting import MODES

with needs("serve"):
    from pydantic import BaseModel, ConfigDict, Field


class Detail(BaseModel):
    """Part of the request that was refused."""

    field: str
    value: str | int | bool | None
    allowed: str


class ErrorReply(BaseModel):
    """The answer to every request that is not served."""

    error: str
    detail: Detail


class Timing(BaseModel):
    """Milliseconds of a request."""

    decode_ms: float
    queue_ms: float
    infer_ms: float
    total_ms: float


class ChannelReply(BaseModel):
    """One number of an action; low and high are a gripper's."""

    name: str
    unit: str
    low: str | None = None
    high: str | None = None
    own_unit: str | None = Field(None, description="of the robot, where `unit` is another")
    scale: float | None = Field(None, description="actions here are scale * own + offset")
    offset: float | None = None
    recorded: bool | None = Field(None, description="false: the data lack it, it means nothing")


class ActReply(BaseModel):
    """A chunk of actions, and how it came about."""

    action: list[list[float]] = Field(description="rows x action width")
    request_id: str
    model: str = Field(description="short hash of the model")
    plan: str = Field(description="sampler plan; /info has its certificate and latency")
    seed: int = Field(description="of the noise; sent again, it gives the same actions")
    channels: list[ChannelReply] | str = Field(description="of an action's row, or: unknown")
    server_timing: Timing
    observation_time: float | None = None
    warnings: list[str] | None = None


class InspectReply(BaseModel):
    """The model's inputs for a request; arrays as json_numpy writes them."""

    model_config = ConfigDict(extra="allow")
    instruction: str
    domain_id: int
    plan: str
    steps: int
    hidden_channels: list[int]


class StateReply(BaseModel):
    """State of the server."""

    state: str


class PlanReply(BaseModel):
    """A sampler plan; the latency is that of one observation, by number of views."""

    steps: int
    refresh: list[int] | None = Field(description="steps that compute the context; null: each")
    tolerance: float
    certificate: str | None = Field(description="seal; null: it needs none, or none was asked for")
    latency_ms: dict[str, float]


class InfoReply(BaseModel):
    """Model, contract and limits of the server."""

    model_config = ConfigDict(extra="allow")
    model: str
    model_sha256: str
    domains: list[int]
    domain_names: dict[str, int] = Field(description="ids by name, of the domains that have one")
    num_actions: int
    action_width: int
    proprio_width: int
    views: int
    channels: dict[str, list[ChannelReply] | str] = Field(description="by domain, or: unknown")
    plan: str = Field(description="of requests that name none and have time for it")
    plans: dict[str, PlanReply] = Field(description="that requests may name, the best first")


_IMAGE: Final = {
    "description": "json_numpy text of uint8[H, W, 3] RGB, or of a JPEG's or PNG's bytes uint8[n]",
    "type": ["string", "object", "array"],
}
_NUMBERS: Final = {
    "description": "json_numpy text, JSON text of a list, or a list; as wide as /info says",
    "type": ["string", "object", "array"],
}
_ROWS: Final = {
    "description": "rows that the chunk begins with, in the form of proprio; see docs/control.md",
    "type": ["string", "object", "array"],
}
_INTEGER: Final[dict[str, Any]] = {"type": ["integer", "string"]}
ACT_BODY: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["language_instruction", "proprio", "domain_id"],
                    "properties": {
                        "language_instruction": {"type": "string", "minLength": 1},
                        "proprio": _NUMBERS,
                        "image0": _IMAGE,
                        "image1": _IMAGE,
                        "image2": _IMAGE,
                        "domain_id": _INTEGER | {"description": "an id of /info, or its name"},
                        "prefix": _ROWS,
                        "prefix_committed": _INTEGER,
                        "prefix_mode": {"type": "string", "enum": list(MODES)},
                        "steps": _INTEGER,
                        "plan": {"type": "string", "description": "one of /info, without steps"},
                        "seed": _INTEGER,
                        "num_actions": _INTEGER,
                        "deadline_ms": _INTEGER,
                        "request_id": {"type": "string", "maxLength": 64},
                        "observation_time": {"type": "number"},
                    },
                }
            }
        },
    }
}


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Returns the ``responses`` of a route that can refuse."""
    return {status: {"model": ErrorReply} for status in statuses}
