"""A flight departs during a payment: no seat is sold, money is refunded (SEAT-17)."""

from __future__ import annotations

from typing import Any, Final

import pytest
from skyhigh.seat.v1 import seat_service_pb2 as seat_pb

from booking_service import bookings
from services.errors import Unavailable
from tests.booking.agency import UNDECIDED, Agency, Customer
from tests.booking.orders import End, ends, pay_once_more, provider_decides
from tests.callers import refused
from tests.payment.rules import FAILS
from tests.waiting import eventually

VARIABLES: Final = {"SKYHIGH_BOOKING_PAYMENT_LOOK_SECONDS": "0.1"}


async def test_seats_of_a_departed_flight_are_not_sold(agency: Agency, customer: Customer) -> None:
    journey = await agency.flight()
    await agency.take_off(journey.flight_id)
    with refused("FAILED_PRECONDITION", "FLIGHT_DEPARTED") as refusal:
        await customer.book(journey)
    assert refusal.info.metadata["flight_id"] == journey.flight_id
    assert await agency.taken(journey.flight_id) == set()


async def test_a_booking_of_a_departed_flight_is_not_charged(agency: Agency, customer: Customer) -> None:
    journey = await agency.flight()
    booking = await customer.book(journey)
    await agency.take_off(journey.flight_id)
    await customer.pay(booking)
    found = (await ends(agency, [booking]))[booking.booking_id]
    assert (found.state in ("FAILED", "EXPIRED"), found.paid, found.seats) == (True, False, frozenset())


async def test_a_payment_after_departure_is_refunded(agency: Agency, customer: Customer) -> None:
    agency.provider.behaviour.now = UNDECIDED
    journey = await agency.flight()
    booking = await customer.book(journey)
    await customer.pay(booking)
    await customer.becomes(booking, "PAYMENT_PROCESSING")
    await agency.take_off(journey.flight_id)
    await provider_decides(agency, booking)
    found = (await ends(agency, [booking]))[booking.booking_id]
    assert (found.state == "CONFIRMED", found.seats) == (False, frozenset())


async def test_a_late_payment_holds_no_departed_seats(agency: Agency, customer: Customer) -> None:
    journey = await agency.flight()
    booking = await customer.book(journey)
    await customer.pay(booking, FAILS)
    await customer.becomes(booking, "FAILED")
    await agency.take_off(journey.flight_id)
    await pay_once_more(customer, booking)

    async def came() -> bool:
        return (await agency.row(booking))["pay_time"] is not None

    await eventually(came)
    assert (await ends(agency, [booking]))[booking.booking_id] == End("FAILED", True, frozenset())
    assert (await customer.get(booking)).last_error == "FLIGHT_DEPARTED"


async def test_late_seats_are_released_if_the_flight_departed_first(
    agency: Agency, customer: Customer, monkeypatch: pytest.MonkeyPatch
) -> None:
    agency.provider.behaviour.now = UNDECIDED
    journey = await agency.flight()
    booking = await customer.book(journey)
    await customer.pay(booking)
    await customer.becomes(booking, "PAYMENT_PROCESSING")
    await agency.seats.service().CancelHold(seat_pb.CancelHoldRequest(hold_id=booking.hold_id))

    async def is_down(*_: Any, **__: Any) -> bool:
        raise Unavailable("the database does not respond; retry")

    async def failed_to_write() -> bool:
        error = "SELECT last_error FROM timers WHERE name = 'confirm' AND subject = $1"
        return await agency.database.fetchval(error, booking.booking_id) is not None

    with monkeypatch.context() as patch:
        patch.setattr(bookings, "confirm", is_down)
        await provider_decides(agency, booking)
        await eventually(failed_to_write)
        assert len(await agency.taken(journey.flight_id)) == 1
        await agency.take_off(journey.flight_id)
    found = (await ends(agency, [booking]))[booking.booking_id]
    assert (found.state, found.seats) == ("EXPIRED", frozenset())
