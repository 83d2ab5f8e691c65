"""CreateBooking: seats for a party on all flights of a journey, or on none."""

from __future__ import annotations

import secrets
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID, uuid4

import asyncpg
import pytest
from skyhigh.booking.v1 import booking_service_pb2 as pb
from skyhigh.seat.v1 import seat_service_pb2 as seat_pb

from booking_service import bookings, seating
from booking_service.records import SeatOf
from services.errors import Unavailable
from services.running_call import CLIENT_HEADER
from tests.aging import make_timer_due
from tests.booking.agency import (
    EMAIL,
    FARE_CENTS,
    SEATS_AT_ONCE,
    TIME_TO_PAY,
    Agency,
    Customer,
    Journey,
    asked,
    named_seat,
    people,
    seats_of,
    state_of,
    usd,
    without_history,
)
from tests.callers import refused
from tests.dates import flight_id, new_flight_id

# An infant pays 10 % of the fare, rounded up to a whole cent.
INFANT_CENTS: Final = 1_001


async def hold_of(agency: Agency, booking: pb.Booking) -> seat_pb.Hold:
    """Reads the hold of a booking from the seat service."""
    hold: seat_pb.Hold = await agency.seats.service().GetHold(seat_pb.GetHoldRequest(hold_id=booking.hold_id))
    return hold


async def test_a_booking_of_one_flight_holds_its_seats(agency: Agency, customer: Customer) -> None:
    journey = await agency.flight()
    (flight,) = journey.flights
    booked = await customer.book(journey)
    (passenger,) = booked.passengers
    (seat,) = booked.seats
    assert booked == pb.Booking(
        booking_id=booked.booking_id,
        state=pb.Booking.SEATS_RESERVED,
        passengers=[
            pb.Passenger(
                passenger_id=f"{UUID(booked.booking_id).hex[:16]}-1",
                given_name="Ada",
                last_name="Lovelace",
                type=pb.ADULT,
            )
        ],
        seats=[
            pb.BookedSeat(flight_id=flight.flight_id, seat_number=seat.seat_number, passenger_id=passenger.passenger_id)
        ],
        total=usd(FARE_CENTS),
        expire_time=booked.expire_time,
        flights=[
            pb.Booking.Flight(
                flight_id=flight.flight_id,
                flight_number=flight.flight_number,
                origin="LHR",
                destination="FRA",
                departure_time=flight.departure_time,
                arrival_time=flight.arrival_time,
                price=usd(FARE_CENTS),
                state=pb.Booking.Flight.BOOKED,
                fare=usd(FARE_CENTS),
            )
        ],
        cabin=pb.ECONOMY,
        contact_email=EMAIL,
        hold_id=booked.hold_id,
        create_time=booked.create_time,
        update_time=booked.update_time,
    )
    assert without_history(await customer.get(booked)) == booked
    assert await agency.history(booked) == ["CREATED", "SEATS_RESERVED"]
    await agency.comes_to_rest([journey])


async def test_the_seats_are_held_for_the_customer_until_expiry(agency: Agency, customer: Customer) -> None:
    journey = await agency.flight()
    before = datetime.now(UTC)
    booked = await customer.book(journey, "ADULT", "ADULT")
    assert before + TIME_TO_PAY <= booked.expire_time.ToDatetime(UTC) <= datetime.now(UTC) + TIME_TO_PAY
    hold = await hold_of(agency, booked)
    assert (hold.state, hold.purpose, hold.managed) == (seat_pb.Hold.HELD, seat_pb.Hold.BOOKING, True)
    assert [seat.seat_number for seat in hold.seats] == seats_of(booked)
    assert booked.expire_time == hold.expire_time
    owned = await agency.seat_database.fetchval("SELECT owner FROM holds WHERE hold_id = $1", UUID(hold.hold_id))
    assert owned == customer.name


@pytest.mark.parametrize(("legs", "party"), [(2, 2), (4, 2), (2, 9), (4, 9)])
async def test_an_itinerary_holds_seats_on_all_flights(
    agency: Agency, customer: Customer, legs: int, party: int
) -> None:
    journey = await agency.journey(legs)
    booked = await customer.book(journey, *["ADULT"] * party)
    assert [flight.flight_id for flight in booked.flights] == journey.flight_ids
    assert booked.total == usd(legs * party * FARE_CENTS)
    everybody = [passenger.passenger_id for passenger in booked.passengers]
    for flown in journey.flight_ids:
        assert [seat.passenger_id for seat in booked.seats if seat.flight_id == flown] == everybody
    assert await agency.taken(*journey.flight_ids) == {(seat.flight_id, seat.seat_number) for seat in booked.seats}
    await agency.comes_to_rest([journey])


