"""What a customer sees of a payment that fails, attempt after attempt (BKG-4)."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Final

import pytest
from skyhigh.booking.v1 import booking_service_pb2 as pb

from tests.booking.agency import Agency, Customer, state_of
from tests.booking.conftest import opened
from tests.booking.orders import end, fired_well, intent_of, late_answer, polled, seen, switch
from tests.callers import refused
from tests.payment import conftest as payment_conftest
from tests.payment.rules import FAILS
from tests.waiting import eventually

if TYPE_CHECKING:
    from tests.conftest import World

VARIABLES: Final = {"SKYHIGH_BOOKING_PAYMENT_LOOK_SECONDS": "0.05", "SKYHIGH_BOOKING_WATCH_INTERVAL_SECONDS": "0.05"}
# Whoever looks sees each step for a second.
DECISION_SECONDS: Final = 1
SLOWLY: Final = {
    "SKYHIGH_PAYMENT_ATTEMPT_SECONDS": "3",
    "SKYHIGH_PAYMENT_BACKOFF_SECONDS": "1",
    "SKYHIGH_PAYMENT_BACKOFF_LIMIT_SECONDS": "1",
}
ATTEMPTS: Final = [
    ("PAYMENT_PROCESSING", 1, ""),
    ("PAYMENT_PROCESSING", 1, "DECLINED"),
    ("PAYMENT_PROCESSING", 2, "DECLINED"),
    ("PAYMENT_PROCESSING", 3, "DECLINED"),
    ("FAILED", 3, "DECLINED"),
]


@pytest.fixture(scope="module")
async def any_agency(world: World) -> AsyncIterator[Agency]:
    """The agency of this file, whose payment service takes its time between attempts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(payment_conftest, "QUICK", payment_conftest.QUICK | SLOWLY)
        async with opened(world, **VARIABLES) as agency:
            yield agency


async def watched(customer: Customer, booking: pb.Booking, *, until: str) -> list[pb.Booking]:
    """What a stream shows up to a state."""
    shown = []
    async for update in customer.desk.WatchBooking(pb.WatchBookingRequest(booking_id=booking.booking_id)):
        if update.HasField("booking"):
            shown.append(update.booking)
            if state_of(update.booking) == until:
                break
    return shown


async def test_99999_shows_three_attempts_one_after_the_other_and_frees_the_seats(
    agency: Agency, customer: Customer
) -> None:
    switch(agency.provider, decision_delay_seconds=DECISION_SECONDS)
    journey = await agency.flight()
    free_before = await agency.free(journey.flight_id)
    booking = await customer.book(journey, "ADULT", "ADULT")
    await customer.pay(booking, FAILS)
    for shown in await asyncio.gather(
        watched(customer, booking, until="FAILED"), polled(customer, booking, until="FAILED")
    ):
        steps = [step for step, _ in itertools.groupby(map(seen, shown)) if step[1]]
        assert steps == ATTEMPTS
        assert {each.max_payment_attempts for each in shown if each.payment_attempts} == {3}
    assert not (await end(agency, booking)).paid
    assert len(await agency.payments.charges(intent_of(shown[-1]))) == 3

    async def freed() -> bool:
        return await agency.free(journey.flight_id) == free_before

    await eventually(freed)
    with refused("FAILED_PRECONDITION", "BOOKING_FAILED") as refusal:
        await customer.pay(booking)
    assert refusal.info.metadata["last_error"] == "DECLINED"
    await fired_well(agency, [booking])


async def test_an_answer_after_the_attempt_counts_as_an_attempt_and_its_late_success_pays_once(
    agency: Agency, customer: Customer
) -> None:
    # An attempt lasts three seconds here, and the next one begins a second later.
    steps = await late_answer(agency, customer, seconds=4.2)
    assert ("PAYMENT_PROCESSING", 1, "TIMEOUT") in steps or ("PAYMENT_PROCESSING", 2, "TIMEOUT") in steps
    assert steps[-1][0] == "CONFIRMED"
    assert steps[-1][1] >= 2
