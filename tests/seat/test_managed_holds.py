"""Managed holds: services change them, their owners can't (docs/decisions/0018)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from google.protobuf.message import Message
from skyhigh.seat.v1 import seat_service_pb2 as pb

from tests.aging import lapse_holds
from tests.callers import Caller, Callers, refused, seat
from tests.instances import Database, Instance
from tests.seat.rules import (
    CHANGES_OF_A_HOLD,
    a_foreign_hold_is_as_a_missing_one,
    at_once,
    outcomes,
    rows,
    violations,
)
from tests.waiting import eventually

NUMBERS = [f"{row}{letter}" for row in range(14, 30) for letter in "ABCDEF"]


@pytest.fixture
def booking(callers: Callers) -> Caller:
    """The booking service as a caller."""
    return callers.service("booking")


async def managed(booking: Caller, owner: str, *seats: pb.SeatAssignment, **more: Any) -> pb.Hold:
    """Returns a hold that the service manages for this owner."""
    return await booking.hold_seats(*seats, purpose=pb.Hold.BOOKING, owner=owner, managed=True, **more)


async def test_only_the_owner_sees_a_managed_hold(
    callers: Callers, booking: Caller, flight: str, database: Database
) -> None:
    owner = callers.customer()
    hold = await managed(booking, owner.name, seat(flight, "20A"))
    assert hold.managed
    assert await owner.get(hold) == hold
    own = await owner.hold(flight, "20B")
    assert not own.managed
    assert not (await owner.get(own)).managed
    stranger = callers.passenger(f"P1:{flight}")
    for method, request in CHANGES_OF_A_HOLD.items():
        await a_foreign_hold_is_as_a_missing_one(database, stranger, method, partial(_of, request, flight), hold)
    with refused("NOT_FOUND", "HOLD_NOT_FOUND"):
        await stranger.get(hold)


def _of(request: Callable[[str, str], Message], flight: str, hold_id: str) -> Message:
    return request(hold_id, flight)


async def test_only_a_service_manages_holds(callers: Callers, flight: str, database: Database) -> None:
    for caller in (callers.customer(), callers.passenger(f"P1:{flight}"), callers.agent()):
        with refused("PERMISSION_DENIED", "PERMISSION_DENIED"):
            await caller.hold_seats(seat(flight, "20A", "P1"), managed=True)
    with refused("PERMISSION_DENIED", "PERMISSION_DENIED"):
        await managed(callers.agent(), "customer:somebody", seat(flight, "20A"))
    assert (await rows(database, flight))["holds"] == []


@pytest.mark.parametrize("method", CHANGES_OF_A_HOLD)
async def test_owner_and_agents_cannot_change_a_managed_hold(
    callers: Callers, booking: Caller, flight: str, database: Database, method: str
) -> None:
    owner = callers.passenger(f"P1:{flight}")
    hold = await managed(booking, owner.name, seat(flight, "20A", "P1"))
    # In every state of the hold.
    for go_on in (booking.get, booking.confirm, booking.cancel):
        await go_on(hold)
        before = await rows(database, flight)
        for caller in (owner, callers.agent()):
            with refused("FAILED_PRECONDITION", "HOLD_MANAGED"):
                await getattr(caller, method)(CHANGES_OF_A_HOLD[method](hold.hold_id, flight))
        assert await rows(database, flight) == before


async def test_services_can_change_a_managed_hold(
    callers: Callers, booking: Caller, flight: str, database: Database
) -> None:
    hold = await managed(booking, callers.customer().name, seat(flight, "20A", "P1"))
    extended = await booking.ExtendHold(pb.ExtendHoldRequest(hold_id=hold.hold_id))
    assert extended.extensions_left == hold.extensions_left - 1
    moved = seat(flight, "21A", "P1")
    changed = await booking.ChangeHoldSeats(pb.ChangeHoldSeatsRequest(hold_id=hold.hold_id, seats=[moved]))
    assert (changed.managed, list(changed.seats)) == (True, [moved])
    confirmed = await booking.confirm(hold)
    assert (confirmed.managed, confirmed.state) == (True, pb.Hold.CONFIRMED)
    # Any of our services may change the hold.
    assert (await callers.service("waitlist").cancel(hold)).state == pb.Hold.CANCELLED
    assert await violations(database, flight) == []


async def test_concurrent_calls_succeed_only_for_services(
    callers: Callers, second: Callers, booking: Caller, flight: str, database: Database
) -> None:
    owner = callers.customer()
    holds = [await managed(booking, callers.customer().name, seat(flight, f"{row}A")) for row in range(14, 24)]
    theirs = [await managed(booking, owner.name, seat(flight, f"{row}B")) for row in range(14, 23)]
    counted = outcomes(
        await at_once(
            *(booking.confirm(hold) for hold in holds),
            *(second.agent().cancel(hold) for hold in holds),
            *(owner.cancel(hold) for hold in theirs),
            *(booking.confirm(hold) for hold in theirs),
        )
    )
    assert counted == {"OK": 19, "HOLD_MANAGED": 19}
    assert {state for number, state in (await callers.agent().states(flight)).items() if state != "AVAILABLE"} == {
        "CONFIRMED"
    }
    assert await violations(database, flight) == []


async def test_managed_holds_count_for_their_customer(
    callers: Callers, booking: Caller, flight: str, database: Database
) -> None:
    customer = callers.customer()
    await managed(booking, customer.name, *(seat(flight, number) for number in NUMBERS[:8]))
    await customer.hold(flight, NUMBERS[8])
    before = await rows(database, flight)
    with refused("RESOURCE_EXHAUSTED", "TOO_MANY_HELD_SEATS") as refusal:
        await managed(booking, customer.name, seat(flight, NUMBERS[9]))
    assert refusal.retry_after_seconds is not None
    with refused("RESOURCE_EXHAUSTED", "TOO_MANY_HELD_SEATS"):
        await customer.hold(flight, NUMBERS[9])
    assert await rows(database, flight) == before
    # Seats that the service holds for itself, or for an agent, do not count for the customer.
    await booking.hold_seats(seat(flight, NUMBERS[10]), managed=True)
    for first in (11, 20):
        await managed(booking, "agent:desk", *(seat(flight, number) for number in NUMBERS[first : first + 9]))


async def test_concurrent_managed_holds_cannot_exceed_the_limit(
    callers: Callers, second: Callers, flight: str, database: Database
) -> None:
    services = (callers.service("booking"), second.service("booking"))
    results = await at_once(
        *(managed(services[n % 2], "customer:racer", seat(flight, number)) for n, number in enumerate(NUMBERS[:40]))
    )
    assert outcomes(results) == {"OK": 9, "TOO_MANY_HELD_SEATS": 31}
    assert await violations(database, flight) == []


async def test_changing_a_managed_hold_cannot_exceed_the_limit(
    callers: Callers, booking: Caller, flight: str, database: Database
) -> None:
    customer = callers.customer()
    await customer.hold_seats(*(seat(flight, number) for number in NUMBERS[:8]))
    hold = await managed(booking, customer.name, seat(flight, NUMBERS[8], "P1"))
    before = await rows(database, flight)
    more = [seat(flight, NUMBERS[8], "P1"), seat(flight, NUMBERS[9])]
    with refused("RESOURCE_EXHAUSTED", "TOO_MANY_HELD_SEATS"):
        await booking.ChangeHoldSeats(pb.ChangeHoldSeatsRequest(hold_id=hold.hold_id, seats=more))
    assert await rows(database, flight) == before
    await booking.ChangeHoldSeats(
        pb.ChangeHoldSeatsRequest(hold_id=hold.hold_id, seats=[seat(flight, NUMBERS[9], "P1")])
    )


async def test_lapsed_managed_holds_cool_down_their_customer(strict: Instance, strict_flight: str) -> None:
    booking, customer = strict.callers.service("booking"), strict.callers.customer()
    holds = [await managed(booking, customer.name, seat(strict_flight, number)) for number in NUMBERS[:2]]
    await lapse_holds(strict.database, *holds)

    async def swept() -> bool:
        return not await strict.database.fetchval(
            "SELECT count(*) FROM seats WHERE flight_id = $1 AND state <> 'AVAILABLE'", strict_flight
        )

    await eventually(swept)
    with refused("RESOURCE_EXHAUSTED", "COOLING_DOWN") as refusal:
        await managed(booking, customer.name, seat(strict_flight, NUMBERS[2]))
    assert refusal.retry_after_seconds is not None
    assert 0 < refusal.retry_after_seconds <= 60
    await managed(booking, strict.callers.customer().name, seat(strict_flight, NUMBERS[2]))


async def test_a_repeat_returns_the_first_response(booking: Caller, flight: str, request_id: str) -> None:
    place = seat(flight, "20A", "P1")
    first = await managed(booking, "customer:c", place, request_id=request_id)
    assert await managed(booking, "customer:c", place, request_id=request_id) == first
    # The same request without `managed` has other parameters.
    with refused("ALREADY_EXISTS", "IDEMPOTENCY_KEY_REUSED"):
        await booking.hold_seats(place, purpose=pb.Hold.BOOKING, owner="customer:c", request_id=request_id)
