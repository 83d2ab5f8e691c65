"""An HTTP/2 peer that breaks the rules, which our libraries would not do (RFC 9113, RFC 7541)."""

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
    """The types of frames."""

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
    """The flags of frames."""

    NONE = 0
    END_STREAM = 1
    ACK = 1
    END_HEADERS = 4


ENHANCE_YOUR_CALM: Final = 11
REFUSED_STREAM: Final = 7
CANCEL: Final = 8


@dataclass(frozen=True, slots=True)
class Frame:
    """An HTTP/2 frame."""

    type: int
    flags: int
    stream: int
    payload: bytes = b""

    def encoded(self) -> bytes:
        """Returns the bytes of the frame on the wire."""
        return (
            len(self.payload).to_bytes(3, "big") + bytes((self.type, self.flags)) + self.stream.to_bytes(4, "big")
        ) + self.payload


def literal(headers: Iterable[tuple[str, str]]) -> bytes:
    """Encodes a header block without compression and without the dynamic table."""
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
    """A connection and all frames that it received."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.received: list[Frame] = []
        self.closed = asyncio.Event()

    @classmethod
    @contextlib.asynccontextmanager
    async def connected(cls, port: int, *, window: int = 65_535, reads: bool = True) -> AsyncIterator[Peer]:
        """Connects within the block.

        If `reads` is False, the other side's responses pile up unread.
        """
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
        """Sends frames, unless the connection is closed; returns whether it is still open."""
        with contextlib.suppress(ConnectionError):
            self._writer.write(b"".join(frame.encoded() for frame in frames))
            await self._writer.drain()
        # Lets the read task run: a peer that only writes does not notice that the other side has closed the connection.
        await pause(0)
        return not (self.closed.is_set() or self._writer.is_closing())

    async def until_closed(self, *, within_seconds: float) -> bool:
        """Waits until the other side closes the connection; returns whether it did."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_seconds):
                await self.closed.wait()
        return self.closed.is_set()

    def of(self, kind: Type) -> list[Frame]:
        """Returns the received frames of one type."""
        return [frame for frame in self.received if frame.type == kind]

    @property
    def reason(self) -> int | None:
        """The error code of the last GOAWAY frame; None if none was received."""
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
