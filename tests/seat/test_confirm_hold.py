"""ConfirmHold: once, before the hold's end (SEAT-6, SEAT-7).

The passenger's old seat is released in the same transaction.
"""

from __future__ import annotations

import asyncio
from uuid import UUID

import pytest
from skyhigh.seat.v1 import events_pb2
from skyhigh.seat.v1 import seat_service_pb2 as pb

from services.proto import timestamp
from tests.aging import lapse_holds
from tests.callers import Caller, Callers, refused, seat
from tests.instances import Database, Instance
from tests.seat.rules import (
    a_foreign_hold_is_as_a_missing_one,
    at_once,
    outcomes,
    rows,
    violations,
)
from tests.waiting import until


def confirm(hold_id: str) -> pb.ConfirmHoldRequest:
    return pb.ConfirmHoldRequest(hold_id=hold_id)


async def event_bodies(database: Database, routing_key: str, flight: str) -> list[bytes]:
    """Returns the event bodies that a flight's ledger points to, oldest first."""
    return [
        row["body"]
        for row in await database.fetch(
            """
            SELECT DISTINCT outbox.event_id, outbox.body, outbox.create_time
            FROM seat_events JOIN outbox USING (event_id)
            WHERE flight_id = $1 AND routing_key = $2 ORDER BY outbox.create_time
            """,
            flight,
            routing_key,
        )
    ]


async def test_a_confirmed_seat_is_the_passengers(agent: Caller, flight: str, database: Database) -> None:
    hold = await agent.hold(flight, "20A", "P1")
    confirmed = await agent.confirm(hold)
    assert confirmed.state == pb.Hold.CONFIRMED
    assert confirmed.seats == hold.seats
    assert [row["state"] for row in (await rows(database, flight))["hold_seats"]] == ["CONFIRMED"]
    assert await violations(database, flight) == []


async def test_a_confirmation_publishes_an_event(agent: Caller, flight: str, database: Database) -> None:
    hold = await agent.hold_seats(seat(flight, "20A", "P1"), seat(flight, "20B", "P2"))
    await agent.confirm(hold)
    (body,) = await event_bodies(database, "seat.confirmed.v1", flight)
    event = events_pb2.SeatConfirmed.FromString(body)
    assert event.flight_id == flight
    assert {(each.seat_number, each.version, each.passenger_id, each.hold_id) for each in event.seats} == {
        ("20A", 2, "P1", hold.hold_id),
        ("20B", 2, "P2", hold.hold_id),
    }


async def test_a_repeat_returns_the_same_and_changes_nothing(agent: Caller, flight: str, database: Database) -> None:
    hold = await agent.hold(flight, "20A")
    confirmed = await agent.confirm(hold)
    before = await rows(database, flight)
    assert await agent.confirm(hold) == confirmed
    assert await rows(database, flight) == before


async def test_concurrent_confirmations_confirm_once(callers: Callers, second: Callers, flight: str) -> None:
    hold = await callers.agent().hold(flight, "20A")
    results = await at_once(*(each.agent().confirm(hold) for each in [callers, second] * 10))
    assert outcomes(results) == {"OK": 20}


async def test_a_customer_cannot_confirm_its_own_hold(callers: Callers, flight: str, database: Database) -> None:
    customer = callers.customer()
    hold = await customer.hold(flight, "20A", purpose=pb.Hold.BOOKING)
    before = await rows(database, flight)
    with refused("PERMISSION_DENIED", "PERMISSION_DENIED"):
        await customer.confirm(hold)
    with refused("PERMISSION_DENIED", "PERMISSION_DENIED"):
        await customer.ConfirmHold(pb.ConfirmHoldRequest(hold_id=hold.hold_id, owner=customer.name))
    assert await rows(database, flight) == before


