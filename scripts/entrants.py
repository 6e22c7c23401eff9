"""Who takes part in an evaluation: a checkpoint, a control made from it, or the scripted expert."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from eval.plans import planned_tasks
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


def check_names(entrants: Sequence[Entrant], film: str) -> None:
    """Refuses, before anything runs, names that would lose results at the end.

    Raises:
        ValueError: a name given twice, or a film of a policy that does not take part.
    """
    names = [entrant.name for entrant in entrants]
    if len(set(names)) != len(names):
        raise ValueError(f"--policy names {', '.join(names)}; each name may stand once")
    if film and film not in names:
        raise ValueError(f"--film={film}: the policies are {', '.join(names)}")


def common_tasks(spec: TaskSpec, entrants: Sequence[Entrant]) -> TaskSpec:
    """The row with the tasks that all entrants can try: the expert those that it has a plan for.

    Raises:
        ValueError: it has none.
    """
    if all(entrant.kind != EXPERT for entrant in entrants):
        return spec
    return dataclasses.replace(spec, task_ids=planned_tasks(spec.suite, spec.task_ids))


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


# Entrants made from one folder share its weights and compiled programs.
_open = functools.cache(Policy.from_pretrained)


def load(entrant: Entrant, spec: TaskSpec) -> Any:
    """The policy object, after its contract was compared with the task's."""
    policy = _open(entrant.folder)
    wanted = Contract(action_space=policy.config.action_mode, **task_contract(spec))
    check_contract(policy.contracts, wanted, who=f"task {spec.name!r}")
    return _KINDS[entrant.kind](policy)
