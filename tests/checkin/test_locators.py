"""A record locator belongs to the first party that uses it (CHK-1, decision 37).

The party is a booking, or imported passengers.
"""

from __future__ import annotations

import asyncio
from uuid import uuid4

import pytest
from skyhigh.checkin.v1 import checkin_service_pb2 as pb

from checkin_service import handlers
from checkin_service.manifests import locators
from services import db
from services.errors import Aborted
from tests.callers import refused
from tests.checkin.airport import Airport, new_pnr, outcomes
from tests.checkin.parties import booked, log_in, party
from tests.instances import Database


def imported(passenger_id: str, pnr: str, last_name: str = "Omega") -> pb.ManifestPassenger:
    """Returns a line of a manifest."""
    return pb.ManifestPassenger(passenger_id=passenger_id, pnr=pnr, given_name="Mal", last_name=last_name)


async def test_a_line_with_a_bookings_locator_is_rejected(airport: Airport) -> None:
    its = party(booked(airport.flight_id))
    await airport.tell("booking.confirmed.v1", its.confirmed)
    answer = await airport.imported(imported("M-1", new_pnr()), imported("M-2", its.confirmed.pnr))
    (rejected,) = answer.rejected
    (wrong,) = rejected.wrong_fields
    assert (answer.added, rejected.index, wrong.field, wrong.value) == (1, 1, "pnr", its.confirmed.pnr)
    with refused("NOT_FOUND", "TRIP_NOT_FOUND"):
        await log_in(airport, its.confirmed.pnr, "Omega")


async def test_an_import_cannot_change_a_booked_passengers_locator(airport: Airport) -> None:
    its = party(booked(airport.flight_id))
    await airport.tell("booking.confirmed.v1", its.confirmed)
    child = its.confirmed.passengers[2]
    with refused("INVALID_ARGUMENT", "INVALID_FIELD") as refusal:
        await airport.imported(imported(child.passenger_id, new_pnr(), child.last_name))
    assert refusal.fields == ["passengers[0].pnr"]
    # The import is accepted with the booking's own locator.
    await airport.imported(imported(child.passenger_id, its.confirmed.pnr, child.last_name))


async def test_an_imported_party_uses_its_locator_on_each_flight(airport: Airport) -> None:
    pnr = new_pnr()
    await airport.imported(imported("M-1", pnr))
    answer = await airport.imported(imported("M-1", pnr), imported("M-2", pnr))
    assert (answer.added, answer.unchanged) == (1, 1)


async def test_a_reserved_locator_cannot_be_reserved_by_another(airport: Airport) -> None:
    services, pnr, booking_id = airport.checkin.service(), new_pnr(), str(uuid4())
    for _ in range(2):
        await services.ReserveLocator(pb.ReserveLocatorRequest(pnr=pnr, booking_id=booking_id))
    with refused("ABORTED", "LOCATOR_TAKEN"):
        await services.ReserveLocator(pb.ReserveLocatorRequest(pnr=pnr, booking_id=str(uuid4())))
    with refused("INVALID_ARGUMENT", "INVALID_FIELD"):
        await airport.imported(imported("M-1", pnr))


async def test_a_booking_cannot_reserve_an_imported_locator(airport: Airport) -> None:
    pnr = new_pnr()
    await airport.imported(imported("M-1", pnr))
    with refused("ABORTED", "LOCATOR_TAKEN"):
        await airport.checkin.service().ReserveLocator(pb.ReserveLocatorRequest(pnr=pnr, booking_id=str(uuid4())))


async def test_a_confirmation_with_a_foreign_locator_adds_no_passenger(
    airport: Airport, checkin_database: Database
) -> None:
    its = party(booked(airport.flight_id))
    await airport.imported(imported("M-1", its.confirmed.pnr))
    with pytest.raises(Aborted, match="another party"):
        async with db.transaction(airport.pool) as conn:
            await handlers.on_booking_confirmed(conn, its.confirmed)
    listed = "SELECT array_agg(passenger_id) FROM passengers WHERE flight_id = $1"
    assert await checkin_database.fetchval(listed, airport.flight_id) == ["M-1"]


async def test_import_and_booking_at_once_leave_one_locator_owner(airport: Airport, checkin_database: Database) -> None:
    services = airport.checkin.service()
    for n in range(10):
        pnr = new_pnr()
        results = await asyncio.gather(
            services.ReserveLocator(pb.ReserveLocatorRequest(pnr=pnr, booking_id=str(uuid4()))),
            services.ReserveLocator(pb.ReserveLocatorRequest(pnr=pnr, booking_id=str(uuid4()))),
            airport.imported(imported(f"M-{n}", pnr)),
            return_exceptions=True,
        )
        assert outcomes(results)["OK"] == 1
        booking = await checkin_database.fetchval("SELECT booking FROM locators WHERE pnr = $1", pnr)
        assert (booking is None) == (not isinstance(results[2], BaseException))


async def test_a_refused_import_reserves_no_locator(airport: Airport, checkin_database: Database) -> None:
    its = party(booked(airport.flight_id))
    await airport.tell("booking.confirmed.v1", its.confirmed)
    pnr = new_pnr()
    with refused("INVALID_ARGUMENT", "INVALID_FIELD"):
        await airport.imported(imported("M-2", its.confirmed.pnr))
    answer = await airport.imported(imported("M-1", pnr, "7"), imported("M-3", new_pnr()))
    assert [each.passenger_id for each in answer.rejected] == ["M-1"]
    async with db.transaction(airport.pool) as conn:
        assert (await locators.reserve_free(conn, [pnr], booking="0" * 16))[pnr] == "0" * 16
