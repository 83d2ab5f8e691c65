"""The transition HELD → HELD with other seats."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Final

from skyhigh.seat.v1 import seat_service_pb2 as pb

from seat_service import refusals
from seat_service.holds.departure_limit import limit_by_departure
from seat_service.holds.extend import extend_hold
from seat_service.holds.hold import explain_taken
from seat_service.holds.locks import lock_seats, seats_of
from seat_service.holds.releases import Release, release_locked
from seat_service.requests import ChangeRequest, Effects, OnHold, Place, request_id
from seat_service.rules import hoarding
from seat_service.rules.entitlements import refusals_of
from services.db import Conn
from services.errors import Refusal

CHANGED: Final = "CHANGED"


async def change(conn: Conn, requests: Sequence[ChangeRequest], *, effects: Effects) -> list[pb.Hold | Refusal]:
    """Replaces the seats of holds, with a full TTL again: HELD → HELD.

    Uses one extension, as `extend` does. Each request has its own savepoint, so that a refused change leaves the hold
    as it was. Returns for each request the hold or a refusal: those of `extend` and `entitlements.refusals_of`,
    SEAT_TAKEN, SEAT_NOT_FOUND, PASSENGER_HOLDS_SEAT, TOO_MANY_HELD_SEATS or COOLING_DOWN; LapsedHoldConflict as `hold`
    does.
    """
    answers: list[pb.Hold | Refusal] = []
    for request in requests:
        changed = Effects()
        try:
            async with conn.transaction():
                answers.append(await _change(conn, request, changed))
        except Refusal as refusal:
            answers.append(refusal)
        else:
            effects.add(changed)
    return answers


async def _change(conn: Conn, request: ChangeRequest, effects: Effects) -> pb.Hold:
    on = request.on
    (hold,) = await extend_hold(conn, [on], effects)
    if isinstance(hold, Refusal):
        raise hold
    had = {seat.place: seat for seat in (await seats_of(conn, [on.hold_id]))[on.hold_id]}
    wanted = {seat.place: seat for seat in request.seats}
    now = await _lock_for_change(conn, request, had.keys() | wanted.keys())
    await release_locked(
        conn,
        [
            Release(seat, on.actor, CHANGED, request_id(on.request_key))
            for place, seat in had.items()
            if place not in wanted
        ],
        effects=effects,
    )
    await _take(conn, on, [place for place in wanted if place not in had], now)
    await _seat_passengers(conn, request)
    if {seat.flight_id for seat in request.seats} != {flight_id for flight_id, _ in had}:
        await limit_by_departure(conn, on.hold_id, hold)
    effects.flights.update(seat.flight_id for seat in request.seats)
    del hold.seats[:]
    hold.seats.extend(
        pb.SeatAssignment(flight_id=seat.flight_id, seat_number=seat.seat_number, passenger_id=seat.passenger_id)
        for seat in request.seats
    )
    return hold


async def _lock_for_change(conn: Conn, request: ChangeRequest, places: Iterable[Place]) -> datetime:
    """Locks the seats of a change; returns the database time after the last lock.

    Raises the refusals of SEAT-17 and, if it applies to the owner, of SEAT-16.
    """
    owner = await _bound_owner(conn, request.on)
    address = "" if owner is None else await _guests_address(conn, request.on, owner)
    flights = Counter(seat.flight_id for seat in request.seats)
    counted = [] if owner is None else [owner, *([hoarding.locked_address(address)] if address else [])]
    now = await lock_seats(
        conn,
        places,
        owners=[(each, flight_id) for flight_id in flights for each in counted],
        with_manifests=True,
    )
    for refusal in (await refusals_of(conn, [(request.on.actor, request.seats)])).values():
        raise refusal
    if owner is None:
        return now
    for flight_id, seats in flights.items():
        await hoarding.refuse(conn, request, owner=owner, address=address or "", flight_id=flight_id, seats=seats)
    return now


async def _bound_owner(conn: Conn, on: OnHold) -> str | None:
    """Returns the owner whose held seats SEAT-16 counts; None if it does not apply.

    That is the caller who owns the hold, or the owner for whom a service manages it.
    """
    if on.owner is not None or not on.manages:
        return on.owner
    owner: str | None = await conn.fetchval("SELECT owner FROM holds WHERE hold_id = $1 AND managed", on.hold_id)
    return owner if owner is not None and hoarding.binds(owner) else None


async def _guests_address(conn: Conn, on: OnHold, owner: str) -> str | None:
    """Returns the address that a guest's hold came from.

    None if the owner is no guest, or if the address is not known.
    """
    if not hoarding.is_guest(owner):
        return None
    address: str | None = await conn.fetchval("SELECT address FROM holds WHERE hold_id = $1", on.hold_id)
    return address


async def _take(conn: Conn, on: OnHold, places: Sequence[Place], now: datetime) -> None:
    """Adds seats to an existing hold: AVAILABLE → HELD.

    Raises the refusal of `explain_taken` if one of the seats is not free.
    """
    if not places:
        return
    rows = await conn.fetch(
        """
        WITH asked AS (
            SELECT flight_id, seat_number FROM unnest($1::text[], $2::text[]) AS asked (flight_id, seat_number)
        ), taken AS (
            UPDATE seats SET state = 'HELD', hold_id = $3, version = seats.version + 1, update_time = $6::timestamptz
            FROM asked
            WHERE seats.flight_id = asked.flight_id AND seats.seat_number = asked.seat_number
              AND seats.state = 'AVAILABLE'
              AND (SELECT reason FROM cancelled_flights WHERE flight_id = asked.flight_id) IS NULL
              AND coalesce((SELECT departure_time FROM departures WHERE flight_id = asked.flight_id) > $6, true)
            RETURNING seats.flight_id, seats.seat_number, seats.version
        ), ledger AS (
            INSERT INTO seat_events
                (flight_id, seat_number, version, from_state, to_state, hold_id, actor, reason, request_id, event_time)
            SELECT flight_id, seat_number, version, 'AVAILABLE', 'HELD', $3, $4, 'CHANGED', $5, $6 FROM taken
        )
        SELECT asked.flight_id, asked.seat_number, seats.state::text, taken.version IS NOT NULL AS taken,
               NULL::text AS passenger_id, NULL::uuid AS own_hold, false AS takes_offers,
               (SELECT reason FROM cancelled_flights WHERE flight_id = asked.flight_id) IS NOT NULL AS flight_cancelled,
               departure.departure_time, coalesce(departure.departure_time <= $6, false) AS departed,
               ARRAY(SELECT holds.hold_id FROM holds
                     WHERE holds.hold_id = seats.hold_id AND holds.state || '' = 'HELD'
                       AND holds.expire_time <= statement_timestamp()) AS lapsed_holds
        FROM asked
        LEFT JOIN seats USING (flight_id, seat_number)
        LEFT JOIN taken USING (flight_id, seat_number)
        LEFT JOIN LATERAL (
            SELECT departures.departure_time FROM departures WHERE departures.flight_id = asked.flight_id LIMIT 1
        ) AS departure ON true
        """,
        [flight_id for flight_id, _ in places],
        [seat_number for _, seat_number in places],
        on.hold_id,
        on.actor,
        request_id(on.request_key),
        now,
    )
    if not all(row["taken"] for row in rows):
        raise explain_taken([row for row in rows if not row["taken"]])


async def _seat_passengers(conn: Conn, request: ChangeRequest) -> None:
    """Replaces all seats and passengers of a hold's rows.

    Single updates would not do: if two passengers exchange seats, each order of updates breaks a unique index. Raises
    PASSENGER_HOLDS_SEAT or LapsedHoldConflict if a passenger has a held seat on the flight in another hold.
    """
    hold_id = request.on.hold_id
    await conn.execute("DELETE FROM hold_seats WHERE hold_id = $1 AND state IN ('HELD', 'RELEASED')", hold_id)
    elsewhere = await conn.fetchrow(
        """
        SELECT seat.flight_id, seat.seat_number, seat.passenger_id, holds.hold_id,
               holds.expire_time <= statement_timestamp() AS lapsed
        FROM unnest($1::text[], $2::text[], $3::text[]) AS seat (flight_id, seat_number, passenger_id)
        JOIN hold_seats ON hold_seats.flight_id = seat.flight_id AND hold_seats.passenger_id = seat.passenger_id
                       AND hold_seats.state = 'HELD'
        JOIN holds ON holds.hold_id = hold_seats.hold_id
        LIMIT 1
        """,
        *_columns(request),
    )
    if elsewhere is not None and elsewhere["lapsed"]:
        raise refusals.LapsedHoldConflict(elsewhere["flight_id"], elsewhere["seat_number"], [elsewhere["hold_id"]])
    if elsewhere is not None:
        raise refusals.passenger_holds_seat(elsewhere["flight_id"], elsewhere["passenger_id"])
    await conn.execute(
        """
        INSERT INTO hold_seats (hold_id, flight_id, seat_number, passenger_id, owner, address)
        SELECT $4, flight_id, seat_number, passenger_id, (SELECT owner FROM holds WHERE hold_id = $4),
               (SELECT address FROM holds WHERE hold_id = $4)
        FROM unnest($1::text[], $2::text[], $3::text[]) AS seat (flight_id, seat_number, passenger_id)
        """,
        *_columns(request),
        hold_id,
    )


def _columns(request: ChangeRequest) -> tuple[list[str], list[str], list[str]]:
    return (
        [seat.flight_id for seat in request.seats],
        [seat.seat_number for seat in request.seats],
        [seat.passenger_id for seat in request.seats],
    )
