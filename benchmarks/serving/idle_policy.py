"""Serves a policy that answers zeros at once, so that a request takes the server's own time alone.

``python benchmarks/serving/idle_policy.py FOLDER`` writes ``info.json`` there. PYTHONPATH names the
checkout whose server it is.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from xvla_jax.plans import DEFAULT, SamplerPlan
from xvla_jax.serving.limits import Limits
from xvla_jax.serving.request import Rules
from xvla_jax.serving.server import Door, serve
from xvla_jax.serving.service import Service

_ROWS, _WIDTH = 30, 20
_LIMITS = Limits(batch=1)


class IdleEngine:
    """An engine without a device; see ``xvla_jax.serving.engine.Engine``."""

    def __init__(self) -> None:
        self.rules = Rules(
            num_views=3,
            views=2,
            widths=(_WIDTH,),
            num_actions=_ROWS,
            domains=frozenset({0}),
            num_domains=1,
            limits=_LIMITS,
        )
        self.info: Mapping[str, Any] = {"model": "idle"}
        self.model = "idle"
        self.channels: Mapping[int, Any] = {}
        self.programs: Sequence[tuple[int, int]] = ((2, 1),)
        self.plans: Sequence[SamplerPlan] = (DEFAULT,)

    def prepare(self, observation: Any) -> Any:
        """Returns the observation as it is."""
        return observation

    def run(
        self, items: Sequence[Any], plans: Sequence[SamplerPlan], seeds: Sequence[int]
    ) -> np.ndarray:
        """Returns zeros ``float32[B, T, D]``."""
        del plans, seeds
        return np.zeros((len(items), _ROWS, _WIDTH), np.float32)

    def inspect(self, item: Any) -> dict[str, Any]:
        """Returns nothing; no route asks for it."""
        del item
        return {}

    def warm(self, plan: SamplerPlan, views: int, batch: int) -> float:
        """Returns the seconds that a batch takes."""
        del plan, views, batch
        return 0.0


if __name__ == "__main__":
    sys.exit(serve(Service(IdleEngine, _LIMITS), Door(port=0), output_dir=sys.argv[1], task=None))
