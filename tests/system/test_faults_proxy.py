"""The fault proxy: the effect of each condition on a connection, seen from both ends."""

from __future__ import annotations

import asyncio
import random
import struct
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from deploy.local.process import free_ports
from tests.system.faults.deliveries import BODY, DELIVER, HEADER, METHOD, MOST_HELD, Shuffler
from tests.system.faults.proxy import BOTH, LOOPBACK, Conditions, Cut, Direction, Proxy, listening
from tests.waiting import eventually, stays

QUIET_SECONDS = 0.1


@dataclass
class Server:
    """A server that returns each line in capitals, and records what it receives."""

    got: list[bytes] = field(default_factory=list)
    connections: int = 0
    port: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serves one connection until the client closes it."""
        self.connections += 1
        try:
            while line := await reader.readline():
                self.got.append(line)
                writer.write(line.upper())
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()

    async def has(self, *lines: bytes) -> bool:
        """Returns whether it has received exactly these lines."""
        return self.got == list(lines)


@dataclass
class Client:
    """A client's end of a connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def send(self, line: bytes) -> None:
        """Sends a line."""
        self.writer.write(line)

    async def ask(self, line: bytes) -> bytes:
        """Sends a line; returns the answer.

        Raises ConnectionError if the connection ends without one.
        """
        self.send(line)
        answer = await self.reader.readline()
        if not answer:
            raise ConnectionResetError("the connection was closed")
        return answer


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    """Yields a listening server."""
    server = Server()
    async with await asyncio.start_server(server.serve, LOOPBACK, 0) as listener:
        server.port = listener.sockets[0].getsockname()[1]
        yield server


@pytest.fixture
async def proxy(server: Server) -> AsyncIterator[Proxy]:
    """Yields a proxy in front of the server."""
    async with listening(Proxy("client>server", server.port, random.Random(1))) as proxy:
        yield proxy


@asynccontextmanager
async def connected(proxy: Proxy) -> AsyncIterator[Client]:
    """Yields a client's connection through the proxy."""
    client = Client(*await asyncio.open_connection(LOOPBACK, proxy.port))
    try:
        yield client
    finally:
        client.writer.close()


async def test_a_calm_proxy_passes_bytes_on(proxy: Proxy) -> None:
    async with connected(proxy) as client:
        assert await client.ask(b"one\n") == b"ONE\n"
        assert await client.ask(b"two\n") == b"TWO\n"


async def test_much_data_arrives_whole_and_in_order(server: Server, proxy: Proxy) -> None:
    proxy.disturb(Conditions(jitter_seconds=0.002))
    lines = [b"%d\n" % number for number in range(5000)]
    async with connected(proxy) as client:
        client.writer.writelines(lines)
        client.writer.write_eof()
        assert await client.reader.read() == b"".join(lines)
    assert server.got == lines


async def test_a_connection_that_the_server_refuses_is_reset() -> None:
    (port,) = free_ports(1)
    async with listening(Proxy("client>nothing", port)) as proxy, connected(proxy) as client:
        with pytest.raises(ConnectionError):
            await client.ask(b"one\n")


async def test_latency_is_added_to_each_direction(proxy: Proxy) -> None:
    proxy.disturb(Conditions(latency_seconds=0.1))
    async with connected(proxy) as client:
        began = time.monotonic()
        assert await client.ask(b"one\n") == b"ONE\n"
        assert time.monotonic() - began >= 0.2


async def test_a_black_hole_holds_requests_until_it_ends(server: Server, proxy: Proxy) -> None:
    async with connected(proxy) as client:
        assert await client.ask(b"one\n") == b"ONE\n"
        proxy.disturb(Conditions(black_hole=frozenset({Direction.REQUESTS})))
        asked = asyncio.create_task(client.ask(b"two\n"))
        await stays(lambda: server.has(b"one\n"), seconds=QUIET_SECONDS)
        assert not asked.done()
        proxy.calm()
        assert await asked == b"TWO\n"


async def test_a_black_hole_for_answers_lets_requests_arrive(server: Server, proxy: Proxy) -> None:
    async with connected(proxy) as client:
        proxy.disturb(Conditions(black_hole=frozenset({Direction.ANSWERS})))
        asked = asyncio.create_task(client.ask(b"one\n"))
        await eventually(lambda: server.has(b"one\n"))

        async def is_silent() -> bool:
            return not asked.done()

        await stays(is_silent, seconds=QUIET_SECONDS)
        proxy.calm()
        assert await asked == b"ONE\n"


async def test_a_connection_closed_in_a_black_hole_ends_later(server: Server, proxy: Proxy) -> None:
    async with connected(proxy) as client:
        assert await client.ask(b"one\n") == b"ONE\n"
        proxy.disturb(Conditions(black_hole=BOTH))
        client.send(b"two\n")
        client.writer.write_eof()
        await stays(lambda: server.has(b"one\n"), seconds=QUIET_SECONDS)
        proxy.calm()
        assert await client.reader.read() == b"TWO\n"
    assert server.got == [b"one\n", b"two\n"]


async def test_a_cut_before_a_request_withholds_it(server: Server, proxy: Proxy) -> None:
    proxy.conditions.cut_before = Cut(b"two", most=1)
    async with connected(proxy) as client:
        assert await client.ask(b"one\n") == b"ONE\n"
        with pytest.raises(ConnectionError):
            await client.ask(b"two\n")
    assert proxy.cuts == 1
    async with connected(proxy) as client:
        assert await client.ask(b"two\n") == b"TWO\n"
    assert server.got == [b"one\n", b"two\n"]


