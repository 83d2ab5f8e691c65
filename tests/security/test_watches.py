"""Streams and deadlines (attacks 27, 28).

No caller takes more than its share of a service, or for too long.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

import asyncpg
import grpc
import pytest
from skyhigh.booking.v1 import booking_service_pb2 as booking
from skyhigh.checkin.v1 import checkin_service_pb2 as checkin
from skyhigh.seat.v1 import seat_service_pb2 as seat

from services.auth import Role
from services.errors import ResourceExhausted
from services.time_limits import FACTOR
from services.watch import WatchPlaces
from tests.callers import Caller, refused
from tests.security.belongings import Belongings
from tests.security.messages import valid
from tests.security.system import RPCS, System
from tests.waiting import PATIENCE_SECONDS, eventually

if TYPE_CHECKING:
    from tests.conftest import World

PLACES: Final = 20
# Extra time for a busy machine. Without the cap, the calls below would wait for an hour.
SLACK_SECONDS: Final = PATIENCE_SECONDS
# The time limit of a read.
READ_SECONDS: Final = 2 * FACTOR


def test_watch_places_are_per_principal_and_released() -> None:
    places = WatchPlaces(per_principal=2)
    with places.taken_by("customer:a"), places.taken_by("customer:a"), places.taken_by("customer:b"):
        with pytest.raises(ResourceExhausted) as full, places.taken_by("customer:a"):
            pass
        assert (full.value.reason, full.value.metadata) == ("TOO_MANY_WATCHES", {"limit": "2"})
        assert full.value.retry_after_seconds
    with pytest.raises(ValueError, match="left by an error"), places.taken_by("customer:a"):
        raise ValueError("left by an error")
    with places.taken_by("customer:a"), places.taken_by("customer:a"):
        pass


@asynccontextmanager
async def watching(caller: Caller, method: str, request: Any) -> AsyncIterator[None]:
    """Opens a watch and waits for its first message."""
    stream = getattr(caller, method)(request, timeout=None)
    try:
        assert await stream.read()
        yield
    finally:
        stream.cancel()


def all_watches(belongings: Belongings) -> dict[str, tuple[str, Any]]:
    """Returns each watch that exists, by its service."""
    own = belongings.values
    watches = {
        "seat": ("WatchSeatMap", seat.WatchSeatMapRequest(flight_id=belongings.strangers_own["flight_id"])),
        "checkin": ("WatchCheckIn", checkin.WatchCheckInRequest(checkin_id=own[Role.PASSENGER]["checkin_id"])),
        "booking": ("WatchBooking", booking.WatchBookingRequest(booking_id=own[Role.CUSTOMER]["booking_id"])),
    }
    assert {method for method, _ in watches.values()} == {
        name for name, rpc in RPCS.items() if rpc.method.server_streaming
    }
    return watches


async def messages_until_refused(stream: Any) -> int:
    """Counts the messages of a watch until it is refused because of its token."""
    count = 0
    with refused("UNAUTHENTICATED", "UNAUTHENTICATED"):
        while await stream.read() is not grpc.aio.EOF:
            count += 1
    return count


async def test_a_watch_ends_when_its_token_expires(system: System, belongings: Belongings, world: World) -> None:
    for service, (method, request) in all_watches(belongings).items():
        callers = system.callers[service]
        # On a busy machine a watch may begin after its token has expired; then the test takes a longer one.
        for seconds in (2, 8, 32):
            claims = callers.claims("agent", "desk") | {"exp": int(time.time()) + seconds}
            watcher = callers.anybody(world.keys.sign(claims))
            async with asyncio.timeout(seconds + PATIENCE_SECONDS):
                count = await messages_until_refused(getattr(watcher, method)(request, timeout=None))
            assert time.time() >= claims["exp"]
            if count:
                break
        assert count, method


async def test_a_principal_has_at_most_twenty_watches(system: System, belongings: Belongings) -> None:
    for service, (method, request) in all_watches(belongings).items():
        agent, other = system.callers[service].agent("hoarder"), system.callers[service].agent("other")
        async with AsyncExitStack() as places:
            last = await places.enter_async_context(AsyncExitStack())
            await last.enter_async_context(watching(agent, method, request))
            for _ in range(PLACES - 1):
                await places.enter_async_context(watching(agent, method, request))
            with refused("RESOURCE_EXHAUSTED", "TOO_MANY_WATCHES") as refusal:
                await getattr(agent, method)(request).read()
            assert refusal.retry_after_seconds
            answer = await system.ask_json(RPCS[method], request, agent.token)
            assert (answer.status_code, "retry-after" in answer.headers) == (429, True)
            # Another caller has its own limit, and a watch that ends makes room for the next.
            async with watching(other, method, request):
                await last.aclose()

            async def there_is_room(agent: Caller = agent, method: str = method, request: Any = request) -> bool:
                try:
                    async with watching(agent, method, request):
                        return True
                except grpc.aio.AioRpcError:
                    return False

            await eventually(there_is_room)


@asynccontextmanager
async def locked(system: System, table: str) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    """Locks a table of the seat service within the block.

    Yields a connection for `waiting`.
    """
    url = system.databases["seat"]
    holder, looker = await asyncpg.connect(url), await asyncpg.connect(url)
    try:
        async with holder.transaction():
            await holder.execute(f"LOCK TABLE seat.{table} IN ACCESS EXCLUSIVE MODE")
            yield looker
    finally:
        await holder.close()
        await looker.close()


async def waiting(looker: asyncpg.Connection[asyncpg.Record]) -> int:
    """Returns the number of statements that wait for a lock in this database."""
    found: int = await looker.fetchval(
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    )
    return found


async def test_a_service_caps_every_deadline(system: System, belongings: Belongings) -> None:
    """A read ends after two seconds, whatever deadline the client sets.

    So does its statement in the database.
    """
    rpc = RPCS["GetHold"]
    assert rpc.declaration.time_limit_seconds == READ_SECONDS
    request = rpc.request(hold_id=belongings.values[Role.PASSENGER]["hold_id"])
    token = system.token(Role.AGENT)
    async with locked(system, "holds") as looker:
        async with asyncio.timeout(READ_SECONDS + SLACK_SECONDS):
            answers = await asyncio.gather(
                *(
                    system.ask(rpc, request, token, timeout_seconds=seconds, retries=False)
                    for seconds in (None, 3600, 10**9)
                ),
                *(
                    system.ask(rpc, request, token, timeout_seconds=seconds, outside=True, retries=False)
                    for seconds in (None, 3600)
                ),
            )
        assert {answer.code for answer in answers} == {grpc.StatusCode.DEADLINE_EXCEEDED}

        async def nobody_waits() -> bool:
            return not await waiting(looker)

        await eventually(nobody_waits)


async def test_work_ends_when_its_client_disconnects(system: System, belongings: Belongings) -> None:
    rpc = RPCS["GetHold"]
    request = rpc.request(hold_id=belongings.values[Role.PASSENGER]["hold_id"])
    async with locked(system, "holds") as looker:

        async def one_waits() -> bool:
            return await waiting(looker) == 1

        async def nobody_waits() -> bool:
            return not await waiting(looker)

        for outside in (False, True):

            async def it_ended_before_its_deadline(outside: bool = outside) -> bool:
                began = time.monotonic()
                call = asyncio.create_task(
                    system.ask(rpc, request, system.token(Role.AGENT), outside=outside, retries=False)
                )
                await eventually(one_waits)
                call.cancel()
                await eventually(nobody_waits)
                return time.monotonic() - began < READ_SECONDS

            # On a busy machine the deadline may come first. If cancelling did not end the work, the deadline would
            # always come first.
            await eventually(it_ended_before_its_deadline)


@pytest.mark.usefixtures("nothing_changed")
async def test_a_call_with_zero_deadline_changes_nothing(system: System, belongings: Belongings) -> None:
    rpc = RPCS["HoldSeat"]
    values = {**belongings.strangers_own, "seat_number": "17A"}
    for timeout in ("0m", "1n", "00000000S"):
        answer = await system.ask(
            rpc,
            valid(rpc.request(), values),
            belongings.stranger[Role.PASSENGER],
            outside=True,
            metadata=[("grpc-timeout", timeout)],
            timeout_seconds=None,
            retries=False,
        )
        assert answer.code is not grpc.StatusCode.OK, timeout
