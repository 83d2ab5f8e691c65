"""The end of the time to pay: never early, hardly late, renewed by who changes seats or begins to pay (BKG-2 to 4)."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from typing import Final

import asyncpg
import pytest
from skyhigh.booking.v1 import booking_service_pb2 as pb
from skyhigh.seat.v1 import seat_service_pb2 as seat_pb

from tests.booking.agency import Agency, Customer, Journey, state_of
from tests.booking.orders import LATEST_SECONDS, end, ends, fired, rest, switch, times
from tests.callers import refused
from tests.seat.rules import at_once, outcomes
from tests.waiting import eventually

TIME_TO_PAY_SECONDS: Final = 1.2
VARIABLES: Final = {"SKYHIGH_BOOKING_HOLD_TTL_SECONDS": str(TIME_TO_PAY_SECONDS)}
# Before the end by a call's length on a busy machine.
LAST_MOMENT_SECONDS: Final = 0.4
_log = logging.getLogger(__name__)
MANY: Final = 60
AT_ONCE: Final = 6
# As many as there are changes; there is no thirteenth.
ROWS: Final = (9, 10, 11, 12, 14, 15, 16, 17, 18)


def left(booking: pb.Booking) -> float:
    """Seconds to its end by the clock of this machine, which is the database's too."""
    return booking.expire_time.ToNanoseconds() / 1e9 - time.time()


async def until_the_end(booking: pb.Booking, *, but_seconds: float = 0) -> None:
    """Waits until the end, or so long before it."""
    await asyncio.sleep(max(0.0, left(booking) - but_seconds))


async def expiries(agency: Agency, bookings: list[pb.Booking]) -> list[asyncpg.Record]:
    """When each became EXPIRED, in seconds after its end, and after the end of its hold."""
    async with agency.pool.acquire() as conn:
        rows: list[asyncpg.Record] = await conn.fetch(
            """
            SELECT booking_id::text, extract(epoch FROM event_time - expire_time)::float AS late
            FROM booking_events JOIN bookings USING (booking_id)
            WHERE to_state = 'EXPIRED' AND booking_id::text = ANY($1)
            """,
            [booking.booking_id for booking in bookings],
        )
    return rows


