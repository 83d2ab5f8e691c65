"""Invariants of the outbox and the timers that every service has in its schema."""

from __future__ import annotations

from typing import Final

from operations.invariants.invariant import Invariant

# The pauses between so many tries grow from 0.25 s to 16 s: about half a minute in total.
STUCK_TRIES: Final = 8

SERVICES: Final = ("seat", "checkin", "waitlist", "payment", "flight", "booking", "gateway")


def _of(service: str) -> tuple[Invariant, ...]:
    return (
        Invariant(
            7,
            f"every event of {service} is published within 30 s",
            f"""
            SELECT event_id, routing_key, create_time FROM {service}.outbox
            WHERE publish_time IS NULL AND create_time < now() - interval '30 s'
            """,  # noqa: S608
            needs_service=True,
            schemas=(service,),
        ),
        Invariant(
            10,
            f"no timer of {service} fires early",
            f"SELECT name, subject, due_time, fire_time FROM {service}.timers WHERE fire_time < due_time",  # noqa: S608
            schemas=(service,),
        ),
        Invariant(
            10,
            f"every due timer of {service} is tried within 5 s",
            f"""
            SELECT name, subject, due_time, try_time, tries, last_error FROM {service}.timers
            WHERE fire_time IS NULL AND try_time < now() - interval '5 s'
            """,  # noqa: S608
            needs_service=True,
            schemas=(service,),
        ),
        # A try during an outage is not counted. A timer that fails this often gets a response that it does not expect.
        Invariant(
            10,
            f"no timer of {service} fails {STUCK_TRIES} times in a row",
            f"""
            SELECT name, subject, due_time, tries, last_error FROM {service}.timers
            WHERE fire_time IS NULL AND tries >= {STUCK_TRIES} AND last_error IS NOT NULL
            """,  # noqa: S608
            schemas=(service,),
        ),
    )


SERVICE_INVARIANTS: Final = tuple(invariant for service in SERVICES for invariant in _of(service))
