"""A caller that reads maps as no passenger does is blocked (GW-3).

It is detected, blocked for a while, and admitted again.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from functools import partial
from uuid import uuid4

import aio_pika
import asyncpg
import httpx
import pytest
from skyhigh.gateway.v1 import events_pb2
from skyhigh.gateway.v1 import gateway_admin_pb2 as pb

from tests.callers import Caller, refused
from tests.conftest import World
from tests.dates import flight_id
from tests.gateway.conftest import Others
from tests.instances import Database
from tests.limits.conftest import BLOCK_SECONDS, FAILED_LOGINS, HOLD_SPINS, Edge, reason
from tests.waiting import PATIENCE_SECONDS, eventually


@pytest.fixture
async def gateway_database(world: World) -> AsyncIterator[Database]:
    """Yields a connection to the gateway service's database."""
    url = world.servers.database_url("gateway")
    connection = await asyncpg.connect(url, server_settings={"search_path": "gateway"})
    yield connection
    await connection.close()


async def blocked(edge: Edge, caller: Caller, flight: str, *, envoy: int = 0) -> bool:
    answer = await edge.map_of(caller, flight, envoy=envoy)
    return answer.status_code == 429 and reason(answer) == "BLOCKED"


async def let_in(edge: Edge, caller: Caller, flight: str) -> bool:
    """Returns whether the caller is not blocked (any more); its limit may still refuse it.

    To call until the limit lets it pass would be the next burst on a fast machine.
    """
    answer = await edge.map_of(caller, flight)
    return answer.status_code == 200 or reason(answer) != "BLOCKED"


async def burst(edge: Edge, flight: str) -> tuple[Caller, pb.Incident]:
    """Lets a new customer read a map 31 times within 5 s.

    Returns the customer and the incident.
    """
    caller = await edge.customer_reads([flight] * 31, within_seconds=5, at_once=8)

    async def found() -> bool:
        return bool(await edge.incidents(caller))

    await eventually(found)
    (incident,) = await edge.incidents(caller)
    return caller, incident


async def test_31_maps_in_5_s_are_a_burst(edge: Edge, flight: str) -> None:
    caller, incident = await burst(edge, flight)
    assert (incident.kind, incident.count, incident.threshold) == (pb.Incident.MAP_BURST, 31, 30)
    assert incident.evidence == [f"/v1/flights/{flight}/seatmap"] * 10
    for envoy in range(len(edge.ports)):
        await eventually(partial(blocked, edge, caller, flight, envoy=envoy))
    answer = await edge.map_of(caller, flight)
    assert 0 < int(answer.headers["retry-after"]) <= BLOCK_SECONDS + 1


async def test_a_block_ends_by_itself_while_the_caller_retries(
    edge: Edge, flight: str, gateway_database: Database
) -> None:
    caller, _ = await burst(edge, flight)
    await eventually(lambda: blocked(edge, caller, flight))
    (block,) = await edge.blocks(caller)
    assert (block.scope, block.kind) == (pb.Block.EVERYTHING, pb.Incident.MAP_BURST)
    assert block.expire_time.ToNanoseconds() - block.create_time.ToNanoseconds() == BLOCK_SECONDS * 10**9
    end = await gateway_database.fetchval(
        "UPDATE blocks SET expire_time = now() + interval '1 s' WHERE block_id = $1 RETURNING expire_time",
        block.block_id,
    )
    await eventually(partial(let_in, edge, caller, flight))
    assert datetime.now(UTC) >= end
    assert await edge.blocks(caller) == []
    assert len(await edge.incidents(caller)) == 1


async def test_50_different_maps_in_2_s_are_a_scan(edge: Edge) -> None:
    flights = [flight_id(f"SH{number}") for number in range(700, 750)]
    caller = await edge.customer_reads(flights, within_seconds=2, at_once=len(flights))

    async def found() -> bool:
        return {incident.kind for incident in await edge.incidents(caller)} == {
            pb.Incident.MAP_BURST,
            pb.Incident.MAP_SCAN,
        }

    await eventually(found)
    (scan,) = [incident for incident in await edge.incidents(caller) if incident.kind == pb.Incident.MAP_SCAN]
    assert (scan.count, scan.threshold) == (50, 49)
    assert len(set(scan.evidence)) == 10
    assert len(await edge.blocks(caller)) == 1


async def test_a_passenger_who_reloads_is_not_hit(edge: Edge, flight: str) -> None:
    caller = edge.seats.customer()
    for _ in range(10):
        answers = await asyncio.gather(*(edge.map_of(caller, flight) for _ in range(2)))
        assert [answer.status_code for answer in answers] == [200, 200]
    # Envoy reports calls in their order. Therefore any incident of the passenger would exist before this one.
    await burst(edge, flight)
    assert await edge.incidents(caller) == []


