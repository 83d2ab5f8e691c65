"""WatchSeatMap: a snapshot, then changes; resumes from a known version (SEAT-13)."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import asyncpg
import grpc
import pytest
from skyhigh.seat.v1 import seat_service_pb2 as pb
from skyhigh.seat.v1.seat_service_pb2_grpc import SeatServiceStub

from seat_service.maps import watch as watch_module
from seat_service.maps.seat_map import SeatMaps, Snapshot
from services import interceptors
from services.errors import ResourceExhausted
from tests.booking.agency import patiently
from tests.callers import Caller, Callers, refused
from tests.dates import flight_id, new_flight_id
from tests.instances import connected, instance, own_database
from tests.waiting import PATIENCE_SECONDS, eventually, stays

if TYPE_CHECKING:
    from tests.conftest import World


@contextlib.contextmanager
def watching(caller: Caller, flight: str, known_version: int = 0) -> Iterator[Any]:
    """Watches a seat map within the block; cancels the stream at its end."""
    call = caller.WatchSeatMap(pb.WatchSeatMapRequest(flight_id=flight, known_version=known_version))
    try:
        yield call
    finally:
        call.cancel()


@pytest.fixture(scope="package")
async def restless(world: World) -> AsyncIterator[Callers]:
    """Callers of a service that sends a heartbeat every 0.3 s."""
    async with instance(world, SKYHIGH_SEAT_HEARTBEAT_SECONDS="0.3") as other:
        yield other.callers


def apply(states: dict[str, int], update: pb.SeatMapUpdate) -> None:
    """Applies an update to the states, as a client does."""
    match update.WhichOneof("update"):
        case "snapshot":
            states.clear()
            states.update({seat.seat_number: seat.state for seat in update.snapshot.seats})
        case "changes":
            states.update({seat.seat_number: seat.state for seat in update.changes.seats})


async def test_a_watch_begins_with_the_whole_map(agent: Caller, flight: str) -> None:
    seat_map = await agent.GetSeatMap(pb.GetSeatMapRequest(flight_id=flight))
    with watching(agent, flight) as watch:
        first = await watch.read()
    assert first.version == seat_map.version
    assert first.snapshot == seat_map


async def test_a_change_is_sent_within_a_second(agent: Caller, flight: str) -> None:
    delays = []
    with watching(agent, flight) as watch:
        snapshot = await watch.read()
        for row in (20, 21, 22):
            await agent.hold(flight, f"{row}A")
            started = time.monotonic()
            update = await watch.read()
            delays.append(time.monotonic() - started)
            assert [(seat.seat_number, seat.state) for seat in update.changes.seats] == [(f"{row}A", pb.Seat.HELD)]
            assert update.version == snapshot.version + row - 19
    # The shortest delay counts, because a busy machine delays single updates.
    assert min(delays) < 1, delays


async def test_a_watch_continues_from_a_known_version_without_gap(callers: Callers, agent: Caller, flight: str) -> None:
    states: dict[str, int] = {}
    version = 0
    resumed = []
    for row in range(14, 22):
        with watching(agent, flight, version) as watch:
            if version == 0:
                update = await watch.read()
                apply(states, update)
            held = await agent.hold(flight, f"{row}A")
            await callers.agent().hold(flight, f"{row}B")
            while states[f"{row}A"] != pb.Seat.HELD:
                update = await watch.read()
                resumed.append(update.WhichOneof("update"))
                apply(states, update)
            version = update.version
        # While no stream is open, one seat is released and another one is held.
        await agent.cancel(held)
        await agent.hold(flight, f"{row}C")
    with watching(agent, flight, version) as watch:
        while states["21C"] != pb.Seat.HELD:
            apply(states, await watch.read())
    seat_map = await agent.GetSeatMap(pb.GetSeatMapRequest(flight_id=flight))
    assert states == {seat.seat_number: seat.state for seat in seat_map.seats}
    assert "snapshot" not in resumed


@pytest.mark.parametrize("known_version", [77, 2**63 - 1])
async def test_an_unknown_version_gets_the_whole_map(agent: Caller, flight: str, known_version: int) -> None:
    with watching(agent, flight, known_version) as watch:
        assert (await watch.read()).WhichOneof("update") == "snapshot"


async def test_a_current_version_gets_only_later_changes(agent: Caller, flight: str) -> None:
    with watching(agent, flight) as watch:
        version = (await watch.read()).version
    with watching(agent, flight, version) as watch:
        waiting = asyncio.ensure_future(watch.read())

        async def nothing_came() -> bool:
            return not waiting.done()

        await stays(nothing_came, seconds=0.5)
        await agent.hold(flight, "20A")
        assert (await waiting).changes.seats[0].seat_number == "20A"


async def test_a_reverted_change_sends_only_a_new_version(agent: Caller, flight: str) -> None:
    with watching(agent, flight) as watch:
        version = (await watch.read()).version
        await agent.cancel(await agent.hold(flight, "20A"))
        states: dict[str, int] = {}
        while version < 3:
            update = await watch.read()
            assert update.version > version
            version = update.version
            apply(states, update)
    assert states.get("20A", pb.Seat.AVAILABLE) == pb.Seat.AVAILABLE


async def test_a_quiet_watch_has_a_heartbeat(restless: Callers, flight: str) -> None:
    started = time.monotonic()
    with watching(restless.agent(), flight) as watch:
        version = (await watch.read()).version
        for beats in (1, 2):
            update = await watch.read()
            assert update.WhichOneof("update") == "heartbeat"
            assert update.version == version
            assert time.monotonic() - started >= 0.3 * beats


async def test_watchers_of_both_processes_get_the_same_changes(callers: Callers, second: Callers, flight: str) -> None:
    with contextlib.ExitStack() as stack:
        watches = [
            stack.enter_context(watching(each.customer(), flight)) for each in (callers, second) for _ in range(10)
        ]
        for watch in watches:
            assert (await watch.read()).WhichOneof("update") == "snapshot"
        await callers.agent().hold(flight, "20A")
        updates = await asyncio.gather(*(watch.read() for watch in watches))
    assert all(update == updates[0] for update in updates)


async def test_headers_are_sent_before_the_first_message(agent: Caller, flight: str) -> None:
    with watching(agent, flight) as watch:
        version = (await watch.read()).version
    with watching(agent, flight, version) as watch:
        first = asyncio.ensure_future(watch.read())
        async with asyncio.timeout(PATIENCE_SECONDS):
            await watch.initial_metadata()
        assert not first.done()
        await agent.hold(flight, "20A")
        assert (await first).changes.seats[0].seat_number == "20A"


async def test_a_watch_continues_after_its_database_connections_end(world: World) -> None:
    url = await own_database(world)
    async with instance(world, database_url=url, SKYHIGH_SEAT_WATCH_INTERVAL_SECONDS="0.01") as other:
        flight, agent = new_flight_id(), other.callers.agent()
        await other.callers.operations().provision(flight)
        with watching(agent, flight) as watch:
            states: dict[str, int] = {}
            apply(states, await watch.read())
            for row in (20, 21, 22):
                await end_sessions(url)
                await patiently(partial(agent.hold, flight, f"{row}A", request_id=str(uuid4())))
                async with asyncio.timeout(PATIENCE_SECONDS):
                    while states[f"{row}A"] != pb.Seat.HELD:
                        apply(states, await watch.read())


async def end_sessions(url: str) -> None:
    """Terminates all sessions of a database, as a restart of Postgres does."""
    async with connected(url) as database:
        await database.execute(
            """
            SELECT pg_terminate_backend(pid) FROM pg_stat_activity
            WHERE datname = current_database() AND usename = current_user AND pid <> pg_backend_pid()
            """
        )


@pytest.mark.parametrize(
    "error",
    [
        asyncpg.ConnectionDoesNotExistError("planted"),
        asyncpg.ReadOnlySQLTransactionError("planted"),
        asyncpg.InterfaceError("planted"),
        ZeroDivisionError("planted"),
    ],
)
async def test_a_watch_continues_after_any_error_of_a_read(
    agent: Caller, flight: str, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    read, failed = SeatMaps.read, asyncio.Event()

    async def failing(self: SeatMaps, flight_id: str, *, known_version: int = 0) -> Snapshot:
        if flight_id == flight:
            failed.set()
            raise error
        return await read(self, flight_id, known_version=known_version)

    monkeypatch.setattr(watch_module, "FAILURE_PAUSE_SECONDS", 0.01)
    with watching(agent, flight) as watch:
        await watch.read()
        monkeypatch.setattr(SeatMaps, "read", failing)
        await asyncio.wait_for(failed.wait(), PATIENCE_SECONDS)
        monkeypatch.setattr(SeatMaps, "read", read)
        await agent.hold(flight, "20A")
        async with asyncio.timeout(PATIENCE_SECONDS):
            assert (await watch.read()).changes.seats[0].seat_number == "20A"


async def test_an_unknown_flight_is_not_found(agent: Caller) -> None:
    with watching(agent, flight_id("SH000")) as watch, refused("NOT_FOUND", "FLIGHT_NOT_FOUND"):
        async for _ in watch:
            pass


async def test_a_negative_version_is_malformed(agent: Caller, flight: str) -> None:
    with watching(agent, flight, -1) as watch, refused("INVALID_ARGUMENT", "INVALID_FIELD") as refusal:
        async for _ in watch:
            pass
    assert refusal.fields == ["known_version"]


async def test_a_slow_reader_is_disconnected_with_slow_reader(
    callers: Callers, agent: Caller, flight: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interceptors, "SLOW_READER_SECONDS", 0.2)
    # The receive window is so small that the first snapshot fills it.
    options = [("grpc.http2.lookahead_bytes", 64), ("grpc.http2.bdp_probe", 0), ("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(callers.address, options=options) as channel:
        call = SeatServiceStub(channel).WatchSeatMap(
            pb.WatchSeatMapRequest(flight_id=flight),
            metadata=(("authorization", f"Bearer {agent.token}"),),
        )
        await call.read()
        dropped = asyncio.Event()

        def noted(reason: str, *args: Any, **more: Any) -> ResourceExhausted:
            if reason == "SLOW_READER":
                dropped.set()
            return ResourceExhausted(reason, *args, **more)

        monkeypatch.setattr(interceptors, "ResourceExhausted", noted)

        async def dropped_after_another_change() -> bool:
            await agent.cancel(await agent.hold(flight, "20A"))
            return dropped.is_set()

        await eventually(dropped_after_another_change)
        with refused("RESOURCE_EXHAUSTED", "SLOW_READER"):
            while await call.read() is not grpc.aio.EOF:
                pass
