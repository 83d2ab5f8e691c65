"""BKG-8: a cancellation affects only the flights that have not departed.

Passengers keep the seats of flown flights, and the airline keeps their fares.
"""

from __future__ import annotations

from uuid import UUID, uuid4

import pytest
from skyhigh.booking.v1 import booking_service_pb2 as pb
from skyhigh.payment.v1 import payment_service_pb2 as payment_pb

from booking_service import bookings, records, steps
from booking_service.peers import Peers
from booking_service.steps import Steps
from services import db
from services.money import amount_of
from tests.booking.agency import FARE_CENTS, Agency, Customer, Journey, state_of, usd
from tests.booking.orders import intent_of, rest
from tests.callers import refused
from tests.seat.rules import at_once, outcomes
from tests.waiting import eventually

# Fare of an adult and an infant for one flight; the infant pays 10 %, rounded up.
LEG_CENTS = FARE_CENTS + -(-FARE_CENTS // 10)


async def flown(agency: Agency, customer: Customer, legs: int = 2, **more: object) -> tuple[Journey, pb.Booking]:
    """Returns a confirmed booking whose first flight has departed.

    The party is an adult with an infant.
    """
    journey = await agency.journey(legs)
    booking = await customer.confirmed(journey, "ADULT", "INFANT", **more)
    await agency.fly(booking, journey.flight_id)
    return journey, booking


async def settled(agency: Agency, customer: Customer, booking: pb.Booking) -> pb.Booking:
    """Waits until seats and money have followed a cancellation; returns the booking."""
    await rest(agency, [booking])
    return await customer.get(booking)


def legs_of(booking: pb.Booking) -> list[str]:
    """Returns the states of a booking's flights."""
    return [pb.Booking.Flight.State.Name(flight.state) for flight in booking.flights]


async def kept(agency: Agency, booking: pb.Booking) -> tuple[str, int]:
    """Returns the state of the payment, and the amount that is not refunded in cents."""
    intent = await agency.payments.get(intent_of(booking))
    return (
        payment_pb.PaymentIntent.State.Name(intent.state),
        amount_of(intent.amount).minor_units - amount_of(intent.refunded).minor_units,
    )


@pytest.mark.parametrize("by_airline", [False, True])
async def test_a_departed_flight_keeps_seat_and_fare(agency: Agency, customer: Customer, by_airline: bool) -> None:
    email = f"{uuid4().hex}@example.org"
    journey, booking = await flown(agency, customer, contact_email=email)
    if by_airline:
        await agency.cancel_flight(journey.flight_ids[1])
    else:
        assert legs_of(await customer.cancel(booking)) == ["BOOKED", "CANCELLED"]

    async def cancelled() -> bool:
        return legs_of(await customer.get(booking)) == ["BOOKED", "CANCELLED"]

    await eventually(cancelled)
    found = await settled(agency, customer, booking)
    assert (state_of(found), found.pnr) == ("CONFIRMED", booking.pnr)
    assert found.refund == found.flights[1].fare == usd(LEG_CENTS)
    assert found.HasField("refund_time")
    assert found.flights[1].cancel_reason == ("FLIGHT_CANCELLED" if by_airline else "CANCELLED")
    assert [seat.flight_id for seat in found.seats] == [journey.flight_id]
    assert await agency.taken(*journey.flight_ids) == {(journey.flight_id, found.seats[0].seat_number)}
    assert await kept(agency, booking) == ("SUCCEEDED", LEG_CENTS)
    (told,) = [each for each in await agency.told("booking.cancelled.v1") if each.booking_id == booking.booking_id]
    assert (list(told.flight_ids), list(told.kept_flight_ids)) == ([journey.flight_ids[1]], [journey.flight_id])
    # Check-in compares the time of the event with the departure, as the cancellation did.
    assert told.cancel_time == found.flights[1].cancel_time
    assert [mail.subject for mail in await agency.mails(email)] == [
        f"Your booking {booking.pnr} is confirmed",
        f"Flights of your booking {booking.pnr} were cancelled",
    ]
    assert [pb.Booking.State.Name(line.to_state) for line in found.history][-2:] == ["CONFIRMED", "CONFIRMED"]


async def test_the_fares_of_flights_add_up_to_the_total(agency: Agency, customer: Customer) -> None:
    booking = await customer.book(await agency.journey(3), "ADULT", "CHILD", "INFANT")
    assert sum(amount_of(flight.fare).minor_units for flight in booking.flights) == amount_of(booking.total).minor_units


async def test_a_repeat_changes_nothing(agency: Agency, customer: Customer) -> None:
    _, booking = await flown(agency, customer)
    await customer.cancel(booking)
    await settled(agency, customer, booking)
    before = await agency.rows(booking)
    assert legs_of(await customer.cancel(booking)) == ["BOOKED", "CANCELLED"]
    assert await agency.rows(booking) == before
    assert await kept(agency, booking) == ("SUCCEEDED", LEG_CENTS)


async def test_customer_and_airline_at_once_refund_the_fare_once(agency: Agency, customer: Customer) -> None:
    journey, booking = await flown(agency, customer, 3)
    results = await at_once(
        *(customer.cancel(booking) for _ in range(5)),
        *(agency.agent().cancel(booking) for _ in range(5)),
        *(agency.cancel_flight(flight_id) for flight_id in journey.flight_ids[1:]),
    )
    assert outcomes(results) == {"OK": 12}
    found = await settled(agency, customer, booking)
    assert legs_of(found) == ["BOOKED", "CANCELLED", "CANCELLED"]
    assert await kept(agency, booking) == ("SUCCEEDED", LEG_CENTS)
    told = [each for each in await agency.told("booking.cancelled.v1") if each.booking_id == booking.booking_id]
    assert sorted(flight_id for each in told for flight_id in each.flight_ids) == sorted(journey.flight_ids[1:])


async def test_a_late_airline_cancellation_refunds_both_flights(agency: Agency, customer: Customer) -> None:
    """The airline cancels late: the customer has cancelled the other flight already.

    Both fares are refunded.
    """
    journey, booking = await flown(agency, customer)
    await customer.cancel(booking)
    await settled(agency, customer, booking)
    await agency.cancel_flight(journey.flight_id)
    await customer.becomes(booking, "CANCELLED")
    found = await settled(agency, customer, booking)
    assert found.refund == found.total
    assert await agency.taken(*journey.flight_ids) == set()
    assert await kept(agency, booking) == ("REFUNDED", 0)
    told = [each for each in await agency.told("booking.cancelled.v1") if each.booking_id == booking.booking_id]
    assert [list(each.flight_ids) for each in told] == [[journey.flight_ids[1]], [journey.flight_id]]


async def test_a_late_event_does_not_cancel_a_departed_flight(agency: Agency, customer: Customer) -> None:
    """The airline cancels the first flight after the departure of the second.

    Only the first fare is refunded.
    """
    journey, booking = await flown(agency, customer)
    await agency.fly(booking, journey.flight_ids[1])
    await agency.cancel_flight(journey.flight_id)

    async def cancelled() -> bool:
        return legs_of(await customer.get(booking)) == ["CANCELLED", "BOOKED"]

    await eventually(cancelled)
    await settled(agency, customer, booking)
    assert await kept(agency, booking) == ("SUCCEEDED", LEG_CENTS)


async def test_an_unpaid_booking_is_cancelled_whole(agency: Agency, customer: Customer) -> None:
    journey = await agency.journey(2)
    booking = await customer.book(journey)
    await agency.fly(booking, journey.flight_id)
    assert state_of(await customer.cancel(booking)) == "CANCELLED"
    await rest(agency, [booking])
    assert await agency.taken(*journey.flight_ids) == set()


async def test_a_booking_refunded_elsewhere_ends(agency: Agency, customer: Customer) -> None:
    """A service refunds the payment directly, so the booking and its seats end."""
    journey = await agency.flight()
    booking = await customer.confirmed(journey)
    request = payment_pb.RefundPaymentRequest(intent_id=booking.payment_intent_id)
    with refused("FAILED_PRECONDITION", "REFUND_BY_ITS_SERVICE"):
        await agency.payments.callers.agent().RefundPayment(request)
    assert state_of(await customer.get(booking)) == "CONFIRMED"
    await agency.payments.callers.service("operations").RefundPayment(request)
    await customer.becomes(booking, "CANCELLED")
    found = await settled(agency, customer, booking)
    assert (found.cancel_reason, found.refund) == ("PAYMENT_REFUNDED", found.total)
    assert await agency.taken(journey.flight_id) == set()


async def test_a_booking_shows_the_passengers_current_seat(agency: Agency, customer: Customer) -> None:
    journey = await agency.flight()
    booking = await customer.confirmed(journey)
    await agency.sit(booking, journey.flight_id, "19D")
    assert [seat.seat_number for seat in (await customer.get(booking)).seats] == ["19D"], "at once"

    async def written() -> bool:
        rows = (await agency.rows(booking))["booking_seats"]
        return [row["seat_number"] for row in rows] == ["19D"]

    await eventually(written)


async def test_seats_are_copied_only_to_the_read_version(agency: Agency, customer: Customer) -> None:
    booking = await customer.confirmed(await agency.flight())
    async with db.transaction(agency.pool) as conn:
        standing = await records.find(conn, UUID(booking.booking_id))
        assert await bookings.follow_seats(conn, standing, standing.seats)
        assert not await bookings.follow_seats(conn, standing, [])
    assert (await customer.get(booking)).seats == booking.seats


async def test_bookings_of_a_flight_are_cancelled_in_batches(
    agency: Agency, customer: Customer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps, "CANCELLED_AT_ONCE", 2)
    journey = await agency.flight()
    ended = [await customer.book(journey) for _ in range(3)]
    for booking in ended:
        await customer.cancel(booking)
    live = [await customer.book(journey) for _ in range(5)]
    read: list[list[UUID]] = []
    real = Steps._live_bookings

    async def live_bookings(self: Steps, flight_id: str, *, after: UUID) -> list[UUID]:
        read.append(await real(self, flight_id, after=after))
        return read[-1]

    monkeypatch.setattr(Steps, "_live_bookings", live_bookings)
    await agency.cancel_flight(journey.flight_id)
    for booking in live:
        assert (await customer.becomes(booking, "CANCELLED")).cancel_reason == "FLIGHT_CANCELLED"
    assert {str(each) for batch in read for each in batch} >= {booking.booking_id for booking in live}
    assert not {str(each) for batch in read for each in batch} & {booking.booking_id for booking in ended}
    assert max(map(len, read)) == 2


async def test_seats_are_released_after_departure_if_necessary(
    agency: Agency, customer: Customer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The booking is cancelled before departure, but the release runs after it."""
    journey = await agency.flight()
    booking = await customer.confirmed(journey)
    real = Peers.cancel_hold

    async def drop(self: Peers, hold_id: UUID, *, reason: str) -> None:
        await agency.take_off(journey.flight_id)
        await real(self, hold_id, reason=reason)

    monkeypatch.setattr(Peers, "cancel_hold", drop)
    await customer.cancel(booking)
    await rest(agency, [booking])
    assert await agency.taken(journey.flight_id) == set()
