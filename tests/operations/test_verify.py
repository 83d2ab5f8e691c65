"""`skyhigh verify` finds nothing in a true history.

It reports each planted corruption by the invariant that it breaks.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

import asyncpg
import grpc
import pytest
from redis.asyncio import Redis
from skyhigh.seat.v1 import seat_service_pb2 as pb
from typer.testing import CliRunner, Result

from deploy.local.process import free_ports
from operations.__main__ import app
from operations.invariants import INVARIANTS
from operations.verify import cached_maps
from operations.verify.check import CACHED_MAPS, check
from operations.verify.figures import lateness
from operations.verify.finding import SAMPLES, Finding
from tests.aging import lapse_holds
from tests.callers import listed_passenger, seat
from tests.conftest import SERVICES
from tests.dates import flight_id
from tests.instances import Database, Instance, connected, instance, own_database
from tests.services.rules import listening
from tests.waiting import eventually, pause

if TYPE_CHECKING:
    from tests.conftest import World

FLIGHT: Final = flight_id("SH1")
OTHER: Final = flight_id("SH2")
# The statements below find a hold by its seat, because `check` does not use this relation.
HOLD: Final = "(SELECT hold_id FROM seats WHERE flight_id = '{0}' AND seat_number = '{1}')"
HELD: Final = HOLD.format(FLIGHT, "10A")
CONFIRMED: Final = HOLD.format(FLIGHT, "11A")
OF_10A: Final = f"flight_id = '{FLIGHT}' AND seat_number = '10A'"
OF_11A: Final = f"flight_id = '{FLIGHT}' AND seat_number = '11A'"
# A seat of an exit row.
OF_12B: Final = f"flight_id = '{FLIGHT}' AND seat_number = '12B'"
# Adds the passenger of a seat to the seat service's list.
LISTED: Final = """
    INSERT INTO passengers (flight_id, passenger_id, pnr, cabin, type, special_services, ended, revision)
    SELECT flight_id, passenger_id, '{pnr}', '{cabin}', '{type}', '{services}', {ended}, 1
    FROM hold_seats WHERE {where} AND state <> 'RELEASED'"""
DEPARTED: Final = f"""
    INSERT INTO departures (flight_id, departure_time, revision, update_time)
    VALUES ('{FLIGHT}', now() - interval '1 hour', 1, now() - interval '1 hour')"""

# The constraints and triggers that prevent an accidental corruption.
DEFENCES: Final = """
    ALTER TABLE seats DROP CONSTRAINT seat_has_hold_while_taken;
    ALTER TABLE holds DROP CONSTRAINT hold_ends_after_it_began;
    ALTER TABLE holds DROP CONSTRAINT hold_confirmed_before_its_end;
    ALTER TABLE holds DROP CONSTRAINT hold_expired_not_before_its_end;
    ALTER TABLE holds DROP CONSTRAINT hold_state_has_its_times;
    ALTER TABLE seat_events DISABLE TRIGGER ledger_is_append_only;
    ALTER TABLE seat_events DROP CONSTRAINT legal_transition;
    ALTER TABLE timers DROP CONSTRAINT timer_fires_never_early;
    DROP INDEX one_held_seat_per_passenger;
    DROP INDEX one_confirmed_seat_per_passenger;
