"""The policy as the server needs it: checked, hashed, compiled before the first request."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np

from xvla_jax import buckets
from xvla_jax.checkpoint_tools.certificate import check_plan
from xvla_jax.contract import UNKNOWN
from xvla_jax.errors import ConfigError
from xvla_jax.plans import DEFAULT, SamplerPlan
from xvla_jax.policy import Policy, Prepared
from xvla_jax.serving.limits import Limits
from xvla_jax.serving.request import Rules


class Engine(Protocol):
    """Interface of a policy behind the doors.

    Attributes:
        rules: values that requests may have.
        model: short hash of the model, in every reply.
        programs: (views, batch size) of each program that is compiled before the first request, for
            each plan.
        plans: sampler plans that requests may have, the best first.
        channels: by domain, in every reply: name, unit and polarity of each number of an action;
            ``unknown`` where the contract does not state them. One that the data of the domain do
            not record says so.
    """

    rules: Rules
    model: str
    programs: Sequence[tuple[int, int]]
    plans: Sequence[SamplerPlan]
    channels: Mapping[int, Any]

    @property
    def info(self) -> Mapping[str, Any]:
        """Content of ``/info``."""
        ...

    def prepare(self, observation: Any) -> Any:
        """Does the work that needs no device; several threads call it."""
        ...

    def run(
        self, items: Sequence[Any], plans: Sequence[SamplerPlan], seeds: Sequence[int]
    ) -> np.ndarray:
        """Maps prepared observations to ``float32[B, T, D]``; one thread calls it."""
        ...

    def inspect(self, item: Any) -> dict[str, Any]:
        """Returns the network's inputs for a prepared observation, arrays and plain values."""
        ...

    def warm(self, plan: SamplerPlan, views: int, batch: int) -> float:
        """Compiles one of `programs` and runs it; returns the seconds of a batch."""
        ...


class PolicyEngine:
    """A `Policy` behind the doors.

    Args:
        policy: the policy.
        limits: limits of the server.
        views: numbers of views to compile programs for; a request with another number runs in the
            next larger program.
        any_domain: accept domains without a contract too; where the checkpoint states none at all,
            as the released ones, every domain is accepted in any case.
        plans: sampler plans to serve, the best first: a request that names none gets the first that
            meets its deadline.
        certificates: folder of the checkpoint's certificate; None serves plans without one.

    Raises:
        CertificateError: a plan has no certificate of this model that allows it.
    """

    def __init__(
        self,
        policy: Policy,
        limits: Limits,
        *,
        views: Sequence[int] = (),
        any_domain: bool = False,
        plans: Sequence[SamplerPlan] = (DEFAULT,),
        certificates: buckets.Place | None = None,
    ) -> None:
        slots = policy.processor.num_views
        self.programs: Sequence[tuple[int, int]] = programs_of(slots, views, limits)
        self._views = sorted({count for count, _ in self.programs})
        self._policy = policy
        self.plans: Sequence[SamplerPlan] = tuple(plans)
        trained = policy.contracts and not any_domain
        domains = policy.contracts if trained else range(policy.config.num_domains)
        self.rules = Rules(
            num_views=slots,
            views=self._views[-1],
            widths=tuple(dict.fromkeys((policy.space.width, policy.space.real_width))),
            num_actions=policy.config.num_actions,
            domains=frozenset(domains),
            num_domains=policy.config.num_domains,
            limits=limits,
            cameras={domain: c.views for domain, c in policy.contracts.items()},
            names={name: i for name, i in policy.domains.items() if i in domains},
            lacking={i: c.lacking for i, c in policy.contracts.items() if c.unrecorded},
            plans={plan.name: plan for plan in self.plans},
        )
        self.channels: Mapping[int, Any] = {
            domain: _channels(policy, domain) for domain in sorted(self.rules.domains)
        }
        digest = model_sha256(policy)
        self.model = digest[:16]
        self._described = self._describe(digest)
        dtype = np.dtype(policy.model.dtype).name
        self._plans: dict[str, dict[str, Any]] = {
            plan.name: plan.to_dict()
            | {
                "certificate": certificates
                and check_plan(
                    plan, certificates, model_sha256=digest, dtype=dtype, int8=bool(policy.int8)
                ),
                "latency_ms": {},  # of one observation, by number of views
            }
            for plan in self.plans
        }

    @property
    def info(self) -> Mapping[str, Any]:
        """Content of ``/info``."""
        return {**self._described, "plan": self.plans[0].name, "plans": self._plans}

    def prepare(self, observation: Any) -> Prepared:
        """Calls `Policy.prepare`."""
        return self._policy.prepare(observation)

    def run(
        self, items: Sequence[Prepared], plans: Sequence[SamplerPlan], seeds: Sequence[int]
    ) -> np.ndarray:
        """Calls `Policy.run` in one of the programs that `warm` compiled."""
        shown = max(len(item.images) for item in items)
        views = next(count for count in self._views if count >= shown)
        return self._policy.run(items, plan=plans, seed=seeds, views=views)

    def inspect(self, item: Prepared) -> dict[str, Any]:
        """Returns pixels of the views that were sent, ids, proprio, and its hidden channels."""
        return {
            "pixels": item.images,
            "view_mask": np.arange(self.rules.num_views) < len(item.images),
            "input_ids": item.input_ids,
            "proprio": item.proprio,
            "hidden_channels": list(self._policy.space.hidden),
            "domain_id": item.domain_id,
        }

    def warm(self, plan: SamplerPlan, views: int, batch: int) -> float:
        """Runs a program twice, the second time with a clock."""
        side, width = self._policy.processor.image_size, self.rules.widths[0]
        item = self._policy.prepare(
            {
                "images": [np.zeros((side, side, 3), np.uint8)] * views,
                "instruction": "wait",
                "proprio": np.zeros(width, np.float32),
                "domain_id": min(self.rules.domains),
            }
        )
        self._policy.run([item] * batch, views=views, plan=plan)
        start = time.perf_counter()
        self._policy.run([item] * batch, views=views, plan=plan)
        seconds = time.perf_counter() - start
        if batch == 1:
            self._plans[plan.name]["latency_ms"][str(views)] = round(1000 * seconds, 1)
        return seconds

    def _describe(self, digest: str) -> dict[str, Any]:
        policy, rules = self._policy, self.rules
        contracts = {str(k): c.to_dict() for k, c in sorted(policy.contracts.items())}
        return {
            "model_sha256": digest,
            "model": self.model,
            "action_space": policy.space.mode,
            "contracts": contracts,
            "contracts_sha256": _json_sha256(contracts),
            "channels": {str(domain): channels for domain, channels in self.channels.items()},
            "domains": sorted(rules.domains),
            "domain_names": dict(rules.names),
            "num_actions": rules.num_actions,
            "action_width": policy.space.real_width,
            "proprio_width": rules.widths[0],
            "views": rules.views,
            "prefix": {
                "rows": rules.num_actions,
                "max_delay": policy.config.rtc_max_delay,
                "domains": [
                    domain
                    for domain in sorted(rules.domains)
                    if domain not in policy.contracts
                    or not policy.contracts[domain].relative_channels
                ],
            },
            "programs": {"views": self._views, "batch": rules.limits.batch},
            "image_size": policy.processor.image_size,
            "resize": policy.processor.resize,
            "resample": policy.processor.resample,
            "text_length": policy.processor.text_length,
            "device": jax.default_backend(),
            "dtype": str(np.dtype(policy.model.dtype)),
            "limits": dataclasses.asdict(rules.limits),
        }