async def test_a_lapsed_hold_is_refused(brief: Callers, flight: str, database: Database) -> None:
    owner = brief.passenger(f"P1:{flight}")
    hold = await owner.hold(flight, "20A", "P1")
    await until(hold.expire_time)
    with refused("ABORTED", "HOLD_EXPIRED") as refusal:
        await owner.confirm(hold)
    assert refusal.info.metadata == {"expire_time": hold.expire_time.ToJsonString()}
    assert await violations(database, flight) == []


async def test_a_lapsed_hold_is_refused_before_the_sweep(unswept: Instance, unswept_flight: str) -> None:
    owner = unswept.callers.passenger(f"P1:{unswept_flight}")
    hold = await owner.hold(unswept_flight, "20A", "P1")
    await lapse_holds(unswept.database, hold)
    before = await rows(unswept.database, unswept_flight)
    with refused("ABORTED", "HOLD_EXPIRED"):
        await owner.confirm(hold)
    assert await rows(unswept.database, unswept_flight) == before


async def test_a_cancelled_hold_stays_cancelled(agent: Caller, flight: str, database: Database) -> None:
    hold = await agent.hold(flight, "20A")
    await agent.cancel(hold)
    before = await rows(database, flight)
    with refused("FAILED_PRECONDITION", "HOLD_CANCELLED"):
        await agent.confirm(hold)
    assert await rows(database, flight) == before


async def test_the_passengers_former_seat_is_released(agent: Caller, flight: str, database: Database) -> None:
    former = await agent.hold(flight, "20A", "P1")
    await agent.confirm(former)
    hold = await agent.hold(flight, "21A", "P1")
    await agent.confirm(hold)
    assert (await agent.get(former)).state == pb.Hold.CANCELLED
    moved = await database.fetch(
        "SELECT * FROM seat_events WHERE flight_id = $1 AND (reason = 'MOVED' OR hold_id = $2 AND version = 2)",
        flight,
        hold.hold_id,
    )
    assert {(row["seat_number"], row["to_state"]) for row in moved} == {("20A", "AVAILABLE"), ("21A", "CONFIRMED")}
    assert len({row["transaction"] for row in moved}) == 1
    assert await violations(database, flight) == []


async def test_only_the_moving_passengers_seat_is_released(agent: Caller, flight: str, database: Database) -> None:
    shared = await agent.hold_seats(seat(flight, "20A", "P1"), seat(flight, "20B", "P2"))
    await agent.confirm(shared)
    await agent.confirm(await agent.hold(flight, "21A", "P1"))
    left = await agent.get(shared)
    assert left.state == pb.Hold.CONFIRMED
    assert [each.seat_number for each in left.seats] == ["20B"]
    assert await violations(database, flight) == []


async def test_passengers_who_swap_seats_by_confirming_do_not_deadlock(
    callers: Callers, second: Callers, flight: str, database: Database
) -> None:
    passengers = [f"P{n}" for n in range(20)]
    for n, passenger in enumerate(passengers):
        await callers.agent().confirm(await callers.agent().hold(flight, f"{14 + n // 6}{'ABCDEF'[n % 6]}", passenger))
    holds = [
        await callers.agent().hold(flight, f"{20 + n // 6}{'ABCDEF'[n % 6]}", passenger)
        for n, passenger in enumerate(reversed(passengers))
    ]
    results = await at_once(*((callers, second)[n % 2].agent().confirm(hold) for n, hold in enumerate(holds)))
    assert outcomes(results) == {"OK": 20}
    assert await violations(database, flight) == []


@pytest.mark.parametrize("rival", ["CancelHold", "ExtendHold"])
async def test_confirmation_and_a_rival_call_leave_one_winner(
    callers: Callers, second: Callers, flight: str, database: Database, rival: str
) -> None:
    holds = [await callers.agent().hold(flight, f"{row}A") for row in range(14, 30)]
    request = {"CancelHold": pb.CancelHoldRequest, "ExtendHold": pb.ExtendHoldRequest}[rival]
    results = await at_once(
        *(
            call
            for hold in holds
            for call in (
                callers.agent().confirm(hold),
                getattr(second.agent(), rival)(request(hold_id=hold.hold_id)),
            )
        )
    )
    assert outcomes(results).keys() <= {"OK", "HOLD_CANCELLED", "HOLD_CONFIRMED"}
    final = {(await callers.agent().get(hold)).state for hold in holds}
    assert final == ({pb.Hold.CANCELLED} if rival == "CancelHold" else {pb.Hold.CONFIRMED})
    assert await violations(database, flight) == []


