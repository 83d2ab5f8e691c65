"""Each mock as a process: it logs its address, and ends on request, whatever call is in progress."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import aiohttp
import aiosmtplib
import grpc
import pytest
from skyhigh.weight.v1 import weight_service_pb2 as pb
from skyhigh.weight.v1.weight_service_pb2_grpc import WeightServiceStub

from tests.waiting import PATIENCE_SECONDS

# Only ends a test that hangs: the pending call takes 600 s.
START_SECONDS = END_SECONDS = PATIENCE_SECONDS


@asynccontextmanager
async def started(module: str, **variables: str) -> AsyncIterator[tuple[Process, dict[str, Any]]]:
    """Runs a mock within the block; yields its process and its first log line."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", f"deploy.mocks.{module}", env=os.environ | variables, stdout=PIPE
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(START_SECONDS):
            line = await process.stdout.readline()
        yield process, json.loads(line)
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def turn(url: str, **switches: object) -> None:
    async with aiohttp.ClientSession() as http, http.put(f"{url}/behaviour", json=switches) as answer:
        assert answer.status == 200


async def weigh(said: dict[str, Any]) -> None:
    await turn(said["control_url"], mode="hang")
    async with grpc.aio.insecure_channel(said["address"]) as channel:
        stub: Any = WeightServiceStub(channel)
        await stub.WeighBags(pb.WeighBagsRequest(reference="checkin/1", declared_grams=[500]), timeout=60)


async def charge(said: dict[str, Any]) -> None:
    await turn(said["url"], answer_delay_seconds=600)
    body = {"amount": {"currency": "USD", "minor_units": 1}, "payment_code": "00000"}
    async with aiohttp.ClientSession() as http:
        await http.post(f"{said['url']}/charges", json=body, headers={"Idempotency-Key": "1"})


async def mail(said: dict[str, Any]) -> None:
    await turn(said["url"], slow_seconds=600)
    host, _, port = said["address"].rpartition(":")
    async with aiosmtplib.SMTP(hostname=host, port=int(port)) as client:
        await client.sendmail("a@x.example", "b@x.example", "Subject: 12A\r\n\r\n12A")


@pytest.mark.parametrize(
    ("module", "name", "ask"),
    [("weight", "WEIGHT", weigh), ("payment_provider", "PROVIDER", charge), ("mail", "MAIL", mail)],
)
async def test_sigterm_ends_a_mock_that_is_being_asked(
    module: str, name: str, ask: Callable[[dict[str, Any]], Awaitable[None]]
) -> None:
    variables = {
        f"SKYHIGH_MOCK_{name}_LISTEN": "127.0.0.1:0",
        f"SKYHIGH_MOCK_{name}_CONTROL": "127.0.0.1:0",
        "SKYHIGH_MOCK_PROVIDER_WEBHOOK_SECRET": "whsec_dGVzdHMgdGVzdHMgdGVzdHMgdGVzdHM=",
    }
    async with started(module, **variables) as (process, said):
        assert said["event"] == "serving"
        asking = asyncio.ensure_future(ask(said))
        done, _ = await asyncio.wait([asking], timeout=0.5)
        assert not done
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), timeout=END_SECONDS) == 0
        with pytest.raises((aiohttp.ClientError, aiosmtplib.SMTPException, grpc.aio.AioRpcError)):
            await asking


async def test_a_provider_that_cannot_sign_says_so_at_start() -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "deploy.mocks.payment_provider"),
        env=os.environ | {"SKYHIGH_MOCK_PROVIDER_WEBHOOK_SECRET": "whsec_x"},
        stderr=PIPE,
    )
    _, said = await asyncio.wait_for(process.communicate(), timeout=START_SECONDS)
    assert process.returncode == 2
    assert said.decode().startswith("SKYHIGH_MOCK_PROVIDER_WEBHOOK_SECRET: ")
