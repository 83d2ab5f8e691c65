"""The invariants of docs/rules.md section 11, and contract rules as functions.

A test applies a rule to the service as it is; a test of planted bugs applies the same rule to a service that breaks it.
The SQL is written from the specification, not from the service, so that a mistake stays undetected only if both have
the same one.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any, Final
from uuid import UUID, uuid4

import asyncpg
import grpc
from google.protobuf.message import Message
from skyhigh.seat.v1 import seat_service_pb2 as pb

from seat_service.holds.expire import expire
from seat_service.requests import Effects
from services import db
from services.db import Pool
from tests.aging import age_holds, lapse_holds
from tests.callers import Caller, Callers, a_few_at_once, listed_passenger, read, refused, seat
from tests.dates import new_flight_id as new_flight_id  # noqa: PLC0414 - other folders import it from here
from tests.instances import Database
from tests.waiting import eventually

# Locators of two parties.
PNR, OTHER_PNR = "XK4T7Q", "XK4T7R"

# Each query returns a row for each violation on the flights $1.
VIOLATIONS: Final[Mapping[str, str]] = {
    "versions are 1..n without gap": """
        SELECT flight_id, seat_number, count(*), max(version) FROM seat_events WHERE flight_id = ANY($1)
        GROUP BY flight_id, seat_number HAVING count(*) <> max(version) OR min(version) <> 1
    """,
    "each transition begins where the one before ended": """
        SELECT * FROM (
            SELECT flight_id, seat_number, version, from_state,
                   lag(to_state, 1, 'AVAILABLE') OVER (PARTITION BY flight_id, seat_number ORDER BY version) AS before
            FROM seat_events WHERE flight_id = ANY($1)
        ) AS step WHERE from_state <> before
    """,
    "a seat's owner changes only through a release": """
        SELECT * FROM (
            SELECT flight_id, seat_number, version, from_state, to_state, hold_id,
                   lag(hold_id) OVER (PARTITION BY flight_id, seat_number ORDER BY version) AS owner_before
            FROM seat_events WHERE flight_id = ANY($1)
        ) AS step WHERE from_state IN ('HELD', 'CONFIRMED') AND hold_id IS DISTINCT FROM owner_before
    """,
    "a seat is the fold of its ledger": """
        SELECT seats.flight_id, seats.seat_number, seats.state, seats.version, newest.to_state, newest.version
        FROM seats LEFT JOIN LATERAL (
            SELECT to_state, version, hold_id FROM seat_events
            WHERE seat_events.flight_id = seats.flight_id AND seat_events.seat_number = seats.seat_number
            ORDER BY version DESC LIMIT 1
        ) AS newest ON true
        WHERE seats.flight_id = ANY($1)
          AND (seats.version <> coalesce(newest.version, 0) OR seats.state <> coalesce(newest.to_state, 'AVAILABLE')
               OR seats.state IN ('HELD', 'CONFIRMED') AND seats.hold_id IS DISTINCT FROM newest.hold_id)
    """,
    "a taken seat's hold has it, in the same state": """
        SELECT seats.flight_id, seats.seat_number, seats.state, hold_seats.state, holds.state
        FROM seats
        LEFT JOIN holds USING (hold_id)
        LEFT JOIN hold_seats USING (hold_id, flight_id, seat_number)
        WHERE seats.flight_id = ANY($1) AND seats.state IN ('HELD', 'CONFIRMED')
          AND (holds.state::text IS DISTINCT FROM seats.state::text
               OR hold_seats.state IS DISTINCT FROM seats.state::text)
    """,
    "a living hold has all its seats": """
        SELECT hold_seats.*, seats.state, seats.hold_id FROM hold_seats
        LEFT JOIN seats USING (flight_id, seat_number)
        WHERE flight_id = ANY($1) AND hold_seats.state <> 'RELEASED'
          AND (seats.hold_id IS DISTINCT FROM hold_seats.hold_id OR seats.state::text <> hold_seats.state)
    """,
    "an ended hold has no seat": """
        SELECT hold_id, holds.state, hold_seats.state FROM holds JOIN hold_seats USING (hold_id)
        WHERE flight_id = ANY($1) AND holds.state IN ('CANCELLED', 'EXPIRED') AND hold_seats.state <> 'RELEASED'
    """,
    "no confirmation after the hold's end": """
        SELECT DISTINCT holds.hold_id, confirm_time, expire_time FROM seat_events JOIN holds USING (hold_id)
        WHERE flight_id = ANY($1) AND to_state = 'CONFIRMED' AND (confirm_time >= expire_time) IS NOT FALSE
    """,
    "no expiry before the hold's end": """
        SELECT holds.hold_id, event_time, expire_time FROM seat_events JOIN holds USING (hold_id)
        WHERE flight_id = ANY($1) AND reason = 'EXPIRED' AND event_time < expire_time
    """,
    "the seats of a hold change in one transaction": """
        SELECT hold_id, reason, to_state, count(DISTINCT transaction) FROM seat_events
        WHERE flight_id = ANY($1) AND hold_id IS NOT NULL AND reason IN ('HELD', 'CONFIRMED', 'EXPIRED')
        GROUP BY hold_id, reason, to_state HAVING count(DISTINCT transaction) > 1
    """,
    "a request has one effect": """
        SELECT actor, request_id, count(DISTINCT transaction) FROM seat_events
        WHERE flight_id = ANY($1) AND request_id IS NOT NULL
        GROUP BY actor, request_id HAVING count(DISTINCT transaction) > 1
    """,
    "nothing is taken on a flight after it was closed": """
        SELECT flight_id, seat_number, to_state, event_time, close_time
        FROM seat_events JOIN cancelled_flights USING (flight_id)
        WHERE flight_id = ANY($1) AND to_state IN ('HELD', 'CONFIRMED', 'OFFERED') AND event_time > close_time
    """,
    "what others need to know is in the outbox": """
        SELECT seat_events.* FROM seat_events LEFT JOIN outbox USING (event_id)
        WHERE flight_id = ANY($1) AND outbox.event_id IS NULL
          AND (to_state = 'CONFIRMED' OR from_state IN ('HELD', 'CONFIRMED') AND to_state IN ('AVAILABLE', 'OFFERED'))
    """,
    "an offered seat has an offer, and no other seat has": """
        SELECT flight_id, seat_number, seats.state, offers.expire_time
        FROM seats FULL JOIN offers USING (flight_id, seat_number)
        WHERE flight_id = ANY($1)
          AND (seats.state IS DISTINCT FROM 'OFFERED') = (offers.expire_time IS NOT NULL)
    """,
    "the seats of a flight are all there": """
        SELECT flight_id, total_seats, count(seats.seat_number) FROM flights LEFT JOIN seats USING (flight_id)
        WHERE flight_id = ANY($1) GROUP BY flight_id, total_seats HAVING count(seats.seat_number) <> total_seats
    """,
    "a passenger has one held and one confirmed seat at most": """
        SELECT flight_id, passenger_id, state, count(*) FROM hold_seats
        WHERE flight_id = ANY($1) AND state <> 'RELEASED' GROUP BY flight_id, passenger_id, state HAVING count(*) > 1
    """,
}


async def violations(database: Database, *flight_ids: str) -> list[str]:
    """Returns the violations of docs/rules.md section 11 on these flights."""
    found = []
    # All queries read one snapshot, because the service goes on writing.
    async with database.transaction(isolation="repeatable_read", readonly=True):
        for rule, query in VIOLATIONS.items():
            found += [f"{rule}: {dict(row)}" for row in await database.fetch(query, list(flight_ids))]
    return found


async def rows(database: Database, flight_id: str) -> dict[str, list[asyncpg.Record]]:
    """Returns all rows of a flight, to compare before and after a call.

    They must be equal if the call changes nothing.
    """
    return {
        table: await database.fetch(query, flight_id)
        for table, query in {
            "seats": "SELECT * FROM seats WHERE flight_id = $1 ORDER BY seat_number",
            "events": "SELECT * FROM seat_events WHERE flight_id = $1 ORDER BY seat_number, version",
            "hold_seats": "SELECT * FROM hold_seats WHERE flight_id = $1 ORDER BY hold_id, seat_number",
            "holds": """
                SELECT * FROM holds WHERE hold_id IN (SELECT hold_id FROM hold_seats WHERE flight_id = $1)
                ORDER BY hold_id
            """,
            "offers": "SELECT * FROM offers WHERE flight_id = $1 ORDER BY seat_number",
            "flight": "SELECT * FROM flights WHERE flight_id = $1",
        }.items()
    }


async def written(database: Database) -> asyncpg.Record:
    """Returns the counts of all rows that calls can add; the sweeper's are left out."""
    counts = await database.fetchrow(
        """
        SELECT (SELECT count(*) FROM flights) AS flights, (SELECT count(*) FROM holds) AS holds,
               (SELECT count(*) FROM hold_seats) AS hold_seats, (SELECT count(*) FROM idempotency) AS answers,
               (SELECT count(*) FROM seat_events WHERE actor <> 'sweeper') AS events
        """
    )
    assert counts is not None
    return counts