@pytest.mark.parametrize("full_leg", [0, 1, 3])
async def test_one_full_flight_refuses_the_itinerary(agency: Agency, customer: Customer, full_leg: int) -> None:
    journey = await agency.journey(4, aircraft_type="A321")
    full = journey.flight_ids[full_leg]
    await agency.leave(full, "4F", cabin="BUSINESS")
    others = await agency.taken(*journey.flight_ids)
    with refused("ABORTED", "SEATS_UNAVAILABLE") as refusal:
        await customer.book(journey, "ADULT", "ADULT", cabin=pb.BUSINESS)
    assert refusal.info.metadata == {"flight_id": full}
    assert await agency.taken(*journey.flight_ids) == others
    alone = await customer.book(journey, cabin=pb.BUSINESS)
    assert seats_of(alone, full) == ["4F"]


async def test_one_taken_named_seat_refuses_the_booking(agency: Agency, customer: Customer) -> None:
    journey = await agency.journey(2)
    there, back = journey.flight_ids
    await agency.take(back, "10A")
    with refused("ABORTED", "SEAT_TAKEN") as refusal:
        await customer.book(journey, seats=[named_seat(there, "10A"), named_seat(back, "10A")])
    assert (refusal.info.metadata["flight_id"], refusal.info.metadata["seat_number"]) == (back, "10A")
    assert await agency.taken(there, back) == {(back, "10A")}


@pytest.mark.parametrize(
    ("types", "cents"),
    [
        (["ADULT"], FARE_CENTS),
        (["ADULT"] * 2, 2 * FARE_CENTS),
        (["CHILD", "ADULT"], 2 * FARE_CENTS),
        (["ADULT", "INFANT"], FARE_CENTS + INFANT_CENTS),
        (["ADULT", "CHILD", "INFANT", "ADULT", "INFANT"], 3 * FARE_CENTS + 2 * INFANT_CENTS),
    ],
)
async def test_the_total_covers_all_passengers_and_flights(
    agency: Agency, customer: Customer, types: list[str], cents: int
) -> None:
    booked = await customer.book(await agency.journey(2), *types)
    assert booked.total == usd(2 * cents)
    assert [flight.price for flight in booked.flights] == [usd(FARE_CENTS)] * 2


