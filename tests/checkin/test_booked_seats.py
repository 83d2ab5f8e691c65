"""A booked seat stays the passenger's when a check-in ends (CHK-9, 11.16).

Another seat is released.
"""

from __future__ import annotations

import pytest
from skyhigh.checkin.v1 import checkin_service_pb2 as pb

from tests.callers import refused
from tests.checkin.airport import ALREADY_OVER, Airport, Traveller
from tests.checkin.parties import Party, booked, party
from tests.instances import Database


async def booked_child(airport: Airport, seat_number: str = "20A") -> tuple[Party, Traveller]:
    """Returns a passenger of a confirmed booking with a confirmed seat."""
    its = party(booked(airport.flight_id))
    await airport.tell("booking.confirmed.v1", its.confirmed)
    child = its.traveller(airport, 2)
    await child.seats.confirm(await child.hold(seat_number))
    return its, child


async def test_a_booked_seat_is_kept_for_another_check_in(airport: Airport) -> None:
    _, child = await booked_child(airport)
    await child.start(hold_id="")
    await child.declare(10)
    await child.cancel()
    await airport.at_rest(child)
    assert await child.seat() == "20A"
    first = child.checkin_id
    assert (await child.start(hold_id="")).seat_number == "20A"
    assert child.checkin_id != first
    assert (await child.declare(10)).state == pb.CheckIn.COMPLETED


async def test_a_booked_seat_is_kept_while_the_bookings_event_is_late(airport: Airport) -> None:
    its = party(booked(airport.flight_id))
    await airport.checkin.service().ReserveLocator(
        pb.ReserveLocatorRequest(pnr=its.confirmed.pnr, booking_id=its.confirmed.booking_id)
    )
    each = its.confirmed.passengers[0]
    await airport.imported(
        pb.ManifestPassenger(
            passenger_id=each.passenger_id, pnr=its.confirmed.pnr, given_name="Zoë", last_name=each.last_name
        )
    )
    adult = its.traveller(airport, 0)
    await adult.seats.confirm(await adult.hold("22A"))
    await adult.start(hold_id="")
    await adult.cancel()
    await airport.at_rest(adult)
    assert await adult.seat() == "22A"
    await airport.tell("booking.confirmed.v1", its.confirmed)
    assert (await adult.start(hold_id="")).seat_number == "22A"


async def test_a_booked_passenger_who_moved_keeps_the_new_seat(airport: Airport) -> None:
    _, child = await booked_child(airport)
    # Starting the check-in releases the booked seat, which may be sold. If the new seat were released too, a passenger
    # who has paid would have none.
    await child.start(seat_number="21A")
    await child.cancel()
    await airport.at_rest(child)
    assert await child.seat() == "21A"


async def test_a_moved_booked_passenger_cannot_release_the_new_seat(airport: Airport) -> None:
    its, child = await booked_child(airport)
    hold = await child.hold("21A")
    await child.start(hold_id=hold.hold_id)
    await child.declare(10)
    for caller in (child.seats, airport.seats.agent()):
        with refused("FAILED_PRECONDITION", "SEAT_INCLUDED_IN_BOOKING") as refusal:
            await caller.cancel(hold)
        assert refusal.info.metadata == {"flight_id": airport.flight_id, "passenger_id": child.passenger_id}
    assert ((await child.get()).state, await child.seat()) == (pb.CheckIn.COMPLETED, "21A")
    await airport.tell("booking.cancelled.v1", its.cancelled)
    await child.becomes(pb.CheckIn.CANCELLED)
    await airport.at_rest(child)
    assert await child.seat() == ""


async def test_an_unpaid_fee_keeps_the_booked_seat(airport: Airport) -> None:
    _, child = await booked_child(airport)
    await child.start(hold_id="")
    await child.declare(30)
    await child.has_deadline_in(ALREADY_OVER)
    await child.becomes(pb.CheckIn.CANCELLED)
    await airport.at_rest(child)
    assert await child.seat() == "20A"


@pytest.mark.parametrize("unpaid", [False, True], ids=["cancelled", "unpaid"])
async def test_a_seat_first_taken_at_check_in_is_released(airport: Airport, unpaid: bool) -> None:
    traveller = await airport.traveller()
    await traveller.waiting()
    if unpaid:
        await traveller.has_deadline_in(ALREADY_OVER)
        await traveller.becomes(pb.CheckIn.CANCELLED)
    else:
        await traveller.cancel()
    await airport.at_rest(traveller)
    assert await traveller.seat() == ""


async def test_a_cancelled_booking_releases_its_checked_in_seat(airport: Airport) -> None:
    its, child = await booked_child(airport)
    await child.start(hold_id="")
    await airport.tell("booking.cancelled.v1", its.cancelled)
    await child.becomes(pb.CheckIn.CANCELLED)
    await airport.at_rest(child)
    assert await child.seat() == ""


async def test_cancelling_the_booking_later_releases_the_kept_seat(
    airport: Airport, checkin_database: Database
) -> None:
    its, child = await booked_child(airport)
    await child.start(hold_id="")
    await child.cancel()
    await airport.at_rest(child)
    await airport.tell("booking.cancelled.v1", its.cancelled)
    listed = "SELECT count(*) FROM passengers WHERE pnr = $1"
    assert await checkin_database.fetchval(listed, child.pnr) == 0
