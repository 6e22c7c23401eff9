"""A policy server as an entrant of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from eval.client.remote import RemotePolicy
from eval.tasks.spec import TaskSpec, task_contract


class ServedPolicy:
    """Door 2 through one connection for each domain of the tasks.

    Args:
        url: of the server, as `RemotePolicy` takes it.
        specs: the tasks; the server's contract is compared with each.

    Raises:
        ContractMismatchError: names every field that differs.
        PolicyUnavailableError: nobody answers.
    """

    def __init__(self, url: str, specs: Sequence[TaskSpec]) -> None:
        self._by_domain: dict[int, RemotePolicy] = {}
        for spec in specs:
            connected = RemotePolicy(url, expected=task_contract(spec))
            self._by_domain[spec.client.domain_id] = connected
        self.policy_hash = next(iter(self._by_domain.values())).policy_hash

    @property
    def contracts(self) -> dict[str, dict[str, Any]]:
        """The server's action contracts, by domain."""
        return {str(domain): remote.contract for domain, remote in self._by_domain.items()}

    def act(self, observations: Sequence[Mapping[str, Any]], *, seed: Sequence[int]) -> np.ndarray:
        """As `RemotePolicy.act`, for any of the domains."""
        chunks = [
            self._by_domain[int(observation["domain_id"])].act([observation], seed=[number])[0]
            for observation, number in zip(observations, seed, strict=True)
        ]
        return np.stack(chunks)
