"""Peers that abuse the protocol or keep connections busy (attacks 22 to 26).

Other callers are served meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from itertools import count, islice
from typing import Final

import grpc
import pytest
import yaml

from gateway.template import TEMPLATE
from services.auth import Role
from tests.security.belongings import Belongings
from tests.security.frames import CANCEL, ENHANCE_YOUR_CALM, REFUSED_STREAM, Flag, Frame, Peer, Type, literal
from tests.security.messages import valid
from tests.security.system import HASTE, RPCS, System, memory_bytes
from tests.waiting import PATIENCE_SECONDS, eventually, pause

MEGABYTE: Final = 1 << 20
# Frames in one flood, more than any limit of the edge.
FLOOD: Final = 20_000
# Extra time for a busy machine. Without the edge's timeouts, nothing would end within it.
SLACK_SECONDS: Final = PATIENCE_SECONDS
MAP: Final = RPCS["GetSeatMap"]


def block(system: System) -> bytes:
    """Returns the header block of a native gRPC call."""
    return literal(
        (
            (":method", "POST"),
            (":scheme", "http"),
            (":path", MAP.path),
            (":authority", "edge"),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
            ("authorization", f"Bearer {system.token(Role.AGENT)}"),
        )
    )


def opening(headers: bytes, *, complete: bool = True) -> Frame:
    """Returns the HEADERS frame of the first call."""
    return Frame(Type.HEADERS, Flag.END_HEADERS if complete else Flag.NONE, 1, headers)


def pings(_: bytes) -> Iterator[Frame]:
    while True:
        yield Frame(Type.PING, Flag.NONE, 0, b"12345678")


def settings(_: bytes) -> Iterator[Frame]:
    while True:
        yield Frame(Type.SETTINGS, Flag.NONE, 0)


def rapid_resets(headers: bytes) -> Iterator[Frame]:
    for stream in count(1, 2):
        yield Frame(Type.HEADERS, Flag.END_HEADERS, stream, headers)
        yield Frame(Type.RST_STREAM, Flag.NONE, stream, CANCEL.to_bytes(4, "big"))


def continuations(headers: bytes) -> Iterator[Frame]:
    yield opening(headers, complete=False)
    for n in count():
        yield Frame(Type.CONTINUATION, Flag.NONE, 1, literal([(f"x-{n}", "v" * 100)]))


def empty_continuations(headers: bytes) -> Iterator[Frame]:
    yield opening(headers, complete=False)
    while True:
        yield Frame(Type.CONTINUATION, Flag.NONE, 1)


def empty_data(headers: bytes) -> Iterator[Frame]:
    yield opening(headers)
    while True:
        yield Frame(Type.DATA, Flag.NONE, 1)


def priorities(headers: bytes) -> Iterator[Frame]:
    yield opening(headers)
    while True:
        yield Frame(Type.PRIORITY, Flag.NONE, 1, b"\0\0\0\x03\x10")


def window_updates(headers: bytes) -> Iterator[Frame]:
    yield opening(headers)
    while True:
        yield Frame(Type.WINDOW_UPDATE, Flag.NONE, 0, b"\0\0\0\x01")


# Each flood with the Envoy counter of the defence that ends it.
FLOODS: Final[dict[Callable[[bytes], Iterator[Frame]], str]] = {
    pings: "http2.outbound_control_flood",
    settings: "http2.outbound_control_flood",
    rapid_resets: "http.edge.downstream_rq_too_many_premature_resets",
    continuations: "http2.header_overflow",
    empty_continuations: "http2.inbound_empty_frames_flood",
    empty_data: "http2.inbound_empty_frames_flood",
    priorities: "http2.inbound_priority_frames_flood",
    window_updates: "http2.inbound_window_update_frames_flood",
}
# Each of these frames needs a response. The HTTP/2 library below Envoy may close the connection first, and then Envoy's
# counter stays as it is.
UNANSWERED: Final = (pings, settings)


async def counter(system: System, name: str) -> int:
    """Reads a counter of Envoy."""
    answer = await system.http.get(f"http://127.0.0.1:{system.admin_port}/stats", params={"filter": f"^{name}$"})
    return int(answer.text.partition(":")[2] or 0)


@asynccontextmanager
async def others_are_served(system: System) -> AsyncIterator[None]:
    """Fails if other callers get no response during the attack within the block."""

    async def ask() -> None:
        while True:
            answer = await system.ask(MAP, valid(MAP.request()), system.token(Role.AGENT), outside=True)
            assert answer.code is grpc.StatusCode.NOT_FOUND
            answers.append(answer)
            await pause(0.01)

    answers: list[object] = []
    asking = asyncio.create_task(ask())
    try:
        yield
        seen = len(answers)

        async def one_more() -> bool:
            return asking.done() or len(answers) > seen + 1

        await eventually(one_more)
        assert not asking.done(), asking.exception()
    finally:
        asking.cancel()


async def test_every_flood_ends_its_connection(system: System) -> None:
    """All floods run at once; Envoy's counters show which defence ended each."""
    counters = sorted(set(FLOODS.values()))
    before = {name: await counter(system, name) for name in counters}
    memory = memory_bytes(system.envoy_pid)
    async with others_are_served(system):
        closed = await asyncio.gather(*(flooded(system, flood) for flood in FLOODS))
    assert dict(zip(FLOODS, closed, strict=True)) == dict.fromkeys(FLOODS, True)
    counted = {name: await counter(system, name) - before[name] for name in counters}
    expected = Counter(name for flood, name in FLOODS.items() if flood not in UNANSWERED)
    assert {name: counted[name] for name in expected} == expected
    assert memory_bytes(system.envoy_pid) < memory + 32 * MEGABYTE


