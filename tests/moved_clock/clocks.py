"""Prints as JSON which time the processes of a test run see, and how long waits take.

The tests beside it run it with a moved clock.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import asyncpg
import grpc

from deploy.local.process import LOOPBACK
from deploy.local.secrets import Secrets
from deploy.local.servers.private import ServerPorts, Servers
from deploy.local.supervisor import Supervisor
from tests.waiting import pause

SECONDS: Final = 0.5
"""The length of each wait."""
_TIME: Final = "import time; print(time.time())"


async def clocks(folder: Path) -> dict[str, float]:
    """Returns the Unix time in seconds as each process reads it, by process."""
    servers = Servers(
        folder=folder, ports=ServerPorts.free(), secrets=Secrets(folder / "secrets.json"), services=(), durable=False
    )
    try:
        async with Supervisor([servers.postgres.process()], logs=folder / "logs", restart=False):
            connection = await asyncpg.connect(servers.database_url())
            postgres = float(await connection.fetchval("SELECT extract(epoch FROM now())"))
            await connection.close()
    finally:
        servers.remove()
    child = await asyncio.to_thread(subprocess.check_output, [sys.executable, "-c", _TIME])
    return {"this process": time.time(), "a child": float(child), "Postgres": postgres}


async def waits() -> dict[str, float]:
    """Returns how many seconds waits of SECONDS take, by kind, measured by a clock that is not moved."""
    return {
        "sleep of asyncio": await _took(lambda: pause(SECONDS)),
        "deadline of gRPC": await _took(_deadline),
        "timeout of gRPC in a thread": await _took(lambda: asyncio.to_thread(_timeout)),
    }


async def _took(wait: Callable[[], Awaitable[None]]) -> float:
    begun = time.monotonic()
    await wait()
    return time.monotonic() - begun


async def _deadline() -> None:
    async with grpc.aio.insecure_channel(f"{LOOPBACK}:1") as channel:
        try:
            await channel.unary_unary("/nothing/There", bytes)(b"", timeout=SECONDS, wait_for_ready=True)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED:
                raise


def _timeout() -> None:
    with grpc.insecure_channel(f"{LOOPBACK}:1") as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=SECONDS)
        except grpc.FutureTimeoutError:
            return


class _Moment(ctypes.Structure):
    """The C struct timespec."""

    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


# From <linux/futex.h> and <time.h>.
_FUTEX_WAIT_BITSET_REAL_TIME: Final = 9 | 256
_TIMER_ABSTIME: Final = 1


def waits_of_libc() -> dict[str, float]:
    """Returns the same for the functions of libc that wait until a point in time."""
    libc = ctypes.CDLL(None)
    real, monotonic = time.CLOCK_REALTIME, time.CLOCK_MONOTONIC
    until = _Moment()
    moment = ctypes.byref(until)
    # Zeros are an unposted semaphore, and what the INITIALIZER macros of pthread.h consist of.
    semaphore, mutex, condition, word = (ctypes.create_string_buffer(64) for _ in range(4))
    libc.pthread_mutex_lock(mutex)
    # The numbers of system calls differ between architectures.
    futex = {"x86_64": 202}.get(os.uname().machine, 98)

    def seconds(clock: int, function: str, *arguments: object) -> float:
        begun = time.monotonic()
        until.seconds, until.nanoseconds = divmod(time.clock_gettime_ns(clock) + int(SECONDS * 1e9), 10**9)
        libc[function](*arguments)
        return time.monotonic() - begun

    return {
        "sem_timedwait": seconds(real, "sem_timedwait", semaphore, moment),
        "sem_clockwait": seconds(real, "sem_clockwait", semaphore, real, moment),
        "sem_clockwait, monotonic": seconds(monotonic, "sem_clockwait", semaphore, monotonic, moment),
        "mutex_timedlock": seconds(real, "pthread_mutex_timedlock", mutex, moment),
        "mutex_clocklock": seconds(real, "pthread_mutex_clocklock", mutex, real, moment),
        "cond_timedwait": seconds(real, "pthread_cond_timedwait", condition, mutex, moment),
        "cond_clockwait": seconds(real, "pthread_cond_clockwait", condition, mutex, real, moment),
        "cond_clockwait, monotonic": seconds(monotonic, "pthread_cond_clockwait", condition, mutex, monotonic, moment),
        "clock_nanosleep": seconds(real, "clock_nanosleep", real, _TIMER_ABSTIME, moment, None),
        "futex": seconds(real, "syscall", futex, word, _FUTEX_WAIT_BITSET_REAL_TIME, 0, moment, None, 0xFFFFFFFF),
    }


async def main() -> None:
    """Takes all measurements and prints them."""
    with tempfile.TemporaryDirectory(prefix="skyhigh-") as folder:
        seen = {"clocks": await clocks(Path(folder)), "waits": await waits()}
    seen["waits"] |= waits_of_libc()
    json.dump(seen, sys.stdout)


if __name__ == "__main__":
    asyncio.run(main())
