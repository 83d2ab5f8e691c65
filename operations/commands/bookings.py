"""`skyhigh bookings`: prints a booking with its seats, payment and history."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC
from typing import TYPE_CHECKING, Annotated
from uuid import UUID

import typer

from operations.connections import CALL_TIMEOUT_SECONDS, channel_to, metadata_of, refusals_of
from operations.terminal import fail, print_table, table
from services.money import text_of_money

if TYPE_CHECKING:
    from google.protobuf.timestamp_pb2 import Timestamp
    from skyhigh.booking.v1 import booking_service_pb2 as pb

bookings = typer.Typer(help="Bookings: their seats, their payment and their history.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Adds this group of commands."""
    app.add_typer(bookings, name="bookings")


@bookings.callback()
def _group() -> None:
    """Bookings: their seats, their payment and their history."""


@bookings.command()
def show(booking_id: Annotated[str, typer.Argument(metavar="BOOKING", help="UUID of the booking.")]) -> None:
    """Print a booking, its flights, passengers, seats and history."""
    try:
        wanted = UUID(booking_id)
    except ValueError:
        fail(f"{booking_id!r} is not a UUID")
    _print(asyncio.run(_get(wanted)))


async def _get(booking_id: UUID) -> pb.Booking:
    from skyhigh.booking.v1 import booking_service_pb2 as pb
    from skyhigh.booking.v1.booking_service_pb2_grpc import BookingServiceStub

    request = pb.GetBookingRequest(booking_id=str(booking_id))
    with refusals_of("booking"):
        async with channel_to("booking") as channel:
            return await BookingServiceStub(channel).GetBooking(
                request, metadata=metadata_of("agent"), timeout=CALL_TIMEOUT_SECONDS
            )


def _print(booking: pb.Booking) -> None:
    from skyhigh.booking.v1 import booking_service_pb2 as pb

    facts = {
        "booking": booking.booking_id,
        "state": pb.Booking.State.Name(booking.state),
        "pnr": booking.pnr,
        "total": text_of_money(booking.total),
        "cabin": pb.Cabin.Name(booking.cabin),
        "created": _time(booking.create_time),
        "expires": _time(booking.expire_time),
        "hold": booking.hold_id,
        "payment": booking.payment_intent_id,
        "attempts": f"{booking.payment_attempts} of {booking.max_payment_attempts}",
        "last error": booking.last_error,
        "cancelled": booking.cancel_reason,
        "refunded": _time(booking.refund_time),
        "contact": booking.contact_email,
    }
    width = max(map(len, facts))
    for name, value in facts.items():
        print(f"{name:<{width}}  {value or '-'}")
    _print_table(
        "flights",
        ("FLIGHT", "FROM", "TO", "DEPARTURE", "ARRIVAL", "PRICE"),
        [
            (
                f.flight_id,
                f.origin,
                f.destination,
                _clock(f.departure_time, f.origin),
                _clock(f.arrival_time, f.destination),
                text_of_money(f.price),
            )
            for f in booking.flights
        ],
    )
    seats = {(seat.passenger_id, seat.flight_id): seat.seat_number for seat in booking.seats}
    _print_table(
        "passengers",
        ("PASSENGER", "NAME", "TYPE", *(flight.flight_number for flight in booking.flights)),
        [
            (
                each.passenger_id,
                f"{each.given_name} {each.last_name}",
                pb.PassengerType.Name(each.type),
                *(seats.get((each.passenger_id, flight.flight_id), "-") for flight in booking.flights),
            )
            for each in booking.passengers
        ],
    )
    _print_table(
        "history",
        ("TIME", "FROM", "TO", "REASON", "ACTOR"),
        [
            (
                _time(step.time),
                pb.Booking.State.Name(step.from_state) if step.from_state else "-",
                pb.Booking.State.Name(step.to_state),
                step.reason,
                step.actor,
            )
            for step in booking.history
        ],
    )


def _clock(moment: Timestamp, airport: str) -> str:
    """Formats a time in the time zone of the airport."""
    from services import airports

    return airports.local_time(moment.ToDatetime(UTC), airports.zone(airport))


def _print_table(name: str, columns: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    print(f"\n{name}")
    rows = table(*columns)
    for row in cells:
        rows.add_row(*row)
    print_table(rows, markup=False)


def _time(moment: Timestamp) -> str:
    """Formats a time in UTC, to the second; returns an empty string if it is unset."""
    return f"{moment.ToDatetime(UTC):%Y-%m-%d %H:%M:%S} UTC" if moment.seconds else ""
