"""`skyhigh flights`: lists flights, searches itineraries and cancels a flight."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Final

import typer

from operations.connections import CALL_TIMEOUT_SECONDS, Metadata, ask
from operations.terminal import print_table, table
from services.money import text_of_money

if TYPE_CHECKING:
    from google.protobuf.timestamp_pb2 import Timestamp
    from skyhigh.flight.v1 import flight_service_pb2 as pb
    from skyhigh.flight.v1.flight_service_pb2_grpc import FlightServiceStub

FlightId = Annotated[str, typer.Argument(metavar="FLIGHT", help="Such as SH101-2026-12-01.")]
Airport = Annotated[str, typer.Argument(help="IATA code, such as FRA.")]
Day = Annotated[str | None, typer.Option(metavar="DATE", help="Local date of departure, such as 2026-12-01.")]

PAGE_SIZE: Final = 100
NUMBERS: Final = ("DURATION", "PRICE", "FREE", "SEATS")
STYLES: Final = {"SCHEDULED": "green", "CANCELLED": "bold red"}


class Sort(StrEnum):
    """The sort order of a search."""

    PRICE = "price"
    DURATION = "duration"
    DEPARTURE = "departure"


flights = typer.Typer(help="Flights: the schedule, search, cancellation.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Adds this group of commands."""
    app.add_typer(flights, name="flights")


@flights.command()
def search(
    source: Airport,
    destination: Airport,
    *,
    date: Annotated[
        str | None, typer.Option(metavar="DATE", help="Local date of departure. Default: today in UTC.")
    ] = None,
    seats: Annotated[int, typer.Option(min=1, max=9, help="Number of free seats on each flight.")] = 1,
    max_hops: Annotated[int, typer.Option(min=1, max=3, help="Maximum number of changes.")] = 3,
    sort: Annotated[Sort, typer.Option(help="Sort order.")] = Sort.PRICE,
    limit: Annotated[
        int, typer.Option("--limit", "-n", min=1, max=PAGE_SIZE, help="Maximum number of itineraries.")
    ] = 20,
) -> None:
    """Print the itineraries from one airport to another, direct and with changes."""
    from skyhigh.flight.v1 import flight_service_pb2 as pb

    request = pb.SearchFlightsRequest(
        source=source.upper(),
        destination=destination.upper(),
        date=date or datetime.now(UTC).date().isoformat(),
        seats=seats,
        max_hops=max_hops,
        sort=pb.SearchFlightsRequest.Sort.Value(sort.name),
        page_size=limit,
    )
    asyncio.run(_ask(lambda stub, metadata: _search(stub, metadata, request)))


@flights.command("list")
def list_(
    origin: Annotated[str, typer.Option(metavar="IATA", help="Only flights from this airport.")] = "",
    destination: Annotated[str, typer.Option(metavar="IATA", help="Only flights to this airport.")] = "",
    date: Day = None,
    limit: Annotated[
        int, typer.Option("--limit", "-n", min=1, max=10_000, help="Maximum number of flights.")
    ] = PAGE_SIZE,
) -> None:
    """Print flights in order of departure: those of a day, or all future ones."""
    from skyhigh.flight.v1 import flight_service_pb2 as pb

    request = pb.ListFlightsRequest(origin=origin.upper(), destination=destination.upper(), date=date or "")
    asyncio.run(_ask(lambda stub, metadata: _list(stub, metadata, request, limit)))


@flights.command()
def show(flight_id: FlightId) -> None:
    """Print a flight, its cabins, their fares and their free seats."""
    asyncio.run(_ask(lambda stub, metadata: _show(stub, metadata, flight_id)))


@flights.command()
def cancel(
    flight_id: FlightId,
    reason: Annotated[str, typer.Option(help="Reason that the passengers receive, such as STRIKE.")] = "CANCELLED",
) -> None:
    """Cancel a flight with its holds, bookings, check-ins and waitlist. This is permanent."""
    asyncio.run(_ask(lambda stub, metadata: _cancel(stub, metadata, flight_id, reason)))


async def _ask(question: Callable[[FlightServiceStub, Metadata], Awaitable[None]]) -> None:
    from skyhigh.flight.v1.flight_service_pb2_grpc import FlightServiceStub

    await ask("flight", FlightServiceStub, question)