def outcomes(results: Sequence[Any]) -> Counter[str]:
    """Returns how often each reason occurs; `OK` counts the responses."""
    return Counter(read(result).reason if isinstance(result, grpc.aio.AioRpcError) else "OK" for result in results)


def answers(results: Sequence[Any]) -> list[Any]:
    """Returns the responses among results of calls.

    Fails if a result is neither a response nor a gRPC error.
    """
    assert all(isinstance(result, (Message, grpc.aio.AioRpcError)) for result in results), results
    return [result for result in results if isinstance(result, Message)]


async def at_once(*calls: Any) -> list[Any]:
    """Runs calls at the same time; returns their results, with errors as values."""
    return list(await asyncio.gather(*calls, return_exceptions=True))


async def one_of_many_gets_the_seat(
    callers: Sequence[Callers], database: Database, flight: str, *, many: int = 200
) -> None:
    """SEAT-4: one of many callers gets the seat, the others SEAT_TAKEN.

    The ledger then has one row, and there is one hold. The calls go to the services in turn.
    """
    results = await at_once(
        *(callers[n % len(callers)].customer().hold(flight, "12A", purpose=pb.Hold.BOOKING) for n in range(many))
    )
    assert outcomes(results) == {"OK": 1, "SEAT_TAKEN": many - 1}
    (winner,) = answers(results)
    assert [
        (str(row["hold_id"]), row["from_state"], row["to_state"])
        for row in await database.fetch("SELECT * FROM seat_events WHERE flight_id = $1", flight)
    ] == [(winner.hold_id, "AVAILABLE", "HELD")]
    assert await database.fetchval("SELECT count(*) FROM hold_seats WHERE flight_id = $1", flight) == 1
    assert await violations(database, flight) == []


