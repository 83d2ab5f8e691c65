"""How a service runs: settings → telemetry → migrations → pool → server and background work → drain on SIGTERM.

A service is one parent process that serves nothing and any number of workers that share one port (SO_REUSEPORT) and
nothing else. Python's gRPC is bound by one core a process, so that workers are how a service uses a machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Final, Generic, TypeVar, cast

import grpc
import uvloop
from google.protobuf.descriptor import ServiceDescriptor
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2
from grpc_reflection.v1alpha._async import ReflectionServicer

from services import db, idempotency, inbox, migrate, outbox, settings, tasks, telemetry, timers, tls, wellness
from services.auth import Access, Keys, TokenVerifier
from services.binding import bound
from services.db import Pool
from services.endpoints import Endpoint
from services.interceptors import GuardedServer
from services.settings import ServiceSettings

WORKER_INDEX: Final = "SKYHIGH_WORKER_INDEX"
# Calls in flight may end; whoever takes longer is cut.
DRAIN_SECONDS: Final = 10
DATABASE_PATIENCE_SECONDS: Final = 30
# No request of ours is near this: the widest is nine seats.
LARGEST_MESSAGE_BYTES: Final = 64 * 1024
HOUSEKEEPING_SECONDS: Final = 300
# A call makes hundreds of objects and hardly a cycle; looking for one every 700 objects is a few percent of its cost.
GC_THRESHOLDS: Final = (20_000, 20, 20)
# A worker that ends so often before it has run for a while will not start by itself.
FAILED_STARTS: Final = 3
WELL_AFTER_SECONDS: Final = 10
# What a service ends with when a worker cannot start. With 2 it ends for a wrong setting.
CANNOT_START: Final = 3

Config = TypeVar("Config", bound=ServiceSettings)
Register = Callable[[grpc.aio.Server], None]

_log = telemetry.log("app")


@dataclass(slots=True)
class Parts:
    """What a service adds to the chassis: its servicers, and work that runs beside them until cancelled."""

    register: Register
    background: Mapping[str, Callable[[], Awaitable[None]]] = field(default_factory=dict)
    ready: Callable[[], bool] = lambda: True
    """Says whether this process has what it needs besides the database; if not, its health is NOT_SERVING."""


@dataclass(frozen=True, slots=True)
class Service(Generic[Config]):
    """A service as its `__main__` describes it. `name` is its schema, its queues' prefix and its log field."""

    name: str
    package: str
    settings: type[Config]
    descriptor: ServiceDescriptor
    policy: Mapping[str, Access]
    build: Callable[[Config, Pool], contextlib.AbstractAsyncContextManager[Parts]]
    largest_message_bytes: int = LARGEST_MESSAGE_BYTES


def run(service: Service[Config]) -> None:
    """Runs the service until SIGTERM or SIGINT. Ends with 2 and a line for each bad setting."""
    config = settings.load(service.settings)
    telemetry.configure_logging(service.name, config.log_level)
    index = os.environ.get(WORKER_INDEX)
    if index is not None:
        uvloop.run(_work(service, config, int(index)))
    else:
        asyncio.run(_oversee(service, config))


async def _oversee(service: Service[Config], config: Config) -> None:
    """Migrates, then keeps the workers alive until told to stop."""
    stopping = _stop_signal()
    await db.wait_until_there(config.database_url, patience_seconds=DATABASE_PATIENCE_SECONDS)
    for name in await migrate.migrate(config.database_url, schema=service.name, package=service.package):
        _log.info("migration applied", name=name)
    keepers = [asyncio.create_task(_keep_worker(service, index, stopping)) for index in range(config.processes)]
    if not all(await asyncio.gather(*keepers)):
        sys.exit(CANNOT_START)


async def _keep_worker(service: Service[Config], index: int, stopping: asyncio.Event) -> bool:
    """Keeps a worker alive until told to stop. Stops the service and returns False if the worker never starts.

    One that has run before is started again for ever: what ends it, such as a database that is down, may pass.
    """
    failed_starts, was_well = 0, False
    while not stopping.is_set():
        began = time.monotonic()
        worker = await asyncio.create_subprocess_exec(
            sys.executable, "-m", service.package, env={**os.environ, WORKER_INDEX: str(index)}
        )
        ended = asyncio.create_task(worker.wait())
        told = asyncio.create_task(stopping.wait())
        await asyncio.wait((ended, told), return_when=asyncio.FIRST_COMPLETED)
        if told.done():
            with contextlib.suppress(ProcessLookupError):
                worker.terminate()
            try:
                async with asyncio.timeout(DRAIN_SECONDS + 5):
                    await worker.wait()
            except TimeoutError:
                worker.kill()
            return True
        told.cancel()
        _log.error("worker died", index=index, exit_code=worker.returncode)
        # One that was killed by a signal could start.
        failed_starts += worker.returncode is not None and worker.returncode > 0
        was_well = was_well or time.monotonic() - began > WELL_AFTER_SECONDS
        if failed_starts >= FAILED_STARTS and not was_well:
            _log.error("worker cannot start", index=index, exit_code=worker.returncode)
            stopping.set()
            return False
        # A worker that cannot start must not spin.
        await asyncio.sleep(0.5)
    return True


