"""The one detached process behind `skyhigh up`: runs the stack until SIGTERM."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Sequence

from deploy.local.process import Process
from deploy.local.report import Report
from deploy.local.servers import MissingServerError
from deploy.local.stack import GivenServerError, Stack
from deploy.local.supervisor import Status, Supervisor, end_leftovers, sole_supervisor, start_ticks, tell


def main() -> int:
    """Runs the stack of the environment. Ends with 1 and a line in its log where it cannot."""
    try:
        stack = Stack.from_environment()
        processes = stack.processes()
    except (ValueError, MissingServerError) as error:
        tell(str(error))
        return 1
    with sole_supervisor(stack.home) as sole:
        if not sole:
            tell(f"another supervisor runs {stack.home}")
            return 1
        last = Report.read(stack.home)
        if last is not None:
            end_leftovers(last.processes)
        return asyncio.run(_run(stack, processes))


async def _run(stack: Stack, processes: Sequence[Process]) -> int:
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    pid = os.getpid()
    report = Report(pid, start_ticks(pid), addresses=stack.addresses, given=stack.given)

    def write(statuses: Sequence[Status]) -> None:
        report.processes = statuses
        report.write(stack.home)

    supervisor = Supervisor(processes, logs=stack.home / "logs", on_change=write)
    stack.signing_keys.ensure()
    stack.ensure_certificates()
    try:
        await stack.provision_given_servers()
    except GivenServerError as error:
        tell(str(error))
        return 1
    write(supervisor.statuses)
    starting = asyncio.create_task(supervisor.start())
    await stopping.wait()
    starting.cancel()
    await supervisor.stop()
    await asyncio.gather(starting, return_exceptions=True)
    tell("stopped")
    return 0


if __name__ == "__main__":
    sys.exit(main())
