"""`skyhigh journey`: two passengers' whole ways through the gateway, with plain JSON.

One logs in, takes a seat, checks in, pays for heavy bags and gets a boarding pass. Another waits for that very seat,
gets it when the first one cancels, and a mail that says so. Both leave everything as they found it.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Annotated, Any, Final
from urllib.parse import quote

import typer

from operations import demo
from operations.demo import Candidate
from operations.gateway import Answer, Gateway, GatewayAway
from operations.stack import address_of, fail

# P95 from a change to the map is 1 s (SEAT-12), from a freed seat to its new owner 10 s (WL-3).
MAP_SECONDS: Final = 5
PAYMENT_SECONDS: Final = 30
WAITLIST_SECONDS: Final = 10
MAIL_SECONDS: Final = 10
POLL_SECONDS: Final = 0.1
# Others may be taking seats too.
SEATS_TRIED: Final = 5
# Six kilograms more than an economy fare carries.
HEAVY_GRAMS: Final = 31_000
LIGHT_GRAMS: Final = 9_500
ALWAYS_SUCCEEDS: Final = "00000"
PICTURE: Final = "boardingpass.png"


class JourneyFailed(Exception):
    """A step's answer is not what it must be."""


@dataclass(frozen=True, slots=True)
class Traveller:
    """A passenger who has logged in."""

    gateway: Gateway
    person: Candidate

    @classmethod
    async def log_in(cls, gateway_url: str, person: Candidate) -> Traveller:
        """Opens a session by PNR and last name."""
        answer = await Gateway(gateway_url).log_in(person.pnr, person.last_name)
        if answer.status != 200:
            raise JourneyFailed(f"log in as {person.pnr} {person.last_name}: {answer}")
        names = [f"{p['givenName']} {p['lastName']}" for p in answer.body["trip"]["passengers"]]
        _step("log in", answer, f"{person.pnr} {person.last_name}: {', '.join(names)}")
        return cls(Gateway(gateway_url, answer.body["token"]), person)

    @property
    def flight(self) -> str:
        """The flight's part of a path."""
        return f"/v1/flights/{quote(self.person.flight_id)}"

    async def seat_map(self) -> Answer:
        """The flight's map."""
        return await self.gateway.get(f"{self.flight}/seatmap")

    async def hold(self, seat_number: str) -> Answer:
        """Asks for a seat."""
        return await self.gateway.send(
            f"{self.flight}/seats/{seat_number}/hold", {"passengerId": self.person.passenger_id}
        )


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command()(journey)


def journey(
    flight: Annotated[
        str | None, typer.Option(metavar="FLIGHT", help="Which.  [default: one of the demo airline's]")
    ] = None,
) -> None:
    """Prove the stack by two passengers' ways through the gateway.

    Log in, map, hold, a second caller's refusal, check-in, 31 kg of bags, payment, webhook, boarding pass; then the
    waitlist, a cancellation, the seat's new owner and the mail. Ends with 1 at the first answer that is wrong.
    """
    gateway_url = _gateway_url()
    try:
        asyncio.run(travel(gateway_url, flight))
    except (JourneyFailed, GatewayAway) as error:
        fail(f"the journey ended: {error}")


def _gateway_url() -> str:
    url = address_of("SKYHIGH_GATEWAY_URL").rstrip("/")
    return url if url.startswith(("http://", "https://")) else fail(f"SKYHIGH_GATEWAY_URL: {url!r} is no HTTP address")


async def travel(
    gateway_url: str,
    flight_id: str | None = None,
    *,
    after: Callable[[str], Awaitable[None]] | None = None,
    patience: float = 1,
) -> None:
    """Walks both ways. Raises JourneyFailed or GatewayAway at the first answer that is not as it must be.

    `after` is called with a step's name behind each step that others go on with; `patience` multiplies how long their
    part may take.
    """

    async def passed(step: str) -> None:
        if after is not None:
            await after(step)

    async with AsyncExitStack() as undo:
        first_person, second_person = await demo.candidates(2, flight_id=flight_id)
        first = await Traveller.log_in(gateway_url, first_person)
        second = await Traveller.log_in(gateway_url, second_person)
        hold_id, seat = await _hold(first)
        await _refuse_second_caller(second, seat)
        checkin_id = await undo.enter_async_context(_checked_in(first, hold_id))
        await passed("start check-in")
        intent_id = await _declare_heavy_bags(first, checkin_id)
        await passed("31 kg")
        await _pay(first, intent_id)
        await passed("pay")
        await _completed(first, checkin_id, seat, patience)
        await _show_boarding_pass(first, checkin_id, seat)
        entry_id = await undo.enter_async_context(_waiting(second, seat))
        await passed("join waitlist")
        await _cancel(first, checkin_id)
        await passed("cancel")
        await _assigned(second, entry_id, seat, patience)
        await _mailed(second, seat, patience)
        await _refunded(first, intent_id, patience)
        await _check_in_at_once(second, seat, undo)
    await _see(first, seat, "AVAILABLE", patience)


