"""The steps that the journeys share: logins, check-ins, and checks of responses."""

from __future__ import annotations

import asyncio
import json
import time
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final, TypeAlias
from urllib.parse import quote

from google.protobuf import json_format
from google.type import money_pb2

from operations.demo.passengers import Candidate
from operations.gateway_client import Answer, Gateway, GatewayUnavailable
from operations.local_stack import address_of
from services.money import text_of_money

# At P95 the map shows a change within 1 s (SEAT-12), and the waitlist assigns a freed seat within 10 s (WL-3).
MAP_SECONDS: Final = 5
PAYMENT_SECONDS: Final = 30
WAITLIST_SECONDS: Final = 10
MAIL_SECONDS: Final = 10
# The time for an event to reach another service and take effect there.
EVENT_SECONDS: Final = 10
POLL_SECONDS: Final = 0.1
LIGHT_GRAMS: Final = 9_500
ALWAYS_SUCCEEDS: Final = "00000"
PICTURE: Final = "boardingpass.png"

Passed: TypeAlias = Callable[[str], Awaitable[None]]
"""Called with the name of each step after which other services continue the work."""


class JourneyFailed(Exception):
    """The response to a step is not the expected one."""


@dataclass(frozen=True, slots=True)
class Traveller:
    """A passenger with a session, on one flight."""

    gateway: Gateway
    person: Candidate

    @classmethod
    async def log_in(cls, gateway_url: str, person: Candidate) -> Traveller:
        """Opens a session by PNR and last name. Raises JourneyFailed if the login fails."""
        answer = await Gateway(gateway_url).log_in(person.pnr, person.last_name)
        if answer.status != 200:
            raise JourneyFailed(f"log in as {person.pnr} {person.last_name}: {answer}")
        names = [f"{p['givenName']} {p['lastName']}" for p in answer.body["trip"]["passengers"]]
        step("log in", answer, f"{person.pnr} {person.last_name}: {', '.join(names)}")
        return cls(Gateway(gateway_url, answer.body["token"]), person)

    @property
    def flight(self) -> str:
        """The path of the flight at the gateway."""
        return f"/v1/flights/{quote(self.person.flight_id)}"

    async def seat_map(self) -> Answer:
        """Reads the seat map of the flight."""
        return await self.gateway.get(f"{self.flight}/seatmap")

    async def hold(self, seat_number: str) -> Answer:
        """Sends a HoldSeat request for the passenger."""
        return await self.gateway.send(
            f"{self.flight}/seats/{seat_number}/hold", {"passengerId": self.person.passenger_id}
        )


def free_seats(seat_map: Answer) -> list[str]:
    """Returns the available seats of a map in economy, without those in exit rows."""
    return [
        seat["seatNumber"]
        for seat in seat_map.body.get("seats", [])
        if seat["state"] == "AVAILABLE" and seat["cabin"] == "ECONOMY" and "E" not in seat["characteristics"]
    ]


@asynccontextmanager
async def checked_in(traveller: Traveller, hold_id: str | None) -> AsyncIterator[str]:
    """Starts a check-in; cancels it at the end, also after an error."""
    person = traveller.person
    body = {"flightId": person.flight_id, "passengerId": person.passenger_id}
    answer = await traveller.gateway.send("/v1/checkins", body | ({"holdId": hold_id} if hold_id else {}))
    expect("start check-in", answer, state="INITIATED")
    checkin_id = str(answer.body["checkinId"])
    step("start check-in", answer, f"{answer.body['seatNumber']} confirmed, {answer.body['state']}")
    try:
        yield checkin_id
    finally:
        with suppress(GatewayUnavailable):
            await traveller.gateway.send(f"/v1/checkins/{checkin_id}/cancel", {"reason": "JOURNEY"})


async def declare_light_bags(traveller: Traveller, checkin_id: str, seat: str) -> None:
    """Declares a bag within the allowance; expects that the check-in completes at once."""
    answer = await traveller.gateway.send(
        f"/v1/checkins/{checkin_id}/baggage", {"bags": [{"weightGrams": LIGHT_GRAMS}]}
    )
    expect("9.5 kg", answer, state="COMPLETED", seatNumber=seat)
    step("9.5 kg", answer, f"{answer.body['state']} at once, boarding sequence {answer.body['sequenceNumber']}")


