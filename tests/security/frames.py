"""HTTP/2 by hand: a peer that breaks the rules, which no library of ours would send for it (RFC 9113, RFC 7541)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Final

from tests.waiting import pause

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEADER_BYTES: Final = 9
INITIAL_WINDOW: Final = 4


class Type(IntEnum):
    """Kinds of frames."""

    DATA = 0
    HEADERS = 1
    PRIORITY = 2
    RST_STREAM = 3
    SETTINGS = 4
    PING = 6
    GOAWAY = 7
    WINDOW_UPDATE = 8
    CONTINUATION = 9


class Flag(IntFlag):
    """What a frame is besides."""

    NONE = 0
    END_STREAM = 1
    ACK = 1
    END_HEADERS = 4


ENHANCE_YOUR_CALM: Final = 11
REFUSED_STREAM: Final = 7
CANCEL: Final = 8


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame."""

    type: int
    flags: int
    stream: int
    payload: bytes = b""

    def encoded(self) -> bytes:
        """As it goes on the wire."""
        return (
            len(self.payload).to_bytes(3, "big") + bytes((self.type, self.flags)) + self.stream.to_bytes(4, "big")
        ) + self.payload


def literal(headers: Iterable[tuple[str, str]]) -> bytes:
    """A header block without compression and without the table."""
    return b"".join(b"\x00" + _string(name) + _string(value) for name, value in headers)


def _string(text: str) -> bytes:
    raw = text.encode()
    if len(raw) < 127:
        return bytes((len(raw),)) + raw
    prefix, rest = bytearray(b"\x7f"), len(raw) - 127
    while rest >= 128:
        prefix.append(rest % 128 + 128)
        rest //= 128
    return bytes((*prefix, rest)) + raw


class Peer:
    """A connection, and all that came over it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.received: list[Frame] = []
        self.closed = asyncio.Event()

    @classmethod
    @contextlib.asynccontextmanager
    async def connected(cls, port: int, *, window: int = 65_535, reads: bool = True) -> AsyncIterator[Peer]:
        """Connects within the block. One that does not read lets the other side's answers pile up."""
        peer = cls(*await asyncio.open_connection("127.0.0.1", port))
        reading = asyncio.create_task(peer._read()) if reads else None
        peer._writer.write(PREFACE)
        await peer.send(Frame(Type.SETTINGS, 0, 0, INITIAL_WINDOW.to_bytes(2, "big") + window.to_bytes(4, "big")))
        try:
            yield peer
        finally:
            if reading is not None:
                reading.cancel()
            peer._writer.transport.abort()

    async def send(self, *frames: Frame) -> bool:
        """Sends, unless the connection is gone; returns whether it is still there."""
        with contextlib.suppress(ConnectionError):
            self._writer.write(b"".join(frame.encoded() for frame in frames))
            await self._writer.drain()
        # The loop reads meanwhile: a peer that only writes does not hear that the other side has hung up.
        await pause(0)
        return not (self.closed.is_set() or self._writer.is_closing())

    async def until_closed(self, *, within_seconds: float) -> bool:
        """Waits for the other side to close; returns whether it did."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_seconds):
                await self.closed.wait()
        return self.closed.is_set()

    def of(self, kind: Type) -> list[Frame]:
        """What came of one kind."""
        return [frame for frame in self.received if frame.type == kind]

    @property
    def reason(self) -> int | None:
        """Why it was closed: the error code of GOAWAY."""
        goaways = self.of(Type.GOAWAY)
        return int.from_bytes(goaways[-1].payload[4:8], "big") if goaways else None

    async def _read(self) -> None:
        try:
            while True:
                head = await self._reader.readexactly(HEADER_BYTES)
                payload = await self._reader.readexactly(int.from_bytes(head[:3], "big"))
                self.received.append(Frame(head[3], head[4], int.from_bytes(head[5:], "big"), payload))
        except (ConnectionError, asyncio.IncompleteReadError):
            self.closed.set()
