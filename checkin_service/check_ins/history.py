"""The history of a check-in: one row for each transition of the state machine.

    INITIATED → BAGGAGE_VALIDATED → COMPLETED        INITIATED → WAITING_FOR_PAYMENT → COMPLETED        any → CANCELLED

Each transition is a function that runs in the caller's transaction, with one guarded write. It writes its row of the
history in that transaction, its events into the outbox, and timers for the steps that need other services
(timed_steps.py). If the guard of a write does not match, the function changes nothing and returns False, and the caller
finds the reason.
"""

from __future__ import annotations

from uuid import UUID

from services.db import Conn


async def record(
    conn: Conn, checkin_id: UUID, version: int, from_state: str | None, to_state: str, *, actor: str, reason: str
) -> None:
    await conn.execute(
        """
        INSERT INTO check_in_events (checkin_id, version, from_state, to_state, actor, reason)
        VALUES ($1, $2, $3::text::check_in_state, $4::text::check_in_state, $5, $6)
        """,
        checkin_id,
        version,
        from_state,
        to_state,
        actor,
        reason,
    )
