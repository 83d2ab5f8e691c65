"""A process of the local stack: what to run, how it is known to be ready, how it ends."""

from __future__ import annotations

import asyncio
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
"""Says whether the process does its work; may raise OSError while it does not."""

LOOPBACK: Final = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Process:
    """One row of the table of processes."""

    name: str
    """What its log file, its line in the status and `after` call it."""
    command: Sequence[str]
    ready: Probe
    port: int
    """Where it is reached."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Added to the supervisor's own environment."""
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
    """Runs before each start, so it must be repeatable: folders, configuration files."""
    settle: Callable[[], Awaitable[None]] | None = None
    """Runs once it is ready, before anything that comes after it starts. Repeatable too."""


def free_ports(count: int) -> list[int]:
    """Returns ports of loopback that nobody listens on at this moment."""
    listeners = [socket.socket() for _ in range(count)]
    try:
        for listener in listeners:
            listener.bind((LOOPBACK, 0))
        return [int(listener.getsockname()[1]) for listener in listeners]
    finally:
        for listener in listeners:
            listener.close()


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
        return answer.startswith(tuple(expect))

    return probe


def answers_http(port: int, path: str, *, identity: Identity | None = None) -> Probe:
    """A probe for HTTP servers: ready when the path answers 200. With an identity it speaks TLS."""
    ask = f"GET {path} HTTP/1.1\r\nHost: {LOOPBACK}\r\nConnection: close\r\n\r\n".encode()
    return answers(
        port, ask=ask, expect=[b"HTTP/1.1 200"], context=lambda: None if identity is None else identity.client_context()
    )


def serves_grpc(port: int, service: str = "", *, identity: Identity | None = None) -> Probe:
    """A probe for gRPC servers: ready when grpc.health.v1 says SERVING for the service.

    With an identity it speaks mutual TLS.
    """

    async def probe() -> bool:
        import grpc
        from grpc_health.v1 import health_pb2, health_pb2_grpc

        address = f"{LOOPBACK}:{port}"
        if identity is None:
            opened = grpc.aio.insecure_channel(address)
        else:
            from services import tls

            opened = grpc.aio.secure_channel(address, tls.channel_credentials(identity.read()))
        async with opened as channel:
            try:
                health = await health_pb2_grpc.HealthStub(channel).Check(
                    health_pb2.HealthCheckRequest(service=service), timeout=2
                )
            except grpc.aio.AioRpcError:
                return False
        return bool(health.status == health_pb2.HealthCheckResponse.SERVING)

    return probe
