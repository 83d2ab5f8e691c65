"""Each manifest change reaches the seat service, also after outages (SEAT-17)."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from skyhigh.checkin.v1 import checkin_service_pb2 as pb
from skyhigh.flight.v1 import events_pb2 as flight_events
from skyhigh.seat.v1 import seat_service_pb2 as seat_pb

from checkin_service.peers import Peers
from services import db
from services.errors import Unavailable
from tests.callers import Caller, refused
from tests.checkin.airport import HOUR, Airport, Traveller, new_pnr, outcomes
from tests.checkin.parties import booked, log_in, party
from tests.instances import Database
from tests.waiting import eventually

Profile = seat_pb.PassengerProfile


@dataclass
class Wire:
    """The calls of check-in to the seat service; it can lose requests or responses."""

    sent: list[seat_pb.SyncPassengersRequest] = field(default_factory=list)
    down: bool = False
    answers_to_lose: int = 0

    def rows(self, flight_id: str) -> list[seat_pb.SyncPassengersRequest.ManifestPassenger]:
        """Returns the passengers of a flight that were sent, in order."""
        return [each for request in self.sent for each in request.passengers if each.flight_id == flight_id]

    def last(self, flight_id: str, passenger_id: str) -> seat_pb.SyncPassengersRequest.ManifestPassenger:
        """Returns the last message about a passenger."""
        return next(each for each in reversed(self.rows(flight_id)) if each.passenger_id == passenger_id)

    def departures(self, flight_id: str) -> list[seat_pb.SyncPassengersRequest.FlightTimes]:
        """Returns the departure times of a flight that were sent, in order."""
        return [each for request in self.sent for each in request.flights if each.flight_id == flight_id]


@pytest.fixture
def wire(monkeypatch: pytest.MonkeyPatch) -> Iterator[Wire]:
    """Records the calls to the seat service, and passes them on."""
    tapped, send = Wire(), Peers.sync_passengers

    async def sync(self: Peers, request: seat_pb.SyncPassengersRequest) -> Any:
        if tapped.down:
            raise Unavailable
        answer = await send(self, request)
        if tapped.answers_to_lose:
            tapped.answers_to_lose -= 1
            raise Unavailable
        tapped.sent.append(request)
        return answer

    monkeypatch.setattr(Peers, "sync_passengers", sync)
    yield tapped
    tapped.down = False


async def is_known(airport: Airport) -> None:
    """Waits until the seat service has acknowledged all changes of the flight."""

    async def known() -> bool:
        async with db.transaction(airport.pool) as conn:
            return not await conn.fetchval(
                """
                SELECT EXISTS (SELECT FROM entitlements WHERE flight_id = $1 AND known_revision < revision)
                       OR EXISTS (SELECT FROM flights WHERE flight_id = $1 AND known_times_revision < times_revision)
                """,
                airport.flight_id,
            )

    await eventually(known)


async def test_an_import_is_sent_before_its_response(airport: Airport, wire: Wire) -> None:
    await airport.imported(
        pb.ManifestPassenger(
            passenger_id="P1", pnr="XK4T7Q", given_name="A", last_name="B", special_services=["WCHR"], cabin=pb.BUSINESS
        ),
        pb.ManifestPassenger(
            passenger_id="P2",
            pnr="XK4T7Q",
            given_name="A",
            last_name="B",
            type=pb.INFANT,
            accompanying_passenger_id="P1",
        ),
    )
    adult, infant = wire.last(airport.flight_id, "P1"), wire.last(airport.flight_id, "P2")
    assert (adult.pnr, adult.ended, adult.profile.type) == ("XK4T7Q", False, Profile.ADULT)
    assert (adult.profile.cabin, list(adult.profile.special_services)) == (seat_pb.Seat.BUSINESS, ["INFT", "WCHR"])
    assert infant.profile.type == Profile.INFANT
    await is_known(airport)


async def test_only_facts_that_affect_seats_are_sent(airport: Airport, wire: Wire) -> None:
    traveller = await airport.traveller("P1")
    await is_known(airport)
    wire.sent.clear()
    await airport.traveller("P1", pnr=traveller.pnr, given_name="Eve", contact_email="eve@example.com")
    assert wire.rows(airport.flight_id) == []
    await airport.traveller("P1", pnr=traveller.pnr, cabin=pb.BUSINESS)
    assert [each.revision for each in wire.rows(airport.flight_id)] == [2]


async def test_the_seat_service_learns_which_booking_includes_a_seat(airport: Airport, wire: Wire) -> None:
    its = party(booked(airport.flight_id))
    adult, infant, child = (each.passenger_id for each in its.confirmed.passengers)
    # If the passengers are imported first, with the booking's locator, the import marks that a seat is included.
    await airport.checkin.service("booking").ReserveLocator(
        pb.ReserveLocatorRequest(pnr=its.confirmed.pnr, booking_id=its.confirmed.booking_id)
    )
    await airport.traveller(adult, pnr=its.confirmed.pnr, last_name="Müller")
    assert wire.last(airport.flight_id, adult).seat_included
    await airport.tell("booking.confirmed.v1", its.confirmed)
    await is_known(airport)
    included = {each: wire.last(airport.flight_id, each).seat_included for each in (adult, infant, child)}
    assert included == {adult: True, infant: False, child: True}
    await airport.tell("booking.cancelled.v1", its.cancelled)
    await is_known(airport)
    left = [wire.last(airport.flight_id, each) for each in (adult, infant, child)]
    assert [(each.ended, each.seat_included) for each in left] == [(True, False)] * 3


async def test_an_adult_is_sent_again_when_its_infant_changes(airport: Airport, wire: Wire) -> None:
    pnr = new_pnr()
    await airport.travellers("P1", "P2", pnr=pnr)
    await airport.traveller("P3", pnr=pnr, type=pb.INFANT, accompanying_passenger_id="P1")
    assert list(wire.last(airport.flight_id, "P1").profile.special_services) == ["INFT"]
    await airport.traveller("P3", pnr=pnr, type=pb.INFANT, accompanying_passenger_id="P2")
    assert list(wire.last(airport.flight_id, "P1").profile.special_services) == []
    assert list(wire.last(airport.flight_id, "P2").profile.special_services) == ["INFT"]


async def test_adults_are_sent_again_when_the_partys_children_change(airport: Airport, wire: Wire) -> None:
    def needs(passenger_id: str) -> list[str]:
        return list(wire.last(airport.flight_id, passenger_id).profile.special_services)

    pnr = new_pnr()
    await airport.travellers("P1", "P2", pnr=pnr)
    await airport.traveller("Q1")
    await airport.traveller("P3", pnr=pnr, type=pb.CHILD)
    assert [needs(each) for each in ("P1", "P2", "P3", "Q1")] == [["CHLD"], ["CHLD"], [], []]
    known = wire.last(airport.flight_id, "P1").revision
    await airport.traveller("P4", pnr=pnr, type=pb.CHILD)
    assert wire.last(airport.flight_id, "P1").revision == known, "a second child changes nothing"
    await airport.traveller("P4", pnr=pnr, type=pb.ADULT)
    assert needs("P4") == ["CHLD"]
    await airport.traveller("P3", pnr=new_pnr(), type=pb.CHILD)
    assert [needs(each) for each in ("P1", "P2", "P4")] == [[], [], []]


async def test_unsent_changes_are_sent_after_an_outage(airport: Airport, wire: Wire) -> None:
    wire.down = True
    traveller = await airport.traveller("P1")
    assert wire.rows(airport.flight_id) == []
    wire.down = False
    await is_known(airport)
    assert wire.last(airport.flight_id, "P1").pnr == traveller.pnr


async def test_a_lost_response_is_requested_again(airport: Airport, wire: Wire) -> None:
    wire.answers_to_lose = 2
    await airport.traveller("P1")
    await is_known(airport)
    assert wire.answers_to_lose == 0


async def test_a_login_sends_its_own_passengers(airport: Airport, wire: Wire, checkin_database: Database) -> None:
    traveller, other = await airport.traveller("P1"), await airport.traveller("P2")
    await is_known(airport)
    wire.sent.clear()
    # This sets no timer, so only the login sends the passengers.
    await checkin_database.execute("UPDATE entitlements SET known_revision = 0 WHERE flight_id = $1", airport.flight_id)
    await log_in(airport, traveller.pnr, traveller.last_name)
    assert [each.passenger_id for each in wire.rows(airport.flight_id)] == ["P1"]
    await log_in(airport, other.pnr, other.last_name)
    await is_known(airport)


async def test_a_cancelled_booking_ends_its_passengers(airport: Airport, wire: Wire) -> None:
    its = party(booked(airport.flight_id))
    await airport.tell("booking.confirmed.v1", its.confirmed)
    await is_known(airport)
    await airport.tell("booking.cancelled.v1", its.cancelled)
    await is_known(airport)
    for each in its.confirmed.passengers:
        last = wire.last(airport.flight_id, each.passenger_id)
        assert (last.ended, last.pnr) == (True, its.confirmed.pnr)


async def test_an_import_entitles_no_passenger_of_a_cancelled_booking(airport: Airport, wire: Wire) -> None:
    its = party(booked(airport.flight_id))
    await airport.tell("booking.confirmed.v1", its.confirmed)
    await airport.tell("booking.cancelled.v1", its.cancelled)
    await is_known(airport)
    adult = its.confirmed.passengers[0].passenger_id
    with refused("INVALID_ARGUMENT", "INVALID_FIELD") as refusal:
        await airport.traveller(adult)
    assert refusal.fields == ["passengers[0].passenger_id"]
    await is_known(airport)
    assert wire.last(airport.flight_id, adult).ended


async def test_a_cancelled_flight_ends_all_its_passengers(airport: Airport, wire: Wire) -> None:
    await airport.travellers("P1", "P2")
    event = flight_events.FlightCancelled(flight_id=airport.flight_id, reason="STRIKE")
    event.cancel_time.GetCurrentTime()
    await airport.tell("flight.cancelled.v1", event)
    await is_known(airport)
    assert [wire.last(airport.flight_id, each).ended for each in ("P1", "P2")] == [True, True]


async def test_a_new_departure_is_sent_with_a_newer_revision(airport: Airport, wire: Wire) -> None:
    await airport.set_flight(departs_in_seconds=8 * HOUR)
    await airport.set_flight(departs_in_seconds=9 * HOUR)
    await is_known(airport)
    sent = wire.departures(airport.flight_id)
    assert sent[-1].departure_time.seconds - sent[0].departure_time.seconds >= HOUR - 60
    assert [each.revision for each in sent] == sorted({each.revision for each in sent})


async def test_a_large_manifest_is_sent_in_batches(airport: Airport, wire: Wire) -> None:
    await airport.imported(
        *(
            pb.ManifestPassenger(passenger_id=f"G-{n}", pnr="GRP222", given_name="Sam", last_name="Band")
            for n in range(450)
        )
    )
    await is_known(airport)
    assert {each.passenger_id for each in wire.rows(airport.flight_id)} == {f"G-{n}" for n in range(450)}
    assert max(len(each.passengers) for each in wire.sent) <= 200


async def test_of_nine_needs_eight_with_the_infant_are_sent(airport: Airport, wire: Wire) -> None:
    codes = ["AVML", "BLND", "CHML", "DEAF", "GFML", "KSML", "VGML", "WCHR"]
    adult = await airport.traveller("P1", special_services=codes)
    await airport.traveller("P2", pnr=adult.pnr, type=pb.INFANT, accompanying_passenger_id="P1")
    needs = wire.last(airport.flight_id, "P1").profile.special_services
    assert len(needs) == 8
    assert "INFT" in needs


async def test_a_check_in_does_not_complete_with_unsent_changes(airport: Airport, wire: Wire) -> None:
    traveller = await airport.traveller("P1")
    await traveller.start(seat_number="14C")
    wire.down = True
    await airport.traveller("P1", pnr=traveller.pnr, special_services=["VGML"])
    with refused("UNAVAILABLE", "DEPENDENCY_UNAVAILABLE"):
        await traveller.declare(10)
    assert (await traveller.get()).state == pb.CheckIn.INITIATED
    wire.down = False
    assert (await traveller.declare(10)).state == pb.CheckIn.COMPLETED


async def test_a_paid_check_in_completes_once_changes_are_sent(airport: Airport, wire: Wire) -> None:
    traveller = await airport.traveller("P1")
    await traveller.waiting()
    wire.down = True
    await airport.traveller("P1", pnr=traveller.pnr, special_services=["VGML"])
    await traveller.pay()
    assert (await traveller.get()).state == pb.CheckIn.WAITING_FOR_PAYMENT
    wire.down = False
    await traveller.becomes(pb.CheckIn.COMPLETED)


async def test_no_pass_is_issued_with_unsent_changes(airport: Airport, wire: Wire) -> None:
    traveller = await airport.traveller("P1")
    await traveller.completed()
    wire.down = True
    await airport.traveller("P1", pnr=traveller.pnr, special_services=["VGML"])
    asked = pb.GetBoardingPassRequest(checkin_id=traveller.checkin_id)
    with refused("UNAVAILABLE", "DEPENDENCY_UNAVAILABLE"):
        await traveller.desk.GetBoardingPass(asked)
    wire.down = False
    assert (await traveller.desk.GetBoardingPass(asked)).passenger_id == "P1"


async def fit(airport: Airport, traveller: Traveller, **change: Any) -> None:
    """Changes a passenger's entry on the manifest."""
    await airport.traveller(traveller.passenger_id, pnr=traveller.pnr, **change)