async def _hold(traveller: Traveller) -> tuple[str, str]:
    seen = await traveller.seat_map()
    seats = seen.body.get("seats", [])
    free = [
        seat["seatNumber"]
        for seat in seats
        if seat["state"] == "AVAILABLE" and seat["cabin"] == "ECONOMY" and "E" not in seat["characteristics"]
    ]
    if not free:
        raise JourneyFailed(f"map of {traveller.person.flight_id}: no free seat in economy: {seen}")
    _step(
        "map", seen, f"{traveller.person.flight_id}: {len(free)} of {len(seats)} free, version {seen.body['version']}"
    )
    # Not always the same seats: a stack that was used for long has no lucky corner.
    secrets.SystemRandom().shuffle(free)
    for seat in free[:SEATS_TRIED]:
        answer = await traveller.hold(seat)
        if answer.reason != "SEAT_TAKEN":
            break
    _expect("hold", answer, state="HELD")
    _step("hold", answer, f"{seat} held until {answer.body['expireTime']}")
    return str(answer.body["holdId"]), seat


async def _refuse_second_caller(other: Traveller, seat: str) -> None:
    answer = await other.hold(seat)
    if (answer.status, answer.reason) != (409, "SEAT_TAKEN"):
        raise JourneyFailed(f"a second caller for seat {seat} was not refused with 409 SEAT_TAKEN: {answer}")
    _step("second caller", answer, f"{answer.reason}: {answer.body.get('message', '')}")


@asynccontextmanager
async def _checked_in(traveller: Traveller, hold_id: str | None) -> AsyncIterator[str]:
    """Starts a check-in; also a journey that ends early takes it back."""
    person = traveller.person
    body = {"flightId": person.flight_id, "passengerId": person.passenger_id}
    answer = await traveller.gateway.send("/v1/checkins", body | ({"holdId": hold_id} if hold_id else {}))
    _expect("start check-in", answer, state="INITIATED")
    checkin_id = str(answer.body["checkinId"])
    _step("start check-in", answer, f"{answer.body['seatNumber']} confirmed, {answer.body['state']}")
    try:
        yield checkin_id
    finally:
        with suppress(GatewayAway):
            await traveller.gateway.send(f"/v1/checkins/{checkin_id}/cancel", {"reason": "JOURNEY"})


async def _declare_heavy_bags(traveller: Traveller, checkin_id: str) -> str:
    answer = await traveller.gateway.send(
        f"/v1/checkins/{checkin_id}/baggage", {"bags": [{"weightGrams": HEAVY_GRAMS}]}
    )
    _expect("31 kg", answer, state="WAITING_FOR_PAYMENT")
    fee = answer.body["fee"]
    _step(
        "31 kg",
        answer,
        f"{answer.body['excessGrams']} g too much: {fee['units']} {fee['currencyCode']} until "
        f"{answer.body['paymentDeadline']}",
    )
    return str(answer.body["paymentIntentId"])


async def _pay(traveller: Traveller, intent_id: str) -> None:
    answer = await traveller.gateway.send(f"/v1/payments/{intent_id}/pay", {"paymentCode": ALWAYS_SUCCEEDS})
    _expect("pay", answer)
    _step("pay", answer, f"intent {answer.body['state']}, attempt {answer.body['attempts']}")


async def _completed(traveller: Traveller, checkin_id: str, seat: str, patience: float) -> None:
    answer = await _until(
        lambda: traveller.gateway.get(f"/v1/checkins/{checkin_id}"),
        lambda body: body.get("state") == "COMPLETED",
        PAYMENT_SECONDS * patience,
        "the webhook's payment did not complete the check-in",
    )
    _expect("webhook", answer, seatNumber=seat)
    _step("webhook", answer, f"{answer.body['state']}, boarding sequence {answer.body['sequenceNumber']}")


async def _show_boarding_pass(traveller: Traveller, checkin_id: str, seat: str) -> None:
    from checkin_service import barcodes
    from deploy.local.stack import home_of

    path = f"/v1/checkins/{checkin_id}/boardingpass"
    answer = await traveller.gateway.get(path)
    _expect("boarding pass", answer, seatNumber=seat)
    picture = home_of() / PICTURE
    picture.write_bytes(await traveller.gateway.download(f"{path}.png"))
    _step("boarding pass", answer, f"{answer.body['bcbp']!r}, picture in {picture}")
    print(barcodes.text(answer.body["bcbp"]))
    print(
        f"  {answer.body['lastName']}/{answer.body['givenName']}  {answer.body['flightNumber']}  "
        f"{answer.body['origin']} → {answer.body['destination']}  seat {seat}  gate {answer.body['gate'] or '-'}  "
        f"boarding {answer.body['boardingTime']}\n"
    )


