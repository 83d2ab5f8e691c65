"""The faults.

Each begins, lasts as long as the schedule says, and is undone; the product must recover by itself. A fault is a value:
its fields are everything that it needs, so that the schedule of a seed can be printed and replayed. `begin` raises
Unsuitable if the stack has no such part. `end` follows every `begin`, even one that failed.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
import signal
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Final
from uuid import uuid4

import aio_pika
import aiohttp
import asyncpg
import redis.asyncio as redis

from deploy.local.services import SERVICES
from services.amqp import EVENTS
from tests.system.faults.proxy import Conditions
from tests.system.faults.stack import REPOSITORY, RunningStack, StackError
from tests.waiting import pause

# The limit for the beginning and the end of a fault; a broker that lost its data starts in a third of this.
BEGIN_SECONDS: Final = 300
END_SECONDS: Final = 300
MOCK_SECONDS: Final = 5
# The range of delays after which a copy of a message is published.
COPY_SECONDS: Final = (0.0, 1.5)
COPIES: Final = 2
REPEATED: Final = "x-repeated-by-tester"
MOVED_CLOCK: Final = REPOSITORY / "tests" / "moved_clock" / "moved_clock.c"
SERVICE_LABELS: Final = tuple(service.label for service in SERVICES)
NO_TASK: Final[asyncio.Task[None] | None] = None


class Unsuitable(Exception):
    """The stack lacks a part that the fault needs."""


@dataclass
class Fault(ABC):
    """A fault with its parameters."""

    needs_host: ClassVar[bool] = False
    """Whether it stops or starts a process, which is not possible on an attached stack."""

    @property
    @abstractmethod
    def parts(self) -> frozenset[str]:
        """The processes and connections that it affects."""

    @abstractmethod
    async def begin(self, stack: RunningStack) -> None:
        """Begins the fault."""

    async def end(self, stack: RunningStack) -> None:  # noqa: B027
        """Undoes the fault.

        The product's own supervisor undoes most faults that end a process.
        """


@asynccontextmanager
async def acting(fault: Fault, stack: RunningStack) -> AsyncIterator[None]:
    """Applies the fault within the block.

    A cancellation of the block does not cancel the end of the fault.
    """
    try:
        async with asyncio.timeout(BEGIN_SECONDS):
            await fault.begin(stack)
        yield
    finally:
        async with asyncio.timeout(END_SECONDS):
            await _uncancelled(fault.end(stack))


async def _uncancelled(work: Coroutine[Any, Any, None]) -> None:
    """Awaits work to its end; raises a cancellation of the meantime only after that."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.gather(task, return_exceptions=True)
        raise


@dataclass
class _OfProcess(Fault):
    process: str

    @property
    def parts(self) -> frozenset[str]:
        return frozenset({self.process})

    def check(self, stack: RunningStack) -> None:
        """Raises Unsuitable if the stack does not run the process itself."""
        if not stack.has(self.process):
            raise Unsuitable(f"the stack has no process {self.process}")


@dataclass
class Killed(_OfProcess):
    """SIGKILL of a process and all its children, as if its machine had crashed."""

    async def begin(self, stack: RunningStack) -> None:
        self.check(stack)
        stack.send(stack.members(self.process), signal.SIGKILL)


@dataclass
class WorkerKilled(Fault):
    """SIGKILL of one worker of a service, repeated every so many seconds."""

    service: str
    seed: int = 0
    every_seconds: float = 60
    kills: int = field(default=0, init=False)
    _killing: asyncio.Task[None] | None = field(default=NO_TASK, init=False, repr=False, compare=False)

    @property
    def parts(self) -> frozenset[str]:
        return frozenset({self.service})

    async def begin(self, stack: RunningStack) -> None:
        self._killing = asyncio.create_task(self._kill(stack, random.Random(self.seed)))

    async def _kill(self, stack: RunningStack, generator: random.Random) -> None:
        while True:
            with contextlib.suppress(StackError, OSError):
                if workers := sorted(stack.workers(self.service)):
                    stack.send([generator.choice(workers)], signal.SIGKILL)
                    self.kills += 1
            await pause(self.every_seconds)

    async def end(self, stack: RunningStack) -> None:
        await _cancel(self._killing)


@dataclass
class Paused(_OfProcess):
    """SIGSTOP of a process and all its children, or of one worker.

    Its connections stay open.
    """

    worker: int | None = None
    _pids: Sequence[int] = field(default=(), init=False, repr=False, compare=False)

    async def begin(self, stack: RunningStack) -> None:
        self.check(stack)
        self._pids = stack.members(self.process)
        if self.worker is not None:
            workers = sorted(stack.workers(self.process))
            self._pids = workers[self.worker % len(workers) :][:1] if workers else ()
        stack.send(self._pids, signal.SIGSTOP)

    async def end(self, stack: RunningStack) -> None:
        stack.send(self._pids, signal.SIGCONT)


