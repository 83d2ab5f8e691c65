"""Verdicts in any order, also repeated, lead to the same outcome (PAY-4)."""

from __future__ import annotations

from collections import Counter
from typing import Final, TypeAlias

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from skyhigh.payment.v1 import payment_service_pb2 as pb

from tests.payment.rules import Payments, event, signed, state_of
from tests.waiting import eventually

Verdict: TypeAlias = tuple[int, str]

ATTEMPTS: Final = 3
# For each of three charges: one event that it failed and one that it succeeded.
VERDICTS: Final[list[Verdict]] = [
    (number, kind) for number in range(1, ATTEMPTS + 1) for kind in ("charge.failed", "charge.succeeded")
]


async def failed_intent(payments: Payments) -> pb.PaymentIntent:
    """Returns a FAILED intent with three declined charges; skips the pauses."""
    intent = await payments.unanswered(payments.callers.passenger())
    for number in range(1, ATTEMPTS + 1):
        await payments.deliver(event(intent, "charge.failed", number=number))
        await payments.goes_on(intent)

        async def next_one(expected: int = min(number + 1, ATTEMPTS)) -> bool:
            return len(await payments.charges(intent)) == expected

        await eventually(next_one)
    return intent


async def tell(payments: Payments, intent: pb.PaymentIntent, verdicts: list[Verdict]) -> None:
    for verdict in verdicts:
        body = event(intent, verdict[1], number=verdict[0])
        await payments.deliver(body, signed(body))


async def end(payments: Payments, intent: pb.PaymentIntent) -> tuple[str, Counter[str], int, Counter[str]]:
    """Returns the intent's state, charges by state, number of refunds, and events."""
    charges = Counter(charge["state"] for charge in await payments.charges(intent))
    refunds = (await payments.rows(intent))[3]
    told = Counter(key for key, _ in await payments.told(intent))
    return state_of(await payments.get(intent)), charges, len(refunds), told


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(verdicts=st.lists(st.sampled_from(VERDICTS), max_size=12), cancelled=st.booleans())
async def test_verdicts_in_any_order_end_the_same(silent: Payments, verdicts: list[Verdict], cancelled: bool) -> None:
    one, other = await failed_intent(silent), await failed_intent(silent)
    if cancelled:
        await silent.cancel(one)
        await silent.cancel(other)
    await tell(silent, one, verdicts)
    await tell(silent, other, sorted(set(verdicts), reverse=True))
    succeeded = len({number for number, kind in verdicts if kind == "charge.succeeded"})
    counts = not cancelled and succeeded > 0
    expected = (
        "CANCELLED" if cancelled else "SUCCEEDED" if counts else "FAILED",
        Counter(SUCCEEDED=succeeded, FAILED=ATTEMPTS - succeeded),
        succeeded - counts,
        Counter({"payment.failed.v1": 1, "payment.succeeded.v1": int(counts)}),
    )
    assert await end(silent, one) == expected
    assert await end(silent, other) == expected
    assert await silent.violations() == []


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kinds=st.lists(st.sampled_from(["charge.failed", "charge.succeeded"]), min_size=1, max_size=10))
async def test_a_running_payment_follows_verdicts_in_any_order(silent: Payments, kinds: list[str]) -> None:
    intent = await silent.unanswered(silent.callers.passenger())
    await tell(silent, intent, [(1, kind) for kind in kinds])
    paid = "charge.succeeded" in kinds
    assert await end(silent, intent) == (
        "SUCCEEDED" if paid else "PROCESSING",
        Counter({"SUCCEEDED" if paid else "FAILED": 1}),
        0,
        Counter({"payment.succeeded.v1": 1} if paid else {}),
    )
