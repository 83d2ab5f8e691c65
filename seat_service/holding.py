"""AVAILABLE → HELD: of any number of simultaneous callers for a seat exactly one gets it (SEAT-4, SEAT-5)."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from datetime import datetime
from typing import Final
from uuid import UUID, uuid4

import asyncpg
from skyhigh.seat.v1 import seat_service_pb2 as pb

from seat_service import hoarding, refusals
from seat_service.locks import lock_seats
from seat_service.requests import Effects, HoldRequest, Place, request_id
from services.db import Conn, GuardMissed
from services.errors import Aborted, Refusal
from services.proto import timestamp

_HOLD: Final = """
WITH request AS (
    SELECT n, hold_id, owner, purpose, ttl, extensions, actor, request_id, takes_offers
    FROM unnest($1::int[], $2::uuid[], $3::text[], $4::text[], $5::interval[], $6::smallint[], $7::text[],
                $8::uuid[], $9::bool[])
        AS request (n, hold_id, owner, purpose, ttl, extensions, actor, request_id, takes_offers)
), asked AS (
    SELECT n, flight_id, seat_number, passenger_id
    FROM unnest($10::int[], $11::text[], $12::text[], $13::text[]) AS asked (n, flight_id, seat_number, passenger_id)
), standing AS (
    SELECT asked.n, asked.flight_id, asked.seat_number, asked.passenger_id,
           seats.state, seats.hold_id AS seat_hold, own.hold_id AS own_hold,
           (seats.state = 'AVAILABLE' OR seats.state = 'OFFERED' AND request.takes_offers)
               AND own.hold_id IS NULL AS free
    FROM asked
    JOIN request USING (n)
    LEFT JOIN seats USING (flight_id, seat_number)
    LEFT JOIN hold_seats AS own
        ON own.flight_id = asked.flight_id AND own.passenger_id = asked.passenger_id AND own.state = 'HELD'
), granted AS (
    SELECT n FROM standing GROUP BY n HAVING bool_and(coalesce(free, false))
), taken AS (
    UPDATE seats
    SET state = 'HELD', hold_id = request.hold_id, version = seats.version + 1, update_time = $14::timestamptz
    FROM standing JOIN granted USING (n) JOIN request USING (n)
    WHERE seats.flight_id = standing.flight_id AND seats.seat_number = standing.seat_number
      AND (seats.state = 'AVAILABLE' OR seats.state = 'OFFERED' AND request.takes_offers)
    RETURNING standing.n, seats.flight_id, seats.seat_number, seats.version, standing.passenger_id,
              standing.state AS from_state, request.hold_id, request.actor, request.request_id
), held AS (
    INSERT INTO holds (hold_id, owner, purpose, ttl, extensions_left, create_time, expire_time)
    SELECT hold_id, owner, purpose::hold_purpose, ttl, extensions, $14, $14 + ttl
    FROM request JOIN granted USING (n)
), seated AS (
    INSERT INTO hold_seats (hold_id, flight_id, seat_number, passenger_id)
    SELECT hold_id, flight_id, seat_number, passenger_id FROM taken
), claimed AS (
    DELETE FROM offers USING taken
    WHERE taken.from_state = 'OFFERED'
      AND offers.flight_id = taken.flight_id AND offers.seat_number = taken.seat_number
), ledger AS (
    INSERT INTO seat_events
        (flight_id, seat_number, version, from_state, to_state, hold_id, actor, reason, request_id, event_time)
    SELECT flight_id, seat_number, version, from_state, 'HELD', hold_id, actor, 'HELD', request_id, $14
    FROM taken
)
SELECT standing.n, standing.flight_id, standing.seat_number, standing.passenger_id, standing.state::text,
       standing.own_hold, taken.version IS NOT NULL AS taken,
       ARRAY(SELECT holds.hold_id FROM holds
             WHERE holds.hold_id IN (standing.seat_hold, standing.own_hold)
               AND holds.state = 'HELD' AND holds.expire_time <= statement_timestamp()) AS lapsed_holds
