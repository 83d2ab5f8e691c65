"""Boarding passes of completed check-ins (CHK-8).

Each request makes a new pass, after the seat service has said whose seat it is at that moment.
"""

from __future__ import annotations

from google.api import httpbody_pb2
from skyhigh.checkin.v1 import checkin_service_pb2 as pb

from checkin_service import refusals
from checkin_service.boarding import barcodes, bcbp
from checkin_service.boarding.barcodes import Symbology
from checkin_service.records import CheckIn
from services.db import Conn
from services.proto import timestamp

_Asked = pb.GetBoardingPassBarcodeRequest


def completed(check_in: CheckIn) -> CheckIn:
    """Returns the check-in if it is completed. Raises CHECK_IN_NOT_COMPLETED."""
    if check_in.state != "COMPLETED":
        raise refusals.check_in_not_completed(check_in.state)
    return check_in


async def issue(conn: Conn, check_in: CheckIn) -> pb.BoardingPass:
    """Returns the boarding pass of a completed check-in.

    The caller has just had its seat confirmed by the seat service. Raises CHECK_IN_NOT_COMPLETED if the passenger has
    left the manifest since `check_in` was read.
    """
    assert check_in.seat_number is not None
    assert check_in.sequence_number is not None
    row = await conn.fetchrow(
        """
        SELECT given_name, last_name, cabin::text, flight_number, origin, destination, gate, departure_time,
               departure_time - boarding_before AS boarding_time,
               extract(doy FROM departure_date)::int AS day_of_year
        FROM passengers JOIN flights USING (flight_id) WHERE flight_id = $1 AND passenger_id = $2
        """,
        check_in.flight_id,
        check_in.passenger_id,
    )
    if row is None:
        # The transaction that removes a passenger from the manifest cancels the check-in.
        raise refusals.check_in_not_completed("CANCELLED")
    return pb.BoardingPass(
        bcbp=bcbp.encode(
            bcbp.Pass(
                last_name=row["last_name"],
                given_name=row["given_name"],
                pnr=check_in.pnr,
                origin=row["origin"],
                destination=row["destination"],
                flight_number=row["flight_number"],
                day_of_year=row["day_of_year"],
                cabin=row["cabin"],
                seat_number=check_in.seat_number,
                sequence_number=check_in.sequence_number,
                bags_checked=bool(check_in.bags_grams),
            )
        ),
        seat_number=check_in.seat_number,
        sequence_number=check_in.sequence_number,
        gate=row["gate"],
        boarding_time=timestamp(row["boarding_time"]),
        checkin_id=str(check_in.checkin_id),
        flight_id=check_in.flight_id,
        flight_number=row["flight_number"],
        origin=row["origin"],
        destination=row["destination"],
        departure_time=timestamp(row["departure_time"]),
        cabin=pb.Cabin.Value(row["cabin"]),
        pnr=check_in.pnr,
        passenger_id=check_in.passenger_id,
        given_name=row["given_name"],
        last_name=row["last_name"],
    )


def svg(boarding_pass: pb.BoardingPass, symbology: _Asked.Symbology.ValueType) -> httpbody_pb2.HttpBody:
    """Returns the barcode as SVG."""
    return httpbody_pb2.HttpBody(
        content_type="image/svg+xml", data=barcodes.svg(boarding_pass.bcbp, _symbology(symbology))
    )


def png(boarding_pass: pb.BoardingPass, symbology: _Asked.Symbology.ValueType) -> httpbody_pb2.HttpBody:
    """Returns the barcode as PNG."""
    return httpbody_pb2.HttpBody(content_type="image/png", data=barcodes.png(boarding_pass.bcbp, _symbology(symbology)))


def _symbology(asked: _Asked.Symbology.ValueType) -> Symbology:
    return Symbology(_Asked.Symbology.Name(asked or _Asked.AZTEC))
