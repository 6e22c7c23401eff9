"""The process: socket, signals, readiness, and an orderly end."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import gc
import ipaddress
import itertools
import json
import logging
import os
import pathlib
import re
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from xvla_jax.errors import ConfigError, XVLAError, needs
from xvla_jax.serving.access import LOOPBACK_NAMES
from xvla_jax.serving.app import create_app
from xvla_jax.serving.connections import protocols
from xvla_jax.serving.service import Service

with needs("serve"):
    import uvicorn

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


_LOG = logging.getLogger(__name__)


def info_files(task: SlurmTask | None) -> list[str]:
    """Names of the files that a task writes: ``info.json`` is the first task's."""
    if task is None:
        return ["info.json"]
    return [*(["info.json"] if task.index == 0 else []), f"info.{task.index}.json"]


@contextlib.contextmanager
def announced(
    folder: str | os.PathLike[str], host: str, port: int, task: SlurmTask | None
) -> Iterator[None]:
    """The files are there inside, whole, and gone behind; enter when the socket answers.

    A file that somebody left is replaced. One that another server wrote meanwhile stays.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(
        {
            "host": host,
            "port": port,
            "job_id": task.job_id if task else "none",
            "node_list": task.node_list if task else "none",
        }
    )
    paths = [folder / name for name in info_files(task)]
    for path in paths:
        if path.exists():
            _LOG.warning("%s was left by another server; it is replaced", path)
        scratch = path.with_name(f".{path.name}.{os.getpid()}")
        scratch.write_text(text)
        scratch.replace(path)
    try:
        yield
    finally:
        for path in paths:
            with contextlib.suppress(FileNotFoundError):
                if path.read_text() == text:
                    path.unlink()


_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
_SHORTEST_TOKEN: Final = 16  # characters
_PING_SECONDS: Final = 20.0
_KEEP_ALIVE_SECONDS: Final = 60
_SWITCH_SECONDS: Final = 0.001


@dataclasses.dataclass(frozen=True)
class Door:
    """Where the server listens and whom it lets in.

    Attributes:
        host: address to bind.
        port: 0 for a free one.
        token: what clients must show; None lets everybody in.
        insecure: no token although others than this machine can connect.
        tls_cert: PEM file; with ``tls_key`` the server speaks TLS.
        tls_key: PEM file.
        drain_seconds: longest wait for requests in flight at the end.
        inspect: answer ``POST /inspect``; on loopback, or with a token, only.
        allowed_hosts: names that clients may call the server by, beside those of loopback; without
            any, a server on another address is called as clients like.
        trusted_proxies: addresses whose ``X-Forwarded-For`` is believed.
    """

    host: str = "127.0.0.1"
    port: int = 8010
    token: str | None = None
    insecure: bool = False
    tls_cert: str | None = None
    tls_key: str | None = None
    drain_seconds: float = 30.0
    inspect: bool = False
    allowed_hosts: tuple[str, ...] = ()
    trusted_proxies: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.token is not None and len(self.token) < _SHORTEST_TOKEN:
            raise ConfigError(
                f"the token has {len(self.token)} characters; {_SHORTEST_TOKEN} or more are needed"
            )
        if bool(self.tls_cert) != bool(self.tls_key):
            raise ConfigError("TLS needs both, a certificate and its key")
        if self.inspect and not (self.token or is_loopback(self.host)):
            raise ConfigError(
                f"--inspect on host {self.host} needs a token (--token_file, or XVLA_TOKEN)"
            )
        if not (self.token or self.insecure or is_loopback(self.host)):
            raise ConfigError(
                f"host {self.host} can be reached from other machines, and there is no token: "
                "give one (--token_file, or XVLA_TOKEN), bind 127.0.0.1, or say --insecure"
            )

    @property
    def hosts(self) -> frozenset[str] | None:
        """Whom the Host header may name; None for any.

        A page in a browser reaches loopback under a name of its own, by changing where it points.
        """
        if not (self.allowed_hosts or is_loopback(self.host)):
            return None
        return LOOPBACK_NAMES | {self.host.lower(), *(name.lower() for name in self.allowed_hosts)}


def is_loopback(host: str) -> bool:
    """Whether only this machine can connect to an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class _Server(uvicorn.Server):
    """uvicorn, told when to end by us: its own handlers would cut off websockets, and exit 143."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leaves signals alone."""
        yield