async def show_boarding_pass(traveller: Traveller, checkin_id: str, seat: str) -> None:
    """Prints the boarding pass as a barcode and as text, and saves its picture."""
    from checkin_service.boarding import barcodes
    from deploy.local.home import home_of

    path = f"/v1/checkins/{checkin_id}/boardingpass"
    answer = await traveller.gateway.get(path)
    expect("boarding pass", answer, seatNumber=seat)
    picture = home_of() / PICTURE
    picture.write_bytes(await traveller.gateway.download(f"{path}.png"))
    step("boarding pass", answer, f"{answer.body['bcbp']!r}, picture in {picture}")
    print(barcodes.text(answer.body["bcbp"]))
    print(
        f"  {answer.body['lastName']}/{answer.body['givenName']}  {answer.body['flightNumber']}  "
        f"{answer.body['origin']} → {answer.body['destination']}  seat {seat}  gate {answer.body['gate'] or '-'}  "
        f"boarding {answer.body['boardingTime']}\n"
    )


async def mailed(email: str, *, about: str, patience: float) -> None:
    """Waits for a mail to this address whose text contains `about`. Raises JourneyFailed if none arrives in time."""
    url = f"{address_of('SKYHIGH_MOCK_MAIL_URL')}/mails?to={quote(email)}"

    def read() -> list[dict[str, Any]]:
        with urllib.request.urlopen(url, timeout=5) as response:  # noqa: S310
            mails: list[dict[str, Any]] = json.load(response)
            return mails

    began = time.perf_counter()
    deadline = time.monotonic() + MAIL_SECONDS * patience
    while time.monotonic() < deadline:
        mails = [mail for mail in await asyncio.to_thread(read) if about in mail["text"]]
        if mails:
            line("mail", "smtp", f"to {email}: {mails[-1]['subject']}", (time.perf_counter() - began) * 1000)
            return
        await asyncio.sleep(POLL_SECONDS)
    raise JourneyFailed(f"no mail to {email} within {MAIL_SECONDS * patience} s")


async def see(traveller: Traveller, seat: str, state: str, patience: float) -> None:
    """Waits until the map shows the seat in this state. Raises JourneyFailed if it does not in time."""

    def shown(body: dict[str, Any]) -> bool:
        return {s["seatNumber"]: s["state"] for s in body.get("seats", [])}.get(seat) == state

    answer = await until(traveller.seat_map, shown, MAP_SECONDS * patience, f"the map does not show {seat} as {state}")
    step("map", answer, f"{traveller.person.flight_id}: {seat} is {state}, version {answer.body['version']}")


async def until(
    ask: Callable[[], Awaitable[Answer]], right: Callable[[dict[str, Any]], bool], seconds: float, otherwise: str
) -> Answer:
    """Repeats a request until its response is right. Raises JourneyFailed if that takes too long."""
    deadline = time.monotonic() + seconds
    while True:
        answer = await ask()
        if answer.status == 200 and right(answer.body):
            return answer
        if time.monotonic() > deadline:
            raise JourneyFailed(f"{otherwise} within {seconds} s: {answer}")
        await asyncio.sleep(POLL_SECONDS)


def money_text(money: dict[str, Any]) -> str:
    """Formats an amount, given as the gateway's JSON, for people."""
    return text_of_money(json_format.ParseDict(money, money_pb2.Money()))


def expect(name: str, answer: Answer, **fields: Any) -> None:
    """Raises JourneyFailed unless the status is 200 and the body has these fields."""
    wrong = {field: value for field, value in fields.items() if answer.body.get(field) != value}
    if answer.status != 200 or wrong:
        raise JourneyFailed(f"{name}: expected {fields}, got {answer}")


def step(name: str, answer: Answer, seen: str) -> None:
    """Prints a step that succeeded."""
    line(name, str(answer.status), seen, answer.milliseconds)


def line(name: str, status: str, seen: str, milliseconds: float) -> None:
    """Prints a line of the journey."""
    print(f"  {name:<14} {status:<5} {milliseconds:6.0f} ms  {seen}", flush=True)