async def flooded(system: System, flood: Callable[[bytes], Iterator[Frame]]) -> bool:
    """Sends a flood; returns whether the edge closed the connection."""
    async with Peer.connected(system.port) as peer:
        # Sent in one piece: a peer that waits for responses between frames would not flood the edge.
        await peer.send(*islice(flood(block(system)), FLOOD))
        return await peer.until_closed(within_seconds=SLACK_SECONDS)


async def test_resets_begin_few_calls(system: System) -> None:
    """Envoy closes the connection after too many early resets.

    It does so after five hundred streams if at least half of them were reset early.
    """
    begun = await counter(system, "http.edge.downstream_rq_total")
    frames = rapid_resets(block(system))
    async with Peer.connected(system.port) as peer:
        await peer.send(*islice(frames, 4_000))
        assert await peer.until_closed(within_seconds=SLACK_SECONDS)
    assert await counter(system, "http.edge.downstream_rq_total") - begun <= 501


async def test_a_connection_has_a_hundred_streams(system: System) -> None:
    headers = block(system)
    async with Peer.connected(system.port) as peer:
        await peer.send(*(Frame(Type.HEADERS, Flag.END_HEADERS, stream, headers) for stream in range(1, 241, 2)))

        async def refused() -> bool:
            return len(peer.of(Type.RST_STREAM)) >= 20

        await eventually(refused)
        refusals = peer.of(Type.RST_STREAM)
        assert {int.from_bytes(frame.payload, "big") for frame in refusals} == {REFUSED_STREAM}
        assert [frame.stream for frame in refusals] == list(range(201, 241, 2))


async def test_a_client_that_reads_nothing_is_not_buffered(system: System, belongings: Belongings) -> None:
    """With a window of zero the responses wait in the edge, but only until its timeout."""
    memory = memory_bytes(system.envoy_pid)
    message = MAP.request(flight_id=belongings.strangers_own["flight_id"]).SerializeToString()
    body = b"\0" + len(message).to_bytes(4, "big") + message
    headers = block(system)
    streams = range(1, 201, 2)
    async with others_are_served(system), Peer.connected(system.port, window=0) as peer:
        for stream in streams:
            await peer.send(
                Frame(Type.HEADERS, Flag.END_HEADERS, stream, headers), Frame(Type.DATA, Flag.END_STREAM, stream, body)
            )

        async def all_ended() -> bool:
            # On a slow machine the edge answers some calls with a timeout error, which fits into headers and needs no
            # window.
            late = (frame for frame in peer.of(Type.HEADERS) if frame.flags & Flag.END_STREAM)
            return peer.closed.is_set() or {frame.stream for frame in (*peer.of(Type.RST_STREAM), *late)} >= set(
                streams
            )

        await eventually(all_ended, within_seconds=HASTE["stream_idle_timeout"] + SLACK_SECONDS)
        assert peer.of(Type.DATA) == []
        assert peer.closed.is_set() or peer.of(Type.RST_STREAM), "no answer waited for the window"
    assert memory_bytes(system.envoy_pid) < memory + 32 * MEGABYTE


def test_the_times_of_the_edge_are_short() -> None:
    """The other tests use shorter timeouts, to save time.

    These are the production values.
    """
    listener, _ = yaml.load_all(TEMPLATE.read_text(), yaml.BaseLoader)
    (chain,) = listener["static_resources"]["listeners"][0]["filter_chains"]
    manager = chain["filters"][0]["typed_config"]
    assert {name: manager[name] for name in HASTE} == {
        "request_headers_timeout": "5s",
        "request_timeout": "10s",
        "stream_idle_timeout": "10s",
    }