# A seat in an exit row, and a special service that rules it out.
EXIT_ROW_SEAT = "12A"
UNFIT = {"special_services": ["WCHC"]}


@pytest.mark.parametrize("change", [UNFIT, {"cabin": pb.BUSINESS}, {"type": pb.CHILD}])
async def test_an_unfit_seat_is_refused_at_start(airport: Airport, wire: Wire, change: dict[str, Any]) -> None:
    traveller = await airport.traveller("P1")
    await traveller.seats.confirm(await traveller.hold(EXIT_ROW_SEAT))
    await fit(airport, traveller, **change)
    with refused("FAILED_PRECONDITION", "SEAT_REQUIRED"):
        await traveller.start(hold_id="")
    assert await traveller.seat() == ""


async def test_the_check_in_sends_a_missed_change(airport: Airport, wire: Wire) -> None:
    traveller = await airport.traveller("P1")
    await traveller.seats.confirm(await traveller.hold(EXIT_ROW_SEAT))
    wire.down = True
    await fit(airport, traveller, **UNFIT)
    with refused("UNAVAILABLE", "DEPENDENCY_UNAVAILABLE"):
        await traveller.start(hold_id="")
    wire.down = False
    with refused("FAILED_PRECONDITION", "SEAT_REQUIRED"):
        await traveller.start(hold_id="")


