"""A process is not ready if a used cabin layout is missing or changed (SEAT-1).

The process names the layout, and no call ends as INTERNAL.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from skyhigh.seat.v1 import seat_service_pb2 as pb

from operations.verify.check import USED_LAYOUTS, check
from seat_service import service
from seat_service.layouts import layout_register
from seat_service.layouts.cabin_layouts import Layout, load_layouts, parse_layout
from services import wellness
from tests.callers import LAYOUT, Callers, listed_passenger, refused
from tests.instances import connected, instance, own_database
from tests.seat.rules import new_flight_id
from tests.waiting import eventually

if TYPE_CHECKING:
    from tests.conftest import World

OTHER: Final = "E190-100Y"
DIGEST: Final = "0" * 64


def edited(layout_id: str) -> Mapping[str, Layout]:
    """Returns the layouts with another digest for this one."""
    layout = load_layouts()[layout_id]
    return MappingProxyType({**load_layouts(), layout_id: dataclasses.replace(layout, digest=DIGEST)})


def without(layout_id: str) -> Mapping[str, Layout]:
    """Returns the layouts without this one."""
    return MappingProxyType({each: layout for each, layout in load_layouts().items() if each != layout_id})


@pytest.mark.parametrize(("files", "fault"), [(edited(LAYOUT), "changed"), (without(LAYOUT), "missing")])
async def test_a_process_without_a_used_layout_is_not_ready(
    world: World, monkeypatch: pytest.MonkeyPatch, files: Mapping[str, Layout], fault: str
) -> None:
    monkeypatch.setattr(wellness, "PROBE_SECONDS", 0.05)
    monkeypatch.setattr(layout_register, "CHECK_SECONDS", 0.05)
    url = await own_database(world)
    flight, small = new_flight_id(), new_flight_id()
    async with instance(world, database_url=url) as first:
        await first.callers.operations().provision(flight)
        await first.callers.operations().provision(small, OTHER)
        hold = await first.callers.agent().hold(flight, "20A")
    monkeypatch.setattr(service, "load_layouts", lambda: files)
    async with (
        instance(world, database_url=url) as second,
        grpc.aio.insecure_channel(second.callers.address) as channel,
    ):
        health = health_pb2_grpc.HealthStub(channel)

        async def status() -> int:
            return int((await health.Check(health_pb2.HealthCheckRequest())).status)

        async def ready() -> bool:
            return bool(await status() == health_pb2.HealthCheckResponse.SERVING)

        assert not await ready()
        agent = second.callers.agent()
        for call in (
            agent.GetSeatMap(pb.GetSeatMapRequest(flight_id=flight)),
            agent.SuggestSeats(pb.SuggestSeatsRequest(flight_id=flight, party_size=2)),
            agent.hold(flight, "20B"),
            # A new flight of the layout is refused too. The layout is unavailable, not unknown, so the caller retries.
            second.callers.operations().provision(new_flight_id(), LAYOUT),
        ):
            with refused("UNAVAILABLE", "DEPENDENCY_UNAVAILABLE") as refusal:
                await call
            assert refusal.status.message.startswith(f"cabin layout {LAYOUT} is {fault} on this server")
        assert (await agent.hold(small, "10A")).state == pb.Hold.HELD
        # Releasing a seat needs no layout, so the refund of a booking does not wait until the file is restored.
        cancelled = await agent.CancelHold(pb.CancelHoldRequest(hold_id=hold.hold_id))
        assert cancelled.state == pb.Hold.CANCELLED
        restored = {
            "changed": f"UPDATE layouts SET digest = '{DIGEST}' WHERE layout_id = '{LAYOUT}'",
            "missing": f"DELETE FROM layouts WHERE layout_id = '{LAYOUT}'",
        }
        await second.database.execute(restored[fault])
        await eventually(ready)


async def test_only_passengers_of_an_unusable_layout_are_retried(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    url = await own_database(world)
    flight, small = new_flight_id(), new_flight_id()
    seats = ((flight, "P1", "20A"), (flight, "P2", "20B"), (small, "P1", "10A"))

    async def listed(callers: Callers, revision: int, *, ended: str) -> pb.SyncPassengersResponse:
        passengers = [
            listed_passenger(each, who, "XK4T7Q", revision=revision, ended=who == ended, cabin=pb.Seat.ECONOMY)
            for each, who, _ in seats
        ]
        answer: pb.SyncPassengersResponse = await callers.service("checkin").SyncPassengers(
            pb.SyncPassengersRequest(passengers=passengers)
        )
        return answer

    async with instance(world, database_url=url) as first:
        await first.callers.operations().provision(flight)
        await first.callers.operations().provision(small, OTHER)
        await listed(first.callers, 1, ended="")
        for each, who, number in seats:
            agent = first.callers.agent()
            await agent.confirm(await agent.hold(each, number, who))
    monkeypatch.setattr(service, "load_layouts", lambda: without(LAYOUT))
    async with instance(world, database_url=url) as second:
        answer = await listed(second.callers, 2, ended="P2")
        assert [(each.flight_id, each.passenger_id) for each in answer.undecided] == [(flight, "P1")]
        assert [(each.flight_id, each.passenger_id) for each in answer.freed_seats] == [(flight, "P2")]
        revisions = await second.database.fetch("SELECT flight_id, passenger_id, revision FROM passengers")
        assert {tuple(row) for row in revisions} == {(flight, "P1", 1), (flight, "P2", 2), (small, "P1", 2)}


async def test_a_used_layout_with_other_content_is_refused(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process has read an edited file; the original's digest is stored later."""
    url = await own_database(world)
    monkeypatch.setattr(service, "load_layouts", lambda: edited(LAYOUT))
    flight = new_flight_id()
    async with instance(world, database_url=url) as changed:
        await changed.database.execute(
            "INSERT INTO layouts (layout_id, digest) VALUES ($1, $2)", LAYOUT, load_layouts()[LAYOUT].digest
        )
        with refused("UNAVAILABLE", "DEPENDENCY_UNAVAILABLE"):
            await changed.callers.operations().provision(flight)
        assert not await changed.database.fetchval("SELECT count(*) FROM flights WHERE flight_id = $1", flight)


