"""A service restarts a worker that dies, and stops if a worker never starts."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import replace

import grpc
import pytest

from deploy.local.process import LOOPBACK, free_ports
from seat_service.service import SEAT_SERVICE
from services import app, binding
from tests.waiting import eventually


async def test_a_worker_that_never_starts_ends_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    stopping = asyncio.Event()
    started = await app._keep_worker(replace(SEAT_SERVICE, package="no_such_package"), 0, stopping)
    assert not started
    assert stopping.is_set()


async def test_a_server_waits_for_a_port_of_a_connection() -> None:
    server = grpc.aio.server(options=[("grpc.so_reuseport", 1)])
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        # This port is below the range from which the kernel picks ephemeral ports, so that no connection of another
        # program has it.
        (port,) = free_ports(1)
        with socket.create_connection(listener.getsockname(), source_address=(LOOPBACK, port)):
            listening = asyncio.create_task(app._listen(server, f"127.0.0.1:{port}", None))

            async def refused_once() -> bool:
                return listening.done() or binding._may_become_free(f"127.0.0.1:{port}")

            await eventually(refused_once)
            assert not listening.done()
        # The listener resets a connection that it never accepted, which leaves nothing in TIME_WAIT.
    assert await listening == port
    await server.stop(None)


async def test_a_server_fails_at_a_port_in_use() -> None:
    server = grpc.aio.server()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        with pytest.raises(RuntimeError, match="Failed to bind"):
            await app._listen(server, f"127.0.0.1:{listener.getsockname()[1]}", None)
