"""Transitions of single seats without a hold: BLOCKED and OFFERED.

AVAILABLE or OFFERED → BLOCKED → AVAILABLE or OFFERED        OFFERED → AVAILABLE
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Final
from uuid import uuid4

from skyhigh.seat.v1 import events_pb2
from skyhigh.seat.v1 import seat_service_pb2 as pb

from seat_service import refusals
from seat_service.holds.locks import lock_seats
from seat_service.holds.releases import announce
from seat_service.requests import Effects, OnSeat, request_id
from services.db import Conn, GuardMissed
from services.errors import Refusal
from services.proto import timestamp

OFFER_LAPSED: Final = "OFFER_LAPSED"


async def block(conn: Conn, requests: Sequence[OnSeat], *, effects: Effects) -> list[pb.Seat | Refusal]:
    """Blocks seats: AVAILABLE or OFFERED → BLOCKED. A repeat returns the blocked seat.

    Returns for each request the seat (number and state only) or a refusal: SEAT_NOT_FOUND, or SEAT_OCCUPIED if the seat
    is held or confirmed.
    """
    move = partial(_move, legal=("AVAILABLE", "OFFERED"), target="BLOCKED", effects=effects)
    return [await move(conn, request) for request in requests]


async def unblock(conn: Conn, requests: Sequence[OnSeat], *, effects: Effects) -> list[pb.Seat | Refusal]:
    """Unblocks seats: BLOCKED → AVAILABLE or OFFERED. A repeat returns the free seat.

    A seat becomes OFFERED if the flight's waitlist is open and the flight is neither cancelled nor departed.

    Returns for each request the seat (number and state only) or a refusal: SEAT_NOT_FOUND, or SEAT_OCCUPIED if the seat
    is held or confirmed.
    """
    answers: list[pb.Seat | Refusal] = []
    for request in requests:
        # A cancellation of the flight waits for this lock, or is visible after it (decision 19).
        await lock_seats(conn, [(request.flight_id, request.seat_number)])
        waiting = await conn.fetchval(
            """
            SELECT waitlist_open AND NOT EXISTS (SELECT FROM cancelled_flights WHERE flight_id = $1)
                   AND NOT EXISTS (SELECT FROM departures
                                   WHERE flight_id = $1 AND departure_time <= statement_timestamp())
            FROM flights WHERE flight_id = $1
            """,
            request.flight_id,
        )
        target = "OFFERED" if waiting else "AVAILABLE"
        answers.append(await _move(conn, request, legal=("BLOCKED",), target=target, effects=effects))
    return answers


async def return_seat(conn: Conn, requests: Sequence[OnSeat], *, effects: Effects) -> list[pb.Seat | Refusal]:
    """Returns unwanted offered seats to general sale: OFFERED → AVAILABLE.

    The waitlist service calls this if no waiting entry wants the seat. A repeat returns the free seat. Returns for each
    request the seat (number and state only) or a refusal: SEAT_NOT_FOUND, or SEAT_OCCUPIED if the seat is held,
    confirmed or blocked meanwhile.
    """
    move = partial(_move, legal=("OFFERED",), target="AVAILABLE", effects=effects)
    return [await move(conn, request) for request in requests]


async def _move(
    conn: Conn, request: OnSeat, *, legal: tuple[str, ...], target: str, effects: Effects
) -> pb.Seat | Refusal:
    await lock_seats(conn, [(request.flight_id, request.seat_number)])
    event_id = uuid4() if target == "OFFERED" or "BLOCKED" in legal else None
    row = await conn.fetchrow(
        """
        WITH standing AS (
            SELECT state FROM seats WHERE flight_id = $1 AND seat_number = $2
        ), moved AS (
            UPDATE seats SET state = $3::seat_state, version = version + 1, update_time = statement_timestamp()
            WHERE flight_id = $1 AND seat_number = $2 AND state = ANY($4::text[]::seat_state[])
            RETURNING flight_id, seat_number, version, state
        ), offer AS (
            INSERT INTO offers (flight_id, seat_number, expire_time)
            SELECT moved.flight_id, moved.seat_number, statement_timestamp() + flights.offer_window
            FROM moved JOIN flights USING (flight_id) WHERE moved.state = 'OFFERED'
            RETURNING expire_time
        ), unoffered AS (
            DELETE FROM offers USING moved
            WHERE offers.flight_id = moved.flight_id AND offers.seat_number = moved.seat_number
              AND moved.state <> 'OFFERED'
        ), ledger AS (
            INSERT INTO seat_events
                (flight_id, seat_number, version, from_state, to_state, actor, reason, request_id, event_id, event_time)
            SELECT moved.flight_id, moved.seat_number, moved.version, standing.state, moved.state, $5, $6, $7, $8,
                   statement_timestamp()
            FROM moved CROSS JOIN standing
        )
        SELECT standing.state::text AS standing, moved.version, statement_timestamp() AS now,
               (SELECT expire_time FROM offer) AS offer_expire_time
        FROM standing LEFT JOIN moved ON true
        """,
        request.flight_id,
        request.seat_number,
        target,
        list(legal),
        request.actor,
        request.reason,
        request_id(request.request_key),
        event_id,
    )
    if row is None:
        return refusals.seat_not_found(request.flight_id, request.seat_number)
    if row["version"] is None:
        # The seat is in none of the `legal` states. A repeat succeeds if it has the target state. To unblock also
        # succeeds if the seat is free in either way, AVAILABLE or OFFERED.
        free = {"AVAILABLE", "OFFERED"}
        if row["standing"] != target and not ("BLOCKED" in legal and row["standing"] in free):
            return refusals.seat_occupied(request.flight_id, request.seat_number, row["standing"])
        return pb.Seat(seat_number=request.seat_number, state=pb.Seat.State.Value(row["standing"]))
    effects.flights.add(request.flight_id)
    if event_id is not None:
        message = events_pb2.SeatReleased(flight_id=request.flight_id, release_time=timestamp(row["now"]))
        if row["offer_expire_time"] is not None:
            message.offer_expire_time.CopyFrom(timestamp(row["offer_expire_time"]))
        message.seats.add(
            seat_number=request.seat_number,
            version=row["version"],
            state=pb.Seat.State.Value(target),
            reason=request.reason,
        )
        flight_id = request.flight_id
        await announce(conn, "seat.released.v1", {flight_id: event_id}, {flight_id: message}, effects=effects)
    return pb.Seat(seat_number=request.seat_number, state=pb.Seat.State.Value(target))


async def lapse_offers(conn: Conn, *, limit: int, actor: str, effects: Effects) -> int:
    """Ends offers whose window has passed: OFFERED → AVAILABLE; returns how many.

    A seat that was claimed, blocked or returned meanwhile stays as it is.
    """
    due = await conn.fetch(
        """
        SELECT flight_id, seat_number FROM offers
        WHERE expire_time <= statement_timestamp() ORDER BY expire_time LIMIT $1
        """,
        limit,
    )
    if not due:
        return 0
    places = [(row["flight_id"], row["seat_number"]) for row in due]
    await lock_seats(conn, places)
    rows = await conn.fetch(
        """
        WITH lapsed AS (
            DELETE FROM offers USING unnest($1::text[], $2::text[]) AS due (flight_id, seat_number)
            WHERE offers.flight_id = due.flight_id AND offers.seat_number = due.seat_number
              AND offers.expire_time <= statement_timestamp()
            RETURNING offers.flight_id, offers.seat_number
        ), freed AS (
            UPDATE seats SET state = 'AVAILABLE', version = seats.version + 1, update_time = statement_timestamp()
            FROM lapsed
            WHERE seats.flight_id = lapsed.flight_id AND seats.seat_number = lapsed.seat_number
              AND seats.state = 'OFFERED'
            RETURNING seats.flight_id, seats.seat_number, seats.version
        ), ledger AS (
            INSERT INTO seat_events
                (flight_id, seat_number, version, from_state, to_state, actor, reason, event_time)
            SELECT flight_id, seat_number, version, 'OFFERED', 'AVAILABLE', $3, $4, statement_timestamp() FROM freed
        )
        SELECT lapsed.flight_id, freed.version
        FROM lapsed LEFT JOIN freed USING (flight_id, seat_number)
        """,
        [flight_id for flight_id, _ in places],
        [seat_number for _, seat_number in places],
        actor,
        OFFER_LAPSED,
    )
    if any(row["version"] is None for row in rows):
        raise GuardMissed
    effects.flights.update(row["flight_id"] for row in rows)
    return len(rows)