@pytest.mark.parametrize(
    ("cabin", "booked_cabin", "percent"),
    [(pb.CABIN_UNSPECIFIED, pb.ECONOMY, 100), (pb.BUSINESS, pb.BUSINESS, 300)],
)
async def test_each_cabin_has_its_own_seats_and_fare(
    agency: Agency, customer: Customer, cabin: Any, booked_cabin: Any, percent: int
) -> None:
    journey = await agency.flight(aircraft_type="A321")
    booked = await customer.book(journey, cabin=cabin)
    assert (booked.cabin, booked.total) == (booked_cabin, usd(FARE_CENTS * percent // 100))
    cabins = {seat.seat_number: seat.cabin for seat in (await agency.seat_map(journey.flight_id)).seats}
    assert [pb.Cabin.Value(seat_pb.Seat.Cabin.Name(cabins[number])) for number in seats_of(booked)] == [booked_cabin]


async def test_a_party_gets_adjacent_seats(agency: Agency, customer: Customer) -> None:
    booked = await customer.book(await agency.flight(), "ADULT", "ADULT", "CHILD", "CHILD")
    rows = {int(number[:-1]) for number in seats_of(booked)}
    assert len(rows) == 1


async def test_each_infant_gets_an_adult_of_its_own(agency: Agency, customer: Customer) -> None:
    booked = await customer.book(await agency.journey(2), "INFANT", "ADULT", "CHILD", "INFANT", "ADULT")
    first, one, child, second, other = booked.passengers
    assert (first.accompanying_passenger_id, second.accompanying_passenger_id) == (one.passenger_id, other.passenger_id)
    assert {each.accompanying_passenger_id for each in (one, other, child)} == {""}
    seated = {one.passenger_id, other.passenger_id, child.passenger_id}
    for flight in booked.flights:
        assert {seat.passenger_id for seat in booked.seats if seat.flight_id == flight.flight_id} == seated


@pytest.mark.parametrize("left", [["1A", "1B", "1C"], ["1A", "10C"]])
@pytest.mark.parametrize("types", [["ADULT", "CHILD"], ["ADULT", "INFANT", "ADULT"]])
async def test_a_party_with_children_gets_no_exit_row(
    agency: Agency, customer: Customer, types: list[str], left: list[str]
) -> None:
    """Row 1 is an exit row, closed to children and to adults who travel with them."""
    journey = await agency.flight()
    await agency.leave(journey.flight_id, *left)
    with refused("ABORTED", "SEATS_UNAVAILABLE"):
        await customer.book(journey, *types)
    assert len((await customer.book(journey, "ADULT", "ADULT")).seats) == 2


async def test_each_passenger_gets_the_named_seat(agency: Agency, customer: Customer) -> None:
    journey = await agency.journey(2)
    there, back = journey.flight_ids
    booked = await customer.book(
        journey,
        "ADULT",
        "ADULT",
        seats=[
            named_seat(back, "12C", 0),
            named_seat(back, "12D", 1),
            named_seat(there, "7A", 1),
            named_seat(there, "19D", 0),
        ],
    )
    assert (seats_of(booked, there), seats_of(booked, back)) == (["19D", "7A"], ["12C", "12D"])


async def test_unnamed_seats_are_the_best_available(agency: Agency, customer: Customer) -> None:
    journey = await agency.journey(2)
    there, back = journey.flight_ids
    booked = await customer.book(journey, "ADULT", "CHILD", "ADULT", seats=[named_seat(there, "10B", 2)])
    assert seats_of(booked, there)[2] == "10B"
    assert len(set(seats_of(booked, there))) == 3
    assert len({int(number[:-1]) for number in seats_of(booked, back)}) == 1
    rows = await agency.rows(booked)
    assert [row["seat_number"] for row in rows["booking_seats"] if row["named"]] == ["10B"]


async def test_a_named_seat_goes_to_its_passenger(agency: Agency, customer: Customer) -> None:
    journey = await agency.flight()
    await agency.leave(journey.flight_id, "10A", "10B")
    booked = await customer.book(journey, "ADULT", "ADULT", seats=[named_seat(journey.flight_id, "10A", 1)])
    assert seats_of(booked) == ["10B", "10A"]


@pytest.mark.parametrize(
    "types", [["ADULT", "CHILD", "INFANT"], ["ADULT", "ADULT", "INFANT", "INFANT"], ["ADULT", "CHILD", "CHILD"]]
)
async def test_part_of_a_family_can_name_seats(agency: Agency, customer: Customer, types: list[str]) -> None:
    journey = await agency.flight()
    booked = await customer.book(journey, *types, seats=[named_seat(journey.flight_id, "10A", 0)])
    assert seats_of(booked)[0] == "10A"
    assert len(booked.seats) == len(types) - types.count("INFANT")


async def test_an_agent_books_for_a_customer(agency: Agency) -> None:
    booked = await agency.agent("desk").book(await agency.flight(), "ADULT")
    assert (await agency.row(booked))["owner"] == "agent:desk"


@pytest.mark.parametrize("name", ["Łucja", "O\u2019Brien", "Anne-Marie", "J.", "李", "محمد", "Zoe\u0308", "A" * 60])
async def test_a_name_is_stored_unchanged(agency: Agency, customer: Customer, name: str) -> None:
    booked = await customer.book(
        await agency.flight(), passengers=[pb.CreateBookingRequest.NewPassenger(given_name=name, last_name=name)]
    )
    assert [(each.given_name, each.last_name) for each in booked.passengers] == [(name, name)]


async def test_the_type_defaults_to_adult_and_email_is_optional(agency: Agency, customer: Customer) -> None:
    untyped = [pb.CreateBookingRequest.NewPassenger(given_name="Ada", last_name="Lovelace")]
    booked = await customer.book(await agency.flight(), passengers=untyped, contact_email="")
    assert [passenger.type for passenger in booked.passengers] == [pb.ADULT]
    assert booked.contact_email == ""


# Bookings that are impossible. No seat is held afterwards.


async def test_an_unknown_flight_or_itinerary_is_not_found(agency: Agency, customer: Customer) -> None:
    with refused("NOT_FOUND", "FLIGHT_NOT_FOUND") as refusal:
        await customer.desk.CreateBooking(
            pb.CreateBookingRequest(flight_id=(missing := new_flight_id()), passengers=people("ADULT"))
        )
    assert refusal.info.metadata == {"flight_id": missing}
    journey = await agency.journey(2)
    backwards = Journey(journey.flights[::-1])
    for itinerary_id in ("CF_LHR_ATH_SH1-1_SH2-2", backwards.itinerary_id):
        with refused("NOT_FOUND", "ITINERARY_NOT_FOUND"):
            await customer.desk.CreateBooking(
                pb.CreateBookingRequest(itinerary_id=itinerary_id, passengers=people("ADULT"))
            )


async def test_a_cancelled_flight_cannot_be_booked(agency: Agency, customer: Customer) -> None:
    journey = await agency.flight()
    await agency.cancel_flight(journey.flight_id)
    with refused("FAILED_PRECONDITION", "FLIGHT_CANCELLED") as refusal:
        await customer.book(journey)
    assert refusal.info.metadata == {"flight_id": journey.flight_id}


async def test_an_itinerary_with_a_cancelled_flight_cannot_be_booked(agency: Agency, customer: Customer) -> None:
    journey = await agency.journey(2)
    cancelled = journey.flight_ids[1]
    await agency.cancel_flight(cancelled)
    with refused("FAILED_PRECONDITION", "FLIGHT_CANCELLED") as refusal:
        await customer.book(journey)
    assert refusal.info.metadata == {"flight_id": cancelled}
    assert await agency.taken(*journey.flight_ids) == set()


async def test_the_seat_services_cancellation_prevents_the_booking(agency: Agency, customer: Customer) -> None:
    journey = await agency.flight()
    await agency.close(journey.flight_id)
    with refused("FAILED_PRECONDITION", "FLIGHT_CANCELLED") as refusal:
        await customer.book(journey, seats=[named_seat(journey.flight_id, "10A")])
    assert refusal.info.metadata["flight_id"] == journey.flight_id


async def test_the_sale_ends_when_check_in_closes(agency: Agency, customer: Customer) -> None:
    late = await agency.flight(departs_in=timedelta(minutes=59))
    with refused("FAILED_PRECONDITION", "SALE_CLOSED") as refusal:
        await customer.book(late)
    assert refusal.info.metadata["flight_id"] == late.flight_id
    close_time = late.flights[0].departure_time.ToDatetime() - timedelta(hours=1)
    assert refusal.info.metadata["close_time"] == f"{close_time.isoformat()}Z"
    assert await agency.taken(late.flight_id) == set()
    await customer.book(await agency.flight(departs_in=timedelta(minutes=61)))


async def test_an_unknown_seat_is_not_found(agency: Agency, customer: Customer) -> None:
    journey = await agency.flight()
    with refused("NOT_FOUND", "SEAT_NOT_FOUND") as refusal:
        await customer.book(journey, seats=[named_seat(journey.flight_id, "13A")])
    assert dict(refusal.info.metadata) == {"flight_id": journey.flight_id, "seat_number": "13A"}


@pytest.mark.parametrize("types", [["ADULT"], ["ADULT", "ADULT"]])
async def test_a_taken_named_seat_is_not_replaced(agency: Agency, customer: Customer, types: list[str]) -> None:
    journey = await agency.flight()
    await agency.take(journey.flight_id, "10A")
    with refused("ABORTED", "SEAT_TAKEN") as refusal:
        await customer.book(journey, *types, seats=[named_seat(journey.flight_id, "10A")])
    assert refusal.info.metadata["flight_id"] == journey.flight_id
    assert refusal.info.metadata["seat_number"] == "10A"
    assert await agency.taken(journey.flight_id) == {(journey.flight_id, "10A")}


@pytest.mark.parametrize(
    ("aircraft_type", "wish", "reason"),
    [
        ("A321", ("1A", "ADULT"), "CABIN_NOT_ALLOWED"),
        ("AT72", ("1A", "CHILD", "ADULT"), "EXIT_ROW_NOT_ALLOWED"),
        ("AT72", ("1A", "ADULT", "CHILD"), "EXIT_ROW_NOT_ALLOWED"),
        ("AT72", ("1A", "ADULT", "INFANT"), "EXIT_ROW_NOT_ALLOWED"),
        ("AT72", ("2A", "ADULT", "INFANT"), "INFANT_NOT_ALLOWED"),
    ],
)
async def test_a_named_seat_not_allowed_is_refused(
    agency: Agency, customer: Customer, aircraft_type: str, wish: tuple[str, ...], reason: str
) -> None:
    seat_number, *types = wish
    journey = await agency.flight(aircraft_type=aircraft_type)
    with refused("FAILED_PRECONDITION", reason):
        await customer.book(journey, *types, seats=[named_seat(journey.flight_id, seat_number)])
    assert await agency.taken(journey.flight_id) == set()
    (plans,) = await agency.database.fetch("SELECT plan FROM bookings WHERE owner = $1", customer.name)
    assert plans["plan"] == 1, "no other plan could have been better"


async def test_a_full_flight_cannot_be_booked(agency: Agency, customer: Customer) -> None:
    full = await agency.two_left()
    for more in ({"cabin": pb.FIRST}, {"cabin": pb.BUSINESS}):
        with refused("ABORTED", "SEATS_UNAVAILABLE") as refusal:
            await customer.book(full, "ADULT", "ADULT", "ADULT", **more)
        assert refusal.info.metadata == {"flight_id": full.flight_id}
    assert len((await customer.book(full, "ADULT", "ADULT", cabin=pb.BUSINESS)).seats) == 2


@pytest.mark.parametrize(
    "types",
    [["CHILD"], ["CHILD", "CHILD"], ["INFANT"], ["CHILD", "INFANT"], ["ADULT", "INFANT", "INFANT"], ["INFANT"] * 9],
)
async def test_children_and_infants_need_adults(agency: Agency, customer: Customer, types: list[str]) -> None:
    journey, before = await agency.flight(), await agency.written()
    with refused("FAILED_PRECONDITION", "ADULT_REQUIRED"):
        await customer.book(journey, *types)
    assert await agency.written() == before
    assert await agency.taken(journey.flight_id) == set()


async def test_open_bookings_hold_at_most_nine_seats_per_flight(agency: Agency, customer: Customer) -> None:
    journey, other = await agency.flight(), await agency.flight()
    await customer.book(journey, *["ADULT"] * 5)
    with refused("RESOURCE_EXHAUSTED", "TOO_MANY_HELD_SEATS") as refusal:
        await customer.book(journey, *["ADULT"] * 5)
    assert refusal.info.metadata["limit"] == str(SEATS_AT_ONCE)
    assert refusal.retry_after_seconds is not None
    assert len(await agency.taken(journey.flight_id)) == 5
    await customer.book(journey, *["ADULT"] * 4)
    await customer.book(other, *["ADULT"] * 9)
    with refused("RESOURCE_EXHAUSTED", "TOO_MANY_HELD_SEATS"):
        await customer.book(journey)
    await agency.agent().book(journey)


async def test_a_refused_request_leaves_a_failed_booking(agency: Agency, customer: Customer) -> None:
    """The owner can read the failed booking by its id."""
    journey = await agency.flight()
    await agency.take(journey.flight_id, "10A")
    with refused("ABORTED", "SEAT_TAKEN"):
        await customer.book(journey, seats=[named_seat(journey.flight_id, "10A")])
    booking_id = await agency.database.fetchval("SELECT booking_id FROM bookings WHERE owner = $1", customer.name)
    left = await customer.get(pb.Booking(booking_id=str(booking_id)))
    assert (state_of(left), left.last_error, list(left.seats), left.hold_id) == ("FAILED", "SEAT_TAKEN", [], "")
    for change in (customer.pay(left), customer.cancel(left), customer.change(left, pb.BookedSeat(
        flight_id=journey.flight_id, seat_number="10B", passenger_id=left.passengers[0].passenger_id
    ))):  # fmt: skip
        with refused("FAILED_PRECONDITION", "BOOKING_FAILED") as refusal:
            await change
        assert refusal.info.metadata == {"last_error": "SEAT_TAKEN"}


# Requests that contradict themselves.


def misnamed(journey: Journey, *wrong: pb.CreateBookingRequest.NamedSeat) -> pb.CreateBookingRequest:
    """Returns a request of an adult and its infant with these seats."""
    return asked(journey, "ADULT", "INFANT", seats=wrong)


@pytest.mark.parametrize(
    ("flight_id", "passenger_index", "field"),
    [
        (flight_id("SH101"), 0, "seats[0].flight_id"),
        ("", 1, "seats[0].passenger_index"),
        ("", 2, "seats"),
        ("", -1, "seats[0].passenger_index"),
        ("", 9, "seats[0].passenger_index"),
    ],
)
async def test_a_named_seat_outside_the_booking_is_malformed(
    agency: Agency, customer: Customer, flight_id: str, passenger_index: int, field: str
) -> None:
    journey, before = await agency.journey(2), await agency.written()
    wrong = named_seat(flight_id or journey.flight_id, "10A", passenger_index)
    with refused("INVALID_ARGUMENT", "INVALID_FIELD") as refusal:
        await customer.desk.CreateBooking(misnamed(journey, wrong))
    assert field in refusal.fields
    assert await agency.written() == before


async def test_duplicate_seats_or_passengers_are_malformed(agency: Agency, customer: Customer) -> None:
    journey = await agency.flight()
    flight_id = journey.flight_id
    for twice in (
        [named_seat(flight_id, "10A", 0), named_seat(flight_id, "10A", 1)],
        [named_seat(flight_id, "10A", 0), named_seat(flight_id, "10B", 0)],
    ):
        with refused("INVALID_ARGUMENT", "INVALID_FIELD") as refusal:
            await customer.desk.CreateBooking(asked(journey, "ADULT", "ADULT", seats=twice))
        assert refusal.fields == ["seats"]


# Other services are down.


async def test_an_unreserved_booking_completes_after_the_outage(
    agency: Agency, customer: Customer, unreserved: pb.Booking
) -> None:
    await make_timer_due(agency.database, "booking", "reserve", unreserved.booking_id)
    reserved = await customer.becomes(unreserved, "SEATS_RESERVED")
    assert seats_of(reserved) == ["10A"]
    assert await agency.history(unreserved) == ["CREATED", "SEATS_RESERVED"]


@pytest.mark.parametrize(
    ("key", "answer"),
    [(str(uuid4()), ("UNAVAILABLE", "DEPENDENCY_UNAVAILABLE")), ("", ("DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED"))],
    ids=["a repeat finds it", "no repeat finds it"],
)
@pytest.mark.parametrize(
    "failure", [Unavailable, asyncpg.ConnectionDoesNotExistError], ids=["seat service", "database"]
)
async def test_a_booking_stays_open_when_replanning_fails(  # noqa: PLR0917
    agency: Agency,
    customer: Customer,
    monkeypatch: pytest.MonkeyPatch,
    key: str,
    answer: tuple[str, str],
    failure: type[Exception],
) -> None:
    """The first planned seat was taken, and a service or the database failed before a new plan."""
    monkeypatch.setattr(bookings, "CALL_ENDED_AFTER", timedelta(hours=1))
    journey = await agency.flight()
    real, plans = seating.plan, 0

    async def plan(*args: Any, **more: Any) -> list[SeatOf]:
        nonlocal plans
        plans += 1
        if plans == 2:
            raise failure
        seats = await real(*args, **more)
        if plans == 1:
            await agency.take(journey.flight_id, seats[0].seat_number)
        return seats

    monkeypatch.setattr(seating, "plan", plan)
    with refused(*answer):
        await customer.desk.CreateBooking(asked(journey, request_id=key))
    assert plans == 2
    booking_id = await agency.database.fetchval("SELECT booking_id FROM bookings WHERE owner = $1", customer.name)
    booking = await customer.get(pb.Booking(booking_id=str(booking_id)))
    assert state_of(booking) == "CREATED"
    await make_timer_due(agency.database, "booking", "reserve", booking.booking_id)
    await customer.becomes(booking, "SEATS_RESERVED")


async def test_bookings_count_for_their_guests_address(agency: Agency) -> None:
    journey, address = await agency.flight(), ((CLIENT_HEADER, f"203.0.113.{secrets.randbelow(256)}"),)

    async def book() -> pb.Booking:
        guest = agency.customer()
        request = pb.CreateBookingRequest(
            flight_id=journey.flight_id, passengers=people(*["ADULT"] * 9), request_id=str(uuid4())
        )
        booked: pb.Booking = await guest.desk.CreateBooking(request, metadata=address)
        return booked

    for _ in range(3):
        assert (await book()).state == pb.Booking.SEATS_RESERVED
    with refused("RESOURCE_EXHAUSTED", "TOO_MANY_HELD_SEATS") as refusal:
        await book()
    assert refusal.info.metadata == {"limit": "27", "counted_by": "ADDRESS"}
    assert "network address" in refusal.message
    # A guest of another address can book the rest.
    await agency.customer().book(journey)
