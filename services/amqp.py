"""RabbitMQ: the names that all services share, and a connection.

No connection comes back by itself: after a loss it may be another broker, or the same one without its data, so that
whoever connects looks at what is there, and declares it again.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

import aio_pika
from aio_pika.abc import AbstractConnection

EVENTS: Final = "skyhigh.events"
DEAD: Final = "skyhigh.dead"


async def connect(url: str, *, name: str) -> AbstractConnection:
    """Connects; a loss ends the connection. Raises OSError or AMQPError while the broker is away."""
    return await aio_pika.connect(url, client_properties={"connection_name": name}, timeout=5)


def loss_of(connection: AbstractConnection) -> asyncio.Event:
    """Returns what is set as soon as the connection ends. Its own `is_closed` knows of `close` only."""
    lost = asyncio.Event()

    def note(*_: Any) -> None:
        lost.set()

    connection.close_callbacks.add(note)
    return lost