async def test_a_foreign_hold_is_not_confirmed(callers: Callers, flight: str, database: Database) -> None:
    hold = await callers.passenger(f"P1:{flight}").hold(flight, "20A", "P1")
    stranger = callers.passenger(f"P1:{flight}")
    await a_foreign_hold_is_as_a_missing_one(database, stranger, "ConfirmHold", confirm, hold)


async def test_a_foreign_confirmed_hold_is_not_found(callers: Callers, flight: str, database: Database) -> None:
    owner = callers.passenger(f"P1:{flight}")
    hold = await owner.confirm(await owner.hold(flight, "20A", "P1"))
    stranger = callers.passenger(f"P1:{flight}")
    await a_foreign_hold_is_as_a_missing_one(database, stranger, "ConfirmHold", confirm, hold)


@pytest.mark.parametrize("role", ["agent", "service"])
async def test_a_named_owner_limits_the_call_to_its_holds(
    callers: Callers, flight: str, database: Database, role: str
) -> None:
    acting: Caller = getattr(callers, role)()
    hold = await callers.passenger(f"P1:{flight}", pnr="XK4T7R").hold(flight, "20A", "P1")

    def of_owner(owner: str) -> pb.ConfirmHoldRequest:
        return pb.ConfirmHoldRequest(hold_id=hold.hold_id, owner=owner)

    await a_foreign_hold_is_as_a_missing_one(
        database,
        acting,
        "ConfirmHold",
        lambda hold_id: pb.ConfirmHoldRequest(hold_id=hold_id, owner="passenger:AAAAAA"),
        hold,
    )
    confirmed = await acting.ConfirmHold(of_owner("passenger:XK4T7R"))
    assert confirmed.state == pb.Hold.CONFIRMED
    assert await acting.ConfirmHold(of_owner("passenger:XK4T7R")) == confirmed
    with refused("NOT_FOUND", "HOLD_NOT_FOUND"):
        await acting.ConfirmHold(of_owner("passenger:AAAAAA"))


async def test_only_services_and_agents_may_name_another_owner(
    callers: Callers, flight: str, database: Database
) -> None:
    owner = callers.passenger(f"P1:{flight}")
    hold = await owner.hold(flight, "20A", "P1")
    before = await rows(database, flight)
    for stranger in (callers.passenger(f"P1:{flight}"), callers.customer()):
        with refused("PERMISSION_DENIED", "PERMISSION_DENIED"):
            await stranger.ConfirmHold(pb.ConfirmHoldRequest(hold_id=hold.hold_id, owner=owner.name))
    assert await rows(database, flight) == before
    itself = await owner.ConfirmHold(pb.ConfirmHoldRequest(hold_id=hold.hold_id, owner=owner.name))
    assert itself.state == pb.Hold.CONFIRMED


async def test_a_hold_that_lapses_while_confirming_has_expired(unswept: Instance, unswept_flight: str) -> None:
    agent, database = unswept.callers.agent(), unswept.database
    hold = await agent.hold(unswept_flight, "20A")
    expire_time = await database.fetchval(
        """
        UPDATE holds SET extensions_left = 0, expire_time = clock_timestamp() + interval '1 s'
        WHERE hold_id = $1 RETURNING expire_time
        """,
        UUID(hold.hold_id),
    )
    async with database.transaction():
        await database.execute("SELECT FROM holds WHERE hold_id = $1 FOR UPDATE", UUID(hold.hold_id))
        confirming = asyncio.create_task(agent.confirm(hold))
        await until(timestamp(expire_time))
    with refused("ABORTED", "HOLD_EXPIRED"):
        await confirming
