"""Policies with a sampler plan: the plans of a command line, and what a receipt states of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from xvla_jax import buckets
from xvla_jax.batch import Observation
from xvla_jax.checkpoint_tools.certificate import check_plan
from xvla_jax.plans import DEFAULT, SamplerPlan, named_plan
from xvla_jax.policy import Policy
from xvla_jax.serving.engine import model_sha256


@dataclasses.dataclass(frozen=True)
class PlannedPolicy:
    """A policy that samples by one plan."""

    policy: Policy
    plan: SamplerPlan

    def act(self, observations: Sequence[Observation], *, seed: Sequence[int]) -> np.ndarray:
        """Returns actions [B, T, D]."""
        return self.policy.act(observations, seed=seed, plan=self.plan)


def parse_plans(texts: Sequence[str], names: Collection[str]) -> dict[str, SamplerPlan]:
    """Parses [POLICY=]PLAN; a plan without a policy is that of all that have none of their own.

    Args:
        texts: values of --plan.
        names: of the policies.

    Raises:
        ValueError: a policy that is not evaluated, or one that is named twice.
        ConfigError: there is no such plan.
    """
    plans: dict[str, SamplerPlan] = {}
    for text in texts:
        policy, _, name = text.rpartition("=")
        if policy in plans or (policy and policy not in names):
            problem = "is given twice" if policy in plans else "is not evaluated"
            raise ValueError(
                f"--plan={text}: policy {policy!r} {problem}; the policies are {', '.join(names)}"
            )
        plans[policy] = named_plan(name, "--plan")
    return {name: plans.get(name, plans.get("", DEFAULT)) for name in names}


def sampler_of(
    policy: Policy, folder: str, plan: SamplerPlan, *, uncertified: bool
) -> dict[str, Any] | None:
    """Returns what a receipt states of a plan; None of the default one with float weights.

    Raises:
        CertificateError: the checkpoint has no certificate that allows it; not if `uncertified`.
    """
    if plan == DEFAULT and not policy.int8:
        return None
    seal = None
    if not uncertified:
        dtype = np.dtype(policy.model.dtype).name
        place, digest = buckets.place_of(folder), model_sha256(policy)
        int8 = bool(policy.int8)
        seal = check_plan(plan, place, model_sha256=digest, dtype=dtype, int8=int8)
    return {"plan": plan.name, **plan.to_dict(), "certificate": seal}
