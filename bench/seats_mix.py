"""P14: the six transactions of the SEATS benchmark, through our API and by pgbench.

SEATS (Stonebraker's electronic airline ticketing system) is the academic airline benchmark. Its six transactions, with
their weights, are mapped to calls of our API. The baseline has no holds, ledger, idempotency keys or events, and its
client is written in C; ours is in Python and shares the two cores with the servers.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import re
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import grpc
from skyhigh.checkin.v1 import checkin_service_pb2 as checkin
from skyhigh.checkin.v1.checkin_service_pb2_grpc import CheckInServiceStub
from skyhigh.flight.v1 import flight_service_pb2 as flight
from skyhigh.flight.v1.flight_service_pb2_grpc import FlightServiceStub
from skyhigh.seat.v1 import seat_service_pb2 as seat
from skyhigh.seat.v1.seat_service_pb2_grpc import SeatServiceStub

from bench.flights import provision
from bench.pgbench import program
from bench.plan import Plan
from bench.report import Measure
from bench.search import schedule
from bench.stack import BenchStack
from deploy.local.process import LOOPBACK

WEIGHTS: Final[Mapping[str, int]] = {
    "delete_reservation": 10,
    "find_flights": 10,
    "find_open_seats": 35,
    "new_reservation": 20,
    "update_customer": 10,
    "update_reservation": 15,
}
FLIGHTS: Final = 1_000
CUSTOMERS: Final = 10_000
RESERVATIONS: Final = 4_000
AT_ONCE: Final = 64
CLIENTS: Final = 8
DATABASE: Final = "seats_baseline"
SCRIPTS: Final = Path(__file__).with_name("seats_mix_baseline")
RESERVE_SECONDS: Final = 60
# The customers are on the manifests of so many flights.
MANIFESTS: Final = 100


async def seats_mix(stack: BenchStack, plan: Plan) -> list[Measure]:
    """P14: SEATS transactions per second, ours ÷ pgbench on the same Postgres."""
    measure = Measure("P14", "SEATS mix through our API ÷ six pgbench scripts", "transactions/s", bar=0.1, goal=0.5)
    await stack.seat.empty()
    await _prepare_baseline(stack)
    async with AsyncExitStack() as opened:
        airline = await Airline.open(stack, opened)
        await airline.import_customers()
        await airline.reserve_some()
        for turn, seconds in enumerate(plan.turns()):
            made = await _ours(stack, measure if turn else None, airline, seconds)
            other = await _baseline(stack, seconds)
            if turn:
                measure.ours.append(made)
                measure.baseline.append(other)
        measure.note(airline.seen())
    measure.note(
        f"{FLIGHTS:,} flights of 180 seats, {CUSTOMERS:,} customers and {RESERVATIONS:,} reservations at the start of "
        "both; an update of a customer is a new e-mail address on a manifest"
    )
    measure.note(
        f"{AT_ONCE} callers, a client in Python whose CPU is the machine's, too; pgbench: {CLIENTS} clients in C"
    )
    return [measure]


async def _ours(stack: BenchStack, measure: Measure | None, airline: Airline, seconds: float) -> float:
    """Runs one turn; returns transactions per second."""
    servers = ("seat", "flight", "checkin", "postgres")
    before = {name: stack.cpu(name) for name in servers} | {"client": time.process_time()}
    made, elapsed = await airline.run(seconds)
    after = {name: stack.cpu(name) for name in servers} | {"client": time.process_time()}
    if measure:
        for name, used in after.items():
            measure.cpu_us.setdefault(name, []).append((used - before[name]) * 1e6 / made)
    return made / elapsed


@dataclass(slots=True)
class Reservation:
    """A confirmed seat."""

    flight_id: str
    seat_number: str
    passenger_id: str
    hold_id: str


@dataclass(slots=True)
class Airline:
    """Our side: the services, and the reservations that the callers have made."""

    metadata: tuple[tuple[str, str], ...]
    seats: Any
    flights: Any
    check_ins: Any
    questions: list[flight.SearchFlightsRequest]
    flight_ids: list[str]
    seat_numbers: list[str]
    reservations: list[Reservation] = field(default_factory=list)
    made: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    dice: random.Random = field(default_factory=lambda: random.Random(1))
    passengers: Any = field(default_factory=lambda: itertools.count(1))

    @classmethod
    async def open(cls, stack: BenchStack, opened: AsyncExitStack) -> Airline:
        """Provisions the flights and connects to the services."""
        rolled = await schedule(stack)
        flight_ids, seat_numbers = await provision(stack, stack.seat, flights=FLIGHTS)
        channels = {
            name: await opened.enter_async_context(grpc.aio.insecure_channel(f"{LOOPBACK}:{stack.local.ports[name]}"))
            for name in ("seat", "flight", "checkin")
        }
        return cls(
            metadata=(("authorization", f"Bearer {stack.signer.service('bench')}"),),
            seats=SeatServiceStub(channels["seat"]),
            flights=FlightServiceStub(channels["flight"]),
            check_ins=CheckInServiceStub(channels["checkin"]),
            questions=rolled.questions()[:CUSTOMERS],
            flight_ids=flight_ids,
            seat_numbers=seat_numbers,
        )

    async def reserve_some(self) -> None:
        """Makes RESERVATIONS reservations; the baseline also starts with so many."""
        async with asyncio.timeout(RESERVE_SECONDS):
            while len(self.reservations) < RESERVATIONS:
                await asyncio.gather(*(self.new_reservation() for _ in range(AT_ONCE)))

    async def run(self, seconds: float) -> tuple[int, float]:
        """Runs AT_ONCE callers; returns the number of transactions and the elapsed seconds.

        A transaction that gets a refusal counts too, as in the baseline.
        """
        began = time.monotonic()
        names, weights = list(WEIGHTS), list(WEIGHTS.values())
        done = 0

        async def caller() -> None:
            nonlocal done
            while time.monotonic() < began + seconds:
                (name,) = self.dice.choices(names, weights)
                transaction: Callable[[], Awaitable[bool]] = getattr(self, name)
                self.made[name] += 1
                self.refused[name] += not await transaction()
                done += 1

        await asyncio.gather(*(caller() for _ in range(AT_ONCE)))
        return done, time.monotonic() - began

    def seen(self) -> str:
        """Describes the transactions: their number, their shares and the refused ones."""
        total = self.made.total()
        shares = ", ".join(f"{name} {self.made[name] * 100 / total:.0f} %" for name in WEIGHTS)
        refused = sum(self.refused.values()) * 100 / total
        return f"{total:,} transactions: {shares}; {refused:.1f} % found their seat or reservation gone"

    async def find_flights(self) -> bool:
        """Searches flights between two airports on a day."""
        await self.flights.SearchFlights(self.dice.choice(self.questions), timeout=10)
        return True

    async def find_open_seats(self) -> bool:
        """Reads a whole seat map."""
        request = seat.GetSeatMapRequest(flight_id=self.dice.choice(self.flight_ids))
        await self.seats.GetSeatMap(request, metadata=self.metadata, timeout=10)
        return True

    async def new_reservation(self) -> bool:
        """Holds and confirms a seat for a new passenger; returns False if the seat is taken."""
        passenger_id = f"S{next(self.passengers)}"
        return await self._reserve(self.dice.choice(self.flight_ids), passenger_id)

    async def update_reservation(self) -> bool:
        """Holds and confirms another seat for a passenger, which releases the former seat.

        Returns False if there is no reservation or the new seat is taken.
        """
        if (reservation := self._taken()) is None:
            return False
        if await self._reserve(reservation.flight_id, reservation.passenger_id):
            return True
        self.reservations.append(reservation)
        return False

    async def delete_reservation(self) -> bool:
        """Cancels a reservation; returns False if there is none."""
        if (reservation := self._taken()) is None:
            return False
        request = seat.CancelHoldRequest(hold_id=reservation.hold_id, request_id=str(uuid.uuid4()))
        await self.seats.CancelHold(request, metadata=self.metadata, timeout=10)
        return True

    async def update_customer(self) -> bool:
        """Imports a new e-mail address for a passenger of a manifest."""
        number = self.dice.randrange(CUSTOMERS)
        await self._import(number % MANIFESTS, [number])
        return True

    async def import_customers(self) -> None:
        """Imports the manifests with all customers."""
        for manifest in range(MANIFESTS):
            await self._import(manifest, range(manifest, CUSTOMERS, MANIFESTS))

    async def _import(self, manifest: int, customers: Iterable[int]) -> None:
        departure = datetime(2030, 12, 1, tzinfo=UTC)
        request = checkin.ImportManifestRequest(flight_id=f"SH9{manifest:02}-{departure.date()}")
        facts = request.flight
        facts.flight_number, facts.origin, facts.destination = f"SH9{manifest:02}", "LIS", "VIE"
        facts.departure_time.FromDatetime(departure)
        facts.arrival_time.FromDatetime(departure + timedelta(hours=3))
        for number in customers:
            request.passengers.add(
                passenger_id=f"C{number}",
                pnr="BENCHX",
                given_name="Ada",
                last_name="Bench",
                contact_email=f"c{self.dice.randrange(10**6)}@passengers.example",
            )
        await self.check_ins.ImportManifest(request, metadata=self.metadata, timeout=10)

    async def _reserve(self, flight_id: str, passenger_id: str) -> bool:
        seat_number = self.dice.choice(self.seat_numbers)
        hold = seat.HoldSeatRequest(
            flight_id=flight_id,
            seat_number=seat_number,
            passenger_id=passenger_id,
            owner=f"customer:{passenger_id}",
            request_id=str(uuid.uuid4()),
        )
        try:
            held = await self.seats.HoldSeat(hold, metadata=self.metadata, timeout=10)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.ABORTED:
                return False
            raise
        confirm = seat.ConfirmHoldRequest(hold_id=held.hold_id, request_id=str(uuid.uuid4()))
        await self.seats.ConfirmHold(confirm, metadata=self.metadata, timeout=10)
        self.reservations.append(Reservation(flight_id, seat_number, passenger_id, held.hold_id))
        return True

    def _taken(self) -> Reservation | None:
        """Removes and returns a random reservation, so that no other caller uses it."""
        if not self.reservations:
            return None
        index = self.dice.randrange(len(self.reservations))
        self.reservations[index], self.reservations[-1] = self.reservations[-1], self.reservations[index]
        return self.reservations.pop()


async def _prepare_baseline(stack: BenchStack) -> None:
    connection = await stack.superuser("postgres")
    try:
        await connection.execute(f"CREATE DATABASE {DATABASE}")
    finally:
        await connection.close()
    sizes = {"flights": FLIGHTS, "customers": CUSTOMERS, "reservations": RESERVATIONS}
    schema = re.sub(r":(\w+)\b", lambda name: str(sizes[name[1]]), _without_comments("schema.sql"))
    connection = await stack.superuser(DATABASE)
    try:
        *statements, vacuum = schema.rsplit("VACUUM", 1)
        await connection.execute("".join(statements))
        await connection.execute(f"VACUUM{vacuum}")
    finally:
        await connection.close()


def _without_comments(name: str) -> str:
    return re.sub(r"--.*", "", (SCRIPTS / name).read_text())


async def _baseline(stack: BenchStack, seconds: float) -> float:
    """Runs the six scripts with their weights. Raises RuntimeError if pgbench fails."""
    process = await asyncio.create_subprocess_exec(
        program(),
        *f"--no-vacuum --protocol=prepared --client={CLIENTS} --jobs=2 --time={max(1, round(seconds))}".split(),
        f"--define=flights={FLIGHTS}",
        f"--define=customers={CUSTOMERS}",
        *(f"--file={SCRIPTS / f'{name}.sql'}@{weight}" for name, weight in WEIGHTS.items()),
        DATABASE,
        env={
            **os.environ,
            "PGHOST": LOOPBACK,
            "PGPORT": str(stack.local.ports["postgres"]),
            "PGUSER": "postgres",
            "PGPASSWORD": stack.superuser_password,
        },
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, complaint = await process.communicate()
    rate = re.search(rb"tps = ([\d.]+)", output)
    if process.returncode or rate is None:
        raise RuntimeError(complaint.decode().strip() or "pgbench failed")
    return float(rate[1])
