"""A cancelled flight ends its bookings in every state, and money is refunded."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Final
from uuid import UUID

import grpc
import pytest
from skyhigh.booking.v1 import booking_service_pb2 as pb

from booking_service import bookings, steps
from booking_service.bookings import Hold
from booking_service.peers import Peers
from booking_service.records import find
from services import db
from services.errors import Unavailable
from tests.aging import make_timer_due
from tests.booking.agency import UNDECIDED, Agency, Customer, Journey
from tests.booking.orders import End, ends, pay_once_more, provider_decides, rest, switch, times
from tests.callers import read, refused
from tests.payment.rules import FAILS
from tests.waiting import eventually, pause

VARIABLES: Final = {"SKYHIGH_BOOKING_PAYMENT_LOOK_SECONDS": "0.1"}
PAYING_AT_ONCE: Final = 16
_log = logging.getLogger(__name__)


async def known(agency: Agency, flight_id: str) -> None:
    """Waits until the booking service has the event and has cancelled the bookings."""

    async def told() -> bool:
        async with agency.pool.acquire() as conn:
            return bool(
                await conn.fetchval(
                    """
                    SELECT true FROM cancelled_flights JOIN timers ON subject = flight_id
                    WHERE flight_id = $1 AND name = 'cancel-flight'
                      AND (due_time > learn_time + interval '1 s' OR fire_time IS NOT NULL)
                    """,
                    flight_id,
                )
            )

    await eventually(told)


def look_again_only_when_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Delays the second run of the step `cancel-flight` until the test makes it due.

    Also if the first run comes late.
    """
    for name in ("LAST_CHECK", "NO_RETURN"):
        monkeypatch.setattr(steps, name, timedelta(hours=1))


async def none_confirmed(agency: Agency, booked: Sequence[pb.Booking]) -> None:
    """Waits until none of these bookings is CONFIRMED.

    The last run of `cancel-flight` cancels those that the first one missed.
    """
    await rest(agency, booked)

    async def gone() -> bool:
        async with agency.pool.acquire() as conn:
            return not await conn.fetchval(
                "SELECT EXISTS (SELECT FROM bookings WHERE booking_id::text = ANY($1) AND state = 'CONFIRMED')",
                [booking.booking_id for booking in booked],
            )

    await eventually(gone)


async def closed(agency: Agency, journey: Journey) -> None:
    """Waits until the flights have no taken seats; checks the invariants."""

    async def empty() -> bool:
        return await agency.taken(*journey.flight_ids) == set()

    await eventually(empty)
    assert await agency.violations(*journey.flight_ids) == []


async def test_bookings_in_every_state_end_without_seats_and_payment(agency: Agency) -> None:
    journey = await agency.journey(2)
    customers = {
        name: agency.customer() for name in ("SEATS_RESERVED", "PAYMENT_PROCESSING", "CONFIRMED", "FAILED", "CANCELLED")
    }
    found = {
        name: await customer.book(journey, "ADULT", "CHILD", contact_email=f"{name.lower()}@fog.example")
        for name, customer in customers.items()
    }
    await customers["CONFIRMED"].pay(found["CONFIRMED"])
    await customers["FAILED"].pay(found["FAILED"], FAILS)
    await customers["CANCELLED"].cancel(found["CANCELLED"])
    confirmed = await customers["CONFIRMED"].becomes(found["CONFIRMED"], "CONFIRMED")
    await customers["FAILED"].becomes(found["FAILED"], "FAILED")
    agency.provider.behaviour.now = UNDECIDED
    await customers["PAYMENT_PROCESSING"].pay(found["PAYMENT_PROCESSING"])
    await customers["PAYMENT_PROCESSING"].becomes(found["PAYMENT_PROCESSING"], "PAYMENT_PROCESSING")
    await agency.cancel_flight(journey.flight_ids[1])
    await known(agency, journey.flight_ids[1])

    with refused("FAILED_PRECONDITION", "FLIGHT_CANCELLED"):
        await agency.customer().book(journey)
    await provider_decides(agency, found["PAYMENT_PROCESSING"])
    ended = await ends(agency, list(found.values()))
    assert {name: ended[booking.booking_id] for name, booking in found.items()} == {
        "SEATS_RESERVED": End("CANCELLED", False, frozenset()),
        "PAYMENT_PROCESSING": End("CANCELLED", True, frozenset()),
        "CONFIRMED": End("CANCELLED", True, frozenset()),
        "FAILED": End("FAILED", False, frozenset()),
        "CANCELLED": End("CANCELLED", False, frozenset()),
    }
    shown = {name: await customers[name].get(booking) for name, booking in found.items()}
    assert {name: each.cancel_reason for name, each in shown.items() if each.cancel_reason} == {
        "SEATS_RESERVED": "FLIGHT_CANCELLED",
        "PAYMENT_PROCESSING": "FLIGHT_CANCELLED",
        "CONFIRMED": "FLIGHT_CANCELLED",
        "CANCELLED": "CANCELLED",
    }
    subjects = {
        name: [mail.subject for mail in await agency.mails(f"{name.lower()}@fog.example")] for name in customers
    }
    assert {name: each for name, each in subjects.items() if each} == {
        "CONFIRMED": [f"Your booking {confirmed.pnr} is confirmed", f"Your booking {confirmed.pnr} was cancelled"],
        "PAYMENT_PROCESSING": ["Your payment is refunded"],
    }
    (told,) = await agency.mails("payment_processing@fog.example")
    assert "a flight was cancelled" in told.text
    # The seats on the flight that departs are released too.
    await closed(agency, journey)


