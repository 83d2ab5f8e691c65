"""The one detached process behind `skyhigh up`: runs the stack until SIGTERM."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Sequence
from typing import Final

from deploy.local import environment, proc, sources
from deploy.local.home import UnusableHomeError, ensure_home, lock
from deploy.local.leftovers import end_leftovers
from deploy.local.orders import Orders
from deploy.local.ports import Reservations
from deploy.local.process import Process
from deploy.local.report import Report
from deploy.local.servers import MissingServerError
from deploy.local.stack import GivenServerError, Stack
from deploy.local.supervisor import Status, Supervisor, tell

LOCK: Final = "supervisor.lock"
SOURCES: Final = ("deploy/local",)
RESERVE_SECONDS: Final = 1


def main() -> int:
    """Runs the stack of the environment. Ends with 1 and a line in its log if it cannot."""
    # A shell starts what it puts into the background with these ignored, and every child would inherit that.
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    # Its probes connect to loopback and to Postgres themselves.
    environment.clean()
    try:
        stack = Stack.from_environment()
        ensure_home(stack.home)
        processes = stack.processes()
    except (ValueError, MissingServerError, UnusableHomeError) as error:
        tell(str(error))
        return 1
    with lock(stack.home / LOCK, wait=False) as sole:
        if not sole:
            tell(f"another supervisor runs {stack.home}")
            return 1
        last = Report.read(stack.home)
        if last is not None and last.is_of_this_boot and (ended := end_leftovers(last.processes)):
            tell(f"ended what a killed supervisor had left: pids {', '.join(map(str, ended))}")
        return asyncio.run(_run(stack, processes))


async def _run(stack: Stack, processes: Sequence[Process]) -> int:
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    pid = os.getpid()
    report = Report(
        pid,
        proc.start_ticks(pid),
        addresses=stack.addresses,
        given=stack.given,
        sources=sources.digests(SOURCES),
    )

    def write(statuses: Sequence[Status]) -> None:
        report.processes = statuses
        # A full disk must not end the processes that run; the next change is written when there is room.
        with contextlib.suppress(OSError):
            report.write(stack.home)

    supervisor = Supervisor(processes, logs=stack.home / "logs", on_change=write)
    orders = Orders(stack.home)
    arrived = orders.listen()
    # At once, so that every later command finds this supervisor.
    write(supervisor.statuses)
    try:
        stack.signing_keys.ensure()
        stack.ensure_certificates()
        await stack.provision_given_servers()
    except (GivenServerError, OSError) as error:
        tell(str(error))
        return 1
    reserving = asyncio.create_task(_reserve({port for process in processes for port in process.ports.values()}))
    starting = asyncio.create_task(supervisor.start())
    running = asyncio.create_task(orders.carry_out(supervisor, arrived))
    await stopping.wait()
    for task in (starting, running, reserving):
        task.cancel()
    await supervisor.stop()
    await asyncio.gather(starting, running, reserving, return_exceptions=True)
    tell("stopped")
    return 0


async def _reserve(ports: set[int]) -> None:
    """Keeps the stack's ports from outgoing connections; waits for the connections that have one now."""
    reservations = Reservations()
    known: set[int] = set()
    while missing := reservations.reserve(ports):
        if missing - known:
            tell(f"in use, and not yet reserved: ports {', '.join(map(str, sorted(missing)))}")
            known |= missing
        await asyncio.sleep(RESERVE_SECONDS)
    # They stay bound for as long as this process runs.
    await asyncio.Event().wait()


if __name__ == "__main__":
    sys.exit(main())
