"""The transition AVAILABLE → HELD: holds seats for passengers (SEAT-4, SEAT-5).

Of any number of simultaneous callers for one seat exactly one gets it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID, uuid4

import asyncpg
from skyhigh.seat.v1 import seat_service_pb2 as pb

from seat_service import refusals
from seat_service.holds.locks import lock_seats
from seat_service.requests import Effects, HoldRequest, Limits, Place, request_id
from seat_service.rules import entitlements, hoarding
from seat_service.rules.hoarding import explain
from services.db import Conn, GuardMissed
from services.errors import Aborted, Refusal
from services.proto import timestamp

_NO_LIMITS: Final = Limits(held_seats=0, lapses_allowed=0, lapses_window=timedelta(), cool_down=timedelta())
_PURPOSES: Final = {value.number: value.name for value in pb.Hold.Purpose.DESCRIPTOR.values}

# `LATERAL (… LIMIT 1)` makes the planner look up each row by its key, even if it has no statistics of the tables.
# `OFFSET 0` makes Postgres evaluate `bound` before it calls `hoarding`. As a condition of the join, `bound` would be
# evaluated after the call, so that the holds of agents would pay for the function, too (decision 27).
_HOLD: Final = """
WITH asked AS (
    SELECT n, leads, flight_id, seat_number, passenger_id, hold_id, owner, purpose, ttl, extensions, actor,
           request_id, takes_offers, bound, managed, address,
           count(*) OVER (PARTITION BY n, flight_id) AS seats_of_flight
    FROM unnest($1::int[], $2::bool[], $3::text[], $4::text[], $5::text[], $6::uuid[], $7::text[], $8::text[],
                $9::interval[], $10::smallint[], $11::text[], $12::uuid[], $13::bool[], $14::bool[], $20::bool[],
                $21::text[])
        AS asked (n, leads, flight_id, seat_number, passenger_id, hold_id, owner, purpose, ttl, extensions, actor,
                  request_id, takes_offers, bound, managed, address)
), standing AS (
    SELECT asked.n, asked.leads, asked.flight_id, asked.seat_number, asked.passenger_id, asked.hold_id, asked.owner,
           asked.purpose, asked.ttl, asked.extensions, asked.actor, asked.request_id, asked.takes_offers, asked.managed,
           asked.address, seat.state, seat.hold_id AS seat_hold, own.hold_id AS own_hold,
           hoarding.no_room_seconds, hoarding.cooling_seconds, cancelled.flight_id IS NOT NULL AS flight_cancelled,
           departure.departure_time, min(departure.departure_time) OVER (PARTITION BY asked.n) AS first_departure,
           bool_and(own.hold_id IS NULL AND hoarding.no_room_seconds IS NULL AND hoarding.cooling_seconds IS NULL
                    AND cancelled.flight_id IS NULL AND coalesce(departure.departure_time > $15, true)
                    AND coalesce(seat.state = 'AVAILABLE' OR seat.state = 'OFFERED' AND asked.takes_offers, false))
               OVER (PARTITION BY asked.n) AS granted
    FROM asked
    LEFT JOIN LATERAL (
        SELECT seats.state, seats.hold_id FROM seats
        WHERE seats.flight_id = asked.flight_id AND seats.seat_number = asked.seat_number LIMIT 1
    ) AS seat ON true
    LEFT JOIN LATERAL (
        SELECT hold_seats.hold_id FROM hold_seats
        WHERE hold_seats.flight_id = asked.flight_id AND hold_seats.passenger_id = asked.passenger_id
          AND hold_seats.state = 'HELD' LIMIT 1
    ) AS own ON true
    LEFT JOIN LATERAL (
        SELECT cancelled_flights.flight_id FROM cancelled_flights
        WHERE cancelled_flights.flight_id = asked.flight_id LIMIT 1
    ) AS cancelled ON true
    LEFT JOIN LATERAL (
        SELECT departures.departure_time FROM departures WHERE departures.flight_id = asked.flight_id LIMIT 1
    ) AS departure ON true
    LEFT JOIN LATERAL (
        SELECT judged.no_room_seconds, judged.cooling_seconds
        FROM hoarding(asked.owner, asked.flight_id, asked.seats_of_flight::int, NULL, $16, $17, $18, $19) AS judged
        WHERE asked.bound OFFSET 0
    ) AS hoarding ON true
), taken AS (
    UPDATE seats
    SET state = 'HELD', hold_id = standing.hold_id, version = seats.version + 1, update_time = $15::timestamptz
    FROM standing
    WHERE standing.granted
      AND seats.flight_id = standing.flight_id AND seats.seat_number = standing.seat_number
      AND (seats.state = 'AVAILABLE' OR seats.state = 'OFFERED' AND standing.takes_offers)
    RETURNING seats.flight_id, seats.seat_number, seats.version, standing.passenger_id, standing.owner,
              standing.state AS from_state, standing.hold_id, standing.actor, standing.request_id, standing.address
), held AS (
    INSERT INTO holds (hold_id, owner, purpose, managed, ttl, extensions_left, create_time, expire_time, address)
    SELECT hold_id, owner, purpose::hold_purpose, managed, ttl, extensions, $15, least($15 + ttl, first_departure),
           address
    FROM standing WHERE granted AND leads
), seated AS (
    INSERT INTO hold_seats (hold_id, flight_id, seat_number, passenger_id, owner, address)
    SELECT hold_id, flight_id, seat_number, passenger_id, owner, address FROM taken
), claimed AS (
    DELETE FROM offers USING taken
    WHERE taken.from_state = 'OFFERED'
      AND offers.flight_id = taken.flight_id AND offers.seat_number = taken.seat_number
), ledger AS (
    INSERT INTO seat_events
        (flight_id, seat_number, version, from_state, to_state, hold_id, actor, reason, request_id, event_time)
    SELECT flight_id, seat_number, version, from_state, 'HELD', hold_id, actor, 'HELD', request_id, $15
    FROM taken
)
SELECT n, flight_id, seat_number, passenger_id, state::text, takes_offers, own_hold,
       no_room_seconds, cooling_seconds, flight_cancelled, departure_time, first_departure,
       coalesce(departure_time <= $15, false) AS departed, granted,
       (SELECT count(*) FROM taken) AS taken,
       CASE WHEN granted THEN '{}' ELSE ARRAY(
           SELECT hold.hold_id FROM unnest(ARRAY[seat_hold, own_hold]) AS way (hold_id)
           CROSS JOIN LATERAL (SELECT holds.hold_id, holds.state, holds.expire_time
                               FROM holds WHERE holds.hold_id = way.hold_id LIMIT 1) AS hold
           WHERE hold.state = 'HELD' AND hold.expire_time <= statement_timestamp()
       ) END AS lapsed_holds
