"""The state machine of holds and their seats: one function for each transition.

    HELD → CONFIRMED → CANCELLED        HELD → CANCELLED        HELD → EXPIRED        (holding.py creates a hold: HELD)

A transition takes a connection inside a transaction and a list of requests. It returns a result or a refusal for each
request. It first takes locks, which only put concurrent transactions in order. Then a guarded write decides: its WHERE
clause has the conditions of the transition, evaluated after the locks at the database time of that statement. The
reason of a refusal is read from the locked rows. Only services may move a managed hold; its owner and agents are
refused with HOLD_MANAGED. `Effects` collects what the caller publishes after the commit.

The guard of a row that is looked up by its id compares `state || ''`. With `state = 'HELD'` a planner without
statistics, as on the first day or after a restore, would use the partial index and read every held row (decision 27).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Final
from uuid import UUID, uuid4

from skyhigh.seat.v1 import events_pb2
from skyhigh.seat.v1 import seat_service_pb2 as pb

from seat_service import entitlements, hoarding, refusals
from seat_service.entitlements import REVOKED, included_in_bookings, locator, refusals_of, revocations
from seat_service.holding import explain_taken
from seat_service.locks import HeldSeat, StandingHold, lock_holds, lock_seats, seats_of
from seat_service.releases import Release, announce, free, release_locked
from seat_service.requests import ChangeRequest, Effects, OnHold, OnPassenger, Place, request_id
from services.db import Conn, GuardMissed
from services.errors import Refusal
from services.proto import timestamp

EXPIRED: Final = "EXPIRED"
CHANGED: Final = "CHANGED"
MOVED: Final = "MOVED"
# A hold ends at the first departure of its flights at the latest: no seat of a departed flight can be held.
FIRST_DEPARTURE: Final = """(SELECT min(departures.departure_time) FROM hold_seats
    CROSS JOIN LATERAL (
        SELECT departures.departure_time FROM departures WHERE departures.flight_id = hold_seats.flight_id LIMIT 1
    ) AS departures
    WHERE hold_seats.hold_id = holds.hold_id)"""

Transition = Callable[[Conn, Sequence[OnHold], Effects], Awaitable[list[pb.Hold | Refusal]]]


async def confirm(conn: Conn, requests: Sequence[OnHold], *, effects: Effects) -> list[pb.Hold | Refusal]:
    """Confirms holds before their end: HELD → CONFIRMED.

    The same transaction releases the confirmed seats that the passengers had on these flights before. A repeat returns
    the confirmed hold. If another transaction cancels or expires the same hold at the same time, either it commits
    first and this one refuses, or it finds the hold CONFIRMED.

    Returns for each request the hold or a refusal: HOLD_NOT_FOUND, HOLD_MANAGED, HOLD_EXPIRED, HOLD_CANCELLED or a
    refusal of `entitlements.revocations`.
    """
    return await _in_rounds(conn, requests, _confirm, effects)


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
        *_named(requests),
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
        _answer(standing[request.hold_id], seats, state="CONFIRMED")
        if request.hold_id in confirmed
        else _explain(standing.get(request.hold_id), request, seats, revoked, repeats="CONFIRMED")
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
        await _end_empty_holds(conn, {old.hold_id for old, _ in former})
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


async def _end_empty_holds(conn: Conn, hold_ids: Iterable[UUID]) -> set[UUID]:
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
    return await _in_rounds(conn, requests, _cancel, effects)


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
        *_named(requests),
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
        _answer(standing[request.hold_id], seats, state="CANCELLED")
        if request.hold_id in cancelled
        else _explain(standing.get(request.hold_id), request, seats, revoked, repeats="CANCELLED")
        for request in requests
    ]


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
        else _answer(hold, seats, state="CANCELLED" if hold.hold_id in ended else hold.present_state)
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
    ended = await _end_empty_holds(conn, hold_ids)
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


async def expire(conn: Conn, hold_ids: Sequence[UUID], *, actor: str, effects: Effects) -> int:
    """Expires those of the holds that have lapsed: HELD → EXPIRED; returns how many.

    The database's clock decides. A hold that was confirmed, cancelled, extended or expired meanwhile stays as it is.
    """
    await lock_holds(conn, hold_ids)
    return await expire_locked(conn, hold_ids, actor=actor, effects=effects)


async def expire_locked(conn: Conn, hold_ids: Sequence[UUID], *, actor: str, effects: Effects) -> int:
    """Expires holds as `expire` does; the caller has locked them."""
    rows = await conn.fetch(
        """
        UPDATE holds SET state = 'EXPIRED', end_time = statement_timestamp()
        WHERE hold_id = ANY($1::uuid[]) AND state || '' = 'HELD' AND expire_time <= statement_timestamp()
        RETURNING hold_id
        """,
        list(hold_ids),
    )
    seats = await seats_of(conn, [row["hold_id"] for row in rows])
    await free(
        conn,
        [Release(seat, actor, EXPIRED, None) for of_hold in seats.values() for seat in of_hold],
        effects=effects,
    )
    return len(rows)


async def extend(conn: Conn, requests: Sequence[OnHold], *, effects: Effects) -> list[pb.Hold | Refusal]:
    """Gives holds their full TTL again: HELD → HELD (SEAT-9).

    This uses one extension of the hold. The hold must not have ended. Its new end is the first departure of its flights
    at the latest. Returns for each request the hold or a refusal: HOLD_NOT_FOUND, HOLD_MANAGED, HOLD_EXPIRED,
    HOLD_CANCELLED, HOLD_CONFIRMED, HOLD_LIMIT_REACHED or a refusal of `entitlements.revocations`.
    """
    return await _in_rounds(conn, requests, _extend, effects)


async def _extend(conn: Conn, requests: Sequence[OnHold], effects: Effects) -> list[pb.Hold | Refusal]:
    standing = await lock_holds(conn, [request.hold_id for request in requests])
    rows = await conn.fetch(
        f"""
        UPDATE holds
        SET expire_time = least(statement_timestamp() + ttl, {FIRST_DEPARTURE}), extensions_left = extensions_left - 1
        FROM unnest($1::uuid[], $2::text[], $3::bool[], $4::text[]) AS request (hold_id, owner, manages, locator)
        WHERE holds.hold_id = request.hold_id AND (request.manages OR NOT holds.managed)
          AND (request.owner IS NULL OR holds.owner = request.owner)
          AND NOT {REVOKED}
          AND holds.state || '' = 'HELD' AND holds.expire_time > statement_timestamp() AND holds.extensions_left > 0
        RETURNING holds.hold_id, holds.expire_time, holds.extensions_left
        """,  # noqa: S608
        *_named(requests),
    )
    for row in rows:
        standing[row["hold_id"]] = replace(
            standing[row["hold_id"]], expire_time=row["expire_time"], extensions_left=row["extensions_left"]
        )
    extended = {row["hold_id"] for row in rows}
    seats = await seats_of(conn, standing)
    revoked = await revocations(conn, [request for request in requests if request.hold_id not in extended])
    return [
        _answer(standing[request.hold_id], seats, state="HELD")
        if request.hold_id in extended
        else _explain(standing.get(request.hold_id), request, seats, revoked)
        for request in requests
    ]


async def change(conn: Conn, requests: Sequence[ChangeRequest], *, effects: Effects) -> list[pb.Hold | Refusal]:
    """Replaces the seats of holds, with a full TTL again: HELD → HELD.

    Uses one extension, as `extend` does. Each request has its own savepoint, so that a refused change leaves the hold
    as it was. Returns for each request the hold or a refusal: those of `extend` and
    `entitlements.refusals_of`, SEAT_TAKEN, SEAT_NOT_FOUND, PASSENGER_HOLDS_SEAT, TOO_MANY_HELD_SEATS or COOLING_DOWN;
    LapsedHoldConflict as `holding.hold` does.
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
    (hold,) = await _extend(conn, [on], effects)
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
        await _end_by_departure(conn, on.hold_id, hold)
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