def serve(service: Service, door: Door, *, output_dir: str | None, task: SlurmTask | None) -> int:
    """Serves until SIGTERM or SIGINT.

    Args:
        service: not started yet.
        door: where and to whom.
        output_dir: folder of ``info.json``; None writes none.
        task: of SLURM; None outside of it.

    Returns:
        The exit status: 0 after a signal, 1 where the policy could not be loaded.

    Raises:
        ConfigError: the address cannot be bound.
    """
    listener = _listen(door)
    server = _Server(uvicorn_config(service, door))
    # uvloop where it exists: asyncio.run's own loop takes several times as long for each message
    with asyncio.Runner(loop_factory=server.config.get_loop_factory()) as runner:
        return runner.run(_serve(service, server, door, listener, output_dir, task))


async def _serve(
    service: Service,
    server: _Server,
    door: Door,
    listener: socket.socket,
    output_dir: str | None,
    task: SlurmTask | None,
) -> int:
    stop = asyncio.Event()
    for number in _SIGNALS:
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    port = listener.getsockname()[1]
    http = asyncio.create_task(server.serve(sockets=[listener]))
    starting = asyncio.create_task(service.start())
    stopping = asyncio.create_task(stop.wait())
    with contextlib.ExitStack() as files:
        try:
            await asyncio.wait({starting, stopping, http}, return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                starting.result()
                _quicken()
                await _until(lambda: server.started or http.done())
                if output_dir is not None:
                    files.enter_context(announced(output_dir, _public_host(door), port, task))
                _LOG.info("ready at %s:%d", door.host, port)
            await asyncio.wait({stopping, http}, return_when=asyncio.FIRST_COMPLETED)
        except (XVLAError, OSError) as error:
            _LOG.error("the policy could not be loaded: %s", error)
            return 1
        finally:
            starting.cancel()
            stopping.cancel()
            files.close()  # nobody is to find a server that is about to go
            await _end(service, server, http, door.drain_seconds)
    return 0


async def _end(
    service: Service, server: _Server, http: asyncio.Task[None], drain_seconds: float
) -> None:
    """Not ready; then what is in flight; then the connections."""
    service.drain()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(drain_seconds):
            await _until(lambda: service.in_flight == 0)
    server.should_exit = True
    await http
    await service.stop()


def _quicken() -> None:
    """Shortens how long one request can keep the interpreter from the others.

    Without the objects of what was loaded, which stay, a collection of garbage takes a tenth of the
    time; and a decoder's thread is asked more often to let another go on.
    """
    gc.collect()
    gc.freeze()
    sys.setswitchinterval(_SWITCH_SECONDS)


async def _until(done: Callable[[], bool]) -> None:
    while not done():
        await asyncio.sleep(0.01)


def uvicorn_config(service: Service, door: Door) -> uvicorn.Config:
    """How the service is run: its application, its connections, and their bounds."""
    http, websockets = protocols(service.limits)
    return uvicorn.Config(
        create_app(service, door.token, inspect=door.inspect, hosts=door.hosts),  # pyright: ignore[reportArgumentType] ASGI, by any name
        http=http,  # pyright: ignore[reportArgumentType] called as a class is
        ws=websockets,  # pyright: ignore[reportArgumentType] called as a class is
        ws_max_size=service.limits.body_bytes,
        ws_per_message_deflate=False,
        ws_ping_interval=_PING_SECONDS,
        ws_ping_timeout=None,  # a simulator that starts for minutes answers no ping
        lifespan="off",
        log_config=None,
        log_level="warning",
        access_log=False,
        # fairness must not depend on what a client says of its address
        proxy_headers=bool(door.trusted_proxies),
        forwarded_allow_ips=list(door.trusted_proxies),
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=5,
        ssl_certfile=door.tls_cert,
        ssl_keyfile=door.tls_key,
    )


def _listen(door: Door) -> socket.socket:
    try:
        family, *_, address = socket.getaddrinfo(door.host, door.port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise ConfigError(f"--host={door.host} --port={door.port}: {error}") from error
    return listener


def _public_host(door: Door) -> str:
    """What clients should connect to: all interfaces have no address of their own."""
    return socket.gethostname() if door.host in ("0.0.0.0", "::", "") else door.host
