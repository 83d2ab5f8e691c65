"""The waitlist service in this process, with the session's seat service.

The check-in service and the mail server are mocks.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import asyncpg
import grpc
import pytest
from skyhigh.checkin.v1 import checkin_service_pb2 as checkin
from skyhigh.checkin.v1.checkin_service_pb2_grpc import CheckInServiceServicer, add_CheckInServiceServicer_to_server
from skyhigh.seat.v1 import events_pb2
from skyhigh.seat.v1 import seat_service_pb2 as seats
from skyhigh.waitlist.v1 import waitlist_service_pb2 as pb
from skyhigh.waitlist.v1.waitlist_service_pb2_grpc import WaitlistServiceStub

from deploy.mocks import mail
from deploy.mocks.mail import MailBehaviour, MailSettings, MailSink
from tests.callers import Caller, Callers, seat
from tests.dates import new_flight_id
from tests.instances import Database, running
from tests.waiting import eventually
from waitlist_service.service import WAITLIST_SERVICE

if TYPE_CHECKING:
    from tests.conftest import World

# One hour: an offer ends only if a test moves its end.
OFFER_SECONDS = "3600"
LETTERS = "ABCDEFGHJKMNPQRSTUVWXYZ"


class Manifest(CheckInServiceServicer):
    """A mock of the check-in service: passengers and flights."""

    def __init__(self) -> None:
        self.passengers: dict[tuple[str, str], checkin.ManifestPassenger] = {}
        self.flights: dict[str, checkin.FindPassengersResponse.FoundFlight] = {}
        self.is_down = False

    def put(self, flight_id: str, passenger_id: str, pnr: str, profile: str = "ECONOMY", **more: Any) -> None:
        """Adds a passenger to a flight's manifest; `profile` is `CABIN[:TYPE[+SSR…]]`."""
        cabin, _, kind = profile.partition(":")
        type_name, *services = (kind or "ADULT").split("+")
        self.passengers[flight_id, passenger_id] = checkin.ManifestPassenger(
            passenger_id=passenger_id,
            pnr=pnr,
            given_name="Ada",
            last_name="Byron",
            type=checkin.PassengerType.Value(type_name),
            cabin=checkin.Cabin.Value(cabin),
            special_services=services,
            **more,
        )
        if flight_id not in self.flights:
            self.closes(flight_id, after=timedelta(hours=6))

    def take_off(self, flight_id: str, passenger_id: str) -> None:
        """Removes a passenger from a flight's manifest."""
        del self.passengers[flight_id, passenger_id]

    def closes(self, flight_id: str, *, after: timedelta) -> None:
        """Sets when check-in for a flight closes."""
        close_time = datetime.now(UTC) + after
        flight = self.flights.setdefault(flight_id, checkin.FindPassengersResponse.FoundFlight(flight_id=flight_id))
        flight.check_in_close_time.FromDatetime(close_time)

    def cancels(self, flight_id: str, reason: str) -> None:
        """Marks a flight as cancelled."""
        self.flights[flight_id].cancel_time.GetCurrentTime()
        self.flights[flight_id].cancel_reason = reason

    async def FindPassengers(
        self, request: checkin.FindPassengersRequest, context: Any
    ) -> checkin.FindPassengersResponse:
        """Returns the known passengers and flights of the request."""
        if self.is_down:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "down")
        answer = checkin.FindPassengersResponse()
        for each in request.passengers:
            found = self.passengers.get((each.flight_id, each.passenger_id))
            if found is not None:
                answer.passengers.add(flight_id=each.flight_id, passenger=found)
        for flight_id in sorted({*request.flight_ids, *(each.flight_id for each in request.passengers)}):
            flight = self.flights.get(flight_id)
            if flight is not None:
                closes = flight.check_in_close_time.ToDatetime(tzinfo=UTC)
                flight.check_in_closed = closes <= datetime.now(UTC)
                answer.flights.append(flight)
        return answer


@pytest.fixture(scope="package")
async def manifest() -> AsyncIterator[tuple[Manifest, str]]:
    """The mock of the check-in service, and its address."""
    servicer = Manifest()
    server = grpc.aio.server()
    add_CheckInServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield servicer, f"127.0.0.1:{port}"
    await server.stop(None)


@pytest.fixture(scope="package")
async def any_mails() -> AsyncIterator[MailSink]:
    """The mail server of the package."""
    async with mail.serving(MailSettings(listen="127.0.0.1:0", control="127.0.0.1:0")) as sink:
        yield sink


