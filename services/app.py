"""Runs a service: settings, telemetry, migrations, pool, server, SIGTERM drain.

A service is one parent process and any number of worker processes. The parent only starts and watches the workers. The
workers share the listening port (SO_REUSEPORT) and nothing else. A Python gRPC process uses at most one core, so the
number of workers decides how many cores a service can use.
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

from services import db, idempotency, inbox, migrate, outbox, rpcs, settings, tasks, telemetry, timers, tls, wellness
from services.auth import Keys, TokenVerifier
from services.binding import bound
from services.db import Pool
from services.endpoints import Endpoint
from services.interceptors import GuardedServer
from services.rpcs import Rpc
from services.settings import ServiceSettings

WORKER_INDEX: Final = "SKYHIGH_WORKER_INDEX"
# Calls in flight at shutdown may run this long; then they are cancelled.
DRAIN_SECONDS: Final = 10
DATABASE_PATIENCE_SECONDS: Final = 30
# The largest request, nine seats, is far smaller.
LARGEST_MESSAGE_BYTES: Final = 64 * 1024
HOUSEKEEPING_SECONDS: Final = 300
# A call allocates hundreds of objects and hardly any reference cycle. The default threshold of 700 objects would cost a
# few percent of each call.
GC_THRESHOLDS: Final = (20_000, 20, 20)
# A worker that exits this often before it has run for WELL_AFTER_SECONDS cannot start.
FAILED_STARTS: Final = 3
WELL_AFTER_SECONDS: Final = 10
# Exit code if a worker cannot start. A wrong setting has exit code 2.
CANNOT_START: Final = 3

Config = TypeVar("Config", bound=ServiceSettings)
Register = Callable[[grpc.aio.Server], None]

_log = telemetry.log("app")


@dataclass(slots=True)
class Parts:
    """What a service adds to the chassis: its servicers and its background work.

    `background` maps a name to a coroutine function that runs until it is cancelled.
    """

    register: Register
    background: Mapping[str, Callable[[], Awaitable[None]]] = field(default_factory=dict)
    ready: Callable[[], bool] = lambda: True
    """Returns whether this process has everything that it needs.

    The database is checked apart. If it returns False, the health of the process is NOT_SERVING.
    """


@dataclass(frozen=True, slots=True)
class Service(Generic[Config]):
    """A service as its `__main__` describes it.

    `name` is its database schema, the prefix of its queues and its log field.
    """

    name: str
    package: str
    settings: type[Config]
    descriptor: ServiceDescriptor
    build: Callable[[Config, Pool], contextlib.AbstractAsyncContextManager[Parts]]
    largest_message_bytes: int = LARGEST_MESSAGE_BYTES
    others: tuple[ServiceDescriptor, ...] = ()
    """Further services on the same port."""

    def rpcs(self) -> dict[str, Rpc]:
        """Returns the declarations of all its RPCs, by name. Raises DeclarationError if an RPC has none."""
        return {name: rpc for each in (self.descriptor, *self.others) for name, rpc in rpcs.of_service(each).items()}


def run(service: Service[Config]) -> None:
    """Runs the service until SIGTERM or SIGINT.

    Exits with code 2 and prints a line for each bad setting. Raises DeclarationError if an RPC has no declaration.
    """
    service.rpcs()
    config = settings.load(service.settings)
    telemetry.configure_logging(service.name, config.log_level)
    index = os.environ.get(WORKER_INDEX)
    if index is not None:
        uvloop.run(_work(service, config, int(index)))
    else:
        asyncio.run(_oversee(service, config))


async def _oversee(service: Service[Config], config: Config) -> None:
    """Applies migrations, then keeps the workers alive until SIGTERM or SIGINT."""
    stopping = _stop_signal()
    await db.wait_until_there(config.database_url, patience_seconds=DATABASE_PATIENCE_SECONDS)
    for name in await migrate.migrate(config.database_url, schema=service.name, package=service.package):
        _log.info("migration applied", name=name)
    keepers = [asyncio.create_task(_keep_worker(service, index, stopping)) for index in range(config.processes)]
    if not all(await asyncio.gather(*keepers)):
        sys.exit(CANNOT_START)


async def _keep_worker(service: Service[Config], index: int, stopping: asyncio.Event) -> bool:
    """Keeps one worker alive until `stopping` is set.

    Sets `stopping` and returns False if the worker exits FAILED_STARTS times before it has ever run for
    WELL_AFTER_SECONDS. A worker that has run so long is restarted without limit, because the cause of its exit, such as
    a database outage, may be temporary.
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
        # A worker that a signal killed has a negative exit code and was able to start.
        failed_starts += worker.returncode is not None and worker.returncode > 0
        was_well = was_well or time.monotonic() - began > WELL_AFTER_SECONDS
        if failed_starts >= FAILED_STARTS and not was_well:
            _log.error("worker failed to start", index=index, exit_code=worker.returncode)
            stopping.set()
            return False
        # The pause keeps a worker that cannot start from being restarted in a busy loop.
        await asyncio.sleep(0.5)
    return True


