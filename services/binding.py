"""Binding a server's port that a connection may have for its near end at this moment."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from services import telemetry
from services.endpoints import Endpoint

# The kernel keeps the port of an outgoing connection for 60 s after its end (TIME_WAIT).
PATIENCE_SECONDS: Final = 90
RETRY_SECONDS: Final = 0.2
Bound = TypeVar("Bound")

_log = telemetry.log("binding")


async def bound(bind: Callable[[], Awaitable[Bound]], address: str) -> Bound:
    """Returns what `bind` returns. Retries while no server listens at the address, `host:port`, and it is in use.

    The kernel may have given the port to an outgoing connection of any program, which ends sooner or later. Raises what
    `bind` raised, an OSError or gRPC's RuntimeError, if another server listens there or the port stays in use.
    """
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            return await bind()
        except (OSError, RuntimeError):
            if time.monotonic() > deadline or not await asyncio.to_thread(_may_become_free, address):
                raise
            _log.warning("address in use, trying again", address=address)
        await asyncio.sleep(RETRY_SECONDS)


def _may_become_free(address: str) -> bool:
    """Whether no program listens there; a connection may have its near end there."""
    try:
        server = Endpoint.parse(address)
        with socket.create_connection((server.host, server.port), timeout=1):
            return False
    except ConnectionRefusedError:
        return True
    except (OSError, ValueError):
        return False
