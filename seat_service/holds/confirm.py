"""The transition HELD → CONFIRMED."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final
from uuid import UUID, uuid4

from skyhigh.seat.v1 import events_pb2
from skyhigh.seat.v1 import seat_service_pb2 as pb

from seat_service.holds.locks import HeldSeat, lock_holds, lock_seats, seats_of
from seat_service.holds.outcomes import columns, explain, hold_message, in_rounds
from seat_service.holds.releases import Release, announce, end_empty_holds, release_locked
from seat_service.requests import Effects, OnHold, request_id
from seat_service.rules.entitlements import REVOKED, revocations
from services.db import Conn, GuardMissed
from services.errors import Refusal
from services.proto import timestamp

MOVED: Final = "MOVED"


async def confirm(conn: Conn, requests: Sequence[OnHold], *, effects: Effects) -> list[pb.Hold | Refusal]:
    """Confirms holds before their end: HELD → CONFIRMED.

    The same transaction releases the confirmed seats that the passengers had on these flights before. A repeat returns
    the confirmed hold. If another transaction cancels or expires the same hold at the same time, either it commits
    first and this one refuses, or it finds the hold CONFIRMED.

    Returns for each request the hold or a refusal: HOLD_NOT_FOUND, HOLD_MANAGED, HOLD_EXPIRED, HOLD_CANCELLED or a
    refusal of `entitlements.revocations`.
    """
    return await in_rounds(conn, requests, _confirm, effects)


async def _confirm(conn: Conn, requests: Sequence[OnHold], effects: Effects) -> list[pb.Hold | Refusal]:
    hold_ids = [request.hold_id for request in requests]
    former = await _former_seats(conn, hold_ids)
    standing = await lock_holds(conn, [*hold_ids, *(seat.hold_id for seat, _ in former)])
    rows = await conn.fetch(
        f"""
        UPDATE holds SET state = 'CONFIRMED', confirm_time = statement_timestamp()
        FROM unnest($1::uuid[], $2::text[], $3::bool[], $4::text[]) AS request (hold_id, owner, manages, locator)
        WHERE holds.hold_id = request.hold_id AND (request.manages OR NOT holds.managed)
          AND (request.owner IS NULL OR holds.owner = request.owner)
          AND NOT {REVOKED}
          AND holds.state || '' = 'HELD' AND holds.expire_time > statement_timestamp()
        RETURNING holds.hold_id, holds.confirm_time
        """,  # noqa: S608
        *columns(requests),
    )
    confirmed = {row["hold_id"] for row in rows}
    if confirmed:
        by_hold = {request.hold_id: request for request in requests if request.hold_id in confirmed}
        # Read again under the locks. If the first read found no former seat, none can have appeared since: its
        # passenger would need a second HELD seat on the flight, which a unique index forbids.
        former = await _former_seats(conn, list(by_hold)) if former else []
        await _confirm_seats(conn, by_hold, former, now=rows[0]["confirm_time"], effects=effects)
    seats = await seats_of(conn, standing)
    revoked = await revocations(conn, [request for request in requests if request.hold_id not in confirmed])
    return [
        hold_message(standing[request.hold_id], seats, state="CONFIRMED")
        if request.hold_id in confirmed
        else explain(standing.get(request.hold_id), request, seats, revoked, repeats="CONFIRMED")
        for request in requests
    ]


async def _confirm_seats(
    conn: Conn,
    requests: Mapping[UUID, OnHold],
    former: Sequence[tuple[HeldSeat, UUID]],
    *,
    now: datetime,
    effects: Effects,
) -> None:
    """Confirms the seats of confirmed holds, and releases `former` seats.

    This transaction has confirmed the holds. Writes the events. Raises GuardMissed if one of the seats cannot be
    confirmed.
    """
    seats = [seat for of_hold in (await seats_of(conn, requests)).values() for seat in of_hold]
    await lock_seats(conn, {seat.place for seat in [*seats, *(old for old, _ in former)]})
    await release_locked(
        conn,
        [Release(old, requests[new].actor, MOVED, request_id(requests[new].request_key)) for old, new in former],
        effects=effects,
    )
    if former:
        await end_empty_holds(conn, {old.hold_id for old, _ in former})
    events = {flight_id: uuid4() for flight_id in {seat.flight_id for seat in seats}}
    rows = await conn.fetch(
        """
        WITH confirmed AS (
            UPDATE seats
            SET state = 'CONFIRMED', version = seats.version + 1, update_time = $7::timestamptz
            FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::uuid[], $6::uuid[])
                AS request (hold_id, flight_id, seat_number, actor, request_id, event_id)
            WHERE seats.flight_id = request.flight_id AND seats.seat_number = request.seat_number
              AND seats.hold_id = request.hold_id AND seats.state = 'HELD'
              AND (SELECT reason FROM cancelled_flights WHERE flight_id = request.flight_id) IS NULL
              AND coalesce((SELECT departure_time FROM departures WHERE flight_id = request.flight_id) > $7, true)
            RETURNING seats.flight_id, seats.seat_number, seats.version, seats.hold_id,
                      request.actor, request.request_id, request.event_id
        ), marked AS (
            UPDATE hold_seats SET state = 'CONFIRMED' FROM confirmed
            WHERE hold_seats.hold_id = confirmed.hold_id AND hold_seats.flight_id = confirmed.flight_id
              AND hold_seats.seat_number = confirmed.seat_number AND hold_seats.state || '' = 'HELD'
        ), ledger AS (
            INSERT INTO seat_events (flight_id, seat_number, version, from_state, to_state, hold_id, actor, reason,
                                     request_id, event_id, event_time)
            SELECT flight_id, seat_number, version, 'HELD', 'CONFIRMED', hold_id, actor, 'CONFIRMED',
                   request_id, event_id, $7
            FROM confirmed
        )
        SELECT flight_id, seat_number, version FROM confirmed
        """,
        [seat.hold_id for seat in seats],
        [seat.flight_id for seat in seats],
        [seat.seat_number for seat in seats],
        [requests[seat.hold_id].actor for seat in seats],
        [request_id(requests[seat.hold_id].request_key) for seat in seats],
        [events[seat.flight_id] for seat in seats],
        now,
    )
    if len(rows) != len(seats):
        # One cause is a flight that was cancelled or departed after its hold was checked: the retry is refused with
        # that reason.
        raise GuardMissed
    versions = {(row["flight_id"], row["seat_number"]): row["version"] for row in rows}
    messages = {
        flight_id: events_pb2.SeatConfirmed(flight_id=flight_id, confirm_time=timestamp(now)) for flight_id in events
    }
    for seat in seats:
        messages[seat.flight_id].seats.add(
            seat_number=seat.seat_number,
            version=versions[seat.place],
            passenger_id=seat.passenger_id,
            hold_id=str(seat.hold_id),
        )
    await announce(conn, "seat.confirmed.v1", events, messages, effects=effects)


async def _former_seats(conn: Conn, hold_ids: Sequence[UUID]) -> list[tuple[HeldSeat, UUID]]:
    """Returns the former confirmed seats of these holds' passengers.

    They are on the same flights as the seats of the holds. Each comes with the id of the new hold, which replaces it.
    """
    rows = await conn.fetch(
        """
        SELECT former.hold_id, former.flight_id, former.seat_number, former.passenger_id, new.hold_id AS new_hold
        FROM hold_seats AS new
        CROSS JOIN LATERAL (
            SELECT hold_seats.hold_id, hold_seats.flight_id, hold_seats.seat_number, hold_seats.passenger_id
            FROM hold_seats
            WHERE hold_seats.flight_id = new.flight_id AND hold_seats.passenger_id = new.passenger_id
              AND hold_seats.state = 'CONFIRMED' LIMIT 1
        ) AS former
        WHERE new.hold_id = ANY($1::uuid[]) AND new.state || '' = 'HELD'
        """,
        list(hold_ids),
    )
    return [
        (
            HeldSeat(row["hold_id"], row["flight_id"], row["seat_number"], row["passenger_id"], "CONFIRMED"),
            row["new_hold"],
        )
        for row in rows
    ]
