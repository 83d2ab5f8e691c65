"""`skyhigh journey`: one passenger's whole way through the gateway, with plain JSON, and the event that ends it."""

from __future__ import annotations

import asyncio
import datetime
import json
import secrets
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Annotated, Any, Final
from urllib.parse import quote
from uuid import uuid4

import typer

from operations import demo
from operations.events import Heard, readable, subscribed
from operations.stack import address_of, fail
from operations.token import mint

CALL_TIMEOUT_SECONDS: Final = 10
# P95 from a change to the map is 1 s (SEAT-12).
MAP_SECONDS: Final = 5
EVENT_SECONDS: Final = 10
POLL_SECONDS: Final = 0.1
# Others may be taking seats too.
SEATS_TRIED: Final = 5
RELEASED: Final = "seat.released.v1"
_PNR_LETTERS: Final = "ABCDEFGHJKMNPQRSTUVWXYZ"


class JourneyFailed(Exception):
    """A step's answer is not what it must be."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the gateway answered."""

    status: int
    body: dict[str, Any]
    milliseconds: float

    @property
    def reason(self) -> str:
        """The refusal's reason of the contract, or nothing."""
        reasons = (detail.get("reason") for detail in self.body.get("details", []) if isinstance(detail, dict))
        return next((str(reason) for reason in reasons if reason), "")

    def __str__(self) -> str:
        return f"HTTP {self.status} {self.reason or json.dumps(self.body)[:300]}"


@dataclass(frozen=True, slots=True)
class Traveller:
    """A passenger session for one flight, and its way to the gateway."""

    gateway_url: str
    flight_id: str
    pnr: str
    passenger_id: str
    token: str

    @classmethod
    def new(cls, gateway_url: str, flight_id: str) -> Traveller:
        """Somebody who was never there before."""
        pnr = "".join(secrets.choice(_PNR_LETTERS) for _ in range(6))
        passenger_id = f"{pnr}-1"
        passenger = {"id": passenger_id, "flight": flight_id, "cabin": "ECONOMY", "type": "ADULT", "ssr": []}
        token = mint("passenger", pnr, ttl_seconds=600, passengers=[passenger])
        return cls(gateway_url, flight_id, pnr, passenger_id, token)

    async def get(self, path: str) -> Answer:
        """GET."""
        return await asyncio.to_thread(self._call, "GET", path, None)

    async def send(self, path: str, body: Mapping[str, Any], *, method: str = "POST") -> Answer:
        """A change, with a request id of its own."""
        return await asyncio.to_thread(self._call, method, path, {**body, "requestId": str(uuid4())})

    async def seat_map(self) -> Answer:
        """The flight's map."""
        return await self.get(f"/v1/flights/{quote(self.flight_id)}/seatmap")

    async def hold(self, seat_number: str) -> Answer:
        """Asks for a seat."""
        path = f"/v1/flights/{quote(self.flight_id)}/seats/{seat_number}/hold"
        return await self.send(path, {"passengerId": self.passenger_id})

    def _call(self, method: str, path: str, body: Mapping[str, Any] | None) -> Answer:
        # The scheme is http or https: _gateway_url() saw to it.
        request = urllib.request.Request(  # noqa: S310
            self.gateway_url + path,
            method=method,
            data=json.dumps(body).encode() if body is not None else None,
            headers={"authorization": f"Bearer {self.token}", "content-type": "application/json"},
        )
        began = time.perf_counter()
        try:
            with urllib.request.urlopen(request, timeout=CALL_TIMEOUT_SECONDS) as response:  # noqa: S310
                status, content = response.status, response.read()
        except urllib.error.HTTPError as error:
            with error:
                status, content = error.code, error.read()
        except (OSError, TimeoutError) as error:
            raise JourneyFailed(f"{method} {path}: the gateway at {self.gateway_url} is away: {error}") from error
        milliseconds = (time.perf_counter() - began) * 1000
        try:
            answer = json.loads(content)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise JourneyFailed(f"{method} {path}: HTTP {status}, and the body is no JSON object: {content[:200]!r}")
        return Answer(status, answer, milliseconds)


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command()(journey)