async def test_a_booking_without_seats_gets_none(agency: Agency, customer: Customer, unreserved: pb.Booking) -> None:
    (flight,) = unreserved.flights
    await agency.cancel_flight(flight.flight_id)

    async def closed_for_sale() -> bool:
        query = "SELECT true FROM cancelled_flights WHERE flight_id = $1"
        return bool(await agency.seat_database.fetchval(query, flight.flight_id))

    # Before that the seat service would hold the seats, and the booking would be CANCELLED afterwards.
    await eventually(closed_for_sale)
    await make_timer_due(agency.database, "booking", "reserve", unreserved.booking_id)
    failed = await customer.becomes(unreserved, "FAILED")
    assert (failed.last_error, list(failed.seats)) == ("FLIGHT_CANCELLED", [])
    await ends(agency, [unreserved])
    assert await agency.taken(flight.flight_id) == set()


async def test_late_payment_for_a_cancelled_flight_is_refunded(agency: Agency, customer: Customer) -> None:
    journey = await agency.flight()
    booking = await customer.book(journey)
    await customer.pay(booking, FAILS)
    await customer.becomes(booking, "FAILED")
    await agency.cancel_flight(journey.flight_id)
    await known(agency, journey.flight_id)
    await pay_once_more(customer, booking)

    async def came() -> bool:
        return (await agency.row(booking))["pay_time"] is not None

    await eventually(came)
    found = await ends(agency, [booking])
    assert found[booking.booking_id] == End("FAILED", True, frozenset())
    assert (await customer.get(booking)).last_error == "FLIGHT_CANCELLED"


async def test_a_seat_service_cancellation_prevents_the_charge(agency: Agency, customer: Customer) -> None:
    journey = await agency.flight()
    booking = await customer.book(journey)
    await agency.close(journey.flight_id)
    await customer.pay(booking)
    failed = await customer.becomes(booking, "FAILED")
    assert failed.last_error == "FLIGHT_CANCELLED"
    assert not (await ends(agency, [booking]))[booking.booking_id].paid


