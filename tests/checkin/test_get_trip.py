"""GetTrip: the passengers of a locator with their flights, seats and check-ins."""

from __future__ import annotations

from typing import TYPE_CHECKING

from skyhigh.checkin.v1 import checkin_service_pb2 as pb
from skyhigh.checkin.v1.checkin_service_pb2_grpc import CheckInServiceStub

from checkin_service.service import CHECKIN_SERVICE
from tests.callers import refused
from tests.checkin.airport import HOUR, Airport, new_pnr
from tests.instances import running

if TYPE_CHECKING:
    from tests.conftest import World


async def test_adults_come_first_with_seat_and_check_in(airport: Airport) -> None:
    pnr = new_pnr()
    child = await airport.traveller("P1", pnr=pnr, type=pb.CHILD)
    adult = await airport.traveller("P2", pnr=pnr)
    await airport.traveller("P0", pnr=pnr, type=pb.INFANT, accompanying_passenger_id="P2")
    started = await adult.start(seat_number="20A")
    await child.seats.confirm(await child.hold("20B"))
    trip = await adult.desk.GetTrip(pb.GetTripRequest(pnr=pnr))
    assert [(each.passenger_id, each.type) for each in trip.passengers] == [
        ("P2", pb.ADULT),
        ("P1", pb.CHILD),
        ("P0", pb.INFANT),
    ]
    segments = [each.segments[0] for each in trip.passengers]
    assert [each.seat_number for each in segments] == ["20A", "20B", "INF"]
    assert [each.checkin_id for each in segments] == [started.checkin_id, "", ""]
    assert segments[0].checkin_state == pb.CheckIn.INITIATED
    window = segments[0].check_in_close_time.seconds - segments[0].check_in_open_time.seconds
    assert (segments[0].flight_number, window) == ("SH101", 23 * HOUR)


async def test_held_seats_and_cancelled_check_ins_are_not_shown(airport: Airport) -> None:
    traveller = await airport.traveller()
    await traveller.start()
    await traveller.cancel()
    await airport.at_rest(traveller)
    await traveller.hold()
    trip = await traveller.desk.GetTrip(pb.GetTripRequest(pnr=traveller.pnr))
    segment = trip.passengers[0].segments[0]
    assert (segment.seat_number, segment.checkin_id, segment.checkin_state) == ("", "", 0)


async def test_a_past_trip_is_not_found(airport: Airport) -> None:
    traveller = await airport.traveller()
    asked = pb.GetTripRequest(pnr=traveller.pnr)
    await airport.set_flight(departs_in_seconds=-23 * HOUR)
    assert len((await traveller.desk.GetTrip(asked)).passengers) == 1
    await airport.set_flight(departs_in_seconds=-25 * HOUR)
    with refused("NOT_FOUND", "TRIP_NOT_FOUND"):
        await traveller.desk.GetTrip(asked)


async def test_a_foreign_and_a_missing_trip_look_the_same(airport: Airport) -> None:
    traveller, stranger = await airport.traveller("P1"), await airport.traveller("P2")
    with refused("NOT_FOUND", "TRIP_NOT_FOUND") as foreign:
        await stranger.desk.GetTrip(pb.GetTripRequest(pnr=traveller.pnr))
    with refused("NOT_FOUND", "TRIP_NOT_FOUND") as missing:
        await stranger.desk.GetTrip(pb.GetTripRequest(pnr=new_pnr()))
    assert foreign.status == missing.status
    assert (await airport.agent.GetTrip(pb.GetTripRequest(pnr=traveller.pnr))).pnr == traveller.pnr


async def test_check_in_seats_are_shown_without_the_seat_service(
    airport: Airport, world: World, variables: dict[str, str]
) -> None:
    seated, unseated = await airport.travellers("P1", "P2")
    await seated.start(seat_number="12A")
    nowhere = variables | {"SKYHIGH_SEAT_ADDRESS": "127.0.0.1:1"}
    async with running(world, CHECKIN_SERVICE, CheckInServiceStub, **nowhere) as alone:
        trip = await alone.agent().GetTrip(pb.GetTripRequest(pnr=unseated.pnr))
        assert [each.segments[0].seat_number for each in trip.passengers] == ["12A", ""]
        with refused("UNAVAILABLE", "DEPENDENCY_UNAVAILABLE"):
            await alone.agent().StartCheckIn(pb.StartCheckInRequest(flight_id=airport.flight_id, passenger_id="P2"))
    assert len((await airport.agent.ListCheckIns(pb.ListCheckInsRequest(flight_id=airport.flight_id))).checkins) == 1
