"""The transition HELD or CONFIRMED → CANCELLED."""

from __future__ import annotations

from collections.abc import Sequence

from skyhigh.seat.v1 import seat_service_pb2 as pb

from seat_service.holds.locks import lock_holds, seats_of
from seat_service.holds.outcomes import columns, explain, hold_message, in_rounds
from seat_service.holds.releases import Release, free
from seat_service.requests import Effects, OnHold, request_id
from seat_service.rules.entitlements import included_in_bookings, revocations
from services.db import Conn
from services.errors import Refusal


async def cancel(conn: Conn, requests: Sequence[OnHold], *, effects: Effects) -> list[pb.Hold | Refusal]:
    """Cancels holds: HELD or CONFIRMED → CANCELLED.

    Their seats become AVAILABLE, or OFFERED while the flight's waitlist is open. A repeat returns the cancelled hold.

    Returns for each request the hold or a refusal:

    - HOLD_NOT_FOUND: no such hold, or another principal owns it;
    - HOLD_MANAGED: a service manages the hold, and the caller is none;
    - HOLD_EXPIRED: the hold has lapsed;
    - HOLD_CONFIRMED: the hold is confirmed, and the request says `unless_confirmed`;
    - FLIGHT_DEPARTED: a confirmed seat is on a departed flight, and the request does not say `after_departure`;
    - SEAT_INCLUDED_IN_BOOKING: a passenger's confirmed booking includes a confirmed seat of the hold, and the caller is
      no service. The passenger has no other seat, even if check-in moved the passenger to this one;
    - PASSENGER_NOT_FOUND: the caller is a session, and a passenger of the hold now belongs to another locator.
    """
    return await in_rounds(conn, requests, _cancel, effects)


async def _cancel(conn: Conn, requests: Sequence[OnHold], effects: Effects) -> list[pb.Hold | Refusal]:
    standing = await lock_holds(conn, [request.hold_id for request in requests])
    rows = await conn.fetch(
        """
        UPDATE holds SET state = 'CANCELLED', end_time = statement_timestamp()
        FROM unnest($1::uuid[], $2::text[], $3::bool[], $4::text[], $5::bool[], $6::bool[])
            AS request (hold_id, owner, manages, locator, after_departure, unless_confirmed)
        WHERE holds.hold_id = request.hold_id AND (request.manages OR NOT holds.managed)
          AND (request.owner IS NULL OR holds.owner = request.owner)
          AND (holds.state = 'CONFIRMED' AND NOT request.unless_confirmed
               OR holds.state = 'HELD' AND holds.expire_time > statement_timestamp())
          AND NOT EXISTS (
              SELECT FROM hold_seats
              WHERE hold_seats.hold_id = holds.hold_id
                AND ((SELECT passengers.pnr <> request.locator
                             OR NOT request.manages AND passengers.seat_included AND NOT passengers.ended
                                AND hold_seats.state || '' = 'CONFIRMED'
                      FROM passengers
                      WHERE passengers.flight_id = hold_seats.flight_id
                        AND passengers.passenger_id = hold_seats.passenger_id)
                     OR NOT request.after_departure AND hold_seats.state || '' = 'CONFIRMED'
                        AND (SELECT departure_time FROM departures WHERE flight_id = hold_seats.flight_id)
                            <= statement_timestamp()))
        RETURNING holds.hold_id
        """,
        *columns(requests),
        [request.after_departure for request in requests],
        [request.unless_confirmed for request in requests],
    )
    cancelled = {row["hold_id"] for row in rows}
    seats = await seats_of(conn, standing)
    await free(
        conn,
        [
            Release(seat, request.actor, request.reason, request_id(request.request_key))
            for request in requests
            if request.hold_id in cancelled
            for seat in seats[request.hold_id]
        ],
        effects=effects,
    )
    # Only live holds are checked for these reasons: the refusal of a hold that had ended before says how it ended.
    live = {hold.hold_id for hold in standing.values() if hold.present_state in ("HELD", "CONFIRMED")}
    refused = [request for request in requests if request.hold_id in live - cancelled]
    revoked = await revocations(conn, refused) | await included_in_bookings(conn, refused)
    return [
        hold_message(standing[request.hold_id], seats, state="CANCELLED")
        if request.hold_id in cancelled
        else explain(standing.get(request.hold_id), request, seats, revoked, repeats="CANCELLED")
        for request in requests
    ]