def journey(
    flight: Annotated[
        str | None, typer.Option(metavar="FLIGHT", help="Which.  [default: one of the demo airline's]")
    ] = None,
) -> None:
    """Prove the stack by one passenger's way through the gateway.

    Map, hold, a second caller's refusal, extension, change of seat, confirmation, cancellation, and the event of the
    freed seat over the broker. Ends with 1 at the first answer that is not as it must be. Leaves the seat free.
    """
    gateway_url = _gateway_url()
    flights = [flight] if flight is not None else sorted(demo.flights(datetime.datetime.now(datetime.UTC).date()))
    try:
        asyncio.run(_travel(gateway_url, address_of("SKYHIGH_AMQP_URL"), flights))
    except JourneyFailed as error:
        fail(f"the journey ended: {error}")


def _gateway_url() -> str:
    url = address_of("SKYHIGH_GATEWAY_URL").rstrip("/")
    return url if url.startswith(("http://", "https://")) else fail(f"SKYHIGH_GATEWAY_URL: {url!r} is no HTTP address")


async def _travel(gateway_url: str, amqp_url: str, flights: Sequence[str]) -> None:
    traveller, free = await _board(gateway_url, flights)
    hold_id, seat = await _hold(traveller, free)
    async with _given_back(traveller, hold_id):
        await _refuse_second_caller(Traveller.new(gateway_url, traveller.flight_id), seat)
        await _extend(traveller, hold_id)
        seat = await _change(traveller, hold_id, seat, free)
        await _confirm(traveller, hold_id, seat)
        async with _listening(amqp_url) as heard:
            await _cancel(traveller, hold_id)
            await _hear_of_release(heard, traveller, hold_id, seat)
    await _see(traveller, seat, "AVAILABLE")


async def _board(gateway_url: str, flights: Sequence[str]) -> tuple[Traveller, list[str]]:
    """Finds a flight with free seats in economy class."""
    answer = None
    for flight_id in flights:
        traveller = Traveller.new(gateway_url, flight_id)
        answer = await traveller.seat_map()
        if answer.status == 200:
            seats = answer.body.get("seats", [])
            free = [s["seatNumber"] for s in seats if s["state"] == "AVAILABLE" and s["cabin"] == "ECONOMY"]
            if len(free) > 1:
                version = answer.body["version"]
                _step("map", answer, f"{flight_id}: {len(free)} of {len(seats)} seats free, version {version}")
                # Not always the same seats: a stack that was used for long has no lucky corner.
                secrets.SystemRandom().shuffle(free)
                return traveller, free
        elif answer.reason != "FLIGHT_NOT_FOUND":
            raise JourneyFailed(f"map of {flight_id}: {answer}")
    raise JourneyFailed(f"no flight with two free seats; `skyhigh demo load` makes some. The last answer: {answer}")


async def _hold(traveller: Traveller, free: Sequence[str]) -> tuple[str, str]:
    for seat in free[:SEATS_TRIED]:
        answer = await traveller.hold(seat)
        if answer.reason != "SEAT_TAKEN":
            break
    _expect("hold", answer, state="HELD")
    _expect_seat("hold", answer, seat)
    _step("hold", answer, f"{seat} held until {answer.body['expireTime']}")
    return str(answer.body["holdId"]), seat


async def _refuse_second_caller(other: Traveller, seat: str) -> None:
    answer = await other.hold(seat)
    if (answer.status, answer.reason) != (409, "SEAT_TAKEN"):
        raise JourneyFailed(f"a second caller for seat {seat} was not refused with 409 SEAT_TAKEN: {answer}")
    _step("second caller", answer, f"{answer.reason}: {answer.body.get('message', '')}")


async def _extend(traveller: Traveller, hold_id: str) -> None:
    before = await traveller.get(f"/v1/holds/{hold_id}")
    _expect("get hold", before, state="HELD")
    answer = await traveller.send(f"/v1/holds/{hold_id}/extend", {})
    _expect("extend", answer, state="HELD", extensionsLeft=before.body["extensionsLeft"] - 1)
    if _moment(answer.body["expireTime"]) <= _moment(before.body["expireTime"]):
        raise JourneyFailed(f"extend: the hold ends no later than before, at {answer.body['expireTime']}")
    _step("extend", answer, f"until {answer.body['expireTime']}, {answer.body['extensionsLeft']} extensions left")


