"""The limit of held seats per address, and the cool-down after lapses (SEAT-16).

All guests of one address count together.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest
from skyhigh.seat.v1 import seat_service_pb2 as pb

from services.running_call import CLIENT_HEADER
from tests.aging import age_holds, lapse_holds
from tests.callers import Caller, Callers, refused, seat
from tests.dates import new_flight_id
from tests.instances import Database, Instance, instance, own_database
from tests.seat.rules import at_once, outcomes, rows, violations
from tests.waiting import eventually

if TYPE_CHECKING:
    from tests.conftest import World

NUMBERS = [f"{row}{letter}" for row in range(1, 31) for letter in "ABCDEF"]
LIMIT = 27


def new_address() -> str:
    """Returns an address of the documentation ranges, most likely an unused one."""
    return f"203.0.113.{secrets.randbelow(256)}" if secrets.randbelow(2) else f"2001:db8:{secrets.token_hex(2)}::1"


async def hold(caller: Caller, flight: str, numbers: list[str], address: str, *, owner: str = "") -> pb.Hold:
    """Holds seats with a call that the gateway passes on from this address."""
    request = pb.HoldSeatsRequest(
        seats=[seat(flight, number) for number in numbers],
        purpose=pb.Hold.BOOKING,
        owner=owner,
        managed=bool(owner),
        request_id=str(uuid4()),
    )
    held: pb.Hold = await caller.HoldSeats(request, metadata=((CLIENT_HEADER, address),))
    return held


async def fill(callers: Callers, flight: str, address: str) -> list[pb.Hold]:
    """Three guests hold as many seats as one address may; returns their holds."""
    return [await hold(callers.customer(), flight, NUMBERS[n : n + 9], address) for n in range(0, LIMIT, 9)]


async def test_guests_of_an_address_hold_at_most_27_seats(callers: Callers, flight: str, database: Database) -> None:
    address = new_address()
    await fill(callers, flight, address)
    before = await rows(database, flight)
    with refused("RESOURCE_EXHAUSTED", "TOO_MANY_HELD_SEATS") as refusal:
        await hold(callers.customer(), flight, NUMBERS[27:28], address)
    assert refusal.info.metadata == {"limit": str(LIMIT), "counted_by": "ADDRESS"}
    assert refusal.retry_after_seconds is not None
    # The caller is told to wait until the first of these holds expires.
    assert 0 < refusal.retry_after_seconds <= 900
    assert await rows(database, flight) == before


async def test_only_guests_of_the_address_are_counted(operations: Caller, callers: Callers, flight: str) -> None:
    address, onward = new_address(), new_flight_id()
    await fill(callers, flight, address)
    # Not counted: another address, another flight, a call from inside, an agent, and a passenger with a session.
    await hold(callers.customer(), flight, NUMBERS[27:28], "198.51.100.7")
    await operations.provision(onward)
    await hold(callers.customer(), onward, NUMBERS[:9], address)
    await callers.customer().hold(flight, NUMBERS[28])
    await hold(callers.agent(), flight, NUMBERS[29:38], address)
    passenger = callers.passenger(f"P-1:{flight}")
    request = pb.HoldSeatRequest(flight_id=flight, seat_number=NUMBERS[38], passenger_id="P-1")
    await passenger.HoldSeat(request, metadata=((CLIENT_HEADER, address),))


async def test_a_booking_counts_for_its_guests_address(callers: Callers, flight: str) -> None:
    address, booking = new_address(), callers.service()
    for n in range(0, LIMIT, 9):
        await hold(booking, flight, NUMBERS[n : n + 9], address, owner=f"customer:{secrets.token_hex(4)}")
    with refused("RESOURCE_EXHAUSTED", "TOO_MANY_HELD_SEATS"):
        await hold(booking, flight, NUMBERS[27:28], address, owner=f"customer:{secrets.token_hex(4)}")
    with refused("RESOURCE_EXHAUSTED", "TOO_MANY_HELD_SEATS"):
        await hold(callers.customer(), flight, NUMBERS[27:28], address)


async def test_addresses_of_one_ipv6_network_count_as_one(callers: Callers, flight: str) -> None:
    network = f"2001:db8:{secrets.token_hex(2)}:7"
    for n in range(0, LIMIT, 9):
        await hold(callers.customer(), flight, NUMBERS[n : n + 9], f"{network}::{n + 1}")
    with refused("RESOURCE_EXHAUSTED", "TOO_MANY_HELD_SEATS"):
        await hold(callers.customer(), flight, NUMBERS[27:28], f"{network}:1:2:3:4")


async def test_concurrent_guests_cannot_exceed_the_limit(
    callers: Callers, second: Callers, flight: str, database: Database
) -> None:
    address = new_address()
    results = await at_once(
        *(hold((callers, second)[n % 2].customer(), flight, [number], address) for n, number in enumerate(NUMBERS[:60]))
    )
    assert outcomes(results) == {"OK": LIMIT, "TOO_MANY_HELD_SEATS": 60 - LIMIT}
    assert await violations(database, flight) == []


async def test_a_change_cannot_exceed_the_limit(callers: Callers, flight: str, database: Database) -> None:
    address, last = new_address(), callers.customer()
    for n in (0, 9):
        await hold(callers.customer(), flight, NUMBERS[n : n + 9], address)
    await hold(callers.customer(), flight, NUMBERS[18:26], address)
    held = await hold(last, flight, NUMBERS[26:27], address)
    passenger = held.seats[0].passenger_id
    before = await rows(database, flight)
    with refused("RESOURCE_EXHAUSTED", "TOO_MANY_HELD_SEATS") as refusal:
        await last.ChangeHoldSeats(
            pb.ChangeHoldSeatsRequest(
                hold_id=held.hold_id, seats=[seat(flight, NUMBERS[30], passenger), seat(flight, NUMBERS[31])]
            )
        )
    assert refusal.info.metadata["counted_by"] == "ADDRESS"
    assert await rows(database, flight) == before
    # Changing one seat for another does not exceed the limit, and the new seat still counts for the address.
    await last.ChangeHoldSeats(
        pb.ChangeHoldSeatsRequest(hold_id=held.hold_id, seats=[seat(flight, NUMBERS[30], passenger)])
    )
    with refused("RESOURCE_EXHAUSTED", "TOO_MANY_HELD_SEATS"):
        await hold(callers.customer(), flight, NUMBERS[31:32], address)


async def test_cancelled_and_confirmed_seats_are_not_counted(callers: Callers, flight: str) -> None:
    address = new_address()
    first, second, _ = await fill(callers, flight, address)
    await callers.agent().cancel(first)
    await callers.agent().confirm(second)
    await hold(callers.customer(), flight, NUMBERS[27:36], address)
    await hold(callers.customer(), flight, NUMBERS[36:45], address)
    with refused("RESOURCE_EXHAUSTED", "TOO_MANY_HELD_SEATS"):
        await hold(callers.customer(), flight, NUMBERS[45:46], address)


@pytest.fixture(scope="module")
async def impatient(world: World) -> AsyncIterator[Instance]:
    """A service that cools an address down after two lapses.

    It has its own database, and does not trust the addresses that these callers pass on.
    """
    async with instance(
        world,
        database_url=await own_database(world),
        SKYHIGH_SEAT_SWEEP_INTERVAL_SECONDS="0.02",
        SKYHIGH_SEAT_LAPSES_ALLOWED_PER_ADDRESS="2",
        SKYHIGH_TRUSTED_PROXIES="198.51.100.0/24",
    ) as other:
        yield other


async def test_lapses_of_different_guests_cool_down_their_address(impatient: Instance) -> None:
    callers, address, flight = impatient.callers, new_address(), new_flight_id()
    await callers.operations().provision(flight)

    async def lapsed(number: str) -> pb.Hold:
        # The booking service passes on the address of its client. The seat service trusts it because of its token.
        held = await hold(callers.service(), flight, [number], address, owner=f"customer:{secrets.token_hex(4)}")
        await lapse_holds(impatient.database, held)

        async def swept() -> bool:
            state = await impatient.database.fetchval("SELECT state::text FROM holds WHERE hold_id = $1", held.hold_id)
            return bool(state == "EXPIRED")

        await eventually(swept)
        return held

    before = [await lapsed(number) for number in ("20A", "20B")]
    with refused("RESOURCE_EXHAUSTED", "COOLING_DOWN") as refusal:
        await lapsed("20C")
    assert refusal.info.metadata == {"counted_by": "ADDRESS"}
    assert refusal.retry_after_seconds is not None
    assert 0 < refusal.retry_after_seconds <= 60
    await hold(callers.service(), flight, ["21A"], "198.51.100.200", owner=f"customer:{secrets.token_hex(4)}")
    await age_holds(impatient.database, *before, by=timedelta(seconds=refusal.retry_after_seconds))
    await lapsed("20C")


async def test_an_address_header_of_a_client_is_ignored(impatient: Instance) -> None:
    callers, flight = impatient.callers, new_flight_id()
    await callers.operations().provision(flight)
    held = await hold(callers.customer(), flight, ["22A"], "203.0.113.77")
    assert await impatient.database.fetchval("SELECT address FROM holds WHERE hold_id = $1", held.hold_id) is None