async def test_missing_digests_of_used_layouts_are_stored(world: World) -> None:
    url = await own_database(world)
    async with connected(url) as database:
        await database.execute("INSERT INTO layouts (layout_id) VALUES ($1)", LAYOUT)
    async with instance(world, database_url=url) as first:
        stored = await first.database.fetchval("SELECT digest FROM layouts WHERE layout_id = $1", LAYOUT)
    assert stored == load_layouts()[LAYOUT].digest


def test_the_digest_ignores_spelling_but_not_content() -> None:
    layout = '{"layout_id": "T-1", "aircraft": "Test", "total_seats": %d, "cabins": [%s]}'
    cabin = '{"cabin": "ECONOMY", "rows": "1-2", "letters": "AB CD"}'
    first = parse_layout(layout % (8, cabin))
    assert parse_layout((layout % (8, cabin)).replace(", ", ",\n  ")).digest == first.digest
    assert parse_layout(layout % (12, cabin.replace("1-2", "1-3"))).digest != first.digest


@pytest.mark.parametrize(
    ("planted", "fault"),
    [
        (f"UPDATE seat.layouts SET digest = '{DIGEST}' WHERE layout_id = '{LAYOUT}'", "changed"),
        ("UPDATE seat.flights SET layout_id = 'GONE-1'", "missing"),
    ],
)
async def test_verify_reports_a_missing_or_changed_used_layout(world: World, planted: str, fault: str) -> None:
    url = await own_database(world)
    async with instance(world, database_url=url) as first:
        await first.callers.operations().provision(new_flight_id())
        await first.database.execute(planted)
    async with connected(url) as database:
        findings = await check(database, None, service_runs=False)
    (finding,) = [each for each in findings if each.violations and (each.number, each.name) == USED_LAYOUTS]
    assert [sample["fault"] for sample in finding.samples] == [fault]
