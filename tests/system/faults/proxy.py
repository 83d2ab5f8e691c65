"""A TCP proxy that disturbs the connections between two processes.

It adds latency, makes black holes, resets, cuts and reorders. Each proxy serves one client of one server, so that a
fault affects exactly one connection of the architecture. A cut after a request was forwarded leaves the client without
the response to a request that the server has executed. The random numbers come from the proxy's generator; the times at
which bytes arrive do not.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Final, cast
from urllib.parse import urlsplit

from tests.system.faults.deliveries import Shuffler

LOOPBACK: Final = "127.0.0.1"
# Bytes of one direction that wait in the proxy before it stops reading, like a full socket buffer.
MOST_WAITING_BYTES: Final = 1 << 20
# Some requests have no response, such as an acknowledgement to RabbitMQ; their connection is cut after this time.
ANSWER_SECONDS: Final = 0.5
# The option that makes close() send RST and discard unsent bytes.
LINGER_ZERO: Final = struct.pack("ii", 1, 0)


class Direction(StrEnum):
    """A direction of a connection."""

    REQUESTS = "requests"
    ANSWERS = "answers"


BOTH: Final = frozenset(Direction)


@dataclass(slots=True)
class Cut:
    """The requests that lose their connection.

    A request here is what one read from the client returns.
    """

    matching: bytes = b""
    """Only requests that contain this."""
    probability: float = 1
    most: int | None = None
    """At most so many requests."""
    then_refuse: bool = False
    """The first of them ends all connections, and the proxy refuses new ones."""

    def applies(self, request: bytes, generator: random.Random) -> bool:
        """Decides for one request, and counts it."""
        if self.most == 0 or self.matching not in request or generator.random() >= self.probability:
            return False
        if self.most is not None:
            self.most -= 1
        return True


@dataclass(slots=True)
class Conditions:
    """The disturbances of a proxy's connections. By default the proxy passes bytes on."""

    latency_seconds: float = 0
    """Added to each direction."""
    jitter_seconds: float = 0
    """Added at random, between zero and this. The order of bytes stays."""
    black_hole: frozenset[Direction] = frozenset()
    """Bytes of these directions wait until the end, like packets that the network drops and TCP retransmits."""
    refuses: bool = False
    """New connections are reset."""
    cut_before: Cut | None = None
    """The connection is reset, and the server does not get the request."""
    cut_after: Cut | None = None
    """The server gets the request, and the connection is reset when it answers."""
    reorders: bool = False
    """Deliveries of RabbitMQ are delayed for a moment and arrive in another order.

    This applies to new connections, because the proxy must read the frames of a connection from its first byte on.
    """

    def __str__(self) -> str:
        """Lists the fields that differ from the default."""
        usual = Conditions()
        changed = [(each.name, getattr(self, each.name)) for each in fields(self)]
        shown = (
            f"{name}={'+'.join(sorted(value)) if isinstance(value, frozenset) else value}"
            for name, value in changed
            if value != getattr(usual, name)
        )
        return " ".join(shown)


@dataclass(slots=True)
class Proxy:
    """A listening proxy in front of one server."""

    name: str
    """Client and server, such as `booking>postgres`."""
    server_port: int
    generator: random.Random = field(default_factory=random.Random)
    conditions: Conditions = field(default_factory=Conditions)
    port: int = 0
    """The port on which it listens."""
    cuts: int = 0
    """The number of connections that it has cut because of a request."""
    links: set[_Link] = field(default_factory=set)

    def disturb(self, conditions: Conditions) -> None:
        """Applies conditions from now on. Bytes that need no longer wait are passed on."""
        self.conditions = conditions
        for link in list(self.links):
            link.flush()

    def calm(self) -> None:
        """Passes bytes on again."""
        self.disturb(Conditions())

    def cut(self) -> None:
        """Resets all connections."""
        for link in list(self.links):
            link.reset()

    def accept(self) -> asyncio.Protocol:
        """Serves one connection: the protocol factory of its listening socket."""
        return _Link(self).client

    def request_arrives(self, link: _Link, request: bytes) -> bool:
        """Applies the cuts to a request; returns whether it is forwarded."""
        before, after = self.conditions.cut_before, self.conditions.cut_after
        if before is not None and before.applies(request, self.generator):
            self._cut_for(link, before)
            return False
        if after is not None and not link.loses_answer and after.applies(request, self.generator):
            link.lose_answer(after)
        return True

    def _cut_for(self, link: _Link, cut: Cut) -> None:
        self.cuts += 1
        if cut.then_refuse:
            self.conditions.refuses = True
            self.cut()
        link.reset()

    def lost(self, link: _Link, cut: Cut) -> None:
        """Cuts a connection whose request was forwarded."""
        self._cut_for(link, cut)

    def delay_seconds(self) -> float:
        """Returns the delay of the next bytes."""
        now = self.conditions
        if not (now.latency_seconds or now.jitter_seconds):
            return 0
        return now.latency_seconds + self.generator.uniform(0, now.jitter_seconds)


