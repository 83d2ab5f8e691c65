"""Binding a port that is in use."""

from __future__ import annotations

import asyncio
import socket

import pytest

from deploy.local.process import LOOPBACK, free_ports
from services.binding import bound


async def listen(port: int) -> asyncio.Server:
    return await asyncio.get_running_loop().create_server(asyncio.Protocol, LOOPBACK, port)


async def test_a_port_of_an_outgoing_connection_is_awaited() -> None:
    with socket.socket() as far, socket.socket() as near:
        far.bind((LOOPBACK, 0))
        far.listen()
        # This port is below the range from which the kernel picks ephemeral ports, so that no connection of another
        # program has it.
        (port,) = free_ports(1)
        near.bind((LOOPBACK, port))
        near.connect(far.getsockname())
        first_tried = asyncio.Event()

        async def bind() -> asyncio.Server:
            first_tried.set()
            return await listen(port)

        binding = asyncio.create_task(bound(bind, f"{LOOPBACK}:{port}"))
        await first_tried.wait()
        accepted, _ = far.accept()
        # The far end closes first, so that TIME_WAIT stays on the far end's port and not on ours.
        accepted.close()
        near.close()
    server = await binding
    assert server.sockets[0].getsockname()[1] == port
    server.close()


async def test_a_port_of_another_server_fails_at_once() -> None:
    with socket.socket() as other:
        other.bind((LOOPBACK, 0))
        other.listen()
        port = int(other.getsockname()[1])
        with pytest.raises(OSError, match="in use"):
            await bound(lambda: listen(port), f"{LOOPBACK}:{port}")