async def test_an_unfit_hold_is_refused_at_start(airport: Airport, wire: Wire) -> None:
    traveller = await airport.traveller("P1")
    hold = await traveller.hold(EXIT_ROW_SEAT)
    await fit(airport, traveller, **UNFIT)
    with refused("FAILED_PRECONDITION", "HOLD_CANCELLED"):
        await traveller.start(hold_id=hold.hold_id)


async def test_a_started_check_in_with_unfit_seat_needs_another(airport: Airport, wire: Wire) -> None:
    traveller = await airport.traveller("P1")
    await traveller.start(seat_number=EXIT_ROW_SEAT)
    await fit(airport, traveller, **UNFIT)
    assert (await traveller.get()).seat_number == ""
    with refused("FAILED_PRECONDITION", "SEAT_REQUIRED"):
        await traveller.declare(10)
    await traveller.seats.confirm(await traveller.hold("14C"))
    await traveller.has_seat("14C")
    assert (await traveller.declare(10)).state == pb.CheckIn.COMPLETED


async def test_a_completed_check_in_with_unfit_seat_is_cancelled(airport: Airport, wire: Wire) -> None:
    traveller = await airport.traveller("P1")
    await traveller.start(seat_number=EXIT_ROW_SEAT)
    await traveller.declare(10)
    await fit(airport, traveller, **UNFIT)
    cancelled = await traveller.get()
    assert (cancelled.state, cancelled.cancel_reason) == (pb.CheckIn.CANCELLED, "SEAT_NO_LONGER_FITS")
    with refused("FAILED_PRECONDITION", "CHECK_IN_NOT_COMPLETED"):
        await traveller.desk.GetBoardingPass(pb.GetBoardingPassRequest(checkin_id=traveller.checkin_id))
    assert await airport.mails(traveller) == ["Your check-in was cancelled: SH101"]


