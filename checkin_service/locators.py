"""Whose a record locator is: of one booking, or of one imported party, and never of two (CHK-1, docs/decisions/0037).

The primary key of `locators` decides between parties that come at the same time: the second one waits for the first
one's commit, and reads in its next statement whose the locator is.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Final
from uuid import UUID

from checkin_service import refusals
from services.db import Conn

OF_BOOKING: Final = re.compile(r"([0-9a-f]{16})-[0-9]+")


def key_of(booking_id: UUID) -> str:
    """Returns the booking's key: what the ids of its passengers begin with."""
    return booking_id.hex[:16]


def booking_of(passenger_id: str) -> str | None:
    """Returns the key of the booking that a passenger's id names; None for an id of another form."""
    found = OF_BOOKING.fullmatch(passenger_id)
    return found[1] if found else None


def belongs_to(passenger_id: str, booking: str) -> bool:
    """Whether a passenger is one of this booking's."""
    return passenger_id.startswith(f"{booking}-")


async def cancelled(conn: Conn, bookings: Collection[str]) -> set[str]:
    """Returns those of the bookings, by their keys, that were cancelled, or a flight of which was."""
    if not bookings:
        return set()
    rows = await conn.fetch(
        """
        SELECT key FROM unnest($1::text[]) AS key
        WHERE EXISTS (SELECT FROM cancelled_bookings
                      WHERE booking_id BETWEEN (key || repeat('0', 16))::uuid AND (key || repeat('f', 16))::uuid)
        """,
        list(bookings),
    )
    return {row["key"] for row in rows}


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
