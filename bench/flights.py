"""Flights for the measures, and calls that hold their seats."""

from __future__ import annotations

import itertools
import random
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import asyncpg
import grpc
from skyhigh.seat.v1 import seat_service_pb2 as pb
from skyhigh.seat.v1 import seat_service_pb2_grpc

from bench.load import CallFile
from bench.stack import BenchStack, SeatServer
from deploy.local.process import LOOPBACK

HOLD_SEAT: Final = "/skyhigh.seat.v1.SeatService/HoldSeat"
HOLD_SEATS: Final = "/skyhigh.seat.v1.SeatService/HoldSeats"
GET_SEAT_MAP: Final = "/skyhigh.seat.v1.SeatService/GetSeatMap"

NARROW: Final = "A320-180Y"
# The passengers of one PNR; also the most seats that one principal may hold on one flight (SEAT-16).
PARTY: Final = 9
DATE: Final = "2030-12-01"

_serial = itertools.count(1)
# The digits of `_locator`. The letters come first, so that a small number gives a locator that begins with a letter.
_LOCATOR_LETTERS: Final = "ABCDEFGHJKLMNPQRSTUVWXYZ23456789"
_locators = itertools.count(0)


@dataclass(frozen=True, slots=True)
class Party:
    """The passengers of one PNR and the seats that they will hold."""

    pnr: str
    flight_id: str
    seat_numbers: tuple[str, ...]

    @property
    def passenger_ids(self) -> list[str]:
        """The ids of the passengers, one for each seat."""
        return [f"{self.pnr}-{n}" for n in range(1, len(self.seat_numbers) + 1)]


async def provision(
    stack: BenchStack, server: SeatServer, *, flights: int, layout_id: str = NARROW
) -> tuple[list[str], list[str]]:
    """Provisions new flights; returns their ids and their seat numbers.

    The service provisions the first flight; SQL copies its rows for the others. All have the same seat numbers.
    """
    series = f"B{next(_serial):03}"
    first = f"{series}N00000-{DATE}"
    async with grpc.aio.insecure_channel(f"{LOOPBACK}:{server.port}") as channel:
        service: seat_service_pb2_grpc.SeatServiceStub = seat_service_pb2_grpc.SeatServiceStub(channel)
        await service.ProvisionSeats(
            pb.ProvisionSeatsRequest(flight_id=first, layout_id=layout_id),
            metadata=[("authorization", f"Bearer {stack.signer.service('bench')}")],
            timeout=10,
        )
    async with server.connection() as connection:
        await _copy(connection, first, series, flights)
        seats = await connection.fetch("SELECT seat_number FROM seats WHERE flight_id = $1 ORDER BY ordinal", first)
    ids = [f"{series}N{n:05}-{DATE}" for n in range(flights)]
    return ids, [row["seat_number"] for row in seats]


async def _copy(connection: asyncpg.Connection, first: str, series: str, flights: int) -> None:
    ids = f"SELECT '{series}N' || lpad(n::text, 5, '0') || '-{DATE}' AS id FROM generate_series(1, $2) AS n"
    copies = f"({ids}) AS copy"
    for statement in (
        f"""
        INSERT INTO flights (flight_id, layout_id, total_seats)
        SELECT copy.id, layout_id, total_seats FROM flights CROSS JOIN {copies} WHERE flight_id = $1
        """,
        f"""
        INSERT INTO seats (flight_id, seat_number, ordinal)
        SELECT copy.id, seat_number, ordinal FROM {copies} CROSS JOIN seats WHERE flight_id = $1
        """,
        # With these rows the flights look older: the seat service does not announce their first counts now.
        f"""
        INSERT INTO availability (flight_id, version)
        SELECT copy.id, 1 FROM {copies} WHERE copy.id <> $1 ON CONFLICT DO NOTHING
        """,
    ):
        await connection.execute(statement, first, flights - 1)
    # Autovacuum would do this within a minute. Before that, the planner assumes that the tables of a new database are
    # empty.
    await connection.execute("VACUUM (ANALYZE) flights, seats, availability")
    for table in ("holds", "hold_seats", "seat_events", "idempotency", "outbox"):
        # Only tables with rows: autovacuum does not analyze a table without changes either, and if a table is analyzed
        # while it is empty, the planner assumes for long that it is.
        if await connection.fetchval(f"SELECT EXISTS (SELECT FROM {table})"):
            await connection.execute(f"ANALYZE {table}")


def parties(flight_ids: Sequence[str], seat_numbers: Sequence[str]) -> list[Party]:
    """Returns parties of nine for all seats of the flights, each on one flight."""
    return [
        Party(_locator(next(_locators)), flight_id, tuple(seat_numbers[n : n + PARTY]))
        for flight_id in flight_ids
        for n in range(0, len(seat_numbers) - PARTY + 1, PARTY)
    ]


