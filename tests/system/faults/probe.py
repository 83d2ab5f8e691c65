"""Checks that a stack serves.

Every service responds through the gateway, changes are committed, and events arrive.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final
from uuid import uuid4

import aiohttp
import asyncpg
import grpc
from skyhigh.seat.v1 import seat_service_pb2 as pb
from skyhigh.seat.v1.seat_service_pb2_grpc import SeatServiceStub

from deploy.local.services import SERVICES
from tests.callers import LAYOUT
from tests.dates import new_flight_id
from tests.system.faults.stack import RunningStack
from tests.waiting import pause

ANSWER_SECONDS: Final = 3
PROBE_SECONDS: Final = 0.05
ROWS, LETTERS = range(1, 31), "ABCDEF"
RELEASED: Final = "seat.released.v1"
# A read of each service that reaches its database; a working service answers 404 to some of them.
READS: Final = {
    "/v1/flights/{flight}/seatmap": 200,
    "/v1/bookings/{id}": 404,
    "/v1/checkins/{id}": 404,
    "/v1/payments/{id}": 404,
    "/v1/waitlist/{id}": 404,
    "/v1/flights/{flight}": 404,
}


class NotServing(Exception):
    """A part of the stack does not work; the text says which."""


class Probe:
    """Checks that a stack serves. Each check holds a seat and cancels the hold."""

    def __init__(
        self,
        stack: RunningStack,
        http: aiohttp.ClientSession,
        database: asyncpg.Pool[asyncpg.Record],
        flight_id: str,
    ) -> None:
        self._stack = stack
        self._http = http
        self._database = database
        self._flight_id = flight_id
        self._token = stack.token("agent", "probe")

    async def serves(self) -> None:
        """Returns if all parts work. Raises NotServing."""
        try:
            if unready := self._stack.unready():
                raise NotServing(f"{', '.join(unready)} not ready")
            for path, status in READS.items():
                await self._call("GET", path.format(flight=self._flight_id, id=uuid4()), status)
            await self._hold_and_cancel()
            await self._events_arrived()
        except (aiohttp.ClientError, TimeoutError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            raise NotServing(repr(error)) from error

    async def seconds_to_serve(self, *, patience_seconds: float) -> float:
        """Checks until the stack serves; returns the seconds.

        Raises NotServing if it takes too long.
        """
        began = time.monotonic()
        while True:
            asked = time.monotonic()
            try:
                await self.serves()
            except NotServing:
                if time.monotonic() - began > patience_seconds:
                    raise
                await pause(PROBE_SECONDS)
            else:
                return asked - began

    async def _hold_and_cancel(self) -> None:
        seat = f"{secrets.choice(ROWS)}{secrets.choice(LETTERS)}"
        path = f"/v1/flights/{self._flight_id}/seats/{seat}/hold"
        hold = await self._call("POST", path, 200, {"passengerId": f"P-{secrets.token_hex(4)}"})
        await self._call("POST", f"/v1/holds/{hold['holdId']}/cancel", 200, {})

    async def _events_arrived(self) -> None:
        """Raises NotServing if events do not arrive.

        An event is unpublished, or the waitlist service does not know a released seat.
        """
        waiting = {}
        for service in SERVICES:
            query = f"SELECT count(*) FROM {service.name}.outbox WHERE publish_time IS NULL AND create_time < $1"
            waiting[service.name] = await self._database.fetchval(query, await self._a_moment_ago())
        if any(waiting.values()):
            raise NotServing(f"events wait: { {name: count for name, count in waiting.items() if count} }")
        unknown = await self._database.fetchval(
            """
            SELECT count(*) FROM seat.outbox WHERE routing_key = $1 AND create_time < $2
            AND create_time > now() - interval '1 minute' AND NOT EXISTS (
                SELECT FROM waitlist.inbox WHERE inbox.event_id = outbox.event_id)
            """,
            RELEASED,
            await self._a_moment_ago(),
        )
        if unknown:
            raise NotServing(f"{unknown} released seats are unknown to the waitlist service")

    async def _a_moment_ago(self) -> Any:
        return await self._database.fetchval("SELECT now() - interval '1 second'")

    async def _call(self, method: str, path: str, status: int, body: dict[str, Any] | None = None) -> Any:
        headers = {"authorization": f"Bearer {self._token}"}
        if method == "POST":
            headers["idempotency-key"] = str(uuid4())
        url = f"{self._stack.environment['SKYHIGH_GATEWAY_URL']}{path}"
        async with self._http.request(method, url, json=body, headers=headers) as answer:
            content = await answer.json(content_type=None)
            if answer.status != status:
                raise NotServing(f"{method} {path}: {answer.status} {content}")
            return content


@asynccontextmanager
async def probing(stack: RunningStack) -> AsyncIterator[Probe]:
    """Yields a probe with a flight of its own."""
    flight_id = new_flight_id("PR")
    async with grpc.aio.insecure_channel(stack.environment["SKYHIGH_SEAT_ADDRESS"]) as channel:
        metadata = [("authorization", f"Bearer {stack.token('operations', 'probe')}")]
        await SeatServiceStub(channel).ProvisionSeats(
            pb.ProvisionSeatsRequest(flight_id=flight_id, layout_id=LAYOUT), metadata=metadata, timeout=20
        )
    timeout = aiohttp.ClientTimeout(total=ANSWER_SECONDS)
    # A new connection for each call, because the fault may have ended those of the last probe.
    connector = aiohttp.TCPConnector(force_close=True)
    async with (
        aiohttp.ClientSession(timeout=timeout, connector=connector) as http,
        asyncpg.create_pool(stack.superuser_database_url, min_size=0, max_size=2, command_timeout=5) as database,
    ):
        yield Probe(stack, http, database, flight_id)