@asynccontextmanager
async def listening(proxy: Proxy) -> AsyncIterator[Proxy]:
    """Listens on a free port within the block."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(proxy.accept, LOOPBACK, 0)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
        proxy.cut()


@asynccontextmanager
async def proxied(url: str) -> AsyncIterator[tuple[Proxy, str]]:
    """Yields a proxy in front of the server of a URL, and the URL through it."""
    port = urlsplit(url).port
    assert port is not None
    async with listening(Proxy("client>server", port)) as proxy:
        yield proxy, url.replace(f":{port}/", f":{proxy.port}/")


class _Link:
    """A client's connection with its connection to the server."""

    def __init__(self, proxy: Proxy) -> None:
        self.proxy = proxy
        self.loses_answer: Cut | None = None
        self.client = _Side(self)
        self.server = _Side(self)
        self._requests = _Flow(self, Direction.REQUESTS, self.client, self.server)
        self._answers = _Flow(self, Direction.ANSWERS, self.server, self.client)
        self.client.flow_of_reads, self.client.flow_of_writes = self._requests, self._answers
        self.server.flow_of_reads, self.server.flow_of_writes = self._answers, self._requests
        self._shuffler: Shuffler | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._timers: list[asyncio.TimerHandle] = []

    def opened(self, side: _Side) -> None:
        """Connects to the server when the client has connected."""
        if side is not self.client:
            self.flush()
            return
        if self.proxy.conditions.refuses:
            self.reset()
            return
        if self.proxy.conditions.reorders:
            self._shuffler = Shuffler(self.proxy.generator)
        self.proxy.links.add(self)
        self._connecting = asyncio.get_running_loop().create_task(self._connect())

    async def _connect(self) -> None:
        try:
            await asyncio.get_running_loop().create_connection(lambda: self.server, LOOPBACK, self.proxy.server_port)
        except OSError:
            self.reset()
            return
        if self not in self.proxy.links:
            self.server.reset()

    def arrived(self, flow: _Flow, data: bytes) -> None:
        """Handles bytes that one side sent."""
        if flow is self._requests:
            if self.proxy.request_arrives(self, data):
                flow.push(data)
        elif self.loses_answer is not None:
            self.proxy.lost(self, self.loses_answer)
        elif self._shuffler is not None:
            flow.push(self._shuffler.feed(data))
            if self._shuffler.holds and not self.proxy.conditions.reorders:
                self._release()
            elif self._shuffler.holds and not self._timers:
                self._timers = [asyncio.get_running_loop().call_later(self._shuffler.hold_seconds(), self._release)]
        else:
            flow.push(data)

    def _release(self) -> None:
        self._timers = []
        if self._shuffler is not None:
            self._answers.push(self._shuffler.release())

    def lose_answer(self, cut: Cut) -> None:
        """Cuts the connection when the server answers, or soon if it does not."""
        self.loses_answer = cut
        asyncio.get_running_loop().call_later(ANSWER_SECONDS, self._lose_answer_now, cut)

    def _lose_answer_now(self, cut: Cut) -> None:
        if self in self.proxy.links:
            self.proxy.lost(self, cut)

    def flush(self) -> None:
        """Passes on the bytes that need no longer wait."""
        self._requests.flush()
        self._answers.flush()

    def ended(self, side: _Side, error: Exception | None) -> None:
        """Ends the other connection when one has ended."""
        if self in self.proxy.links:
            self.reset() if error is not None else self.close()

    def finished(self) -> None:
        """Closes both connections after both sides have sent their last bytes."""
        if self._requests.is_finished and self._answers.is_finished:
            self.close()

    def close(self) -> None:
        """Closes both connections."""
        self._forget()
        for side in (self.client, self.server):
            side.close()

    def reset(self) -> None:
        """Ends both connections with RST."""
        self._forget()
        for side in (self.client, self.server):
            side.reset()

    def _forget(self) -> None:
        self.proxy.links.discard(self)
        for timer in self._timers:
            timer.cancel()