@pytest.fixture
def mails(any_mails: MailSink) -> Iterator[MailSink]:
    """The mail server; it accepts all mail again after each test."""
    yield any_mails
    any_mails.behaviour.now = MailBehaviour()


@pytest.fixture(scope="package")
async def waitlist(
    world: World, callers: Callers, manifest: tuple[Manifest, str], any_mails: MailSink
) -> AsyncIterator[Callers]:
    """Callers of the waitlist service."""
    async with running(
        world,
        WAITLIST_SERVICE,
        WaitlistServiceStub,
        SKYHIGH_SEAT_ADDRESS=callers.address,
        SKYHIGH_CHECKIN_ADDRESS=manifest[1],
        SKYHIGH_SMTP_ADDRESS=any_mails.address,
        SKYHIGH_WAITLIST_OFFER_SECONDS=OFFER_SECONDS,
        SKYHIGH_WAITLIST_SWEEP_INTERVAL_SECONDS="1",
        SKYHIGH_RECONCILE_SECONDS="1",
    ) as served:
        yield served


@dataclass(frozen=True, slots=True)
class Waiter:
    """A passenger with a session, as a caller of the seat and the waitlist service."""

    flight_id: str
    passenger_id: str
    pnr: str
    seats: Caller
    waitlist: Caller

    async def join(self, *seat_numbers: str, positions: tuple[str, ...] = (), **more: Any) -> pb.WaitlistEntry:
        """Joins the flight's waitlist."""
        wishes = pb.SeatPreferences(
            seat_numbers=seat_numbers, positions=[pb.SeatPreferences.Position.Value(name) for name in positions]
        )
        entry: pb.WaitlistEntry = await self.waitlist.JoinWaitlist(
            pb.JoinWaitlistRequest(flight_id=self.flight_id, passenger_id=self.passenger_id, preferences=wishes, **more)
        )
        return entry

    async def entry(self, entry: pb.WaitlistEntry) -> pb.WaitlistEntry:
        """Reads the entry."""
        found: pb.WaitlistEntry = await self.waitlist.GetWaitlistEntry(
            pb.GetWaitlistEntryRequest(entry_id=entry.entry_id)
        )
        return found

    async def becomes(self, entry: pb.WaitlistEntry, state: str) -> pb.WaitlistEntry:
        """Waits until the entry is in this state; returns it."""

        async def so() -> bool:
            return pb.WaitlistEntry.State.Name((await self.entry(entry)).state) == state

        await eventually(so)
        return await self.entry(entry)


class Flight:
    """A flight whose seats are all confirmed, and passengers who wait for a seat."""

    def __init__(
        self,
        flight_id: str,
        callers: Callers,
        waitlist: Callers,
        held: dict[str, seats.Hold],
        manifest: Manifest,
    ) -> None:
        self.flight_id = flight_id
        self.manifest = manifest
        self.callers = callers
        self._waitlist = waitlist
        self._held = held

    def waiter(self, profile: str = "ECONOMY") -> Waiter:
        """Adds a passenger to the flight's manifest; `profile` is `CABIN[:TYPE[+SSR]]`."""
        pnr = "".join(secrets.choice(LETTERS) for _ in range(6))
        passenger = f"{pnr}-1:{self.flight_id}:{profile}"
        self.manifest.put(self.flight_id, f"{pnr}-1", pnr, profile)
        return Waiter(
            self.flight_id,
            f"{pnr}-1",
            pnr,
            self.callers.passenger(passenger, pnr=pnr),
            # The session's token names only the locator.
            self._waitlist.passenger(pnr=pnr),
        )

    @property
    def seat_numbers(self) -> list[str]:
        """Returns the seats that are still confirmed as at the start."""
        return list(self._held)

    async def free(self, *seat_numbers: str) -> None:
        """Cancels the holds of these seats, all at the same time."""
        agent = self.callers.agent()
        await asyncio.gather(*(agent.cancel(self._held.pop(number)) for number in seat_numbers))

    async def take(self, seat_number: str) -> None:
        """Has an agent confirm a free seat for a passenger who does not wait."""
        agent = self.callers.agent()
        hold = await agent.hold(self.flight_id, seat_number, f"X-{secrets.token_hex(4)}")
        self._held[seat_number] = await agent.confirm(hold)

    async def give_to_one_hold(self, *seat_numbers: str) -> None:
        """Moves seats into one hold, so that one transaction and one event release them."""
        await self.free(*seat_numbers)
        agent = self.callers.agent()
        hold = await agent.hold_seats(*(seat(self.flight_id, number, f"F-{number}") for number in seat_numbers))
        self._held[seat_numbers[0]] = await agent.confirm(hold)

    async def state(self, seat_number: str) -> str:
        """Returns a seat's state from the seat map, which is at most 1 s old."""
        return (await self.callers.agent().states(self.flight_id))[seat_number]

    async def shows(self, seat_number: str, state: str) -> None:
        """Waits until the seat map shows this state of a seat."""

        async def so() -> bool:
            return await self.state(seat_number) == state

        await eventually(so)

    async def seat_of(self, waiter: Waiter) -> str:
        """Returns the confirmed seat of a passenger; empty if there is none."""
        answer = await self.callers.service().FindPassengerSeats(
            seats.FindPassengerSeatsRequest(
                passengers=[
                    seats.FindPassengerSeatsRequest.FlightPassenger(
                        flight_id=self.flight_id, passenger_id=waiter.passenger_id
                    )
                ]
            )
        )
        return next((s.seat_number for s in answer.seats if s.state == seats.Seat.CONFIRMED), "")

    async def mode(self, mode: pb.WaitlistMode.ValueType) -> None:
        """Sets the mode in which freed seats are assigned."""
        await self._waitlist.agent().SetWaitlistMode(pb.SetWaitlistModeRequest(flight_id=self.flight_id, mode=mode))