async def _work(service: Service[Config], config: Config, index: int) -> None:
    stopping = _stop_signal()
    watching = asyncio.create_task(_stop_with_parent(os.getppid(), stopping))
    if config.metrics_port:
        telemetry.serve_metrics(config.metrics_port + index)
    ports = [config.listen]
    if config.worker_port:
        ports.append(str(replace(Endpoint.parse(config.listen), port=config.worker_port + index)))
    async with serving(service, config, ports):
        # Objects from start-up live as long as the process, so the garbage collector does not need to scan them.
        gc.collect()
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLDS)
        await stopping.wait()
        _log.info("draining", index=index)
    watching.cancel()


@asynccontextmanager
async def serving(service: Service[Config], config: Config, addresses: list[str]) -> AsyncIterator[list[int]]:
    """Serves on the addresses within the block, then drains. Yields the ports.

    Tests use it to run a service in their own process.
    """
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
            rpcs=service.rpcs(),
            verifier=verifier,
            watches_per_principal=config.watches_per_principal,
            proxies=config.proxies,
        )
        parts.register(cast("grpc.aio.Server", guarded))
        healthy = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(healthy, server)
        _enable_reflection(server, service.descriptor.full_name)
        identity = config.identity
        # Each port needs its own credentials: gRPC calls the function for the first certificate only once per
        # credentials object. The list also keeps the objects alive, which gRPC does not.
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
            # A stopping server cancels calls that have arrived but not begun. Clients that watch the health service,
            # such as the gateway, stop sending calls during this pause.
            await asyncio.sleep(config.drain_notice_seconds)
            await server.stop(DRAIN_SECONDS)


async def _listen(server: grpc.aio.Server, address: str, credentials: grpc.ServerCredentials | None) -> int:
    """Binds the server to the address and returns the port.

    Raises RuntimeError if the address stays in use.
    """

    async def bind() -> int:
        if credentials is None:
            return server.add_insecure_port(address)
        return server.add_secure_port(address, credentials)

    return await bound(bind, address)


def _enable_reflection(server: grpc.aio.Server, service: str) -> None:
    """Serves reflection as v1alpha and as v1, whose messages are the same.

    grpcurl tries v1 first.
    """
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
    """Runs background work until it is cancelled, and restarts it after an error.

    No other task does this work, so the loop must survive every error. An outage is logged as a warning, any other
    error as an error with its traceback.
    """
    while True:
        try:
            await work()
        except db.UNREACHABLE as error:
            _log.warning(
                "background task failed, a dependency is unavailable; restarting", work=name, error=repr(error)
            )
        except Exception as error:
            _log.error("background task failed; restarting", work=name, error=repr(error), exc_info=error)
        await asyncio.sleep(1)


async def _housekeeping(pool: Pool) -> None:
    """Deletes expired rows of the chassis' tables every HOUSEKEEPING_SECONDS."""
    while True:
        await asyncio.sleep(HOUSEKEEPING_SECONDS)
        with contextlib.suppress(*db.UNREACHABLE):
            await forget_old(pool)


async def forget_old(pool: Pool) -> None:
    """Deletes expired rows of the chassis' tables.

    Each transaction deletes so few rows that no call waits noticeably for it.
    """
    for forget in (idempotency.forget_old, outbox.forget_old, inbox.forget_old, timers.forget_old):
        await db.in_batches(pool, forget)


def _stop_signal() -> asyncio.Event:
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    return stopping


async def _stop_with_parent(parent: int, stopping: asyncio.Event) -> None:
    """Sets `stopping` when the parent process has died.

    A worker without its parent would keep the port and serve calls beside the workers of the next start.
    """
    while os.getppid() == parent:  # noqa: ASYNC110
        await asyncio.sleep(0.5)
    stopping.set()


async def _close(pool: Pool) -> None:
    try:
        async with asyncio.timeout(5):
            await pool.close()
    except TimeoutError:
        pool.terminate()