FROM standing LEFT JOIN taken USING (n, flight_id, seat_number)
"""


async def hold(conn: Conn, requests: Sequence[HoldRequest], *, effects: Effects) -> list[pb.Hold | Refusal]:
    """AVAILABLE (for the waitlist also OFFERED) → HELD, for each request all of its seats or none.

    Requests for one seat are judged in their order: the first that gets all it asks for has it, the others lose.
    Answers a new hold; SEAT_TAKEN, SEAT_NOT_FOUND, PASSENGER_HOLDS_SEAT, TOO_MANY_HELD_SEATS or COOLING_DOWN;
    LapsedInTheWay where only lapsed holds stand in the way, which the caller ends before it tries again.
    """
    demands = [demand for request in requests for demand in _demands(request)]
    if demands:
        await hoarding.lock(conn, demands)
    now = await lock_seats(conn, {seat.place for request in requests for seat in request.seats})
    answers: dict[int, pb.Hold | Refusal] = {}
    pending = list(range(len(requests)))
    while pending:
        contenders, rivals = _first_come(requests, pending)
        refused = await _refuse_hoarders(conn, requests, contenders)
        granted, lost = await _hold_contenders(
            conn, requests, [n for n in contenders if n not in refused], now=now, effects=effects
        )
        answers.update(refused)
        answers.update(granted)
        pending = []
        for n in rivals:
            taken = next((lost[seat.place] for seat in requests[n].seats if seat.place in lost), None)
            if taken is None:
                pending.append(n)
            else:
                answers[n] = taken
    return [answers[n] for n in range(len(requests))]


def _demands(request: HoldRequest) -> list[hoarding.Demand]:
    if request.limits is None:
        return []
    flights = Counter(seat.flight_id for seat in request.seats)
    return [hoarding.Demand(request.owner, flight_id, seats) for flight_id, seats in flights.items()]


def _first_come(requests: Sequence[HoldRequest], pending: Sequence[int]) -> tuple[list[int], list[int]]:
    """Splits requests into those that meet nobody before them and the others, by seat, passenger and bound owner."""
    contenders: list[int] = []
    rivals: list[int] = []
    wanted: set[tuple[str, ...]] = set()
    for n in pending:
        wants = {("seat", *seat.place) for seat in requests[n].seats}
        wants |= {("passenger", seat.flight_id, seat.passenger_id) for seat in requests[n].seats}
        wants |= {("owner", demand.owner, demand.flight_id) for demand in _demands(requests[n])}
        (rivals if wants & wanted else contenders).append(n)
        wanted |= wants
    return contenders, rivals


async def _refuse_hoarders(
    conn: Conn, requests: Sequence[HoldRequest], contenders: Sequence[int]
) -> dict[int, Refusal]:
    demands = [(n, demand) for n in contenders for demand in _demands(requests[n])]
    limits = next((request.limits for request in requests if request.limits is not None), None)
    if limits is None or not demands:
        return {}
    verdicts = await hoarding.judge(conn, [demand for _, demand in demands], limits)
    return {n: verdict for (n, _), verdict in zip(demands, verdicts, strict=True) if verdict is not None}


async def _hold_contenders(
    conn: Conn, requests: Sequence[HoldRequest], contenders: Sequence[int], *, now: datetime, effects: Effects
) -> tuple[dict[int, pb.Hold | Refusal], dict[Place, Refusal]]:
    """Runs the one statement for requests that share nothing; returns their answers, and the seats now out of reach."""
    if not contenders:
        return {}, {}
    hold_ids = {n: uuid4() for n in contenders}
    asked = [(n, seat) for n in contenders for seat in requests[n].seats]
    rows = await conn.fetch(
        _HOLD,
        list(contenders),
        [hold_ids[n] for n in contenders],
        [requests[n].owner for n in contenders],
        [pb.Hold.Purpose.Name(requests[n].purpose) for n in contenders],
        [requests[n].ttl for n in contenders],
        [requests[n].extensions for n in contenders],
        [requests[n].actor for n in contenders],
        [request_id(requests[n].request_key) for n in contenders],
        [requests[n].takes_offers for n in contenders],
        [n for n, _ in asked],
        [seat.flight_id for _, seat in asked],
        [seat.seat_number for _, seat in asked],
        [seat.passenger_id for _, seat in asked],
        now,
    )
    by_request: dict[int, list[asyncpg.Record]] = defaultdict(list)
    for row in rows:
        by_request[row["n"]].append(row)
    answers: dict[int, pb.Hold | Refusal] = {}
    lost: dict[Place, Refusal] = {}
    for n in contenders:
        request = requests[n]
        if any(row["taken"] for row in by_request[n]):
            if not all(row["taken"] for row in by_request[n]):
                raise GuardMissed
            effects.flights.update(seat.flight_id for seat in request.seats)
            answers[n] = _new_hold(hold_ids[n], request, now)
            for seat in request.seats:
                lost[seat.place] = refusals.seat_taken(seat.flight_id, seat.seat_number, "HELD")
        else:
            answers[n] = refusal = explain_taken(by_request[n])
            if isinstance(refusal, Aborted) and not isinstance(refusal, refusals.LapsedInTheWay):
                lost[(refusal.metadata["flight_id"], refusal.metadata["seat_number"])] = refusal
    return answers, lost


def explain_taken(rows: Sequence[asyncpg.Record]) -> Refusal:
    """Why none of these locked seats was given; a lapsed hold is the reason only where there is no other."""
    lapsed: list[UUID] = []
    for row in rows:
        flight_id, seat_number, state = row["flight_id"], row["seat_number"], row["state"]
        if state is None:
            return refusals.seat_not_found(flight_id, seat_number)
        if row["lapsed_holds"]:
            lapsed += row["lapsed_holds"]
        elif state != "AVAILABLE":
            return refusals.seat_taken(flight_id, seat_number, state)
        elif row["own_hold"] is not None:
            return refusals.passenger_holds_seat(flight_id, row["passenger_id"])
    if not lapsed:
        # All seats are free under our locks, and still the statement took none: it must not commit.
        raise GuardMissed
    return refusals.LapsedInTheWay(rows[0]["flight_id"], rows[0]["seat_number"], lapsed)


def _new_hold(hold_id: UUID, request: HoldRequest, now: datetime) -> pb.Hold:
    return pb.Hold(
        hold_id=str(hold_id),
        state=pb.Hold.HELD,
        purpose=request.purpose,
        seats=[
            pb.SeatAssignment(flight_id=seat.flight_id, seat_number=seat.seat_number, passenger_id=seat.passenger_id)
            for seat in request.seats
        ],
        create_time=timestamp(now),
        expire_time=timestamp(now + request.ttl),
        extensions_left=request.extensions,
    )