async def _work(service: Service[Config], config: Config, index: int) -> None:
    stopping = _stop_signal()
    asyncio.get_running_loop().create_task(_stop_with_parent(os.getppid(), stopping))
    if config.metrics_port:
        telemetry.serve_metrics(config.metrics_port + index)
    ports = [config.listen]
    if config.worker_port:
        ports.append(str(replace(Endpoint.parse(config.listen), port=config.worker_port + index)))
    async with serving(service, config, ports):
        # What start-up made lives as long as the process; the collector need not look at it again.
        gc.collect()
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLDS)
        await stopping.wait()
        _log.info("draining", index=index)


@asynccontextmanager
async def serving(service: Service[Config], config: Config, addresses: list[str]) -> AsyncIterator[list[int]]:
    """Serves on the addresses within the block, then drains. Yields the ports. Tests serve in process by this."""
    pool = await db.connect(config.database_url, schema=service.name, size=config.pool_size)
    verifier = TokenVerifier(keys=Keys(config.jwks), issuer=config.token_issuer, audience=config.token_audience)
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(_close, pool)
        parts = await stack.enter_async_context(service.build(config, pool))
        background = [
            asyncio.create_task(_forever(name, work), name=name)
            for name, work in {**parts.background, "housekeeping": lambda: _housekeeping(pool)}.items()
        ]
        stack.push_async_callback(tasks.end, background)
        server = grpc.aio.server(
            options=[
                ("grpc.so_reuseport", 1),
                ("grpc.max_receive_message_length", service.largest_message_bytes),
                ("grpc.max_metadata_size", 16 * 1024),
                ("grpc.max_concurrent_streams", 1000),
            ],
        )
        guarded = GuardedServer(
            server,
            policy=service.policy,
            verifier=verifier,
            watches_per_principal=config.watches_per_principal,
            proxies=config.proxies,
        )
        parts.register(cast("grpc.aio.Server", guarded))
        healthy = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(healthy, server)
        _enable_reflection(server, service.descriptor.full_name)
        identity = config.identity
        # For each address its own: gRPC asks those for the first certificate only once. It does not keep them, either.
        credentials = [None if identity is None else tls.server_credentials(identity) for _ in addresses]
        ports = [await _listen(server, *each) for each in zip(addresses, credentials, strict=True)]
        await server.start()

        async def announce(well: bool) -> None:
            kind = health_pb2.HealthCheckResponse
            for name in ("", service.descriptor.full_name):
                await healthy.set(name, kind.SERVING if well else kind.NOT_SERVING)

        await announce(parts.ready())
        background.append(
            asyncio.create_task(
                _forever("health", lambda: wellness.watch(config.database_url, announce, parts.ready)), name="health"
            )
        )
        _log.info("serving", ports=ports)
        try:
            yield ports
        finally:
            await healthy.enter_graceful_shutdown()
            # A server that stops cancels calls which have arrived and not begun. Whoever looks at our health, as the
            # gateway does, has none on the way by then.
            await asyncio.sleep(config.drain_notice_seconds)
            await server.stop(DRAIN_SECONDS)


async def _listen(server: grpc.aio.Server, address: str, credentials: grpc.ServerCredentials | None) -> int:
    """Binds the address; returns the port. Raises RuntimeError if it is in use for long."""

    async def bind() -> int:
        if credentials is None:
            return server.add_insecure_port(address)
        return server.add_secure_port(address, credentials)

    return await bound(bind, address)


def _enable_reflection(server: grpc.aio.Server, service: str) -> None:
    """Serves reflection as v1alpha and as v1: the messages are the same, and grpcurl asks for v1 first."""
    names = (service, health.SERVICE_NAME, reflection.SERVICE_NAME)
    reflection.enable_server_reflection(names, server)
    servicer = ReflectionServicer(names)
    server.add_generic_rpc_handlers(
        (
            grpc.method_handlers_generic_handler(
                "grpc.reflection.v1.ServerReflection",
                {
                    "ServerReflectionInfo": grpc.stream_stream_rpc_method_handler(
                        servicer.ServerReflectionInfo,
                        reflection_pb2.ServerReflectionRequest.FromString,
                        reflection_pb2.ServerReflectionResponse.SerializeToString,
                    )
                },
            ),
        )
    )


async def _forever(name: str, work: Callable[[], Awaitable[None]]) -> None:
    """Runs background work until cancelled, and starts it again after an error: no other task does this work.

    An outage is logged as a warning, a defect as an error with its traceback.
    """
    while True:
        try:
            await work()
        except db.AWAY as error:
            _log.warning("background work waits", work=name, error=repr(error))
        except Exception as error:
            _log.error("background work failed", work=name, error=repr(error), exc_info=error)
        await asyncio.sleep(1)


async def _housekeeping(pool: Pool) -> None:
    """Forgets answers and events that nobody may ask for any more."""
    while True:
        await asyncio.sleep(HOUSEKEEPING_SECONDS)
        with contextlib.suppress(*db.AWAY):
            await forget_old(pool)


async def forget_old(pool: Pool) -> None:
    """Deletes what is old in the chassis' tables, in transactions so small that no call waits for one."""
    for forget in (idempotency.forget_old, outbox.forget_old, inbox.forget_old, timers.forget_old):
        await db.in_batches(pool, forget)


def _stop_signal() -> asyncio.Event:
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    return stopping


async def _stop_with_parent(parent: int, stopping: asyncio.Event) -> None:
    """A worker whose parent was killed would hold the port against the next start."""
    while os.getppid() == parent:  # noqa: ASYNC110
        await asyncio.sleep(0.5)
    stopping.set()


async def _close(pool: Pool) -> None:
    try:
        async with asyncio.timeout(5):
            await pool.close()
    except TimeoutError:
        pool.terminate()
