"""A process of the local stack: what to run, how it is known to be ready, how it ends."""

from __future__ import annotations

import asyncio
import random
import signal
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from services.identity import Identity

Probe = Callable[[], Awaitable[bool]]
"""Says whether the process does its work. While it does not, an OSError that it raises says why."""

LOOPBACK: Final = "127.0.0.1"
# Linux gives connections ports from 32768 on.
FREE_PORTS: Final = (10_000, 32_000)


class NotReadyError(OSError):
    """A server answers, but not as one that does its work."""


@dataclass(frozen=True, slots=True)
class Process:
    """One row of the table of processes."""

    name: str
    """What its log file, its line in the status and `after` call it."""
    command: Sequence[str]
    ready: Probe
    port: int
    """Where it is reached."""
    ports: Mapping[str, int] = field(default_factory=dict)
    """All ports on which it listens when it is ready, by the variables that set them."""
    sources: tuple[str, ...] = ()
    """What it is made of: files and folders of the repository."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Added to what it inherits (deploy/local/environment.py)."""
    hidden: frozenset[str] = frozenset()
    """Variables of the supervisor's environment that are not the process's business."""
    after: tuple[str, ...] = ()
    """Processes that must be ready before this one starts, and that stop after it has stopped."""
    user: str | None = None
    """Whom it runs as, where that is not ourselves."""
    folder: Path | None = None
    """Its working folder."""
    stop_signal: signal.Signals = signal.SIGTERM
    stop_seconds: float = 15
    """How long it may take to end after its signal before it is killed."""
    prepare: Callable[[], Awaitable[None]] | None = None
    """Runs before each start, so it must be repeatable: folders, configuration files. Those that this process starts
    after need not be ready by then."""
    settle: Callable[[], Awaitable[None]] | None = None
    """Runs once it is ready, before anything that comes after it starts. Repeatable too."""


def free_ports(count: int) -> list[int]:
    """Returns ports of loopback on which no server listens at this moment, below those that connections get.

    A port that the kernel chose would be one of those: while its server is down, a client could get it for its own end.
    """
    found: set[int] = set()
    while len(found) < count:
        port = random.SystemRandom().randrange(*FREE_PORTS)
        if port_is_free(port):
            found.add(port)
    return list(found)


def port_is_free(port: int) -> bool:
    """Says whether a server could listen on this port of loopback now."""
    with socket.socket() as listener:
        # As servers do: connections that a server before us left behind (TIME_WAIT) are no obstacle.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def answers(
    port: int, *, ask: bytes, expect: Sequence[bytes], context: Callable[[], ssl.SSLContext | None] = lambda: None
) -> Probe:
    """A probe for servers that a few bytes make talk: ready when the answer begins with one of `expect`.

    `context` is asked each time for what TLS is to be spoken with; None for none.
    """

    async def probe() -> bool:
        reader, writer = await asyncio.open_connection(LOOPBACK, port, ssl=context())
        try:
            writer.write(ask)
            answer = await reader.read(64)
        finally:
            writer.close()
        if not answer.startswith(tuple(expect)):
            raise NotReadyError(f"port {port} answers {answer[:40]!r}")
        return True

    return probe


def answers_http(port: int, path: str, *, identity: Identity | None = None) -> Probe:
    """A probe for HTTP servers: ready when the path answers 200. With an identity it speaks TLS."""
    ask = f"GET {path} HTTP/1.1\r\nHost: {LOOPBACK}\r\nConnection: close\r\n\r\n".encode()
    return answers(
        port, ask=ask, expect=[b"HTTP/1.1 200"], context=lambda: None if identity is None else identity.client_context()
    )


def serves_grpc(port: int, service: str = "", *more_ports: int, identity: Identity | None = None) -> Probe:
    """A probe for gRPC servers: ready when grpc.health.v1 says SERVING for the service, at each of the ports.

    With an identity it speaks mutual TLS.
    """

    async def serves(port: int) -> None:
        import grpc
        from grpc_health.v1 import health_pb2, health_pb2_grpc

        address = f"{LOOPBACK}:{port}"
        # gRPC obeys http_proxy for loopback too.
        options = [("grpc.enable_http_proxy", 0)]
        if identity is None:
            opened = grpc.aio.insecure_channel(address, options=options)
        else:
            from services import tls

            opened = grpc.aio.secure_channel(address, tls.channel_credentials(identity.read()), options=options)
        async with opened as channel:
            try:
                health = await health_pb2_grpc.HealthStub(channel).Check(
                    health_pb2.HealthCheckRequest(service=service), timeout=2
                )
            except grpc.aio.AioRpcError as error:
                raise NotReadyError(f"port {port}: {error.code().name} {error.details()}") from error
        if health.status != health_pb2.HealthCheckResponse.SERVING:
            raise NotReadyError(
                f"port {port}: it says {health_pb2.HealthCheckResponse.ServingStatus.Name(health.status)}"
            )

    async def probe() -> bool:
        # The first alone: until it serves, more calls would only take time from a service that starts.
        await serves(port)
        await asyncio.gather(*map(serves, more_ports))
        return True

    return probe
