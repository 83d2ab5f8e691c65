"""Whoever reads maps as no passenger does is found, kept out for a while, and let in again (GW-3)."""

from __future__ import annotations

import asyncio
import secrets
import time
from uuid import uuid4

import aio_pika
import httpx
from skyhigh.gateway.v1 import events_pb2
from skyhigh.gateway.v1 import gateway_admin_pb2 as pb

from tests.callers import Caller, Callers, refused
from tests.conftest import World
from tests.gateway.conftest import Others
from tests.limits.conftest import BLOCK_SECONDS, Edge, edge_of, reason
from tests.waiting import eventually


async def blocked(edge: Edge, caller: Caller, flight: str) -> bool:
    answer = await edge.map_of(caller, flight)
    return answer.status_code == 429 and reason(answer) == "BLOCKED"


async def test_31_maps_in_5_s_are_a_burst(edge: Edge, flight: str) -> None:
    caller = edge.seats.customer()
    answers = [await edge.map_of(caller, flight) for _ in range(31)]
    assert [answer.status_code for answer in answers[:30]] == [200] * 30
    await eventually(lambda: blocked(edge, caller, flight))
    answer = await edge.map_of(caller, flight, envoy=1)
    assert (answer.status_code, reason(answer)) == (429, "BLOCKED"), "blocked at every gateway"
    assert 0 < int(answer.headers["retry-after"]) <= BLOCK_SECONDS + 1
    (incident,) = await edge.incidents(caller)
    assert (incident.kind, incident.threshold) == (pb.Incident.MAP_BURST, 30)
    assert 31 <= incident.count <= 40, "what was tried before it was found counts too"
    assert incident.evidence == [f"/v1/flights/{flight}/seatmap"] * 10


async def test_a_block_ends_by_itself_also_for_who_goes_on_trying(edge: Edge, flight: str) -> None:
    caller = edge.seats.customer()
    await asyncio.gather(*(edge.map_of(caller, flight) for _ in range(31)))
    await eventually(lambda: blocked(edge, caller, flight))
    (block,) = await edge.blocks(caller)
    assert (block.scope, block.kind) == (pb.Block.EVERYTHING, pb.Incident.MAP_BURST)
    end = block.expire_time.ToNanoseconds() / 1e9

    async def let_in() -> bool:
        return (await edge.map_of(caller, flight)).status_code == 200

    await eventually(let_in, within_seconds=BLOCK_SECONDS + 5)
    assert time.time() >= end
    assert await edge.blocks(caller) == []
    assert len(await edge.incidents(caller)) == 1


async def test_50_different_maps_in_2_s_are_a_scan(edge: Edge) -> None:
    flights = [f"SH{number}-2026-12-01" for number in range(700, 750)]
    # On a busy machine they may take longer than two seconds to send.
    for _ in range(5):
        caller, began = edge.seats.customer(), time.monotonic()
        await asyncio.gather(*(edge.map_of(caller, flight) for flight in flights))
        if time.monotonic() - began < 2:
            break

    async def found() -> bool:
        return {incident.kind for incident in await edge.incidents(caller)} == {
            pb.Incident.MAP_BURST,
            pb.Incident.MAP_SCAN,
        }

    await eventually(found, within_seconds=10)
    (scan,) = [incident for incident in await edge.incidents(caller) if incident.kind == pb.Incident.MAP_SCAN]
    assert (scan.count, scan.threshold) == (50, 49)
    assert len(set(scan.evidence)) == 10
    assert len(await edge.blocks(caller)) == 1


async def test_a_passenger_who_reloads_is_not_hit(edge: Edge, flight: str) -> None:
    caller = edge.seats.customer()
    for _ in range(10):
        answers = await asyncio.gather(*(edge.map_of(caller, flight) for _ in range(2)))
        assert [answer.status_code for answer in answers] == [200, 200]
        await asyncio.sleep(0.1)
    assert await edge.incidents(caller) == []


