"""Record locators: each belongs to one booking or one imported party (CHK-1).

Two parties never share a locator (docs/decisions/0037). The primary key of `locators` decides between concurrent
parties: the second one waits for the first one's commit, and its next statement reads whose the locator is.
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
    """Returns the booking's key, with which the ids of its passengers begin."""
    return booking_id.hex[:16]


def booking_of(passenger_id: str) -> str | None:
    """Returns the booking key in a passenger's id; None for an id of another form."""
    found = OF_BOOKING.fullmatch(passenger_id)
    return found[1] if found else None


def belongs_to(passenger_id: str, booking: str) -> bool:
    """Returns whether a passenger belongs to the booking with this key."""
    return passenger_id.startswith(f"{booking}-")


async def cancelled(conn: Conn, bookings: Collection[str]) -> set[str]:
    """Returns the keys of those bookings that were cancelled, wholly or in part.

    The cancellation of one of its flights is enough.
    """
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


async def reserve_free(conn: Conn, pnrs: Iterable[str], *, booking: str | None) -> Mapping[str, str | None]:
    """Reserves the free locators; returns the booking key of each locator's owner.

    `booking` is the key of a booking, or None for an imported party; the same is returned for each locator.
    """
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
    if (await reserve_free(conn, [pnr], booking=booking))[pnr] != booking:
        raise refusals.locator_taken()
