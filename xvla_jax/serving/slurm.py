"""Where a SLURM task runs, from its environment."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterator, Mapping

from xvla_jax.errors import ConfigError

_PIECES = re.compile(r"[^,\[\]]+|\[[^\]]*\]|,")
_RANGE = re.compile(r"(\d+)(?:-(\d+))?")
_ADDRESS = re.compile(r"[^-]+-(\d{1,3})-(\d{1,3})-(\d{1,3})-(\d{1,3})")
_MOST_NODES = 100_000


@dataclasses.dataclass(frozen=True)
class SlurmTask:
    """One task of a job.

    Attributes:
        job_id: of the job.
        node_list: as SLURM writes it.
        host: of this task; an address if the node's name holds one, as X-VLA's cluster has it.
        index: of this task in the job, from 0.
    """

    job_id: str
    node_list: str
    host: str
    index: int


def slurm_task(environ: Mapping[str, str]) -> SlurmTask | None:
    """The task that this process is; None outside of SLURM.

    Raises:
        ConfigError: a node list or number that cannot be read.
    """
    text = environ.get("SLURM_NODELIST") or environ.get("SLURM_JOB_NODELIST")
    if not text:
        return None
    nodes = expand_nodes(text)
    node = _number(environ, "SLURM_NODEID", 0)
    if node >= len(nodes):
        raise ConfigError(f"SLURM_NODEID is {node}; SLURM_NODELIST={text} has {len(nodes)} nodes")
    name = environ.get("SLURMD_NODENAME") or nodes[node]
    address = _ADDRESS.fullmatch(name)
    return SlurmTask(
        job_id=environ.get("SLURM_JOB_ID", "none"),
        node_list=text,
        host=".".join(address.groups()) if address else name,
        index=_number(environ, "SLURM_PROCID", 0),
    )


def expand_nodes(text: str) -> list[str]:
    """``gpu-[01-03,7],login`` -> ``gpu-01 gpu-02 gpu-03 gpu-7 login``.

    Raises:
        ConfigError: not a node list.
    """
    pieces = _PIECES.findall(text)
    if "".join(pieces) != text:
        raise ConfigError(f"SLURM_NODELIST={text}: brackets do not match")
    nodes: list[str] = []
    for is_comma, group in itertools.groupby(pieces, lambda piece: piece == ","):
        if not is_comma:
            parts = [_numbers(p, text) if p.startswith("[") else [p] for p in group]
            nodes += ["".join(combination) for combination in itertools.product(*parts)]
    if not nodes:
        raise ConfigError(f"SLURM_NODELIST={text}: no node is named")
    return nodes


def _numbers(piece: str, text: str) -> list[str]:
    def expand(item: str) -> Iterator[str]:
        found = _RANGE.fullmatch(item)
        if not found:
            raise ConfigError(f"SLURM_NODELIST={text}: {item!r} is no number and no range")
        first, last = found[1], found[2] or found[1]
        if not 0 <= int(last) - int(first) < _MOST_NODES:
            raise ConfigError(f"SLURM_NODELIST={text}: {item!r} is no range")
        return (str(n).zfill(len(first)) for n in range(int(first), int(last) + 1))

    return [name for item in piece[1:-1].split(",") for name in expand(item)]


def _number(environ: Mapping[str, str], name: str, default: int) -> int:
    text = environ.get(name, str(default))
    if not text.isdigit():
        raise ConfigError(f"{name} is {text!r}; a number is expected")
    return int(text)
