"""The supervisor process that `skyhigh up` starts: runs the stack until SIGTERM."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Sequence
from typing import Final

from deploy.local import environment, proc, sources
from deploy.local.given_servers import GivenServerError, provision_given_servers
from deploy.local.home import UnusableHomeError, ensure_home, lock
from deploy.local.leftovers import end_leftovers
from deploy.local.orders import Orders
from deploy.local.ports import Reservations
from deploy.local.process import Process
from deploy.local.process_table import processes_of
from deploy.local.report import Report
from deploy.local.servers.programs import MissingServerError
from deploy.local.stack import Stack
from deploy.local.supervisor import Status, Supervisor, log_line

LOCK: Final = "supervisor.lock"
SOURCES: Final = ("deploy/local",)
RESERVE_SECONDS: Final = 1


def main() -> int:
    """Runs the stack that the environment describes. Returns 1 and logs why if it cannot."""
    # A shell starts a background command with these signals ignored, and every child process would inherit that.
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    # The probes connect to loopback and to Postgres from this process, so no proxy and no PG variable may affect it.
    environment.clean()
    try:
        stack = Stack.from_environment()
        ensure_home(stack.home)
        processes = processes_of(stack)
    except (ValueError, MissingServerError, UnusableHomeError) as error:
        log_line(str(error))
        return 1
    with lock(stack.home / LOCK, wait=False) as sole:
        if not sole:
            log_line(f"another supervisor runs {stack.home}")
            return 1
        last = Report.read(stack.home)
        if last is not None and last.is_of_this_boot and (ended := end_leftovers(last.processes)):
            log_line(f"ended the processes that a killed supervisor had left: pids {', '.join(map(str, ended))}")
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
        # A full disk must not end the processes that run. The next change writes the whole report again.
        with contextlib.suppress(OSError):
            report.write(stack.home)

    supervisor = Supervisor(processes, logs=stack.home / "logs", on_change=write)
    orders = Orders(stack.home)
    arrived = orders.listen()
    # Before the preparations, which take time, so that every later command finds this supervisor.
    write(supervisor.statuses)
    try:
        stack.signing_keys.ensure()
        stack.ensure_certificates()
        await provision_given_servers(stack)
    except (GivenServerError, OSError) as error:
        log_line(str(error))
        return 1
    reserving = asyncio.create_task(_reserve({port for process in processes for port in process.ports.values()}))
    starting = asyncio.create_task(supervisor.start())
    running = asyncio.create_task(orders.carry_out(supervisor, arrived))
    await stopping.wait()
    for task in (starting, running, reserving):
        task.cancel()
    await supervisor.stop()
    await asyncio.gather(starting, running, reserving, return_exceptions=True)
    log_line("stopped")
    return 0


async def _reserve(ports: set[int]) -> None:
    """Reserves the stack's ports against outgoing connections; retries those in use now."""
    reservations = Reservations()
    known: set[int] = set()
    while missing := reservations.reserve(ports):
        if missing - known:
            log_line(f"in use, and not yet reserved: ports {', '.join(map(str, sorted(missing)))}")
            known |= missing
        await asyncio.sleep(RESERVE_SECONDS)
    # The task does not end: the ports stay bound only as long as `reservations` exists.
    await asyncio.Event().wait()


if __name__ == "__main__":
    sys.exit(main())
