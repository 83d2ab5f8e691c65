"""A wire between a service and a server of ours. A test cuts it, at once or when the answer to a statement comes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Final
from urllib.parse import urlsplit

LOOPBACK: Final = "127.0.0.1"


class Wire:
    """Passes bytes on until it is cut; then the next connection is whole again."""

    def __init__(self, server_port: int) -> None:
        self._server_port = server_port
        self._open: set[asyncio.StreamWriter] = set()
        self.lose_answer_to: bytes | None = None
        """Cut the connection that says this, when the server has answered it and before the client hears of that."""
        self.lose_question: bytes | None = None
        """Cut the connection that says this, before the server hears of it."""
        self.lost = 0
        self.is_down = False
        """New connections end at once."""
        self.goes_down = False
        """Be down from the lost answer on."""

    def cut(self) -> None:
        """Ends all connections without a word, as a server does that is killed."""
        for writer in self._open:
            writer.transport.abort()

    async def forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serves one connection."""
        if self.is_down:
            writer.transport.abort()
            return
        from_server, to_server = await asyncio.open_connection(LOOPBACK, self._server_port)
        self._open |= {writer, to_server}
        losing = asyncio.Event()
        try:
            await asyncio.gather(self._ask(reader, to_server, losing), self._answer(from_server, writer, losing))
        finally:
            self._open -= {writer, to_server}
            to_server.close()
            writer.close()

    async def _ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, losing: asyncio.Event) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                if self.lose_question is not None and self.lose_question in data:
                    self.lose_question = None
                    self.lost += 1
                    break
                if self.lose_answer_to is not None and self.lose_answer_to in data:
                    losing.set()
                writer.write(data)
        writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, losing: asyncio.Event) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                if losing.is_set():
                    self.lost += 1
                    self.lose_answer_to = None
                    if self.goes_down:
                        self.is_down = True
                        self.cut()
                    writer.transport.abort()
                    return
                writer.write(data)
        writer.close()


@asynccontextmanager
async def wired(url: str) -> AsyncIterator[tuple[Wire, str]]:
    """Yields a wire to the server of a URL, and the URL through the wire."""
    port = urlsplit(url).port
    assert port is not None
    wire = Wire(port)
    async with await asyncio.start_server(wire.forward, LOOPBACK, 0) as proxy:
        through = proxy.sockets[0].getsockname()[1]
        yield wire, url.replace(f":{port}/", f":{through}/")
        wire.cut()