async def take_all_seats(database: Database, flight_id: str) -> dict[str, seats.Hold]:
    """Confirms each seat of a new flight in its own hold; returns the holds by seat.

    Writes the rows that 180 calls of HoldSeat and of ConfirmHold would write. Those calls would take most of a test's
    time.
    """
    async with database.transaction():
        taken = await database.fetch(
            """
            UPDATE seats SET state = 'CONFIRMED', hold_id = gen_random_uuid(), version = 2
            WHERE flight_id = $1 AND state = 'AVAILABLE' RETURNING seat_number, hold_id
            """,
            flight_id,
        )
        await database.execute(
            """
            WITH taken AS (SELECT flight_id, seat_number, hold_id FROM seats WHERE flight_id = $1),
            held AS (
                INSERT INTO holds (hold_id, owner, purpose, state, ttl, extensions_left, create_time, expire_time,
                                   confirm_time)
                SELECT hold_id, 'agent:desk', 'CHECK_IN', 'CONFIRMED', '2 min', 9, now() - interval '2 s',
                       now() + interval '118 s', now() - interval '1 s'
                FROM taken
            ), assigned AS (
                INSERT INTO hold_seats (hold_id, flight_id, seat_number, passenger_id, state)
                SELECT hold_id, flight_id, seat_number, 'X-' || seat_number, 'CONFIRMED' FROM taken
            ), published AS (
                INSERT INTO outbox (event_id, routing_key, body, publish_time)
                VALUES ($2, 'seat.confirmed.v1', $3, now())
            )
            INSERT INTO seat_events (flight_id, seat_number, version, from_state, to_state, hold_id, actor, reason,
                                     event_id, event_time)
            SELECT flight_id, seat_number, step.version, from_state::seat_state, to_state::seat_state, hold_id,
                   'agent:desk', to_state, CASE to_state WHEN 'CONFIRMED' THEN $2 END, now() - step.age
            FROM taken CROSS JOIN (
                VALUES (1, 'AVAILABLE', 'HELD', interval '2 s'), (2, 'HELD', 'CONFIRMED', interval '1 s')
            ) AS step (version, from_state, to_state, age)
            """,
            flight_id,
            uuid4(),
            events_pb2.SeatConfirmed(flight_id=flight_id).SerializeToString(),
        )
    return {row["seat_number"]: seats.Hold(hold_id=str(row["hold_id"])) for row in taken}


@pytest.fixture
async def full(callers: Callers, waitlist: Callers, database: Database, manifest: tuple[Manifest, str]) -> Flight:
    """A flight of 180 confirmed seats."""
    flight_id = new_flight_id()
    await callers.operations().provision(flight_id)
    held = await take_all_seats(database, flight_id)
    return Flight(flight_id, callers, waitlist, dict(sorted(held.items())), manifest[0])


@pytest.fixture
async def waitlist_database(world: World, waitlist: Callers) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    """A connection with the waitlist service's role, to inspect the database."""
    connection = await asyncpg.connect(
        world.servers.database_url("waitlist"), server_settings={"search_path": "waitlist"}
    )
    yield connection
    await connection.close()
