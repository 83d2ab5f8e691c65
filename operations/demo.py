"""`skyhigh demo`: the demo airline."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Final, TypeVar

import typer

from operations.connections import channel_to
from operations.stack import fail
from operations.token import mint

if TYPE_CHECKING:
    from operations.airline import Flight

Question = TypeVar("Question")
Answer = TypeVar("Answer")

# Enough to keep a service busy, and few enough that other callers do not wait longer.
CALLS_AT_ONCE: Final = 8
CALL_TIMEOUT_SECONDS: Final = 10
# For how long calls to an unavailable service are retried, and the pause between two tries.
PATIENCE_SECONDS: Final = 60
RETRY_SECONDS: Final = 0.2
# The caller has at least this long to check in the passenger that the command returns.
OPEN_FOR_ANOTHER: Final = timedelta(minutes=30)

demo = typer.Typer(help="The demo airline.", no_args_is_help=True)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A passenger of a flight, with the data for login and check-in."""

    pnr: str
    last_name: str
    flight_id: str
    passenger_id: str
    contact_email: str


def register(app: typer.Typer) -> None:
    """Adds this group of commands."""
    app.add_typer(demo, name="demo")


@demo.callback()
def _group() -> None:
    """The demo airline."""


@demo.command()
def load() -> None:
    """Add the flights of the next days to the schedule and import their manifests. A repeat changes nothing."""
    asyncio.run(load_all())


@demo.command()
def flight() -> None:
    """Print the id of one of the demo airline's flights, tomorrow's first, and nothing else."""
    from operations import airline

    print(airline.flights(_now().date() + timedelta(days=1))[0].flight_id)


@demo.command()
def pnr(
    flight: Annotated[str | None, typer.Option(metavar="FLIGHT", help="Of this flight.  [default: of any]")] = None,
    number: Annotated[int, typer.Option("--number", "-n", min=1, max=100, metavar="N", help="So many people.")] = 1,
) -> None:
    """Print the locator and the last name of somebody who can check in now, and nothing else.

    An adult who travels alone on the STANDARD fare and needs nothing special; another one each time.
    """
    found = asyncio.run(_eligible(number, _open_flights(flight)))
    if len(found) < number:
        fail(f"only {len(found)} of {number} can check in now; was the airline loaded by `skyhigh demo load`?")
    for candidate in found:
        print(candidate.pnr, candidate.last_name)


async def candidates(number: int, *, flight_id: str | None = None) -> list[Candidate]:
    """Returns `number` passengers of one flight who can check in now, chosen at random.

    The flight is `flight_id`, or any flight if that is None. Ends the command if no flight has enough such passengers.
    """
    for one in _open_flights(flight_id):
        found = await _eligible(number, [one])
        if len(found) == number:
            return found
    fail(
        f"no {number} people of {flight_id or 'a flight'} can check in now; "
        "was the airline loaded by `skyhigh demo load`?"
    )


async def load_all() -> None:
    """Adds the demo flights and imports their manifests; prints a line for each flight."""
    from operations import airline

    await _load(airline.flights_to_come(_now()))


async def _load(flights: Sequence[Flight]) -> None:
    types = {flight.service.aircraft_type for flight in flights}
    seats = await _add_to_schedule(flights)
    print(
        f"{len(flights)} flights of {len(types)} aircraft types, {seats} seats: "
        f"{flights[0].flight_id} … {flights[-1].flight_id}"
    )
    for line in await _import_manifests(flights):
        print(line)


async def _add_to_schedule(flights: Sequence[Flight]) -> int:
    """Calls CreateFlight for each flight; returns the number of seats of all of them.

    An error response ends the command.
    """
    from skyhigh.flight.v1.flight_service_pb2_grpc import FlightServiceStub

    from operations import airline

    async def add(flight: Flight) -> int:
        added = await stub.CreateFlight(airline.schedule(flight), metadata=metadata, timeout=CALL_TIMEOUT_SECONDS)
        return added.total_seats

    metadata = _metadata("operations")
    with _refusals_of("flight"):
        async with channel_to("flight") as channel:
            stub = FlightServiceStub(channel)
            return sum(await _each(add, flights))