"""

# The corruptions by the invariant's name.
CORRUPTIONS: Final = {
    "a seat has a hold exactly while it is held or confirmed": {
        "a held seat loses its hold": f"UPDATE seats SET hold_id = NULL WHERE {OF_10A}",
        "a free seat has a hold": f"UPDATE seats SET state = 'AVAILABLE' WHERE {OF_10A}",
    },
    "a held or confirmed seat is released before another hold gets it": {
        "another's hold is confirmed": f"""
            UPDATE seat_events SET hold_id = gen_random_uuid() WHERE {OF_11A} AND to_state = 'CONFIRMED'""",
        "another's hold is released": f"""
            INSERT INTO seat_events (flight_id, seat_number, version, from_state, to_state, hold_id, actor, reason,
                                     event_time)
            VALUES ('{FLIGHT}', '10A', 2, 'HELD', 'AVAILABLE', gen_random_uuid(), 'sweeper', 'EXPIRED', now())""",
        "taken over without a release": f"""
            INSERT INTO seat_events (flight_id, seat_number, version, from_state, to_state, hold_id, actor, reason,
                                     event_time)
            VALUES ('{FLIGHT}', '10A', 2, 'AVAILABLE', 'HELD', gen_random_uuid(), 'agent:x', 'HELD', now())""",
    },
    "a seat and its hold agree on the state of the seat": {
        "a hold forgets its seat": f"UPDATE hold_seats SET state = 'RELEASED' WHERE {OF_10A}",
        "a hold has a seat that is free": f"""
            INSERT INTO hold_seats (hold_id, flight_id, seat_number, passenger_id)
            VALUES ({HELD}, '{FLIGHT}', '30F', 'stranger')""",
        "two holds have one seat": f"""
            INSERT INTO hold_seats (hold_id, flight_id, seat_number, passenger_id)
            VALUES ({HELD}, '{FLIGHT}', '11A', 'stranger')""",
    },
    "the states of a hold's seats match the state of the hold": {
        "a cancelled hold keeps its seat": f"""
            UPDATE holds SET state = 'CANCELLED', end_time = now() WHERE hold_id = {HELD}""",
        "a confirmed hold holds": f"""
            UPDATE holds SET state = 'CONFIRMED', confirm_time = now() WHERE hold_id = {HELD}""",
        "a confirmed hold has nothing": f"UPDATE hold_seats SET state = 'RELEASED' WHERE hold_id = {CONFIRMED}",
        "a hold without seats": """
            INSERT INTO holds (hold_id, owner, purpose, ttl, extensions_left, create_time, expire_time)
            VALUES (gen_random_uuid(), 'agent:x', 'CHECK_IN', '2 min', 9, now(), now() + interval '2 min')""",
        "seats without a hold": f"DELETE FROM holds WHERE hold_id = {HELD}",
    },
    "a passenger has at most one held and one confirmed seat on a flight": {
        "two held": f"""
            INSERT INTO hold_seats (hold_id, flight_id, seat_number, passenger_id)
            SELECT gen_random_uuid(), flight_id, '30F', passenger_id FROM hold_seats WHERE {OF_10A}""",
        "two confirmed": f"""
            INSERT INTO hold_seats (hold_id, flight_id, seat_number, passenger_id, state)
            SELECT hold_id, flight_id, '30F', passenger_id, state FROM hold_seats WHERE {OF_11A}""",
    },
    "the versions of a seat are 1..n without a gap": {
        "a gap": f"UPDATE seat_events SET version = 3 WHERE {OF_11A} AND version = 2",
        "a beginning that is missing": f"DELETE FROM seat_events WHERE {OF_11A} AND version = 1",
    },
    "each transition of a seat starts in the end state of the previous one, the first in AVAILABLE": {
        "a first that was no beginning": f"UPDATE seat_events SET from_state = 'OFFERED' WHERE {OF_10A}",
        "a jump": f"UPDATE seat_events SET to_state = 'BLOCKED' WHERE {OF_11A} AND version = 1",
    },
    "every transition of a seat is legal": {
        "from blocked to held": f"UPDATE seat_events SET from_state = 'BLOCKED' WHERE {OF_10A}",
    },
    "a seat equals the result of its ledger": {
        "freed by id alone": f"UPDATE seats SET state = 'AVAILABLE', hold_id = NULL WHERE {OF_10A}",
        "another version": f"UPDATE seats SET version = version + 1 WHERE {OF_10A}",
        "another hold": f"UPDATE seats SET hold_id = {CONFIRMED} WHERE {OF_10A}",
        "a change without a row": f"DELETE FROM seat_events WHERE {OF_11A} AND version = 2",
        "a ledger without a seat": f"DELETE FROM seats WHERE {OF_10A}",
    },
    "a seat is OFFERED exactly while it has an offer": {
        "no end": "DELETE FROM offers",
        "an offer of a taken seat": f"INSERT INTO offers VALUES ('{FLIGHT}', '10A', now() + interval '1 min')",
    },
    "available + held + confirmed + offered + blocked = seats of the flight": {
        "a seat is lost": f"DELETE FROM seats WHERE flight_id = '{FLIGHT}' AND seat_number = '30F'",
        "a seat too many": f"INSERT INTO seats (flight_id, seat_number, ordinal) VALUES ('{FLIGHT}', '99A', 999)",
        "seats of no flight": f"DELETE FROM flights WHERE flight_id = '{OTHER}'",
    },
    "no seat is confirmed at or after the expire time of its hold": {
        "the hold says so": f"UPDATE holds SET confirm_time = expire_time WHERE hold_id = {CONFIRMED}",
        "the ledger says so": f"""
            UPDATE seat_events SET event_time = holds.expire_time FROM holds
            WHERE holds.hold_id = {CONFIRMED} AND seat_events.{OF_11A} AND to_state = 'CONFIRMED'""",
        "the hold knows nothing of it": f"""
            UPDATE holds SET state = 'EXPIRED', confirm_time = NULL WHERE hold_id = {CONFIRMED}""",
    },
    "no hold expires before its expire time, and no other seat is released as EXPIRED": {
        "the hold says so": "UPDATE holds SET end_time = expire_time - interval '1 ms' WHERE state = 'EXPIRED'",
        "the ledger says so": """
            UPDATE seat_events SET event_time = event_time - interval '1 min'
            WHERE reason = 'EXPIRED' AND actor = 'sweeper'""",
        "a confirmed seat is swept": f"""
            INSERT INTO seat_events (flight_id, seat_number, version, from_state, to_state, hold_id, actor, reason,
                                     event_time)
            VALUES ('{FLIGHT}', '11A', 3, 'CONFIRMED', 'AVAILABLE', {CONFIRMED}, 'sweeper', 'EXPIRED',
                    now() + interval '1 hour')""",
    },
    "no hold stays HELD and no offer remains for more than 5 s after its expire time": {
        "a hold": f"UPDATE holds SET expire_time = now() - interval '6 s' WHERE hold_id = {HELD}",
        "an offer": "UPDATE offers SET expire_time = now() - interval '6 s'",
    },
    "the seats of a hold are held in one transaction, confirmed in one, and released in one": {
        step: f"UPDATE seat_events SET transaction = '7' WHERE flight_id = '{OTHER}' AND {condition}"
        for step, condition in {
            "held": "seat_number = '11A' AND version = 1",
            "confirmed": "seat_number = '11A' AND version = 2",
            "cancelled": "seat_number = '14A' AND version = 2",
        }.items()
    },
    "every seat of a hold has a HELD transition for this hold": {
        "one of three was not": f"DELETE FROM seat_events WHERE flight_id = '{OTHER}' AND seat_number = '11A'",
    },
    "a request changes a seat at most once, and all its seats in one transaction": {
        "twice": f"UPDATE seat_events SET actor = 'agent:x', request_id = '{uuid4()}' WHERE {OF_11A}",
        "in two transactions": f"""
            UPDATE seat_events SET actor = 'agent:x', request_id = '{uuid4()}'
            WHERE flight_id = '{FLIGHT}' AND seat_number IN ('10A', '11A') AND to_state = 'HELD'""",
    },
    "the response of a request that changed a seat is stored for 24 hours": {
        "forgotten": "DELETE FROM idempotency",
        "another principal's": "UPDATE idempotency SET principal = 'agent:x'",
    },
    "the hold of every stored response exists": {
        "a success that was lost": f"DELETE FROM holds WHERE hold_id = {CONFIRMED}",
    },
    "every confirmation and every release of a seat has its event": {
        "confirmed in silence": f"UPDATE seat_events SET event_id = NULL WHERE {OF_11A} AND to_state = 'CONFIRMED'",
        "released, and never written": "DELETE FROM outbox WHERE routing_key = 'seat.released.v1'",
        "another event": "UPDATE outbox SET routing_key = 'seat.released.v1'",
    },
    "every event of seat is published within 30 s": {
        "31 s": "UPDATE outbox SET publish_time = NULL, create_time = now() - interval '31 s'",
    },
    "the seat counts that a flight last published match its map": {
        "never announced": """
            DELETE FROM availability;
            UPDATE seats SET update_time = now() - interval '1 hour';
            UPDATE flights SET create_time = now() - interval '1 hour'""",
        "announced before it was so": "UPDATE availability SET version = version + 1",
    },
    "no timer of seat fires early": {
        "a second": """
            INSERT INTO timers (name, subject, due_time, try_time, fire_time)
            VALUES ('test', 'x', now(), now(), now() - interval '1 s')""",
    },
    "no timer of seat fails 8 times in a row": {
        "an unexpected answer": """
            INSERT INTO timers (name, subject, due_time, try_time, tries, last_error)
            VALUES ('test', 'x', now(), now() + interval '20 s', 8, 'PeerFault: INTERNAL INTERNAL')""",
    },
    "every due timer of seat is tried within 5 s": {
        "nobody looks": """
            INSERT INTO timers (name, subject, due_time, try_time)
            VALUES ('test', 'x', now() - interval '6 s', now() - interval '6 s')""",
    },
    "no passenger without an entitlement to a seat has one": {
        "held by one who ended": LISTED.format(
            pnr="XK4T7Q", cabin="ECONOMY", type="ADULT", services="{}", ended=True, where=OF_10A
        ),
        "confirmed for one who ended": LISTED.format(
            pnr="XK4T7Q", cabin="ECONOMY", type="ADULT", services="{}", ended=True, where=OF_11A
        ),
        "confirmed for a lap infant": LISTED.format(
            pnr="XK4T7Q", cabin="ECONOMY", type="INFANT", services="{}", ended=False, where=OF_11A
        ),
    },
    "every seat is eligible for the cabin and the special services of its passenger": {
        "another cabin": LISTED.format(
            pnr="XK4T7Q", cabin="BUSINESS", type="ADULT", services="{}", ended=False, where=OF_11A
        ),
        "a wheelchair in an exit row": LISTED.format(
            pnr="XK4T7Q", cabin="ECONOMY", type="ADULT", services="{VGML,WCHR}", ended=False, where=OF_12B
        ),
        "a child in an exit row": LISTED.format(
            pnr="XK4T7Q", cabin="ECONOMY", type="CHILD", services="{}", ended=False, where=OF_12B
        ),
        "a lap infant without a mask": LISTED.format(
            pnr="XK4T7Q", cabin="ECONOMY", type="ADULT", services="{INFT}", ended=False, where=OF_11A
        ),
    },
    "no seat is held, confirmed or offered after the departure of its flight": {
        "held and confirmed": DEPARTED,
    },
    "no hold stays HELD for more than 5 s after the departure of its flight": {
        "held": DEPARTED,
    },
}
OF_SEATS: Final = [invariant for invariant in INVARIANTS if invariant.schemas == ("seat",)]


@dataclass(frozen=True, slots=True)
class Lived:
    """A database and a cache with a history in which a service did everything that it can do."""

    database_url: str
    redis_url: str


async def seat_database(world: World) -> str:
    """Creates a database with only the seat service's schema.

    Returns its URL. The service's role may read everything.
    """
    url = await own_database(world)
    others = ", ".join(service for service in SERVICES if service != "seat")
    owner_url = f"{world.servers.database_url().rpartition('/')[0]}/{url.rpartition('/')[2]}"
    owner = await asyncpg.connect(owner_url)
    try:
        await owner.execute(f"DROP SCHEMA {others} CASCADE")
    finally:
        await owner.close()
    return url


@pytest.fixture(scope="module")
async def lived(world: World) -> Lived:
    """Creates two flights with a history that contains every kind of transition."""
    lived = Lived(await seat_database(world), f"{world.servers.redis_url.removesuffix('/0')}/7")
    url = lived.database_url
    offers = partial(instance, world, SKYHIGH_REDIS_URL=lived.redis_url, SKYHIGH_OFFER_WINDOW_SECONDS="600")
    # An event that no queue takes is not published, and no other service consumes events here.
    async with listening(world.servers.amqp_url(), "seat.#"), offers(database_url=url) as service:
        await _live(service)
        expired = await service.callers.agent().hold(FLIGHT, "21A")
        await lapse_holds(service.database, expired)
        await eventually(lambda: _is(service, expired, pb.Hold.EXPIRED))
        await eventually(lambda: _told(service.database))
        # The history was made with the constraints; they would prevent the corruptions below.
        await service.database.execute(DEFENCES)
    return lived


async def _live(service: Instance) -> None:
    agent, waitlist = service.callers.agent(), service.callers.service("waitlist")
    for each in (FLIGHT, OTHER):
        await service.callers.operations().provision(each)
    await agent.hold(FLIGHT, "10A", request_id=str(uuid4()))
    several = [seat(FLIGHT, "11A"), seat(FLIGHT, "11B"), seat(OTHER, "11A")]
    await agent.confirm(await agent.hold_seats(*several, request_id=str(uuid4())))
    # Moved: the confirmation of the second seat releases the first.
    await agent.confirm(await agent.hold_seats(seat(FLIGHT, "12A", "mover"), seat(FLIGHT, "12B")))
    await agent.confirm(await agent.hold(FLIGHT, "12C", "mover"))
    # Changed twice; one seat stays.
    changed = await agent.hold_seats(seat(FLIGHT, "13A", "p1"), seat(FLIGHT, "13B", "p2"))
    for number in ("13C", "13D"):
        await agent.ChangeHoldSeats(
            pb.ChangeHoldSeatsRequest(
                hold_id=changed.hold_id,
                seats=[seat(FLIGHT, number, "p1"), seat(FLIGHT, "13B", "p2")],
                request_id=str(uuid4()),
            )
        )
    # A passenger whose entitlement ends loses the seat, one with new special needs loses an exit-row seat, and one who
    # stays eligible keeps the seat.
    checkin = service.callers.service("checkin")
    listed = [f"listed{n}" for n in range(3)]
    for number, passenger in zip(("17A", "13E", "17C"), listed, strict=True):
        await agent.confirm(await agent.hold(FLIGHT, number, passenger))
    changes: tuple[dict[str, Any], ...] = (
        {"ended": True},
        {"special_services": ["WCHR"]},
        {"special_services": ["VGML"]},
    )
    for change, passenger in zip(changes, listed, strict=True):
        await checkin.SyncPassengers(
            pb.SyncPassengersRequest(passengers=[listed_passenger(FLIGHT, passenger, "XK4T7Q", **change)])
        )
    # The reason of a cancellation is free text, which may even be a word of ours.
    await agent.cancel(await agent.hold_seats(seat(FLIGHT, "14A"), seat(OTHER, "14A")), reason="EXPIRED")
    for number in ("15A", "15B"):
        await agent.BlockSeat(pb.BlockSeatRequest(flight_id=FLIGHT, seat_number=number, reason="BROKEN"))
    await agent.UnblockSeat(pb.UnblockSeatRequest(flight_id=FLIGHT, seat_number="15B"))
    holds = [await agent.hold(OTHER, number) for number in ("16A", "16B", "16C")]
    await waitlist.SetWaitlistOpen(pb.SetWaitlistOpenRequest(flight_id=OTHER, open=True))
    for hold in holds:
        await agent.cancel(hold)
    await waitlist.ClaimSeat(
        pb.ClaimSeatRequest(flight_id=OTHER, seat_number="16A", passenger_id="w1", owner="passenger:WAITED")
    )
    await waitlist.ReturnSeat(pb.ReturnSeatRequest(flight_id=OTHER, seat_number="16B"))


async def _is(service: Instance, hold: pb.Hold, state: pb.Hold.State.ValueType) -> bool:
    return bool((await service.callers.agent().get(hold)).state == state)


async def _told(database: Database) -> bool:
    """Returns whether all background work of the service is done.

    The sweeper has swept, the relay has published all events, and the counts are announced.
    """
    return bool(
        await database.fetchval(
            """
            SELECT NOT EXISTS (SELECT FROM outbox WHERE publish_time IS NULL)
               AND (SELECT state FROM seats WHERE flight_id = $1 AND seat_number = '21A') = 'AVAILABLE'
               AND NOT EXISTS (
                   SELECT FROM flights LEFT JOIN availability USING (flight_id)
                   WHERE availability.version IS DISTINCT FROM
                         (SELECT 1 + sum(version) FROM seats WHERE seats.flight_id = flights.flight_id))
            """,
            FLIGHT,
        )
    )


@pytest.fixture
async def connection(lived: Lived) -> AsyncIterator[Database]:
    """Yields a connection to the database with the history."""
    async with connected(lived.database_url) as connection:
        yield connection


@pytest.fixture
async def redis(lived: Lived) -> AsyncIterator[Redis]:
    """Yields a connection to the cache with the history."""
    redis = Redis.from_url(lived.redis_url)
    yield redis
    await redis.aclose()


def _found(findings: list[Finding]) -> dict[str, int]:
    assert [finding for finding in findings if finding.not_checked and finding.number != CACHED_MAPS[0]] == []
    return {finding.name: finding.violations for finding in findings if finding.violations}


async def test_a_true_history_has_no_violation(connection: Database, redis: Redis) -> None:
    findings = await check(connection, redis)
    assert _found(findings) == {}
    assert [str(finding) for finding in findings if finding.not_checked] == []
    assert {finding.number for finding in findings} == {1, 2, 3, 4, 5, 6, 7, 10, 11, 14}


async def test_the_history_has_every_kind_of_transition(connection: Database) -> None:
    edges = await connection.fetch("SELECT DISTINCT from_state, to_state FROM seat_events")
    # The three missing ones, to BLOCKED and OFFERED, are checked in the same way as those present.
    assert len(edges) >= 9
    reasons = {row["reason"] for row in await connection.fetch("SELECT DISTINCT reason FROM seat_events")}
    assert {"HELD", "CONFIRMED", "CHANGED", "MOVED", "EXPIRED", "BROKEN"} <= reasons
    assert {"ENTITLEMENT_ENDED", "SEAT_NO_LONGER_FITS"} <= reasons


@pytest.mark.parametrize(
    ("invariant", "statement"),
    [
        pytest.param(name, statement, id=f"{name}: {planted}")
        for name, corruptions in CORRUPTIONS.items()
        for planted, statement in corruptions.items()
    ],
)
async def test_a_planted_corruption_is_reported(connection: Database, invariant: str, statement: str) -> None:
    corrupted = connection.transaction(isolation="repeatable_read")
    await corrupted.start()
    try:
        await connection.execute(statement)
        found = _found(await check(connection, None, invariants=[each for each in OF_SEATS if each.name == invariant]))
    finally:
        await corrupted.rollback()
    assert found.keys() == {invariant}


def test_each_invariant_has_a_planted_corruption() -> None:
    assert {invariant.name for invariant in OF_SEATS} == CORRUPTIONS.keys()


async def test_samples_name_the_offenders_and_all_are_counted(connection: Database) -> None:
    corrupted = connection.transaction(isolation="repeatable_read")
    await corrupted.start()
    try:
        await connection.execute(f"UPDATE seats SET version = version + 1 WHERE flight_id = '{OTHER}'")
        findings = await check(connection, None)
    finally:
        await corrupted.rollback()
    (finding,) = [finding for finding in findings if finding.name == "a seat equals the result of its ledger"]
    assert finding.violations == 180
    assert len(finding.samples) == SAMPLES
    assert {sample["flight_id"] for sample in finding.samples} == {OTHER}
    assert f"flight_id={OTHER}  seat_number=" in str(finding)


async def test_what_a_stopped_service_cannot_do_is_left_out_on_demand(connection: Database) -> None:
    corrupted = connection.transaction(isolation="repeatable_read")
    await corrupted.start()
    try:
        await connection.execute("UPDATE outbox SET publish_time = NULL, create_time = now() - interval '1 hour'")
        findings = await check(connection, None, service_runs=False)
    finally:
        await corrupted.rollback()
    assert [finding for finding in findings if finding.violations or finding.not_checked] == []


async def test_cached_maps_that_differ_from_the_truth_are_reported(
    world: World, lived: Lived, connection: Database, redis: Redis
) -> None:
    async with instance(world, database_url=lived.database_url, SKYHIGH_REDIS_URL=lived.redis_url) as service:
        for each in (FLIGHT, OTHER):
            await service.callers.agent().states(each)
    truth, other = await redis.mget(f"seatmap:{{{FLIGHT}}}", f"seatmap:{{{OTHER}}}")
    assert isinstance(truth, bytes)
    assert isinstance(other, bytes)
    version, _, body = truth.partition(b" ")
    assert _found(await check(connection, redis)) == {}
    planted = {
        f"seatmap:{{{FLIGHT}}}": b"%d %b" % (int(version) - 1, body),
        f"seatmap:{{{OTHER}}}": other.replace(b"A", b"B"),
        f"seatmap:{{{flight_id('SH3')}}}": truth,
        "seatmap:{poison}": b"\xff\x00 not a map",
    }
    await redis.mset(dict(planted))
    try:
        (finding,) = [finding for finding in await check(connection, redis) if finding.violations]
        assert (finding.number, finding.name) == CACHED_MAPS
        assert {sample["key"] for sample in finding.samples} == planted.keys()
        assert finding.violations == len(planted)
    finally:
        await redis.flushdb()


async def test_a_cached_map_may_be_late_for_a_moment(
    connection: Database, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A map that differs at the first look and is right at the second."""
    key = f"seatmap:{{{FLIGHT}}}"
    await redis.set(key, b"1 A320-180Y 2010-01-01T00:00:00+00:00 " + b"A" * 180)

    look, looks = cached_maps._maps, []

    async def look_and_drop(*arguments: Any) -> Any:
        seen = await look(*arguments)
        looks.append(seen[0])
        await redis.delete(key)
        return seen

    monkeypatch.setattr(cached_maps, "_maps", look_and_drop)
    monkeypatch.setattr(cached_maps, "CACHE_GRACE_SECONDS", 0)
    assert _found(await check(connection, redis)) == {}
    # The map differed, so it was read again, and was deleted by then.
    assert [[value is not None for value in cached] for cached in looks] == [[True], [False]]