@pytest.mark.timeout(900)
async def test_many_expire_at_their_end_never_early_and_hardly_late(agency: Agency) -> None:
    late: list[float] = []
    for _ in range(times(1)):
        journeys = [await agency.journey(1 + number % 2) for number in range(2)]
        free_before = [await agency.free(journey.flight_id) for journey in journeys]
        bookings = [
            booking
            for _ in range(MANY // AT_ONCE)
            for booking in await asyncio.gather(
                *(agency.customer().book(journeys[number % len(journeys)]) for number in range(AT_ONCE))
            )
        ]
        found = await ends(agency, bookings)
        assert {each.state for each in found.values()} == {"EXPIRED"}
        rows = await expiries(agency, bookings)
        assert len(rows) == MANY
        late += [row["late"] for row in rows]

        async def free_again(journeys: list[Journey] = journeys, before: list[set[str]] = free_before) -> bool:
            return [await agency.free(journey.flight_id) for journey in journeys] == before

        await eventually(free_again)
        for timer in await fired(agency, bookings):
            assert (timer["name"], timer["tries"]) == ("expire", 1)
        for journey in journeys:
            assert await agency.violations(*journey.flight_ids) == []
    late.sort()
    _log.info("%d expiries, late by %.3f to %.3f s, median %.3f", len(late), late[0], late[-1], late[len(late) // 2])
    assert late[0] >= 0
    assert late[-1] <= LATEST_SECONDS


async def test_changing_seats_renews_the_time_up_to_the_cap(agency: Agency, customer: Customer) -> None:
    journey = await agency.flight()
    free_before = await agency.free(journey.flight_id)
    first = last = await customer.book(journey, "ADULT", "ADULT")
    for row in ROWS:
        await asyncio.sleep(0.2)
        changed = await customer.move(last, f"{row}A", f"{row}C")
        assert changed.expire_time.ToNanoseconds() > last.expire_time.ToNanoseconds()
        assert abs(left(changed) - TIME_TO_PAY_SECONDS) < LAST_MOMENT_SECONDS
        last = changed
    # Beyond the end that it had at first.
    assert left(first) < 0
    assert state_of(await customer.get(first)) == "SEATS_RESERVED"
    with refused("FAILED_PRECONDITION", "HOLD_LIMIT_REACHED"):
        await customer.move(last, "9A", "9C")
    shown = await customer.get(first)
    assert (shown.seats, shown.expire_time) == (last.seats, last.expire_time)
    assert (await end(agency, first)).state == "EXPIRED"
    (expiry,) = await expiries(agency, [first])
    assert 0 <= expiry["late"] <= LATEST_SECONDS

    async def free_again() -> bool:
        return await agency.free(journey.flight_id) == free_before

    await eventually(free_again)


async def test_who_begins_to_pay_at_the_last_moment_has_the_full_time_for_the_attempts(
    agency: Agency, customer: Customer
) -> None:
    switch(agency.provider, decision_delay_seconds=TIME_TO_PAY_SECONDS / 2)
    booking = await customer.book(await agency.journey(2), "ADULT", "CHILD")
    await until_the_end(booking, but_seconds=LAST_MOMENT_SECONDS)
    await customer.pay(booking)
    await until_the_end(booking)
    paying = await customer.get(booking)
    assert paying.expire_time.ToNanoseconds() > booking.expire_time.ToNanoseconds()
    assert state_of(await customer.becomes(booking, "CONFIRMED")) == "CONFIRMED"
    found = await end(agency, booking)
    assert len(found.seats) == 4
    history = [pb.Booking.State.Name(line.to_state) for line in (await customer.get(booking)).history]
    assert "EXPIRED" not in history


async def test_who_pays_after_the_end_is_told_so_and_not_charged(agency: Agency) -> None:
    """At once after it, also before anybody has written that it is over."""
    journey = await agency.flight()
    customers = [agency.customer() for _ in range(20)]
    bookings = await asyncio.gather(*(customer.book(journey) for customer in customers))

    async def pay_late(customer: Customer, booking: pb.Booking) -> None:
        await until_the_end(booking)
        await asyncio.sleep(0.002)
        with refused("ABORTED", "BOOKING_EXPIRED") as refusal:
            await customer.pay(booking)
        assert refusal.info.metadata["expire_time"]

    await asyncio.gather(*map(pay_late, customers, bookings))
    found = await ends(agency, bookings)
    assert {(each.state, each.paid) for each in found.values()} == {("EXPIRED", False)}


@pytest.mark.timeout(900)
async def test_paying_and_the_end_at_once_come_to_one_of_both(agency: Agency) -> None:
    """What was begun in time is paid; what was not is not charged."""
    came: dict[tuple[str, str], int] = {}
    for _ in range(times(1)):
        journey = await agency.journey(2)
        customers = [agency.customer() for _ in range(20)]
        bookings = await asyncio.gather(*(customer.book(journey) for customer in customers))

        async def pay(customer: Customer, booking: pb.Booking) -> str:
            await until_the_end(booking, but_seconds=random.uniform(-0.02, 0.06))
            (outcome,) = outcomes(await at_once(customer.pay(booking)))
            return outcome

        told = await asyncio.gather(*map(pay, customers, bookings))
        found = await ends(agency, bookings)
        for booking, outcome in zip(bookings, told, strict=True):
            key = outcome, found[booking.booking_id].state
            came[key] = came.get(key, 0) + 1
        assert await agency.violations(*journey.flight_ids) == []
    _log.info("paid at the end: %s", came)
    # Begun so late that the seats were gone before they could be kept: not charged either.
    assert came.keys() <= {("OK", "CONFIRMED"), ("OK", "EXPIRED"), ("BOOKING_EXPIRED", "EXPIRED")}


async def test_changing_and_the_end_at_once_come_to_one_of_both(agency: Agency) -> None:
    journey = await agency.flight()
    customers = [agency.customer() for _ in range(20)]
    bookings = await asyncio.gather(*(customer.book(journey) for customer in customers))
    numbers = [f"{row}{letter}" for row in ROWS[-5:] for letter in "ABCD"]

    async def change(customer: Customer, booking: pb.Booking, number: str) -> tuple[str, float]:
        await until_the_end(booking, but_seconds=random.uniform(-0.02, 0.06))
        (result,) = await at_once(customer.move(booking, number))
        (outcome,) = outcomes([result])
        renewed = isinstance(result, pb.Booking)
        if renewed:
            await asyncio.sleep(max(0.0, left(booking)) + 0.3)
            assert state_of(await customer.get(booking)) == "SEATS_RESERVED"
        return outcome, renewed

    told = await asyncio.gather(*map(change, customers, bookings, numbers))
    # A machine that is busy enough gives no answer in time.
    assert {outcome for outcome, _ in told} <= {"OK", "BOOKING_EXPIRED", "SEAT_TAKEN", "DEPENDENCY_UNAVAILABLE"}
    found = await ends(agency, bookings)
    assert {each.state for each in found.values()} == {"EXPIRED"}
    assert {timer["name"] for timer in await fired(agency, bookings)} <= {"expire", "look-at-hold"}


async def test_what_the_seat_service_says_of_the_end_is_true(agency: Agency, customer: Customer) -> None:
    """The hold was extended, and whoever did that did not live to write it down."""
    booking = await customer.book(await agency.flight())
    await asyncio.sleep(TIME_TO_PAY_SECONDS / 2)
    hold: seat_pb.Hold = await agency.seats.service().ExtendHold(seat_pb.ExtendHoldRequest(hold_id=booking.hold_id))
    await until_the_end(booking)
    await asyncio.sleep(0.35)
    shown = await customer.get(booking)
    assert (state_of(shown), shown.expire_time) == ("SEATS_RESERVED", hold.expire_time)
    await customer.pay(booking)
    await customer.becomes(booking, "CONFIRMED")


async def test_a_payment_that_nobody_takes_on_ends_with_the_time(agency: Agency, customer: Customer) -> None:
    """Seats are not kept for ever for a payment that does not come to an end, and its late end is still heard."""
    switch(agency.provider, decision_delay_seconds=TIME_TO_PAY_SECONDS + 1)
    booking = await customer.book(await agency.flight())
    await customer.pay(booking)
    await customer.becomes(booking, "EXPIRED")
    await rest(agency, [booking])
    assert (await end(agency, booking)).state in ("CONFIRMED", "EXPIRED")
