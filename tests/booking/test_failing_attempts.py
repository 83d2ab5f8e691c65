"""What a customer sees of each attempt of a failing payment (BKG-4)."""

from __future__ import annotations

import asyncio
import itertools
from typing import Final

from skyhigh.booking.v1 import booking_service_pb2 as pb

from tests.booking.agency import UNDECIDED, Agency, Customer, state_of
from tests.booking.orders import charge_now, end, fired_well, intent_of, provider_decides, seen, shows
from tests.callers import refused
from tests.payment.conftest import NEVER
from tests.payment.rules import FAILS
from tests.waiting import eventually

# No attempt or pause ends by the clock: the test ends each one when all watchers have seen it.
VARIABLES: Final = {
    "SKYHIGH_BOOKING_PAYMENT_LOOK_SECONDS": "0.05",
    "SKYHIGH_BOOKING_WATCH_INTERVAL_SECONDS": "0.05",
    "SKYHIGH_PAYMENT_ATTEMPT_SECONDS": "60",
    "SKYHIGH_PAYMENT_BACKOFF_SECONDS": NEVER,
    "SKYHIGH_PAYMENT_BACKOFF_LIMIT_SECONDS": NEVER,
}
ATTEMPTS: Final = [
    ("PAYMENT_PROCESSING", 1, ""),
    ("PAYMENT_PROCESSING", 1, "DECLINED"),
    ("PAYMENT_PROCESSING", 2, "DECLINED"),
    ("PAYMENT_PROCESSING", 3, "DECLINED"),
    ("FAILED", 3, "DECLINED"),
]


async def watch(customer: Customer, booking: pb.Booking, shown: list[pb.Booking], *, until: str) -> None:
    """Appends each booking of a stream until it shows the state `until`."""
    async for update in customer.desk.WatchBooking(pb.WatchBookingRequest(booking_id=booking.booking_id)):
        if update.HasField("booking"):
            shown.append(update.booking)
            if state_of(update.booking) == until:
                break


async def poll(customer: Customer, booking: pb.Booking, shown: list[pb.Booking], *, until: str) -> None:
    """Reads the booking repeatedly and appends it until it shows the state `until`."""

    async def there() -> bool:
        shown.append(await customer.get(booking))
        return state_of(shown[-1]) == until

    await eventually(there)


async def test_code_99999_fails_three_attempts_and_releases_seats(agency: Agency, customer: Customer) -> None:
    agency.provider.behaviour.now = UNDECIDED
    journey = await agency.flight()
    free_before = await agency.free(journey.flight_id)
    booking = await customer.book(journey, "ADULT", "ADULT")
    watched: list[pb.Booking] = []
    polled: list[pb.Booking] = []

    async def both_show(step: tuple[str, int, str]) -> None:
        async def shown() -> bool:
            return all(each and seen(each[-1]) == step for each in (watched, polled))

        await eventually(shown)

    async with asyncio.TaskGroup() as watchers:
        watchers.create_task(watch(customer, booking, watched, until="FAILED"))
        watchers.create_task(poll(customer, booking, polled, until="FAILED"))
        await customer.pay(booking, FAILS)
        for attempt in (1, 2, 3):
            await both_show(("PAYMENT_PROCESSING", attempt, "DECLINED" if attempt > 1 else ""))
            await provider_decides(agency, booking, succeeds=False)
            if attempt < 3:
                await both_show(("PAYMENT_PROCESSING", attempt, "DECLINED"))
                await charge_now(agency, booking)
    for each in (watched, polled):
        steps = [step for step, _ in itertools.groupby(map(seen, each)) if step[1]]
        assert steps == ATTEMPTS
        assert {shown.max_payment_attempts for shown in each if shown.payment_attempts} == {3}
    assert not (await end(agency, booking)).paid
    assert len(await agency.payments.charges(intent_of(polled[-1]))) == 3

    async def freed() -> bool:
        return await agency.free(journey.flight_id) == free_before

    await eventually(freed)
    with refused("FAILED_PRECONDITION", "BOOKING_FAILED") as refusal:
        await customer.pay(booking)
    assert refusal.info.metadata["last_error"] == "DECLINED"
    await fired_well(agency, [booking])


async def test_a_late_success_of_an_attempt_pays_once(agency: Agency, customer: Customer) -> None:
    agency.provider.behaviour.now = UNDECIDED
    booking = await customer.book(await agency.flight())
    await customer.pay(booking)
    await shows(customer, booking, "PAYMENT_PROCESSING", 1, "")
    await charge_now(agency, booking)
    await shows(customer, booking, "PAYMENT_PROCESSING", 1, "TIMEOUT")
    await charge_now(agency, booking)
    await shows(customer, booking, "PAYMENT_PROCESSING", 2, "TIMEOUT")
    await provider_decides(agency, booking)
    confirmed = await customer.becomes(booking, "CONFIRMED")
    assert seen(confirmed) == ("CONFIRMED", 2, "")
    await end(agency, booking)
    assert len(await agency.payments.charges(intent_of(confirmed))) == 1
