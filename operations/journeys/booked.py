"""A customer's journey from a search to two boarding passes and to the refund.

A guest finds two flights that connect, books both, changes the seats and pays; then gets a record locator, logs in with
it and checks in on both flights. At the end the guest cancels the booking: the seats are available again, and the fare
is refunded.
"""

from __future__ import annotations

import secrets
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeAlias
from urllib.parse import urlencode
from uuid import uuid4

from operations.demo.passengers import Candidate
from operations.gateway_client import Answer, Gateway, GatewayUnavailable
from operations.journeys.steps import (
    ALWAYS_SUCCEEDS,
    EVENT_SECONDS,
    PAYMENT_SECONDS,
    JourneyFailed,
    Passed,
    Traveller,
    checked_in,
    declare_light_bags,
    expect,
    free_seats,
    mailed,
    money_text,
    see,
    show_boarding_pass,
    step,
    until,
)
from operations.tokens import mint

Flight: TypeAlias = dict[str, Any]
Seats: TypeAlias = dict[str, str]
"""Seat numbers by flight id."""

# Check-in closes 60 minutes before departure and opens 24 hours before it. Both flights have to be within that window.
LEAVES_AFTER: Final = timedelta(minutes=70)
LEAVES_BEFORE: Final = timedelta(hours=24) - timedelta(minutes=2)
# The limits of the flight service for a connection (FLT-2).
SHORTEST_CONNECTION: Final = timedelta(minutes=45)
LONGEST_CONNECTION: Final = timedelta(hours=8)
PAGES: Final = 20
SEARCHES: Final = 20
# Other callers may hold a seat after the map was read.
SEATS_TRIED: Final = 5
# The login ignores diacritics and upper or lower case (CHK-2), so AS_TYPED is a correct last name.
PASSENGER: Final = {"givenName": "Zoë", "lastName": "Lindqvist-Ågren", "type": "ADULT"}
AS_TYPED: Final = "lindqvist-agren"


@dataclass(frozen=True, slots=True)
class Booking:
    """A booking of this journey, as its customer sees it."""

    gateway: Gateway
    body: dict[str, Any]
    email: str

    @property
    def path(self) -> str:
        """The path of the booking at the gateway."""
        return f"/v1/bookings/{self.body['bookingId']}"

    @property
    def seats(self) -> Seats:
        """The seats of its only passenger."""
        return {seat["flightId"]: seat["seatNumber"] for seat in self.body["seats"]}

    @property
    def passenger_id(self) -> str:
        """The id of its only passenger."""
        return str(self.body["passengers"][0]["passengerId"])


async def travel(gateway_url: str, *, passed: Passed, patience: float) -> None:
    """Makes the journey and cancels everything at the end. Raises JourneyFailed or GatewayUnavailable."""
    customer = await _become_customer(gateway_url)
    flights, itinerary_id = await _search(customer)
    async with AsyncExitStack() as undo:
        booking = await undo.enter_async_context(_booked(customer, itinerary_id))
        await passed("book")
        booking = await _change_seats(booking, flights)
        await _pay(booking)
        await passed("pay booking")
        booking = await _confirmed(booking, patience)
        await mailed(booking.email, about=booking.body["pnr"], patience=patience)
        travellers = await _log_in(gateway_url, booking, flights, patience)
        checkin_ids = []
        for traveller in travellers:
            seat = booking.seats[traveller.person.flight_id]
            checkin_ids.append(await undo.enter_async_context(checked_in(traveller, None)))
            await declare_light_bags(traveller, checkin_ids[-1], seat)
            await show_boarding_pass(traveller, checkin_ids[-1], seat)
        await passed("boarding passes")
        await _cancel(booking)
        await passed("cancel booking")
        for traveller, checkin_id in zip(travellers, checkin_ids, strict=True):
            await _check_in_cancelled(traveller, checkin_id, patience)
        await _refunded(booking, patience)
    for traveller in travellers:
        await see(traveller, booking.seats[traveller.person.flight_id], "AVAILABLE", patience)


async def _become_customer(gateway_url: str) -> Gateway:
    answer = await Gateway(gateway_url).send("/v1/sessions/guest", {})
    expect("guest session", answer)
    step("guest session", answer, f"customer {answer.body['customerId']} until {answer.body['expireTime']}")
    return Gateway(gateway_url, answer.body["token"])