async def test_a_lost_response_about_a_released_seat_cancels_too(airport: Airport, wire: Wire) -> None:
    traveller = await airport.traveller("P1")
    await traveller.start(seat_number=EXIT_ROW_SEAT)
    await traveller.declare(10)
    wire.answers_to_lose = 1
    await fit(airport, traveller, **UNFIT)
    await traveller.becomes(pb.CheckIn.CANCELLED)


async def test_unfit_seats_never_complete_during_concurrent_changes(airport: Airport, wire: Wire) -> None:
    travellers = await airport.strangers(12)
    for n, each in enumerate(travellers):
        await each.seats.confirm(await each.hold(f"{12 + n // 6}{'ABCDEF'[n % 6]}"))
    await asyncio.gather(
        *(each.start(hold_id="") for each in travellers),
        *(fit(airport, each, **UNFIT) for each in travellers),
        return_exceptions=True,
    )
    started = [each for each in travellers if each.checkin_id]
    results = await asyncio.gather(*(each.declare() for each in started), return_exceptions=True)
    assert outcomes(results).keys() <= {"OK", "SEAT_REQUIRED"}
    for each in started:
        await airport.at_rest(each)
        row = await airport.row(each)
        assert row.state == "CANCELLED" or row.seat_number in (None, await each.seat())
        assert row.state != "COMPLETED" or not (row.seat_number or "").startswith("12")


