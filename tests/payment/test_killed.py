"""A payment service is killed during a charge, and restarted.

In the end there is one charge and one state.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
from skyhigh.payment.v1.payment_service_pb2_grpc import PaymentServiceStub

from deploy.local.process import LOOPBACK, Process, free_ports, serves_grpc
from deploy.local.supervisor import Supervisor
from deploy.mocks.payment_provider import PaymentProvider
from services import db
from tests.callers import Callers
from tests.conftest import World
from tests.instances import database_with
from tests.payment.conftest import QUICK
from tests.payment.rules import SECRET, Payments
from tests.payment.test_attempts import charged, switch
from tests.waiting import eventually


def family(pid: int) -> list[int]:
    """Returns the pids of the process and of its workers."""
    return [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]


@asynccontextmanager
async def process(world: World, provider: PaymentProvider, url: str) -> AsyncIterator[tuple[Payments, list[int]]]:
    """Runs the service as a process; yields it with the pids of parent and workers."""
    (port,) = free_ports(1)
    row = Process(
        name="payment",
        command=[sys.executable, "-m", "payment_service"],
        ready=serves_grpc(port, "skyhigh.payment.v1.PaymentService"),
        port=port,
        environment=world.environment(
            SKYHIGH_PAYMENT_DATABASE_URL=url,
            SKYHIGH_PAYMENT_LISTEN=f"{LOOPBACK}:{port}",
            SKYHIGH_PAYMENT_PROCESSES="1",
            SKYHIGH_PAYMENT_PROVIDER_URL=provider.url,
            SKYHIGH_PAYMENT_WEBHOOK_SECRETS=SECRET,
            **QUICK,
        ),
    )
    async with Supervisor([row], logs=world.folder / "payment logs", restart=False) as supervisor:
        (status,) = supervisor.statuses
        assert status.pid is not None
        callers = Callers(f"{LOOPBACK}:{port}", world.keys, PaymentServiceStub)
        database = await asyncpg.connect(url, server_settings={"search_path": "payment"})
        pool = await db.connect(url, schema="payment", size=2)
        yield Payments(callers, database, url, pool), family(status.pid)
        await pool.close()
        await database.close()
        await callers.close()


async def test_a_killed_process_charges_once_and_recovers(world: World, provider: PaymentProvider) -> None:
    url = (await database_with(world, "payment"))["SKYHIGH_PAYMENT_DATABASE_URL"]
    switch(provider, answer_delay_seconds=60, drop_webhooks=True)
    async with process(world, provider, url) as (first, pids):
        payer = first.callers.passenger()
        intents = [await first.intent(payer) for _ in range(5)]
        for n, intent in enumerate(intents):
            await first.pay(payer, intent, f"0000{n}")

        async def all_arrived() -> bool:
            return all(charged(provider, intent.intent_id) for intent in intents)

        await eventually(all_arrived)
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
    switch(provider, answer_delay_seconds=0, drop_webhooks=False, failure_rate=0)
    async with process(world, provider, url) as (second, _):
        for intent in intents:
            await second.becomes(intent, "SUCCEEDED")
            assert charged(provider, intent.intent_id)["succeeded"] == 1
            assert [key for key, _ in await second.told(intent)] == ["payment.succeeded.v1"]
        assert await second.violations() == []
