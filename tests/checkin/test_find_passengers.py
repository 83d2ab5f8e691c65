"""FindPassengers: for services whose rows depend on an entitlement (WL-7)."""

from __future__ import annotations

from datetime import UTC, datetime

from skyhigh.checkin.v1 import checkin_service_pb2 as pb
from skyhigh.flight.v1 import events_pb2 as flight

from checkin_service.manifests import flights
from services import db
from tests.checkin.airport import HOUR, Airport, seconds
from tests.dates import new_flight_id


def asked(airport: Airport, *passenger_ids: str, flight_ids: tuple[str, ...] = ()) -> pb.FindPassengersRequest:
    return pb.FindPassengersRequest(
        passengers=[
            pb.FindPassengersRequest.FlightPassenger(flight_id=airport.flight_id, passenger_id=passenger_id)
            for passenger_id in passenger_ids
        ],
        flight_ids=flight_ids,
    )


async def found(airport: Airport, request: pb.FindPassengersRequest) -> pb.FindPassengersResponse:
    answer: pb.FindPassengersResponse = await airport.checkin.service().FindPassengers(request)
    return answer


async def test_found_passengers_equal_the_manifest(airport: Airport) -> None:
    adult = await airport.traveller("P1", special_services=["VGML"])
    await airport.traveller("P2", pnr=adult.pnr, type=pb.INFANT, accompanying_passenger_id="P1")
    answer = await found(airport, asked(airport, "P1", "P2", "P1", "P9"))
    assert {each.passenger.passenger_id for each in answer.passengers} == {"P1", "P2"}
    (parent,) = [each.passenger for each in answer.passengers if each.passenger.passenger_id == "P1"]
    assert (parent.pnr, list(parent.special_services)) == (adult.pnr, ["VGML", "INFT"])
    assert [each.flight_id for each in answer.flights] == [airport.flight_id]


async def test_a_flight_has_close_time_and_closed_flag(airport: Airport) -> None:
    await airport.set_flight(departs_in_seconds=HOUR, check_in_closes_before=seconds(600))
    (open_flight,) = (await found(airport, asked(airport, flight_ids=(airport.flight_id, new_flight_id())))).flights
    closes_in = open_flight.check_in_close_time.ToDatetime(tzinfo=UTC) - datetime.now(UTC)
    assert not open_flight.check_in_closed
    assert open_flight.origin == "FRA"
    assert 2900 < closes_in.total_seconds() < 3001
    await airport.set_flight(departs_in_seconds=HOUR, check_in_closes_before=seconds(HOUR + 60))
    (closed,) = (await found(airport, asked(airport, flight_ids=(airport.flight_id,)))).flights
    assert closed.check_in_closed
    assert not closed.HasField("cancel_time")


async def test_a_cancelled_flight_has_cancel_time_and_reason(airport: Airport) -> None:
    await airport.traveller("P1")
    event = flight.FlightCancelled(flight_id=airport.flight_id, reason="STRIKE")
    event.cancel_time.GetCurrentTime()
    async with db.transaction(airport.pool) as conn:
        await flights.cancel(
            conn, event.flight_id, reason=event.reason, cancel_time=event.cancel_time.ToDatetime(tzinfo=UTC)
        )
    (cancelled,) = (await found(airport, asked(airport, "P1"))).flights
    assert (cancelled.cancel_reason, cancelled.HasField("cancel_time")) == ("STRIKE", True)