async def test_a_cache_that_is_away_is_not_checked_and_the_rest_is(connection: Database) -> None:
    nobody = Redis.from_url(f"redis://127.0.0.1:{free_ports(1)[0]}/0")
    findings = await check(connection, nobody)
    await nobody.aclose()
    assert [finding.number for finding in findings if finding.not_checked] == [11]
    assert _found(findings) == {}


async def test_lateness_is_measured_from_the_end_of_a_hold(connection: Database) -> None:
    measured = await lateness(connection)
    assert measured.expired == 1
    assert 0 <= measured.p50_seconds == measured.p999_seconds < 5
    assert measured.later_than_5_s == 0


async def test_under_load_every_snapshot_is_clean(world: World) -> None:
    url, redis_url = await seat_database(world), f"{world.servers.redis_url.removesuffix('/0')}/8"
    redis = Redis.from_url(redis_url)
    async with instance(world, database_url=url, SKYHIGH_REDIS_URL=redis_url) as service:
        await service.callers.operations().provision(FLIGHT)
        seats = list(await service.callers.agent().states(FLIGHT))
        load = Load()
        users = [asyncio.create_task(_use(service, random.Random(n), seats, load)) for n in range(8)]

        async def enough() -> bool:
            assert _found(await check(service.database, redis)) == {}
            load.checks += 1
            await pause(0.2)
            return load.checks >= 6 and load.holds > 20

        try:
            await eventually(enough)
        finally:
            load.ends = True
            await asyncio.gather(*users)
    await redis.aclose()


