"""Hosts on this machine: network namespaces with addresses and names of their own, and a switch.

Each host has a TUN device; the switch is a thread of this process that carries IP packets from one
device to another. It cuts a host off, or delays and drops what the host sends, as netem does, which
not every kernel has. Needs root, the command ``ip`` and /dev/net/tun.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import heapq
import os
import pathlib
import random
import select
import shutil
import struct
import subprocess
import threading
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Final

_TUNSETIFF: Final = 0x400454CA
_IFF_TUN_NO_PI: Final = 0x1001
_CLONE_NEWNET: Final = 0x40000000
_MTU: Final = 8896  # of a VPC network with jumbo frames
_LARGEST: Final = 65536
_POLL_S: Final = 0.5
# a command in a host: its own host name, and a hosts file that knows the others
_ENTER: Final = 'hostname "$0" && mount --bind "$1" /etc/hosts && shift && exec "$@"'


class Network:
    """``count`` hosts that reach each other through a switch. A context manager."""

    def __init__(self, count: int, folder: pathlib.Path, seed: int = 0) -> None:
        """Makes nothing before the ``with`` block.

        Args:
            count: of hosts.
            folder: for the file of host names.
            seed: of the packets that are lost.
        """
        self._names = [f"xvla-{os.getpid()}-{index}" for index in range(count)]
        self._hosts_file = folder / "hosts"
        self._random = random.Random(seed)
        self._devices: list[int] = []
        self._cut: set[int] = set()
        self._sides: dict[int, int] = {}
        self._slow: dict[int, tuple[float, float]] = {}
        self._late: list[tuple[float, int, int, bytes]] = []  # due, number, device, packet
        self._ended = threading.Event()
        self._switch = threading.Thread(target=self._carry, name="switch", daemon=True)

    @staticmethod
    def missing() -> str:
        """Returns why there can be no such network here; empty if there can."""
        if os.geteuid() != 0:
            return "network namespaces need root"
        for command in ("ip", "unshare", "mount"):
            if shutil.which(command) is None:
                return f"the command {command} is not installed"
        if not pathlib.Path("/dev/net/tun").exists():
            return "there is no /dev/net/tun"
        tried = subprocess.run(
            ["unshare", "--net", "--uts", "--mount", "true"],
            capture_output=True,
            text=True,
            check=False,
        )
        return tried.stderr.strip()

    def __enter__(self) -> Network:
        """Makes the hosts.

        Raises:
            OSError: a device or namespace cannot be made.
        """
        try:
            for index, name in enumerate(self._names):
                _ip("netns", "add", name)
                self._devices.append(_tun(name[:15]))
                _ip("link", "set", name[:15], "netns", name)
                inside = ("-n", name)
                _ip(*inside, "addr", "add", f"{self.address(index)}/24", "dev", name[:15])
                _ip(*inside, "link", "set", name[:15], "mtu", str(_MTU), "up")
                _ip(*inside, "link", "set", "lo", "up")
        except OSError:
            self._remove()
            raise
        lines = [f"{self.address(i)} {self.name(i)}\n" for i in range(len(self._names))]
        self._hosts_file.write_text("127.0.0.1 localhost\n" + "".join(lines))
        self._switch.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Removes the hosts; processes in them have to be ended before."""
        self._ended.set()
        self._switch.join()
        self._remove()

    def name(self, index: int) -> str:
        """Returns the name of a host."""
        return f"host{index}"

    def address(self, index: int) -> str:
        """Returns the address of a host."""
        return f"10.77.0.{index + 1}"

    def inside(self, index: int, command: Sequence[str]) -> list[str]:
        """Returns the command that runs ``command`` on a host."""
        enter = ["ip", "netns", "exec", self._names[index], "unshare", "--uts", "--mount"]
        return [*enter, "sh", "-c", _ENTER, self.name(index), str(self._hosts_file), *command]

    def enter(self, index: int) -> None:
        """Moves the calling thread, and those that it starts from then on, into a host's network.

        Raises:
            OSError: the kernel refuses it.
        """
        libc = ctypes.CDLL(None, use_errno=True)
        with open(f"/run/netns/{self._names[index]}", "rb") as space:
            if libc.setns(space.fileno(), _CLONE_NEWNET):
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number), space.name)

    def cut(self, index: int) -> None:
        """Drops all that a host sends and receives."""
        self._cut.add(index)

    def divide(self, *sides: set[int]) -> None:
        """Drops all between hosts of different sides; no side connects all again."""
        self._sides = {index: number for number, side in enumerate(sides) for index in side}

    def slow(self, index: int, *, loss: float, delay_s: float) -> None:
        """Drops a share of what a host sends, and delays the rest."""
        self._slow[index] = loss, delay_s

    def mend(self, index: int) -> None:
        """Connects a host as at the beginning."""
        self._cut.discard(index)
        self._slow.pop(index, None)

    def _carry(self) -> None:
        numbers = {device: index for index, device in enumerate(self._devices)}
        sent = 0
        while not self._ended.is_set():
            due = self._late[0][0] - time.monotonic() if self._late else _POLL_S
            ready, _, _ = select.select(self._devices, [], [], min(max(due, 0.0), _POLL_S))
            for device in ready:
                packet, source = os.read(device, _LARGEST), numbers[device]
                target = packet[19] - 1 if packet[0] >> 4 == 4 else -1  # last byte of the address
                if not 0 <= target < len(self._devices) or self._cut & {source, target}:
                    continue
                if self._sides.get(source) != self._sides.get(target):
                    continue
                loss, delay_s = self._slow.get(source, (0.0, 0.0))
                if self._random.random() < loss:
                    continue
                sent += 1
                entry = time.monotonic() + delay_s, sent, self._devices[target], packet
                heapq.heappush(self._late, entry)
            while self._late and self._late[0][0] <= time.monotonic():
                *_, device, packet = heapq.heappop(self._late)
                with contextlib.suppress(OSError):  # the host's device is not up any more
                    os.write(device, packet)

    def _remove(self) -> None:
        for device in self._devices:
            os.close(device)
        for name in self._names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def _tun(name: str) -> int:
    """Returns a new TUN device, which goes when it is closed."""
    device = os.open("/dev/net/tun", os.O_RDWR)
    try:
        fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TUN_NO_PI))
    except OSError:
        os.close(device)
        raise
    return device


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"ip {' '.join(words)}: {done.stderr.strip()}")
