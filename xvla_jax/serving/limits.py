"""What a request may ask for, and how many may wait."""

from __future__ import annotations

import dataclasses

from xvla_jax.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Limits:
    """Bounds of the server; every one has a flag of scripts/serve.py.

    Attributes:
        body_bytes: of a request, and of a websocket message.
        body_seconds: until the last byte of a body is there.
        image_pixels: of one image.
        text_characters: of an instruction.
        steps: denoising steps.
        deadline_ms: longest deadline, and that of a request that names none.
        queue: requests that wait, of all clients.
        batch: observations that run together; a power of two.
        wait_ms: that a request may wait for others.
        connections: open at once; more make the oldest without a request end.
        idle_seconds: that a websocket may be silent.
    """

    body_bytes: int = 16 * 2**20
    body_seconds: float = 10.0
    image_pixels: int = 2**22
    text_characters: int = 1000
    steps: int = 50
    deadline_ms: int = 30_000
    queue: int = 64
    batch: int = 8
    wait_ms: float = 5.0
    connections: int = 256
    idle_seconds: float = 3600.0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value < 0 or (value == 0 and field.name != "wait_ms"):
                raise ConfigError(f"limit {field.name} is {value}; it must be above 0")
        if self.batch & (self.batch - 1):
            raise ConfigError(f"limit batch is {self.batch}; a power of two is expected")
