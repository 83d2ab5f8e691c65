"""Expiry at the end of the time to pay, never early (BKG-2, BKG-3, BKG-4).

A change of seats and the start of a payment renew the time.
"""

from __future__ import annotations

import asyncio
import logging
import random
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID, uuid4

import asyncpg
import pytest
from skyhigh.booking.v1 import booking_service_pb2 as pb
from skyhigh.seat.v1 import seat_service_pb2 as seat_pb

from tests.aging import make_timer_due
from tests.booking.agency import TIME_TO_PAY, UNDECIDED, Agency, Customer, Journey, patiently, state_of
from tests.booking.orders import LATEST_SECONDS, booked_by, end, ends, fired, provider_decides, rest, times
from tests.callers import refused
from tests.seat.rules import at_once, outcomes
from tests.waiting import eventually, stays, until

_log = logging.getLogger(__name__)
MANY: Final = 30
# The bookings of a race are prepared this long before their end.
APPROACH: Final = timedelta(seconds=1)
# One row for each change.
ROWS: Final = (9, 10, 11, 12, 14, 15, 16, 17, 18)


async def expiries(agency: Agency, bookings: list[pb.Booking]) -> list[asyncpg.Record]:
    """Returns how many seconds after its end each booking became EXPIRED, as `late`."""
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
async def test_bookings_expire_on_time_and_never_early(agency: Agency) -> None:
    """The ends are moved to 1 s from now; then the real clock decides."""
    late: list[float] = []
    for _ in range(times(1)):
        journeys = [await agency.journey(1 + number % 2) for number in range(2)]
        free_before = [await agency.free(journey.flight_id) for journey in journeys]
        bookings = [
            booking
            for journey in journeys
            for booking in await booked_by([agency.customer() for _ in range(MANY // len(journeys))], journey)
        ]
        await agency.lapse(*bookings, left=timedelta(seconds=1))
        found = await ends(agency, bookings)
        assert {each.state for each in found.values()} == {"EXPIRED"}
        rows = await expiries(agency, bookings)
        assert len(rows) == MANY
        late += [row["late"] for row in rows]

        async def free_again(journeys: list[Journey] = journeys, before: list[set[str]] = free_before) -> bool:
            return [await agency.free(journey.flight_id) for journey in journeys] == before

        await eventually(free_again)
        assert {timer["name"] for timer in await fired(agency, bookings)} == {"expire"}
        for journey in journeys:
            assert await agency.violations(*journey.flight_ids) == []
    late.sort()
    _log.info("%d expiries, late by %.3f to %.3f s, median %.3f", len(late), late[0], late[-1], late[len(late) // 2])
    assert late[0] >= 0
    assert late[-1] <= LATEST_SECONDS


async def test_a_seat_change_restarts_the_time_within_limits(agency: Agency, customer: Customer) -> None:
    journey = await agency.flight()
    free_before = await agency.free(journey.flight_id)
    last = await customer.book(journey, "ADULT", "ADULT")
    for row in ROWS:
        (last,) = await agency.lapse(last, left=TIME_TO_PAY / 2)
        before = datetime.now(UTC)
        last = await customer.move(last, f"{row}A", f"{row}C")
        assert before + TIME_TO_PAY <= last.expire_time.ToDatetime(UTC) <= datetime.now(UTC) + TIME_TO_PAY
    assert await agency.seat_database.fetchval(
        "SELECT clock_timestamp() > create_time + ttl FROM holds WHERE hold_id = $1", last.hold_id
    ), "beyond the end that it had at first"
    assert state_of(await customer.get(last)) == "SEATS_RESERVED"
    with refused("FAILED_PRECONDITION", "HOLD_LIMIT_REACHED"):
        await customer.move(last, "9A", "9C")
    shown = await customer.get(last)
    assert (shown.seats, shown.expire_time) == (last.seats, last.expire_time)
    await agency.lapse(last)
    assert (await end(agency, last)).state == "EXPIRED"
    (expiry,) = await expiries(agency, [last])
    assert 0 <= expiry["late"] <= LATEST_SECONDS

    async def free_again() -> bool:
        return await agency.free(journey.flight_id) == free_before

    await eventually(free_again)


async def test_a_payment_in_the_last_minute_has_full_time(agency: Agency, customer: Customer) -> None:
    agency.provider.behaviour.now = UNDECIDED
    booked = await customer.book(await agency.journey(2), "ADULT", "CHILD")
    (booking,) = await agency.lapse(booked, left=timedelta(minutes=1))
    before = datetime.now(UTC)
    await customer.pay(booking)
    paying = await customer.becomes(booking, "PAYMENT_PROCESSING")
    assert before + TIME_TO_PAY <= paying.expire_time.ToDatetime(UTC) <= datetime.now(UTC) + TIME_TO_PAY
    # 10 minutes later, which is 9 minutes after the first end of the booking.
    await agency.lapse(booking, left=TIME_TO_PAY - timedelta(minutes=10))
    await provider_decides(agency, booking)
    confirmed = await customer.becomes(booking, "CONFIRMED")
    assert len((await end(agency, booking)).seats) == 4
    assert "EXPIRED" not in [pb.Booking.State.Name(line.to_state) for line in confirmed.history]


async def test_a_payment_after_expiry_is_refused_without_charge(agency: Agency) -> None:
    """Immediately after the end, also before the service has stored EXPIRED."""
    journey = await agency.flight()
    customers = [agency.customer() for _ in range(20)]
    bookings = await agency.lapse(*await booked_by(customers, journey))

    async def pay_late(customer: Customer, booking: pb.Booking) -> None:
        with refused("ABORTED", "BOOKING_EXPIRED") as refusal:
            await customer.pay(booking)
        assert refusal.info.metadata["expire_time"]

    await asyncio.gather(*map(pay_late, customers, bookings))
    found = await ends(agency, bookings)
    assert {(each.state, each.paid) for each in found.values()} == {("EXPIRED", False)}


@pytest.mark.timeout(900)
async def test_pay_and_expiry_at_once_leave_one_result(agency: Agency) -> None:
    """A payment that begins in time succeeds; a later one is refused without a charge.

    A payment may also begin so late that its booking expires; then there is no charge either.
    """
    came: dict[tuple[str, str], int] = {}
    for _ in range(times(1)):
        journey = await agency.journey(2)
        customers = [agency.customer() for _ in range(20)]
        booked = await booked_by(customers, journey)
        bookings = await agency.lapse(*booked, left=APPROACH)

        async def pay(customer: Customer, booking: pb.Booking) -> str:
            await until(booking.expire_time, seconds_before=random.uniform(-0.02, 0.06))
            request_id = str(uuid4())
            (outcome,) = outcomes(await at_once(patiently(lambda: customer.pay(booking, request_id=request_id))))
            return outcome

        told = await asyncio.gather(*map(pay, customers, bookings))
        found = await ends(agency, bookings)
        for booking, outcome in zip(bookings, told, strict=True):
            key = outcome, found[booking.booking_id].state
            came[key] = came.get(key, 0) + 1
        assert await agency.violations(*journey.flight_ids) == []
    _log.info("paid at the end: %s", came)
    # ("OK", "EXPIRED"): the payment began so late that its seats had been released before their hold could be extended.
    # There was no charge.
    assert came.keys() <= {("OK", "CONFIRMED"), ("OK", "EXPIRED"), ("BOOKING_EXPIRED", "EXPIRED")}


async def test_change_and_expiry_at_once_leave_one_result(agency: Agency) -> None:
    journey = await agency.flight()
    customers = [agency.customer() for _ in range(20)]
    booked = await booked_by(customers, journey)
    bookings = await agency.lapse(*booked, left=APPROACH)
    numbers = [f"{row}{letter}" for row in ROWS[-5:] for letter in "ABCD"]

    async def change(customer: Customer, booking: pb.Booking, number: str) -> Any:
        await until(booking.expire_time, seconds_before=random.uniform(-0.02, 0.06))
        (result,) = await at_once(customer.move(booking, number))
        return result

    results = await asyncio.gather(*map(change, customers, bookings, numbers))
    # On a busy machine the response may not come in time.
    assert outcomes(results).keys() <= {"OK", "BOOKING_EXPIRED", "SEAT_TAKEN", "DEPENDENCY_UNAVAILABLE"}
    renewed = [result for result in results if isinstance(result, pb.Booking)]

    async def live_on() -> bool:
        rows = await agency.database.fetch(
            "SELECT state::text FROM bookings WHERE booking_id = ANY($1)", [UUID(each.booking_id) for each in renewed]
        )
        return {row["state"] for row in rows} <= {"SEATS_RESERVED"}

    await stays(live_on, seconds=0.3)
    # Makes the other holds lapse, among them that of a change whose response did not come in time.
    held = [row["hold_id"] for row in await agency.seat_database.fetch(
        "SELECT hold_id FROM holds WHERE hold_id = ANY($1) AND state = 'HELD' AND expire_time > clock_timestamp()",
        [each.hold_id for each in bookings],
    )]  # fmt: skip
    await agency.lapse(*(each for each in bookings if UUID(each.hold_id) in held))
    found = await ends(agency, bookings)
    assert {each.state for each in found.values()} == {"EXPIRED"}
    assert {timer["name"] for timer in await fired(agency, bookings)} <= {"expire", "look-at-hold"}


async def test_a_booking_adopts_the_expire_time_of_its_hold(agency: Agency, customer: Customer) -> None:
    """The hold was extended, and the process died before it stored the new end."""
    booking = await customer.book(await agency.flight())
    hold: seat_pb.Hold = await agency.seats.service().ExtendHold(seat_pb.ExtendHoldRequest(hold_id=booking.hold_id))
    await agency.set_back(booking, expire_time=TIME_TO_PAY)
    await make_timer_due(agency.database, "booking", "expire", booking.booking_id)

    async def adopted() -> bool:
        shown = await customer.get(booking)
        return (state_of(shown), shown.expire_time) == ("SEATS_RESERVED", hold.expire_time)

    await eventually(adopted)
    await customer.pay(booking)
    await customer.becomes(booking, "CONFIRMED")


async def test_an_undecided_payment_ends_with_the_time_to_pay(agency: Agency, customer: Customer) -> None:
    """An undecided payment does not keep the seats; its late success still counts."""
    agency.provider.behaviour.now = UNDECIDED
    booking = await customer.book(await agency.flight())
    await customer.pay(booking)
    await customer.becomes(booking, "PAYMENT_PROCESSING")
    await agency.lapse(booking)
    await customer.becomes(booking, "EXPIRED")
    await provider_decides(agency, booking)
    await rest(agency, [booking])
    assert (await end(agency, booking)).state == "CONFIRMED"
