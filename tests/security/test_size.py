"""Requests that are larger than any real one are refused (attack 15).

No process's memory grows.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import os
import zlib
from collections.abc import AsyncIterator, Awaitable
from typing import Final
from uuid import uuid4

import grpc
import httpx
import pytest
from skyhigh.seat.v1 import seat_service_pb2 as seat

from services.auth import Role
from tests.security.belongings import Belongings
from tests.security.frames import Flag, Frame, Peer, Type, literal
from tests.security.messages import valid
from tests.security.system import RPCS, System, memory_bytes
from tests.waiting import eventually, pause

MEGABYTE: Final = 1 << 20
# The unpacked size of a bomb, and the growth of memory that is acceptable in the attacked processes.
BLAST_BYTES: Final = 64 * MEGABYTE
GROWTH_BYTES: Final = 48 * MEGABYTE
BOMBS: Final = int(os.environ.get("SKYHIGH_TEST_ROUNDS", "6"))
LOOK_SECONDS: Final = 0.005
HOLDS: Final = RPCS["HoldSeats"]


@contextlib.asynccontextmanager
async def memory_is_flat(system: System) -> AsyncIterator[None]:
    """Fails if the memory of Envoy or of this process grows within the block.

    This process runs all services.
    """
    processes = (system.envoy_pid, os.getpid())
    before = {pid: memory_bytes(pid) for pid in processes}
    most = dict(before)

    async def look() -> None:
        while True:
            for pid in processes:
                most[pid] = max(most[pid], memory_bytes(pid))
            await pause(LOOK_SECONDS)

    looking = asyncio.create_task(look())
    try:
        yield
    finally:
        looking.cancel()
    assert {pid: most[pid] - before[pid] for pid in processes if most[pid] - before[pid] > GROWTH_BYTES} == {}


async def status(answer: Awaitable[httpx.Response]) -> int:
    """Returns the status.

    Returns 413 if the closed connection was reset before the client read it.
    """
    try:
        return (await answer).status_code
    except (httpx.ReadError, httpx.WriteError):
        return 413


def bomb(bytes_: int, *, wbits: int) -> bytes:
    """Returns so many zeros compressed as gzip (31) or zlib (15), without building them in memory."""
    packing = zlib.compressobj(9, wbits=wbits)
    return b"".join(packing.compress(bytes(MEGABYTE)) for _ in range(bytes_ // MEGABYTE)) + packing.flush()


@pytest.mark.usefixtures("nothing_changed")
async def test_a_large_body_is_refused(system: System) -> None:
    headers = {"authorization": f"Bearer {system.token(Role.AGENT)}"}
    seats = [{"flightId": "SH000", "seatNumber": "1A", "passengerId": f"P{n}"} for n in range(10_000)]
    async with memory_is_flat(system):
        for path in ("/v1/holds", "/v1/bookings", "/v1/sessions", "/v1/payments/webhook"):
            assert await status(system.http.post(path, content=b" " * 5 * MEGABYTE, headers=headers)) == 413
        for body in ({"seats": seats}, {"requestId": "x" * MEGABYTE}, {"seats": [{"passengerId": "x" * MEGABYTE}]}):
            assert await status(system.http.post("/v1/holds", json=body, headers=headers)) == 413
        # Below the size limit, the contract's rules refuse the request.
        short = await system.http.post("/v1/holds", json={"seats": seats[:900]}, headers=headers)
        assert short.status_code == 400


@pytest.mark.usefixtures("nothing_changed")
async def test_a_large_message_is_refused(system: System) -> None:
    token = system.token(Role.AGENT)
    many = seat.HoldSeatsRequest(seats=[seat.SeatAssignment(flight_id="SH000", seat_number="1A")] * 10_000)
    async with memory_is_flat(system):
        for message in (many, seat.HoldSeatsRequest(request_id="x" * MEGABYTE)):
            for outside in (False, True):
                answer = await system.ask(HOLDS, message, token, outside=outside)
                assert answer.code in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.INVALID_ARGUMENT)


@pytest.mark.usefixtures("nothing_changed")
@pytest.mark.parametrize(("encoding", "wbits"), [("gzip", 31), ("deflate", 15)])
async def test_a_compressed_message_is_limited_when_unpacked(system: System, encoding: str, wbits: int) -> None:
    """One gRPC message of less than 64 KiB that unpacks to a thousand times its size."""
    packed = bomb(BLAST_BYTES, wbits=wbits)
    # Frames of 16 KiB are the largest that a peer accepts. The body is below 64 KiB, which a size limit does not catch.
    body = b"\x01" + len(packed).to_bytes(4, "big") + packed
    assert len(body) < 65_536
    ports = (system.port, int(system.callers["seat"].address.rpartition(":")[2]))
    async with memory_is_flat(system):
        for port in ports:
            for _ in range(BOMBS):
                await thrown(system, port, encoding, body)


async def thrown(system: System, port: int, encoding: str, body: bytes) -> None:
    """Sends one bomb, and waits for the response."""
    headers = literal(
        (
            (":method", "POST"),
            (":scheme", "http"),
            (":path", HOLDS.path),
            (":authority", "edge"),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
            ("grpc-encoding", encoding),
            ("authorization", f"Bearer {system.token(Role.AGENT)}"),
        )
    )
    parts = [body[n : n + 16_384] for n in range(0, len(body), 16_384)]
    async with Peer.connected(port) as peer:
        frames = [Frame(Type.DATA, Flag.NONE, 1, part) for part in parts[:-1]]
        await peer.send(
            Frame(Type.HEADERS, Flag.END_HEADERS, 1, headers), *frames, Frame(Type.DATA, Flag.END_STREAM, 1, parts[-1])
        )

        async def answered() -> bool:
            return peer.closed.is_set() or any(frame.flags & Flag.END_STREAM for frame in peer.of(Type.HEADERS))

        await eventually(answered)


@pytest.mark.usefixtures("nothing_changed")
async def test_a_compressed_body_is_not_unpacked(system: System) -> None:
    """No component decompresses an HTTP body: the parser refuses it as invalid JSON."""
    headers = {"authorization": f"Bearer {system.token(Role.AGENT)}", "content-encoding": "gzip"}
    packed = bomb(BLAST_BYTES // 2, wbits=31)
    assert len(packed) < 65_536
    async with memory_is_flat(system):
        for body in (packed, gzip.compress(b'{"seats": []}')):
            for path in ("/v1/holds", f"/v1/checkins/{uuid4()}/baggage"):
                assert (await system.http.post(path, content=body, headers=headers)).status_code == 400


async def test_no_response_exceeds_its_page_size(system: System, belongings: Belongings) -> None:
    """A small request does not get a large response.

    Every list returns one page, whatever page size is asked for.
    """
    token = system.token(Role.OPERATIONS)
    for name, rpc in RPCS.items():
        if "page_size" in rpc.method.input_type.fields_by_name:
            request = valid(rpc.request(), {"flight_id": belongings.strangers_own["flight_id"], "page_size": 2**31 - 1})
            request.page_size = 2**31 - 1  # type: ignore[attr-defined]
            answer = await system.ask(rpc, request, "" if rpc.declaration.public else token)
            assert answer.code in (grpc.StatusCode.OK, grpc.StatusCode.NOT_FOUND), name
            assert len(answer.body) < MEGABYTE, name
