"""The policies of an evaluation: checkpoints, controls made from them, servers, the expert.

`parse_policy` reads --policy as an `Entrant`, `common_tasks` and `check_names` check all of them
together, and `load` makes the `Contestant`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from eval.client.remote import RemotePolicy
from eval.runs.evaluation import Contestant
from eval.simulators.plans import planned_tasks
from eval.tasks.table import TaskSpec, task_contract, task_spec
from scripts.evaluation.lerobot_policy import LeRobotPolicy
from scripts.evaluation.planned import PlannedPolicy, sampler_of
from xvla_jax.actions import misfit
from xvla_jax.batch import Observation
from xvla_jax.buckets import SCHEME
from xvla_jax.checkpoints.run_folder import on_disk
from xvla_jax.config import XVLAConfig
from xvla_jax.contract import Contract, check_contract
from xvla_jax.errors import ContractError
from xvla_jax.models.xvla import init_params
from xvla_jax.plans import DEFAULT, SamplerPlan, exact
from xvla_jax.policy import Policy
from xvla_jax.serving.engine import model_sha256

EXPERT = "expert"
SERVER = "server"  # its "folder" is a URL
LEROBOT = "lerobot"  # the checkpoint acts inside LeRobot
_RANDOM_WEIGHTS_SEED = 0


@dataclasses.dataclass(frozen=True)
class Entrant:
    """A policy of the command line: name, kind, and folder or URL (empty for the expert)."""

    name: str
    kind: str
    folder: str


def parse_policy(text: str) -> Entrant:
    """Parses [NAME=][KIND:]FOLDER; without NAME the name is the folder's, or else the kind.

    Raises:
        ValueError: another form, an unknown kind, or a name that no file can have.
    """
    name, equals, value = text.partition("=")  # a folder may have more of them
    if not equals:
        name, value = "", text
    kind, colon, folder = value.partition(":")
    if not colon or kind == SCHEME:
        kind, folder = "checkpoint", value
    known = (*_KINDS, SERVER, LEROBOT, EXPERT)
    if not equals:
        name = pathlib.PurePath(folder).name or kind
    if not name or "/" in name or kind not in known or bool(folder) == (kind == EXPERT):
        raise ValueError(
            f"--policy={text}: FOLDER, NAME=FOLDER or NAME=KIND:FOLDER is expected, with KIND one "
            f"of {', '.join(known)}; the expert takes no folder, a server a URL"
        )
    return Entrant(name, kind, folder)


def check_names(entrants: Sequence[Entrant], film: str) -> None:
    """Refuses names for which results would be lost at the end.

    Raises:
        ValueError: a name is given twice, or --film names none of the policies.
    """
    names = [entrant.name for entrant in entrants]
    if len(set(names)) != len(names):
        raise ValueError(f"--policy names {', '.join(names)}; each name may be given once")
    if film and film not in names:
        raise ValueError(f"--film={film}: the policies are {', '.join(names)}")


def common_tasks(
    spec: TaskSpec, entrants: Sequence[Entrant], task_ids: Sequence[int] | None = None
) -> TaskSpec:
    """Returns the row with the tasks that all entrants can try.

    The expert can try those that it has a plan for.

    Args:
        spec: the row.
        entrants: of the evaluation.
        task_ids: tasks of the row's suite in place of the row's own; None for the row's own.

    Raises:
        ValueError: the row has no such task, or the expert has a plan for none of them.
    """
    if task_ids is not None:
        # other rows do not list their tasks: their simulator refuses unknown ones
        listed = len(spec.scenarios or spec.task_names)
        if listed and max(task_ids) >= listed:
            raise ValueError(f"--task_ids={max(task_ids)}; {spec.name} has 0 .. {listed - 1}")
        spec = dataclasses.replace(spec, task_ids=tuple(task_ids))
    if all(entrant.kind != EXPERT for entrant in entrants):
        return spec
    return dataclasses.replace(spec, task_ids=planned_tasks(spec.suite, spec.task_ids))


def parse_task_ids(texts: Sequence[str] | None) -> tuple[int, ...] | None:
    """Parses --task_ids: ["3", "1"] -> (3, 1), None -> None.

    Raises:
        ValueError: they are no integers from 0 on, or one is given twice.
    """
    if texts is None:
        return None
    wrong = [text for text in texts if not text.strip().isdecimal()]
    task_ids = tuple(int(text) for text in texts if text not in wrong)
    if wrong or not task_ids or len(set(task_ids)) < len(task_ids):
        raise ValueError(
            f"--task_ids={','.join(texts)}; give different integers from 0 on, like 3,1,8"
        )
    return task_ids


# Entrants from one folder share its weights and compiled programs.
_open = functools.cache(Policy.from_pretrained)


def load(
    entrant: Entrant,
    specs: Sequence[TaskSpec],
    *,
    lerobot_python: str,
    until: contextlib.ExitStack,
    steps: int | None = None,
    plan: SamplerPlan = DEFAULT,
    uncertified: bool = False,
) -> Contestant:
    """Loads a policy with its hash and contracts, and compares these with each task's.

    Args:
        entrant: the policy.
        specs: the tasks.
        lerobot_python: Python of an environment with lerobot, for entrants of that kind.
        until: ends their processes.
        steps: denoising steps; None for the policy's own number.
        plan: of the sampler.
        uncertified: use a plan that has no certificate of this checkpoint.

    Raises:
        ValueError: chunks are shorter than a row carries out, a plan or steps for a policy that
            samples by itself, or both.
        TorchReferenceError: LeRobot cannot load the checkpoint.
        CertificateError: the checkpoint has no certificate that allows the plan.
        ContractError, ContractMismatchError: names every field that differs.
        PolicyUnavailableError: no server answers.
    """
    identity: dict[str, Any] = {"kind": entrant.kind, "source": entrant.folder}
    identity |= {"hash": None, "contracts": {}}
    acting = _acting_plan(entrant, plan, steps)
    if entrant.kind == EXPERT:
        return Contestant(entrant.name, None, identity)
    if entrant.kind == SERVER:
        served = ServedPolicy(entrant.folder, specs, steps=steps)
        for spec in specs:
            check_length(spec, served.num_actions)
        identity |= {"hash": served.policy_hash, "contracts": served.contracts, **served.sampler}
        return Contestant(entrant.name, served, identity)
    opened = _open(entrant.folder)
    for spec in specs:
        check_task(spec, opened.config.action_mode, opened.contracts)
        check_length(spec, opened.config.num_actions)
    kind = _KINDS.get(entrant.kind, _KINDS["checkpoint"])
    model = kind.model(opened)
    policy = kind.wrap(model if acting == DEFAULT else PlannedPolicy(model, acting))
    if entrant.kind == LEROBOT:
        folder = str(on_disk(entrant.folder))
        policy = until.enter_context(LeRobotPolicy(folder, opened, lerobot_python))
    contracts = {
        str(spec.client.domain_id): opened.contracts[spec.client.domain_id].to_dict()
        for spec in specs
    }
    identity |= {"hash": model_sha256(model), "contracts": contracts}
    sampler = sampler_of(model, entrant.folder, plan, uncertified=uncertified)
    if sampler is not None:
        identity["sampler"] = sampler
    return Contestant(entrant.name, policy, identity)


def _acting_plan(entrant: Entrant, plan: SamplerPlan, steps: int | None) -> SamplerPlan:
    """Returns the plan that a policy acts by: the one given, or X-VLA's own with other steps."""
    if plan != DEFAULT and entrant.kind in (EXPERT, SERVER, LEROBOT):
        raise ValueError(
            f"--plan: policy {entrant.name} is of the kind {entrant.kind}, which has its own "
            f"sampler; plans are for {', '.join(_KINDS)}"
        )
    if steps is None:
        return plan
    if plan != DEFAULT:
        raise ValueError(
            f"--steps={steps} and --plan={plan.name} of {entrant.name}: a plan has its own steps; "
            "give one of the two"
        )
    if entrant.kind == LEROBOT:
        raise ValueError(
            f"--steps={steps}: {entrant.name} acts inside LeRobot with the steps of its own "
            "configuration; leave --steps out"
        )
    return exact(steps)