@asynccontextmanager
async def _waiting(traveller: Traveller, seat: str) -> AsyncIterator[str]:
    """Joins the waitlist for one seat; also a journey that ends early leaves it."""
    answer = await traveller.gateway.send(
        f"{traveller.flight}/waitlist",
        {"passengerId": traveller.person.passenger_id, "preferences": {"seatNumbers": [seat]}},
    )
    _expect("join waitlist", answer, state="WAITING")
    entry_id = str(answer.body["entryId"])
    _step("join waitlist", answer, f"{traveller.person.last_name} waits for {seat}, position {answer.body['position']}")
    try:
        yield entry_id
    finally:
        with suppress(GatewayAway):
            await traveller.gateway.send(f"/v1/waitlist/{entry_id}/leave", {})


async def _cancel(traveller: Traveller, checkin_id: str) -> None:
    answer = await traveller.gateway.send(f"/v1/checkins/{checkin_id}/cancel", {"reason": "CHANGED_MIND"})
    _expect("cancel", answer, state="CANCELLED")
    _step("cancel", answer, f"the check-in of {traveller.person.last_name} is {answer.body['state']}")


async def _assigned(traveller: Traveller, entry_id: str, seat: str, patience: float) -> None:
    began = time.perf_counter()
    answer = await _until(
        lambda: traveller.gateway.get(f"/v1/waitlist/{entry_id}"),
        lambda body: body.get("state") == "ASSIGNED",
        WAITLIST_SECONDS * patience,
        "the freed seat did not reach the waitlist",
    )
    _expect("assigned", answer, seatNumber=seat)
    took = (time.perf_counter() - began) * 1000
    _print("assigned", str(answer.status), f"{seat} is {traveller.person.last_name}'s now", took)


async def _mailed(traveller: Traveller, seat: str, patience: float) -> None:
    """Looks for the mail that tells of the seat."""
    email = traveller.person.contact_email
    url = f"{address_of('SKYHIGH_MOCK_MAIL_URL')}/mails?to={quote(email)}"

    def read() -> list[dict[str, Any]]:
        with urllib.request.urlopen(url, timeout=5) as response:  # noqa: S310
            mails: list[dict[str, Any]] = json.load(response)
            return mails

    began = time.perf_counter()
    deadline = time.monotonic() + MAIL_SECONDS * patience
    while time.monotonic() < deadline:
        mails = [mail for mail in await asyncio.to_thread(read) if seat in mail["text"]]
        if mails:
            _print("mail", "smtp", f"to {email}: {mails[-1]['subject']}", (time.perf_counter() - began) * 1000)
            return
        await asyncio.sleep(POLL_SECONDS)
    raise JourneyFailed(f"no mail to {email} within {MAIL_SECONDS * patience} s")


async def _refunded(traveller: Traveller, intent_id: str, patience: float) -> None:
    answer = await _until(
        lambda: traveller.gateway.get(f"/v1/payments/{intent_id}"),
        lambda body: body.get("state") == "REFUNDED",
        PAYMENT_SECONDS * patience,
        "the fee of the cancelled check-in was not refunded",
    )
    amount = answer.body["amount"]
    _step("refund", answer, f"{amount['units']} {amount['currencyCode']} went back")


async def _check_in_at_once(traveller: Traveller, seat: str, undo: AsyncExitStack) -> None:
    checkin_id = await undo.enter_async_context(_checked_in(traveller, None))
    answer = await traveller.gateway.send(
        f"/v1/checkins/{checkin_id}/baggage", {"bags": [{"weightGrams": LIGHT_GRAMS}]}
    )
    _expect("9.5 kg", answer, state="COMPLETED", seatNumber=seat)
    _step("9.5 kg", answer, f"{answer.body['state']} at once, boarding sequence {answer.body['sequenceNumber']}")


async def _see(traveller: Traveller, seat: str, state: str, patience: float) -> None:
    """Waits until the map shows the seat so."""

    def shown(body: dict[str, Any]) -> bool:
        return {s["seatNumber"]: s["state"] for s in body.get("seats", [])}.get(seat) == state

    answer = await _until(traveller.seat_map, shown, MAP_SECONDS * patience, f"the map does not show {seat} as {state}")
    _step("map", answer, f"{seat} is {state}, version {answer.body['version']}")


async def _until(
    ask: Callable[[], Awaitable[Answer]], right: Callable[[dict[str, Any]], bool], seconds: float, otherwise: str
) -> Answer:
    deadline = time.monotonic() + seconds
    while True:
        answer = await ask()
        if answer.status == 200 and right(answer.body):
            return answer
        if time.monotonic() > deadline:
            raise JourneyFailed(f"{otherwise} within {seconds} s: {answer}")
        await asyncio.sleep(POLL_SECONDS)


def _expect(step: str, answer: Answer, **fields: Any) -> None:
    wrong = {name: value for name, value in fields.items() if answer.body.get(name) != value}
    if answer.status != 200 or wrong:
        raise JourneyFailed(f"{step}: expected {fields}, got {answer}")


def _step(name: str, answer: Answer, seen: str) -> None:
    _print(name, str(answer.status), seen, answer.milliseconds)


def _print(name: str, status: str, seen: str, milliseconds: float) -> None:
    print(f"  {name:<14} {status:<5} {milliseconds:6.0f} ms  {seen}", flush=True)
