"""SEAT-16: how many seats one principal may hold, and the cool-down of one whose holds keep lapsing.

It binds passenger sessions and customers, also where a service manages a hold for them. Agents and services act for
many people, and answer for what they do. The rule itself is the function `hoarding` of the schema, so that taking a
seat judges it in the same statement; it is judged under `lock_seats(owners=…)`, without which two calls would each see
room for the last seat.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

from seat_service import refusals
from services.db import Conn
from services.errors import Refusal


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of SEAT-16. The first cool-down doubles with each further lapse, up to the window."""

    held_seats: int
    lapses_allowed: int
    lapses_window: timedelta
    cool_down: timedelta


def binds(owner: str) -> bool:
    """Whether a principal is one whose held seats are counted, whoever holds them for it."""
    return owner.startswith(("customer:", "passenger:"))


def explain(limits: Limits, *, no_room_seconds: float | None, cooling_seconds: float | None) -> Refusal | None:
    """Returns the refusal for what the function `hoarding` found; None where nothing is in the way."""
    if cooling_seconds is not None:
        return refusals.cooling_down(cooling_seconds)
    if no_room_seconds is not None:
        return refusals.too_many_held_seats(limits.held_seats, max(1.0, no_room_seconds))
    return None


async def refuse(conn: Conn, limits: Limits, *, owner: str, flight_id: str, seats: int, other_than: UUID) -> None:
    """Raises TOO_MANY_HELD_SEATS or COOLING_DOWN where a changed hold would have too many seats of a flight."""
    row = await conn.fetchrow(
        "SELECT no_room_seconds, cooling_seconds FROM hoarding($1, $2, $3, $4, $5, $6, $7, $8)",
        owner,
        flight_id,
        seats,
        other_than,
        limits.held_seats,
        limits.lapses_allowed,
        limits.lapses_window,
        limits.cool_down,
    )
    assert row is not None
    refusal = explain(limits, **row)
    if refusal is not None:
        raise refusal
