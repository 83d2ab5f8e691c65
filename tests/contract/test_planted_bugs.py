"""The suite finds the bugs that are typical of such projects.

Each is planted and found (docs/rules.md section 15).
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, Final

import aio_pika
import asyncpg
import grpc
import pytest
from skyhigh.seat.v1 import seat_service_pb2 as pb

from services import cache, db
from services.cache import VersionedCache
from services.outbox import Relay
from tests.contract.saboteur import Plant, sabotaged
from tests.instances import Instance, own_database, pooled
from tests.seat import rules
from tests.services import rules as chassis_rules

if TYPE_CHECKING:
    from tests.conftest import World

Rule = Callable[[Instance, str], Awaitable[object]]

RELEASE_GUARD: Final = (
    "AND seats.hold_id = request.hold_id AND seats.state = request.from_state::seat_state"
    " AND seats.state IN ('HELD', 'CONFIRMED')"
)
OWNER: Final = "AND (request.owner IS NULL OR holds.owner = request.owner)"
CANCEL_STATES: Final = (
    "AND (holds.state = 'CONFIRMED' AND NOT request.unless_confirmed"
    " OR holds.state = 'HELD' AND holds.expire_time > statement_timestamp())"
)

HOLD_WITHOUT_A_GUARD: Final[list[Plant]] = [
    ("coalesce(seat.state = 'AVAILABLE' OR seat.state = 'OFFERED' AND asked.takes_offers, false)", "true"),
    ("AND (seats.state = 'AVAILABLE' OR seats.state = 'OFFERED' AND standing.takes_offers)", ""),
    # The history would reveal the lost guard. A real bug of this kind writes a wrong history too.
    ("standing.state AS from_state", "'AVAILABLE'::seat_state AS from_state"),
]
HOLD_OF_WHAT_IS_LEFT: Final[list[Plant]] = [("bool_and(own.hold_id", "bool_or(own.hold_id")]
CONFIRM_AFTER_THE_END: Final[list[Plant]] = [
    (
        "confirm_time = statement_timestamp()",
        "confirm_time = least(statement_timestamp(), expire_time - interval '1 millisecond')",
    ),
    (
        "AND holds.state || '' = 'HELD' AND holds.expire_time > statement_timestamp() RETURNING holds.hold_id",
        "AND holds.state || '' = 'HELD' RETURNING holds.hold_id",
    ),
]
CANCEL_BY_ANYBODY: Final[list[Plant]] = [(f"{OWNER} {CANCEL_STATES}", CANCEL_STATES)]
CANCEL_BY_SEAT: Final[list[Plant]] = [
    (CANCEL_STATES, ""),
    (
        "SELECT hold_id, flight_id, seat_number, passenger_id, state FROM hold_seats",
        "SELECT hold_id, flight_id, seat_number, passenger_id, 'HELD' AS state FROM hold_seats",
    ),
    (RELEASE_GUARD, ""),
]
SWEEP_BEFORE_THE_END: Final[list[Plant]] = [
    ("state = 'HELD' AND expire_time <= statement_timestamp()", "state = 'HELD'"),
    ("state || '' = 'HELD' AND expire_time <= statement_timestamp()", "state || '' = 'HELD'"),
    (
        "SET state = 'EXPIRED', end_time = statement_timestamp()",
        "SET state = 'EXPIRED', end_time = greatest(expire_time, statement_timestamp())",
    ),
]
SWEEP_BY_ID: Final[list[Plant]] = [
    ("AND state || '' = 'HELD' AND expire_time <= statement_timestamp() RETURNING hold_id", "RETURNING hold_id"),
    (
        "SET state = 'EXPIRED', end_time = statement_timestamp()",
        "SET state = 'EXPIRED', confirm_time = NULL, end_time = greatest(expire_time, statement_timestamp())",
    ),
]
CANCEL_WHAT_A_BOOKING_INCLUDES: Final[list[Plant]] = [("AND passengers.seat_included", "AND false")]
HOLD_FOR_AN_ENDED_PASSENGER: Final[list[Plant]] = [
    ("passenger.special_services, passenger.ended", "passenger.special_services, false AS ended")
]
CONFIRM_FOR_ANOTHER_LOCATOR: Final[list[Plant]] = [
    ("passengers.ended OR passengers.type = 'INFANT' OR passengers.pnr <> request.locator", "false")
]
CONFIRM_AFTER_DEPARTURE: Final[list[Plant]] = [
    ("<= statement_timestamp(), false)", "IS NULL, false)"),
    ("coalesce((SELECT departure_time FROM departures WHERE flight_id = request.flight_id) > $7, true)", "true"),
]
RELEASE_WITHOUT_AN_EVENT: Final[list[Plant]] = [
    (
        "INSERT INTO outbox (event_id, routing_key, body, traceparent) SELECT event_id, routing_key, body, traceparent"
        " FROM unnest($1::uuid[], $2::text[], $3::bytea[], $4::text[])",
        "INSERT INTO outbox (event_id, routing_key, body, traceparent) SELECT event_id, routing_key, body, traceparent"
        " FROM (SELECT * FROM unnest($1::uuid[], $2::text[], $3::bytea[], $4::text[]) LIMIT 0)",
    ),
]
REPEAT_FORGOTTEN: Final[list[Plant]] = [
    ("AS new (principal, key, fingerprint, response)", "AS new (principal, key, fingerprint, response) WHERE false")
]


async def one_of_many(broken: Instance, flight: str) -> None:
    await rules.one_of_many_gets_the_seat([broken.callers], broken.database, flight, many=50)


async def one_taken_seat_is_enough_to_get_none(broken: Instance, flight: str) -> None:
    onward = rules.new_flight_id()
    await broken.callers.operations().provision(onward)
    await rules.one_taken_seat_is_enough_to_get_none(broken.callers, broken.database, [flight, onward])


async def a_stranger_cancels_nothing(broken: Instance, flight: str) -> None:
    hold = await broken.callers.customer().hold(flight, "20A", purpose=pb.Hold.BOOKING)
    await rules.a_foreign_hold_is_as_a_missing_one(
        broken.database,
        broken.callers.customer(),
        "CancelHold",
        lambda hold_id: pb.CancelHoldRequest(hold_id=hold_id),
        hold,
    )


async def a_cancelled_hold_touches_nobody(broken: Instance, flight: str) -> None:
    await rules.a_cancelled_hold_touches_nobody(broken.callers, broken.database, flight)


async def a_seat_of_a_booking_stays(broken: Instance, flight: str) -> None:
    await rules.a_seat_of_a_booking_stays(broken.callers, broken.database, flight)


async def a_lapsed_hold_is_not_confirmed(broken: Instance, flight: str) -> None:
    await rules.a_lapsed_hold_is_not_confirmed(broken.callers, broken.database, flight)


async def living_holds_are_kept(broken: Instance, flight: str) -> None:
    await rules.lapsed_holds_are_freed_and_living_ones_kept(broken.callers, broken.database, flight)


async def a_decided_hold_does_not_expire(broken: Instance, flight: str) -> None:
    await rules.a_decided_hold_does_not_expire(broken.callers, broken.pool, flight)


async def a_repeat_has_one_effect(broken: Instance, flight: str) -> None:
    request = pb.HoldSeatRequest(
        flight_id=flight, seat_number="20A", passenger_id="P1", request_id="5f0c3f3e-6f0e-4a52-9d3a-4c1a5d6a7b8c"
    )
    await rules.a_repeat_has_one_effect(broken.database, broken.callers.agent(), "HoldSeat", request, flight)


async def an_ended_passenger_gets_no_seat(broken: Instance, flight: str) -> None:
    await rules.an_ended_passenger_gets_no_seat(broken.callers, broken.database, flight)


async def a_session_confirms_for_its_locator_only(broken: Instance, flight: str) -> None:
    await rules.a_session_confirms_for_its_locator_only(broken.callers, broken.database, flight)


async def nothing_is_confirmed_after_departure(broken: Instance, flight: str) -> None:
    await rules.nothing_is_confirmed_after_departure(broken.callers, broken.database, flight)


BUGS: Final[dict[str, tuple[list[Plant], Rule]]] = {
    "a hold without a guard": (HOLD_WITHOUT_A_GUARD, one_of_many),
    "a hold of the available seats only": (HOLD_OF_WHAT_IS_LEFT, one_taken_seat_is_enough_to_get_none),
    "a confirmation after the expiry": (CONFIRM_AFTER_THE_END, a_lapsed_hold_is_not_confirmed),
    "a cancellation by any caller": (CANCEL_BY_ANYBODY, a_stranger_cancels_nothing),
    "a cancellation by seat id, of any owner": (CANCEL_BY_SEAT, a_cancelled_hold_touches_nobody),
    "a cancellation of a seat that a booking includes": (CANCEL_WHAT_A_BOOKING_INCLUDES, a_seat_of_a_booking_stays),
    "a hold for a passenger who ended": (HOLD_FOR_AN_ENDED_PASSENGER, an_ended_passenger_gets_no_seat),
    "a confirmation for another locator's passenger": (
        CONFIRM_FOR_ANOTHER_LOCATOR,
        a_session_confirms_for_its_locator_only,
    ),
    "a confirmation after the departure": (CONFIRM_AFTER_DEPARTURE, nothing_is_confirmed_after_departure),
    "a sweeper that ignores the expire time": (SWEEP_BEFORE_THE_END, living_holds_are_kept),
    "a sweeper that releases by id without a guard": (SWEEP_BY_ID, a_decided_hold_does_not_expire),
    "a release without an event": (RELEASE_WITHOUT_AN_EVENT, a_cancelled_hold_touches_nobody),
    "a response that is not stored": (REPEAT_FORGOTTEN, a_repeat_has_one_effect),
}
# The sweeper sleeps, so that it does not end a lapsed hold before a rule looks at it. The sweeper's own rule is
# excepted.
NO_SWEEP: Final = {"SKYHIGH_SEAT_SWEEP_INTERVAL_SECONDS": "3600"}
VARIABLES: Final[dict[Rule, dict[str, str]]] = {
    living_holds_are_kept: {
        "SKYHIGH_CHECK_IN_HOLD_TTL_SECONDS": "0.3",
        "SKYHIGH_SEAT_SWEEP_INTERVAL_SECONDS": "0.1",
    }
}


@contextlib.contextmanager
def caught() -> Iterator[None]:
    """Expects that a rule finds its bug, by a failed assertion or by an unexpected error."""
    with pytest.raises((AssertionError, grpc.aio.AioRpcError, asyncpg.PostgresError)):
        yield


@pytest.mark.parametrize("bug", BUGS)
async def test_a_planted_bug_is_caught(world: World, bug: str) -> None:
    plants, rule = BUGS[bug]
    async with sabotaged(world, *plants, **VARIABLES.get(rule, NO_SWEEP)) as broken:
        flight = rules.new_flight_id()
        await broken.callers.operations().provision(flight)
        with caught():
            await rule(broken, flight)


@pytest.mark.parametrize("rule", dict.fromkeys(rule for _, rule in BUGS.values()), ids=lambda rule: rule.__name__)
async def test_the_checks_pass_without_a_planted_bug(world: World, rule: Rule) -> None:
    async with sabotaged(world, **VARIABLES.get(rule, NO_SWEEP)) as sound:
        flight = rules.new_flight_id()
        await sound.callers.operations().provision(flight)
        await rule(sound, flight)


async def test_a_plant_that_matches_no_statement_is_an_error(world: World) -> None:
    with pytest.raises(AssertionError, match="no statement has"):
        async with sabotaged(world, ("a fragment of nothing", "")):
            pass


async def test_a_cache_that_ignores_versions_is_caught(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        cache, "_SET_IF_NEWER", "redis.call('SET', KEYS[1], ARGV[2] .. ' ' .. ARGV[3], 'EX', ARGV[4]) return 1"
    )
    careless = VersionedCache(world.servers.redis_url, prefix="planted")
    with caught():
        await chassis_rules.the_newest_value_stays(careless)
    await careless.close()


class HastyRelay(Relay):
    """A relay that marks events as published before it publishes them."""

    async def publish_batch(self) -> int:
        async with db.transaction(self._pool) as conn:
            rows = await conn.fetch(
                """
                UPDATE outbox SET publish_time = now() WHERE publish_time IS NULL
                RETURNING event_id, routing_key, body
                """
            )
        if rows:
            exchange = await self._connected()
        for row in rows:
            message = aio_pika.Message(row["body"], message_id=str(row["event_id"]))
            await exchange.publish(message, routing_key=row["routing_key"])
        return len(rows)


@pytest.mark.parametrize("hasty", [True, False], ids=["hasty", "sound"])
async def test_a_relay_that_marks_before_confirmation_is_caught(world: World, hasty: bool) -> None:
    amqp_url = world.servers.amqp_url()
    async with pooled(await own_database(world)) as pool:
        relay = (HastyRelay if hasty else Relay)(pool, amqp_url, source="skyhigh/test")
        with caught() if hasty else contextlib.nullcontext():
            await chassis_rules.an_event_outlives_a_lost_broker(lambda: relay, pool, amqp_url)
        await relay._disconnect()