async def test_an_agent_lifts_a_block_and_says_why(edge: Edge, flight: str) -> None:
    caller, agent = edge.seats.customer(), edge.admin.agent("desk-7")
    await asyncio.gather(*(edge.map_of(caller, flight) for _ in range(31)))
    await eventually(lambda: blocked(edge, caller, flight))
    (block,) = await edge.blocks(caller)
    request = pb.LiftBlockRequest(block_id=block.block_id, reason="a school class", request_id=str(uuid4()))
    lifted = await agent.LiftBlock(request)
    assert (lifted.lifted_by, lifted.lift_reason) == ("agent:desk-7", "a school class")
    assert await agent.LiftBlock(request) == lifted
    assert await agent.LiftBlock(pb.LiftBlockRequest(block_id=block.block_id, reason="again")) == lifted

    async def let_in() -> bool:
        return (await edge.map_of(caller, flight)).status_code == 200

    await eventually(let_in, within_seconds=2)
    assert time.time() < block.expire_time.ToNanoseconds() / 1e9
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


async def test_others_are_told(edge: Edge, world: World, flight: str) -> None:
    caller = edge.seats.customer()
    async with await aio_pika.connect(world.servers.amqp_url()) as broker:
        channel = await broker.channel()
        queue = await channel.declare_queue(exclusive=True)
        await queue.bind("skyhigh.events", "abuse.detected.v1")
        await asyncio.gather(*(edge.map_of(caller, flight) for _ in range(31)))
        async with asyncio.timeout(10), queue.iterator() as messages:
            async for message in messages:
                await message.ack()
                event = events_pb2.AbuseDetected.FromString(message.body)
                if event.incident.source == caller.name:
                    break
    assert (event.incident.kind, event.block.source) == (pb.Incident.MAP_BURST, caller.name)


async def test_who_makes_holds_and_gives_them_up_over_and_over_is_found(
    world: World, callers: Callers, others: Others, flight: str
) -> None:
    async with edge_of(world, callers, others, SKYHIGH_GATEWAY_HOLD_SPINS="3") as edge:
        caller = edge.seats.customer()
        for row in range(10, 14):
            hold = (await edge.hold(caller, flight, f"{row}A")).json()
            await edge.call(caller, "POST", f"/v1/holds/{hold['holdId']}/cancel", {"reason": "CHANGED_MY_MIND"})

        async def found() -> bool:
            return [incident.kind for incident in await edge.incidents(caller)] == [pb.Incident.HOLD_SPINNING]

        await eventually(found)

        async def kept_out() -> bool:
            return (await edge.hold(caller, flight, "20A")).status_code == 429

        await eventually(kept_out)


async def test_who_guesses_logins_is_kept_from_logins_alone(world: World, callers: Callers, others: Others) -> None:
    async with edge_of(world, callers, others, SKYHIGH_GATEWAY_FAILED_LOGINS="5") as edge:
        agent = edge.admin.agent()

        async def guess() -> httpx.Response:
            body = {"pnr": "".join(secrets.choice("ABCDEF") for _ in range(6)), "lastName": "Who"}
            return await edge.http.post(f"{edge.urls[0]}/v1/sessions", json=body)

        # Behind this path nobody is home: everything is not found.
        others.echo.refuse = True
        try:
            answers = [await guess() for _ in range(6)]
        finally:
            others.echo.refuse = False
        assert {answer.status_code for answer in answers} == {404}

        async def kept_out() -> bool:
            answer = await guess()
            return answer.status_code == 429 and reason(answer) == "BLOCKED"

        await eventually(kept_out)
        (incident,) = (await agent.ListIncidents(pb.ListIncidentsRequest(source="address:127.0.0.1"))).incidents
        assert incident.kind == pb.Incident.LOGIN_GUESSING
        assert set(incident.evidence) == {"checkin.CreateSession"}, "no name and no locator is kept"
        caller = edge.seats.customer()
        assert (await edge.map_of(caller, "SH1-2026-12-01")).status_code == 404, "others behind the address go on"