async def _search(customer: Gateway) -> tuple[list[Flight], str]:
    """Returns two connecting flights with open check-in, and their itinerary's id."""
    now = datetime.now(UTC)
    leaving = await _next_flights(customer, until=now + LEAVES_BEFORE)
    flights = [flight for flight in leaving if _can_be_used(flight, now)]
    questions = list(set(_questions(flights)))
    secrets.SystemRandom().shuffle(questions)
    for source, destination, date in questions[:SEARCHES]:
        query = urlencode({"source": source, "destination": destination, "date": date, "max_hops": 1, "sort": "price"})
        answer = await customer.get(f"/v1/search?{query}")
        expect("search", answer)
        for found in answer.body["itineraries"]:
            if found["type"] == "COMPUTED" and all(_can_be_used(flight, now) for flight in found["flights"]):
                names = ", ".join(f"{f['flightNumber']} {f['origin']} → {f['destination']}" for f in found["flights"])
                step(
                    "search",
                    answer,
                    f"{source} → {destination} on {date}: {answer.body['totalSize']} ways, among them {names} "
                    f"for {money_text(found['totalPrice'])}",
                )
                return found["flights"], found["itineraryId"]
    raise JourneyFailed(
        f"search: of {len(flights)} flights no two connect that can be checked in now; "
        "SKYHIGH_FLIGHT_HORIZON_DAYS says how far the schedule goes"
    )


async def _next_flights(customer: Gateway, *, until: datetime) -> list[Flight]:
    """Returns the next flights, at least those that depart before `until`.

    It reads at most PAGES pages.
    """
    flights: list[Flight] = []
    token = ""
    for _ in range(PAGES):
        answer = await customer.get(f"/v1/flights?{urlencode({'page_size': 100, 'page_token': token})}")
        expect("flights", answer)
        flights += answer.body["flights"]
        token = answer.body["nextPageToken"]
        if not token or _time(flights[-1]["departureTime"]) > until:
            break
    step("flights", answer, f"{len(flights)} leave until {flights[-1]['departureTime'] if flights else 'ever'}")
    return flights


def _can_be_used(flight: Flight, now: datetime) -> bool:
    leaves = _time(flight["departureTime"])
    return (
        now + LEAVES_AFTER < leaves < now + LEAVES_BEFORE
        and flight["status"] == "SCHEDULED"
        and flight["availableSeats"] > 0
    )


def _questions(flights: Sequence[Flight]) -> Iterator[tuple[str, str, str]]:
    """Yields the origin, destination and date of each pair of flights that connects."""
    leaving = defaultdict(list)
    for flight in flights:
        leaving[flight["origin"]].append(flight)
    for first in flights:
        arrives = _time(first["arrivalTime"])
        for second in leaving[first["destination"]]:
            pause = _time(second["departureTime"]) - arrives
            if SHORTEST_CONNECTION <= pause <= LONGEST_CONNECTION and second["destination"] != first["origin"]:
                yield first["origin"], second["destination"], first["departureDate"]


@asynccontextmanager
async def _booked(customer: Gateway, itinerary_id: str) -> AsyncIterator[Booking]:
    """Books, and repeats the request with the same key.

    Cancels the booking at the end of the block, also after an error.
    """
    email = f"journey-{secrets.token_hex(4)}@passengers.example"
    key = str(uuid4())
    order = {"itineraryId": itinerary_id, "passengers": [PASSENGER], "contactEmail": email}
    answer = await customer.send("/v1/bookings", order, key=key)
    expect("book", answer, state="SEATS_RESERVED")
    booking = Booking(customer, answer.body, email)
    step("book", answer, f"{_seats(booking)} for {money_text(answer.body['total'])} until {answer.body['expireTime']}")
    try:
        again = await customer.send("/v1/bookings", order, key=key)
        expect("book again", again, **answer.body)
        step("book again", again, "the same Idempotency-Key, the same booking")
        yield booking
    finally:
        with suppress(GatewayUnavailable, JourneyFailed):
            await _give_up(booking)


async def _give_up(booking: Booking) -> None:
    """Cancels the booking; retries while its payment is in progress."""

    async def cancel() -> Answer:
        answer = await booking.gateway.send(f"{booking.path}/cancel", {"reason": "JOURNEY"})
        return replace(answer, status=200) if answer.reason != "PAYMENT_IN_PROGRESS" else answer

    await until(cancel, lambda _: True, PAYMENT_SECONDS, "the booking could not be cancelled")


