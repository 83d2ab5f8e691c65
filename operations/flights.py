"""`skyhigh flights`: lists flights, searches itineraries and cancels a flight."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Final, TypeAlias

import typer

from operations.connections import channel_to
from operations.stack import fail
from operations.token import mint
from services.money import text_of_money

if TYPE_CHECKING:
    from google.protobuf.timestamp_pb2 import Timestamp
    from rich.table import Table
    from skyhigh.flight.v1 import flight_service_pb2 as pb
    from skyhigh.flight.v1.flight_service_pb2_grpc import FlightServiceStub

Metadata: TypeAlias = tuple[tuple[str, str], ...]
FlightId = Annotated[str, typer.Argument(metavar="FLIGHT", help="Such as SH101-2026-12-01.")]
Airport = Annotated[str, typer.Argument(help="IATA code, such as FRA.")]
Day = Annotated[str | None, typer.Option(metavar="DATE", help="The day where it departs, such as 2026-12-01.")]

CALL_TIMEOUT_SECONDS: Final = 10
POLL_SECONDS: Final = 0.5
TELL_SECONDS: Final = 10
# `rolled` does not wait for a flight that departs within this time: the flight could depart during the wait.
LEFT_MEANWHILE: Final = timedelta(minutes=10)
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
        str | None, typer.Option(metavar="DATE", help="The day of departure at the source.  [default: today in UTC]")
    ] = None,
    seats: Annotated[int, typer.Option(min=1, max=9, help="So many seats on each flight.")] = 1,
    max_hops: Annotated[int, typer.Option(min=1, max=3, help="So many changes at most.")] = 3,
    sort: Annotated[Sort, typer.Option(help="What comes first.")] = Sort.PRICE,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=PAGE_SIZE, help="So many at most.")] = 20,
) -> None:
    """Print the ways from one airport to another, direct and with changes."""
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
    origin: Annotated[str, typer.Option(metavar="IATA", help="Only from there.")] = "",
    destination: Annotated[str, typer.Option(metavar="IATA", help="Only to there.")] = "",
    date: Day = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=10_000, help="So many at most.")] = PAGE_SIZE,
) -> None:
    """Print flights by departure, the next ones first: those of a day, or else those to come."""
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
    reason: Annotated[str, typer.Option(help="What those who were to fly are told, such as STRIKE.")] = "CANCELLED",
) -> None:
    """Cancel a flight, and with it its holds, bookings, check-ins and waitlist. There is no way back."""
    asyncio.run(_ask(lambda stub, metadata: _cancel(stub, metadata, flight_id, reason)))


async def _ask(question: Callable[[FlightServiceStub, Metadata], Awaitable[None]]) -> None:
    import grpc
    from skyhigh.flight.v1.flight_service_pb2_grpc import FlightServiceStub

    metadata = (("authorization", f"Bearer {mint('operations', 'demo')}"),)
    try:
        async with channel_to("flight") as channel:
            await question(FlightServiceStub(channel), metadata)
    except grpc.aio.AioRpcError as error:
        fail(f"the flight service answered {error.code().name}: {error.details()}")


async def _search(stub: FlightServiceStub, metadata: Metadata, request: pb.SearchFlightsRequest) -> None:
    from skyhigh.flight.v1 import flight_service_pb2 as pb

    found = await stub.SearchFlights(request, metadata=metadata, timeout=CALL_TIMEOUT_SECONDS)
    if not found.itineraries:
        print(f"There is no way from {request.source} to {request.destination} on {request.date} with room for all.")
        return
    table = _table("TYPE", "WAY", "DEPARTURE", "ARRIVAL", "DURATION", "PRICE", "SEATS", "ITINERARY")
    for itinerary in found.itineraries:
        hours, minutes = divmod(itinerary.duration_minutes, 60)
        first, last = itinerary.flights[0], itinerary.flights[-1]
        table.add_row(
            pb.Itinerary.Type.Name(itinerary.type).lower(),
            " ".join([first.origin, *(f"{each.flight_number} {each.destination}" for each in itinerary.flights)]),
            _clock(first.departure_time, first.origin_time_zone),
            _clock(last.arrival_time, last.destination_time_zone),
            f"{hours}h{minutes:02}",
            text_of_money(itinerary.total_price),
            str(itinerary.available_seats),
            itinerary.itinerary_id,
        )
    _print(table)
    if found.total_size > len(found.itineraries):
        print(f"… of {found.total_size}")


async def _list(stub: FlightServiceStub, metadata: Metadata, request: pb.ListFlightsRequest, limit: int) -> None:
    from skyhigh.flight.v1 import flight_service_pb2 as pb

    table = _table("FLIGHT", "FROM", "TO", "DEPARTURE", "ARRIVAL", "AIRCRAFT", "PRICE", "FREE", "SEATS", "STATUS")
    while table.row_count < limit:
        request.page_size = min(PAGE_SIZE, limit - table.row_count)
        page = await stub.ListFlights(request, metadata=metadata, timeout=CALL_TIMEOUT_SECONDS)
        for flight in page.flights:
            status = pb.Flight.Status.Name(flight.status)
            table.add_row(
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
    if table.row_count:
        _print(table)
    else:
        print("There is no such flight.")


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
    table = _table("CABIN", "PRICE", "FREE", "SEATS")
    for cabin in flight.cabins:
        name = pb.Cabin.Name(cabin.cabin)
        table.add_row(name, text_of_money(cabin.price), str(cabin.available_seats), str(cabin.total_seats))
    _print(table)


async def _cancel(stub: FlightServiceStub, metadata: Metadata, flight_id: str, reason: str) -> None:
    from skyhigh.flight.v1 import flight_service_pb2 as pb

    request = pb.CancelFlightRequest(flight_id=flight_id, reason=reason)
    flight = await stub.CancelFlight(request, metadata=metadata, timeout=CALL_TIMEOUT_SECONDS)
    print(f"{flight.flight_id} is {pb.Flight.Status.Name(flight.status)}: {flight.cancel_reason}.")


async def rolled(days: int, *, within_seconds: float) -> None:
    """Waits until the flight service lists all flights of the schedule's next days.

    The first of the `days` is today. Ends the command if flights are still missing after `within_seconds`.
    """
    from flight_service.schedule import departures

    now = datetime.now(UTC)
    wanted = {
        str(day): {flight.flight_id for flight in departures(day) if flight.departure_time > now + LEFT_MEANWHILE}
        for day in (now.date() + timedelta(days=n) for n in range(days))
    }
    total = sum(map(len, wanted.values()))

    async def wait(stub: FlightServiceStub, metadata: Metadata) -> None:
        deadline = time.monotonic() + within_seconds
        told = time.monotonic()
        while missing := total - len(await _listed(stub, metadata, wanted)):
            if time.monotonic() > deadline:
                fail(
                    f"{missing} of {total} flights of the schedule are missing after {within_seconds:.0f} s; "
                    "`skyhigh logs flight` may say why"
                )
            if time.monotonic() - told > TELL_SECONDS:
                print(f"Waiting for the schedule: {total - missing} of {total} flights are there.", flush=True)
                told = time.monotonic()
            await asyncio.sleep(POLL_SECONDS)
        print(f"{total} flights of the schedule leave from {min(wanted)} to {max(wanted)}.", flush=True)

    await _ask(wait)


async def _listed(stub: FlightServiceStub, metadata: Metadata, wanted: Mapping[str, set[str]]) -> set[str]:
    """Returns those of the wanted flights that the service lists; `wanted` is by date."""
    from skyhigh.flight.v1 import flight_service_pb2 as pb

    found: set[str] = set()
    for day, flight_ids in wanted.items():
        request = pb.ListFlightsRequest(date=day, page_size=PAGE_SIZE)
        while True:
            page = await stub.ListFlights(request, metadata=metadata, timeout=CALL_TIMEOUT_SECONDS)
            found |= flight_ids & {flight.flight_id for flight in page.flights}
            if not page.next_page_token:
                break
            request.page_token = page.next_page_token
    return found


def _clock(moment: Timestamp, zone: str) -> str:
    """Formats a time in the time zone of the airport; in UTC if the zone is empty."""
    from zoneinfo import ZoneInfo

    from services.airports import local_time

    return local_time(moment.ToDatetime(UTC), ZoneInfo(zone) if zone else None)


def _table(*columns: str) -> Table:
    """Returns an empty table with these columns; columns of numbers are right-aligned."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, justify="right" if column in NUMBERS else "left", no_wrap=True, overflow="fold")
    return table


def _print(table: Table) -> None:
    from rich.console import Console

    # One line per row even on a narrow terminal, because grep cannot search rows that wrap.
    Console(highlight=False, width=max(Console().width, 220)).print(table)