async def _end_by_departure(conn: Conn, hold_id: UUID, hold: pb.Hold) -> None:
    """Limits the end of a changed hold to the first departure of its flights.

    Writes the new end to the row and to `hold`.
    """
    expire_time = await conn.fetchval(
        f"""
        UPDATE holds SET expire_time = least(statement_timestamp() + ttl, {FIRST_DEPARTURE})
        WHERE hold_id = $1 AND state || '' = 'HELD' RETURNING expire_time
        """,  # noqa: S608
        hold_id,
    )
    hold.expire_time.CopyFrom(timestamp(expire_time))


def _columns(request: ChangeRequest) -> tuple[list[str], list[str], list[str]]:
    return (
        [seat.flight_id for seat in request.seats],
        [seat.seat_number for seat in request.seats],
        [seat.passenger_id for seat in request.seats],
    )


async def _in_rounds(
    conn: Conn, requests: Sequence[OnHold], transition: Transition, effects: Effects
) -> list[pb.Hold | Refusal]:
    """Runs a transition in rounds, with at most one request for each hold in a round.

    A second request for a hold runs in a later round and finds what the first one changed.
    """
    answers: dict[int, pb.Hold | Refusal] = {}
    pending = list(range(len(requests)))
    while pending:
        first = {requests[n].hold_id: n for n in reversed(pending)}
        now = sorted(first.values())
        for n, answer in zip(now, await transition(conn, [requests[n] for n in now], effects), strict=True):
            answers[n] = answer
        pending = [n for n in pending if n not in answers]
    return [answers[n] for n in range(len(requests))]


