"""A booking is confirmed with a locator that no other party has, imported ones included (CHK-1)."""

from __future__ import annotations

from tests.booking.agency import Agency, Customer
from tests.waiting import eventually


async def test_a_locator_of_an_imported_party_is_not_the_bookings(agency: Agency, customer: Customer) -> None:
    agency.register.foreign = 1
    booking = await customer.confirmed(await agency.flight())
    assert agency.register.parties[booking.pnr] == booking.booking_id
    assert "imported" in agency.register.parties.values()
    (told,) = [each for each in await agency.told("booking.confirmed.v1") if each.booking_id == booking.booking_id]
    assert told.pnr == booking.pnr


async def test_a_paid_booking_waits_for_its_locator_while_check_in_is_down(agency: Agency, customer: Customer) -> None:
    agency.register.away = True
    agency.register.calls.clear()
    try:
        booking = await customer.book(await agency.flight())
        await customer.pay(booking)

        async def asked() -> bool:
            return bool(agency.register.calls)

        await eventually(asked)
        assert (await customer.get(booking)).pnr == ""
    finally:
        agency.register.away = False
    confirmed = await customer.becomes(booking, "CONFIRMED")
    assert agency.register.parties[confirmed.pnr] == booking.booking_id
    assert {seat.seat_number for seat in confirmed.seats} == {seat.seat_number for seat in booking.seats}