async def test_a_cut_after_a_request_loses_its_response(server: Server, proxy: Proxy) -> None:
    proxy.conditions.cut_after = Cut(b"two", most=1)
    async with connected(proxy) as client:
        assert await client.ask(b"one\n") == b"ONE\n"
        with pytest.raises(ConnectionError):
            await client.ask(b"two\n")
    assert proxy.cuts == 1
    assert server.got == [b"one\n", b"two\n"]


async def test_a_cut_without_a_response_comes_soon() -> None:
    async def never_answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with await asyncio.start_server(never_answer, LOOPBACK, 0) as listener:
        port = listener.sockets[0].getsockname()[1]
        async with listening(Proxy("client>server", port)) as proxy, connected(proxy) as client:
            proxy.conditions.cut_after = Cut()
            with pytest.raises(ConnectionError):
                await client.ask(b"one\n")


async def test_a_cut_can_refuse_connections_until_calm(proxy: Proxy) -> None:
    proxy.conditions.cut_after = Cut(then_refuse=True)
    async with connected(proxy) as client:
        with pytest.raises(ConnectionError):
            await client.ask(b"one\n")
    async with connected(proxy) as client:
        with pytest.raises(ConnectionError):
            await client.ask(b"two\n")
    proxy.calm()
    async with connected(proxy) as client:
        assert await client.ask(b"three\n") == b"THREE\n"


async def test_the_seed_decides_which_requests_are_cut(server: Server) -> None:
    async def cut_requests(seed: int) -> list[int]:
        cut = []
        async with listening(Proxy("client>server", server.port, random.Random(seed))) as proxy:
            proxy.conditions.cut_before = Cut(probability=0.3)
            for number in range(30):
                async with connected(proxy) as client:
                    try:
                        await client.ask(b"one\n")
                    except ConnectionError:
                        cut.append(number)
        return cut

    first = await cut_requests(7)
    assert first == await cut_requests(7)
    assert 0 < len(first) < 30
    assert first != await cut_requests(8)


async def test_cutting_ends_all_connections_with_a_reset(proxy: Proxy) -> None:
    async with connected(proxy) as one, connected(proxy) as other:
        assert await one.ask(b"one\n") == b"ONE\n"
        assert await other.ask(b"two\n") == b"TWO\n"
        proxy.cut()
        for client in (one, other):
            with pytest.raises(ConnectionResetError):
                await client.reader.readexactly(1)
    assert not proxy.links


def frame(kind: int, channel: int, payload: bytes) -> bytes:
    """Returns a frame of AMQP 0-9-1."""
    return struct.pack(">BHI", kind, channel, len(payload)) + payload + b"\xce"


def delivery(channel: int, body: bytes, *, bodies: int = 1) -> bytes:
    """Returns a delivery as RabbitMQ sends it.

    It has a method, a header with the body's size, and the body in frames.
    """
    parts = [body[index::bodies] for index in range(bodies)]
    header = struct.pack(">HHQ", 60, 0, len(body))
    return (
        frame(METHOD, channel, DELIVER + b"tag")
        + frame(HEADER, channel, header)
        + b"".join(frame(BODY, channel, part) for part in parts)
    )


CONFIRM = frame(METHOD, 1, struct.pack(">HH", 60, 80) + bytes(9))
CLOSE = frame(METHOD, 2, struct.pack(">HH", 20, 40))


def test_only_deliveries_are_held_back() -> None:
    shuffler = Shuffler(random.Random(1))
    assert shuffler.feed(delivery(2, b"first") + CONFIRM + delivery(2, b"second", bodies=2)) == CONFIRM
    assert shuffler.holds
    released = shuffler.release()
    assert sorted(released) == sorted(delivery(2, b"first") + delivery(2, b"second", bodies=2))
    assert not shuffler.holds


def test_frames_that_arrive_byte_by_byte_are_assembled() -> None:
    shuffler = Shuffler(random.Random(1))
    arriving = CONFIRM + delivery(2, b"body", bodies=2) + CONFIRM
    assert b"".join(shuffler.feed(bytes([byte])) for byte in arriving) == CONFIRM * 2
    assert shuffler.release() == delivery(2, b"body", bodies=2)


def test_a_delivery_without_a_body_is_complete() -> None:
    shuffler = Shuffler(random.Random(1))
    empty = delivery(2, b"", bodies=0)
    assert shuffler.feed(empty) == b""
    assert shuffler.release() == empty


def test_the_seed_decides_the_order() -> None:
    deliveries = [delivery(2, b"%d" % number) for number in range(MOST_HELD - 1)]

    def order(seed: int) -> bytes:
        shuffler = Shuffler(random.Random(seed))
        assert shuffler.feed(b"".join(deliveries)) == b""
        return shuffler.release()

    assert order(1) == order(1)
    assert order(1) != order(2)
    assert order(1) != b"".join(deliveries)
    assert sorted(order(1)) == sorted(b"".join(deliveries))


def test_no_delivery_follows_the_frame_that_closes_its_channel() -> None:
    shuffler = Shuffler(random.Random(1))
    one, other = delivery(2, b"of channel 2"), delivery(3, b"of channel 3")
    assert shuffler.feed(one + other + CLOSE) == one + CLOSE
    assert shuffler.release() == other


def test_the_number_of_held_deliveries_is_limited() -> None:
    shuffler = Shuffler(random.Random(1))
    passed = shuffler.feed(b"".join(delivery(2, b"body") for _ in range(MOST_HELD)))
    assert passed == delivery(2, b"body") * MOST_HELD
