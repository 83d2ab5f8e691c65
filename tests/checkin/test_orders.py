"""All orders of actions on a check-in with bags.

It is never completed unpaid or without a seat, and no fee is lost.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from itertools import permutations
from typing import Final
from uuid import uuid4

import grpc
import pytest
from skyhigh.payment.v1 import payment_service_pb2

from tests.callers import a_few_at_once, read
from tests.checkin.airport import Airport, Traveller
from tests.waiting import eventually

Intent = payment_service_pb2.PaymentIntent

# There are 840 orders of four actions, and 210 of three.
LONGEST: Final = int(os.environ.get("SKYHIGH_TEST_LONGEST_ORDER", "3"))
AT_ONCE: Final = 24
PAYABLE: Final = (Intent.REQUIRES_PAYMENT, Intent.FAILED)
# Refusals on a busy machine.
BUSY: Final = ("DEPENDENCY_UNAVAILABLE", "DEADLINE_EXCEEDED")
TRIES: Final = 5
# Any other refusal of an action is a defect.
EXPECTED: Final = {
    "CHECK_IN_COMPLETED",
    "CHECK_IN_CANCELLED",
    "PAYMENT_IN_PROGRESS",
    "FEE_PAID",
    "SEAT_REQUIRED",
    *BUSY,
}


async def late_success(traveller: Traveller) -> None:
    """The provider takes the money of the first intent, in any state of the intent."""
    payments = traveller.airport.payments
    for intent in payments.of(traveller.checkin_id)[:1]:
        if intent.state not in (Intent.SUCCEEDED, Intent.REFUNDED):
            intent.state = Intent.PROCESSING
            event = payments.succeed(str(intent.intent_id))
            await traveller.airport.tell("payment.succeeded.v1", event)


ACTIONS: Final[dict[str, Callable[[Traveller], Awaitable[object]]]] = {
    "30 kg": lambda traveller: traveller.declare(30),
    "10 kg": lambda traveller: traveller.declare(10),
    "pay": lambda traveller: traveller.pay(),
    "fail": lambda traveller: traveller.fail_to_pay(),
    "cancel": lambda traveller: traveller.cancel(),
    "late success": late_success,
    "seat released": lambda traveller: traveller.lose_seat(),
}


async def never_wrong(traveller: Traveller) -> None:
    """Checks what must hold at every moment."""
    row = await traveller.airport.row(traveller)
    if row.state == "COMPLETED":
        assert row.seat_number is not None
        assert row.sequence_number is not None
        if row.fee_cents:
            assert row.fee_pay_time is not None
            assert row.payment_intent_id is not None
            assert traveller.airport.payments.intents[row.payment_intent_id].state == Intent.SUCCEEDED


async def right_at_rest(traveller: Traveller) -> None:
    """Checks what must hold when no step is pending."""
    airport = traveller.airport

    async def agrees_with_the_seat() -> bool:
        row = await airport.row(traveller)
        return await traveller.seat() == ("" if row.state == "CANCELLED" else row.seat_number or "")

    await eventually(agrees_with_the_seat)
    await airport.at_rest(traveller)
    assert await agrees_with_the_seat()
    await never_wrong(traveller)
    row = await airport.row(traveller)
    waits_for_a_seat = row.state == "WAITING_FOR_PAYMENT" and row.fee_pay_time is not None
    kept = 1 if waits_for_a_seat or (row.state == "COMPLETED" and row.fee_cents) else 0
    assert airport.payments.money_kept(traveller.checkin_id) == kept
    payable = {each.intent_id for each in airport.payments.of(traveller.checkin_id) if each.state in PAYABLE}
    assert payable <= ({row.payment_intent_id} if row.state == "WAITING_FOR_PAYMENT" else set())


def expect(result: object) -> None:
    """Fails unless the result is a response or an expected refusal."""
    if isinstance(result, grpc.aio.AioRpcError):
        assert read(result).reason in EXPECTED
    elif isinstance(result, BaseException):
        raise result


async def begin(traveller: Traveller) -> None:
    """Starts the check-in; retries if the machine is too busy."""
    hold, request_id = await traveller.hold(), str(uuid4())
    for attempt in range(1, TRIES + 1):
        try:
            await traveller.start(hold_id=hold.hold_id, request_id=request_id)
        except grpc.aio.AioRpcError as error:
            if attempt == TRIES or read(error).reason not in BUSY:
                raise
        else:
            return


async def play(traveller: Traveller, order: Sequence[str]) -> None:
    await begin(traveller)
    for action in order:
        (result,) = await asyncio.gather(ACTIONS[action](traveller), return_exceptions=True)
        expect(result)
        await never_wrong(traveller)
    await right_at_rest(traveller)


@pytest.mark.parametrize("first", ACTIONS)
async def test_every_order_of_events_ends_consistently(airport: Airport, first: str) -> None:
    others = [action for action in ACTIONS if action != first]
    orders = [(first, *rest) for rest in permutations(others, LONGEST - 1)]
    travellers = await airport.strangers(len(orders))

    async def one(n: int) -> None:
        try:
            await play(travellers[n], orders[n])
        except AssertionError as error:
            raise AssertionError(f"{orders[n]}: {error}") from error

    await a_few_at_once(map(one, range(len(orders))), at_once=AT_ONCE)


@pytest.mark.parametrize("first", ACTIONS)
async def test_any_two_concurrent_events_end_consistently(airport: Airport, first: str) -> None:
    pairs = [(before, second) for before in ("30 kg", "seat released") for second in ACTIONS]
    travellers = await airport.strangers(len(pairs))

    async def one(n: int) -> None:
        traveller, (before, second) = travellers[n], pairs[n]
        await begin(traveller)
        await ACTIONS[before](traveller)
        results = await asyncio.gather(ACTIONS[first](traveller), ACTIONS[second](traveller), return_exceptions=True)
        for each in results:
            expect(each)
        try:
            await right_at_rest(traveller)
        except AssertionError as error:
            raise AssertionError(f"{before}, then {first} and {second} at once: {error}") from error

    await asyncio.gather(*(one(n) for n in range(len(pairs))))