def check_task(spec: TaskSpec, mode: str, contracts: Mapping[int, Contract]) -> None:
    """Compares a task's action conventions with those of a checkpoint.

    Args:
        spec: the task.
        mode: action space of the checkpoint.
        contracts: of the checkpoint, by domain.

    Raises:
        ContractError: names every field that differs.
    """
    contract = row_contract(spec, mode)
    if not contracts:
        raise ContractError(
            f"task {spec.name!r} needs domain {contract.domain_id}; the checkpoint has no "
            "action_contract.json, as X-VLA's released folders. Where its weights were trained for "
            "this row, python -m scripts.convert_checkpoint CHECKPOINT OUT --layout=hf "
            f"--tasks={spec.name} states it"
        )
    check_contract(contracts, contract, who=f"task {spec.name!r}")


def row_contract(spec: TaskSpec, mode: str) -> Contract:
    """Returns the action contract of a task with an action space.

    Raises:
        ContractError: the action space holds no such actions.
    """
    conventions = task_contract(spec)
    problem = misfit(mode, rotation_layout=conventions["rotation_layout"])
    if problem:
        raise ContractError(f"task {spec.name!r} has {problem}")
    return Contract(action_space=mode, **conventions)


def check_length(spec: TaskSpec, num_actions: int) -> None:
    """Refuses a model whose chunks end before a task asks again.

    Raises:
        ContractError: names both lengths, and what the row may carry out.
    """
    client = spec.client
    if num_actions < client.rows_needed:
        raise ContractError(
            f"task {spec.name!r} carries out {client.executed} rows of a chunk with stride "
            f"{client.stride}; the model's chunks have {num_actions} (num_actions in its "
            f"config.json), so --executed may be 1 to {(num_actions - 1) // client.stride + 1}"
        )