async def test_a_cancelled_bookings_session_gets_no_seats(airport: Airport, wire: Wire) -> None:
    its = party(booked(airport.flight_id))
    await airport.tell("booking.confirmed.v1", its.confirmed)
    await is_known(airport)
    child = its.traveller(airport, 2)
    kept = await child.hold("14C")
    await airport.tell("booking.cancelled.v1", its.cancelled)
    await is_known(airport)
    with refused("FAILED_PRECONDITION", "PASSENGER_NOT_ENTITLED"):
        await child.hold("15C")
    with refused("FAILED_PRECONDITION", "PASSENGER_NOT_ENTITLED"):
        await child.seats.confirm(kept)
    assert (await child.seats.get(kept)).state == seat_pb.Hold.CANCELLED
    with refused("NOT_FOUND", "PASSENGER_NOT_FOUND"):
        await child.start(hold_id="")
    with refused("NOT_FOUND", "TRIP_NOT_FOUND"):
        await log_in(airport, its.confirmed.pnr, "Müller")
    with refused("NOT_FOUND", "TRIP_NOT_FOUND"):
        await child.desk.GetTrip(pb.GetTripRequest(pnr=its.confirmed.pnr))


async def test_a_party_of_99_can_log_in_and_hold(airport: Airport, wire: Wire) -> None:
    await airport.imported(
        *(
            pb.ManifestPassenger(passenger_id=f"G-{n}", pnr="GRP333", given_name="Sam", last_name="Band")
            for n in range(99)
        )
    )
    anybody: Caller = airport.checkin.anybody("")
    session = await anybody.CreateSession(pb.CreateSessionRequest(pnr="GRP333", last_name="Band"))
    assert (len(session.trip.passengers), len(session.token) < 1000) == (99, True)
    hold = await airport.seats.anybody(session.token).hold(airport.flight_id, "20C", "G-98")
    assert hold.seats[0].seat_number == "20C"
    assert (await airport.checkin.anybody(session.token).GetTrip(pb.GetTripRequest(pnr="GRP333"))).pnr == "GRP333"