class _Side(asyncio.Protocol):
    """One of the two TCP connections of a link."""

    flow_of_reads: _Flow
    """The flow for the bytes that it reads."""
    flow_of_writes: _Flow
    """The flow with the bytes that it writes."""

    def __init__(self, link: _Link) -> None:
        self._link = link
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self._link.opened(self)

    def data_received(self, data: bytes) -> None:
        self._link.arrived(self.flow_of_reads, data)

    def eof_received(self) -> bool:
        self.flow_of_reads.push_end()
        # Keeps the other direction open.
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        self._link.ended(self, exc)

    def pause_writing(self) -> None:
        self.flow_of_writes.target_is_full(True)

    def resume_writing(self) -> None:
        self.flow_of_writes.target_is_full(False)

    def close(self) -> None:
        if self.transport is not None:
            self.transport.close()

    def reset(self) -> None:
        if self.transport is not None:
            connection: socket.socket = self.transport.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_ZERO)
            self.transport.abort()


class _Flow:
    """One direction of a link: bytes from one side to the other."""

    def __init__(self, link: _Link, direction: Direction, source: _Side, target: _Side) -> None:
        self._link = link
        self._direction = direction
        self._source = source
        self._target = target
        self._waiting: deque[tuple[float, bytes]] = deque()
        self._waiting_bytes = 0
        self._last_due = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._target_is_full = False
        self._reading_is_paused = False
        self._ends = False
        self.is_finished = False

    def push(self, data: bytes) -> None:
        """Passes bytes on, now or when they are due."""
        if not data:
            return
        now = asyncio.get_running_loop().time()
        self._last_due = max(self._last_due, now + self._link.proxy.delay_seconds())
        if self._last_due <= now and not self._waiting and self._is_open:
            assert self._target.transport is not None
            self._target.transport.write(data)
            return
        self._waiting.append((self._last_due, data))
        self._waiting_bytes += len(data)
        self.flush()

    def push_end(self) -> None:
        """Passes on that the source sends no more."""
        self._ends = True
        self.flush()

    def target_is_full(self, is_full: bool) -> None:
        """Stops or resumes reading from the source."""
        self._target_is_full = is_full
        self._throttle()

    @property
    def _is_open(self) -> bool:
        return self._target.transport is not None and self._direction not in self._link.proxy.conditions.black_hole

    def flush(self) -> None:
        """Passes on the bytes that are due."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        loop = asyncio.get_running_loop()
        while self._waiting and self._is_open and self._waiting[0][0] <= loop.time():
            data = self._waiting.popleft()[1]
            self._waiting_bytes -= len(data)
            assert self._target.transport is not None
            self._target.transport.write(data)
        if self._waiting and self._is_open:
            self._timer = loop.call_at(self._waiting[0][0], self.flush)
        if self._ends and not self._waiting and self._is_open and not self.is_finished:
            self.is_finished = True
            assert self._target.transport is not None
            # A target that was killed may be gone before the event loop notices it.
            with contextlib.suppress(OSError):
                self._target.transport.write_eof()
            self._link.finished()
        self._throttle()

    def _throttle(self) -> None:
        should_pause = self._target_is_full or self._waiting_bytes > MOST_WAITING_BYTES
        source = self._source.transport
        if source is None or should_pause == self._reading_is_paused or source.is_closing():
            return
        self._reading_is_paused = should_pause
        (source.pause_reading if should_pause else source.resume_reading)()