def contracts_of(names: Sequence[str], config: XVLAConfig) -> list[Contract]:
    """Returns the action contracts of rows by name, one a domain.

    Raises:
        ContractError: the model does not fit a row, or two rows contradict each other.
        ValueError: there is no such row.
    """
    by_domain: dict[int, Contract] = {}
    for name in names:
        check_length(task_spec(name), config.num_actions)
        contract = row_contract(task_spec(name), config.action_mode)
        if by_domain.setdefault(contract.domain_id, contract) != contract:
            raise ContractError(
                f"{names} have two contracts of domain {contract.domain_id}; give rows of one"
            )
    return list(by_domain.values())


class ServedPolicy:
    """A policy behind a server, with one connection for each domain of the tasks.

    Args:
        url: of the server, see `RemotePolicy`.
        specs: the tasks; the server's contract is compared with each.
        steps: denoising steps; None for the server's own number.

    Raises:
        ContractMismatchError: names every field that differs.
        PolicyUnavailableError: nobody answers.
    """

    def __init__(self, url: str, specs: Sequence[TaskSpec], *, steps: int | None = None) -> None:
        self._by_domain: dict[int, RemotePolicy] = {}
        for spec in specs:
            connected = RemotePolicy(url, expected=task_contract(spec), steps=steps)
            # one plan for all episodes, where the server would choose by deadline; older ones
            # know none
            connected.plan = connected.info.get("plan")
            self._by_domain[spec.client.domain_id] = connected
        self._first = next(iter(self._by_domain.values()))
        self.policy_hash = self._first.policy_hash
        self.num_actions = int(self._first.info["num_actions"])

    @property
    def sampler(self) -> dict[str, Any]:
        """The server's plan where it is not the default one, as a receipt states it."""
        name = self._first.info.get("plan", DEFAULT.name)
        stated = self._first.info.get("plans", {}).get(name, {})
        kept = {
            key: stated[key]
            for key in ("steps", "refresh", "tolerance", "certificate")
            if key in stated
        }
        return {} if name == DEFAULT.name else {"sampler": {"plan": name, **kept}}

    @property
    def contracts(self) -> dict[str, dict[str, Any]]:
        """The server's action contracts, by domain."""
        return {str(domain): remote.contract for domain, remote in self._by_domain.items()}

    def act(self, observations: Sequence[Mapping[str, Any]], *, seed: Sequence[int]) -> np.ndarray:
        """Returns actions [B, T, D] for observations of any of the domains."""
        chunks = [
            self._by_domain[int(observation["domain_id"])].act([observation], seed=[number])[0]
            for observation, number in zip(observations, seed, strict=True)
        ]
        return np.stack(chunks)


class BlindPolicy:
    """A policy whose cameras show black, to measure what can be solved without looking."""

    def __init__(self, policy: Any) -> None:  # anything with `act`
        self._policy = policy

    def act(self, observations: Sequence[Observation], *, seed: Sequence[int]) -> np.ndarray:
        """Calls the policy with black images."""
        black: list[Observation] = [
            {**o, "images": [np.zeros_like(image) for image in o["images"]]} for o in observations
        ]
        return self._policy.act(black, seed=seed)


def _untrained(policy: Policy) -> Policy:
    """Returns a policy of the same shape with random weights."""
    params = jax.jit(lambda key: init_params(policy.model, key))(
        jax.random.key(_RANDOM_WEIGHTS_SEED, impl="rbg")
    )
    return Policy(policy.config, params, policy.processor, policy.contracts, domains=policy.domains)


@dataclasses.dataclass(frozen=True)
class _Kind:
    """A kind of entrant made from a checkpoint: its parameters, and a wrapper around the policy."""

    model: Callable[[Policy], Policy]
    wrap: Callable[[Any], Any]


def _as_it_is(policy: Any) -> Any:
    return policy


_KINDS: dict[str, _Kind] = {
    "checkpoint": _Kind(_as_it_is, _as_it_is),
    "untrained": _Kind(_untrained, _as_it_is),
    "blind": _Kind(_as_it_is, BlindPolicy),
}
