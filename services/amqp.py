"""RabbitMQ: the exchange names that all services share, and the connection.

Connections do not reconnect automatically. After a loss the broker may be another one, or the same one without its
data, so the caller opens a new connection and declares its queues and bindings again.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

import aio_pika
from aio_pika.abc import AbstractConnection

EVENTS: Final = "skyhigh.events"
DEAD: Final = "skyhigh.dead"


async def connect(url: str, *, name: str) -> AbstractConnection:
    """Opens a connection that does not reconnect after a loss.

    Raises OSError or AMQPError if the broker is unreachable.
    """
    return await aio_pika.connect(url, client_properties={"connection_name": name}, timeout=5)


def loss_of(connection: AbstractConnection) -> asyncio.Event:
    """Returns an event that is set as soon as the connection ends.

    The connection's own `is_closed` becomes true only after a call of `close`.
    """
    lost = asyncio.Event()

    def note(*_: Any) -> None:
        lost.set()

    connection.close_callbacks.add(note)
    return lost
