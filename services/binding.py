"""Binds a server to a port that an outgoing connection may still use."""

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
    """Returns what `bind` returns, and retries while the address is in use.

    The kernel may have given the port of the address `host:port` to an outgoing connection of any program, which ends
    sooner or later. Raises the error of `bind`, an OSError or gRPC's RuntimeError, if another server listens there or
    the port stays in use for PATIENCE_SECONDS.
    """
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            return await bind()
        except (OSError, RuntimeError):
            if time.monotonic() > deadline or not await asyncio.to_thread(_may_become_free, address):
                raise
            _log.warning("address in use; retrying", address=address)
        await asyncio.sleep(RETRY_SECONDS)


def _may_become_free(address: str) -> bool:
    """Returns whether no server listens there.

    Then the port may be the local port of an outgoing connection, which ends by itself.
    """
    try:
        server = Endpoint.parse(address)
        with socket.create_connection((server.host, server.port), timeout=1):
            return False
    except ConnectionRefusedError:
        return True
    except (OSError, ValueError):
        return False
