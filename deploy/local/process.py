"""A process of the local stack: its command, its probe and its end."""

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
    from services.tls_identity import Identity

Probe = Callable[[], Awaitable[bool]]
"""Returns True if the process is ready. Otherwise returns False, or raises an OSError that says why it is not."""

LOOPBACK: Final = "127.0.0.1"
# Below 32768, where the range begins from which Linux takes the local ports of connections.
FREE_PORTS: Final = (10_000, 32_000)


class NotReadyError(OSError):
    """A server responds, but it is not ready."""


@dataclass(frozen=True, slots=True)
class Process:
    """A row of the table of processes."""

    name: str
    """Its name in the log folder, in the status and in `after`."""
    command: Sequence[str]
    ready: Probe
    port: int
    """The port at which its clients reach it."""
    ports: Mapping[str, int] = field(default_factory=dict)
    """All ports on which it listens when it is ready, by the variables that set them."""
    sources: tuple[str, ...] = ()
    """The files and folders of the repository that it is started from."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables in addition to those that it inherits (deploy/local/environment.py)."""
    hidden: frozenset[str] = frozenset()
    """Variables of the supervisor's environment that the process does not inherit."""
    after: tuple[str, ...] = ()
    """Processes that must be ready before this one starts, and that stop after it has stopped."""
    user: str | None = None
    """The user that it runs as; None for the user of the supervisor."""
    folder: Path | None = None
    """Its working folder."""
    stop_signal: signal.Signals = signal.SIGTERM
    stop_seconds: float = 15
    """How long it may take to end after its signal before it is killed."""
    prepare: Callable[[], Awaitable[None]] | None = None
    """Runs before each start, for example to write configuration files. It must be idempotent. The processes of `after`
    may not be ready yet."""
    settle: Callable[[], Awaitable[None]] | None = None
    """Runs when the process is ready, before the processes that wait for it start. It must be idempotent too."""


def free_ports(count: int) -> list[int]:
    """Returns free ports of loopback, outside the range of outgoing connections.

    A port that the kernel chooses (port 0) would be in that range: while its server is down, the kernel could give it
    to the local end of a connection.
    """
    found: set[int] = set()
    while len(found) < count:
        port = random.SystemRandom().randrange(*FREE_PORTS)
        if port_is_free(port):
            found.add(port)
    return list(found)


def port_is_free(port: int) -> bool:
    """Returns True if a server could listen on this port of loopback now."""
    with socket.socket() as listener:
        # Servers set it too: with it, ended connections of an earlier server (TIME_WAIT) do not keep the port.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def answers(
    port: int, *, ask: bytes, expect: Sequence[bytes], context: Callable[[], ssl.SSLContext | None] = lambda: None
) -> Probe:
    """Returns a probe that sends `ask`: ready if the response has an expected beginning.

    `expect` has all expected beginnings. `context` is called for each probe and returns the TLS context, or None for a
    connection without TLS.
    """

    async def probe() -> bool:
        reader, writer = await asyncio.open_connection(LOOPBACK, port, ssl=context())
        try:
            writer.write(ask)
            answer = await reader.read(64)
        finally:
            writer.close()
        if not answer.startswith(tuple(expect)):
            raise NotReadyError(f"port {port} responds with {answer[:40]!r}")
        return True

    return probe


def answers_http(port: int, path: str, *, identity: Identity | None = None) -> Probe:
    """Returns a probe for HTTP servers: ready if a GET of the path returns 200.

    With an identity it uses TLS.
    """
    ask = f"GET {path} HTTP/1.1\r\nHost: {LOOPBACK}\r\nConnection: close\r\n\r\n".encode()
    return answers(
        port, ask=ask, expect=[b"HTTP/1.1 200"], context=lambda: None if identity is None else identity.client_context()
    )


def serves_grpc(port: int, service: str = "", *more_ports: int, identity: Identity | None = None) -> Probe:
    """Returns a probe for gRPC servers: ready if every port reports SERVING.

    It calls grpc.health.v1 for `service`. With an identity it uses mutual TLS.
    """

    async def serves(port: int) -> None:
        import grpc
        from grpc_health.v1 import health_pb2, health_pb2_grpc

        address = f"{LOOPBACK}:{port}"
        # gRPC would use http_proxy even for loopback.
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
                f"port {port}: its health is {health_pb2.HealthCheckResponse.ServingStatus.Name(health.status)}"
            )

    async def probe() -> bool:
        # The first port alone: until it serves, calls to the others would only slow down the service that starts.
        await serves(port)
        await asyncio.gather(*map(serves, more_ports))
        return True

    return probe