async def drip(system: System, beginning: bytes, drop: bytes) -> tuple[float, bytes]:
    """Sends `beginning`, then `drop` repeatedly.

    Returns the seconds until the end, and the response.
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", system.port)
    started = time.monotonic()
    writer.write(beginning)

    async def pour() -> None:
        while not writer.is_closing():
            writer.write(drop)
            await pause(0.05)

    pouring = asyncio.create_task(pour())
    try:
        async with asyncio.timeout(2 * SLACK_SECONDS):
            answer = await reader.read()
    except ConnectionError:
        answer = b""
    finally:
        pouring.cancel()
        writer.transport.abort()
    return time.monotonic() - started, answer


async def test_a_slow_client_is_disconnected(system: System) -> None:
    """Headers and body byte by byte, and an HTTP/2 request that never ends."""
    request = b"POST /v1/holds HTTP/1.1\r\nhost: edge\r\ncontent-type: application/json\r\n"
    authorization = f"authorization: Bearer {system.token(Role.AGENT)}\r\n".encode()

    async def silent_stream() -> float:
        started = time.monotonic()
        async with Peer.connected(system.port) as peer:
            await peer.send(opening(block(system)))

            async def ended() -> bool:
                return peer.closed.is_set() or bool(peer.of(Type.RST_STREAM)) or len(peer.of(Type.HEADERS)) > 0

            await eventually(ended, within_seconds=2 * SLACK_SECONDS)
        return time.monotonic() - started

    async with others_are_served(system):
        (headers, _), (body, answer), stream = await asyncio.gather(
            drip(system, request, b"x"),
            drip(system, request + authorization + b"content-length: 60000\r\n\r\n", b" "),
            silent_stream(),
        )
    assert headers < HASTE["request_headers_timeout"] + SLACK_SECONDS
    assert body < HASTE["request_timeout"] + SLACK_SECONDS
    # The response is empty if bytes that reach the closed connection cause a reset before the client has read it.
    assert answer[:12] in (b"HTTP/1.1 408", b"")
    assert stream < HASTE["request_timeout"] + SLACK_SECONDS


@pytest.mark.parametrize(
    "headers",
    [{f"x-{n}": "v" for n in range(1_000)}, {"x-large": "v" * 65_536}, {f"x-{n}": "v" * 1_000 for n in range(60)}],
    ids=["a thousand", "one of 64 KiB", "sixty of 1 KiB"],
)
async def test_headers_are_limited_in_number_and_size(system: System, headers: dict[str, str]) -> None:
    token = system.token(Role.AGENT)
    answer = await system.ask_json(MAP_JSON, valid(MAP_JSON.request()), token, **headers)
    assert answer.status_code == 431
    # HTTP/2 has no response to a request that was not read: Envoy resets the stream.
    native = await system.ask(MAP, valid(MAP.request()), token, outside=True, metadata=list(headers.items()))
    assert "RST_STREAM" in native.message
    # The service's own transport refuses large headers; it accepts a thousand short ones.
    direct = await system.ask(MAP, valid(MAP.request()), token, metadata=list(headers.items()))
    assert direct.code in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.NOT_FOUND)


MAP_JSON: Final = RPCS["GetSeatMapJson"]


async def test_a_client_that_pings_often_is_disconnected(system: System) -> None:
    port = int(system.callers["seat"].address.rpartition(":")[2])

    async def calmed() -> bool:
        async with Peer.connected(port) as peer:
            for _ in range(50):
                if not await peer.send(Frame(Type.PING, Flag.NONE, 0, b"12345678")):
                    break
            assert await peer.until_closed(within_seconds=SLACK_SECONDS)
        assert peer.reason in (None, ENHANCE_YOUR_CALM)
        return peer.reason is not None

    # A ping that arrives after the connection was closed resets it, and responses that are not read by then are lost.
    await eventually(calmed)


@pytest.mark.parametrize(
    "request_",
    [
        b"POST /v1/sessions HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\nG",
        b"POST /v1/sessions HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n{}   x",
        b"POST /v1/sessions HTTP/1.1\r\nhost: a\r\ntransfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
        b"GET /v1/flights HTTP/1.1\r\nhost: a\r\n x-folded: b\r\n\r\n",
        b"GET /v1/flights HTTP/1.1\r\nhost : a\r\n\r\n",
        b"GET /v1/fli\x00ghts HTTP/1.1\r\nhost: a\r\n\r\n",
        b"GET /v1/flights HTTP/1.1\r\n\r\n",
        b"GET /v1/flights HTTP/9.9\r\nhost: a\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 64,
    ],
    ids=[
        "two lengths",
        "length twice",
        "odd encoding",
        "folded",
        "space before colon",
        "NUL",
        "no host",
        "version",
        "TLS",
    ],
)
async def test_an_ambiguous_request_is_refused(system: System, request_: bytes) -> None:
    """A request that two servers read in different ways could smuggle a second request."""
    reader, writer = await asyncio.open_connection("127.0.0.1", system.port)
    try:
        writer.write(request_)
        async with asyncio.timeout(HASTE["request_timeout"] + SLACK_SECONDS):
            answer = await reader.read(MEGABYTE)
        # A second response would be the one to the smuggled request.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.1):
                answer += await reader.read(MEGABYTE)
    finally:
        writer.transport.abort()
    assert answer[:12] in (b"HTTP/1.1 400", b"HTTP/1.1 426", b"")
    assert answer.count(b"HTTP/1.1 ") <= 1
