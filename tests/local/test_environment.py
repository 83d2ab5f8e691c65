"""The variables of a user's environment that reach the processes of a stack."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import grpc
import pytest

from deploy.local.environment import clean, inherited
from deploy.local.process import LOOPBACK, Process, answers, free_ports, serves_grpc
from deploy.local.supervisor import Supervisor

HARMFUL = {
    "PGSSLMODE": "require",
    "PGHOST": "db.example",
    "RABBITMQ_NODENAME": "rabbit@other",
    "ERL_FLAGS": "-bogus",
    "PYTHONPATH": "/elsewhere",
    "PYTHONHOME": "/elsewhere",
    "all_proxy": "http://proxy.example:3128",
    "grpc_proxy": "http://proxy.example:3128",
    "ENVOY_UID": "0",
}


def test_only_variables_that_are_allowed_are_inherited() -> None:
    wanted = {"PATH": "/bin", "LC_ALL": "C", "TZ": "UTC", "SKYHIGH_HOME": "/home", "http_proxy": "http://proxy.example"}
    got = inherited({**wanted, **HARMFUL})
    assert got == wanted | {
        "no_proxy": "127.0.0.1,localhost,::1",
        "NO_PROXY": "127.0.0.1,localhost,::1",
        "PYTHONSAFEPATH": "1",
    }


@pytest.mark.parametrize("name", ["no_proxy", "NO_PROXY"])
def test_hosts_without_a_proxy_are_kept(name: str) -> None:
    got = inherited({name: "example.com, localhost"})
    assert got["no_proxy"] == got["NO_PROXY"] == "example.com,localhost,127.0.0.1,::1"


def test_the_command_forgets_what_its_drivers_would_read() -> None:
    environment = {"PGSSLMODE": "require", "PAGER": "less", "http_proxy": "http://proxy.example"}
    clean(environment)
    assert "PGSSLMODE" not in environment
    assert environment["PAGER"] == "less"
    assert environment["no_proxy"] == "127.0.0.1,localhost,::1"


async def test_a_process_is_started_without_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in HARMFUL.items():
        monkeypatch.setenv(name, value)
    shown = tmp_path / "environment"
    script = f"""
import json, os, pathlib, time
part = pathlib.Path({str(tmp_path / "part")!r})
part.write_text(json.dumps(dict(os.environ)))
part.rename({str(shown)!r})
time.sleep(600)
"""

    async def ready() -> bool:
        return shown.exists()

    async with Supervisor(
        [Process("server", [sys.executable, "-E", "-c", script], ready, 0)], logs=tmp_path, restart=False
    ):
        got = json.loads(shown.read_text())
    assert not HARMFUL.keys() & got.keys()


async def test_a_probe_of_grpc_goes_to_loopback_directly(monkeypatch: pytest.MonkeyPatch) -> None:
    accepted = asyncio.Event()

    async def accept(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted.set()
        writer.close()

    proxy = await asyncio.start_server(accept, LOOPBACK, 0)
    for name in ("http_proxy", "https_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, f"http://{LOOPBACK}:{proxy.sockets[0].getsockname()[1]}")
    server = grpc.aio.server()
    port = server.add_insecure_port(f"{LOOPBACK}:0")
    await server.start()
    try:
        with pytest.raises(OSError, match="UNIMPLEMENTED"):
            await serves_grpc(port)()
        assert not accepted.is_set()
    finally:
        await server.stop(None)
        proxy.close()
        await proxy.wait_closed()


async def test_a_probe_says_why_a_server_is_not_ready() -> None:
    (port,) = free_ports(1)
    with pytest.raises(OSError, match=f"port {port}: UNAVAILABLE"):
        await serves_grpc(port)()

    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"-LOADING")
        writer.close()

    server = await asyncio.start_server(greet, LOOPBACK, 0)
    port = server.sockets[0].getsockname()[1]
    with pytest.raises(OSError, match=f"port {port} responds with b'-LOADING'"):
        await answers(port, ask=b"PING\r\n", expect=[b"+PONG"])()
    server.close()
    await server.wait_closed()
