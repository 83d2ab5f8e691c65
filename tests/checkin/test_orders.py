"""Every order of what can happen to a check-in with bags: never completed unpaid, never without a seat, no fee lost."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from itertools import permutations
from typing import Final

import grpc
import pytest
from skyhigh.payment.v1 import payment_service_pb2

from tests.callers import read
from tests.checkin.airport import Airport, Traveller

Intent = payment_service_pb2.PaymentIntent

LONGEST: Final = 4
AT_ONCE: Final = 24
# Whatever else an action meets would be a defect.
EXPECTED: Final = {
    "CHECK_IN_COMPLETED",
    "CHECK_IN_CANCELLED",
    "PAYMENT_IN_PROGRESS",
    "FEE_PAID",
    "SEAT_REQUIRED",
    "DEPENDENCY_UNAVAILABLE",
}


async def pay(traveller: Traveller) -> None:
    if (await traveller.get()).payment_intent_id:
        await traveller.pay()


async def fail(traveller: Traveller) -> None:
    if (await traveller.get()).payment_intent_id:
        await traveller.fail_to_pay()


async def late_success(traveller: Traveller) -> None:
    """The provider took the money of the first intent, whatever became of it."""
    payments = traveller.airport.payments
    for intent in payments.of(traveller.checkin_id)[:1]:
        if intent.state not in (Intent.SUCCEEDED, Intent.REFUNDED):
            intent.state = Intent.PROCESSING
            event = payments.succeed(str(intent.intent_id))
            await traveller.airport.tell("payment.succeeded.v1", event)


ACTIONS: Final[dict[str, Callable[[Traveller], Awaitable[object]]]] = {
    "30 kg": lambda traveller: traveller.declare(30),
    "10 kg": lambda traveller: traveller.declare(10),
    "pay": pay,
    "fail": fail,
    "cancel": lambda traveller: traveller.cancel(),
    "late success": late_success,
    "seat released": lambda traveller: traveller.lose_seat(),
}


async def never_wrong(traveller: Traveller) -> None:
    """What holds at every moment."""
    row = await traveller.airport.row(traveller)
    if row.state == "COMPLETED":
        assert row.seat_number is not None
        assert row.sequence_number is not None
        if row.fee_cents:
            assert row.fee_pay_time is not None
            assert row.payment_intent_id is not None
            assert traveller.airport.payments.intents[row.payment_intent_id].state == Intent.SUCCEEDED


async def right_at_rest(traveller: Traveller) -> None:
    """What holds once everything that had to follow was done."""
    airport = traveller.airport
    await airport.at_rest(traveller)
    await never_wrong(traveller)
    row = await airport.row(traveller)
    waits_for_a_seat = row.state == "WAITING_FOR_PAYMENT" and row.fee_pay_time is not None
    kept = 1 if waits_for_a_seat or (row.state == "COMPLETED" and row.fee_cents) else 0
    assert airport.payments.money_kept(traveller.checkin_id) == kept
    payable = {each.intent_id for each in airport.payments.of(traveller.checkin_id) if each.state == Intent.FAILED}
    assert payable <= {row.payment_intent_id}
    assert await traveller.seat() == ("" if row.state == "CANCELLED" else row.seat_number or "")


async def play(traveller: Traveller, order: Sequence[str]) -> None:
    await traveller.start()
    for action in order:
        try:
            await ACTIONS[action](traveller)
        except grpc.aio.AioRpcError as error:
            assert read(error).reason in EXPECTED, f"{order}: {action}"
        await never_wrong(traveller)
    await right_at_rest(traveller)


@pytest.mark.parametrize("first", ACTIONS)
async def test_every_order_ends_right(airport: Airport, first: str) -> None:
    others = [action for action in ACTIONS if action != first]
    orders = [(first, *rest) for rest in permutations(others, LONGEST - 1)]
    travellers = await airport.travellers(*(f"P{n}" for n in range(len(orders))))
    room = asyncio.Semaphore(AT_ONCE)

    async def one(n: int) -> None:
        async with room:
            try:
                await play(travellers[n], orders[n])
            except AssertionError as error:
                raise AssertionError(f"{orders[n]}: {error}") from error

    await asyncio.gather(*(one(n) for n in range(len(orders))))


@pytest.mark.parametrize("first", ACTIONS)
async def test_any_two_at_once_end_right(airport: Airport, first: str) -> None:
    pairs = [(begin, second) for begin in ("30 kg", "seat released") for second in ACTIONS]
    travellers = await airport.travellers(*(f"P{n}" for n in range(len(pairs))))

    async def one(n: int) -> None:
        traveller, (begin, second) = travellers[n], pairs[n]
        await traveller.start()
        await ACTIONS[begin](traveller)
        results = await asyncio.gather(ACTIONS[first](traveller), ACTIONS[second](traveller), return_exceptions=True)
        for each in results:
            if isinstance(each, grpc.aio.AioRpcError):
                assert read(each).reason in EXPECTED, (begin, first, second)
            elif isinstance(each, BaseException):
                raise each
        try:
            await right_at_rest(traveller)
        except AssertionError as error:
            raise AssertionError(f"{begin}, then {first} and {second} at once: {error}") from error

    await asyncio.gather(*(one(n) for n in range(len(pairs))))
