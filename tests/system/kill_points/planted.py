"""Bugs that the kill points must find.

A process gets one by its name in SKYHIGH_KILL_PLANTED.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from services import idempotency, outbox

VARIABLE: Final = "SKYHIGH_KILL_PLANTED"
REMEMBER: Final = "_store_responses"


def _the_relay_marks_before_it_publishes() -> None:
    async def publish_batch(self: Any) -> int:
        async with self._pool.acquire() as conn:
            rows = await conn.fetch(
                "UPDATE outbox SET publish_time = clock_timestamp() WHERE publish_time IS NULL RETURNING *"
            )
        exchange = await self._connected()
        for row in rows:
            columns = ("event_id", "routing_key", "body", "traceparent", "create_time")
            await exchange.publish(self._message(*(row[name] for name in columns)), routing_key=row["routing_key"])
        return len(rows)

    outbox.Relay.publish_batch = publish_batch  # type: ignore[method-assign]


def _the_answer_is_not_stored() -> None:
    async def remember(*_: Any) -> None:
        """Does not store the response."""

    setattr(idempotency, REMEMBER, remember)


PLANTED: Final[Mapping[str, Callable[[], None]]] = {
    "the relay marks before it publishes": _the_relay_marks_before_it_publishes,
    "the answer is not stored": _the_answer_is_not_stored,
}
