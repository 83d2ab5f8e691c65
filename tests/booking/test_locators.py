"""A locator is reserved at the check-in service before a charge (BKG-4, CHK-1).

The reason is in decision 37.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

import asyncpg
import pytest
from skyhigh.booking.v1 import booking_service_pb2 as pb
from skyhigh.checkin.v1 import checkin_service_pb2 as checkin_pb
from skyhigh.checkin.v1.checkin_service_pb2_grpc import CheckInServiceStub

from booking_service import locators, steps
from checkin_service.service import CHECKIN_SERVICE
from deploy.local.process import LOOPBACK, free_ports
from tests.booking.agency import UNDECIDED, Agency, Customer, Journey, state_of
from tests.booking.conftest import opened
from tests.booking.gate import Gate, gate
from tests.booking.orders import end, provider_decides
from tests.callers import Callers
from tests.checkin.airport import facts, new_pnr
from tests.conftest import World
from tests.instances import Database, database_with, running
from tests.waiting import PATIENCE_SECONDS, eventually, pause


@dataclass(frozen=True, slots=True)
class Desk:
    """A check-in service, its database, and the gate in front of it."""

    checkin: Callers
    database: Database
    gate: Gate

    async def import_party(self, pnr: str, *, after_seconds: float = 0) -> None:
        """Imports a passenger with this locator, after a pause."""
        await pause(after_seconds)
        await self.checkin.operations().ImportManifest(
            checkin_pb.ImportManifestRequest(
                flight_id="SH1-IMPORTED",
                flight=facts(),
                passengers=[
                    checkin_pb.ManifestPassenger(passenger_id=f"M-{pnr}", pnr=pnr, given_name="Mal", last_name="Omega")
                ],
            )
        )

    async def owner(self, pnr: str) -> str | None:
        """Returns the key of the booking that owns a locator; None for an imported party."""
        rows = await self.database.fetch("SELECT booking FROM locators WHERE pnr = $1", pnr)
        assert len(rows) == 1, "the locator belongs to no party"
        owner: str | None = rows[0]["booking"]
        return owner


@pytest.fixture(scope="module")
async def any_desk(world: World) -> AsyncIterator[Desk]:
    databases = await database_with(world, "checkin")
    (unused_port,) = free_ports(1)
    nowhere = {f"SKYHIGH_{name}_ADDRESS": f"{LOOPBACK}:{unused_port}" for name in ("SEAT", "FLIGHT", "PAYMENT")}
    async with (
        running(world, CHECKIN_SERVICE, CheckInServiceStub, **databases, **nowhere) as checkin,
        gate(checkin.address) as before,
    ):
        database = await asyncpg.connect(
            databases["SKYHIGH_CHECKIN_DATABASE_URL"], server_settings={"search_path": "checkin"}
        )
        yield Desk(checkin, database, before)
        await database.close()


@pytest.fixture
def desk(any_desk: Desk) -> Desk:
    """The desk; its gate is open at the start of each test."""
    any_desk.gate.away = False
    any_desk.gate.open()
    return any_desk


@pytest.fixture(scope="module")
async def any_agency(world: World, any_desk: Desk) -> AsyncIterator[Agency]:
    async with opened(world, SKYHIGH_CHECKIN_ADDRESS=any_desk.gate.address) as agency:
        yield agency


def mint_first(monkeypatch: pytest.MonkeyPatch, *pnrs: str) -> list[str]:
    """Makes the booking service mint these locators first, then random ones.

    Returns the list of those that it has not minted yet.
    """
    real, first = locators.mint, list(pnrs)
    monkeypatch.setattr(locators, "mint", lambda: first.pop(0) if first else real())
    return first


async def tried(agency: Agency, timer: str, booking: pb.Booking) -> None:
    """Waits until a step of a booking has failed."""
    query = "SELECT last_error IS NOT NULL FROM timers WHERE name = $1 AND subject = $2 AND fire_time IS NULL"

    async def failed() -> bool:
        return bool(await agency.database.fetchval(query, timer, booking.booking_id))

    await eventually(failed)


def key_of(booking: pb.Booking) -> str:
    return UUID(booking.booking_id).hex[:16]


# With the second value the first try of the step finds all its locators taken, and its timer retries the step.
@pytest.mark.parametrize("tries", [1, steps.MINTED_AT_ONCE])
async def test_a_locator_taken_by_an_import_is_replaced(
    agency: Agency, customer: Customer, desk: Desk, monkeypatch: pytest.MonkeyPatch, tries: int
) -> None:
    imported = [new_pnr() for _ in range(tries)]
    for pnr in imported:
        await desk.import_party(pnr)
    to_come = mint_first(monkeypatch, *imported)
    booking = await customer.book(await agency.flight())
    await customer.pay(booking)
    confirmed = await customer.becomes(booking, "CONFIRMED")
    assert to_come == []
    assert confirmed.pnr not in imported
    assert [await desk.owner(pnr) for pnr in (confirmed.pnr, *imported)] == [key_of(booking), *([None] * tries)]


async def test_import_and_bookings_leave_one_owner_per_locator(
    agency: Agency, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    journey: Journey = await agency.flight()
    for turn in range(5):
        pnr = new_pnr()
        mint_first(monkeypatch, pnr, pnr)
        customers = [agency.customer(), agency.customer()]
        bookings = [await each.book(journey) for each in customers]
        *_, imported = await asyncio.gather(
            *(each.pay(booking) for each, booking in zip(customers, bookings, strict=True)),
            desk.import_party(pnr, after_seconds=turn * 0.01),
            return_exceptions=True,
        )
        confirmed = [await c.becomes(b, "CONFIRMED") for c, b in zip(customers, bookings, strict=True)]
        assert confirmed[0].pnr != confirmed[1].pnr
        assert [await desk.owner(each.pnr) for each in confirmed] == [key_of(each) for each in bookings]
        assert [each.pnr for each in confirmed].count(pnr) == isinstance(imported, BaseException)
        assert (await desk.owner(pnr) is None) != isinstance(imported, BaseException)


async def test_no_charge_before_check_in_reserves_the_locator(agency: Agency, customer: Customer, desk: Desk) -> None:
    desk.gate.away = True
    booking = await customer.book(await agency.flight())
    await customer.pay(booking)
    await tried(agency, "pay", booking)
    waiting = await customer.get(booking)
    assert (state_of(waiting), waiting.payment_intent_id) == ("PAYMENT_PENDING", "")
    # The start of the payment has extended the hold to its full time.
    assert waiting.expire_time.ToDatetime() > booking.expire_time.ToDatetime()
    assert await agency.hold_state(booking.hold_id) == "HELD"
    desk.gate.away = False
    confirmed = await customer.becomes(booking, "CONFIRMED")
    assert await desk.owner(confirmed.pnr) == key_of(booking)


async def test_an_unpaid_booking_expires_during_the_outage(agency: Agency, customer: Customer, desk: Desk) -> None:
    desk.gate.away = True
    booking = await customer.book(await agency.flight())
    await customer.pay(booking)
    await tried(agency, "pay", booking)
    await agency.lapse(booking)
    expired = await customer.becomes(booking, "EXPIRED")
    desk.gate.away = False
    found = await end(agency, booking)
    assert (found.state, found.paid, expired.payment_intent_id) == ("EXPIRED", False, "")


async def test_a_paid_booking_is_confirmed_during_the_outage(agency: Agency, customer: Customer, desk: Desk) -> None:
    agency.provider.behaviour.now = UNDECIDED
    booking = await customer.book(await agency.flight())
    await customer.pay(booking)
    await customer.becomes(booking, "PAYMENT_PROCESSING")
    reserved = (await agency.row(booking))["reserved_pnr"]
    # Customers see a locator only after the confirmation.
    assert (await customer.get(booking)).pnr == ""
    desk.gate.away = True
    await provider_decides(agency, booking)
    confirmed = await customer.becomes(booking, "CONFIRMED")
    assert confirmed.pnr == reserved
    assert await desk.owner(reserved) == key_of(booking)


async def test_a_payment_before_the_upgrade_waits_for_a_locator(agency: Agency, customer: Customer, desk: Desk) -> None:
    agency.provider.behaviour.now = UNDECIDED
    booking = await customer.book(await agency.flight())
    await customer.pay(booking)
    await customer.becomes(booking, "PAYMENT_PROCESSING")
    await agency.database.execute(
        "UPDATE bookings SET reserved_pnr = NULL WHERE booking_id = $1", UUID(booking.booking_id)
    )
    desk.gate.away = True
    await provider_decides(agency, booking)
    await tried(agency, "confirm", booking)
    row = await agency.row(booking)
    assert (row["state"], row["refund_reason"]) == ("PAYMENT_PROCESSING", None)
    # A confirmed hold does not expire.
    assert await agency.hold_state(booking.hold_id) == "CONFIRMED"
    await agency.set_back(booking, expire_time=timedelta(hours=1))
    desk.gate.away = False
    confirmed = await customer.becomes(booking, "CONFIRMED")
    assert await desk.owner(confirmed.pnr) == key_of(booking)
    assert (await end(agency, booking)).state == "CONFIRMED"


async def test_a_lost_response_does_not_stop_the_booking(agency: Agency, customer: Customer, desk: Desk) -> None:
    booking = await customer.book(await agency.flight())
    stop = desk.gate.stop("ReserveLocator", booking.booking_id, answered=True)
    await customer.pay(booking)
    await asyncio.wait_for(stop.reached.wait(), PATIENCE_SECONDS)
    desk.gate.open()
    confirmed = await customer.becomes(booking, "CONFIRMED")
    assert await desk.owner(confirmed.pnr) == key_of(booking)