def programs_of(slots: int, views: Sequence[int], limits: Limits) -> list[tuple[int, int]]:
    """Returns views and batch size of each program that a server compiles.

    Args:
        slots: of views in the checkpoint.
        views: numbers of views to serve; all if empty.
        limits: of the server.

    Raises:
        ConfigError: a number of views that the checkpoint has not.
    """
    counts = sorted(set(views)) or list(range(1, slots + 1))
    if not set(counts) <= set(range(1, slots + 1)):
        raise ConfigError(f"views is {counts}; 1 .. {slots} exist in this checkpoint")
    sizes = [1 << i for i in range(limits.batch.bit_length())]
    return [(count, size) for count in counts for size in sizes]


def _channels(policy: Policy, domain: int) -> list[dict[str, Any]] | str:
    """Returns the channels that a domain's contract states, without empty fields."""
    contract = policy.contracts.get(domain)
    if contract is None or not contract.channels:
        return UNKNOWN
    if len(contract.channels) > policy.space.real_width:
        raise ConfigError(
            f"action_contract.json: domain {domain} has {len(contract.channels)} channels; actions "
            f"of this checkpoint have {policy.space.real_width} numbers"
        )
    return [
        {name: said for name, said in channel.to_dict().items() if said != ""}
        | ({"recorded": False} if i in contract.unrecorded else {})
        for i, channel in enumerate(contract.channels)
    ]


def model_sha256(policy: Policy) -> str:
    """Hash of all that decides actions: config, preprocessing, and parameters as they compute.

    It is the same for every layout of checkpoint that they were read from.
    """
    digest = hashlib.sha256()
    processor = dataclasses.asdict(policy.processor)
    del processor["tokenizer_dir"], processor["extra"]
    digest.update(_json_sha256([policy.config.to_dict(), processor]).encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(policy.params):
        array = np.ascontiguousarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _json_sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=list).encode()).hexdigest()
