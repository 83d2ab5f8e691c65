"""A client of Redis reports a closed connection as an outage."""

from __future__ import annotations

from typing import Any

import pytest

from services import cache
from tests.conftest import World


async def test_write_to_a_closed_connection_is_an_outage(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    redis = cache.connect(world.servers.redis_url)
    try:
        await redis.ping()
        (connection,) = redis.connection_pool._available_connections

        def closed(_: Any) -> None:
            raise RuntimeError("unable to perform operation on <TCPTransport closed=True>; the handler is closed")

        # What uvloop's transport does if the server has closed the connection a moment ago.
        monkeypatch.setattr(connection._writer, "writelines", closed)
        with pytest.raises(cache.UNREACHABLE):
            await redis.ping()
        assert await redis.ping(), "a new connection"
    finally:
        await redis.aclose()