async def all_or_none(callers: Sequence[Callers], database: Database, flights: Sequence[str], *, many: int) -> None:
    """SEAT-5: holds on two flights that compete for seats get both or neither.

    No caller sees a deadlock.
    """
    there, back = flights
    numbers = [f"{row}{letter}" for row in range(14, 31) for letter in "ABCDEF"]

    def hold(n: int) -> Any:
        seats = [
            seat(there, numbers[n % len(numbers)]),
            seat(back, numbers[(n * 7 + n // len(numbers)) % len(numbers)]),
        ]
        agent = callers[n % len(callers)].agent(f"desk-{n % 8}")
        return agent.hold_seats(*(seats if n % 2 else reversed(seats)))

    # On a busy machine a thousand calls at once would take longer than their deadline.
    results = [each for (each,) in await a_few_at_once((at_once(hold(n)) for n in range(many)), at_once=200)]
    counted = outcomes(results)
    assert counted.keys() <= {"OK", "SEAT_TAKEN"}
    assert counted["OK"] > 0
    assert counted["SEAT_TAKEN"] > 0
    held = {(each.flight_id, each.seat_number) for hold in answers(results) for each in hold.seats}
    assert len(held) == 2 * counted["OK"]
    taken = await database.fetch(
        "SELECT flight_id, seat_number FROM seats WHERE flight_id = ANY($1) AND state = 'HELD'", list(flights)
    )
    assert {(row["flight_id"], row["seat_number"]) for row in taken} == held
    assert await violations(database, *flights) == []


async def one_taken_seat_is_enough_to_get_none(callers: Callers, database: Database, flights: Sequence[str]) -> None:
    """SEAT-5: if one of several seats is taken, no other is changed, on any flight."""
    for taken_on in flights:
        number = f"{20 + flights.index(taken_on)}A"
        await callers.agent().hold(taken_on, number)
        before = [await rows(database, flight) for flight in flights]
        with refused("ABORTED", "SEAT_TAKEN") as refusal:
            await callers.agent().hold_seats(*(seat(flight, number) for flight in flights))
        assert refusal.info.metadata["flight_id"] == taken_on
        assert [await rows(database, flight) for flight in flights] == before


async def a_foreign_hold_is_as_a_missing_one(
    database: Database, stranger: Caller, method: str, request: Callable[[str], Message], hold: pb.Hold
) -> None:
    """A stranger gets the same status for an existing hold and a missing one.

    The call changes nothing.
    """
    flight_id = hold.seats[0].flight_id
    before = await rows(database, flight_id)
    with refused("NOT_FOUND", "HOLD_NOT_FOUND") as foreign:
        await getattr(stranger, method)(request(hold.hold_id))
    with refused("NOT_FOUND", "HOLD_NOT_FOUND") as missing:
        await getattr(stranger, method)(request(str(uuid4())))
    assert foreign.status == missing.status
    assert await rows(database, flight_id) == before


async def a_repeat_has_one_effect(
    database: Database, caller: Caller, method: str, request: Message, flight_id: str
) -> Message:
    """Repeats of a request, also at once, get the first response and change nothing.

    Returns the response.
    """
    first: Message = await getattr(caller, method)(request)
    before = await rows(database, flight_id)
    for again in await at_once(*(getattr(caller, method)(request) for _ in range(5))):
        assert again == first
    assert await rows(database, flight_id) == before
    return first


async def a_lapsed_hold_gives_way(callers: Callers, database: Database, flight: str) -> None:
    """SEAT-3: the next caller gets the seat of a lapsed hold.

    No later call of the first owner changes the seat.
    """
    first, taker = callers.passenger(f"P1:{flight}"), callers.passenger(f"P2:{flight}")
    lapsed = await first.hold(flight, "20A", "P1")
    await lapse_holds(database, lapsed)
    taken = await taker.hold(flight, "20A", "P2", purpose=pb.Hold.BOOKING)
    for method, request in CHANGES_OF_A_HOLD.items():
        with refused("ABORTED", "HOLD_EXPIRED"):
            await getattr(first, method)(request(lapsed.hold_id, flight))
    assert (await taker.get(taken)).state == pb.Hold.HELD
    await taker.confirm(taken)
    with refused("ABORTED", "HOLD_EXPIRED"):
        await first.cancel(lapsed)
    assert await database.fetchval(
        "SELECT hold_id::text FROM seats WHERE flight_id = $1 AND seat_number = '20A' AND state = 'CONFIRMED'", flight
    ) == (taken.hold_id)
    assert await violations(database, flight) == []


async def versions_never_go_back(callers: Sequence[Callers], flight: str) -> None:
    """SEAT-12: a client that reads from any instance never sees the version decrease.

    Equal versions have equal states of all seats.
    """
    numbers = [f"{row}{letter}" for row in range(14, 31) for letter in "ABCDEF"]
    states_of: dict[int, bytes] = {}
    changes = reads = 0
    ended = asyncio.Event()

    async def enough() -> bool:
        return changes > 20 and reads > 100 and len(states_of) > 10

    async def watch_the_end() -> None:
        try:
            await eventually(enough)
        finally:
            ended.set()

    async def write(n: int) -> None:
        nonlocal changes
        agent = callers[n % len(callers)].agent()
        while not ended.is_set():
            await agent.cancel(await agent.hold(flight, numbers[n]))
            changes += 2

    async def follow(agents: Sequence[Caller]) -> None:
        nonlocal reads
        newest = 0
        while not ended.is_set():
            for agent in agents:
                found = await agent.GetSeatMap(pb.GetSeatMapRequest(flight_id=flight))
                assert found.version >= newest, f"{found.version} after {newest}"
                newest = found.version
                states = bytes(each.state for each in found.seats)
                assert states_of.setdefault(found.version, states) == states
                reads += 1

    agents = [each.agent() for each in callers]
    await asyncio.gather(
        watch_the_end(), *(write(n) for n in range(4)), follow(agents), follow(agents[:1]), follow(agents[-1:])
    )


async def an_ended_passenger_gets_no_seat(callers: Callers, database: Database, flight: str) -> None:
    """SEAT-17: no caller gets a seat for a passenger whose entitlement ended."""
    await sync(callers, listed_passenger(flight, "P1", PNR, ended=True))
    for caller in (callers.session(PNR), callers.agent(), callers.service()):
        with refused("FAILED_PRECONDITION", "PASSENGER_NOT_ENTITLED"):
            await caller.hold(flight, "20A", "P1")
    assert (await rows(database, flight))["hold_seats"] == []


async def a_session_confirms_for_its_locator_only(callers: Callers, database: Database, flight: str) -> None:
    """SEAT-17: a session can't confirm a hold for a passenger of another locator.

    An agent took the hold with the session as its owner.
    """
    await sync(callers, listed_passenger(flight, "P1", OTHER_PNR))
    session = callers.session(PNR)
    hold = await callers.agent().hold(flight, "20A", "P1", owner=session.name)
    with refused("NOT_FOUND", "PASSENGER_NOT_FOUND"):
        await session.confirm(hold)
    assert (
        await database.fetchval("SELECT count(*) FROM seats WHERE flight_id = $1 AND state = 'CONFIRMED'", flight) == 0
    )


async def nothing_is_confirmed_after_departure(callers: Callers, database: Database, flight: str) -> None:
    """SEAT-17: a hold that has not expired is not confirmed after departure."""
    hold = await callers.agent().hold(flight, "20A")
    # The flight has departed, and its timer has not fired yet.
    await database.execute("INSERT INTO departures VALUES ($1, now() - interval '1 s', 1)", flight)
    with refused("FAILED_PRECONDITION", "FLIGHT_DEPARTED"):
        await callers.agent().confirm(hold)


async def sync(callers: Callers, *passengers: pb.SyncPassengersRequest.ManifestPassenger) -> pb.SyncPassengersResponse:
    """Syncs passengers as the check-in service does."""
    response: pb.SyncPassengersResponse = await callers.service("checkin").SyncPassengers(
        pb.SyncPassengersRequest(passengers=passengers)
    )
    return response


async def a_lapsed_hold_is_not_confirmed(callers: Callers, database: Database, flight: str) -> None:
    """SEAT-7: after its end a hold is refused with HOLD_EXPIRED; it has no seat."""
    owner = callers.passenger(f"P1:{flight}")
    hold = await owner.hold(flight, "20A", "P1")
    await lapse_holds(database, hold)
    with refused("ABORTED", "HOLD_EXPIRED"):
        await owner.confirm(hold)
    assert (await owner.get(hold)).state == pb.Hold.EXPIRED
    assert await violations(database, flight) == []


async def a_decided_hold_does_not_expire(callers: Callers, pool: Pool, flight: str) -> None:
    """SEAT-10: the sweeper does not expire a hold that was confirmed or cancelled.

    Neither does it expire a hold whose time is not over. It may have read the hold before that changed.
    """
    agent = callers.agent()
    confirmed = await agent.confirm(await agent.hold(flight, "20A"))
    cancelled = await agent.cancel(await agent.hold(flight, "20B"))
    living = await agent.hold(flight, "20C", purpose=pb.Hold.BOOKING)
    holds = (confirmed, cancelled, living)
    async with db.transaction(pool) as conn:
        expired = await expire(conn, [UUID(hold.hold_id) for hold in holds], actor="test", effects=Effects())
    assert expired == 0
    for hold in holds:
        assert await agent.get(hold) == hold


async def lapsed_holds_are_freed_and_living_ones_kept(brief: Callers, database: Database, flight: str) -> None:
    """SEAT-10: a brief hold is freed within 5 s of its end, and not before.

    Its events are in the outbox. Other holds stay as they are.
    """
    booked = await brief.agent().hold(flight, "29A", purpose=pb.Hold.BOOKING)
    confirmed = await brief.agent().confirm(await brief.agent().hold(flight, "30A", purpose=pb.Hold.BOOKING))
    # The hold is moved back further than its time to live: a confirmed hold does not expire.
    await age_holds(database, confirmed, by=timedelta(hours=1))
    confirmed = await brief.agent().get(confirmed)
    for row in range(14, 24):
        await brief.agent().hold_seats(*(seat(flight, f"{row}{letter}") for letter in "BC"))
    freed: list[asyncpg.Record] = []

    async def all_freed() -> bool:
        freed[:] = await database.fetch(
            """
            SELECT extract(epoch FROM event_time - expire_time)::float8 AS lag, outbox.event_id
            FROM seat_events JOIN holds USING (hold_id) LEFT JOIN outbox USING (event_id)
            WHERE flight_id = $1 AND seat_number LIKE ANY(ARRAY['%B', '%C']) AND to_state = 'AVAILABLE'
            """,
            flight,
        )
        return len(freed) >= 20

    await eventually(all_freed)
    lags = [row["lag"] for row in freed]
    assert all(row["event_id"] for row in freed)
    assert all(0 <= lag < 5 for lag in lags), lags
    assert (await brief.agent().get(booked)).state == pb.Hold.HELD
    assert await brief.agent().get(confirmed) == confirmed
    assert await violations(database, flight) == []


async def a_cancelled_hold_touches_nobody(callers: Callers, database: Database, flight: str) -> None:
    """SEAT-8: cancelling a cancelled hold again does not affect the seat's next owner."""
    first, following = callers.passenger(f"P1:{flight}"), callers.passenger(f"P2:{flight}")
    gone = await first.hold(flight, "20A", "P1")
    await first.cancel(gone)
    held = await following.hold(flight, "20A", "P2")
    for decide in (following.get, following.confirm):
        standing = await decide(held)
        await first.cancel(gone)
        assert await following.get(held) == standing
        assert await violations(database, flight) == []


async def a_seat_of_a_booking_stays(callers: Callers, database: Database, flight: str) -> None:
    """CHK-9: the seat that a passenger's confirmed booking includes is not released.

    Neither the passenger nor an agent can cancel its hold.
    """
    await sync(callers, listed_passenger(flight, "P1", PNR, seat_included=True))
    session = callers.session(PNR)
    confirmed = await session.confirm(await session.hold(flight, "20A", "P1"))
    before = await rows(database, flight)
    for caller in (session, callers.agent()):
        with refused("FAILED_PRECONDITION", "SEAT_INCLUDED_IN_BOOKING") as refusal:
            await caller.cancel(confirmed)
        assert refusal.info.metadata == {"flight_id": flight, "passenger_id": "P1"}
    assert await rows(database, flight) == before


CHANGES_OF_A_HOLD: Final[Mapping[str, Callable[[str, str], Message]]] = {
    "ExtendHold": lambda hold_id, _: pb.ExtendHoldRequest(hold_id=hold_id),
    "ChangeHoldSeats": lambda hold_id, flight: pb.ChangeHoldSeatsRequest(
        hold_id=hold_id, seats=[seat(flight, "21A", "P1")]
    ),
    "ConfirmHold": lambda hold_id, _: pb.ConfirmHoldRequest(hold_id=hold_id),
    "CancelHold": lambda hold_id, _: pb.CancelHoldRequest(hold_id=hold_id),
}
