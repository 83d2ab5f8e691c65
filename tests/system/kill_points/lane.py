"""A lane: a separate airline with real parts, in which scenarios are played one after another.

Postgres, Redis, RabbitMQ, the mocks and the services that do not die run on from scenario to scenario. Each scenario
has flights and passengers of its own.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import asyncpg
import grpc
from redis.asyncio import Redis

from deploy.local.process import LOOPBACK, free_ports
from deploy.mocks import mail, payment_provider, weight
from deploy.mocks.mail import MailSettings, MailSink
from deploy.mocks.payment_provider import PaymentProvider, ProviderSettings
from deploy.mocks.weight import WeightSettings
from operations import invariants
from operations.verify.check import check
from tests.callers import Caller, Callers
from tests.conftest import World, opened
from tests.payment.bridge import bridge
from tests.payment.conftest import PROMPT, QUICK
from tests.payment.rules import SECRET
from tests.system.kill_points.process import SERVICES, STUBS, CannotStart, Worker
from tests.waiting import eventually, pause

# After these codes a caller repeats the call with the same key (docs/rules.md section 3).
UNANSWERED: Final = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)
# Longer than the longest lease, whose end a successor waits for, on a busy machine.
PATIENCE_SECONDS: Final = 180.0
ANSWER_SECONDS: Final = 10.0
REPEAT_SECONDS: Final = 0.05
PAUSE_SECONDS: Final = 0.1
# Shorter times, where the tester would otherwise wait longest.
HASTY: Final = {
    **QUICK,
    "SKYHIGH_PAYMENT_PATIENCE_SECONDS": "4",
    "SKYHIGH_BOOKING_PAYMENT_LOOK_SECONDS": "1",
    "SKYHIGH_RECONCILE_SECONDS": "2",
    "SKYHIGH_LOG_LEVEL": "warning",
    # In a slow run no hold lapses by itself.
    "SKYHIGH_CHECK_IN_HOLD_TTL_SECONDS": "3600",
    "SKYHIGH_FLIGHT_HORIZON_DAYS": "0",
}
# A lane has no gateway.
INVARIANTS: Final = [each for each in invariants.INVARIANTS if "gateway" not in each.schemas]
Who = Callable[[Callers], Caller]


@dataclass
class Lane:
    """The servers and the services' processes of one lane."""

    world: World
    workers: dict[str, Worker]
    mails: MailSink
    provider: PaymentProvider
    database: asyncpg.Connection[asyncpg.Record]
    """A connection as the owner of all schemas."""
    redis: Redis
    _callers: dict[str, Callers] = field(default_factory=dict)
    _former: list[Callers] = field(default_factory=list)

    async def start(self) -> None:
        """Starts all services.

        All are needed: an event without a queue is not published, and its consumer declares the queue.
        """
        for worker in self.workers.values():
            worker.launch()
        for worker in self.workers.values():
            await eventually(worker.serves)

    async def restart(self, name: str) -> None:
        """Starts a service that was killed or stopped."""
        await self.workers[name].start()
        self._reconnect(name)

    def _reconnect(self, name: str) -> None:
        # A channel that has lost its server waits a second or longer before it reconnects, so a new one is opened.
        # Closing the old one now would cancel the calls that still wait on it.
        if name in self._callers:
            self._former.append(self._callers.pop(name))

    def callers(self, name: str) -> Callers:
        """Returns the callers of a service's present process."""
        if name not in self._callers:
            self._callers[name] = Callers(self.workers[name].address, self.world.keys, STUBS[name])
        return self._callers[name]

    async def ask(self, name: str, who: Who, method: str, request: Any) -> Any:
        """Calls a service, and repeats the same request until there is a response."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            callers = self.callers(name)
            try:
                return await getattr(who(callers), method)(request, timeout=ANSWER_SECONDS)
            except grpc.aio.AioRpcError as error:
                if error.code() not in UNANSWERED or time.monotonic() > deadline:
                    raise
            await pause(REPEAT_SECONDS)

    async def ask_once(self, name: str, who: Who, method: str, request: Any) -> Any:
        """Calls a service once, like a caller who does not return.

        Returns None if there is no response.
        """
        with suppress(grpc.aio.AioRpcError):
            return await getattr(who(self.callers(name)), method)(request, timeout=ANSWER_SECONDS)
        return None

    async def left(self) -> list[str]:
        """Returns what keeps the lane from rest: unpublished events and due timers."""
        rows = [
            row
            for name in SERVICES
            for row in await self.database.fetch(
                f"""
                SELECT '{name}' AS service, routing_key AS what, event_id::text AS subject, NULL AS error
                FROM {name}.outbox WHERE publish_time IS NULL
                UNION ALL
                SELECT '{name}', name, subject, last_error
                FROM {name}.timers WHERE fire_time IS NULL AND due_time <= clock_timestamp()
                """
            )
        ]
        return [str(dict(row)) for row in rows]

    async def start_over(self, worker: Worker) -> None:
        """Starts a new process of a service after a run that failed."""
        with suppress(CannotStart):
            await worker.stop()
        await self.restart(worker.name)

    async def close(self) -> None:
        """Closes the channels."""
        for callers in (*self._callers.values(), *self._former):
            await callers.close()

    async def rests(self) -> bool:
        """Returns whether all events are published and no timer is due."""
        waits = " OR ".join(
            f"""
            EXISTS (SELECT FROM {name}.outbox WHERE publish_time IS NULL)
            OR EXISTS (SELECT FROM {name}.timers WHERE fire_time IS NULL AND due_time <= clock_timestamp())
            """
            for name in SERVICES
        )
        return await self.holds(f"SELECT NOT ({waits})")

    async def holds(self, query: str, *args: Any) -> bool:
        """Returns the query's result, False for NULL.

        A False is delayed, so that waiting for True costs little.
        """
        answer: bool | None = await self.database.fetchval(query, *args)
        if not answer:
            await pause(PAUSE_SECONDS)
        return bool(answer)

    async def violations(self) -> list[str]:
        """Returns the findings of `skyhigh verify`.

        Repeats it until the work in progress is done.
        """
        found: list[str] = []

        async def none() -> bool:
            found[:] = [
                str(finding)
                for finding in await check(self.database, self.redis, invariants=INVARIANTS)
                if finding.violations or finding.not_checked
            ]
            return not found

        with suppress(AssertionError):
            await eventually(none, within_seconds=PATIENCE_SECONDS)
        return found


@asynccontextmanager
async def lane(folder: Path, **more: str) -> AsyncIterator[Lane]:
    """Opens a lane within the block.

    `more` are environment variables of all its services.
    """
    async with AsyncExitStack() as stack:
        world = await stack.enter_async_context(opened(folder / "servers"))
        ports = dict(zip(SERVICES, free_ports(len(SERVICES)), strict=True))
        sink = await stack.enter_async_context(
            mail.serving(MailSettings(listen=f"{LOOPBACK}:0", control=f"{LOOPBACK}:0"))
        )
        scales = await stack.enter_async_context(
            weight.serving(WeightSettings(listen=f"{LOOPBACK}:0", control=f"{LOOPBACK}:0"))
        )
        provider = await stack.enter_async_context(
            payment_provider.serving(ProviderSettings(listen=f"{LOOPBACK}:0", webhook_secret=SECRET))
        )
        provider.behaviour.now = PROMPT.model_copy(update={"failure_rate": 0})
        payments = Callers(f"{LOOPBACK}:{ports['payment']}", world.keys, STUBS["payment"])
        stack.push_async_callback(payments.close)
        provider.webhook_url = await stack.enter_async_context(bridge(payments))
        variables = world.environment(
            **HASTY,
            **{f"SKYHIGH_{name.upper()}_ADDRESS": f"{LOOPBACK}:{port}" for name, port in ports.items()},
            **{f"SKYHIGH_{name.upper()}_LISTEN": f"{LOOPBACK}:{port}" for name, port in ports.items()},
            SKYHIGH_PAYMENT_PROVIDER_URL=provider.url,
            SKYHIGH_PAYMENT_WEBHOOK_SECRETS=SECRET,
            SKYHIGH_SMTP_ADDRESS=sink.address,
            SKYHIGH_WEIGHT_ADDRESS=scales.address,
            **more,
        )
        logs = folder / "services"
        logs.mkdir(parents=True)
        workers = {name: Worker(name, port, variables, logs) for name, port in ports.items()}
        for worker in workers.values():
            stack.push_async_callback(worker.stop)
        database = await asyncpg.connect(world.servers.database_url())
        stack.push_async_callback(database.close)
        redis = Redis.from_url(world.servers.redis_url)
        stack.push_async_callback(redis.aclose)
        opened_lane = Lane(world, workers, sink, provider, database, redis)
        stack.push_async_callback(opened_lane.close)
        await opened_lane.start()
        yield opened_lane
