"""ExtendHold: the full TTL again, up to a limit, only before the end (SEAT-9)."""

from __future__ import annotations

from datetime import UTC, timedelta

import pytest
from skyhigh.seat.v1 import seat_service_pb2 as pb

from tests.aging import age_holds, lapse_holds
from tests.callers import Caller, Callers, refused
from tests.instances import Database
from tests.seat.rules import (
    a_foreign_hold_is_as_a_missing_one,
    at_once,
    outcomes,
    rows,
    violations,
)


def extend(hold_id: str) -> pb.ExtendHoldRequest:
    return pb.ExtendHoldRequest(hold_id=hold_id)


async def test_an_extended_hold_has_the_full_ttl(agent: Caller, flight: str, database: Database) -> None:
    hold = await agent.hold(flight, "20A")
    await age_holds(database, hold, by=timedelta(seconds=100))
    aged = await agent.get(hold)
    before = await database.fetchval("SELECT clock_timestamp()")
    extended = await agent.ExtendHold(extend(hold.hold_id))
    after = await database.fetchval("SELECT clock_timestamp()")
    assert extended.state == pb.Hold.HELD
    assert extended.extensions_left == hold.extensions_left - 1
    assert before <= extended.expire_time.ToDatetime(tzinfo=UTC) - timedelta(seconds=120) <= after
    assert extended.create_time == aged.create_time
    assert await agent.get(hold) == extended


async def test_an_extension_changes_no_seat_state(agent: Caller, flight: str, database: Database) -> None:
    hold = await agent.hold(flight, "20A")
    before = await rows(database, flight)
    await agent.ExtendHold(extend(hold.hold_id))
    after = await rows(database, flight)
    assert (after["seats"], after["events"]) == (before["seats"], before["events"])


async def test_extensions_have_a_limit(agent: Caller, flight: str, database: Database) -> None:
    hold = await agent.hold(flight, "20A")
    for left in reversed(range(9)):
        assert (await agent.ExtendHold(extend(hold.hold_id))).extensions_left == left
    last = await agent.get(hold)
    before = await rows(database, flight)
    with refused("FAILED_PRECONDITION", "HOLD_LIMIT_REACHED") as refusal:
        await agent.ExtendHold(extend(hold.hold_id))
    assert refusal.info.metadata == {"expire_time": last.expire_time.ToJsonString()}
    assert await rows(database, flight) == before
    # The hold can still be confirmed.
    assert (await agent.confirm(hold)).state == pb.Hold.CONFIRMED


async def test_concurrent_extensions_use_up_the_limit_exactly(callers: Callers, second: Callers, flight: str) -> None:
    hold = await callers.agent().hold(flight, "20A")
    results = await at_once(*(each.agent().ExtendHold(extend(hold.hold_id)) for each in [callers, second] * 10))
    assert outcomes(results) == {"OK": 9, "HOLD_LIMIT_REACHED": 11}


async def test_a_lapsed_hold_cannot_be_extended(callers: Callers, flight: str, database: Database) -> None:
    customer = callers.customer()
    hold = await customer.hold(flight, "20A")
    await lapse_holds(database, hold)
    with refused("ABORTED", "HOLD_EXPIRED") as refusal:
        await customer.ExtendHold(extend(hold.hold_id))
    assert refusal.info.metadata == {"expire_time": (await customer.get(hold)).expire_time.ToJsonString()}


async def test_an_extended_hold_outlives_its_first_end(callers: Callers, flight: str, database: Database) -> None:
    owner = callers.passenger(f"P1:{flight}")
    hold = await owner.hold(flight, "20A", "P1")
    await age_holds(database, hold, by=timedelta(seconds=60))
    extended = await owner.ExtendHold(extend(hold.hold_id))
    # Now the first end of the hold is at least 10 s in the past, and the new end is at most 50 s ahead.
    await age_holds(database, hold, by=timedelta(seconds=70))
    confirmed = await owner.confirm(hold)
    assert confirmed.state == pb.Hold.CONFIRMED
    assert confirmed.expire_time.ToDatetime() == extended.expire_time.ToDatetime() - timedelta(seconds=70)


@pytest.mark.parametrize("end", ["confirm", "cancel"])
async def test_a_confirmed_or_cancelled_hold_cannot_be_extended(
    agent: Caller, flight: str, database: Database, end: str
) -> None:
    hold = await agent.hold(flight, "20A")
    await (agent.confirm(hold) if end == "confirm" else agent.cancel(hold))
    before = await rows(database, flight)
    with refused("FAILED_PRECONDITION", "HOLD_CONFIRMED" if end == "confirm" else "HOLD_CANCELLED"):
        await agent.ExtendHold(extend(hold.hold_id))
    assert await rows(database, flight) == before


async def test_a_foreign_hold_is_not_extended(callers: Callers, flight: str, database: Database) -> None:
    hold = await callers.passenger(f"P1:{flight}").hold(flight, "20A", "P1")
    for stranger in (callers.passenger(f"P1:{flight}"), callers.customer()):
        await a_foreign_hold_is_as_a_missing_one(database, stranger, "ExtendHold", extend, hold)
    assert await violations(database, flight) == []
