"""Ports of loopback: their listeners, and the outgoing connections that use them."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from deploy.local.process import LOOPBACK, Process, port_is_free

TABLES: Final = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
# The state of a listening socket in the tables.
LISTEN: Final = "0A"
DEFAULT_OUTGOING: Final = (32768, 60999)


@dataclass(frozen=True, slots=True)
class Holder:
    """A socket that may keep a server from listening on a port."""

    port: int
    listens: bool
    """False for the local end of a connection."""
    inode: int
    """0 for a connection that has ended, whose port the kernel keeps for 60 s (TIME_WAIT)."""

    @property
    def program(self) -> str:
        """Its program as `name, pid 1`; empty if it has none or this user may not see it."""
        if not self.inode:
            return ""
        target = f"socket:[{self.inode}]"
        for folder in Path("/proc").iterdir():
            if not folder.name.isdecimal():
                continue
            if target in _links(folder / "fd"):
                with contextlib.suppress(OSError):
                    return f"{(folder / 'comm').read_text().strip()}, pid {folder.name}"
        return ""


def _links(folder: Path) -> Iterator[str]:
    """Yields the targets of the links in a folder, without those that vanish meanwhile or may not be read."""
    with contextlib.suppress(OSError):
        for link in folder.iterdir():
            with contextlib.suppress(OSError):
                yield os.readlink(link)


def holders(ports: Collection[int]) -> list[Holder]:
    """Returns the sockets that are bound to one of these ports of 127.0.0.1.

    Without /proc, a port that cannot be bound counts as one with a listener.
    """
    if not TABLES[0].exists():
        return [Holder(port, listens=True, inode=0) for port in ports if not port_is_free(port)]
    wanted = set(ports)
    return [holder for holder in _sockets() if holder.port in wanted]


def listened_on(ports: Collection[int]) -> dict[int, Holder]:
    """Returns one listener of each of these ports that has any, by port."""
    return {holder.port: holder for holder in holders(ports) if holder.listens}


def obstacle(ports: Collection[int]) -> str:
    """Describes a connection that keeps a server from one of these ports.

    Ports with a listener are left out. Returns an empty string if there is no such connection.
    """
    found = holders(ports)
    listening = {holder.port for holder in found if holder.listens}
    for holder in found:
        if holder.port not in listening:
            if not holder.inode:
                return f"a connection that has ended may keep port {holder.port} for 60 s"
            return f"a connection of {holder.program} uses port {holder.port} as its local port"
    return ""


def shared(ports: Mapping[str, int]) -> list[list[str]]:
    """Returns the groups of names that have the same port."""
    names: dict[int, list[str]] = {}
    for name, port in ports.items():
        names.setdefault(port, []).append(name)
    return [group for group in names.values() if len(group) > 1]


def conflicts(processes: Sequence[Process]) -> list[str]:
    """Returns the ports on which these processes cannot listen, each with the cause."""
    wanted = {name: port for process in processes for name, port in process.ports.items()}
    found = [f"{' and '.join(names)} are both {wanted[names[0]]}" for names in shared(wanted)]
    taken = listened_on(set(wanted.values()))
    for name, port in wanted.items():
        if port in taken:
            program = taken[port].program or "a program of another user or container"
            found.append(f"{name}={port} ({program} listens there)")
    return found


def outgoing_range() -> range:
    """Returns the range from which the kernel takes the local port of a connection."""
    try:
        low, high = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    except (OSError, ValueError):
        low, high = DEFAULT_OUTGOING
    return range(low, high + 1)


class Reservations:
    """Ports that the kernel gives to no connection as long as this object exists.

    A port with a bound socket that does not listen is not chosen by the kernel, and a server that sets SO_REUSEADDR, as
    all of ours do, can still listen on it. Without a reservation, a connection of any program, such as a service's own
    connection to Postgres, may use a port that a service needs at its next start.
    """

    def __init__(self) -> None:
        self._sockets: dict[int, socket.socket] = {}

    def reserve(self, ports: Collection[int]) -> set[int]:
        """Reserves those of these ports that are in the outgoing range.

        Returns the ports that are in use now and could not be reserved.
        """
        missing = set()
        for port in set(ports) & set(outgoing_range()) - self._sockets.keys():
            reserved = socket.socket()
            reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                reserved.bind((LOOPBACK, port))
            except OSError:
                reserved.close()
                missing.add(port)
            else:
                self._sockets[port] = reserved
        return missing

    def close(self) -> None:
        """Ends all reservations."""
        for reserved in self._sockets.values():
            reserved.close()
        self._sockets.clear()


def _hexadecimal(packed: bytes) -> str:
    # The kernel prints each 32 bits as a number in the byte order of this machine.
    words = (packed[start : start + 4] for start in range(0, len(packed), 4))
    return "".join(f"{int.from_bytes(word, sys.byteorder):08X}" for word in words)


# Our servers bind 127.0.0.1. A socket on one of these addresses conflicts with that; one on ::1, for example, does not.
_IN_THE_WAY: Final = frozenset(
    {
        _hexadecimal(socket.inet_aton("0.0.0.0")),  # noqa: S104
        _hexadecimal(socket.inet_aton(LOOPBACK)),
        _hexadecimal(socket.inet_pton(socket.AF_INET6, "::")),
        _hexadecimal(socket.inet_pton(socket.AF_INET6, f"::ffff:{LOOPBACK}")),
    }
)


def _sockets() -> Iterator[Holder]:
    for table in TABLES:
        with contextlib.suppress(FileNotFoundError):
            for line in table.read_text().splitlines()[1:]:
                _, local, _, state, _, _, _, _, _, inode, *_ = line.split()
                address, _, port = local.partition(":")
                if address in _IN_THE_WAY:
                    yield Holder(int(port, 16), listens=state == LISTEN, inode=int(inode))