@dataclass
class Stopped(_OfProcess):
    """A process is down for as long as the fault lasts."""

    needs_host: ClassVar[bool] = True

    async def begin(self, stack: RunningStack) -> None:
        self.check(stack)
        await stack.order("stop", name=self.process)

    async def end(self, stack: RunningStack) -> None:
        if stack.has(self.process):
            await stack.order("start", name=self.process)


@dataclass
class Restarted(_OfProcess):
    """A process is ended gracefully and started again."""

    needs_host: ClassVar[bool] = True

    async def begin(self, stack: RunningStack) -> None:
        self.check(stack)
        await stack.restart(self.process)


@dataclass
class RollingRestart(Fault):
    """The services are restarted one after another, as in the rollout of a version."""

    services: tuple[str, ...] = SERVICE_LABELS
    needs_host: ClassVar[bool] = True

    @property
    def parts(self) -> frozenset[str]:
        return frozenset(self.services)

    async def begin(self, stack: RunningStack) -> None:
        for service in self.services:
            if stack.has(service):
                await stack.restart(service)


@dataclass
class BrokerDataLost(Fault):
    """RabbitMQ stops and starts again with an empty disk.

    It has no queue, no message and no marker exchange of a relay.
    """

    needs_host: ClassVar[bool] = True

    @property
    def parts(self) -> frozenset[str]:
        return frozenset({"rabbitmq"})

    async def begin(self, stack: RunningStack) -> None:
        if not stack.has("rabbitmq"):
            raise Unsuitable("the stack has no RabbitMQ of its own")
        await stack.order("stop", name="rabbitmq")
        await asyncio.to_thread(shutil.rmtree, (stack.home / "rabbitmq" / "data").resolve())

    async def end(self, stack: RunningStack) -> None:
        if stack.has("rabbitmq"):
            await stack.order("start", name="rabbitmq")


@dataclass
class RedisFlushed(Fault):
    """Redis loses all keys."""

    @property
    def parts(self) -> frozenset[str]:
        return frozenset({"redis"})

    async def begin(self, stack: RunningStack) -> None:
        async with redis.Redis.from_url(stack.environment["SKYHIGH_REDIS_URL"], socket_timeout=5) as client:
            await client.flushall()


@dataclass
class PostgresReadOnly(Fault):
    """Postgres refuses every write, as a primary that was demoted does."""

    @property
    def parts(self) -> frozenset[str]:
        return frozenset({"postgres"})

    async def begin(self, stack: RunningStack) -> None:
        await _configure(stack, "ALTER SYSTEM SET default_transaction_read_only = on")

    async def end(self, stack: RunningStack) -> None:
        await _configure(stack, "ALTER SYSTEM RESET default_transaction_read_only")


async def _configure(stack: RunningStack, statement: str) -> None:
    connection = await asyncpg.connect(stack.superuser_database_url, timeout=10)
    try:
        await connection.execute(statement)
        await connection.execute("SELECT pg_reload_conf()")
    finally:
        await connection.close()


@dataclass
class BackendsKilled(Fault):
    """The sessions of all services in Postgres are ended, again every so many seconds."""

    every_seconds: float = 1
    kills: int = field(default=0, init=False)
    _killing: asyncio.Task[None] | None = field(default=NO_TASK, init=False, repr=False, compare=False)

    @property
    def parts(self) -> frozenset[str]:
        return frozenset({"postgres"})

    async def begin(self, stack: RunningStack) -> None:
        connection = await asyncpg.connect(stack.superuser_database_url, timeout=10)
        self._killing = asyncio.create_task(self._kill(connection))

    async def _kill(self, connection: asyncpg.Connection[asyncpg.Record]) -> None:
        try:
            while True:
                self.kills += await connection.fetchval(
                    "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = ANY($1)",
                    [service.name for service in SERVICES],
                )
                await pause(self.every_seconds)
        finally:
            connection.terminate()

    async def end(self, stack: RunningStack) -> None:
        await _cancel(self._killing)


@dataclass
class Disturbed(Fault):
    """Connections are disturbed by their proxies.

    They are slow, silent, refused, or cut before or after a request was sent.
    """

    wires: str
    """A regular expression for the names of the proxies."""
    conditions: Conditions
    cut_first: bool = False
    """Whether existing connections are reset at the beginning."""

    @property
    def parts(self) -> frozenset[str]:
        return frozenset({f"wires {self.wires}"})

    def __str__(self) -> str:
        return f"{self.wires}: {self.conditions}"

    async def begin(self, stack: RunningStack) -> None:
        met = stack.wires(self.wires)
        if not met:
            raise Unsuitable(f"the stack has no proxy whose name matches {self.wires}")
        for proxy in met:
            proxy.disturb(self.conditions)
            if self.cut_first:
                proxy.cut()

    async def end(self, stack: RunningStack) -> None:
        for proxy in stack.wires(self.wires):
            proxy.calm()


