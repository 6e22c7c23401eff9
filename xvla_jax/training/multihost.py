"""How the processes of a run find each other: one row for each kind of cluster."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import jax
from jaxlib import _jax as jax_library  # pyright: ignore[reportAttributeAccessIssue] # compiled

from xvla_jax.errors import ConfigError

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class DistributedConfig:
    """Fields of ``config.distributed``.

    Attributes:
        kind: a name in `KINDS`.
        address: host:port of process 0, for the kind ``coordinator``.
        num_processes: of the whole run, for the kind ``coordinator``.
        process_id: of this process, from 0, for the kind ``coordinator``.
        timeout_s: for which processes wait for each other, at the start and later.
        heartbeat_s: without a sign of life after which a process is taken for dead.
    """

    kind: str
    address: str
    num_processes: int
    process_id: int
    timeout_s: int
    heartbeat_s: int

    def __post_init__(self) -> None:
        """Raises a ConfigError for values that no run can have."""
        if self.kind not in KINDS:
            allowed = ", ".join(KINDS)
            raise ConfigError(f"config.distributed.kind is {self.kind!r}; allowed are {allowed}")
        for name in ("timeout_s", "heartbeat_s"):
            if getattr(self, name) < 1:
                raise ConfigError(f"config.distributed.{name} is {getattr(self, name)}; at least 1")
        if not KINDS[self.kind].explicit:
            return
        host, _, port = self.address.rpartition(":")
        if not host or not port.isdigit():
            raise ConfigError(
                f"config.distributed.address is {self.address!r}; kind 'coordinator' needs "
                "host:port of process 0"
            )
        if not 0 <= self.process_id < self.num_processes:
            raise ConfigError(
                f"config.distributed.process_id is {self.process_id} of num_processes "
                f"{self.num_processes}; kind 'coordinator' needs both, 0 <= process_id < "
                "num_processes (--config.distributed.process_id=1)"
            )


@dataclasses.dataclass(frozen=True)
class Kind:
    """A way to find the other processes.

    Attributes:
        several: whether there may be others.
        method: of ``jax.distributed.initialize``; None tries all that JAX knows.
        explicit: whether the config says who is who.
    """

    several: bool
    method: str | None = None
    explicit: bool = False


KINDS: Final[Mapping[str, Kind]] = {
    "none": Kind(several=False),
    "auto": Kind(several=True),  # Cloud TPU, GKE, multislice, Open MPI: nothing to give
    "slurm": Kind(several=True, method="slurm"),
    "coordinator": Kind(several=True, method="deactivate", explicit=True),
}


def _number(value: str) -> int:
    return int(value) if value.strip().isdigit() else 0


def _names(value: str) -> int:
    return len([name for name in value.split(",") if name.strip()])


# (variable, how many processes its value tells of at least, the kind that fits)
_SIGNS: Final[tuple[tuple[str, Callable[[str], int], str], ...]] = (
    ("SLURM_STEP_NUM_TASKS", _number, "slurm"),
    ("SLURM_NTASKS", _number, "slurm"),
    ("TPU_PROCESS_ADDRESSES", _names, "auto"),
    ("TPU_WORKER_HOSTNAMES", _names, "auto"),
    ("MEGASCALE_NUM_SLICES", _number, "auto"),
    ("OMPI_COMM_WORLD_SIZE", _number, "auto"),
    ("JOB_COMPLETION_INDEX", lambda value: _number(value) + 1, "auto"),  # Kubernetes, from 0
    ("JAX_NUM_PROCESSES", _number, "coordinator"),
    ("JAX_COORDINATOR_ADDRESS", lambda value: 2 if value else 0, "coordinator"),
)


def check_alone(environ: Mapping[str, str]) -> None:
    """A ConfigError where the environment tells of more processes than this one.

    Each of them would train a copy of its own, and write over the others' checkpoints.
    """
    for variable, count, kind in _SIGNS:
        value = environ.get(variable, "")
        if count(value) > 1:
            raise ConfigError(
                f"{variable} is {value!r}, so this is one of several processes, but "
                f"config.distributed.kind is 'none': each would train a model of its own. Set "
                f"--config.distributed.kind={kind}, or unset {variable} if this one is all"
            )


def connect(config: DistributedConfig, environ: Mapping[str, str] = os.environ) -> None:
    """Joins the other processes; returns when all are there.

    One that does not come within ``timeout_s`` ends the others with a message of JAX's own, which
    lists its number under "timed out task names".

    Raises:
        ConfigError: the kind does not fit what the environment says.
    """
    kind = KINDS[config.kind]
    if not kind.several:
        check_alone(environ)
        return
    given: dict[str, Any] = {}
    if kind.explicit:
        given = {
            "coordinator_address": config.address,
            "num_processes": config.num_processes,
            "process_id": config.process_id,
        }
    _log.info("waiting up to %d s for the other processes", config.timeout_s)
    try:
        with _names_the_late(config.timeout_s):
            jax.distributed.initialize(
                **given,
                cluster_detection_method=kind.method,
                # a little longer than process 0, which knows whom it waits for
                initialization_timeout=config.timeout_s + 10,
                heartbeat_timeout_seconds=config.heartbeat_s,
                shutdown_timeout_seconds=config.timeout_s,
            )
    except (ValueError, KeyError) as error:
        raise ConfigError(
            f"config.distributed.kind is {config.kind!r}, but no such cluster is found here "
            f"({error}). Set it to one of {', '.join(KINDS)}"
        ) from error


@contextlib.contextmanager
def _names_the_late(timeout_s: int) -> Iterator[None]:
    """Lets the coordinator end the wait for the others, and so say who is missing.

    ``jax.distributed`` passes no time limit on; without one the waiting processes give up first,
    and know nothing of each other.
    """
    make_service = jax_library.get_distributed_runtime_service
    jax_library.get_distributed_runtime_service = functools.partial(
        make_service, cluster_register_timeout=timeout_s
    )
    try:
        yield
    finally:
        jax_library.get_distributed_runtime_service = make_service
