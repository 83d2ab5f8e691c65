"""Whose a record locator is: of one booking, or of one imported party, and never of two (CHK-1, docs/decisions/0037).

The primary key of `locators` decides between parties that come at the same time: the second one waits for the first
one's commit, and reads in its next statement whose the locator is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from uuid import UUID

from checkin_service import refusals
from services.db import Conn


def key_of(booking_id: UUID) -> str:
    """Returns the booking's key: what the ids of its passengers begin with."""
    return booking_id.hex[:16]


def belongs_to(passenger_id: str, booking: str) -> bool:
    """Whether a passenger is one of this booking's."""
    return passenger_id.startswith(f"{booking}-")


async def take(conn: Conn, pnrs: Iterable[str], *, booking: str | None) -> Mapping[str, str | None]:
    """Takes the locators that are free, for a booking or (None) an imported party; returns whose each one is then."""
    wanted = sorted(set(pnrs))
    await conn.execute(
        """
        INSERT INTO locators (pnr, booking) SELECT pnr, $2 FROM unnest($1::text[]) AS pnr ORDER BY pnr
        ON CONFLICT (pnr) DO NOTHING
        """,
        wanted,
        booking,
    )
    rows = await conn.fetch("SELECT pnr, booking FROM locators WHERE pnr = ANY($1::text[])", wanted)
    return {row["pnr"]: row["booking"] for row in rows}


async def reserve(conn: Conn, pnr: str, *, booking_id: UUID) -> None:
    """Reserves a locator for a booking. A repeat succeeds. Raises LOCATOR_TAKEN."""
    booking = key_of(booking_id)
    if (await take(conn, [pnr], booking=booking))[pnr] != booking:
        raise refusals.locator_taken()