async def test_an_agent_lifts_a_block_and_says_why(edge: Edge, flight: str) -> None:
    agent = edge.admin.agent("desk-7")
    caller, _ = await burst(edge, flight)
    await eventually(lambda: blocked(edge, caller, flight))
    (block,) = await edge.blocks(caller)
    request = pb.LiftBlockRequest(block_id=block.block_id, reason="a school class", request_id=str(uuid4()))
    lifted = await agent.LiftBlock(request)
    assert (lifted.lifted_by, lifted.lift_reason) == ("agent:desk-7", "a school class")
    assert await agent.LiftBlock(request) == lifted
    assert await agent.LiftBlock(pb.LiftBlockRequest(block_id=block.block_id, reason="again")) == lifted
    await eventually(partial(let_in, edge, caller, flight))
    assert time.time_ns() < block.expire_time.ToNanoseconds()
    assert await edge.blocks(caller) == []
    assert await edge.blocks(caller, ended=True) == [lifted]
    assert [incident.block_id for incident in await edge.incidents(caller)] == [block.block_id]


async def test_no_block_is_not_found_and_only_staff_sees_any(edge: Edge) -> None:
    with refused("NOT_FOUND", "BLOCK_NOT_FOUND"):
        await edge.admin.agent().LiftBlock(pb.LiftBlockRequest(block_id=str(uuid4()), reason="?"))
    for caller in (edge.admin.customer(), edge.admin.passenger(), edge.admin.service()):
        with refused("PERMISSION_DENIED", "PERMISSION_DENIED"):
            await caller.ListBlocks(pb.ListBlocksRequest())
        with refused("PERMISSION_DENIED", "PERMISSION_DENIED"):
            await caller.LiftBlock(pb.LiftBlockRequest(block_id=str(uuid4())))


async def test_an_incident_is_published(edge: Edge, world: World, flight: str) -> None:
    async with await aio_pika.connect(world.servers.amqp_url()) as broker:
        channel = await broker.channel()
        queue = await channel.declare_queue(exclusive=True)
        await queue.bind("skyhigh.events", "abuse.detected.v1")
        caller, incident = await burst(edge, flight)
        async with asyncio.timeout(PATIENCE_SECONDS), queue.iterator() as messages:
            async for message in messages:
                await message.ack()
                event = events_pb2.AbuseDetected.FromString(message.body)
                if event.incident.source == caller.name:
                    break
    assert (event.incident, event.block.source) == (incident, caller.name)


async def test_repeated_holds_that_are_cancelled_are_found(edge: Edge, flight: str) -> None:
    caller = edge.seats.customer()
    for row in range(10, 10 + HOLD_SPINS + 1):
        hold = (await edge.hold(caller, flight, f"{row}A")).json()
        await edge.call(caller, "POST", f"/v1/holds/{hold['holdId']}/cancel", {"reason": "CHANGED_MY_MIND"})

    async def found() -> bool:
        return [incident.kind for incident in await edge.incidents(caller)] == [pb.Incident.HOLD_SPINNING]

    await eventually(found)

    async def kept_out() -> bool:
        return (await edge.hold(caller, flight, "20A")).status_code == 429

    await eventually(kept_out)


async def test_guessed_logins_block_the_logins_of_their_address_alone(edge: Edge, others: Others) -> None:
    agent, caller = edge.admin.agent(), edge.seats.customer()
    # An address that only this test uses: the other tests share 127.0.0.1.
    address = f"127.0.{secrets.randbelow(200) + 1}.{secrets.randbelow(200) + 2}"
    async with httpx.AsyncClient(
        base_url=edge.urls[0], transport=httpx.AsyncHTTPTransport(local_address=address), timeout=20
    ) as http:

        async def guess() -> httpx.Response:
            body = {"pnr": "".join(secrets.choice("ABCDEF") for _ in range(6)), "lastName": "Who"}
            return await http.post("/v1/sessions", json=body)

        # Every login fails with "not found".
        others.echo.refuse = True
        try:
            answers = [await guess() for _ in range(FAILED_LOGINS + 1)]
        finally:
            others.echo.refuse = False
        assert {answer.status_code for answer in answers} == {404}

        async def kept_out() -> bool:
            answer = await guess()
            return answer.status_code == 429 and reason(answer) == "BLOCKED"

        await eventually(kept_out)
        (incident,) = (await agent.ListIncidents(pb.ListIncidentsRequest(source=f"address:{address}"))).incidents
        mapped = pb.ListIncidentsRequest(source=f"address:::ffff:{address}")
        assert (await agent.ListIncidents(mapped)).incidents == [incident]
        assert incident.kind == pb.Incident.LOGIN_GUESSING
        assert set(incident.evidence) == {"checkin.CreateSession"}, "no name and no locator is kept"
        token = {"authorization": f"Bearer {caller.token}"}
        seat_map = await http.get(f"/v1/flights/{flight_id('SH1')}/seatmap", headers=token)
        assert seat_map.status_code == 404, "other calls from the address are served"