async def _search(stub: FlightServiceStub, metadata: Metadata, request: pb.SearchFlightsRequest) -> None:
    from skyhigh.flight.v1 import flight_service_pb2 as pb

    found = await stub.SearchFlights(request, metadata=metadata, timeout=CALL_TIMEOUT_SECONDS)
    if not found.itineraries:
        print(f"No itinerary from {request.source} to {request.destination} on {request.date} has enough free seats.")
        return
    rows = table("TYPE", "ROUTE", "DEPARTURE", "ARRIVAL", "DURATION", "PRICE", "SEATS", "ITINERARY", numbers=NUMBERS)
    for itinerary in found.itineraries:
        hours, minutes = divmod(itinerary.duration_minutes, 60)
        first, last = itinerary.flights[0], itinerary.flights[-1]
        rows.add_row(
            pb.Itinerary.Type.Name(itinerary.type).lower(),
            " ".join([first.origin, *(f"{each.flight_number} {each.destination}" for each in itinerary.flights)]),
            _clock(first.departure_time, first.origin_time_zone),
            _clock(last.arrival_time, last.destination_time_zone),
            f"{hours}h{minutes:02}",
            text_of_money(itinerary.total_price),
            str(itinerary.available_seats),
            itinerary.itinerary_id,
        )
    print_table(rows)
    if found.total_size > len(found.itineraries):
        print(f"… of {found.total_size}")


async def _list(stub: FlightServiceStub, metadata: Metadata, request: pb.ListFlightsRequest, limit: int) -> None:
    from skyhigh.flight.v1 import flight_service_pb2 as pb

    rows = table(
        "FLIGHT", "FROM", "TO", "DEPARTURE", "ARRIVAL", "AIRCRAFT", "PRICE", "FREE", "SEATS", "STATUS", numbers=NUMBERS
    )
    while rows.row_count < limit:
        request.page_size = min(PAGE_SIZE, limit - rows.row_count)
        page = await stub.ListFlights(request, metadata=metadata, timeout=CALL_TIMEOUT_SECONDS)
        for flight in page.flights:
            status = pb.Flight.Status.Name(flight.status)
            rows.add_row(
                flight.flight_id,
                flight.origin,
                flight.destination,
                _clock(flight.departure_time, flight.origin_time_zone),
                _clock(flight.arrival_time, flight.destination_time_zone),
                flight.aircraft_type,
                text_of_money(flight.price),
                str(flight.available_seats),
                str(flight.total_seats),
                f"[{STYLES[status]}]{status}[/]" if status in STYLES else status,
            )
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    if rows.row_count:
        print_table(rows)
    else:
        print("No flight was found.")


async def _show(stub: FlightServiceStub, metadata: Metadata, flight_id: str) -> None:
    from skyhigh.flight.v1 import flight_service_pb2 as pb

    request = pb.GetFlightRequest(flight_id=flight_id)
    flight = await stub.GetFlight(request, metadata=metadata, timeout=CALL_TIMEOUT_SECONDS)
    status = pb.Flight.Status.Name(flight.status)
    departure = _clock(flight.departure_time, flight.origin_time_zone)
    arrival = _clock(flight.arrival_time, flight.destination_time_zone)
    print(
        f"{flight.flight_id}  {status}{f' ({flight.cancel_reason})' if flight.cancel_reason else ''}\n"
        f"{flight.origin} {departure}  →  {flight.destination} {arrival}\n"
        f"{flight.aircraft_type}, {flight.layout_id}, gate {flight.gate or '-'}\n"
    )
    rows = table("CABIN", "PRICE", "FREE", "SEATS", numbers=NUMBERS)
    for cabin in flight.cabins:
        name = pb.Cabin.Name(cabin.cabin)
        rows.add_row(name, text_of_money(cabin.price), str(cabin.available_seats), str(cabin.total_seats))
    print_table(rows)


async def _cancel(stub: FlightServiceStub, metadata: Metadata, flight_id: str, reason: str) -> None:
    from skyhigh.flight.v1 import flight_service_pb2 as pb

    request = pb.CancelFlightRequest(flight_id=flight_id, reason=reason)
    flight = await stub.CancelFlight(request, metadata=metadata, timeout=CALL_TIMEOUT_SECONDS)
    print(f"{flight.flight_id} is {pb.Flight.Status.Name(flight.status)}: {flight.cancel_reason}.")


def _clock(moment: Timestamp, zone: str) -> str:
    """Formats a time in the time zone of the airport; in UTC if the zone is empty."""
    from zoneinfo import ZoneInfo

    from services.airports import local_time

    return local_time(moment.ToDatetime(UTC), ZoneInfo(zone) if zone else None)