async def _import_manifests(flights: Sequence[Flight]) -> list[str]:
    """Calls ImportManifest for each flight; returns a line of text for each.

    An error response ends the command.
    """
    from skyhigh.checkin.v1.checkin_service_pb2_grpc import CheckInServiceStub

    from operations import airline
    from services import airports

    async def import_one(flight: Flight) -> str:
        request = airline.manifest(flight)
        answer = await stub.ImportManifest(request, metadata=metadata, timeout=CALL_TIMEOUT_SECONDS)
        departure = airports.local_time(flight.departure_time, airports.zone(flight.service.origin))
        return (
            f"{flight.flight_id}  {flight.service.origin} → {flight.service.destination}  "
            f"{departure}  {len(request.passengers):>3} passengers: "
            f"{answer.added} added, {answer.changed} changed, {answer.unchanged} unchanged"
        )

    metadata = _metadata()
    with _refusals_of("check-in"):
        async with channel_to("checkin") as channel:
            stub = CheckInServiceStub(channel)
            return await _each(import_one, flights)


def _open_flights(flight_id: str | None) -> list[Flight]:
    """Returns the flights whose check-in stays open for OPEN_FOR_ANOTHER.

    The order is random. Considers only `flight_id` if it is given. Ends the command if there is no such flight.
    """
    from operations import airline

    now = _now()
    flights = airline.flights(now.date(), days=2)
    if flight_id is not None:
        flights = [one for one in flights if one.flight_id == flight_id]
        if not flights:
            fail(f"{flight_id} is no flight of the demo airline of today or tomorrow")
    flights = [one for one in flights if one.check_in_is_open(now, for_another=OPEN_FOR_ANOTHER)]
    if not flights:
        fail(f"check-in of {flight_id or 'every flight'} is closed, or closes soon")
    secrets.SystemRandom().shuffle(flights)
    return flights


async def _eligible(number: int, flights: Sequence[Flight]) -> list[Candidate]:
    """Returns up to `number` passengers of these flights who can check in now.

    Calls GetEligibility for one passenger after the other, in random order. An error other than NOT_FOUND ends the
    command.
    """
    import grpc
    from skyhigh.checkin.v1 import checkin_service_pb2 as pb
    from skyhigh.checkin.v1.checkin_service_pb2_grpc import CheckInServiceStub

    async def can_check_in(candidate: Candidate) -> bool:
        request = pb.GetEligibilityRequest(flight_id=candidate.flight_id, passenger_id=candidate.passenger_id)
        try:
            answer = await stub.GetEligibility(request, metadata=metadata, timeout=CALL_TIMEOUT_SECONDS)
        except grpc.aio.AioRpcError as error:
            # The flight was not loaded, or this passenger was not imported.
            if error.code() is grpc.StatusCode.NOT_FOUND:
                return False
            raise
        return bool(answer.eligible)

    metadata = _metadata()
    found: list[Candidate] = []
    with _refusals_of("check-in"):
        async with channel_to("checkin") as channel:
            stub = CheckInServiceStub(channel)
            for candidate in _people(flights):
                if await can_check_in(candidate):
                    found.append(candidate)
                    if len(found) == number:
                        break
    return found


def _people(flights: Sequence[Flight]) -> list[Candidate]:
    from operations import airline

    found = [
        Candidate(person.pnr, person.last_name, flight.flight_id, person.passenger_id, person.contact_email)
        for flight in flights
        for person in airline.alone(flight)
        # `skyhigh demo pnr` prints locator and last name, and scripts read the name as the second word of the line.
        if " " not in person.last_name
    ]
    secrets.SystemRandom().shuffle(found)
    return found


def _now() -> datetime:
    return datetime.now(UTC)


def _metadata(role: str = "service") -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {mint(role, 'demo')}"),)


@contextmanager
def _refusals_of(service: str) -> Iterator[None]:
    """Ends the command if a call in the block fails."""
    import grpc

    try:
        yield
    except grpc.aio.AioRpcError as error:
        fail(f"the {service} service answered {error.code().name}: {error.details()}")


async def _each(ask: Callable[[Question], Awaitable[Answer]], questions: Sequence[Question]) -> list[Answer]:
    """Returns the responses to the requests, in their order.

    Makes CALLS_AT_ONCE calls at a time. Retries a call that fails with UNAVAILABLE, for up to PATIENCE_SECONDS.
    """
    import grpc

    at_once = asyncio.Semaphore(CALLS_AT_ONCE)
    deadline = time.monotonic() + PATIENCE_SECONDS

    async def ask_one(question: Question) -> Answer:
        async with at_once:
            while True:
                try:
                    return await ask(question)
                except grpc.aio.AioRpcError as error:
                    # The service is starting, or the machine is busy. A retry is safe: all these calls are idempotent.
                    if error.code() is not grpc.StatusCode.UNAVAILABLE or time.monotonic() > deadline:
                        raise
                await asyncio.sleep(RETRY_SECONDS)

    return await asyncio.gather(*map(ask_one, questions))