def _answer(hold: StandingHold, seats: Mapping[UUID, Sequence[HeldSeat]], *, state: str) -> pb.Hold:
    ended = state in ("CANCELLED", "EXPIRED")
    return pb.Hold(
        hold_id=str(hold.hold_id),
        state=pb.Hold.State.Value(state),
        purpose=pb.Hold.Purpose.Value(hold.purpose),
        seats=[
            pb.SeatAssignment(flight_id=seat.flight_id, seat_number=seat.seat_number, passenger_id=seat.passenger_id)
            for seat in seats[hold.hold_id]
            if ended or seat.state != "RELEASED"
        ],
        create_time=timestamp(hold.create_time),
        expire_time=timestamp(hold.expire_time),
        extensions_left=hold.extensions_left,
        managed=hold.managed,
    )


def _explain(
    hold: StandingHold | None,
    request: OnHold,
    seats: Mapping[UUID, Sequence[HeldSeat]],
    revoked: Mapping[UUID, Refusal],
    *,
    repeats: str | None = None,
) -> pb.Hold | Refusal:
    """Returns the refusal that says why a locked hold did not change.

    Returns the hold itself if it already is in the state `repeats`, which the request asks for.
    """
    if hold is None or (request.owner is not None and hold.owner != request.owner):
        return refusals.hold_not_found()
    if hold.managed and not request.manages:
        return refusals.hold_managed()
    if hold.state == repeats:
        return _answer(hold, seats, state=hold.state)
    if hold.state == "CONFIRMED" and request.unless_confirmed:
        # The caller asks for nothing else: a lost right of a passenger does not matter to it.
        return refusals.hold_confirmed()
    return revoked.get(hold.hold_id) or _explain_state(hold, extends=repeats is None)


def _explain_state(hold: StandingHold, *, extends: bool) -> Refusal:
    match hold.state:
        case "CANCELLED":
            return refusals.hold_cancelled()
        case "CONFIRMED":
            return refusals.hold_confirmed()
        case "HELD" if extends and not hold.lapsed and hold.extensions_left == 0:
            return refusals.hold_limit_reached(hold.expire_time)
    # Also a hold that lapsed while the transition waited for its lock.
    return refusals.hold_expired(hold.expire_time)


async def find(conn: Conn, hold_id: UUID, *, owner: str | None) -> pb.Hold:
    """Returns a hold as it is now; `owner` None finds the holds of all owners.

    A lapsed hold is shown as EXPIRED, even before the sweeper has written that. Raises HOLD_NOT_FOUND.
    """
    row = await conn.fetchrow(
        """
        SELECT hold_id, owner, purpose::text, managed, state::text, extensions_left, create_time, expire_time,
               expire_time <= statement_timestamp() AS lapsed
        FROM holds WHERE hold_id = $1 AND ($2::text IS NULL OR owner = $2)
        """,
        hold_id,
        owner,
    )
    if row is None:
        raise refusals.hold_not_found()
    hold = StandingHold(**row)
    return _answer(hold, await seats_of(conn, [hold_id]), state=hold.present_state)


def _named(requests: Sequence[OnHold]) -> tuple[list[UUID], list[str | None], list[bool], list[str | None]]:
    return (
        [request.hold_id for request in requests],
        [request.owner for request in requests],
        [request.manages for request in requests],
        [locator(request.actor) for request in requests],
    )
