"""Asks a policy server for chunks: compares contracts, retries within limits, never invents."""

from __future__ import annotations

import logging
import random
import time
import uuid
from typing import Any, Callable, Mapping, Sequence, TypeVar

import numpy as np
from numpy.typing import NDArray

from eval.pictures import BICUBIC, ENCODINGS, STRETCH, check_image, resize_bicubic

from .transports import TRANSPORTS, RemoteError, Transport, TryAgainError
from .units import OwnUnits

TRAINED = "trained"  # prefix_mode for a checkpoint that was trained for delays

_LOG = logging.getLogger(__name__)
_T = TypeVar("_T")

_FIRST_WAIT_S = 0.1  # before the second attempt; it doubles
_LONGEST_WAIT_S = 5.0
_JITTER = (0.5, 1.5)  # so that robots which lost one server do not come back in step
_MOST_SEED = 2**32 - 1


class PolicyUnavailableError(RemoteError):
    """No answer after all attempts. Hold the last commanded pose; see eval/robot/controller.py."""


class ContractMismatchError(RemoteError):
    """The server's numbers have another meaning than the robot's; nothing may be executed."""


class RemotePolicy:
    """A policy server as a policy: `act` takes observations and returns actions.

    Args:
        url: ``http://``, ``https://``, ``ws://`` or ``wss://`` host:port.
        expected: fields of the action contract by name, ``domain_id`` among them, or ``domain``,
            the name that the checkpoint has for it; for a row of the task table,
            `eval.tasks.table.task_contract`. Each is compared with the server's; of ``channels``,
            a list of names or of what is known of name, unit, low and high.
        token: the server's token, if it needs one.
        timeout_s: longest wait for one answer; sent as the request's deadline.
        retries: further attempts after a missing answer or a 503.
        resize: resize images to the model's size before sending, as the server would.
        encoding: form of the images, a name in `eval.pictures.ENCODINGS`; ``jpeg`` has losses.
        steps: denoising steps; the server's own number if None.
        plan: sampler plan that the server offers (``plans`` of ``info``), without steps; the best
            that meets the deadline if None.
        own_units: proprio, prefix and actions are in the robot's own units, where ``channels`` of
            the contract state one (degrees, -100..100, ...); False: in those of training.
        sleep: waits between attempts; tests put a fake here.

    Raises:
        ContractMismatchError: names every field that differs, with both values.
        PolicyUnavailableError: nobody answers.
        RequestRefusedError: the server does not let this client in.
        ValueError: an argument that means nothing.
    """

    def __init__(
        self,
        url: str,
        *,
        expected: Mapping[str, Any],
        token: str | None = None,
        timeout_s: float = 10.0,
        retries: int = 3,
        resize: bool = False,
        encoding: str = "raw",
        steps: int | None = None,
        plan: str | None = None,
        own_units: bool = True,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        scheme = url.partition("://")[0]
        if scheme not in TRANSPORTS:
            raise ValueError(f"url {url!r}: begin with one of {', '.join(TRANSPORTS)} and ://")
        if encoding not in ENCODINGS:
            raise ValueError(f"encoding {encoding!r}: one of {', '.join(ENCODINGS)}")
        if not {"domain_id", "domain"} & set(expected) or timeout_s <= 0 or retries < 0:
            raise ValueError(
                f"expected needs a domain_id or a domain (it has {sorted(expected)}); timeout_s "
                f"{timeout_s} must be above 0, retries {retries} not below"
            )
        self._transport: Transport = TRANSPORTS[scheme](url, token=token, timeout_s=timeout_s)
        self._retries = retries
        self._timeout_s = timeout_s
        self._encode = ENCODINGS[encoding]
        self._steps = steps
        self.plan = plan
        self._sleep = sleep
        self.info: dict[str, Any] = self._persist(self._transport.info)
        self._expected = with_domain_id(self.info, expected)
        self.contract: dict[str, Any] = agreed_contract(self.info, self._expected)
        units = OwnUnits(self.contract)
        self._units = units if own_units and units.convert else None
        self._side = _resized_side(self.info) if resize else None

    @property
    def domain_id(self) -> int:
        """The id that the server has for the robot's domain."""
        return int(self._expected["domain_id"])

    @property
    def policy_hash(self) -> str:
        """SHA-256 of the server's model."""
        return str(self.info["model_sha256"])

    def act(
        self, observations: Sequence[Mapping[str, Any]], *, seed: Sequence[int]
    ) -> NDArray[np.float32]:
        """Returns chunks float32[B, T, D] for observations, one request after the other.

        An observation may carry ``prefix`` float32[P, D], ``prefix_committed`` and
        ``prefix_mode``: rows that the chunk has to begin with, see docs/control.md.

        Args:
            observations: at least one.
            seed: seed of the noise, one each; the same seed gives the same actions.

        Raises:
            PolicyUnavailableError: no answer after all attempts; nothing was executed, hold.
            RequestRefusedError: the server refused the observation; the message names the field.
            ContractMismatchError: another model answers than at the beginning.
            ValueError: an observation is of another domain, or has another form.
        """
        if not observations or len(seed) != len(observations):
            raise ValueError(f"{len(observations)} observations and {len(seed)} seeds: one each")
        requests = [self._fields(o, s) for o, s in zip(observations, seed)]
        return np.stack([self._persist(lambda r=r: self._ask(r)) for r in requests])

    def close(self) -> None:
        """Ends the connection."""
        self._transport.close()

    def _fields(self, observation: Mapping[str, Any], seed: int) -> dict[str, Any]:
        domain = int(observation["domain_id"])
        if domain != self._expected["domain_id"]:
            raise ValueError(
                f"an observation of domain {domain} for a policy of domain "
                f"{self._expected['domain_id']}; make one RemotePolicy for each"
            )
        if not 0 <= int(seed) <= _MOST_SEED:
            raise ValueError(f"seed {seed}; 0 .. {_MOST_SEED}")
        limit = self.info.get("limits", {}).get("deadline_ms", np.inf)
        fields = request_fields(observation, side=self._side, encode=self._encode)
        if self._units is not None:
            state = self._units.trained_state(observation["proprio"])
            fields["proprio"] = state.astype(np.float32)
        fields["seed"] = int(seed)
        fields["deadline_ms"] = max(1, int(min(1000 * self._timeout_s, limit)))
        if self._steps is not None:
            fields["steps"] = self._steps
        if self.plan is not None:
            fields["plan"] = self.plan
        if "prefix_mode" in observation:
            fields["prefix_mode"] = self._prefix_mode(observation["prefix_mode"])
        if "prefix" in observation:
            self._check_prefix(domain)
            rows = observation["prefix"]
            if self._units is not None:
                rows = self._units.trained_actions(rows)
            fields["prefix"] = np.asarray(rows, np.float32)
            committed = observation.get("prefix_committed", len(fields["prefix"]))
            fields["prefix_committed"] = int(committed)
        return fields

    def _check_prefix(self, domain: int) -> None:
        """A server that knows no prefix would ignore it, with a warning."""
        if domain not in self.info.get("prefix", {}).get("domains", ()):
            raise ValueError(
                f"the server takes no prefix for domain {domain} (it has relative channels, or the "
                "server is an older one); use a strategy without"
            )

    def _prefix_mode(self, mode: str) -> str:
        """A server that knows no modes would inpaint, with a warning."""
        if mode == TRAINED and not self.info.get("prefix", {}).get("max_delay", 0):
            raise ValueError(
                f"prefix_mode {mode!r}: the server's checkpoint was not trained for delays (or the "
                "server is an older one); use another strategy"
            )
        return mode

    def _ask(self, fields: Mapping[str, Any]) -> NDArray[np.float32]:
        name = uuid.uuid4().hex
        reply = self._transport.act({**fields, "request_id": name})
        if reply.get("request_id") != name:
            self._transport.close()
            raise TryAgainError("the answer belongs to another request; it was dropped")
        if reply.get("model") != self.info["model"]:
            raise ContractMismatchError(
                f"model: {self.info['model']} at the beginning, now {reply.get('model')}; the "
                "server was restarted with another checkpoint: connect again"
            )
        for warning in reply.get("warnings") or ():
            _LOG.warning("server: %s", warning)
        chunk = np.asarray(reply["actions"], np.float32)
        shape = (self.info["num_actions"], self.info["action_width"])
        if chunk.shape != shape or not np.isfinite(chunk).all():
            raise RemoteError(f"the chunk is {chunk.shape}; finite numbers {shape} were announced")
        return chunk if self._units is None else self._units.own_actions(chunk).astype(np.float32)

    def _persist(self, attempt: Callable[[], _T]) -> _T:
        wait = _FIRST_WAIT_S
        for _ in range(self._retries):
            try:
                return attempt()
            except TryAgainError as error:
                wished = max(wait * random.uniform(*_JITTER), error.after_s)
                pause = min(wished, _LONGEST_WAIT_S)
                _LOG.warning("%s; again in %.1f s", error, pause)
                self._sleep(pause)
                wait *= 2
        try:
            return attempt()
        except TryAgainError as error:
            raise PolicyUnavailableError(
                f"no answer in {self._retries + 1} attempts; the last: {error}"
            ) from error


def request_fields(
    observation: Mapping[str, Any],
    *,
    side: int | None,
    encode: Callable[[Any], NDArray[np.uint8]],
) -> dict[str, Any]:
    """Returns the fields of a request for an `Observation`, by the server's names.

    Args:
        observation: images, instruction, proprio and domain_id.
        side: images are resized to this many px; None leaves them.
        encode: one of `eval.pictures.ENCODINGS`.
    """
    fields: dict[str, Any] = {
        "language_instruction": observation["instruction"],
        "proprio": np.asarray(observation["proprio"], np.float32),
        "domain_id": int(observation["domain_id"]),
    }
    for i, image in enumerate(observation["images"]):
        array = check_image(image)
        if side is not None:
            array = np.ascontiguousarray(resize_bicubic(array, side))
        fields[f"image{i}"] = encode(array)
    return fields


def with_domain_id(info: Mapping[str, Any], expected: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the expected fields with the server's id in the place of the domain's name.

    Raises:
        ContractMismatchError: the server has no domain of that name, or another id for it.
    """
    fields = dict(expected)
    if "domain" not in fields:
        return fields
    name, names = fields.pop("domain"), info.get("domain_names", {})
    if name not in names:
        known = ", ".join(sorted(names)) or "no names"
        raise ContractMismatchError(f"domain: the robot is {name!r}, the server has {known}")
    if fields.setdefault("domain_id", names[name]) != names[name]:
        raise ContractMismatchError(
            f"domain_id: the robot is {fields['domain_id']}, the server has {name!r} as "
            f"{names[name]}"
        )
    return fields


def agreed_contract(info: Mapping[str, Any], expected: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the server's contract for the expected domain after comparing it.

    Raises:
        ContractMismatchError: names every field that differs, with both values.
    """
    contracts = info.get("contracts", {})
    domain = str(expected["domain_id"])
    if domain not in contracts:
        raise ContractMismatchError(
            f"domain_id: the robot is {domain}, the server has contracts for "
            f"{', '.join(sorted(contracts)) or 'none'}; a checkpoint says them in its "
            "action_contract.json"
        )
    contract = {k: tuple(v) if isinstance(v, list) else v for k, v in contracts[domain].items()}
    contract.setdefault("unrecorded", ())  # left out where all channels are recorded
    differing = [
        f"{name}: server {contract.get(name)!r}, robot {own!r}"
        for name, own in expected.items()
        if name != "channels"
        and contract.get(name) != (tuple(own) if isinstance(own, list) else own)
    ]
    lacking = _named(contract, contract["unrecorded"])
    if lacking and "unrecorded" in expected:
        differing = [f"{d} ({lacking})" if d.startswith("unrecorded") else d for d in differing]
    elif lacking:
        _LOG.warning(
            "the data of this domain do not record %s: actions there hold what proprio says and "
            "mean nothing",
            lacking,
        )
    if "channels" in expected:
        differing += _differing_channels(contract.get("channels") or (), expected["channels"])
    if differing:
        raise ContractMismatchError("the action contracts differ; " + "; ".join(differing))
    return contract


def _named(contract: Mapping[str, Any], channels: Sequence[int]) -> str:
    """Names of channels, or their numbers where the server states no names."""
    stated = dict(enumerate(contract.get("channels") or ()))
    return ", ".join(str(stated.get(i, {}).get("name", f"channel {i}")) for i in channels)


def _differing_channels(
    served: Sequence[Mapping[str, str]], own: Sequence[str | Mapping[str, str]]
) -> list[str]:
    """Returns a line for each statement of the robot that the server does not share."""
    if len(served) != len(own):
        known = f"{len(served)} of them" if served else "unknown"
        return [f"channels: server {known}, robot {len(own)} of them"]
    stated = [{"name": w} if isinstance(w, str) else w for w in own]
    return [
        f"channels[{i}] {one.get('name')!r}, {part}: server {one.get(part)!r}, robot {value!r}"
        for i, (one, other) in enumerate(zip(served, stated))
        for part, value in other.items()
        if ("" if one.get(part) is None else one[part]) != value
    ]


def _resized_side(info: Mapping[str, Any]) -> int:
    if info.get("resize", STRETCH) != STRETCH:
        raise ValueError(
            f"the server resizes images by {info['resize']!r}, this client only by {STRETCH!r}; "
            "leave resize off"
        )
    if info.get("resample") != BICUBIC:
        raise ValueError(
            f"the server resizes with filter {info.get('resample')}, this client only with "
            f"{BICUBIC} (bicubic); leave resize off"
        )
    return int(info["image_size"])