async def _change_seats(booking: Booking, flights: Sequence[Flight]) -> Booking:
    """Changes the seats on both flights in one request.

    Raises JourneyFailed if the seats are others than requested or the timer is not full again.
    """
    for _ in range(SEATS_TRIED):
        wanted = [
            {
                "flightId": flight["flightId"],
                "seatNumber": await _other_seat(booking, flight["flightId"]),
                "passengerId": booking.passenger_id,
            }
            for flight in flights
        ]
        answer = await booking.gateway.send(f"{booking.path}/seats", {"seats": wanted}, method="PUT")
        if answer.reason != "SEAT_TAKEN":
            break
    expect("change seats", answer, state="SEATS_RESERVED")
    changed = replace(booking, body=answer.body)
    if changed.seats != {seat["flightId"]: seat["seatNumber"] for seat in wanted}:
        raise JourneyFailed(f"change seats: asked for {wanted}, got {answer.body['seats']}")
    if _time(changed.body["expireTime"]) <= _time(booking.body["expireTime"]):
        raise JourneyFailed(f"change seats: the expire time is not later: {answer.body['expireTime']}")
    step("change seats", answer, f"{_seats(changed)} until {answer.body['expireTime']}")
    return changed


async def _other_seat(booking: Booking, flight_id: str) -> str:
    free = free_seats(await booking.gateway.get(f"/v1/flights/{flight_id}/seatmap"))
    if not free:
        raise JourneyFailed(f"map of {flight_id}: no other seat is free in economy")
    return secrets.choice(free)


async def _pay(booking: Booking) -> None:
    answer = await booking.gateway.send(f"{booking.path}/pay", {"paymentCode": ALWAYS_SUCCEEDS})
    expect("pay booking", answer)
    step("pay booking", answer, f"the booking is {answer.body['state']}")


async def _confirmed(booking: Booking, patience: float) -> Booking:
    answer = await until(
        lambda: booking.gateway.get(booking.path),
        lambda body: body.get("state") == "CONFIRMED",
        PAYMENT_SECONDS * patience,
        "the paid booking was not confirmed",
    )
    if Booking(booking.gateway, answer.body, booking.email).seats != booking.seats:
        raise JourneyFailed(f"confirmed: other seats than {booking.seats}: {answer.body['seats']}")
    step(
        "confirmed",
        answer,
        f"record locator {answer.body['pnr']}, attempt {answer.body['paymentAttempts']}, "
        + " → ".join(transition["toState"] for transition in answer.body["history"]),
    )
    return replace(booking, body=answer.body)


async def _log_in(gateway_url: str, booking: Booking, flights: Sequence[Flight], patience: float) -> list[Traveller]:
    """Logs in as the booking's passenger as soon as the manifest has the booking.

    Returns one traveller for each flight.
    """
    pnr = booking.body["pnr"]
    # An agent reads the trip instead, because repeated logins would reach the login limit (CHK-2).
    agent = Gateway(gateway_url, mint("agent", "journey"))
    answer = await until(
        lambda: agent.get(f"/v1/trips/{pnr}"),
        lambda body: len(body["passengers"][0]["segments"]) == len(flights),
        EVENT_SECONDS * patience,
        f"the booking {pnr} is not in the manifest",
    )
    step("manifest", answer, f"{pnr} flies on {', '.join(flight['flightId'] for flight in flights)}")
    passenger_id, email = booking.passenger_id, booking.email
    people = [Candidate(pnr, AS_TYPED, flight["flightId"], passenger_id, email) for flight in flights]
    first = await Traveller.log_in(gateway_url, people[0])
    return [replace(first, person=person) for person in people]


async def _cancel(booking: Booking) -> None:
    answer = await booking.gateway.send(f"{booking.path}/cancel", {"reason": "CHANGED_MIND"})
    expect("cancel booking", answer, state="CANCELLED")
    step("cancel booking", answer, f"the booking {answer.body['pnr']} is {answer.body['state']}")


async def _check_in_cancelled(traveller: Traveller, checkin_id: str, patience: float) -> None:
    answer = await until(
        lambda: traveller.gateway.get(f"/v1/checkins/{checkin_id}"),
        lambda body: body.get("state") == "CANCELLED",
        EVENT_SECONDS * patience,
        "the check-in of the cancelled booking was not cancelled",
    )
    step("check-in", answer, f"on {traveller.person.flight_id} it is {answer.body['state']}")


async def _refunded(booking: Booking, patience: float) -> None:
    answer = await until(
        lambda: booking.gateway.get(booking.path),
        lambda body: bool(body.get("refundTime")),
        PAYMENT_SECONDS * patience,
        "the fare of the cancelled booking was not refunded",
    )
    step("refund", answer, f"{money_text(answer.body['total'])} refunded at {answer.body['refundTime']}")


def _seats(booking: Booking) -> str:
    return ", ".join(f"{seat} on {flight_id}" for flight_id, seat in booking.seats.items())


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)