async def _change(traveller: Traveller, hold_id: str, seat: str, free: Sequence[str]) -> str:
    for other in [number for number in free if number != seat][:SEATS_TRIED]:
        wanted = {"flightId": traveller.flight_id, "seatNumber": other, "passengerId": traveller.passenger_id}
        answer = await traveller.send(f"/v1/holds/{hold_id}/seats", {"seats": [wanted]}, method="PUT")
        if answer.reason != "SEAT_TAKEN":
            break
    _expect("change seat", answer, state="HELD")
    _expect_seat("change seat", answer, other)
    _step("change seat", answer, f"{seat} → {other}")
    return other


async def _confirm(traveller: Traveller, hold_id: str, seat: str) -> None:
    answer = await traveller.send(f"/v1/holds/{hold_id}/confirm", {})
    _expect("confirm", answer, state="CONFIRMED")
    _expect_seat("confirm", answer, seat)
    _step("confirm", answer, f"{seat} confirmed for {traveller.passenger_id}")
    await _see(traveller, seat, "CONFIRMED")


async def _cancel(traveller: Traveller, hold_id: str) -> None:
    answer = await traveller.send(f"/v1/holds/{hold_id}/cancel", {"reason": "JOURNEY"})
    _expect("cancel", answer, state="CANCELLED")
    _step("cancel", answer, f"hold {hold_id} cancelled")


async def _see(traveller: Traveller, seat: str, state: str) -> None:
    """Waits until the map shows the seat so."""
    began = time.monotonic()
    while True:
        answer = await traveller.seat_map()
        shown = {s["seatNumber"]: s["state"] for s in answer.body.get("seats", [])}.get(seat)
        if shown == state:
            _step("map", answer, f"{seat} is {state}, version {answer.body['version']}")
            return
        if time.monotonic() - began > MAP_SECONDS:
            raise JourneyFailed(f"the map shows {seat} as {shown} and not as {state} after {MAP_SECONDS} s: {answer}")
        await asyncio.sleep(POLL_SECONDS)


async def _hear_of_release(heard: AsyncIterator[Heard], traveller: Traveller, hold_id: str, seat: str) -> None:
    began = time.perf_counter()
    try:
        async with asyncio.timeout(EVENT_SECONDS):
            async for event in heard:
                body = readable(event.routing_key, event.body)
                for released in body.get("seats", []):
                    if (released.get("holdId"), released.get("seatNumber")) == (hold_id, seat):
                        milliseconds = (time.perf_counter() - began) * 1000
                        seen = f"{event.routing_key} for {seat}: {released.get('state')}, {released.get('reason')}"
                        _print("event", "amqp", seen, milliseconds)
                        return
    except TimeoutError:
        pass
    raise JourneyFailed(f"no {RELEASED} told of seat {seat} of {traveller.flight_id} within {EVENT_SECONDS} s")


@asynccontextmanager
async def _listening(amqp_url: str) -> AsyncIterator[AsyncIterator[Heard]]:
    from aio_pika.exceptions import AMQPError

    try:
        async with subscribed(amqp_url, RELEASED) as heard:
            yield heard
    except (AMQPError, OSError, TimeoutError) as error:
        raise JourneyFailed(f"the broker is away: {error or repr(error)}") from error


@asynccontextmanager
async def _given_back(traveller: Traveller, hold_id: str) -> AsyncIterator[None]:
    """Also a journey that ends early leaves its seat free."""
    try:
        yield
    except BaseException:
        with suppress(JourneyFailed):
            await traveller.send(f"/v1/holds/{hold_id}/cancel", {"reason": "JOURNEY"})
        raise


def _expect(step: str, answer: Answer, **fields: Any) -> None:
    wrong = {name: value for name, value in fields.items() if answer.body.get(name) != value}
    if answer.status != 200 or wrong:
        raise JourneyFailed(f"{step}: expected {fields}, got {answer}")


def _expect_seat(step: str, answer: Answer, seat: str) -> None:
    seats = [assignment.get("seatNumber") for assignment in answer.body.get("seats", [])]
    if seats != [seat]:
        raise JourneyFailed(f"{step}: expected seat {seat}, got {seats}")


def _moment(text: str) -> datetime.datetime:
    return datetime.datetime.fromisoformat(text)


def _step(name: str, answer: Answer, seen: str) -> None:
    _print(name, str(answer.status), seen, answer.milliseconds)


def _print(name: str, status: str, seen: str, milliseconds: float) -> None:
    print(f"  {name:<14} {status:<5} {milliseconds:6.0f} ms  {seen}", flush=True)