FROM standing
"""


async def hold(conn: Conn, requests: Sequence[HoldRequest], *, effects: Effects) -> list[pb.Hold | Refusal]:
    """Holds all seats of each request, or none of them: AVAILABLE → HELD.

    A request with `takes_offers` (the waitlist's) may take OFFERED seats, too. Requests for one seat are evaluated in
    their order: the first one that can have all of its seats gets them, the others are refused. A hold ends at the
    first departure of its flights at the latest.

    Returns for each request the new hold or a refusal: FLIGHT_CANCELLED, FLIGHT_DEPARTED, a refusal of
    `entitlements.refusals_of`, SEAT_TAKEN, SEAT_NOT_FOUND, PASSENGER_HOLDS_SEAT, TOO_MANY_HELD_SEATS or COOLING_DOWN.
    LapsedHoldConflict means that only lapsed holds prevent the new one: the caller expires them and retries.
    Raises GuardMissed if the statement took fewer seats than it granted.
    """
    now = await lock_seats(
        conn,
        {seat.place for request in requests for seat in request.seats},
        owners={bound for request in requests for bound in _bound_owner(request)},
        with_manifests=True,
    )
    not_entitled = await entitlements.refusals_of(conn, [(request.actor, request.seats) for request in requests])
    answers: dict[int, pb.Hold | Refusal] = {**not_entitled}
    pending = [n for n in range(len(requests)) if n not in answers]
    while pending:
        contenders, rivals = _first_come(requests, pending)
        refused = await hoarding.refuse_addresses(conn, [(n, requests[n]) for n in contenders])
        answers.update(refused)
        contenders = [n for n in contenders if n not in refused]
        if not contenders:
            pending = rivals
            continue
        judged, lost = await _hold_contenders(conn, requests, contenders, now=now, effects=effects)
        answers.update(judged)
        pending = []
        for n in rivals:
            taken = next((seat.place for seat in requests[n].seats if seat.place in lost), None)
            if taken is None:
                pending.append(n)
            else:
                answers[n] = refusals.seat_taken(*taken, lost[taken])
    return [answers[n] for n in range(len(requests))]


def _bound_owner(request: HoldRequest) -> set[tuple[str, str]]:
    """Returns the keys that SEAT-16 counts for a request.

    They are its owner and a guest's address, each with each flight. Empty if SEAT-16 does not apply to the owner.
    """
    if request.limits is None:
        return set()
    counted = [request.owner, *([hoarding.locked_address(request.address)] if request.address else [])]
    return {(each, seat.flight_id) for seat in request.seats for each in counted}


def _first_come(requests: Sequence[HoldRequest], pending: Sequence[int]) -> tuple[list[int], list[int]]:
    """Splits requests into contenders and rivals, in their order.

    A rival has a seat, a passenger, or an owner or address that SEAT-16 counts, in common with an earlier request.
    """
    contenders: list[int] = []
    rivals: list[int] = []
    wanted: set[tuple[str, ...]] = set()
    for n in pending:
        wants = {("seat", *seat.place) for seat in requests[n].seats}
        wants |= {("passenger", seat.flight_id, seat.passenger_id) for seat in requests[n].seats}
        wants |= {("owner", *bound) for bound in _bound_owner(requests[n])}
        (rivals if wants & wanted else contenders).append(n)
        wanted |= wants
    return contenders, rivals


async def _hold_contenders(
    conn: Conn, requests: Sequence[HoldRequest], contenders: Sequence[int], *, now: datetime, effects: Effects
) -> tuple[dict[int, pb.Hold | Refusal], dict[Place, str]]:
    """Executes the hold statement for requests that have nothing in common.

    No two of them have the same seat, passenger, or owner that SEAT-16 counts. Returns the result of each request, and
    the state of each seat that a later request cannot get any more.
    """
    hold_ids = {n: uuid4() for n in contenders}
    # All requests of a process have the same limits. The statement applies them only to rows that are `bound`.
    limits = next((request.limits for request in requests if request.limits is not None), _NO_LIMITS)
    asked = [(n, seat, requests[n]) for n in contenders for seat in requests[n].seats]
    rows = await conn.fetch(
        _HOLD,
        [n for n, _, _ in asked],
        [seat is request.seats[0] for _, seat, request in asked],
        [seat.flight_id for _, seat, _ in asked],
        [seat.seat_number for _, seat, _ in asked],
        [seat.passenger_id for _, seat, _ in asked],
        [hold_ids[n] for n, _, _ in asked],
        [request.owner for _, _, request in asked],
        [_PURPOSES[request.purpose] for _, _, request in asked],
        [request.ttl for _, _, request in asked],
        [request.extensions for _, _, request in asked],
        [request.actor for _, _, request in asked],
        [request_id(request.request_key) for _, _, request in asked],
        [request.takes_offers for _, _, request in asked],
        [request.limits is not None for _, _, request in asked],
        now,
        limits.held_seats,
        limits.lapses_allowed,
        limits.lapses_window,
        limits.cool_down,
        [request.managed for _, _, request in asked],
        [request.address or None for _, _, request in asked],
    )
    if rows[0]["taken"] != sum(row["granted"] for row in rows):
        raise GuardMissed
    by_request: dict[int, list[asyncpg.Record]] = defaultdict(list)
    for row in rows:
        by_request[row["n"]].append(row)
    answers: dict[int, pb.Hold | Refusal] = {}
    lost: dict[Place, str] = {}
    for n in contenders:
        request = requests[n]
        if by_request[n][0]["granted"]:
            effects.flights.update(seat.flight_id for seat in request.seats)
            answers[n] = _new_hold(hold_ids[n], request, now, by_request[n][0]["first_departure"])
            lost.update((seat.place, "HELD") for seat in request.seats)
        else:
            answers[n] = refusal = _explain(by_request[n], limits)
            if isinstance(refusal, Aborted) and not isinstance(refusal, refusals.LapsedHoldConflict):
                lost[(refusal.metadata["flight_id"], refusal.metadata["seat_number"])] = refusal.metadata["state"]
    return answers, lost


def _explain(rows: Sequence[asyncpg.Record], limits: Limits) -> Refusal:
    verdicts = (
        explain(limits, no_room_seconds=row["no_room_seconds"], cooling_seconds=row["cooling_seconds"]) for row in rows
    )
    too_much = next((verdict for verdict in verdicts if verdict is not None), None)
    flies = not any(row["flight_cancelled"] or row["departed"] for row in rows)
    return too_much if flies and too_much is not None else explain_taken(rows)


def explain_taken(rows: Sequence[asyncpg.Record]) -> Refusal:
    """Returns the refusal that says why these locked seats were not taken.

    Returns LapsedHoldConflict only if there is no other reason. Raises GuardMissed if there is no reason at all.
    """
    cancelled = next((row["flight_id"] for row in rows if row["flight_cancelled"]), None)
    if cancelled is not None:
        return refusals.flight_cancelled(cancelled)
    departed = next((row for row in rows if row["departed"]), None)
    if departed is not None:
        return refusals.flight_departed(departed["flight_id"], departed["departure_time"])
    lapsed: list[UUID] = []
    for row in rows:
        flight_id, seat_number, state = row["flight_id"], row["seat_number"], row["state"]
        if state is None:
            return refusals.seat_not_found(flight_id, seat_number)
        if row["lapsed_holds"]:
            lapsed += row["lapsed_holds"]
        elif state != "AVAILABLE" and not (state == "OFFERED" and row["takes_offers"]):
            return refusals.seat_taken(flight_id, seat_number, state)
        elif row["own_hold"] is not None:
            return refusals.passenger_holds_seat(flight_id, row["passenger_id"])
    if not lapsed:
        # The seats are locked and free, yet the statement did not take them: the transaction must not commit.
        raise GuardMissed
    return refusals.LapsedHoldConflict(rows[0]["flight_id"], rows[0]["seat_number"], lapsed)


def _new_hold(hold_id: UUID, request: HoldRequest, now: datetime, departure: datetime | None) -> pb.Hold:
    expire_time = now + request.ttl
    return pb.Hold(
        hold_id=str(hold_id),
        state=pb.Hold.HELD,
        purpose=request.purpose,
        seats=[
            pb.SeatAssignment(flight_id=seat.flight_id, seat_number=seat.seat_number, passenger_id=seat.passenger_id)
            for seat in request.seats
        ],
        create_time=timestamp(now),
        expire_time=timestamp(expire_time if departure is None else min(expire_time, departure)),
        extensions_left=request.extensions,
        managed=request.managed,
    )
