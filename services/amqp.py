"""RabbitMQ: the names that all services share, and a connection that comes back by itself."""

from __future__ import annotations

from typing import Final

import aio_pika
from aio_pika.abc import AbstractRobustConnection

EVENTS: Final = "skyhigh.events"
DEAD: Final = "skyhigh.dead"


async def connect(url: str, *, name: str) -> AbstractRobustConnection:
    """Connects, and reconnects by itself after a loss. Raises OSError or AMQPError while the broker is away."""
    return await aio_pika.connect_robust(url, client_properties={"connection_name": name}, timeout=5)