@dataclass
class MessagesDuplicated(Fault):
    """Each event is published again, up to twice, after some time.

    Consumers get it repeatedly and late.
    """

    seed: int = 0
    copies: int = field(default=0, init=False)
    _connection: aio_pika.abc.AbstractConnection | None = field(default=None, init=False, repr=False, compare=False)
    _copying: set[asyncio.Task[None]] = field(default_factory=set, init=False, repr=False, compare=False)

    @property
    def parts(self) -> frozenset[str]:
        return frozenset({"messages"})

    async def begin(self, stack: RunningStack) -> None:
        generator = random.Random(self.seed)
        self._connection = await aio_pika.connect(stack.environment["SKYHIGH_AMQP_URL"], timeout=10)
        channel = await self._connection.channel(publisher_confirms=False)
        exchange = await channel.get_exchange(EVENTS)
        queue = await channel.declare_queue(f"tester-{uuid4()}", exclusive=True, auto_delete=True)
        await queue.bind(exchange, routing_key="#")

        async def copy(message: aio_pika.abc.AbstractIncomingMessage) -> None:
            if REPEATED in message.headers:
                return
            for _ in range(generator.randint(1, COPIES)):
                task = asyncio.create_task(self._publish(exchange, message, generator.uniform(*COPY_SECONDS)))
                self._copying.add(task)
                task.add_done_callback(self._copying.discard)

        await queue.consume(copy, no_ack=True)

    async def _publish(
        self,
        exchange: aio_pika.abc.AbstractExchange,
        message: aio_pika.abc.AbstractIncomingMessage,
        after_seconds: float,
    ) -> None:
        await pause(after_seconds)
        copy = aio_pika.Message(
            message.body,
            message_id=message.message_id,
            content_type=message.content_type,
            delivery_mode=message.delivery_mode,
            headers={**message.headers, REPEATED: 1},
        )
        await exchange.publish(copy, routing_key=str(message.routing_key), mandatory=False)
        self.copies += 1

    async def end(self, stack: RunningStack) -> None:
        await asyncio.gather(*self._copying, return_exceptions=True)
        if self._connection is not None:
            await self._connection.close()


@dataclass
class ClockSkewed(Fault):
    """A service runs with a clock that is wrong by so many seconds.

    Postgres' clock stays right. The service is restarted at the beginning and at the end, because the clock of a
    running process cannot change.
    """

    service: str
    by_seconds: int
    needs_host: ClassVar[bool] = True

    @property
    def parts(self) -> frozenset[str]:
        return frozenset({self.service})

    async def begin(self, stack: RunningStack) -> None:
        library = await clock_library(stack.home, self.by_seconds)
        await stack.order("set", name=self.service, variables={"LD_PRELOAD": str(library)})
        await stack.restart(self.service)

    async def end(self, stack: RunningStack) -> None:
        await stack.order("unset", name=self.service, variables=["LD_PRELOAD"])
        await stack.restart(self.service)


async def clock_library(folder: Path, seconds: int) -> Path:
    """Compiles the library that moves a process's clock by so many seconds.

    Raises Unsuitable without a compiler.
    """
    library = folder / f"clock{seconds:+}.so"
    if library.exists():
        return library
    compiler = shutil.which("cc")
    if compiler is None:
        raise Unsuitable("no C compiler is installed")
    process = await asyncio.create_subprocess_exec(
        compiler, "-O2", "-shared", "-fPIC", f"-DOFFSET_SECONDS=({seconds}L)", "-o", str(library), str(MOVED_CLOCK)
    )
    if await process.wait():
        raise Unsuitable(f"{MOVED_CLOCK.name} does not compile")
    return library


@dataclass
class MockFailing(Fault):
    """A mock fails in one of its ways (deploy/mocks/README.md)."""

    control: str
    """The variable with the URL of its control port."""
    switches: Mapping[str, Any]

    @property
    def parts(self) -> frozenset[str]:
        return frozenset({self.control})

    async def begin(self, stack: RunningStack) -> None:
        await self._send(stack, "PUT", self.switches)

    async def end(self, stack: RunningStack) -> None:
        await self._send(stack, "DELETE", None)

    async def _send(self, stack: RunningStack, method: str, switches: Mapping[str, Any] | None) -> None:
        if self.control not in stack.environment:
            raise Unsuitable(f"the stack has no {self.control}")
        url, timeout = f"{stack.environment[self.control]}/behaviour", aiohttp.ClientTimeout(MOCK_SECONDS)
        async with (
            aiohttp.ClientSession(timeout=timeout) as http,
            http.request(method, url, json=None if switches is None else dict(switches)) as answer,
        ):
            # The mock of an older commit has fewer switches.
            if answer.status != 200:
                raise Unsuitable(f"{self.control} refuses {self.switches}: {answer.status}")


async def _cancel(task: asyncio.Task[None] | None) -> None:
    if task is not None:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
