"""ReleasePassengerSeat: one passenger's seat of one hold (SEAT-8, WL-6).

The other passengers keep their seats of the hold.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import pytest
from skyhigh.seat.v1 import events_pb2
from skyhigh.seat.v1 import seat_service_pb2 as pb

from seat_service.holds.expire import expire
from seat_service.holds.releases import release_passenger
from seat_service.requests import Effects, OnPassenger
from services import db
from tests.aging import lapse_holds
from tests.callers import Caller, Callers, refused, seat
from tests.instances import Database, Instance, pooled
from tests.seat.rules import at_once, new_flight_id, outcomes, rows, violations
from tests.waiting import eventually

if TYPE_CHECKING:
    from tests.conftest import World


def release(hold: pb.Hold, passenger_id: str, **more: Any) -> pb.ReleasePassengerSeatRequest:
    return pb.ReleasePassengerSeatRequest(
        hold_id=hold.hold_id, flight_id=hold.seats[0].flight_id, passenger_id=passenger_id, **more
    )


@pytest.fixture
async def family(agent: Caller, flight: str) -> pb.Hold:
    """P1 at 20A and P2 at 20B, confirmed in one hold."""
    return await agent.confirm(await agent.hold_seats(seat(flight, "20A", "P1"), seat(flight, "20B", "P2")))


async def freed_seats(database: Database, flight: str) -> list[str]:
    """Returns the seat number of each release in the ledger."""
    return [
        row["seat_number"]
        for row in await database.fetch(
            """
            SELECT seat_number FROM seat_events
            WHERE flight_id = $1 AND to_state IN ('AVAILABLE', 'OFFERED') ORDER BY seat_number
            """,
            flight,
        )
    ]


async def test_only_the_named_passengers_seat_is_released(
    service: Caller, flight: str, family: pb.Hold, database: Database
) -> None:
    answer = await service.ReleasePassengerSeat(release(family, "P1"))
    assert answer.state == pb.Hold.CONFIRMED
    assert [each.seat_number for each in answer.seats] == ["20B"]
    states = await service.states(flight)
    assert (states["20A"], states["20B"]) == ("AVAILABLE", "CONFIRMED")
    assert await violations(database, flight) == []


@pytest.mark.parametrize("reason", ["CHECK_IN_CANCELLED", ""])
async def test_a_release_publishes_an_event(
    service: Caller, flight: str, family: pb.Hold, database: Database, reason: str
) -> None:
    told = reason or "RELEASED"
    await service.ReleasePassengerSeat(release(family, "P1", reason=reason))
    (row,) = await database.fetch(
        """
        SELECT actor, reason, routing_key, body FROM seat_events JOIN outbox USING (event_id)
        WHERE flight_id = $1 AND from_state = 'CONFIRMED'
        """,
        flight,
    )
    assert (row["actor"], row["reason"], row["routing_key"]) == (service.name, told, "seat.released.v1")
    (released,) = events_pb2.SeatReleased.FromString(row["body"]).seats
    assert (released.seat_number, released.passenger_id, released.hold_id, released.reason) == (
        "20A",
        "P1",
        family.hold_id,
        told,
    )


async def test_a_hold_ends_with_its_last_seat(
    agent: Caller, service: Caller, flight: str, family: pb.Hold, database: Database
) -> None:
    await service.ReleasePassengerSeat(release(family, "P1"))
    last = await service.ReleasePassengerSeat(release(family, "P2"))
    assert last.state == pb.Hold.CANCELLED
    assert last.seats == family.seats, "after the end those that it had"
    assert await agent.get(family) == last
    assert await violations(database, flight) == []


async def test_a_repeat_changes_nothing(service: Caller, flight: str, family: pb.Hold, database: Database) -> None:
    first = await service.ReleasePassengerSeat(release(family, "P1"))
    before = await rows(database, flight)
    assert await service.ReleasePassengerSeat(release(family, "P1")) == first
    assert await rows(database, flight) == before


async def test_a_repeat_after_the_hold_was_cancelled_changes_nothing(
    agent: Caller, service: Caller, flight: str, family: pb.Hold, database: Database
) -> None:
    await agent.cancel(family)
    following = await agent.confirm(await agent.hold(flight, "20A", "P3"))
    before = await rows(database, flight)
    assert (await service.ReleasePassengerSeat(release(family, "P1"))).state == pb.Hold.CANCELLED
    assert await rows(database, flight) == before
    assert await agent.get(following) == following


async def test_a_passenger_with_another_hold_keeps_its_seat(
    agent: Caller, service: Caller, flight: str, family: pb.Hold, database: Database
) -> None:
    moved = await agent.confirm(await agent.hold(flight, "21A", "P1"))
    before = await rows(database, flight)
    answer = await service.ReleasePassengerSeat(release(family, "P1"))
    assert [each.seat_number for each in answer.seats] == ["20B"]
    assert await agent.get(moved) == moved
    assert await rows(database, flight) == before


async def test_the_passengers_seat_on_another_flight_is_kept(
    callers: Callers, agent: Caller, service: Caller, flight: str, database: Database
) -> None:
    onward = new_flight_id()
    await callers.operations().provision(onward)
    hold = await agent.confirm(await agent.hold_seats(seat(flight, "20A", "P1"), seat(onward, "20A", "P1")))
    there = pb.ReleasePassengerSeatRequest(hold_id=hold.hold_id, flight_id=onward, passenger_id="P1")
    answer = await service.ReleasePassengerSeat(there)
    assert [each.flight_id for each in answer.seats] == [flight]
    assert await violations(database, flight, onward) == []


async def test_a_passenger_outside_the_hold_changes_nothing(
    service: Caller, flight: str, family: pb.Hold, database: Database
) -> None:
    before = await rows(database, flight)
    assert await service.ReleasePassengerSeat(release(family, "P9")) == family
    assert await rows(database, flight) == before


async def test_an_unknown_hold_is_not_found(service: Caller, flight: str) -> None:
    with refused("NOT_FOUND", "HOLD_NOT_FOUND"):
        await service.ReleasePassengerSeat(release(pb.Hold(hold_id=str(uuid4()), seats=[seat(flight, "20A")]), "P1"))


async def test_only_a_service_may_release(callers: Callers, flight: str, family: pb.Hold, database: Database) -> None:
    before = await rows(database, flight)
    for caller in (callers.agent(), callers.operations(), callers.customer(), callers.passenger(f"P1:{flight}")):
        with refused("PERMISSION_DENIED", "PERMISSION_DENIED"):
            await caller.ReleasePassengerSeat(release(family, "P1"))
    assert await rows(database, flight) == before


async def test_a_released_seat_is_offered_to_an_open_waitlist(
    service: Caller, flight: str, family: pb.Hold, database: Database
) -> None:
    await service.SetWaitlistOpen(pb.SetWaitlistOpenRequest(flight_id=flight, open=True))
    await service.ReleasePassengerSeat(release(family, "P1"))
    assert (await service.states(flight))["20A"] == "OFFERED"
    assert await violations(database, flight) == []


async def test_a_held_seat_is_released_and_the_hold_stays(
    agent: Caller, service: Caller, flight: str, database: Database
) -> None:
    hold = await agent.hold_seats(*(seat(flight, f"20{letter}", f"P{letter}") for letter in "ABC"))
    answer = await service.ReleasePassengerSeat(release(hold, "PA"))
    assert answer.state == pb.Hold.HELD
    assert [each.seat_number for each in answer.seats] == ["20B", "20C"]
    assert await violations(database, flight) == []
    # The rest of the hold can be changed and confirmed like any hold.
    changed = await agent.ChangeHoldSeats(
        pb.ChangeHoldSeatsRequest(hold_id=hold.hold_id, seats=[seat(flight, "21B", "PB"), seat(flight, "20C", "PC")])
    )
    confirmed = await agent.confirm(changed)
    assert {each.seat_number for each in confirmed.seats} == {"21B", "20C"}
    assert await violations(database, flight) == []


async def test_a_released_held_seat_is_not_counted(
    callers: Callers, service: Caller, flight: str, database: Database
) -> None:
    customer = callers.customer()
    hold = await customer.hold_seats(*(seat(flight, f"{row}A", f"P{row}") for row in range(14, 23)))
    with refused("RESOURCE_EXHAUSTED", "TOO_MANY_HELD_SEATS"):
        await customer.hold(flight, "23A")
    await service.ReleasePassengerSeat(release(hold, "P14"))
    await customer.hold(flight, "23A")
    assert await violations(database, flight) == []


async def test_a_hold_is_cancelled_with_its_last_held_seat(
    agent: Caller, service: Caller, flight: str, database: Database
) -> None:
    hold = await agent.hold(flight, "20A", "P1")
    assert (await service.ReleasePassengerSeat(release(hold, "P1"))).state == pb.Hold.CANCELLED
    with refused("FAILED_PRECONDITION", "HOLD_CANCELLED"):
        await agent.confirm(hold)
    await agent.hold(flight, "21A", "P1")
    assert await violations(database, flight) == []


async def test_a_lapsed_hold_expires_instead_of_being_released(unswept: Instance, unswept_flight: str) -> None:
    hold = await unswept.callers.agent().hold(unswept_flight, "20A", "P1")
    await lapse_holds(unswept.database, hold)
    before = await rows(unswept.database, unswept_flight)
    assert (await unswept.callers.service().ReleasePassengerSeat(release(hold, "P1"))).state == pb.Hold.EXPIRED
    assert await rows(unswept.database, unswept_flight) == before


async def test_concurrent_releases_of_a_cabin_release_every_seat(
    callers: Callers, second: Callers, flight: str, database: Database
) -> None:
    """Two processes release each seat of four holds, so each release is repeated.

    Their batches lock the same holds and seats in any order.
    """
    holds = [
        await callers.agent().confirm(
            await callers.agent().hold_seats(
                *(seat(flight, f"{row}{letter}", f"P{row}{letter}") for row in rows_of for letter in "ABC")
            )
        )
        for rows_of in ((14, 15, 16), (17, 18, 19), (20, 21, 22), (23, 24, 25))
    ]
    asked = [release(hold, each.passenger_id) for hold in holds for each in hold.seats]
    results = await at_once(
        *(callers.service().ReleasePassengerSeat(each) for each in asked),
        *(second.service().ReleasePassengerSeat(each) for each in reversed(asked)),
    )
    assert outcomes(results) == {"OK": 2 * len(asked)}
    assert len(await freed_seats(database, flight)) == len(asked)
    assert {(await callers.agent().get(hold)).state for hold in holds} == {pb.Hold.CANCELLED}
    assert await violations(database, flight) == []


@pytest.mark.parametrize("late_first", [True, False])
async def test_a_late_repeat_does_not_affect_its_batch(
    world: World, agent: Caller, service: Caller, flight: str, *, late_first: bool
) -> None:
    """One transaction gets requests for P1's former hold and P2's present one.

    Both holds are of seat 20A.
    """
    former = await agent.confirm(await agent.hold(flight, "20A", "P1"))
    await service.ReleasePassengerSeat(release(former, "P1"))
    standing = await agent.confirm(await agent.hold(flight, "20A", "P2"))
    requests = [
        OnPassenger(UUID(hold.hold_id), None, service.name, "TEST", flight_id=flight, passenger_id=passenger_id)
        for hold, passenger_id in ((former, "P1"), (standing, "P2"))
    ]
    async with pooled(world.servers.database_url("seat")) as pool, db.transaction(pool) as conn:
        await release_passenger(conn, requests if late_first else list(reversed(requests)), effects=Effects())
    assert (await agent.get(standing)).state == pb.Hold.CANCELLED


async def test_release_and_cancel_at_once_release_each_seat_once(
    second: Callers, service: Caller, flight: str, family: pb.Hold, database: Database
) -> None:
    results = await at_once(
        *(
            call
            for n in range(10)
            for call in (
                service.ReleasePassengerSeat(release(family, f"P{1 + n % 2}")),
                second.agent().cancel(family),
            )
        )
    )
    assert outcomes(results) == {"OK": 20}
    assert await freed_seats(database, flight) == ["20A", "20B"]
    assert await violations(database, flight) == []


async def test_release_and_confirm_at_once_stay_consistent(
    callers: Callers, second: Callers, service: Caller, flight: str, database: Database
) -> None:
    """In any order: the passenger loses its seat of the hold, the companion keeps one."""
    holds = [
        await callers.agent().hold_seats(seat(flight, f"{row}A", f"PA{row}"), seat(flight, f"{row}B", f"PB{row}"))
        for row in range(14, 30)
    ]
    results = await at_once(
        *(
            call
            for hold in holds
            for call in (
                second.agent().confirm(hold),
                service.ReleasePassengerSeat(release(hold, hold.seats[0].passenger_id)),
            )
        )
    )
    assert outcomes(results) == {"OK": 32}
    assert await freed_seats(database, flight) == [f"{row}A" for row in range(14, 30)]
    for hold in holds:
        left = await callers.agent().get(hold)
        assert left.state == pb.Hold.CONFIRMED
        assert [each.seat_number for each in left.seats] == [hold.seats[1].seat_number]
    assert await violations(database, flight) == []


async def test_release_and_move_at_once_do_not_deadlock(
    callers: Callers, second: Callers, service: Caller, flight: str, database: Database
) -> None:
    former = [
        await callers.agent().confirm(await callers.agent().hold(flight, f"{row}A", f"P{row}")) for row in range(14, 30)
    ]
    moves = [await callers.agent().hold(flight, f"{row}C", f"P{43 - row}") for row in range(14, 30)]
    results = await at_once(
        *(
            call
            for hold, move in zip(former, moves, strict=True)
            for call in (
                second.agent().confirm(move),
                service.ReleasePassengerSeat(release(hold, hold.seats[0].passenger_id)),
            )
        )
    )
    assert outcomes(results) == {"OK": 32}
    assert await freed_seats(database, flight) == [f"{row}A" for row in range(14, 30)]
    assert {(await callers.agent().get(move)).state for move in moves} == {pb.Hold.CONFIRMED}
    assert await violations(database, flight) == []


async def test_release_and_expiry_at_once_release_each_seat_once(unswept: Instance, unswept_flight: str) -> None:
    flight = unswept_flight
    agent, service = unswept.callers.agent(), unswept.callers.service()
    holds = await asyncio.gather(*(agent.hold(flight, f"{row}A", f"P{row}") for row in range(1, 31)))

    async def expired_or_released(hold: pb.Hold) -> bool:
        async with db.transaction(unswept.pool) as conn:
            await expire(conn, [UUID(hold.hold_id)], actor="test", effects=Effects())
            state = await conn.fetchval("SELECT state::text FROM holds WHERE hold_id = $1", hold.hold_id)
        return bool(state != "HELD")

    async def meet_both(n: int, hold: pb.Hold) -> None:
        async with db.session(unswept.pool) as conn:
            await lapse_holds(conn, hold, left=timedelta(milliseconds=5 * (n % 7)))
        await asyncio.gather(
            service.ReleasePassengerSeat(release(hold, hold.seats[0].passenger_id)),
            eventually(partial(expired_or_released, hold)),
        )

    await asyncio.gather(*(meet_both(n, hold) for n, hold in enumerate(holds)))
    assert await freed_seats(unswept.database, flight) == sorted(hold.seats[0].seat_number for hold in holds)
    ended = {(await agent.get(hold)).state for hold in holds}
    assert ended <= {pb.Hold.CANCELLED, pb.Hold.EXPIRED}
    assert await violations(unswept.database, flight) == []
