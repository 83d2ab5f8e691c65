"""GetBoardingPass and its barcodes, of a completed check-in (CHK-8)."""

from __future__ import annotations

import asyncio
import io
import xml.etree.ElementTree as ET
from dataclasses import replace
from datetime import UTC
from typing import Final
from uuid import UUID, uuid4

import pytest
import zxingcpp
from PIL import Image
from skyhigh.checkin.v1 import checkin_service_pb2 as pb

from checkin_service import records
from checkin_service.boarding import bcbp, boarding_passes
from services import airports, db
from services.errors import FailedPrecondition
from tests.callers import refused
from tests.checkin.airport import Airport, Traveller
from tests.dates import new_flight_id

Asked = pb.GetBoardingPassBarcodeRequest
TWO_CABINS: Final = "A321-16C"


async def boarding_pass(traveller: Traveller) -> pb.BoardingPass:
    shown: pb.BoardingPass = await traveller.desk.GetBoardingPass(
        pb.GetBoardingPassRequest(checkin_id=traveller.checkin_id)
    )
    return shown


def day_at_origin(shown: pb.BoardingPass) -> int:
    """Returns the day of the year of the departure in local time."""
    return shown.departure_time.ToDatetime(UTC).astimezone(airports.zone(shown.origin)).timetuple().tm_yday


async def test_the_pass_has_passenger_flight_seat_and_times(airport: Airport) -> None:
    airport.flight_id = new_flight_id()
    await airport.open(TWO_CABINS)
    await airport.set_flight()
    traveller = await airport.traveller(cabin=pb.BUSINESS)
    hold = await airport.seats.agent().hold(airport.flight_id, "1A", "P1")
    await airport.seats.agent().confirm(hold)
    await traveller.start(hold_id="")
    await traveller.declare(10)
    shown = await boarding_pass(traveller)
    assert (shown.seat_number, shown.sequence_number, shown.gate, shown.cabin) == ("1A", 1, "A12", pb.BUSINESS)
    assert (shown.flight_number, shown.origin, shown.destination) == ("SH101", "FRA", "LIS")
    assert (shown.pnr, shown.given_name, shown.last_name) == (traveller.pnr, "Zoë", "Müller")
    assert shown.departure_time.seconds - shown.boarding_time.seconds == 40 * 60
    assert len(shown.bcbp) == 60
    assert bcbp.decode(shown.bcbp) == bcbp.Pass(
        last_name="MUELLER",
        given_name="ZOE",
        pnr=traveller.pnr,
        origin="FRA",
        destination="LIS",
        flight_number="SH101",
        day_of_year=day_at_origin(shown),
        cabin="BUSINESS",
        seat_number="1A",
        sequence_number=1,
        bags_checked=True,
    )


async def test_the_date_is_the_departures_local_date(airport: Airport) -> None:
    traveller = await airport.traveller()
    await traveller.completed()
    shown = await boarding_pass(traveller)
    decoded = bcbp.decode(shown.bcbp)
    assert (decoded.day_of_year, decoded.bags_checked) == (day_at_origin(shown), False)


async def test_an_infants_pass_has_the_lap(airport: Airport) -> None:
    adult = await airport.traveller("P1")
    infant = await airport.traveller("P2", pnr=adult.pnr, type=pb.INFANT, accompanying_passenger_id="P1")
    await adult.completed()
    await infant.start(hold_id="")
    await infant.declare()
    assert bcbp.decode((await boarding_pass(infant)).bcbp).seat_number == "INF"


async def test_concurrent_completions_get_consecutive_sequence_numbers(airport: Airport) -> None:
    travellers = await airport.travellers(*(f"P{n}" for n in range(12)))
    for traveller in travellers:
        await traveller.start()
    declared = await asyncio.gather(*(traveller.declare(10) for traveller in travellers))
    assert sorted(each.sequence_number for each in declared) == list(range(1, 13))


async def test_pass_is_refused_when_the_passenger_left_the_manifest(airport: Airport) -> None:
    traveller = await airport.traveller()
    await traveller.completed(10)
    async with db.transaction(airport.pool) as conn:
        check_in = await records.find(conn, UUID(traveller.checkin_id))
        removed = replace(check_in, passenger_id="P-REMOVED")
        with pytest.raises(FailedPrecondition, match="only a completed check-in"):
            await boarding_passes.issue(conn, removed)


async def test_a_moved_passengers_pass_has_the_new_seat(airport: Airport) -> None:
    traveller = await airport.traveller()
    await traveller.start(seat_number="12A")
    await traveller.declare(10)
    await traveller.seats.confirm(await traveller.hold("14C"))
    await traveller.has_seat("14C")
    shown = await boarding_pass(traveller)
    assert (shown.seat_number, shown.sequence_number) == ("14C", 1)


@pytest.mark.parametrize("symbology", [0, Asked.AZTEC, Asked.PDF417, Asked.QR])
async def test_every_picture_has_the_same_barcode_text(airport: Airport, symbology: Asked.Symbology.ValueType) -> None:
    traveller = await airport.traveller()
    await traveller.completed()
    expected = (await boarding_pass(traveller)).bcbp
    asked = Asked(checkin_id=traveller.checkin_id, symbology=symbology)
    png = await traveller.desk.GetBoardingPassPng(asked)
    assert png.content_type == "image/png"
    (read,) = zxingcpp.read_barcodes(Image.open(io.BytesIO(png.data)).convert("L"))
    assert read.text == expected
    assert read.format.name.upper().removesuffix("CODE") == Asked.Symbology.Name(symbology or Asked.AZTEC)
    svg = await traveller.desk.GetBoardingPassSvg(asked)
    assert svg.content_type == "image/svg+xml"
    assert ET.fromstring(svg.data).tag == "{http://www.w3.org/2000/svg}svg"


@pytest.mark.parametrize("method", ["GetBoardingPass", "GetBoardingPassSvg", "GetBoardingPassPng"])
async def test_only_a_completed_check_in_has_a_pass(airport: Airport, method: str) -> None:
    request = pb.GetBoardingPassRequest if method == "GetBoardingPass" else Asked
    traveller, stranger = await airport.traveller("P1"), await airport.traveller("P2")
    await traveller.start()

    async def ask(caller: Traveller, checkin_id: str) -> None:
        await getattr(caller.desk, method)(request(checkin_id=checkin_id))

    with refused("FAILED_PRECONDITION", "CHECK_IN_NOT_COMPLETED") as refusal:
        await ask(traveller, traveller.checkin_id)
    assert dict(refusal.info.metadata) == {"state": "INITIATED"}
    await traveller.declare()
    await ask(traveller, traveller.checkin_id)
    with refused("NOT_FOUND", "CHECK_IN_NOT_FOUND") as foreign:
        await ask(stranger, traveller.checkin_id)
    with refused("NOT_FOUND", "CHECK_IN_NOT_FOUND") as missing:
        await ask(stranger, str(uuid4()))
    assert foreign.status == missing.status
    await traveller.cancel()
    with refused("FAILED_PRECONDITION", "CHECK_IN_NOT_COMPLETED"):
        await ask(traveller, traveller.checkin_id)