@pytest.mark.timeout(1800)
async def test_confirm_during_the_cancellation_leaves_no_confirmed_booking(
    agency: Agency, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`cancel-flight` runs again and again for 15 s (steps.NO_RETURN).

    A later run finds bookings whose transaction did not see the cancellation.
    """
    monkeypatch.setattr(steps, "LAST_CHECK", timedelta(seconds=2))
    came: dict[str, int] = {}
    for _ in range(times(1)):
        journey = await agency.journey(2)
        customers = [agency.customer() for _ in range(PAYING_AT_ONCE)]
        booked = [await customer.book(journey) for customer in customers]
        switch(agency.provider, decision_delay_seconds=random.uniform(0.02, 0.2))

        async def cancel(flight_id: str) -> None:
            await pause(random.uniform(0, 1))
            await agency.cancel_flight(flight_id)

        async def pay(customer: Customer, booking: pb.Booking) -> None:
            try:
                await customer.pay(booking)
            except grpc.aio.AioRpcError as error:
                # The cancellation came before this payment.
                refusal = read(error)
                assert (refusal.reason, refusal.info.metadata["reason"]) == ("BOOKING_CANCELLED", "FLIGHT_CANCELLED")

        await asyncio.gather(
            cancel(random.choice(journey.flight_ids)),
            *(pay(customer, booking) for customer, booking in zip(customers, booked, strict=True)),
        )
        await none_confirmed(agency, booked)
        found = await ends(agency, booked)
        for each in found.values():
            assert each.state in ("CANCELLED", "FAILED")
            key = f"{each.state}{' and given back' if each.paid else ''}"
            came[key] = came.get(key, 0) + 1
        await closed(agency, journey)
    _log.info("confirming while the flight is cancelled: %s", came)


async def test_a_booking_confirmed_after_the_event_is_cancelled(
    agency: Agency, customer: Customer, monkeypatch: pytest.MonkeyPatch
) -> None:
    journey = await agency.flight()
    real = Peers.confirm

    async def confirm(self: Peers, *args: Any, **more: Any) -> Hold:
        hold = await real(self, *args, **more)
        if not await agency.seat_database.fetchval(
            "SELECT true FROM cancelled_flights WHERE flight_id = $1", journey.flight_id
        ):
            await agency.cancel_flight(journey.flight_id)
        # Also if the lease of the step ended meanwhile and the step runs again.
        await known(agency, journey.flight_id)
        return hold

    monkeypatch.setattr(Peers, "confirm", confirm)
    booking = await customer.book(journey)
    await customer.pay(booking)
    assert (await ends(agency, [booking]))[booking.booking_id] == End("CANCELLED", True, frozenset())
    assert (await customer.get(booking)).pnr == ""
    await closed(agency, journey)


async def test_the_last_check_finds_an_overlapping_confirmation(
    agency: Agency, customer: Customer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its transaction begins before the cancellation is stored.

    It commits after the first run of `cancel-flight`.
    """
    look_again_only_when_told(monkeypatch)
    journey = await agency.flight()
    real = bookings.confirm
    begun: asyncio.Future[tuple[tuple[Any, ...], dict[str, Any]]] = asyncio.get_running_loop().create_future()

    async def confirm(conn: db.Conn, *args: Any, **more: Any) -> bool:
        if not begun.done():
            begun.set_result((args, more))
        raise Unavailable("the test confirms it")

    monkeypatch.setattr(bookings, "confirm", confirm)
    booking = await customer.book(journey)
    await customer.pay(booking)
    # A transaction of the test's own, because a time limit of the service would end one of the service's.
    async with agency.database.transaction():
        args, more = await begun
        assert await real(agency.database, *args, **more)
        await agency.cancel_flight(journey.flight_id)
        await known(agency, journey.flight_id)
    monkeypatch.setattr(bookings, "confirm", real)
    await customer.becomes(booking, "CONFIRMED")
    await make_timer_due(agency.database, "booking", "cancel-flight", journey.flight_id)
    await customer.becomes(booking, "CANCELLED")
    assert (await ends(agency, [booking]))[booking.booking_id] == End("CANCELLED", True, frozenset())
    history = [pb.Booking.State.Name(line.to_state) for line in (await customer.get(booking)).history]
    assert history[-2:] == ["CONFIRMED", "CANCELLED"]
    await closed(agency, journey)


async def test_seats_held_after_the_event_are_released(
    agency: Agency, customer: Customer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The seat service had not received the event when it held the seats."""
    look_again_only_when_told(monkeypatch)
    # The timer must not continue the call while the test waits for the event.
    monkeypatch.setattr(bookings, "CALL_ENDED_AFTER", timedelta(hours=1))
    journey = await agency.flight()
    real = bookings.reserve

    async def reserve(*args: Any, **more: Any) -> pb.Booking | None:
        await agency.cancel_flight(journey.flight_id)
        await known(agency, journey.flight_id)
        return await real(*args, **more)

    monkeypatch.setattr(bookings, "reserve", reserve)
    booking = await customer.book(journey)
    await make_timer_due(agency.database, "booking", "cancel-flight", journey.flight_id)
    await customer.becomes(booking, "CANCELLED")
    await rest(agency, [booking])
    await closed(agency, journey)


async def test_a_repeated_event_cancels_once(agency: Agency, customer: Customer) -> None:
    journey = await agency.journey(2)
    booking = await customer.confirmed(journey)
    for flight_id in journey.flight_ids:
        await agency.cancel_flight(flight_id)
    await customer.becomes(booking, "CANCELLED")
    assert (await ends(agency, [booking]))[booking.booking_id] == End("CANCELLED", True, frozenset())
    async with db.transaction(agency.pool) as conn:
        version = (await find(conn, UUID(booking.booking_id))).version
        await bookings.cancel(conn, UUID(booking.booking_id), owner=None, actor="booking", reason="FLIGHT_CANCELLED")
        assert (await find(conn, UUID(booking.booking_id))).version == version
