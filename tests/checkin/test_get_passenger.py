"""GetPassenger: a passenger's entry on the manifest, for services."""

from __future__ import annotations

import pytest
from skyhigh.checkin.v1 import checkin_service_pb2 as pb

from tests.callers import refused
from tests.checkin.airport import Airport


def asked(airport: Airport, passenger_id: str) -> pb.GetPassengerRequest:
    return pb.GetPassengerRequest(flight_id=airport.flight_id, passenger_id=passenger_id)


async def test_the_response_equals_the_import(airport: Airport) -> None:
    imported = pb.ManifestPassenger(
        passenger_id="P1",
        pnr="XK4T7Q",
        given_name="Zoë",
        last_name="Müller-Lüdenscheidt",
        type=pb.CHILD,
        cabin=pb.BUSINESS,
        fare="BUSINESS",
        special_services=["CHML", "WCHR"],
        contact_email="zoe@example.org",
    )
    await airport.imported(imported)
    assert await airport.checkin.service().GetPassenger(asked(airport, "P1")) == imported


async def test_an_adult_with_an_infant_needs_inft(airport: Airport) -> None:
    adult = await airport.traveller("P1", special_services=["VGML"])
    await airport.traveller("P2", pnr=adult.pnr, type=pb.INFANT, accompanying_passenger_id="P1")
    found = await airport.checkin.service().GetPassenger(asked(airport, "P1"))
    assert list(found.special_services) == ["VGML", "INFT"]
    again = await airport.traveller("P1", pnr=adult.pnr, special_services=["INFT"])
    found = await airport.checkin.service().GetPassenger(asked(airport, again.passenger_id))
    assert list(found.special_services) == ["INFT"]


@pytest.mark.parametrize("passenger_id", ["P9", "p1"])
async def test_a_passenger_of_another_flight_is_not_found(airport: Airport, passenger_id: str) -> None:
    await airport.traveller("P1")
    with refused("NOT_FOUND", "PASSENGER_NOT_FOUND"):
        await airport.checkin.service().GetPassenger(asked(airport, passenger_id))