def _locator(number: int) -> str:
    """Returns the number as a record locator: six digits in base 32.

    The locator begins with a letter if the number is below 24 · 32^5 (805 million).
    """
    letters = []
    for _ in range(6):
        number, digit = divmod(number, len(_LOCATOR_LETTERS))
        letters.append(_LOCATOR_LETTERS[digit])
    return "".join(reversed(letters))


async def list_passengers(server: SeatServer, wanted: Sequence[Party]) -> None:
    """Writes the parties to the seat service's passengers, as the check-in service does.

    Without that, the seat service would refuse the holds of their sessions (SEAT-17).
    """
    async with server.connection() as connection:
        await connection.copy_records_to_table(
            "passengers",
            records=[
                (party.flight_id, passenger_id, party.pnr, "ECONOMY", "ADULT", [], False, 1)
                for party in wanted
                for passenger_id in party.passenger_ids
            ],
            columns=("flight_id", "passenger_id", "pnr", "cabin", "type", "special_services", "ended", "revision"),
        )
        await connection.execute("VACUUM (ANALYZE) passengers")


def holds_by_passengers(stack: BenchStack, wanted: Sequence[Party]) -> CallFile:
    """Returns a HoldSeat call for each seat, by the party's check-in session.

    The order mixes the flights.
    """
    calls = CallFile()
    tokens = {party.pnr: stack.signer.passengers(party.pnr, party.passenger_ids, party.flight_id) for party in wanted}
    for party, seat_number, passenger_id in _mixed(wanted):
        calls.add_grpc(HOLD_SEAT, _hold_seat(party, seat_number, passenger_id), token=tokens[party.pnr])
    return calls


def holds_by_agent(stack: BenchStack, wanted: Sequence[Party]) -> CallFile:
    """Returns the same calls by one agent, who acts for the parties."""
    calls = CallFile()
    token = stack.signer.agent("bench")
    for party, seat_number, passenger_id in _mixed(wanted):
        request = _hold_seat(party, seat_number, passenger_id)
        request.owner = f"passenger:{party.pnr}"
        calls.add_grpc(HOLD_SEAT, request, token=token)
    return calls


def holds_by(token: str, wanted: Sequence[Party]) -> CallFile:
    """Returns the same calls with this token, whose principal owns all the holds."""
    calls = CallFile()
    for party, seat_number, passenger_id in _mixed(wanted):
        calls.add_grpc(HOLD_SEAT, _hold_seat(party, seat_number, passenger_id), token=token)
    return calls


def party_holds_by_agent(stack: BenchStack, wanted: Sequence[Party]) -> CallFile:
    """Returns a HoldSeats call for each party, by one agent who acts for it."""
    calls = CallFile()
    token = stack.signer.agent("bench")
    for party in random.Random(1).sample(wanted, len(wanted)):
        request = pb.HoldSeatsRequest(
            seats=[
                pb.SeatAssignment(flight_id=party.flight_id, seat_number=seat_number, passenger_id=passenger_id)
                for seat_number, passenger_id in zip(party.seat_numbers, party.passenger_ids, strict=True)
            ],
            purpose=pb.Hold.BOOKING,
            request_id=str(uuid.uuid4()),
            owner=f"passenger:{party.pnr}",
        )
        calls.add_grpc(HOLD_SEATS, request, token=token)
    return calls


def _mixed(wanted: Sequence[Party]) -> Iterator[tuple[Party, str, str]]:
    seats = [
        (party, seat_number, passenger_id)
        for party in wanted
        for seat_number, passenger_id in zip(party.seat_numbers, party.passenger_ids, strict=True)
    ]
    # The same order in each run.
    random.Random(1).shuffle(seats)
    yield from seats


def _hold_seat(party: Party, seat_number: str, passenger_id: str) -> pb.HoldSeatRequest:
    return pb.HoldSeatRequest(
        flight_id=party.flight_id,
        seat_number=seat_number,
        passenger_id=passenger_id,
        purpose=pb.Hold.BOOKING,
        request_id=str(uuid.uuid4()),
    )


async def answer_bytes(server: SeatServer, method: str, request: bytes, token: str) -> bytes:
    """Returns the response of the real server, which the baseline then returns too."""
    async with grpc.aio.insecure_channel(f"{LOOPBACK}:{server.port}") as channel:
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(method)
        answer: bytes = await call(request, metadata=[("authorization", f"Bearer {token}")], timeout=10)
        return answer
