"""Waits until a system is at rest.

At rest no seat is held or offered, no payment is in progress, no event is unpublished or queued, and no timer is due.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Final

import aio_pika
import asyncpg
from aio_pika.exceptions import AMQPError, ChannelNotFoundEntity

from tests.waiting import pause

SERVICES: Final = ("seat", "checkin", "waitlist", "payment", "flight", "booking", "gateway")
LONGEST_SECONDS: Final = 120.0
LOOK_SECONDS: Final = 0.5
# The system counts as at rest after so many consecutive looks.
LOOKS: Final = 4
CONNECT_SECONDS: Final = 5
# Timers that are set again whenever they fire, for as long as passengers wait.
RECURRING: Final = ("sweep",)
RETRY_DELAYS_SECONDS: Final = (1, 5, 30)


class UnrestError(Exception):
    """The system did not come to rest in time; the text names the remaining work."""


def _queries(tables: frozenset[str]) -> dict[str, str]:
    """Returns queries that count the rows with remaining work, by its name."""
    queries = {
        "held or offered seats": "SELECT count(*) FROM seat.seats WHERE state IN ('HELD', 'OFFERED')",
        "bookings in progress": """
            SELECT count(*) FROM booking.bookings
            WHERE state IN ('CREATED', 'SEATS_RESERVED', 'PAYMENT_PENDING', 'PAYMENT_PROCESSING')
        """,
        "payments in progress": "SELECT count(*) FROM payment.intents WHERE state IN ('PROCESSING', 'REFUNDING')",
        "unpaid check-ins": """
            SELECT count(*) FROM checkin.check_ins WHERE state = 'WAITING_FOR_PAYMENT' AND fee_pay_time IS NULL
        """,
    }
    for service in SERVICES:
        queries[f"unpublished events of {service}"] = (
            f"SELECT count(*) FROM {service}.outbox WHERE publish_time IS NULL"
        )
        queries[f"due timers of {service}"] = f"""
            SELECT count(*) FROM {service}.timers
            WHERE fire_time IS NULL AND due_time < now() + interval '1 s' AND name NOT IN {RECURRING + RECURRING}
        """
    return {name: query for name, query in queries.items() if all(part in tables for part in _tables_of(query))}


def _tables_of(query: str) -> list[str]:
    return [part.partition(" ")[2].split()[0] for part in query.split("FROM")[1:] for part in [f"FROM{part}"]]


async def at_rest(addresses: Mapping[str, str], *, within_seconds: float = LONGEST_SECONDS) -> float:
    """Waits until the stack is at rest; returns the seconds.

    Raises UnrestError if that takes too long.
    """
    began = time.monotonic()
    calm = 0
    found: dict[str, int] = {"anything": 1}
    while calm < LOOKS:
        if time.monotonic() - began > within_seconds:
            raise UnrestError(f"not at rest after {within_seconds:g} s: {found}")
        try:
            found = await left(addresses)
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, AMQPError) as error:
            found = {repr(error): 1}
        calm = calm + 1 if not found else 0
        await pause(LOOK_SECONDS)
    return time.monotonic() - began


async def left(addresses: Mapping[str, str]) -> dict[str, int]:
    """Returns the remaining work as numbers by name, without the names of which there is none."""
    found: dict[str, int] = {}
    connection = await asyncpg.connect(addresses["SKYHIGH_DATABASE_URL"], timeout=CONNECT_SECONDS)
    try:
        rows = await connection.fetch(
            "SELECT table_schema || '.' || table_name AS name FROM information_schema.tables"
            " WHERE table_schema = ANY ($1::text[])",
            list(SERVICES),
        )
        for name, query in _queries(frozenset(row["name"] for row in rows)).items():
            if count := await connection.fetchval(query):
                found[name] = count
    finally:
        await connection.close()
    return found | await _queued(addresses["SKYHIGH_AMQP_URL"])


async def _queued(amqp_url: str) -> dict[str, int]:
    """Returns the numbers of messages in the event queues.

    Includes the queues of failed ones that wait for a retry.
    """
    found: dict[str, int] = {}
    async with await aio_pika.connect(amqp_url, timeout=CONNECT_SECONDS) as connection:
        for service in SERVICES:
            for queue in (f"{service}.events", *(f"{service}.events.delay-{each}s" for each in RETRY_DELAYS_SECONDS)):
                channel = await connection.channel()
                try:
                    declared = await channel.declare_queue(queue, passive=True)
                except ChannelNotFoundEntity:
                    continue
                if count := declared.declaration_result.message_count:
                    found[f"messages in {queue}"] = count
                await channel.close()
    return found
