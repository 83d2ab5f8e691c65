"""booking.confirmed and booking.cancelled change manifests, in any order (BKG-7)."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from uuid import UUID

import pytest
from google.protobuf.message import Message
from skyhigh.checkin.v1 import checkin_service_pb2 as pb
from skyhigh.checkin.v1 import events_pb2 as checkin_events
from skyhigh.payment.v1 import payment_service_pb2

from checkin_service import handlers
from checkin_service.check_ins import start
from checkin_service.peers import Seat
from services import db
from services.db import Conn
from services.inbox import Handler
from tests.callers import refused
from tests.checkin.airport import HOUR, Airport, new_pnr
from tests.checkin.parties import booked, log_in, party
from tests.dates import NEXT_DAY, new_flight_id
from tests.instances import Database
from tests.seat.rules import at_once

Intent = payment_service_pb2.PaymentIntent


async def manifest(database: Database, *flight_ids: str) -> dict[str, list[str]]:
    """Returns the passenger ids on the manifests by flight."""
    rows = await database.fetch(
        "SELECT flight_id, passenger_id FROM passengers WHERE flight_id = ANY($1) ORDER BY passenger_id", flight_ids
    )
    return {flight: [row["passenger_id"] for row in rows if row["flight_id"] == flight] for flight in flight_ids}


async def test_a_booked_passenger_can_log_in_and_check_in(airport: Airport, checkin_database: Database) -> None:
    onward = new_flight_id(on=NEXT_DAY)
    its = party(booked(airport.flight_id), booked(onward, departs_in_seconds=30 * HOUR, number="SH202"))
    await airport.tell("booking.confirmed.v1", its.confirmed)
    trip = await log_in(airport, its.confirmed.pnr.lower(), "Mueller")
    assert [(each.given_name, pb.PassengerType.Name(each.type)) for each in trip.passengers] == [
        ("Zoë", "ADULT"),
        ("Max", "CHILD"),
        ("Ada", "INFANT"),
    ]
    assert [(each.flight_id, each.flight_number, each.cabin) for each in trip.passengers[0].segments] == [
        (airport.flight_id, "SH101", pb.ECONOMY),
        (onward, "SH202", pb.ECONOMY),
    ]
    facts = its.confirmed.flights[1]
    segment = trip.passengers[0].segments[1]
    assert segment.departure_time == facts.departure_time
    assert segment.check_in_open_time.ToDatetime() == facts.departure_time.ToDatetime() - timedelta(hours=30)
    assert segment.check_in_close_time.ToDatetime() == facts.departure_time.ToDatetime() - timedelta(minutes=50)
    adult, infant = its.traveller(airport, 0), its.traveller(airport, 1)
    assert (await adult.completed(20)).state == pb.CheckIn.COMPLETED
    await infant.start(hold_id="")
    assert (await infant.declare()).state == pb.CheckIn.COMPLETED
    boarding_pass = await adult.desk.GetBoardingPass(pb.GetBoardingPassRequest(checkin_id=adult.checkin_id))
    assert boarding_pass.pnr == its.confirmed.pnr


@pytest.mark.parametrize(
    ("cabin", "fare"),
    [("ECONOMY", "STANDARD"), ("PREMIUM_ECONOMY", "STANDARD"), ("BUSINESS", "BUSINESS"), ("FIRST", "BUSINESS")],
)
async def test_the_fare_is_that_of_the_cabin(airport: Airport, cabin: str, fare: str) -> None:
    its = party(booked(airport.flight_id), cabin=cabin)
    await airport.tell("booking.confirmed.v1", its.confirmed)
    adult = its.confirmed.passengers[0]
    found = await airport.checkin.service().GetPassenger(
        pb.GetPassengerRequest(flight_id=airport.flight_id, passenger_id=adult.passenger_id)
    )
    assert (found.fare, pb.Cabin.Name(found.cabin)) == (fare, cabin)
    assert (found.contact_email, list(found.special_services)) == (its.confirmed.contact_email, ["INFT", "CHLD"])


async def test_known_facts_of_flight_and_passenger_are_kept(airport: Airport, checkin_database: Database) -> None:
    its = party(booked(airport.flight_id))
    adult = its.confirmed.passengers[0]
    await airport.tell("booking.confirmed.v1", its.confirmed)
    # An agent adds a special service to the passenger.
    await airport.imported(
        pb.ManifestPassenger(
            passenger_id=adult.passenger_id,
            pnr=its.confirmed.pnr,
            given_name=adult.given_name,
            last_name=adult.last_name,
            special_services=["WCHR"],
        )
    )
    await airport.tell("booking.confirmed.v1", its.confirmed)
    found = await airport.checkin.service().GetPassenger(
        pb.GetPassengerRequest(flight_id=airport.flight_id, passenger_id=adult.passenger_id)
    )
    assert "WCHR" in found.special_services
    gate = "SELECT gate FROM flights WHERE flight_id = $1"
    assert await checkin_database.fetchval(gate, airport.flight_id) == "A12"


async def test_a_cancelled_booking_removes_passengers_and_check_ins(
    airport: Airport, checkin_database: Database
) -> None:
    onward = new_flight_id(on=NEXT_DAY)
    its = party(booked(airport.flight_id), booked(onward, departs_in_seconds=30 * HOUR))
    other = await airport.traveller("OTHER")
    await airport.tell("booking.confirmed.v1", its.confirmed)
    adult, infant, child = (its.traveller(airport, n) for n in range(3))
    paid = await adult.completed(30)
    assert paid.fee.units > 0
    await infant.start(hold_id="")
    await child.start(seat_number="25A")
    await other.start()
    await airport.tell("booking.cancelled.v1", its.cancelled)
    for each in (adult, infant, child):
        row = await airport.row(each)
        assert (row.state, row.cancel_reason) == ("CANCELLED", "BOOKING_CANCELLED")
        (told,) = await airport.told(each, "checkin.cancelled.v1", checkin_events.CheckInCancelled)
        assert told.reason == "BOOKING_CANCELLED"
        await airport.at_rest(each)
    assert [each.state for each in airport.payments.of(adult.checkin_id)] == [Intent.REFUNDED]
    assert (await adult.seat(), await child.seat()) == ("", "")
    assert await manifest(checkin_database, airport.flight_id, onward) == {airport.flight_id: ["OTHER"], onward: []}
    assert (await other.get()).state == pb.CheckIn.INITIATED
    with refused("NOT_FOUND", "TRIP_NOT_FOUND"):
        await log_in(airport, its.confirmed.pnr, "Müller")
    with refused("NOT_FOUND", "PASSENGER_NOT_FOUND"):
        await child.start(hold_id="")


async def test_a_late_confirmation_event_changes_nothing(airport: Airport, checkin_database: Database) -> None:
    its = party(booked(airport.flight_id))
    await airport.tell("booking.cancelled.v1", its.cancelled)
    await airport.tell("booking.confirmed.v1", its.confirmed)
    assert await manifest(checkin_database, airport.flight_id) == {airport.flight_id: []}


@pytest.mark.parametrize("own_locator", [True, False])
async def test_an_import_does_not_restore_a_cancelled_passenger(
    airport: Airport, checkin_database: Database, own_locator: bool
) -> None:
    its = party(booked(airport.flight_id))
    await airport.tell("booking.confirmed.v1", its.confirmed)
    await airport.tell("booking.cancelled.v1", its.cancelled)
    adult = its.confirmed.passengers[0]
    line = pb.ManifestPassenger(
        passenger_id=adult.passenger_id,
        pnr=its.confirmed.pnr if own_locator else new_pnr(),
        given_name=adult.given_name,
        last_name=adult.last_name,
    )
    other = pb.ManifestPassenger(passenger_id="OTHER", pnr=new_pnr(), given_name="Mal", last_name="Omega")
    answer = await airport.imported(line, other)
    (rejected,) = answer.rejected
    assert (answer.added, rejected.index, rejected.wrong_fields[0].field) == (1, 0, "passengerId")
    assert await manifest(checkin_database, airport.flight_id) == {airport.flight_id: ["OTHER"]}


async def test_confirmation_and_cancellation_in_any_order_agree(airport: Airport, checkin_database: Database) -> None:
    async def apply(handle: Handler, event: Message) -> None:
        async with db.transaction(airport.pool) as conn:
            await handle(conn, event)

    for _ in range(30):
        onward = new_flight_id(on=NEXT_DAY)
        its = party(booked(onward), booked(airport.flight_id))
        results = await at_once(
            *(apply(handlers.on_booking_confirmed, its.confirmed) for _ in range(2)),
            apply(handlers.on_booking_cancelled, its.cancelled),
        )
        assert [each for each in results if each is not None] == []
        assert await manifest(checkin_database, airport.flight_id, onward) == {airport.flight_id: [], onward: []}


async def test_a_concurrent_start_waits_for_the_cancellation(airport: Airport, checkin_database: Database) -> None:
    its = party(booked(airport.flight_id))
    await airport.tell("booking.confirmed.v1", its.confirmed)
    child = its.traveller(airport, 2)
    await child.seats.confirm(await child.hold("14C"))
    async with airport.in_the_middle_of(handlers.on_booking_cancelled, its.cancelled):
        started = asyncio.ensure_future(child.start(hold_id=""))
    with refused("NOT_FOUND", "PASSENGER_NOT_FOUND"):
        await started
    assert await checkin_database.fetchval("SELECT count(*) FROM check_ins WHERE pnr = $1", child.pnr) == 0


async def test_a_check_in_started_just_before_is_cancelled(airport: Airport, checkin_database: Database) -> None:
    its = party(booked(airport.flight_id))
    await airport.tell("booking.confirmed.v1", its.confirmed)
    child = its.traveller(airport, 2)
    hold = await child.seats.confirm(await child.hold("14C"))

    async def begin(conn: Conn, _: Message) -> None:
        """Writes what StartCheckIn writes."""
        entry = "SELECT FROM passengers WHERE flight_id = $1 AND passenger_id = $2 FOR SHARE"
        await conn.execute(entry, airport.flight_id, child.passenger_id)
        begun = await start.start(
            conn,
            flight_id=airport.flight_id,
            passenger_id=child.passenger_id,
            pnr=child.pnr,
            allowance_grams=25_000,
            seat=Seat("14C", UUID(hold.hold_id), None),
            actor="test",
        )
        assert begun is not None

    async with airport.in_the_middle_of(begin, its.confirmed):
        told = asyncio.ensure_future(airport.tell("booking.cancelled.v1", its.cancelled))
    await told
    live = "SELECT count(*) FROM check_ins WHERE passenger_id = $1 AND state <> 'CANCELLED'"
    assert await checkin_database.fetchval(live, child.passenger_id) == 0
    assert await manifest(checkin_database, airport.flight_id) == {airport.flight_id: []}


async def test_a_start_during_the_cancellation_is_cancelled_or_refused(
    airport: Airport, checkin_database: Database
) -> None:
    for n in range(10):
        its = party(booked(airport.flight_id))
        await airport.tell("booking.confirmed.v1", its.confirmed)
        child = its.traveller(airport, 2)
        hold = await child.hold(f"{14 + n}A")
        await at_once(child.start(hold_id=hold.hold_id), airport.tell("booking.cancelled.v1", its.cancelled))
        left = "SELECT count(*) FROM check_ins WHERE passenger_id = $1 AND state <> 'CANCELLED'"
        assert await checkin_database.fetchval(left, child.passenger_id) == 0


async def test_a_flown_passenger_stays_on_the_manifest(airport: Airport, checkin_database: Database) -> None:
    its = party(booked(airport.flight_id))
    await airport.tell("booking.confirmed.v1", its.confirmed)
    child = its.traveller(airport, 2)
    await child.completed(10)
    await checkin_database.execute(
        """
        UPDATE flights SET departure_time = now() - interval '1 h', arrival_time = now() + interval '1 h'
        WHERE flight_id = $1
        """,
        airport.flight_id,
    )
    await airport.tell("booking.cancelled.v1", its.cancelled)
    assert (await child.get()).state == pb.CheckIn.COMPLETED
    # Passengers who missed the flight stay on its manifest too, as it was at departure.
    everyone = [each.passenger_id for each in its.confirmed.passengers]
    assert await manifest(checkin_database, airport.flight_id) == {airport.flight_id: everyone}
