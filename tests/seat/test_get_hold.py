"""GetHold: an owner reads the current state of its own holds (SEAT-3, SEAT-6)."""

from __future__ import annotations

from skyhigh.seat.v1 import seat_service_pb2 as pb

from tests.aging import lapse_holds
from tests.callers import Caller, Callers, seat
from tests.instances import Database, Instance
from tests.seat.rules import a_foreign_hold_is_as_a_missing_one
from tests.waiting import eventually


async def test_the_owner_and_agents_and_services_read_it(
    callers: Callers, agent: Caller, service: Caller, operations: Caller, flight: str
) -> None:
    owner = callers.passenger(f"P1:{flight}")
    hold = await owner.hold(flight, "20A", "P1")
    for reader in (owner, agent, service, operations):
        assert await reader.get(hold) == hold


async def test_the_hold_shows_each_of_its_states(agent: Caller, flight: str) -> None:
    hold = await agent.hold(flight, "20A")
    assert await agent.get(hold) == hold
    confirmed = await agent.confirm(hold)
    assert await agent.get(hold) == confirmed
    cancelled = await agent.cancel(hold)
    assert await agent.get(hold) == cancelled
    assert (confirmed.state, cancelled.state) == (pb.Hold.CONFIRMED, pb.Hold.CANCELLED)
    # A cancelled hold still shows the seats that it had.
    assert cancelled.seats == hold.seats


async def test_a_lapsed_hold_is_shown_expired_before_the_sweep(unswept: Instance, unswept_flight: str) -> None:
    customer = unswept.callers.customer()
    hold = await customer.hold(unswept_flight, "20A")
    await lapse_holds(unswept.database, hold)
    assert (await customer.get(hold)).state == pb.Hold.EXPIRED
    assert await unswept.database.fetchval("SELECT state::text FROM holds WHERE hold_id = $1", hold.hold_id) == "HELD"


async def test_an_expired_hold_still_shows_its_seats(callers: Callers, flight: str, database: Database) -> None:
    customer = callers.customer()
    hold = await customer.hold_seats(seat(flight, "20A"), seat(flight, "20B"))
    await lapse_holds(database, hold)

    async def swept() -> bool:
        state = await database.fetchval("SELECT state::text FROM holds WHERE hold_id = $1", hold.hold_id)
        return bool(state == "EXPIRED")

    await eventually(swept)
    found = await customer.get(hold)
    assert found.state == pb.Hold.EXPIRED
    assert found.seats == hold.seats


async def test_a_foreign_hold_is_not_found(callers: Callers, flight: str, database: Database) -> None:
    hold = await callers.passenger(f"P1:{flight}").hold(flight, "20A", "P1")
    for stranger in (callers.passenger(f"P1:{flight}"), callers.customer()):
        await a_foreign_hold_is_as_a_missing_one(
            database, stranger, "GetHold", lambda hold_id: pb.GetHoldRequest(hold_id=hold_id), hold
        )


async def test_a_customer_named_like_a_passenger_finds_no_hold(
    callers: Callers, flight: str, database: Database
) -> None:
    owner = callers.passenger(f"P1:{flight}")
    hold = await owner.hold(flight, "20A", "P1")
    namesake = callers.customer(owner.name.removeprefix("passenger:"))
    await a_foreign_hold_is_as_a_missing_one(
        database, namesake, "GetHold", lambda hold_id: pb.GetHoldRequest(hold_id=hold_id), hold
    )