@dataclass(slots=True)
class Load:
    """The users' and the checks' progress."""

    holds: int = 0
    checks: int = 0
    ends: bool = False


async def _use(service: Instance, chance: random.Random, seats: list[str], load: Load) -> None:
    """Holds, confirms, changes and cancels until the load ends."""
    agent = service.callers.agent()
    while not load.ends:
        with contextlib.suppress(grpc.aio.AioRpcError):
            hold = await agent.hold_seats(*(seat(FLIGHT, number) for number in chance.sample(seats, 3)))
            load.holds += 1
            await service.callers.agent().states(FLIGHT)
            if chance.random() < 0.5:
                other = [seat(FLIGHT, chance.choice(seats), one.passenger_id) for one in hold.seats]
                await agent.ChangeHoldSeats(pb.ChangeHoldSeatsRequest(hold_id=hold.hold_id, seats=other))
            if chance.random() < 0.5:
                await agent.confirm(hold)
            if chance.random() < 0.8:
                await agent.cancel(hold)


async def test_the_command_ends_with_what_it_found(world: World, lived: Lived, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKYHIGH_HOME", str(world.folder / "no stack"))
    clean = await _command(monkeypatch, lived.database_url, lived.redis_url)
    assert clean.exit_code == 0, clean.output
    assert f"All {len(OF_SEATS) + 2} invariants hold" in clean.output
    assert "holds expired: 1; " in clean.output

    short = await seat_database(world)
    async with connected(short) as connection:
        await connection.execute("INSERT INTO flights (flight_id, layout_id, total_seats) VALUES ('SH1', 'none', 1)")
        await connection.execute(
            "INSERT INTO seats (flight_id, seat_number, ordinal) VALUES ('SH1', '1A', 1), ('SH1', '2A', 2)"
        )
    violated = await _command(monkeypatch, short, lived.redis_url)
    assert violated.exit_code == 1, violated.output
    assert "flight_id=SH1  total_seats=1  available=2" in violated.output

    nowhere = free_ports(2)
    no_cache = await _command(monkeypatch, lived.database_url, f"redis://127.0.0.1:{nowhere[0]}/0")
    assert no_cache.exit_code == 2, no_cache.output
    assert "11 not checked" in no_cache.output
    no_database = await _command(monkeypatch, f"postgresql://127.0.0.1:{nowhere[1]}/skyhigh", lived.redis_url)
    assert no_database.exit_code == 2, no_database.output
    assert "the database is unreachable" in no_database.output


async def _command(monkeypatch: pytest.MonkeyPatch, database_url: str, redis_url: str) -> Result:
    monkeypatch.setenv("SKYHIGH_DATABASE_URL", database_url)
    monkeypatch.setenv("SKYHIGH_REDIS_URL", redis_url)
    # In a thread, because the command starts its own event loop.
    return await asyncio.to_thread(CliRunner().invoke, app, ["verify"])
