"""Who takes part in an evaluation: a checkpoint, a control made from it, or the scripted expert."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from eval.tasks import TaskSpec, task_contract
from xvla_jax.batch import Observation
from xvla_jax.contract import Contract, check_contract
from xvla_jax.models.xvla import init_params
from xvla_jax.policy import Policy

EXPERT = "expert"
_RANDOM_WEIGHTS_SEED = 0


class BlindPolicy:
    """A policy whose cameras show black: what it solves, it solves without looking."""

    def __init__(self, policy: Any) -> None:  # anything with `act`
        self._policy = policy

    def act(self, observations: Sequence[Observation], *, seed: Sequence[int]) -> np.ndarray:
        """As `Policy.act`, on black images."""
        black: list[Observation] = [
            {**o, "images": [np.zeros_like(image) for image in o["images"]]} for o in observations
        ]
        return self._policy.act(black, seed=seed)


def _untrained(policy: Policy) -> Policy:
    """The same shape with random weights."""
    params = jax.jit(lambda key: init_params(policy.model, key))(
        jax.random.key(_RANDOM_WEIGHTS_SEED, impl="rbg")
    )
    return Policy(policy.config, params, policy.processor, policy.contracts)


_KINDS: dict[str, Callable[[Policy], Any]] = {
    "checkpoint": lambda policy: policy,
    "untrained": _untrained,
    "blind": BlindPolicy,
}


@dataclasses.dataclass(frozen=True)
class Entrant:
    """A name in the table, its kind, and the checkpoint's folder (empty for the expert)."""

    name: str
    kind: str
    folder: str


def parse_policy(text: str) -> Entrant:
    """NAME=[KIND:]FOLDER -> Entrant.

    Raises:
        ValueError: another form, or an unknown kind.
    """
    name, equals, value = text.partition("=")
    kind, colon, folder = value.partition(":")
    if not colon:
        kind, folder = "checkpoint", value
    known = (*_KINDS, EXPERT)
    if not name or not equals or kind not in known or bool(folder) == (kind == EXPERT):
        raise ValueError(
            f"--policy={text}: NAME=FOLDER or NAME=KIND:FOLDER is expected, with KIND one of "
            f"{', '.join(known)}; the expert takes no folder"
        )
    return Entrant(name, kind, folder)


def load(entrant: Entrant, spec: TaskSpec) -> Any:
    """The policy object, after its contract was compared with the task's."""
    policy = Policy.from_pretrained(entrant.folder)
    wanted = Contract(action_space=policy.config.action_mode, **task_contract(spec))
    check_contract(policy.contracts, wanted, who=f"task {spec.name!r}")
    return _KINDS[entrant.kind](policy)
