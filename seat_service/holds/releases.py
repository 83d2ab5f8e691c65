"""The release of seats: HELD or CONFIRMED → AVAILABLE or OFFERED, one by one or with their hold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID, uuid4

from skyhigh.seat.v1 import events_pb2
from skyhigh.seat.v1 import seat_service_pb2 as pb

from seat_service import refusals
from seat_service.holds.locks import HeldSeat, lock_holds, lock_seats, seats_of
from seat_service.holds.outcomes import hold_message
from seat_service.requests import Effects, OnPassenger, request_id
from seat_service.rules import entitlements
from services import outbox
from services.db import Conn, GuardMissed
from services.errors import Refusal
from services.outbox import Event
from services.proto import timestamp


@dataclass(frozen=True, slots=True)
class Release:
    """A seat to release, with the actor, reason and request id that the ledger records."""

    seat: HeldSeat
    actor: str
    reason: str
    request_id: UUID | None


async def free(conn: Conn, releases: Sequence[Release], *, effects: Effects) -> None:
    """Locks seats and releases them, except those that are RELEASED already."""
    live = [release for release in releases if release.seat.state != "RELEASED"]
    await lock_seats(conn, {release.seat.place for release in live})
    await release_locked(conn, live, effects=effects)


async def release_locked(conn: Conn, releases: Sequence[Release], *, effects: Effects) -> None:
    """Releases locked seats, and writes one `seat.released.v1` event for each flight.

    HELD or CONFIRMED → OFFERED while the flight's waitlist is open and the flight is neither cancelled nor departed;
    otherwise → AVAILABLE. The guard compares the seat's hold and state: if one seat is no longer as `releases` says,
    it raises GuardMissed, and the transaction must not commit.
    """
    if not releases:
        return
    events = {flight_id: uuid4() for flight_id in {release.seat.flight_id for release in releases}}
    rows = await conn.fetch(
        """
        WITH freed AS (
            UPDATE seats
            SET state = CASE
                    WHEN flight.waitlist_open
                     AND (SELECT reason FROM cancelled_flights WHERE flight_id = request.flight_id) IS NULL
                     AND coalesce((SELECT departure_time FROM departures WHERE flight_id = request.flight_id)
                                  > statement_timestamp(), true)
                    THEN 'OFFERED' ELSE 'AVAILABLE' END::seat_state,
                hold_id = NULL, version = seats.version + 1, update_time = statement_timestamp()
            FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::uuid[], $8::uuid[])
                AS request (hold_id, flight_id, seat_number, from_state, actor, reason, request_id, event_id)
            CROSS JOIN LATERAL (
                SELECT flights.waitlist_open, flights.offer_window FROM flights
                WHERE flights.flight_id = request.flight_id LIMIT 1
            ) AS flight
            WHERE seats.flight_id = request.flight_id AND seats.seat_number = request.seat_number
              AND seats.hold_id = request.hold_id
              AND seats.state = request.from_state::seat_state AND seats.state IN ('HELD', 'CONFIRMED')
            RETURNING seats.flight_id, seats.seat_number, seats.version, seats.state, flight.offer_window,
                      request.hold_id, request.from_state, request.actor, request.reason,
                      request.request_id, request.event_id
        ), unseated AS (
            UPDATE hold_seats SET state = 'RELEASED' FROM freed
            WHERE hold_seats.hold_id = freed.hold_id AND hold_seats.flight_id = freed.flight_id
              AND hold_seats.seat_number = freed.seat_number AND hold_seats.state = freed.from_state
        ), offered AS (
            INSERT INTO offers (flight_id, seat_number, expire_time)
            SELECT flight_id, seat_number, statement_timestamp() + offer_window
            FROM freed WHERE state = 'OFFERED'
            ON CONFLICT (flight_id, seat_number) DO UPDATE SET expire_time = excluded.expire_time
        ), ledger AS (
            INSERT INTO seat_events (flight_id, seat_number, version, from_state, to_state, hold_id, actor, reason,
                                     request_id, event_id, event_time)
            SELECT flight_id, seat_number, version, from_state::seat_state, state, hold_id, actor, reason,
                   request_id, event_id, statement_timestamp()
            FROM freed
        )
        SELECT flight_id, seat_number, version, state::text, statement_timestamp() AS now,
               CASE WHEN state = 'OFFERED' THEN statement_timestamp() + offer_window END AS offer_expire_time
        FROM freed
        """,
        [release.seat.hold_id for release in releases],
        [release.seat.flight_id for release in releases],
        [release.seat.seat_number for release in releases],
        [release.seat.state for release in releases],
        [release.actor for release in releases],
        [release.reason for release in releases],
        [release.request_id for release in releases],
        [events[release.seat.flight_id] for release in releases],
    )
    if len(rows) != len(releases):
        raise GuardMissed
    freed = {(row["flight_id"], row["seat_number"]): row for row in rows}
    messages = {
        flight_id: events_pb2.SeatReleased(flight_id=flight_id, release_time=timestamp(rows[0]["now"]))
        for flight_id in events
    }
    for release in releases:
        row = freed[release.seat.place]
        message = messages[release.seat.flight_id]
        if row["offer_expire_time"] is not None:
            message.offer_expire_time.CopyFrom(timestamp(row["offer_expire_time"]))
        message.seats.add(
            seat_number=release.seat.seat_number,
            version=row["version"],
            state=pb.Seat.State.Value(row["state"]),
            hold_id=str(release.seat.hold_id),
            passenger_id=release.seat.passenger_id,
            reason=release.reason,
        )
    await announce(conn, "seat.released.v1", events, messages, effects=effects)


async def announce(
    conn: Conn,
    routing_key: str,
    event_ids: Mapping[str, UUID],
    messages: Mapping[str, events_pb2.SeatReleased] | Mapping[str, events_pb2.SeatConfirmed],
    *,
    effects: Effects,
) -> None:
    """Writes one event for each flight to the outbox.

    Adds the flights and events to `effects`.
    """
    await outbox.enqueue(
        conn, [Event(event_ids[flight_id], routing_key, message) for flight_id, message in messages.items()]
    )
    effects.flights.update(event_ids)
    effects.events += len(event_ids)


async def end_empty_holds(conn: Conn, hold_ids: Iterable[UUID]) -> set[UUID]:
    """Cancels those of the holds that have no seat left; returns their ids."""
    rows = await conn.fetch(
        """
        UPDATE holds SET state = 'CANCELLED', end_time = statement_timestamp()
        WHERE hold_id = ANY($1::uuid[]) AND state IN ('HELD', 'CONFIRMED')
          AND NOT EXISTS (SELECT FROM hold_seats
                          WHERE hold_seats.hold_id = holds.hold_id AND hold_seats.state <> 'RELEASED')
        RETURNING hold_id
        """,
        list(hold_ids),
    )
    return {row["hold_id"] for row in rows}


async def release_passenger(
    conn: Conn, requests: Sequence[OnPassenger], *, effects: Effects
) -> list[pb.Hold | Refusal]:
    """Releases one passenger's seat of each hold: → AVAILABLE or OFFERED.

    The seat becomes OFFERED while the flight's waitlist is open. A hold whose last seat is released is CANCELLED.
    Nothing changes if the passenger has no seat in the hold: a repeat succeeds, and a seat of the passenger in another
    hold stays. A lapsed hold stays, too, until it is expired.

    Returns for each request the hold as it is after all of the requests, or a refusal: HOLD_NOT_FOUND; FLIGHT_DEPARTED
    for a confirmed seat of a departed flight, if the request does not say `after_departure`.
    """
    standing = await lock_holds(conn, [request.hold_id for request in requests])
    seats = await seats_of(conn, standing)
    kept = await _refusals_of_flown_seats(conn, requests, seats)
    # Of two requests for one seat the ledger shows the first. All requests run at once and not in rounds, because the
    # rounds would lock the seats one after the other, against the order of locks.
    releases = {
        seat.place: Release(seat, request.actor, request.reason, request_id(request.request_key))
        for n, request in reversed(list(enumerate(requests)))
        if n not in kept
        for seat in seats.get(request.hold_id, ())
        if (seat.flight_id, seat.passenger_id) == (request.flight_id, request.passenger_id)
        and seat.state != "RELEASED"
        and standing[request.hold_id].present_state != "EXPIRED"
    }
    ended = await release_seats(conn, standing, list(releases.values()), effects=effects)
    if releases:
        seats = await seats_of(conn, standing)
    return [
        kept[n]
        if n in kept
        else refusals.hold_not_found()
        if (hold := standing.get(request.hold_id)) is None
        else hold_message(hold, seats, state="CANCELLED" if hold.hold_id in ended else hold.present_state)
        for n, request in enumerate(requests)
    ]


async def _refusals_of_flown_seats(
    conn: Conn, requests: Sequence[OnPassenger], seats: Mapping[UUID, Sequence[HeldSeat]]
) -> dict[int, Refusal]:
    """Returns, by position, the refusals of requests to release flown seats.

    That is FLIGHT_DEPARTED for a confirmed seat of a departed flight, without `after_departure` (CHK-9).
    """
    departed = await entitlements.departed(conn, {request.flight_id for request in requests})
    return {
        n: departed[request.flight_id]
        for n, request in enumerate(requests)
        if request.flight_id in departed and not request.after_departure
        for seat in seats.get(request.hold_id, ())
        if (seat.flight_id, seat.passenger_id, seat.state) == (request.flight_id, request.passenger_id, "CONFIRMED")
    }


async def release_seats(
    conn: Conn, hold_ids: Iterable[UUID], releases: Sequence[Release], *, effects: Effects
) -> set[UUID]:
    """Releases single seats of locked holds: HELD or CONFIRMED → AVAILABLE or OFFERED.

    A hold whose last seat is released is CANCELLED. Returns the ids of these holds.
    """
    if not releases:
        return set()
    await free(conn, releases, effects=effects)
    ended = await end_empty_holds(conn, hold_ids)
    await _delete_released_seats(conn, hold_ids)
    return ended


async def _delete_released_seats(conn: Conn, hold_ids: Iterable[UUID]) -> None:
    """Deletes the rows of released seats from holds that stay HELD, as `change` does.

    So all rows of a HELD hold are HELD.
    """
    await conn.execute(
        """
        DELETE FROM hold_seats USING holds
        WHERE holds.hold_id = ANY($1::uuid[]) AND holds.state || '' = 'HELD'
          AND hold_seats.hold_id = holds.hold_id AND hold_seats.state = 'RELEASED'
        """,
        list(hold_ids),
    )
