"""Passengers of the demo airline who can check in now."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from operations.connections import CALL_TIMEOUT_SECONDS, channel_to, metadata_of, refusals_of
from operations.terminal import fail

if TYPE_CHECKING:
    from operations.demo.airline import Flight

# The caller has at least this long to check in the passenger that the command returns.
OPEN_FOR_ANOTHER: Final = timedelta(minutes=30)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A passenger of a flight, with the data for login and check-in."""

    pnr: str
    last_name: str
    flight_id: str
    passenger_id: str
    contact_email: str


async def candidates(number: int, *, flight_id: str | None = None) -> list[Candidate]:
    """Returns `number` passengers of one flight who can check in now, chosen at random.

    The flight is `flight_id`, or any flight if that is None. Ends the command if no flight has enough such passengers.
    """
    for one in open_flights(flight_id):
        found = await eligible(number, [one])
        if len(found) == number:
            return found
    fail(
        f"no {number} passengers of {flight_id or 'one flight'} can check in now; "
        "`skyhigh demo load` loads the demo airline"
    )


def open_flights(flight_id: str | None) -> list[Flight]:
    """Returns the flights whose check-in stays open for OPEN_FOR_ANOTHER.

    The order is random. Considers only `flight_id` if it is given. Ends the command if there is no such flight.
    """
    from operations.demo import airline

    now = datetime.now(UTC)
    flights = airline.flights(now.date(), days=2)
    if flight_id is not None:
        flights = [one for one in flights if one.flight_id == flight_id]
        if not flights:
            fail(f"{flight_id} is not a flight of the demo airline today or tomorrow")
    flights = [one for one in flights if one.check_in_is_open(now, for_another=OPEN_FOR_ANOTHER)]
    if not flights:
        fail(f"check-in of {flight_id or 'every flight'} is closed, or closes soon")
    secrets.SystemRandom().shuffle(flights)
    return flights


async def eligible(number: int, flights: Sequence[Flight]) -> list[Candidate]:
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

    metadata = metadata_of("service")
    found: list[Candidate] = []
    with refusals_of("checkin"):
        async with channel_to("checkin") as channel:
            stub = CheckInServiceStub(channel)
            for candidate in _people(flights):
                if await can_check_in(candidate):
                    found.append(candidate)
                    if len(found) == number:
                        break
    return found


def _people(flights: Sequence[Flight]) -> list[Candidate]:
    from operations.demo import airline

    found = [
        Candidate(person.pnr, person.last_name, flight.flight_id, person.passenger_id, person.contact_email)
        for flight in flights
        for person in airline.alone(flight)
        # `skyhigh demo pnr` prints locator and last name, and scripts read the name as the second word of the line.
        if " " not in person.last_name
    ]
    secrets.SystemRandom().shuffle(found)
    return found
