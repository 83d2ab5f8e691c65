"""The journeys of two passengers of the demo airline.

One holds a seat, checks in, pays for heavy bags and gets a boarding pass. The other joins the waitlist for that seat,
and gets the seat and a mail about it when the first one cancels.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Final

from operations.demo import passengers
from operations.gateway_client import GatewayUnavailable
from operations.journeys.steps import (
    ALWAYS_SUCCEEDS,
    PAYMENT_SECONDS,
    WAITLIST_SECONDS,
    JourneyFailed,
    Passed,
    Traveller,
    checked_in,
    declare_light_bags,
    expect,
    free_seats,
    line,
    mailed,
    money_text,
    see,
    show_boarding_pass,
    step,
    until,
)

# Other callers may hold a seat after the map was read.
SEATS_TRIED: Final = 5
# 6 kg more than the STANDARD fare includes.
HEAVY_GRAMS: Final = 31_000


async def travel(gateway_url: str, flight_id: str | None, *, passed: Passed, patience: float) -> None:
    """Makes both journeys and cancels everything at the end. Raises JourneyFailed or GatewayUnavailable."""
    async with AsyncExitStack() as undo:
        first_person, second_person = await passengers.candidates(2, flight_id=flight_id)
        first = await Traveller.log_in(gateway_url, first_person)
        second = await Traveller.log_in(gateway_url, second_person)
        hold_id, seat = await _hold(first)
        await _refuse_second_caller(second, seat)
        checkin_id = await undo.enter_async_context(checked_in(first, hold_id))
        await passed("start check-in")
        intent_id = await _declare_heavy_bags(first, checkin_id)
        await passed("31 kg")
        await _pay(first, intent_id)
        await passed("pay")
        await _completed(first, checkin_id, seat, patience)
        await show_boarding_pass(first, checkin_id, seat)
        entry_id = await undo.enter_async_context(_waiting(second, seat))
        await passed("join waitlist")
        await _cancel(first, checkin_id)
        await passed("cancel")
        await _assigned(second, entry_id, seat, patience)
        await mailed(second.person.contact_email, about=seat, patience=patience)
        await _refunded(first, intent_id, patience)
        await declare_light_bags(second, await undo.enter_async_context(checked_in(second, None)), seat)
    await see(first, seat, "AVAILABLE", patience)


async def _hold(traveller: Traveller) -> tuple[str, str]:
    seen = await traveller.seat_map()
    free = free_seats(seen)
    if not free:
        raise JourneyFailed(f"map of {traveller.person.flight_id}: no free seat in economy: {seen}")
    seats = seen.body["seats"]
    step("map", seen, f"{traveller.person.flight_id}: {len(free)} of {len(seats)} free, version {seen.body['version']}")
    # In random order, so that journeys of one stack do not all use the same few seats.
    secrets.SystemRandom().shuffle(free)
    for seat in free[:SEATS_TRIED]:
        answer = await traveller.hold(seat)
        if answer.reason != "SEAT_TAKEN":
            break
    expect("hold", answer, state="HELD")
    step("hold", answer, f"{seat} held until {answer.body['expireTime']}")
    return str(answer.body["holdId"]), seat


async def _refuse_second_caller(other: Traveller, seat: str) -> None:
    answer = await other.hold(seat)
    if (answer.status, answer.reason) != (409, "SEAT_TAKEN"):
        raise JourneyFailed(f"a second caller for seat {seat} was not refused with 409 SEAT_TAKEN: {answer}")
    step("second caller", answer, f"{answer.reason}: {answer.body.get('message', '')}")


async def _declare_heavy_bags(traveller: Traveller, checkin_id: str) -> str:
    answer = await traveller.gateway.send(
        f"/v1/checkins/{checkin_id}/baggage", {"bags": [{"weightGrams": HEAVY_GRAMS}]}
    )
    expect("31 kg", answer, state="WAITING_FOR_PAYMENT")
    fee = answer.body["fee"]
    step(
        "31 kg",
        answer,
        f"{answer.body['excessGrams']} g over the allowance: {money_text(fee)} until {answer.body['paymentDeadline']}",
    )
    return str(answer.body["paymentIntentId"])


async def _pay(traveller: Traveller, intent_id: str) -> None:
    answer = await traveller.gateway.send(f"/v1/payments/{intent_id}/pay", {"paymentCode": ALWAYS_SUCCEEDS})
    expect("pay", answer)
    step("pay", answer, f"intent {answer.body['state']}, attempt {answer.body['attempts']}")


async def _completed(traveller: Traveller, checkin_id: str, seat: str, patience: float) -> None:
    answer = await until(
        lambda: traveller.gateway.get(f"/v1/checkins/{checkin_id}"),
        lambda body: body.get("state") == "COMPLETED",
        PAYMENT_SECONDS * patience,
        "the webhook's payment did not complete the check-in",
    )
    expect("webhook", answer, seatNumber=seat)
    step("webhook", answer, f"{answer.body['state']}, boarding sequence {answer.body['sequenceNumber']}")


@asynccontextmanager
async def _waiting(traveller: Traveller, seat: str) -> AsyncIterator[str]:
    """Joins the waitlist for one seat; leaves it at the end, also after an error."""
    answer = await traveller.gateway.send(
        f"{traveller.flight}/waitlist",
        {"passengerId": traveller.person.passenger_id, "preferences": {"seatNumbers": [seat]}},
    )
    expect("join waitlist", answer, state="WAITING")
    entry_id = str(answer.body["entryId"])
    step("join waitlist", answer, f"{traveller.person.last_name} waits for {seat}, position {answer.body['position']}")
    try:
        yield entry_id
    finally:
        with suppress(GatewayUnavailable):
            await traveller.gateway.send(f"/v1/waitlist/{entry_id}/leave", {})


async def _cancel(traveller: Traveller, checkin_id: str) -> None:
    answer = await traveller.gateway.send(f"/v1/checkins/{checkin_id}/cancel", {"reason": "CHANGED_MIND"})
    expect("cancel", answer, state="CANCELLED")
    step("cancel", answer, f"the check-in of {traveller.person.last_name} is {answer.body['state']}")


async def _assigned(traveller: Traveller, entry_id: str, seat: str, patience: float) -> None:
    began = time.perf_counter()
    answer = await until(
        lambda: traveller.gateway.get(f"/v1/waitlist/{entry_id}"),
        lambda body: body.get("state") == "ASSIGNED",
        WAITLIST_SECONDS * patience,
        "the released seat was not assigned to the waiting passenger",
    )
    expect("assigned", answer, seatNumber=seat)
    took = (time.perf_counter() - began) * 1000
    line("assigned", str(answer.status), f"{seat} is assigned to {traveller.person.last_name}", took)


async def _refunded(traveller: Traveller, intent_id: str, patience: float) -> None:
    answer = await until(
        lambda: traveller.gateway.get(f"/v1/payments/{intent_id}"),
        lambda body: body.get("state") == "REFUNDED",
        PAYMENT_SECONDS * patience,
        "the fee of the cancelled check-in was not refunded",
    )
    amount = answer.body["amount"]
    step("refund", answer, f"{money_text(amount)} refunded")
